//! A statement's run: its batches, as they are read.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::DataFusionError;
use datafusion::physical_plan::execute_stream;
use flightcache_proto::{Error, ErrorKind, Result};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::{mpsc, oneshot};

use super::error::from_datafusion;
use super::handle::Handle;
use super::kept::own;
use super::session::{Planned, Sql, gave_up};
use super::statement::Statement;
use crate::admin::ScanMeter;
use crate::parquet::SLICE_ROWS;

/// Batches that wait for the connection.
const BATCHES_AHEAD: usize = 2;
/// Times a statement is begun anew because an object turned out overwritten, as long as nothing was sent.
const MAX_RESTARTS: usize = 3;

/// A running statement. Dropping it stops the work.
pub struct Answer {
    /// Of all batches. Without dictionaries, as all that is sent.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: BoxStream<'static, Result<RecordBatch>>,
}

impl Sql {
    /// Runs a statement. What it takes is counted by `meter`, but for rows and bytes, which are its sender's to count.
    pub async fn run(self: &Arc<Self>, handle: Handle, meter: &Arc<ScanMeter>) -> Result<Answer> {
        let (schema_sender, schema) = oneshot::channel();
        let (sender, mut batches) = mpsc::channel(BATCHES_AHEAD);
        let known = self.running.begin(&handle.id);
        let (sql, meter, stopped) = (Arc::clone(self), Arc::clone(meter), known.token());
        let task = self.runtime.spawn(async move {
            let mut run = Run { schema_sender: Some(schema_sender), schema: None, sender, meter, has_sent: false };
            // Whatever it waits for: its reader may not come back.
            stopped.run_until_cancelled(sql.run_all(&handle, &mut run)).await.unwrap_or_else(|| Err(cancelled()))
        });
        let schema = tokio::select! {
            schema = schema => schema,
            () = known.cancelled() => return Err(cancelled()),
        };
        let Ok(schema) = schema else {
            // It ended before it had one.
            return Err(task.await.unwrap_or_else(|_| Err(gave_up())).err().unwrap_or_else(gave_up));
        };
        let batches = async_stream::try_stream! {
            loop {
                let batch = tokio::select! {
                    biased;
                    () = known.cancelled() => Err(cancelled()),
                    batch = batches.recv() => Ok(batch),
                };
                let Some(batch) = batch? else { break };
                yield batch;
            }
            task.await.unwrap_or_else(|_| Err(gave_up()))?;
        };
        Ok(Answer { schema, batches: batches.boxed() })
    }

    async fn run_all(self: &Arc<Self>, handle: &Handle, run: &mut Run) -> Result<()> {
        let statement = match Statement::parse(&handle.sql)? {
            Statement::Query(statement) => statement,
            other => {
                self.change(other).await?;
                return run.begin(&Arc::new(Schema::empty()));
            }
        };
        let _permit = self.permit(&self.statements, "run").await?;
        let mut restarts = 0;
        loop {
            let ended = match self.plan(handle, (*statement).clone(), &run.meter).await {
                Ok(planned) => run.stream(&planned).await.inspect_err(|error| {
                    if error.kind == ErrorKind::Changed {
                        planned.names.forget();
                    }
                }),
                Err(error) => Err(error),
            };
            match ended {
                Err(error) if error.kind == ErrorKind::Changed => {
                    if run.has_sent || restarts == MAX_RESTARTS {
                        return Err(error);
                    }
                    restarts += 1;
                    tracing::info!(cause = %error, "overwritten while it was read: starting the statement over");
                }
                ended => return ended,
            }
        }
    }
}

/// A statement under way, and whom it tells.
struct Run {
    schema_sender: Option<oneshot::Sender<SchemaRef>>,
    schema: Option<SchemaRef>,
    sender: mpsc::Sender<RecordBatch>,
    meter: Arc<ScanMeter>,
    has_sent: bool,
}

impl Run {
    fn begin(&mut self, schema: &SchemaRef) -> Result<()> {
        match &self.schema {
            Some(told) if told != schema => {
                return Err(Error::new(ErrorKind::Changed, "the answer's schema changed while the statement ran"));
            }
            Some(_) => {}
            None => self.schema = Some(Arc::clone(schema)),
        }
        if let Some(sender) = self.schema_sender.take() {
            // Nobody listens any more: the task is about to be stopped.
            let _ = sender.send(Arc::clone(schema));
        }
        Ok(())
    }

    async fn stream(&mut self, planned: &Planned) -> Result<()> {
        planned.check_bound()?;
        let failed = |error: DataFusionError| from_datafusion(&error);
        let physical = planned.physical().await.map_err(failed)?;
        let schema = planned.schema();
        self.begin(&schema)?;
        let mut batches = execute_stream(physical, planned.state().task_ctx()).map_err(failed)?;
        while let Some(batch) = batches.next().await {
            let batch = conform(&batch.map_err(failed)?, &schema)?;
            if batch.num_rows() == 0 {
                continue;
            }
            self.has_sent = true;
            // Some operators make one of all they have.
            for start in (0..batch.num_rows()).step_by(SLICE_ROWS) {
                let slice = batch.slice(start, SLICE_ROWS.min(batch.num_rows() - start));
                // A reader may be slow: what waits for it must not keep chunks that the cache has evicted.
                let rows = own(&slice).map_err(|e| Error::internal(format!("the answer cannot be copied: {e}")))?;
                if self.sender.send(rows).await.is_err() {
                    return Err(Error::new(ErrorKind::Cancelled, "the caller went away"));
                }
            }
        }
        Ok(())
    }
}

/// The batch in the announced types.
fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let failed = |e: arrow::error::ArrowError| Error::internal(format!("the answer does not fit its schema: {e}"));
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| {
        if column.data_type() == field.data_type() {
            Ok(Arc::clone(column))
        } else {
            arrow::compute::cast(column, field.data_type())
        }
    });
    let columns = columns.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options).map_err(failed)
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the statement was cancelled")
}
