//! `flightcache-bench`: what the cache gains, measured against other ways to read the same objects in the same run.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use flightcache_bench::{ask, export, generate, import, load, quickstart, replay, residency, scans, simulate, sql, wire};

// Buffers of a MiB come and go with every answer: glibc gives each back to the system and faults it in anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    /// Ask a server at constant rates, and tell how long answers take.
    Load(load::Options),
    /// Ask running servers over and over, as one client that stays; compare rows, and tell each answer as a JSON line.
    Ask(ask::Options),
    /// Compute hit rates of eviction policies on traces, without a server.
    Simulate(simulate::Options),
    /// Turn a trace of another program into JSON Lines.
    Import(import::Options),
    /// Scan lineitem of TPC-H against caches that keep arrays, Parquet bytes, or both, of rising capacity.
    Residency(residency::Options),
    /// Write a known trace as JSON Lines.
    Export(export::Options),
    /// Read whole, projected and filtered, cold and warm through a server in this process, and directly with `DataFusion`.
    Scans(scans::Options),
    /// Ask the queries of TPC-H or `ClickBench` through each door, and compare answers and times with plain `DataFusion`.
    Sql(sql::Options),
    /// Measure what serving and receiving cost, against other servers and clients, each in a process of its own.
    Wire(wire::Options),
    /// One end of what `wire` measures.
    #[command(hide = true)]
    WireEnd(wire::EndOptions),
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
        Command::Generate(options) => generate::run(options).await,
        Command::Replay(options) => replay::run(options).await,
        Command::Load(options) => load::run(&options).await,
        Command::Ask(options) => ask::run(options).await,
        Command::Simulate(options) => simulate::run(&options),
        Command::Import(options) => Ok(import::run(&options)?),
        Command::Residency(options) => residency::run(options).await,
        Command::Export(options) => Ok(export::run(&options)?),
        Command::Scans(options) => scans::run(options).await,
        Command::Sql(options) => sql::run(options).await,
        Command::Wire(options) => wire::run(options).await,
        Command::WireEnd(options) => wire::run_end(options).await,
    }
}
