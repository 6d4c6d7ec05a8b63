//! Where to look for the others: addresses, and names that are resolved again and again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// How long a name is taken to mean what it meant.
pub(super) const RESOLVED_FOR: Duration = Duration::from_secs(5);
/// Addresses of one name.
const MAX_ADDRESSES: usize = 64;

/// Resolves `host:port`.
pub type Resolver = Arc<dyn Fn(String) -> BoxFuture<'static, std::io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// The system's resolver.
pub fn system_resolver() -> Resolver {
    Arc::new(|name| async move { tokio::net::lookup_host(name).await.map(Iterator::collect) }.boxed())
}

/// The addresses of all seeds, kept up to date as long as the handle is held.
pub(super) fn follow(seeds: Vec<String>, resolve: Resolver) -> (watch::Receiver<Vec<SocketAddr>>, AbortOnDropHandle<()>) {
    let (told, addresses) = watch::channel(Vec::new());
    let following = async move {
        let mut known: Vec<Vec<SocketAddr>> = vec![Vec::new(); seeds.len()];
        loop {
            for (seed, known) in seeds.iter().zip(&mut known) {
                // What a name meant last is better than nothing.
                match tokio::time::timeout(RESOLVED_FOR, resolve(seed.clone())).await {
                    Ok(Ok(mut found)) => {
                        found.truncate(MAX_ADDRESSES);
                        *known = found;
                    }
                    Ok(Err(error)) => tracing::info!(seed, %error, "a seed cannot be resolved"),
                    Err(_) => tracing::info!(seed, "a seed is not resolved in time"),
                }
            }
            let mut all: Vec<_> = known.iter().flatten().copied().collect();
            all.sort_unstable();
            all.dedup();
            told.send_if_modified(|addresses| std::mem::replace(addresses, all.clone()) != all);
            tokio::time::sleep(RESOLVED_FOR).await;
        }
    };
    (addresses, AbortOnDropHandle::new(tokio::spawn(following)))
}
