//! Threads of their own for SQL: operators keep a core busy for milliseconds at a time, which connections must not wait for.

use flightcache_proto::{Error, Result};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::task::AbortOnDropHandle;

/// Plans nest as deep as statements do, and are dropped by recursion. Only what is used of it is memory.
const STACK_BYTES: usize = 32 << 20;

/// A runtime that ends without waiting when it is dropped.
#[derive(Debug)]
pub(super) struct SqlRuntime {
    runtime: Option<Runtime>,
    handle: Handle,
}

impl SqlRuntime {
    /// As many threads as there are cores.
    pub(super) fn new() -> Result<Self> {
        let runtime = Builder::new_multi_thread().thread_name("sql").thread_stack_size(STACK_BYTES).enable_all().build();
        let runtime = runtime.map_err(|e| Error::internal(format!("threads for SQL: {e}")))?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// Runs a task there, which ends when the handle is dropped.
    pub(super) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> AbortOnDropHandle<T> {
        AbortOnDropHandle::new(self.handle.spawn(task))
    }
}

impl Drop for SqlRuntime {
    fn drop(&mut self) {
        // Waiting is not allowed on other runtimes' threads.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
