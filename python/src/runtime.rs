//! The threads that do the work, and waiting for them: without the GIL, and not longer than until Ctrl-C.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flightcache::{Error, Result};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::runtime::{Builder, Runtime};

use crate::errors::{Failure, exception};

/// How often a waiting thread looks whether Python was sent a signal.
const SIGNALS_EVERY: Duration = Duration::from_millis(50);

/// A runtime and the process whose threads it has. Never dropped: that would wait for the threads, which a fork does not have.
static RUNTIME: Mutex<Option<Home>> = Mutex::new(None);

/// The runtime of one process.
#[derive(Clone, Copy)]
pub(crate) struct Home {
    runtime: &'static Runtime,
    process: u32,
}

impl Home {
    /// That of this process.
    pub(crate) fn here() -> PyResult<Self> {
        let mut home = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
        let process = std::process::id();
        if let Some(home) = home.filter(|home| home.process == process) {
            return Ok(home);
        }
        let runtime = Builder::new_multi_thread().enable_all().thread_name("flightcache").build()?;
        Ok(*home.insert(Self { runtime: Box::leak(Box::new(runtime)), process }))
    }

    /// The runtime, if this is its process: a fork has none of its threads, and would wait forever.
    pub(crate) fn runtime(self) -> PyResult<&'static Runtime> {
        if std::process::id() == self.process {
            return Ok(self.runtime);
        }
        Err(PyRuntimeError::new_err("this was opened before the process forked: call flightcache.connect in the new process"))
    }

    /// Waits without the GIL for what ends with an error of the cache. A signal whose handler raises ends it.
    pub(crate) fn wait<T: Send>(self, py: Python<'_>, work: impl Future<Output = Result<T>> + Send) -> PyResult<T> {
        let done = self.wait_for(py, async { work.await.map_err(Failure::from) });
        done.map_err(|failure| failure.into_exception(py))
    }

    /// The same for what may fail otherwise.
    pub(crate) fn wait_for<T: Send>(
        self,
        py: Python<'_>,
        work: impl Future<Output = Result<T, Failure>> + Send,
    ) -> Result<T, Failure> {
        let runtime = self.runtime()?;
        py.check_signals()?;
        py.detach(|| {
            runtime.block_on(async {
                let mut work = std::pin::pin!(work);
                loop {
                    tokio::select! {
                        done = &mut work => return done,
                        () = tokio::time::sleep(SIGNALS_EVERY) => {
                            let ended = || Error::internal("Python has ended");
                            Python::try_attach(|py| py.check_signals()).ok_or_else(ended)??;
                        }
                    }
                }
            })
        })
    }
}

/// Python's objects for what is serialised as JSON elsewhere.
pub(crate) fn objects<'py>(py: Python<'py>, value: &impl serde::Serialize) -> PyResult<Bound<'py, PyAny>> {
    let json = serde_json::to_string(value).map_err(|e| exception(py, &Error::internal(e.to_string())))?;
    py.import("json")?.call_method1("loads", (json,))
}
