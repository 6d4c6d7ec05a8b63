//! One end of the wire, as a process of its own: a server until its input ends, or a reader that does what each line of it says.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use flightcache_server::settings::Residency;
use flightcache_server::{Server, Settings};

use super::process::{Answer, Ask, Ready};
use super::{arrow_rs, raw, reader, tables};

/// Which end.
#[derive(Args, Debug)]
pub struct EndOptions {
    #[command(subcommand)]
    end: End,
}

#[derive(Debug, Subcommand)]
enum End {
    /// Our server.
    Flightcache {
        #[arg(long)]
        listen: IpAddr,
        #[arg(long)]
        residency: Residency,
        /// Where the tables lie.
        directories: Vec<PathBuf>,
    },
    /// tonic's server with `FlightDataEncoder`.
    ArrowRs {
        #[arg(long)]
        listen: IpAddr,
        /// Arrow IPC, the name of each being its ticket.
        files: Vec<PathBuf>,
    },
    /// Bytes over TCP.
    Raw {
        #[arg(long)]
        listen: IpAddr,
        #[arg(long)]
        bytes: u64,
    },
    /// Reads what it is told to.
    Reader { kind: reader::Kind },
}

/// Serves or reads, until the input ends.
pub async fn run_end(options: EndOptions) -> Result<(), Box<dyn std::error::Error>> {
    match options.end {
        End::Flightcache { listen, residency, directories } => {
            let settings = Settings { listen: (listen, 0).into(), ..tables::settings(&directories, residency)? };
            let server = Server::start(&settings).await?;
            until_the_end(&server.flight_addr().to_string()).await
        }
        End::ArrowRs { listen, files } => {
            let address = arrow_rs::serve(listen, &files)?;
            until_the_end(&address.to_string()).await
        }
        End::Raw { listen, bytes } => {
            let address = raw::serve(listen, bytes)?;
            until_the_end(&address.to_string()).await
        }
        End::Reader { kind } => {
            let mut reader = reader::Reader::new(kind);
            while let Some(line) = next_line().await? {
                let ask: Ask = serde_json::from_str(&line)?;
                let answer = reader.read(ask).await;
                say(&answer.unwrap_or_else(|error| Answer { error: Some(error.to_string()), ..Answer::default() }))?;
            }
            Ok(())
        }
    }
}

async fn until_the_end(address: &str) -> Result<(), Box<dyn std::error::Error>> {
    say(&Ready { address: address.to_owned() })?;
    while next_line().await?.is_some() {}
    Ok(())
}

async fn next_line() -> Result<Option<String>, Box<dyn std::error::Error>> {
    Ok(tokio::task::spawn_blocking(|| std::io::stdin().lines().next().transpose()).await??)
}

fn say(what: &impl serde::Serialize) -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    Ok(out.flush()?)
}
