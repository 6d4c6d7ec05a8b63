//! Rows in the formats of `get`.

use std::io::{self, IsTerminal as _, Write};
use std::path::Path;

use arrow::array::{Array as _, RecordBatch};
use arrow::csv;
use arrow::datatypes::{DataType, Schema};
use arrow::ipc::writer::{FileWriter, StreamWriter};
use arrow::json::LineDelimitedWriter;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use clap::ValueEnum;
use comfy_table::{Cell, CellAlignment};
use flightcache::{Client, Error, Result, ScanRequest, ScanStream, Transfer};
use futures::TryStreamExt as _;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use crate::show::table;

/// Rows a table shows when no limit is given.
const TABLE_ROWS: u64 = 100;
/// Characters a table cell shows.
const CELL_CHARS: usize = 40;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Csv,
    /// One object a line; NULLs are left out.
    Json,
    /// Arrow IPC: the file format for a file, the stream format for standard output.
    Arrow,
    Parquet,
}

/// Prints lines. A reader that has gone away ends the program quietly.
pub(crate) fn say(text: &str) -> Result<()> {
    finish(writeln!(io::stdout(), "{text}"))
}

fn finish(written: io::Result<()>) -> Result<()> {
    match written {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(|e| Error::internal(format!("cannot write: {e}"))),
    }
}

pub(crate) async fn get(
    client: &Client,
    mut request: ScanRequest,
    transfer: Transfer,
    format: Format,
    output: Option<&Path>,
) -> Result<()> {
    let is_cut = format == Format::Table && request.limit.is_none();
    if is_cut {
        // One more than is shown tells whether there is more.
        request.limit = Some(TABLE_ROWS + 1);
    }
    let mut scan = client.scan(request.url.clone());
    scan = if let Some(columns) = request.columns { scan.columns(columns) } else { scan };
    scan = if let Some(filter) = request.filter { scan.filter(filter) } else { scan };
    scan = if let Some(limit) = request.limit { scan.limit(limit) } else { scan };
    scan = if let Some(rows) = request.rows { scan.rows(rows) } else { scan };
    let stream = scan.populate(request.populate).transfer(transfer).send().await?;
    put(stream, format, output, is_cut).await
}

/// Runs a statement and prints its answer: plans as text, all else in the format asked for.
pub(crate) async fn sql(client: &Client, statement: String, format: Format, output: Option<&Path>) -> Result<()> {
    let stream = client.sql(statement).await?;
    let schema = stream.schema();
    if schema.fields().is_empty() {
        stream.collect().await?;
        return say("done");
    }
    let is_plan = schema.fields().iter().map(|field| field.name().as_str()).eq(["plan_type", "plan"]);
    if is_plan && format == Format::Table && output.is_none() {
        return write_plans(&stream.collect().await?);
    }
    put(stream, format, output, format == Format::Table).await
}

/// Plans are trees of lines, which a table's cells would cut.
fn write_plans(batches: &[RecordBatch]) -> Result<()> {
    let options = FormatOptions::default();
    for batch in batches {
        let formatters = batch.columns().iter().map(|array| ArrayFormatter::try_new(array.as_ref(), &options));
        let formatters = formatters.collect::<std::result::Result<Vec<_>, _>>().map_err(|e| Error::internal(e.to_string()))?;
        for row in 0..batch.num_rows() {
            let [kind, plan] = [0, 1].map(|column: usize| formatters[column].value(row).to_string());
            say(&format!("{kind}:\n{}", plan.trim_end()))?;
        }
    }
    Ok(())
}

async fn put(stream: ScanStream, format: Format, output: Option<&Path>, is_cut: bool) -> Result<()> {
    if output.is_none() && format == Format::Parquet && io::stdout().is_terminal() {
        return Err(Error::invalid("Parquet is not for terminals: add -o FILE"));
    }
    if format == Format::Csv {
        check_csv(&stream.schema())?;
    }
    let Some(path) = output else {
        let out = io::BufWriter::new(io::stdout());
        return write(stream, format, out, false, is_cut).await;
    };
    // A read that fails must not leave a file that looks whole.
    let failed = |e: io::Error| Error::internal(format!("cannot write {}: {e}", path.display()));
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    write(stream, format, io::BufWriter::new(file.reopen().map_err(failed)?), true, is_cut).await?;
    file.persist(path).map(drop).map_err(|e| failed(e.error))
}

async fn write(mut stream: ScanStream, format: Format, out: impl Write + Send, is_file: bool, is_cut: bool) -> Result<()> {
    let schema = stream.schema();
    let failed = |e: arrow::error::ArrowError| match e {
        arrow::error::ArrowError::IoError(_, e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        e => Error::internal(format!("cannot write: {e}")),
    };
    match format {
        Format::Table => write_table(stream, out, is_cut).await,
        Format::Csv => {
            let mut writer = csv::WriterBuilder::new().with_header(true).build(out);
            if stream.schema().fields().is_empty() {
                return Err(Error::invalid("CSV needs at least one column"));
            }
            writer.write(&RecordBatch::new_empty(schema)).map_err(failed)?;
            while let Some(batch) = stream.try_next().await? {
                writer.write(&batch).map_err(failed)?;
            }
            finish(writer.into_inner().flush())
        }
        Format::Json => {
            let mut writer = LineDelimitedWriter::new(out);
            while let Some(batch) = stream.try_next().await? {
                writer.write(&batch).map_err(failed)?;
            }
            writer.finish().map_err(failed)?;
            finish(writer.into_inner().flush())
        }
        Format::Arrow if is_file => {
            let mut writer = FileWriter::try_new(out, &schema).map_err(failed)?;
            while let Some(batch) = stream.try_next().await? {
                writer.write(&batch).map_err(failed)?;
            }
            writer.finish().map_err(failed)
        }
        Format::Arrow => {
            let mut writer = StreamWriter::try_new(out, &schema).map_err(failed)?;
            while let Some(batch) = stream.try_next().await? {
                writer.write(&batch).map_err(failed)?;
            }
            writer.finish().map_err(failed)
        }
        Format::Parquet => {
            let failed = |e: parquet::errors::ParquetError| Error::internal(format!("cannot write: {e}"));
            let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
            let mut writer = ArrowWriter::try_new(out, schema, Some(properties)).map_err(failed)?;
            while let Some(batch) = stream.try_next().await? {
                writer.write(&batch).map_err(failed)?;
            }
            writer.close().map(drop).map_err(failed)
        }
    }
}

fn check_csv(schema: &Schema) -> Result<()> {
    match schema.fields().iter().find(|field| field.data_type().is_nested()) {
        Some(field) => Err(Error::invalid(format!(
            "CSV cannot hold column {:?} of type {}; leave it out or use json",
            field.name(),
            field.data_type()
        ))),
        None => Ok(()),
    }
}

async fn write_table(mut stream: ScanStream, mut out: impl Write + Send, is_cut: bool) -> Result<()> {
    let schema = stream.schema();
    let mut batches = Vec::new();
    let mut rows_read = 0;
    while let Some(batch) = stream.try_next().await? {
        rows_read += batch.num_rows();
        batches.push(batch);
        if is_cut && rows_read > TABLE_ROWS as usize {
            break;
        }
    }
    // The rest, if there is any, need not come.
    drop(stream);
    let width = if io::stdout().is_terminal() { comfy_table::Table::new().width().unwrap_or(120) } else { 200 };
    // What a column needs at least: its name, and a few characters.
    let mut left = usize::from(width);
    let needed = |name: &str| name.chars().count().clamp(8, 20) + 3;
    let shown = schema.fields().iter().take_while(|field| {
        left = left.saturating_sub(needed(field.name()));
        left > 0
    });
    let shown = shown.count().max(1).min(schema.fields().len());
    let header: Vec<String> = schema
        .fields()
        .iter()
        .take(shown)
        .map(|field| format!("{}\n{}", field.name(), short(&field.data_type().to_string())))
        .collect();
    let mut rows = table(&header.iter().map(String::as_str).collect::<Vec<_>>(), usize::MAX);
    let options = FormatOptions::default().with_null("NULL");
    let mut left = if is_cut { TABLE_ROWS as usize } else { usize::MAX };
    let total: usize = batches.iter().map(RecordBatch::num_rows).sum();
    for batch in &batches {
        let formatters = batch.columns().iter().take(shown).map(|array| ArrayFormatter::try_new(array.as_ref(), &options));
        let formatters = formatters.collect::<std::result::Result<Vec<_>, _>>().map_err(|e| Error::internal(e.to_string()))?;
        for row in 0..batch.num_rows().min(left) {
            let cells = formatters.iter().zip(batch.columns()).map(|(formatter, array)| {
                let is_number = array.data_type().is_numeric() && !matches!(array.data_type(), DataType::Null);
                let cell = Cell::new(short(&formatter.value(row).to_string()));
                if is_number { cell.set_alignment(CellAlignment::Right) } else { cell }
            });
            rows.add_row(cells);
        }
        left = left.saturating_sub(batch.num_rows());
    }
    finish(writeln!(out, "{rows}").and_then(|()| out.flush()))?;
    if shown < schema.fields().len() {
        eprintln!("{} of {} columns shown: choose with --columns, or use another --format", shown, schema.fields().len());
    }
    if is_cut && total as u64 > TABLE_ROWS {
        eprintln!("the first {TABLE_ROWS} rows shown: use a limit, or another --format for all of them");
    }
    Ok(())
}

fn short(text: &str) -> String {
    let text = text.replace(['\n', '\r', '\t'], " ");
    if text.chars().count() <= CELL_CHARS { text } else { text.chars().take(CELL_CHARS - 1).chain(['…']).collect() }
}
