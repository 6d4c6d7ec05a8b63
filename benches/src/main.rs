//! `flightcache-bench`: what the cache gains, measured against direct reads in the same run.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use flightcache_bench::{import, load, quickstart, simulate};

#[derive(Parser)]
#[command(name = "flightcache-bench", version, about = "Benchmarks of Flightcache")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Read a small data set cold and warm through a server in this process, and directly with `DataFusion`.
    Quickstart(quickstart::Options),
    /// Compute hit rates of eviction policies on traces, without a server.
    Simulate(simulate::Options),
    /// Turn a trace of another program into JSON Lines.
    Import(import::Options),
    /// Ask a server at constant rates, and tell how long answers take.
    Load(load::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<(), Box<dyn std::error::Error>> {
    match command {
        Command::Quickstart(options) => quickstart::run(options).await,
        Command::Simulate(options) => simulate::run(&options),
        Command::Import(options) => Ok(import::run(&options)?),
        Command::Load(options) => load::run(&options).await,
    }
}
