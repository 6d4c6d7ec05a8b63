//! Reads of one version of one object: conditional, coalesced, concurrent, bounded.

use std::error::Error as _;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use flightcache_proto::{Error, ErrorKind, Result, Version};
use futures::future::{BoxFuture, Shared};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, ObjectStoreExt as _};
use tokio::sync::Semaphore;

use super::source::Source;
use crate::admin::{Metrics, ScanMeter};

/// Ranges closer than this are read in one request: at 100 MB/s the gap costs 2.6 ms, a request some 30 ms and money.
const COALESCE_GAP_BYTES: u64 = 256 << 10;
/// Larger reads are split, since stores serve several medium ranges faster than one large; unless enough is under way.
const MAX_REQUEST_BYTES: u64 = 16 << 20;
/// With so many requests under way, splitting no longer makes reads faster, only more.
const BUSY_REQUESTS: usize = 6;
/// Larger reads are split even then, to be tried again in parts.
const MAX_BUSY_REQUEST_BYTES: u64 = 128 << 20;
/// Requests one call keeps under way.
const MAX_REQUESTS_PER_CALL: usize = 16;

/// An object within a source, whatever its version.
#[derive(Clone)]
pub struct ObjectRef {
    source: Arc<Source>,
    path: Path,
    url: Arc<str>,
}

impl fmt::Debug for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// What bounds and counts reads, shared by all of a server.
#[derive(Clone)]
pub struct FetchLimits {
    requests: Arc<Semaphore>,
    max_requests: usize,
    metrics: Arc<Metrics>,
}

/// Answer to [`ObjectRef::suffix`].
pub enum Suffix {
    /// The version asked about is still current.
    NotModified,
    /// The last bytes of the current version.
    Read {
        /// They end where the object ends.
        bytes: Bytes,
        /// Size of the object.
        size: u64,
        /// Its version, if it has one.
        version: Option<Version>,
    },
}

/// Pieces of an object's bytes, in order of their offsets.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    parts: Vec<(u64, Bytes)>,
}

/// Reads of one version of an object, shared by those who wait for parts of it. Dropped, they stop.
#[derive(Clone)]
pub struct Reads {
    parts: Vec<(Range<u64>, SharedRead)>,
}

type SharedRead = Shared<BoxFuture<'static, Result<Bytes>>>;

impl Reads {
    /// What `ranges` need, as soon as that is there. After a failure as well, all reads that were begun are seen through: one
    /// that nobody polls would keep its place among the requests.
    pub async fn covering(&self, ranges: &[Range<u64>]) -> Result<Segments> {
        let touched = |read: &Range<u64>| ranges.iter().any(|range| range.start < read.end && read.start < range.end);
        let reads = self.parts.iter().filter(|(read, _)| touched(read)).map(|(read, bytes)| {
            let (start, bytes) = (read.start, bytes.clone());
            async move { Ok::<_, Error>((start, bytes.await?)) }
        });
        Ok(Segments { parts: futures::future::join_all(reads).await.into_iter().collect::<Result<_>>()? })
    }
}

impl From<Segments> for Reads {
    fn from(segments: Segments) -> Self {
        let read = |(start, bytes): (u64, Bytes)| {
            let range = start..start + bytes.len() as u64;
            (range, std::future::ready(Ok(bytes)).boxed().shared())
        };
        Self { parts: segments.parts.into_iter().map(read).collect() }
    }
}

impl FetchLimits {
    /// At most `max_requests` reads at a time.
    pub fn new(max_requests: usize, metrics: Arc<Metrics>) -> Self {
        Self { requests: Arc::new(Semaphore::new(max_requests)), max_requests, metrics }
    }

    fn max_request_bytes(&self) -> u64 {
        let under_way = self.max_requests.saturating_sub(self.requests.available_permits());
        if under_way < BUSY_REQUESTS { MAX_REQUEST_BYTES } else { MAX_BUSY_REQUEST_BYTES }
    }
}

impl Segments {
    /// A whole object.
    pub fn whole(bytes: Bytes) -> Self {
        Self::at(0, bytes)
    }

    /// The bytes that begin at `start`.
    pub fn at(start: u64, bytes: Bytes) -> Self {
        Self { parts: vec![(start, bytes)] }
    }

    /// The bytes of `range`, copied only where they straddle two reads; `None` when they were not fetched.
    pub fn get(&self, range: Range<u64>) -> Option<Bytes> {
        let first = self.parts.partition_point(|(start, bytes)| start + bytes.len() as u64 <= range.start);
        let (start, bytes) = self.parts.get(first)?;
        if range.start < *start {
            return None;
        }
        let from = (range.start - start) as usize;
        let len = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
        if from.checked_add(len)? <= bytes.len() {
            return Some(bytes.slice(from..from + len));
        }
        let mut joined = Vec::with_capacity(len);
        let mut at = range.start;
        for (start, bytes) in &self.parts[first..] {
            if at < *start {
                return None;
            }
            let from = (at - start) as usize;
            let take = (bytes.len() - from).min((range.end - at) as usize);
            joined.extend_from_slice(&bytes[from..from + take]);
            at += take as u64;
            if at == range.end {
                return Some(joined.into());
            }
        }
        None
    }

    /// Pieces that do not overlap, together.
    pub fn join(all: impl IntoIterator<Item = Self>) -> Self {
        let mut parts: Vec<(u64, Bytes)> = all.into_iter().flat_map(|segments| segments.parts).collect();
        parts.sort_by_key(|(start, _)| *start);
        Self { parts }
    }

    /// A copy of some ranges, which keeps nothing else in memory; `None` when they were not all fetched.
    pub fn copy_of(&self, ranges: &[Range<u64>]) -> Option<Self> {
        let copy =
            |range: &Range<u64>| Some(Self { parts: vec![(range.start, Bytes::copy_from_slice(&self.get(range.clone())?))] });
        Some(Self::join(ranges.iter().map(copy).collect::<Option<Vec<_>>>()?))
    }

    /// Where each piece begins, and its bytes.
    pub fn pieces(&self) -> &[(u64, Bytes)] {
        &self.parts
    }

    /// Bytes held.
    pub fn len(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Bytes from `start` to the end of the piece that holds it.
    pub fn tail(&self, start: u64) -> Option<Bytes> {
        let at = self.parts.partition_point(|(from, bytes)| from + bytes.len() as u64 <= start);
        let (from, bytes) = self.parts.get(at)?;
        (start >= *from).then(|| bytes.slice((start - from) as usize..))
    }
}

/// The reads that cover `ranges`: neighbours merged across small gaps, large ones split.
fn coalesce(ranges: &[Range<u64>], max_request_bytes: u64) -> Vec<Range<u64>> {
    let mut sorted: Vec<_> = ranges.iter().filter(|range| range.start < range.end).cloned().collect();
    sorted.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(COALESCE_GAP_BYTES) => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    let split = |range: Range<u64>| {
        let parts = (range.end - range.start).div_ceil(max_request_bytes);
        let step = (range.end - range.start).div_ceil(parts);
        (0..parts).map(move |i| range.start + i * step..(range.start + (i + 1) * step).min(range.end))
    };
    merged.into_iter().flat_map(split).collect()
}

/// Bytes that reading `ranges` brings: the ranges, and the gaps that are read along.
pub fn read_bytes(ranges: &[Range<u64>]) -> u64 {
    coalesce(ranges, MAX_REQUEST_BYTES).iter().map(|read| read.end - read.start).sum()
}

impl ObjectRef {
    pub(super) fn new(source: Arc<Source>, path: Path, url: Arc<str>) -> Self {
        Self { source, path, url }
    }

    /// Canonical URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Canonical URL, shared.
    pub fn shared_url(&self) -> Arc<str> {
        Arc::clone(&self.url)
    }

    /// The key within the bucket (or the path without its leading `/`).
    pub fn key(&self) -> &str {
        self.path.as_ref()
    }

    /// The source it lies in.
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// The last `len` bytes of whatever version is current, unless that is `known`. One request.
    pub async fn suffix(&self, len: u64, known: Option<&Version>, limits: &FetchLimits, meter: &ScanMeter) -> Result<Suffix> {
        self.check_inside().await?;
        let options = GetOptions {
            range: Some(GetRange::Suffix(len)),
            if_none_match: match known {
                Some(Version::ETag(tag)) => Some(tag.to_string()),
                _ => None,
            },
            ..GetOptions::default()
        };
        let what = format!("last {len} bytes");
        match self.get(options, &what, limits, meter).await {
            Ok((result, bytes)) => {
                let version = Version::new(result.e_tag.as_deref(), result.version.as_deref());
                if known.is_some() && version.as_ref() == known {
                    return Ok(Suffix::NotModified);
                }
                Ok(Suffix::Read { bytes, size: result.size, version })
            }
            Err(object_store::Error::NotModified { .. }) => Ok(Suffix::NotModified),
            // Nothing can be read of an empty object, not even that it is empty.
            Err(error) if is_about_the_range(&error) && self.is_empty().await => {
                Err(Error::new(ErrorKind::Corrupt, format!("{}: an empty object is no Parquet file", self.url)))
            }
            Err(error) => Err(store_error(&self.url, &what, &error)),
        }
    }

    /// The bytes of `ranges` of one version, in few concurrent requests. An overwritten object is [`ErrorKind::Changed`].
    pub async fn ranges(
        &self,
        version: Option<&Version>,
        ranges: &[Range<u64>],
        limits: &FetchLimits,
        meter: &ScanMeter,
    ) -> Result<Segments> {
        let reads = futures::stream::iter(coalesce(ranges, limits.max_request_bytes())).map(|range| async move {
            let start = range.start;
            Ok((start, self.range(version, range, limits, meter).await?))
        });
        let mut parts: Vec<_> = reads.buffer_unordered(MAX_REQUESTS_PER_CALL).try_collect().await?;
        parts.sort_by_key(|(start, _)| *start);
        Ok(Segments { parts })
    }

    /// The same as reads that each begin when somebody waits for what they bring.
    pub fn reads(&self, version: Option<&Version>, ranges: &[Range<u64>], limits: &FetchLimits, meter: &Arc<ScanMeter>) -> Reads {
        let turns = Arc::new(Semaphore::new(MAX_REQUESTS_PER_CALL));
        let read = |range: Range<u64>| {
            let (object, version, limits, meter) = (self.clone(), version.cloned(), limits.clone(), Arc::clone(meter));
            let (turns, bytes) = (Arc::clone(&turns), range.clone());
            let read = async move {
                // Never closed, as above.
                let _turn = turns.acquire().await;
                object.range(version.as_ref(), bytes, &limits, &meter).await
            };
            (range, read.boxed().shared())
        };
        Reads { parts: coalesce(ranges, limits.max_request_bytes()).into_iter().map(read).collect() }
    }

    async fn range(
        &self,
        version: Option<&Version>,
        range: Range<u64>,
        limits: &FetchLimits,
        meter: &ScanMeter,
    ) -> Result<Bytes> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            if_match: match version {
                Some(Version::ETag(tag)) => Some(tag.to_string()),
                _ => None,
            },
            version: match version {
                Some(Version::Id(id)) => Some(id.to_string()),
                _ => None,
            },
            ..GetOptions::default()
        };
        let what = format!("bytes {}..{}", range.start, range.end);
        let (meta, bytes) =
            self.get(options, &what, limits, meter).await.map_err(|error| store_error(&self.url, &what, &error))?;
        if let (Some(expected), Some(found)) = (version, Version::new(meta.e_tag.as_deref(), meta.version.as_deref())) {
            // Not every store honours If-Match.
            if matches!(expected, Version::ETag(_)) && *expected != found {
                return Err(Error::new(ErrorKind::Changed, format!("{} {what}: now {found}, no longer {expected}", self.url)));
            }
        }
        if bytes.len() as u64 != range.end - range.start {
            let message = format!("{} {what}: the store answered {} bytes", self.url, bytes.len());
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        Ok(bytes)
    }

    async fn get(
        &self,
        options: GetOptions,
        what: &str,
        limits: &FetchLimits,
        meter: &ScanMeter,
    ) -> object_store::Result<(object_store::ObjectMeta, Bytes)> {
        // The semaphore is never closed, so an error here cannot happen; going on without a permit would be harmless.
        let _permit = limits.requests.acquire().await;
        let started = Instant::now();
        limits.metrics.store_requests.inc();
        let read = async {
            let result: GetResult = self.source.store.get_opts(&self.path, options).await?;
            let meta = result.meta.clone();
            Ok((meta, result.bytes().await?))
        };
        let read: object_store::Result<_> = read.await;
        let bytes = read.as_ref().map_or(0, |(_, bytes)| bytes.len() as u64);
        limits.metrics.store_bytes.inc_by(bytes);
        meter.fetched(bytes, started.elapsed());
        limits.metrics.fetch_seconds.observe(started.elapsed().as_secs_f64());
        tracing::debug!(url = %self.url, what, bytes, elapsed_us = started.elapsed().as_micros() as u64, ok = read.is_ok(), "store read");
        read
    }

    async fn is_empty(&self) -> bool {
        self.source.store.head(&self.path).await.is_ok_and(|meta| meta.size == 0)
    }

    /// Files reached through a symbolic link out of the source are denied.
    async fn check_inside(&self) -> Result<()> {
        let Some(root) = self.source.local_root.clone() else { return Ok(()) };
        let path = std::path::PathBuf::from(format!("/{}", self.path));
        let inside = tokio::task::spawn_blocking(move || std::fs::canonicalize(path).map(|path| path.starts_with(root))).await;
        match inside {
            // A file that is missing is reported by the read itself.
            Ok(Ok(true) | Err(_)) => Ok(()),
            _ => Err(Error::new(ErrorKind::Denied, format!("{} leads outside its source", self.url))),
        }
    }
}

/// Whether a store may have refused a read because of its range. The library has no type for it; a name that looks like it costs
/// a look at the object's size.
fn is_about_the_range(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::Generic { .. }) && error.to_string().to_lowercase().contains("range")
}

/// The typed error of a failed store operation.
pub(super) fn store_error(url: &str, what: &str, error: &object_store::Error) -> Error {
    use object_store::Error as E;
    let kind = match error {
        E::NotFound { .. } => ErrorKind::NotFound,
        E::Precondition { .. } => ErrorKind::Changed,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => ErrorKind::Denied,
        E::NotSupported { .. } | E::NotImplemented { .. } => ErrorKind::Unsupported,
        E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => ErrorKind::InvalidRequest,
        _ => ErrorKind::Unavailable,
    };
    let cause = match (kind, error.source()) {
        (ErrorKind::NotFound, _) => "no such object".to_owned(),
        (ErrorKind::Changed, _) => "the object was overwritten while it was read".to_owned(),
        (ErrorKind::Denied, _) => "the store denied access".to_owned(),
        (_, Some(source)) => chain(source),
        (_, None) => error.to_string(),
    };
    Error::new(kind, format!("{url} {what}: {cause}"))
}

/// An error with its causes, each said once.
fn chain(mut error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    while let Some(source) = error.source() {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        error = source;
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::slice::from_ref;

    use super::*;

    #[tokio::test]
    async fn reads_that_were_begun_give_their_places_back_though_another_fails() {
        let places = Arc::new(Semaphore::new(1));
        let place = Arc::clone(&places);
        let slow = async move {
            let _place = place.acquire().await;
            tokio::task::yield_now().await;
            Ok(Bytes::from_static(b"b"))
        };
        let failing = std::future::ready(Err(Error::new(ErrorKind::Unavailable, "no")));
        let reads = Reads { parts: vec![(0..1, slow.boxed().shared()), (1..2, failing.boxed().shared())] };
        assert_eq!(reads.covering(&[0..1, 1..2]).await.unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(places.available_permits(), 1, "the read is over, though its bytes are still held");
        assert_eq!(reads.covering(from_ref(&(0..1))).await.unwrap().get(0..1).unwrap(), "b");
    }

    #[test]
    fn reads_are_split_while_few_are_under_way() {
        let limits = FetchLimits::new(64, Arc::new(Metrics::new().unwrap()));
        let range = 0..MAX_BUSY_REQUEST_BYTES;
        assert_eq!(coalesce(from_ref(&range), limits.max_request_bytes()).len(), 8);
        let _busy = limits.requests.try_acquire_many(BUSY_REQUESTS as u32).unwrap();
        assert_eq!(coalesce(from_ref(&range), limits.max_request_bytes()).len(), 1);
    }

    #[test]
    fn gaps_are_bridged_and_large_reads_split() {
        let reads = |ranges: &[(u64, u64)]| {
            let ranges: Vec<_> = ranges.iter().map(|&(start, end)| start..end).collect();
            coalesce(&ranges, MAX_REQUEST_BYTES).into_iter().map(|range| (range.start, range.end)).collect::<Vec<_>>()
        };
        assert_eq!(reads(&[(0, 10), (20, 30)]), [(0, 30)]);
        let far = COALESCE_GAP_BYTES + 11;
        assert_eq!(reads(&[(far, far + 5), (0, 10)]), [(0, 10), (far, far + 5)]);
        assert_eq!(reads(&[(5, 5)]), []);
        let parts = reads(&[(0, MAX_REQUEST_BYTES * 2 + 1)]);
        assert_eq!(parts.len(), 3);
        assert!(parts.windows(2).all(|pair| pair[0].1 == pair[1].0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_range_is_found_again(ranges in proptest::collection::vec((0_u64..30 << 20, 1_u64..9 << 20), 1..6)) {
            static OBJECT: std::sync::LazyLock<Bytes> = std::sync::LazyLock::new(|| vec![[1_u8, 2, 3, 4, 5, 6, 7]; 6 << 20].concat().into());
            let ranges: Vec<_> = ranges.into_iter().map(|(start, len)| start..start + len).collect();
            let slice = |range: &Range<u64>| OBJECT.slice(range.start as usize..range.end as usize);
            // Copies, as reads are: neighbours in the object are not neighbours in memory.
            let parts = coalesce(&ranges, MAX_REQUEST_BYTES).into_iter().map(|range| (range.start, Bytes::copy_from_slice(&slice(&range))));
            let segments = Segments { parts: parts.collect() };
            for range in ranges {
                prop_assert!(segments.get(range.clone()).unwrap() == slice(&range));
            }
            prop_assert!(segments.get(1 << 40..(1 << 40) + 1).is_none());
        }
    }
}
