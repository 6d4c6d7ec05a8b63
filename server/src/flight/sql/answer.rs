//! `DoGet` of a Flight SQL ticket: batches from `DataFusion`, encoded as all others are.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arrow_flight::sql::Command;
use flightcache_proto::{ErrorKind, Result};
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};

use super::super::encode::Encoder;
use super::super::message::Message;
use super::{command, metadata, unsupported};
use crate::admin::{Metrics, ScanMeter, add_time};
use crate::sql::{Answer, Handle, Sql};

/// Characters of a statement that the log shows.
const LOGGED_CHARS: usize = 1_000;

/// Says in the log and in the metrics how a statement ended, however it ended.
struct Ending {
    sql: String,
    meter: Arc<ScanMeter>,
    metrics: Arc<Metrics>,
    started_at: Instant,
    /// Until something else is known: the stream was dropped.
    outcome: Option<ErrorKind>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let stats = self.meter.snapshot();
        let elapsed = self.started_at.elapsed();
        let status = self.outcome.map_or("ok", ErrorKind::as_str);
        self.metrics.active_statements.dec();
        self.metrics.statement_seconds.observe(elapsed.as_secs_f64());
        self.metrics.requests.with_label_values(&["sql", status]).inc();
        tracing::info!(
            sql = %self.sql,
            status,
            rows = stats.rows,
            bytes = stats.bytes,
            chunks_hit = stats.chunks_hit,
            chunks_missed = stats.chunks_missed,
            row_groups = stats.row_groups,
            row_groups_pruned = stats.row_groups_pruned,
            store_requests = stats.store_requests,
            elapsed_us = elapsed.as_micros() as u64,
            "sql"
        );
    }
}

/// Runs a ticket's statement and opens its stream. Dropping the stream stops the work.
pub(in super::super) async fn open(
    sql: &Arc<Sql>,
    ticket: &[u8],
    meter: &Arc<ScanMeter>,
) -> Result<BoxStream<'static, Result<Message>>> {
    let started_at = Instant::now();
    let command = command(ticket)?;
    let (text, answer) = match &command {
        Command::TicketStatementQuery(statement) => run(sql, Handle::parse(&statement.statement_handle)?, meter).await?,
        Command::CommandStatementQuery(statement) => run(sql, Handle::of(&statement.query), meter).await?,
        Command::CommandPreparedStatementQuery(prepared) => {
            run(sql, Handle::parse(&prepared.prepared_statement_handle)?, meter).await?
        }
        other => {
            let batch = metadata::batch(sql, other).await?.ok_or_else(|| unsupported(other))?;
            let schema = batch.schema();
            let batches = futures::stream::iter([Ok(batch)]).boxed();
            (command.type_url().rsplit('.').next().unwrap_or_default().to_owned(), Answer { schema, batches })
        }
    };
    let mut encoder = Encoder::new(&answer.schema, None)?;
    let metrics = Arc::clone(sql.engine().metrics());
    metrics.active_statements.inc();
    let ending = Ending {
        sql: text.chars().take(LOGGED_CHARS).collect(),
        meter: Arc::clone(meter),
        metrics: Arc::clone(&metrics),
        started_at,
        outcome: Some(ErrorKind::Cancelled),
    };
    let meter = Arc::clone(meter);
    let mut batches = answer.batches;
    let messages = async_stream::stream! {
        // Moved in whole: its drop is what reports the end.
        let mut ending = ending;
        yield Ok(encoder.schema().into_message(b"", None));
        loop {
            let next = async {
                let batch = match batches.next().await? {
                    Ok(batch) => batch,
                    Err(error) => return Some(Err(error)),
                };
                let started = Instant::now();
                let frames = encoder.batch(&batch);
                add_time(&meter.encode_us, started.elapsed());
                Some(frames.map(|frames| (batch.num_rows() as u64, frames)))
            };
            // A panic must reach the client as an error, not as a stream that was reset.
            let next = std::panic::AssertUnwindSafe(next).catch_unwind().await;
            let (rows, frames) = match next.unwrap_or_else(|_| Some(Err(super::super::do_get::gave_up()))) {
                None => break,
                Some(Ok(encoded)) => encoded,
                Some(Err(error)) => {
                    ending.outcome = Some(error.kind);
                    yield Err(error);
                    return;
                }
            };
            meter.rows.fetch_add(rows, Ordering::Relaxed);
            metrics.served_rows.inc_by(rows);
            for frame in frames {
                let bytes = frame.len() as u64;
                meter.bytes.fetch_add(bytes, Ordering::Relaxed);
                metrics.served_bytes.inc_by(bytes);
                // Without figures: other clients' app metadata is theirs. The trailers have them.
                yield Ok(frame.into_message(b"", None));
            }
        }
        ending.outcome = None;
    };
    Ok(messages.boxed())
}

async fn run(sql: &Arc<Sql>, handle: Handle, meter: &Arc<ScanMeter>) -> Result<(String, Answer)> {
    let text = handle.sql.clone();
    Ok((text, sql.run(handle, meter).await?))
}
