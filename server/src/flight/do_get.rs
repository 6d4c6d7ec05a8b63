//! `DoGet`: one ticket's batches as frames, with what it took in the app metadata and in the trailers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arrow_flight::FlightData;
use bytes::Bytes;
use flightcache_proto::{Error, ErrorKind, Result, Ticket};
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use prost::Message as _;

use super::encode::Encoder;
use crate::admin::{Metrics, ScanMeter, add_time};
use crate::scan::{Engine, ScanPlan};

/// Says in the log and in the metrics how a scan ended, however it ended.
struct Ending {
    plan: Arc<ScanPlan>,
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
        self.metrics.active_scans.dec();
        self.metrics.scan_seconds.observe(elapsed.as_secs_f64());
        let status = self.outcome.map_or("ok", ErrorKind::as_str);
        self.metrics.requests.with_label_values(&["do_get", status]).inc();
        let request = &self.plan.request;
        tracing::info!(
            url = %request.url,
            columns = self.plan.schema.fields().len(),
            filter = request.filter.as_deref().unwrap_or(""),
            status,
            rows = stats.rows,
            bytes = stats.bytes,
            chunks_hit = stats.chunks_hit,
            chunks_missed = stats.chunks_missed,
            row_groups = stats.row_groups,
            row_groups_pruned = stats.row_groups_pruned,
            store_requests = stats.store_requests,
            store_bytes = stats.store_bytes,
            fetch_us = stats.fetch_us,
            decode_us = stats.decode_us,
            filter_us = stats.filter_us,
            encode_us = stats.encode_us,
            elapsed_us = elapsed.as_micros() as u64,
            "do_get"
        );
    }
}

/// Plans a ticket's scan and opens its stream. The meter goes on counting while the stream is read.
pub(super) async fn do_get(
    engine: &Arc<Engine>,
    ticket: &[u8],
    meter: &Arc<ScanMeter>,
) -> Result<BoxStream<'static, Result<FlightData>>> {
    let started_at = Instant::now();
    let (request, share) = match Ticket::parse(ticket)? {
        Ticket::Scan(request) => (request, None),
        Ticket::Share(share) => (share.scan.clone(), Some(share)),
    };
    let plan = Arc::new(engine.plan(request, share, meter).await?);
    let metrics = Arc::clone(engine.metrics());
    metrics.active_scans.inc();
    let ending = Ending {
        plan: Arc::clone(&plan),
        meter: Arc::clone(meter),
        metrics: Arc::clone(&metrics),
        started_at,
        outcome: Some(ErrorKind::Cancelled),
    };
    let mut encoder = Encoder::default();
    let schema = encoder.schema(&plan.schema)?;
    let mut batches = Box::pin(engine.execute(plan, Arc::clone(meter)));
    let meter = Arc::clone(meter);
    let frames = async_stream::stream! {
        // Moved in whole: its drop is what reports the end.
        let mut ending = ending;
        yield Ok(schema);
        let mut is_first = true;
        loop {
            // A panic must reach the client as an error, not as a stream that was reset.
            let batch = match std::panic::AssertUnwindSafe(batches.next()).catch_unwind().await {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                Err(_) => Err(Error::internal("the scan gave up; the server's log says why")),
            };
            let started = Instant::now();
            let encoded = batch.and_then(|batch| Ok((batch.num_rows() as u64, encoder.batch(&batch)?)));
            add_time(&meter.encode_us, started.elapsed());
            metrics.encode_seconds.observe(started.elapsed().as_secs_f64());
            let (rows, frames) = match encoded {
                Ok(encoded) => encoded,
                Err(error) => {
                    ending.outcome = Some(error.kind);
                    yield Err(error);
                    return;
                }
            };
            if is_first {
                metrics.first_batch_seconds.observe(ending.started_at.elapsed().as_secs_f64());
                is_first = false;
            }
            metrics.served_rows.inc_by(rows);
            for mut frame in frames {
                let bytes = frame.encoded_len() as u64;
                meter.bytes.fetch_add(bytes, Ordering::Relaxed);
                metrics.served_bytes.inc_by(bytes);
                frame.app_metadata = Bytes::from(serde_json::to_vec(&meter.snapshot()).unwrap_or_default());
                yield Ok(frame);
            }
        }
        ending.outcome = None;
    };
    Ok(frames.boxed())
}
