//! Looking at the cache and changing it: info, warm, evict, stats.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use flightcache_proto::action::{ColumnInfo, Evicted, ObjectInfo, RowGroupInfo, Stats, WarmProgress};
use flightcache_proto::{Error, ObjectId, Part, Result, ScanRequest, Slot, Ticket};
use futures::{Stream, StreamExt as _};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::load::{LoadError, Purpose, RowGroupRef};
use super::resident::{ChunkKey, Form};
use super::{Engine, file_column};
use crate::admin::ScanMeter;
use crate::cache::ReserveError;
use crate::cluster::scaling::{self, Counts};
use crate::object::Target;
use crate::parquet::Footer;
use crate::record::RequestRecord;
use crate::settings::Residency;

/// Row groups warmed at a time.
const WARM_AT_A_TIME: usize = 4;

/// Resident chunks of one object: bytes of both forms, by row group and column.
type ResidentChunks = HashMap<(u32, u32), u64>;

/// What rests in which form.
#[derive(Default)]
struct Forms {
    chunks: HashSet<ChunkKey>,
    arrow_bytes: u64,
    parquet_bytes: u64,
}

impl Forms {
    fn add(&mut self, key: &ChunkKey, bytes: u64) {
        match key.form {
            Form::Decoded => self.arrow_bytes += bytes,
            Form::Encoded => self.parquet_bytes += bytes,
        }
        self.chunks.insert(key.encoded());
    }
}

impl Engine {
    /// What is known of each object of a URL, and what of it is resident.
    pub async fn info(self: &Arc<Self>, url: &str) -> Result<Vec<ObjectInfo>> {
        let meter = Arc::new(ScanMeter::default());
        let plan = self.plan(&Ticket::Scan(ScanRequest::new(url)), &meter).await?;
        let resident = self.resident();
        let info = |footer: &Arc<Footer>| {
            let chunks = footer.id.as_ref().and_then(|id| resident.get(id));
            object_info(footer, chunks.unwrap_or(&HashMap::new()))
        };
        Ok(plan.objects.iter().map(|object| info(&object.footer)).collect())
    }

    /// Every object with resident chunks: its footer, if that is still resident, and bytes.
    pub fn resident_objects(&self) -> Vec<(Arc<Footer>, u64)> {
        let resident = self.resident();
        let footers = self.footers.resident().into_iter();
        let bytes = |footer: &Arc<Footer>| Some(resident.get(footer.id.as_ref()?)?.values().sum());
        let mut objects: Vec<_> = footers.filter_map(|footer| bytes(&footer).map(|bytes| (footer, bytes))).collect();
        objects.sort_by(|(a, _), (b, _)| a.object.url().cmp(b.object.url()));
        objects
    }

    fn resident(&self) -> HashMap<Arc<ObjectId>, ResidentChunks> {
        let mut objects: HashMap<_, ResidentChunks> = HashMap::new();
        self.chunks.for_each_resident(|key, entry| {
            let chunks = objects.entry(Arc::clone(&key.object)).or_default();
            *chunks.entry((key.row_group, key.column)).or_default() += entry.weight_bytes();
        });
        objects
    }

    /// Loads the columns of a scan (its filter's too, where statistics do not rule their row group out), telling after each
    /// row group how far it is.
    pub fn warm(self: &Arc<Self>, request: ScanRequest) -> impl Stream<Item = Result<WarmProgress>> + Send + use<> {
        let engine = Arc::clone(self);
        async_stream::try_stream! {
            let meter = Arc::new(ScanMeter::default());
            let plan = engine.plan(&Ticket::Scan(request), &meter).await?;
            let (id, record) = engine.next_request();
            let columns = plan.read_columns();
            let loads: Vec<_> = plan.objects.iter().flat_map(|object| object.row_groups.iter().map(move |&group| (object, group))).map(|(object, group)| {
                let files: Vec<usize> = columns.iter().filter_map(|&column| file_column(&object.columns[column])).collect();
                let row_group = RowGroupRef { footer: Arc::clone(&object.footer), row_group: group, request: id, populate: plan.request.populate, meter: Arc::clone(&meter), record: record.as_ref().map(RequestRecord::row_group), is_for_peer: false };
                (row_group, files)
            }).collect();
            let mut progress = WarmProgress { row_groups_total: loads.len() as u64, ..WarmProgress::default() };
            yield progress;
            let mut loads = futures::stream::iter(loads).map(|(group, files)| {
                let engine = Arc::clone(&engine);
                let load = async move {
                    if engine.warm_at_owner(&group, &files).await.is_ok() {
                        return Ok(());
                    }
                    engine.load_to_rest(&group, &files).await
                };
                async move { AbortOnDropHandle::new(tokio::spawn(load)).await.unwrap_or_else(|e| Err(Error::internal(format!("warm: {e}")))) }
            }).buffered(WARM_AT_A_TIME);
            while let Some(loaded) = loads.next().await {
                loaded?;
                let stats = meter.snapshot();
                progress.row_groups_done += 1;
                progress.chunks_hit = stats.chunks_hit;
                progress.chunks_missed = stats.chunks_missed;
                progress.store_bytes = stats.store_bytes;
                yield progress;
            }
        }
    }

    /// Loads file columns of a row group in the form in which they are to rest: decoded, they may not even fit.
    pub(super) async fn load_to_rest(self: &Arc<Self>, group: &RowGroupRef, columns: &[usize]) -> Result<()> {
        let loaded = if self.residency == Residency::Parquet && group.footer.id.is_some() {
            self.encoded_chunks(group, columns, oneshot::channel().0).await.map(drop)
        } else {
            self.chunks(group, columns, Purpose::Answer, oneshot::channel().0).await.map(drop)
        };
        loaded.map_err(|error| self.load_error(group, columns, error))
    }

    /// The error of a load that nothing else is tried instead of.
    pub(super) fn load_error(&self, group: &RowGroupRef, columns: &[usize], error: LoadError) -> Error {
        match error {
            LoadError::TooLarge => {
                let wanted = group.ranges(columns).iter().map(|range| range.end - range.start).sum();
                group.error(&ReserveError::TooLarge { wanted, limit: self.chunks.budget().limit() })
            }
            LoadError::Failed(error) => error,
        }
    }

    /// Forgets an object, a prefix or a glob: chunks, footers and listings. Loads under way keep their readers, but their
    /// results do not stay.
    pub fn evict(&self, url: &str) -> Result<Evicted> {
        let target = self.sources.resolve(url)?;
        let matches = |candidate: &str| match &target {
            Target::Object(object) => candidate == object.url(),
            Target::Many(pattern) => pattern.matches(candidate),
        };
        self.listings.clear();
        self.plans.clear();
        let footers = match &target {
            Target::Object(object) => self.footers.forget(object.url()),
            Target::Many(_) => self.footers.forget_if(matches),
        };
        let (chunks, bytes) = self.chunks.remove_if(|key| matches(&key.object.url));
        Ok(Evicted { chunks, bytes, footers })
    }

    /// Changes the cache's capacity.
    pub fn set_capacity(&self, capacity_bytes: u64) {
        self.chunks.set_capacity(capacity_bytes);
    }

    /// Server-wide figures.
    pub fn stats(&self) -> Stats {
        let usage = self.chunks.budget().usage();
        let cache = self.chunks.stats();
        let (resident_footers, footer_bytes) = self.footers.usage();
        let mut forms = Forms::default();
        self.chunks.for_each_resident(|key, entry| forms.add(key, entry.weight_bytes()));
        Stats {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started_at.elapsed().as_secs(),
            capacity_bytes: self.chunks.budget().capacity(),
            reserve_bytes: self.chunks.budget().reserve_bytes(),
            resident_bytes: usage.resident,
            in_flight_bytes: usage.in_flight,
            streaming_bytes: usage.streaming,
            resident_chunks: forms.chunks.len() as u64,
            resident_arrow_bytes: forms.arrow_bytes,
            resident_parquet_bytes: forms.parquet_bytes,
            resident_footers: resident_footers as u64,
            footer_bytes: footer_bytes as u64 + self.blooms.resident_bytes(),
            chunks_hit: cache.hits,
            chunks_missed: cache.misses,
            chunks_joined: cache.joined,
            chunks_decoded: cache.derived,
            evictions: cache.evictions,
            chunks_pulled: self.metrics.peer_chunks.get(),
            pulled_bytes: self.metrics.peer_bytes.get(),
            store_requests: self.metrics.store_requests.get(),
            store_bytes: self.metrics.store_bytes.get(),
            served_bytes: self.metrics.served_bytes.get(),
            scans: self.metrics.scan_seconds.get_sample_count() + u64::try_from(self.metrics.active_scans.get()).unwrap_or(0),
        }
    }

    /// What the number of nodes is recommended by.
    pub(crate) fn counts(&self) -> Counts {
        let budget = self.chunks.budget();
        Counts {
            hit_bytes: self.metrics.hit_bytes.get(),
            miss_bytes: self.metrics.miss_bytes.get(),
            evictions: self.chunks.stats().evictions,
            sent_bytes: self.metrics.served_bytes.get(),
            cpu: scaling::cpu_time(),
            resident_bytes: budget.usage().resident,
            capacity_bytes: budget.capacity(),
        }
    }

    /// Brings the metrics that mirror the cache's own counts up to date.
    pub fn publish_gauges(&self) {
        let (stats, cache, metrics) = (self.stats(), self.chunks.stats(), &self.metrics);
        let gauges = [
            (&metrics.capacity_bytes, stats.capacity_bytes),
            (&metrics.resident_bytes, stats.resident_bytes),
            (&metrics.in_flight_bytes, stats.in_flight_bytes),
            (&metrics.streaming_bytes, stats.streaming_bytes),
            (&metrics.resident_chunks, stats.resident_chunks),
            (&metrics.footer_bytes, stats.footer_bytes),
            (&metrics.resident_footers, stats.resident_footers),
        ];
        for (gauge, value) in gauges {
            gauge.set(value as i64);
        }
        self.cluster.publish_gauges(metrics);
        let counters = [
            (&metrics.chunk_hits, cache.hits),
            (&metrics.chunk_misses, cache.misses),
            (&metrics.chunk_joins, cache.joined),
            (&metrics.evictions, cache.evictions),
            (&metrics.rejections, cache.rejected),
        ];
        for (counter, value) in counters {
            counter.inc_by(value.saturating_sub(counter.get()));
        }
    }
}

fn object_info(footer: &Footer, chunks: &ResidentChunks) -> ObjectInfo {
    let groups = 0..footer.metadata.num_row_groups() as u32;
    let column = |(index, field): (usize, &Arc<arrow::datatypes::Field>)| {
        let of_column = || chunks.iter().filter(move |((_, column), _)| *column as usize == index);
        ColumnInfo {
            name: field.name().clone(),
            data_type: field.data_type().to_string(),
            nullable: field.is_nullable(),
            compressed_bytes: groups.clone().map(|group| footer.compressed_bytes(group, index)).sum(),
            resident_chunks: of_column().count() as u64,
            resident_bytes: of_column().map(|(_, bytes)| bytes).sum(),
        }
    };
    let row_groups = groups.clone().map(|group| {
        let metadata = footer.metadata.row_group(group as usize);
        RowGroupInfo {
            rows: footer.row_group_rows(group) as u64,
            compressed_bytes: metadata.compressed_size().unsigned_abs(),
            uncompressed_bytes: metadata.total_byte_size().unsigned_abs(),
            slot: Slot::of(footer.object.url(), Part::RowGroup(group)).get(),
            resident_chunks: chunks.keys().filter(|(g, _)| *g == group).count() as u64,
        }
    });
    ObjectInfo {
        url: footer.object.url().to_owned(),
        version: footer.version().map(ToString::to_string),
        size_bytes: footer.size,
        rows: groups.clone().map(|group| footer.row_group_rows(group) as u64).sum(),
        columns: footer.schema.fields().iter().enumerate().map(column).collect(),
        row_groups: row_groups.collect(),
        resident_bytes: chunks.values().sum(),
    }
}
