//! The processes of a measurement, and what they are asked.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flightcache_server::settings::Residency;
use serde::{Deserialize, Serialize};

use super::link::{End, Link};
use super::tables::{self, Table};
use crate::process;
pub(super) use crate::process::Process;

const PYTHON: &str = include_str!("pyarrow.py");

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What a server says when it is ready.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    /// Host and port.
    pub(super) address: String,
}

/// What a reader is to read. It goes on until it has read as often, and for as long, as it is told.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Ask {
    /// Host and port.
    pub(super) address: String,
    /// A URL for our server, for others rows of a batch.
    pub(super) ticket: String,
    /// Times that each reads.
    pub(super) passes: u64,
    pub(super) seconds: f64,
    /// How many read at a time, as one client.
    pub(super) in_flight: usize,
    /// Sums the first column up.
    pub(super) checksum: bool,
    /// Largest HTTP/2 frame that an arrow-rs client takes, if not its default.
    pub(super) frame_bytes: Option<u32>,
    /// Row groups come as Parquet, if they can; otherwise as Arrow.
    pub(super) parquet: bool,
    /// `lz4` or `zstd`, asked of our server by pyarrow.
    pub(super) compression: Option<String>,
    /// What raw TCP carries.
    pub(super) bytes: u64,
}

/// What it read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Answer {
    pub(super) reads: u64,
    pub(super) rows: u64,
    pub(super) seconds: f64,
    pub(super) checksum: i64,
    pub(super) error: Option<String>,
}

/// Starts processes.
#[derive(Clone, Debug)]
pub(super) struct Launcher {
    program: PathBuf,
    /// With pyarrow, or why there is none.
    python: std::result::Result<PathBuf, String>,
}

impl Launcher {
    pub(super) fn new(python: Option<&Path>) -> Result<Self> {
        let python = process::python(python);
        let tried = Command::new(&python).args(["-c", "import pyarrow.flight"]).stdin(Stdio::null()).output();
        let has_pyarrow = tried.is_ok_and(|output| output.status.success());
        let missing = || format!("The sides with pyarrow were left out: {} has no pyarrow.flight.", python.display());
        let python = if has_pyarrow { Ok(python) } else { Err(missing()) };
        Ok(Self { program: std::env::current_exe()?, python })
    }

    /// What cannot be measured.
    pub(super) fn missing(&self) -> Option<&str> {
        self.python.as_ref().err().map(String::as_str)
    }

    /// Our server over these tables, nothing read yet.
    pub(super) fn flightcache(&self, tables: &[Table], residency: Residency, link: Option<&Link>) -> Result<(Process, Ready)> {
        let mut command = self.end(link, End::Server);
        command.args(["flightcache", "--listen", host(link), "--residency", tables::name_of(residency)]);
        command.args(tables.iter().map(|table| &table.directory));
        serving(command)
    }

    /// tonic and `FlightDataEncoder` over Arrow IPC files.
    pub(super) fn arrow_rs(&self, files: &[(usize, PathBuf)], link: Option<&Link>) -> Result<(Process, Ready)> {
        let mut command = self.end(link, End::Server);
        command.args(["arrow-rs", "--listen", host(link)]).args(files.iter().map(|(_, path)| path));
        serving(command)
    }

    /// Bytes and nothing else.
    pub(super) fn raw(&self, bytes: u64, link: Option<&Link>) -> Result<(Process, Ready)> {
        let mut command = self.end(link, End::Server);
        command.args(["raw", "--listen", host(link), "--bytes", &bytes.to_string()]);
        serving(command)
    }

    /// pyarrow's server over Arrow IPC files, if there is pyarrow.
    pub(super) fn pyarrow(&self, files: &[(usize, PathBuf)], link: Option<&Link>) -> Result<Option<(Process, Ready)>> {
        let Ok(python) = &self.python else { return Ok(None) };
        let mut command = Link::command(link, End::Server, python);
        command.args(["-c", PYTHON, "server", host(link)]).args(files.iter().map(|(_, path)| path));
        serving(command).map(Some)
    }

    /// A reader of this program: `flightcache`, `receiver`, `arrow-rs` or `raw`.
    pub(super) fn reader(&self, kind: &str, link: Option<&Link>) -> Result<Process> {
        let mut command = self.end(link, End::Client);
        command.args(["reader", kind]);
        Process::start(command)
    }

    /// pyarrow's client, if there is pyarrow.
    pub(super) fn pyarrow_reader(&self, link: Option<&Link>) -> Result<Option<Process>> {
        let Ok(python) = &self.python else { return Ok(None) };
        let mut command = Link::command(link, End::Client, python);
        command.args(["-c", PYTHON, "reader"]);
        Process::start(command).map(Some)
    }

    fn end(&self, link: Option<&Link>, end: End) -> Command {
        let mut command = Link::command(link, end, &self.program);
        command.arg("wire-end");
        command
    }
}

fn host(link: Option<&Link>) -> &'static str {
    if link.is_some() { Link::HOST } else { "127.0.0.1" }
}

fn serving(command: Command) -> Result<(Process, Ready)> {
    let mut process = Process::start(command)?;
    let ready = process.hear()?;
    Ok((process, ready))
}

impl Process {
    /// Asks a reader and waits.
    pub(super) fn ask(&mut self, ask: &Ask) -> Result<Answer> {
        self.say(ask)?;
        let answer: Answer = self.hear()?;
        match answer.error {
            Some(error) => Err(format!("{}: {error}", ask.ticket).into()),
            None => Ok(answer),
        }
    }
}
