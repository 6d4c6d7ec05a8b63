//! Bloom filters of column chunks: read when a filter asks for them, once whoever asks, kept in a byte-bounded LRU of their own.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use flightcache_proto::{Error, ErrorKind, ObjectId, Part, Result, Slot};
use parquet::bloom_filter::Sbbf;

use super::footer::Footer;
use crate::admin::ScanMeter;
use crate::cache::{Cache, CacheConfig, CacheKey, FlightError, LoadGroup, Lookup, Permit};
use crate::object::FetchLimits;

/// Filters larger than this are not worth reading.
const MAX_BYTES: u64 = 16 << 20;
const BLOCK_BYTES: u64 = 32;

/// The Bloom filter of one leaf column of one row group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FilterKey {
    object: Arc<ObjectId>,
    row_group: u32,
    leaf: u32,
}

impl CacheKey for FilterKey {
    fn partition_hash(&self) -> u64 {
        u64::from(Slot::of(&self.object.url, Part::RowGroup(self.row_group)).get())
    }
}

/// `None`: a filter that cannot be read, which decides nothing.
type Filter = Option<Sbbf>;

/// The cache of Bloom filters.
pub struct BloomFilters {
    resident: Arc<Cache<FilterKey, Filter, Error>>,
    limits: FetchLimits,
}

impl BloomFilters {
    /// A cache of at most `capacity_bytes`.
    pub fn new(capacity_bytes: u64, limits: FetchLimits) -> Self {
        let resident = Cache::new(CacheConfig {
            capacity_bytes,
            reserve_bytes: MAX_BYTES * 4,
            partitions: 4,
            protected_share: 0.0,
            reserve_timeout: Duration::from_secs(30),
        });
        Self { resident, limits }
    }

    /// Bytes of resident filters.
    pub fn resident_bytes(&self) -> u64 {
        self.resident.budget().usage().resident
    }

    /// Those filters of `leaves` that row group `row_group` has, by leaf.
    pub(super) async fn get(
        &self,
        footer: &Arc<Footer>,
        row_group: u32,
        leaves: impl IntoIterator<Item = usize>,
        meter: &Arc<ScanMeter>,
    ) -> Result<Vec<(usize, Sbbf)>> {
        let present: Vec<_> =
            leaves.into_iter().filter_map(|leaf| Some((leaf, filter_range(footer, row_group, leaf)?))).collect();
        // Objects without a version are read and never cached.
        let Some(object) = &footer.id else {
            let ranges: Vec<_> = present.iter().map(|(_, range)| range.clone()).collect();
            let segments = footer.object.ranges(footer.version(), &ranges, &self.limits, meter).await?;
            let read = present.into_iter().filter_map(|(leaf, range)| Some((leaf, parse(&segments.get(range)?)?)));
            return Ok(read.collect());
        };
        let load = LoadGroup::new();
        let (mut permits, mut filters, mut coming) = (Vec::new(), Vec::new(), Vec::new());
        for (leaf, range) in present {
            let key = FilterKey { object: Arc::clone(object), row_group, leaf: leaf as u32 };
            match self.resident.lookup(&key, 0, true, &load) {
                Lookup::Hit(filter) => filters.extend((**filter).clone().map(|filter| (leaf, filter))),
                Lookup::Wait(flight) => coming.push((leaf, flight)),
                Lookup::Lead(permit, flight) => {
                    permits.push((permit, range));
                    coming.push((leaf, flight));
                }
            }
        }
        if !permits.is_empty() {
            let (cache, limits) = (Arc::clone(&self.resident), self.limits.clone());
            load.spawn(read(cache, Arc::clone(footer), permits, limits, Arc::clone(meter)));
        }
        drop(load);
        for (leaf, flight) in coming {
            let filter = flight.wait().await.map_err(|error| match error {
                FlightError::Failed(error) => error,
                FlightError::Abandoned => {
                    Error::internal(format!("{}: reading a Bloom filter ended without an answer", footer.object.url()))
                }
            })?;
            filters.extend((**filter).clone().map(|filter| (leaf, filter)));
        }
        Ok(filters)
    }
}

/// The task of one load. Who waits keeps it alive.
async fn read(
    cache: Arc<Cache<FilterKey, Filter, Error>>,
    footer: Arc<Footer>,
    permits: Vec<(Permit<FilterKey, Filter, Error>, Range<u64>)>,
    limits: FetchLimits,
    meter: Arc<ScanMeter>,
) {
    let ranges: Vec<_> = permits.iter().map(|(_, range)| range.clone()).collect();
    let bytes = ranges.iter().map(|range| range.end - range.start).sum();
    let read = async {
        let reservation = cache
            .reserve(bytes)
            .await
            .map_err(|e| Error::new(ErrorKind::ResourceExhausted, format!("{}: Bloom filters: {e}", footer.object.url())))?;
        Ok((reservation, footer.object.ranges(footer.version(), &ranges, &limits, &meter).await?))
    };
    match read.await {
        Ok((mut reservation, segments)) => {
            for (permit, range) in permits {
                let share = reservation.split(range.end - range.start);
                let filter = segments.get(range).and_then(|bytes| parse(&bytes));
                let weight = filter.as_ref().map_or(0, |filter| filter.num_blocks() as u64 * BLOCK_BYTES) + 64;
                permit.complete(filter, weight, share);
            }
        }
        Err(error) => permits.into_iter().for_each(|(permit, _)| permit.fail(Error::clone(&error))),
    }
}

/// Where a filter lies. None where there is none, or its length is not stated.
fn filter_range(footer: &Footer, row_group: u32, leaf: usize) -> Option<Range<u64>> {
    let chunk = footer.metadata.row_group(row_group as usize).column(leaf);
    let start = u64::try_from(chunk.bloom_filter_offset()?).ok()?;
    let len = u64::try_from(chunk.bloom_filter_length()?).ok()?;
    let end = start.checked_add(len)?;
    (len > 0 && len <= MAX_BYTES && end <= footer.size).then_some(start..end)
}

fn parse(bytes: &[u8]) -> Filter {
    Sbbf::from_bytes(bytes).ok().filter(|filter| filter.num_blocks() > 0)
}
