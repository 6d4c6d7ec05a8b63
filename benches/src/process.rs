//! Other processes that take part in a measurement: started, asked in lines of JSON, and ended.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cpu::cpu_time_of;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A process. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

/// The Python that is named, that of the tests, or any.
pub(crate) fn python(named: Option<&Path>) -> PathBuf {
    let installed = || {
        let python = PathBuf::from(std::env::var_os("FLIGHTCACHE_VENV")?).join("bin/python");
        python.exists().then_some(python)
    };
    named.map(Path::to_path_buf).or_else(installed).unwrap_or_else(|| "python3".into())
}

impl Process {
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        let program = command.get_program().display().to_string();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|e| format!("{program}: {e}"))?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().ok_or("a process without output")?);
        Ok(Self { child, stdin, stdout })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Processor time so far.
    pub(crate) fn cpu(&self) -> Duration {
        cpu_time_of(self.pid())
    }

    /// Writes a line.
    pub(crate) fn say(&mut self, what: &impl Serialize) -> Result<()> {
        let stdin = self.stdin.as_mut().ok_or("a process without input")?;
        writeln!(stdin, "{}", serde_json::to_string(what)?)?;
        Ok(())
    }

    /// Reads a line.
    pub(crate) fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            return Err("a process of the measurement ended too early".into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Reads what follows a line.
    pub(crate) fn hear_bytes(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stdout.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.stdin = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
