//! Threads for servers that run in this process.
//!
//! Elsewhere a server has a process of its own. On the threads of its clients it would write an answer to its end before they
//! read any of it, and each would wait for what the other does.

use std::io::Result;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

/// A runtime of servers. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct ServerThreads {
    handle: Handle,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl ServerThreads {
    /// As many threads as there are cores.
    pub(crate) fn new() -> Result<Self> {
        let runtime = Builder::new_multi_thread().thread_name("server").enable_all().build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// Runs what serves, or starts servers: all they do is done there.
    pub(crate) fn spawn<T: Send + 'static>(&self, serving: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.handle.spawn(serving)
    }
}

impl Drop for ServerThreads {
    fn drop(&mut self) {
        // Waiting for them is not allowed where this may be dropped.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_started_runs_on_threads_of_its_own() {
        let threads = ServerThreads::new().unwrap();
        let here = std::thread::current().id();
        let there = threads.spawn(async { tokio::spawn(async { std::thread::current().id() }).await.unwrap() }).await.unwrap();
        assert_ne!(here, there);
    }
}
