//! The original traces in about a minute: files made for it, a store made distant, the tables and the page of a replay.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use crate::generate::{self, Files};
use crate::output::{self, Output};
use crate::place::{self, Distance};
use crate::replay::side::Clients;
use crate::replay::{self, plan::Servers};

/// Rows of the large files, unless they are to be as large as they were: a tenth. (Their bytes are a little more than that, for their dictionaries stay small.)
const LARGE_ROWS: u64 = 60_000;
/// As the traces had them.
const FULL_LARGE_ROWS: u64 = 600_000;
const SMALL_ROWS: u64 = 5_500;
/// All but the fifth, which is the cold and warm reading of large files that `100m` and `serial` show too.
const TRACES: [&str; 4] = ["1m", "100m", "parallel", "serial"];
const LATENCY: Duration = Duration::from_millis(30);
const BANDWIDTH: ByteSize = ByteSize::mb(300);

/// Arguments of `quickstart`.
#[derive(Args, Debug)]
pub struct Options {
    /// Make the large files as large as they were, 101 MB instead of 12 MB each.
    #[arg(long)]
    full: bool,
    /// How many times faster than recorded the requests come.
    #[arg(long, default_value = "4.0", value_parser = replay::speed)]
    speed: f64,
    /// Where the page with tables and plots goes.
    #[arg(long, default_value = "flightcache-report.html")]
    html: PathBuf,
}

/// Makes the files, replays the traces, prints the tables and says where the page is.
pub async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let large_rows = if options.full { FULL_LARGE_ROWS } else { LARGE_ROWS };
    replayed(options, Files { large_rows, small_rows: SMALL_ROWS, seed: 7 }).await
}

/// The same with files of any size.
async fn replayed(options: Options, files: Files) -> Result<(), Box<dyn std::error::Error>> {
    let output = Output { json: None, html: Some(options.html) };
    output.create()?;
    let directory = tempfile::tempdir()?;
    let data = directory.path().to_str().ok_or("the temporary directory has a name that is not UTF-8")?.to_owned();
    let (mut count, mut total, mut largest) = (0, 0, 0);
    generate::write(&place::open(&data)?, files, |file| {
        count += 1;
        total += file.size;
        largest = largest.max(file.size);
    })
    .await?;
    let replayed = replay::Options {
        data,
        traces: TRACES.map(ToOwned::to_owned).to_vec(),
        servers: Servers::Own(vec![1]),
        url_prefix: None,
        sides: Vec::new(),
        clients: Clients::PerRequest,
        capacity: ByteSize::gb(1),
        rounds: 1,
        speed: options.speed,
        distance: Distance { latency: LATENCY, bandwidth: BANDWIDTH },
        output,
    };
    let mut report = output::report("Flightcache quickstart");
    report.notes.push(format!(
        "The original traces {} on {count} files of random numbers, {} together, the large ones {} each{}.",
        TRACES.join(", "),
        ByteSize(total).display().si(),
        ByteSize(largest).display().si(),
        if options.full { "" } else { " (a tenth of the rows they had; --full makes all)" },
    ));
    replay::measure(&replayed, report).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn it_leaves_a_page_with_all_traces_and_sides() {
        let directory = tempfile::tempdir().unwrap();
        let html = directory.path().join("report.html");
        let options = Options { full: false, speed: 200.0, html: html.clone() };
        replayed(options, Files { large_rows: 300, small_rows: 200, seed: 7 }).await.unwrap();
        let page = std::fs::read_to_string(&html).unwrap();
        assert!(TRACES.iter().all(|trace| page.contains(&format!("<h3>{trace}</h3>"))), "{page}");
        assert!(
            ["direct", "whole-file cache", "flightcache"].iter().all(|side| page.contains(&format!("scope=\"row\">{side}<")))
        );
        assert!(page.contains("19 files of random numbers") && !page.contains("class=\"failed\""));
    }

    #[tokio::test]
    async fn a_page_that_cannot_be_written_is_told_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options { full: true, speed: 1.0, html: directory.path().join("none/report.html") };
        let told = tokio::time::timeout(Duration::from_secs(20), run(options)).await;
        let error = told.expect("it is told before files are made").unwrap_err().to_string();
        assert!(error.contains("none/report.html"), "{error}");
    }
}
