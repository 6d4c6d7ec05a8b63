//! What a run leaves behind: a report as JSON and as a page.

use std::fs::OpenOptions;
use std::path::PathBuf;

use clap::Args;

use crate::report::Report;

/// Where the report goes, beside the terminal.
#[derive(Args, Clone, Debug, Default)]
pub struct Output {
    /// Write the figures to this file, as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Write a page with tables and plots to this file.
    #[arg(long)]
    pub html: Option<PathBuf>,
}

impl Output {
    /// Makes the files, if they are not there: a run that could not be kept fails before anything is measured. What they hold
    /// stays until there is something new.
    pub fn create(&self) -> Result<(), Box<dyn std::error::Error>> {
        for path in [&self.json, &self.html].into_iter().flatten() {
            let created = OpenOptions::new().create(true).append(true).open(path);
            created.map_err(|error| format!("cannot write to {}: {error}", path.display()))?;
        }
        Ok(())
    }

    /// Writes what was asked for, and says where it is.
    pub fn write(&self, report: &Report) -> Result<(), Box<dyn std::error::Error>> {
        if let Some(path) = &self.json {
            std::fs::write(path, serde_json::to_vec_pretty(report)?)?;
            println!("figures: {}", path.display());
        }
        if let Some(path) = &self.html {
            std::fs::write(path, report.to_html()?)?;
            println!("report: {}", std::path::absolute(path)?.display());
        }
        Ok(())
    }
}

/// A report of this run, with nothing measured yet.
pub fn report(title: &str) -> Report {
    Report {
        title: title.to_owned(),
        generated_at: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
        command: command(),
        machine: machine(),
        ..Report::default()
    }
}

fn command() -> String {
    let words = std::env::args().skip(1).map(|word| if word.contains([' ', '\'', '*']) { format!("'{word}'") } else { word });
    format!("flightcache-bench {}", words.collect::<Vec<_>>().join(" "))
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let line = |path: &str, key: &str| {
        let text = std::fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = line("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let memory = line("/proc/meminfo", "MemTotal")
        .and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok())
        .map_or(String::new(), |kib| format!(", {} of memory", bytesize::ByteSize::kib(kib)));
    format!("{cores} cores ({model}){memory}, {}", std::env::consts::OS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_cannot_be_written_is_told_before_anything_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(directory.path().join(name));
        std::fs::write(directory.path().join("old.json"), "old").unwrap();
        Output { json: path("old.json"), html: path("new.html") }.create().unwrap();
        assert_eq!(std::fs::read(directory.path().join("old.json")).unwrap(), b"old");
        assert!(directory.path().join("new.html").is_file());
        let error = Output { json: None, html: path("none/new.html") }.create().unwrap_err().to_string();
        assert!(error.starts_with("cannot write to ") && error.contains("none/new.html"), "{error}");
    }
}
