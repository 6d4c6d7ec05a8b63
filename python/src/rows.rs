//! Rows of a scan or a query: read when they are asked for, as often as they are.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array as _, RecordBatch, RecordBatchReader, StructArray};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ffi::{FFI_ArrowArray, FFI_ArrowSchema};
use arrow::ffi_stream::FFI_ArrowArrayStream;
use datafusion::dataframe::DataFrame;
use flightcache::{Error, Result, ScanBuilder, ScanStream};
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple};

use crate::errors::{Failure, exception, of_query};
use crate::runtime::Home;

/// The rows of a scan or a query. Nothing is read before they are asked for; each reading asks the server anew.
#[pyclass(frozen, module = "flightcache")]
pub(crate) struct Rows {
    home: Home,
    schema: SchemaRef,
    source: Source,
    /// The scan that was planned to know the schema: the first reading's.
    planned: Mutex<Option<ScanStream>>,
}

enum Source {
    Scan(ScanBuilder),
    Query(DataFrame),
}

/// One reading of rows.
#[pyclass(module = "flightcache")]
pub(crate) struct Batches {
    home: Home,
    schema: SchemaRef,
    /// `None` after the last row, or an error. Streams are for one thread at a time.
    stream: Mutex<Option<BoxStream<'static, Result<RecordBatch>>>>,
}

impl Rows {
    pub(crate) async fn of_scan(home: Home, scan: ScanBuilder) -> Result<Self> {
        let planned = scan.clone().send().await?;
        Ok(Self { home, schema: planned.schema(), source: Source::Scan(scan), planned: Mutex::new(Some(planned)) })
    }

    pub(crate) fn of_query(home: Home, query: DataFrame) -> Self {
        let schema = Arc::clone(query.schema().inner());
        Self { home, schema, source: Source::Query(query), planned: Mutex::new(None) }
    }

    fn open(&self, py: Python<'_>) -> PyResult<Batches> {
        let planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner).take();
        let opened = async {
            Ok(match &self.source {
                Source::Scan(scan) => {
                    let stream = match planned {
                        Some(planned) => planned,
                        None => scan.clone().send().await?,
                    };
                    (stream.schema(), stream.boxed())
                }
                Source::Query(query) => {
                    let stream = query.clone().execute_stream().await.map_err(|e| of_query(&e))?;
                    (stream.schema(), stream.map(|batch| batch.map_err(|e| of_query(&e))).boxed())
                }
            })
        };
        let (schema, stream): (_, BoxStream<'static, Result<RecordBatch>>) = self.home.wait(py, opened)?;
        // Readers of C streams call across languages, where a panic would end the process.
        let stream = AssertUnwindSafe(stream).catch_unwind();
        let stream = stream.map(|next| next.unwrap_or_else(|_| Err(Error::internal("reading panicked")))).boxed();
        Ok(Batches { home: self.home, schema, stream: Mutex::new(Some(stream)) })
    }
}

#[pymethods]
impl Rows {
    /// The rows as a stream of the Arrow `PyCapsule` interface.
    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        // A reader that wants other types casts; the interface leaves that to whoever does it.
        drop(requested_schema);
        let stream = FFI_ArrowArrayStream::new(Box::new(self.open(py)?));
        PyCapsule::new_with_value(py, stream, c"arrow_array_stream")
    }

    /// The schema by the same interface.
    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        PyCapsule::new_with_value(py, c_schema(py, &self.schema)?, c"arrow_schema")
    }

    /// Reads them as `pyarrow.RecordBatch`es.
    fn __iter__(&self, py: Python<'_>) -> PyResult<Batches> {
        self.open(py)
    }

    /// Reads them all as a `pyarrow.Table`.
    fn to_arrow<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let pyarrow = py.import("pyarrow")?;
        // The schema of this reading: what is known of NULLs may differ from what the query said.
        let batches = Bound::new(py, self.open(py)?)?;
        let schema = pyarrow.call_method1("schema", (&batches,))?;
        pyarrow.getattr("Table")?.call_method1("from_batches", (batches, schema))
    }

    /// Reads them all as a `pandas.DataFrame`.
    fn to_pandas<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.to_arrow(py)?.call_method0("to_pandas")
    }

    fn __repr__(&self) -> String {
        let columns: Vec<_> =
            self.schema.fields().iter().map(|field| format!("{}: {}", field.name(), field.data_type())).collect();
        format!("<flightcache.Rows {}>", columns.join(", "))
    }
}

impl Batches {
    fn read(&mut self) -> Option<Result<RecordBatch, Failure>> {
        let open = self.stream.get_mut().unwrap_or_else(PoisonError::into_inner);
        let stream = open.as_mut()?;
        let next = match self.home.runtime() {
            Ok(runtime) => {
                let entered = runtime.enter();
                // What is there already needs neither waiting nor the GIL.
                let ready = stream.next().now_or_never();
                drop(entered);
                ready.map(|ready| ready.transpose().map_err(Failure::from))
            }
            Err(forked) => Some(Err(forked.into())),
        };
        let waited = || {
            let wait = |py: Python<'_>| self.home.wait_for(py, async { stream.next().await.transpose().map_err(Failure::from) });
            Python::try_attach(wait).unwrap_or_else(|| Err(Error::internal("Python has ended").into()))
        };
        let next = next.unwrap_or_else(waited).transpose();
        if !matches!(next, Some(Ok(_))) {
            // Dropping it stops what work is left, on the server too.
            *open = None;
        }
        next
    }
}

#[pymethods]
impl Batches {
    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(batch) = self.read().transpose().map_err(|failure| failure.into_exception(py))? else { return Ok(None) };
        let batch = Batch { schema: Arc::clone(&self.schema), rows: batch.into() };
        py.import("pyarrow")?.call_method1("record_batch", (batch,)).map(Some)
    }

    /// The schema of the batches.
    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        PyCapsule::new_with_value(py, c_schema(py, &self.schema)?, c"arrow_schema")
    }

    /// Stops reading, and the work for it.
    fn close(&mut self) {
        *self.stream.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().map(|next| next.map_err(Failure::into_arrow))
    }
}

impl RecordBatchReader for Batches {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

/// A batch on its way to `pyarrow`.
#[pyclass(frozen)]
struct Batch {
    schema: SchemaRef,
    rows: StructArray,
}

#[pymethods]
impl Batch {
    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_array__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        drop(requested_schema);
        let schema = PyCapsule::new_with_value(py, c_schema(py, &self.schema)?, c"arrow_schema")?;
        let rows = PyCapsule::new_with_value(py, FFI_ArrowArray::new(&self.rows.to_data()), c"arrow_array")?;
        PyTuple::new(py, [schema, rows])
    }
}

fn c_schema(py: Python<'_>, schema: &SchemaRef) -> PyResult<FFI_ArrowSchema> {
    FFI_ArrowSchema::try_from(schema.as_ref()).map_err(|e| exception(py, &Error::internal(e.to_string())))
}
