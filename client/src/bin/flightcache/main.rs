//! `flightcache`: look at a cache and read through it from a terminal.

mod output;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use flightcache::{Client, Error, Populate, Result, ScanRequest, Transfer};
use futures::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};

use crate::output::Format;

#[derive(Parser)]
#[command(name = "flightcache", version, about = "Read through a Flightcache, and look after it")]
struct Cli {
    /// The server.
    #[arg(long, env = "FLIGHTCACHE_SERVER", default_value = "grpc://127.0.0.1:50051", global = true)]
    server: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Read rows of an object, a prefix ending in `/`, or a glob.
    Get {
        #[command(flatten)]
        scan: ScanArgs,
        /// Row numbers of one object, in the order wanted.
        #[arg(long, value_delimiter = ',')]
        rows: Option<Vec<u64>>,
        /// Leave nothing of this read in the cache.
        #[arg(long)]
        no_populate: bool,
        /// How rows come from the server. They are the same in every form.
        #[arg(long, value_enum, default_value = "auto")]
        transfer: Transfer,
        /// Output format.
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
        /// Write to a file instead of standard output.
        #[arg(short, long)]
        output: Option<PathBuf>,
    },
    /// Run a SQL statement on the server, over named tables and quoted URLs.
    Sql {
        /// Such as "SELECT count(*) FROM `'s3://lake/trips/'`", EXPLAIN ANALYZE …, SHOW TABLES.
        statement: String,
        /// Output format.
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
        /// Write to a file instead of standard output.
        #[arg(short, long)]
        output: Option<PathBuf>,
    },
    /// Show schema, row groups, sizes and what is resident.
    Info {
        url: String,
        #[arg(long)]
        json: bool,
    },
    /// Show the server's figures.
    Stats {
        /// Those of every server of the cluster.
        #[arg(long)]
        cluster: bool,
        #[arg(long)]
        json: bool,
    },
    /// Load into the cache.
    Warm {
        #[command(flatten)]
        scan: ScanArgs,
    },
    /// Forget an object, a prefix or a glob.
    Evict {
        url: String,
        #[arg(long)]
        json: bool,
    },
    /// Show which node owns which hash slots.
    Slots {
        #[arg(long)]
        json: bool,
    },
    /// Show the nodes of the cluster.
    Nodes {
        #[arg(long)]
        json: bool,
    },
    /// Have a node own no slots any more, so that it can be stopped. It stays reachable until then.
    Drain {
        /// Its id, or the beginning of it.
        node: String,
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct ScanArgs {
    url: String,
    /// Columns, in the order wanted.
    #[arg(long, value_delimiter = ',')]
    columns: Option<Vec<String>>,
    /// SQL boolean expression.
    #[arg(long)]
    filter: Option<String>,
    /// At most this many rows.
    #[arg(long)]
    limit: Option<u64>,
}

impl ScanArgs {
    fn request(self) -> ScanRequest {
        ScanRequest { columns: self.columns, filter: self.filter, limit: self.limit, ..ScanRequest::new(self.url) }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    let client = Client::connect(&cli.server).await?;
    match cli.command {
        Command::Get { scan, rows, no_populate, transfer, format, output } => {
            let populate = if no_populate { Populate::Never } else { Populate::Auto };
            output::get(&client, ScanRequest { rows, populate, ..scan.request() }, transfer, format, output.as_deref()).await
        }
        Command::Sql { statement, format, output } => output::sql(&client, statement, format, output.as_deref()).await,
        Command::Info { url, json } => {
            let objects = client.info(&url).await?;
            if json { print_json(&objects) } else { show::info(&objects) }
        }
        Command::Stats { cluster: true, json } => {
            let stats = client.cluster_stats().await?;
            if json { print_json(&show::by_node(&stats)) } else { show::cluster_stats(&stats) }
        }
        Command::Stats { cluster: false, json } => {
            let stats = client.stats().await?;
            if json { print_json(&stats) } else { show::stats(&stats) }
        }
        Command::Warm { scan } => warm(&client, scan.request()).await,
        Command::Evict { url, json } => {
            let evicted = client.evict(&url).await?;
            if json {
                return print_json(&evicted);
            }
            output::say(&format!(
                "{} chunks ({}) and {} footers forgotten",
                evicted.chunks,
                bytesize::ByteSize(evicted.bytes),
                evicted.footers
            ))
        }
        Command::Slots { json } => {
            let map = client.slot_map().await?;
            if json { print_json(&*map) } else { show::slots(&map) }
        }
        Command::Nodes { json } => {
            let map = client.slot_map().await?;
            if json { print_json(&show::owning(&map)) } else { show::nodes(&map) }
        }
        Command::Drain { node, json } => {
            let node = client.drain(&node).await?;
            if json { print_json(&node) } else { output::say(&format!("{} is {}", node.id, node.state.as_str())) }
        }
    }
}

async fn warm(client: &Client, request: ScanRequest) -> Result<()> {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} row groups  {msg}  {elapsed}") {
        bar.set_style(style);
    }
    let mut last = None;
    let mut progress = Box::pin(client.warm(&request).await?);
    while let Some(step) = progress.next().await {
        let step = step?;
        bar.set_length(step.row_groups_total);
        bar.set_position(step.row_groups_done);
        bar.set_message(bytesize::ByteSize(step.store_bytes).to_string());
        last = Some(step);
    }
    bar.finish_and_clear();
    let done = last.ok_or_else(|| Error::internal("the server said nothing"))?;
    output::say(&format!(
        "{} row groups: {} chunks were resident, {} loaded ({} read)",
        done.row_groups_done,
        done.chunks_hit,
        done.chunks_missed,
        bytesize::ByteSize(done.store_bytes)
    ))
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    output::say(&serde_json::to_string_pretty(value).map_err(|e| Error::internal(e.to_string()))?)
}
