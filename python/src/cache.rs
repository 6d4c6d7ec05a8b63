//! The connection.

use datafusion::execution::context::SQLOptions;
use datafusion::prelude::SessionContext;
use flightcache::{Client, Error, ScanBuilder, ScanRequest};
use futures::StreamExt as _;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::engine;
use crate::errors::{exception, of_query};
use crate::rows::Rows;
use crate::runtime::{Home, objects};
use crate::table::Table;

/// A connection to a Flightcache. Threads may share it; a process that forked may not.
#[pyclass(frozen, module = "flightcache")]
pub(crate) struct Cache {
    home: Home,
    location: String,
    client: Client,
    session: SessionContext,
}

/// Connects to a server, such as `grpc://127.0.0.1:50051` or `grpc+unix:///run/flightcache.sock`.
#[pyfunction]
pub(crate) fn connect(py: Python<'_>, location: String) -> PyResult<Cache> {
    let home = Home::here()?;
    let client = home.wait(py, Client::connect(&location))?;
    let session = engine::session(&client);
    Ok(Cache { home, location, client, session })
}

impl Cache {
    fn builder(&self, url: String, columns: Option<Vec<String>>, filter: Option<String>, limit: Option<u64>) -> ScanBuilder {
        let mut scan = self.client.scan(url);
        if let Some(columns) = columns {
            scan = scan.columns(columns);
        }
        if let Some(filter) = filter {
            scan = scan.filter(filter);
        }
        if let Some(limit) = limit {
            scan = scan.limit(limit);
        }
        scan
    }
}

#[pymethods]
impl Cache {
    /// Rows of an object, a prefix ending in `/`, or a glob.
    #[pyo3(signature = (url, *, columns = None, filter = None, limit = None))]
    fn scan(
        &self,
        py: Python<'_>,
        url: String,
        columns: Option<Vec<String>>,
        filter: Option<String>,
        limit: Option<u64>,
    ) -> PyResult<Rows> {
        self.home.wait(py, Rows::of_scan(self.home, self.builder(url, columns, filter, limit)))
    }

    /// The answer to a query, by the `DataFusion` in this package. It writes nothing; views and settings are the session's.
    fn sql(&self, py: Python<'_>, query: &str) -> PyResult<Rows> {
        let reading = SQLOptions::new().with_allow_dml(false);
        let planned = async { self.session.sql_with_options(query, reading).await.map_err(|e| of_query(&e)) };
        Ok(Rows::of_query(self.home, self.home.wait(py, planned)?))
    }

    /// Gives a URL a name in queries, whatever had it before.
    fn register(&self, py: Python<'_>, name: &str, url: &str) -> PyResult<()> {
        let registered = async {
            let table = self.client.table(url).await?;
            self.session.deregister_table(name)?;
            self.session.register_table(name, table)
        };
        self.home.wait(py, async { registered.await.map(drop).map_err(|e| of_query(&e)) })
    }

    /// Takes a name back. Whether it was one.
    fn deregister(&self, py: Python<'_>, name: &str) -> PyResult<bool> {
        let was = self.session.deregister_table(name).map_err(|e| exception(py, &of_query(&e)))?;
        Ok(was.is_some())
    }

    /// A URL as a table for the `datafusion` package.
    fn table(&self, py: Python<'_>, url: &str) -> PyResult<Table> {
        let opened = async { self.client.table(url).await.map_err(|e| of_query(&e)) };
        let provider = self.home.wait(py, opened)?;
        Ok(Table { home: self.home, url: url.to_owned(), provider })
    }

    /// Loads what a scan reads into the cache.
    #[pyo3(signature = (url, *, columns = None, filter = None, limit = None, progress = None))]
    fn warm<'py>(
        &self,
        py: Python<'py>,
        url: String,
        columns: Option<Vec<String>>,
        filter: Option<String>,
        limit: Option<u64>,
        progress: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let request: ScanRequest = self.builder(url, columns, filter, limit).request().clone();
        let report = py.import("flightcache.progress")?.call_method1("Report", (progress, &request.url))?;
        let mut steps = Box::pin(self.home.wait(py, self.client.warm(&request))?);
        let told = (|| {
            let mut last = None;
            while let Some(step) = self.home.wait(py, async { steps.next().await.transpose() })? {
                let step = objects(py, &step)?;
                report.call1((&step,))?;
                last = Some(step);
            }
            last.ok_or_else(|| exception(py, &Error::internal("the server said nothing")))
        })();
        report.call_method0("close")?;
        told
    }

    /// What a URL holds, object by object, and what of it is resident.
    fn info<'py>(&self, py: Python<'py>, url: &str) -> PyResult<Bound<'py, PyAny>> {
        objects(py, &self.home.wait(py, self.client.info(url))?)
    }

    /// The server's figures.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        objects(py, &self.home.wait(py, self.client.stats())?)
    }

    /// Forgets an object, a prefix or a glob.
    fn evict<'py>(&self, py: Python<'py>, url: &str) -> PyResult<Bound<'py, PyAny>> {
        objects(py, &self.home.wait(py, self.client.evict(url))?)
    }

    /// Changes the capacity of the server's cache.
    fn set_capacity<'py>(&self, py: Python<'py>, capacity_bytes: u64) -> PyResult<Bound<'py, PyAny>> {
        objects(py, &self.home.wait(py, self.client.set_capacity(capacity_bytes))?)
    }

    /// Where it connects to.
    #[getter]
    fn location(&self) -> &str {
        &self.location
    }

    fn __repr__(&self) -> String {
        format!("<flightcache.Cache {}>", self.location)
    }

    /// Pickled as its location: what unpickles it connects.
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        Ok((py.import("flightcache")?.getattr("connect")?, PyTuple::new(py, [&self.location])?))
    }
}
