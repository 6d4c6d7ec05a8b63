//! `flightcache-bench`: what the cache gains, measured against direct reads in the same run.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use flightcache_bench::{generate, quickstart, replay, scans};

#[derive(Parser)]
#[command(name = "flightcache-bench", version, about = "Benchmarks of Flightcache")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Replay the original traces on small files that are made for it: about a minute, no arguments needed.
    Quickstart(quickstart::Options),
    /// Make the files of the original traces.
    Generate(generate::Options),
    /// Replay access traces against Flightcache, a cache of whole files, and no cache.
    Replay(replay::Options),
    /// Read whole, projected and filtered, cold and warm through a server in this process, and directly with `DataFusion`.
    Scans(scans::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Quickstart(options) => quickstart::run(options).await,
        Command::Generate(options) => generate::run(options).await,
        Command::Replay(options) => replay::run(options).await,
        Command::Scans(options) => scans::run(options).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flightcache-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
