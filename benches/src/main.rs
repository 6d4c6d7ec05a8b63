//! `flightcache-bench`: what the cache gains, measured against direct reads in the same run.

use clap::{Parser, Subcommand};
use flightcache_bench::quickstart;

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
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    match Cli::parse().command {
        Command::Quickstart(options) => quickstart::run(options).await,
    }
}
