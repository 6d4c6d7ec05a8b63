//! The one place where the rooms meet: plan, get or load, filter, assemble.
//!
//! ```text
//!  ScanRequest --plan.rs--> ScanPlan --stream.rs--> row groups, ahead and in order
//!                                        |
//!                    row_group.rs: filter columns, decide, the rest --load.rs--> cache | store
//!                    parquet_rows.rs: what needs no decoding here      \-- peers.rs: other servers
//!                                        |
//!                                     batches --aggregate.rs--> states, if they are what was asked for
//!                                              (rows.rs: the same for row numbers; row_reads.rs: for many small reads;
//!                                               pick.rs: what both pick of one row group, measured by measure.rs)
//!
//!  a URL --table.rs--> what a query planner wants to know
//! ```

mod aggregate;
mod growth;
mod kept_plans;
mod load;
mod manage;
mod measure;
mod parquet_rows;
mod peers;
mod pick;
mod plan;
mod predicate;
mod resident;
mod row_group;
mod row_reads;
mod rows;
mod stream;
mod table;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arrow::datatypes::Schema;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions};
use flightcache_proto::action::RenewedObject;
use flightcache_proto::{Error, Result, SlotMap};
use tokio::sync::{OnceCell, Semaphore, mpsc};

pub(crate) use growth::BoundGrowth;
pub use parquet_rows::ParquetRows;
pub(crate) use peers::{FooterAnswer, ForPeer};
pub use plan::ScanPlan;
pub use resident::{ChunkKey, Form};
pub use row_reads::{PickedRows, RowReads};
pub use stream::{Batch, Part, Takes};

use self::kept_plans::KeptPlans;
use self::load::LoadError;
use self::peers::Peers;
use self::plan::ColumnSource;
use self::predicate::Planner;
use self::resident::Resident;
use crate::admin::{Metrics, ScanMeter};
use crate::cache::{Cache, CacheConfig, Permit};
use crate::cluster::Cluster;
use crate::object::{FetchLimits, Listings, Sources};
use crate::parquet::{BloomFilters, Footers, check_widths};
use crate::record::{Recorder, RequestRecord};
use crate::settings::{Residency, Settings};

type Chunks = Cache<ChunkKey, Resident, LoadError>;
type ChunkPermit = Permit<ChunkKey, Resident, LoadError>;

/// Everything a server knows, apart from how it is reached.
pub struct Engine {
    sources: Sources,
    listings: Listings,
    footers: Arc<Footers>,
    /// Objects that turned out overwritten, until somebody passes that on.
    renewed: Mutex<Option<mpsc::Receiver<RenewedObject>>>,
    blooms: BloomFilters,
    plans: KeptPlans,
    chunks: Arc<Chunks>,
    residency: Residency,
    limits: FetchLimits,
    planner: Arc<Planner>,
    /// Bytes that the groups of partial aggregates take.
    aggregates: Arc<AtomicUsize>,
    /// Decoding, filtering and compressing take a permit each: as many at a time as there are cores.
    cpu: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    read_ahead_bytes: u64,
    cluster: Arc<Cluster>,
    peers: Peers,
    handed_over: OnceCell<()>,
    recorder: Option<Arc<Recorder>>,
    requests: AtomicU64,
    started_at: std::time::Instant,
}

impl Engine {
    /// An engine over `sources`, with an empty cache, alone and without a record.
    pub fn new(settings: &Settings, sources: Sources, metrics: Arc<Metrics>, slot_map: SlotMap) -> Arc<Self> {
        Self::recorded(settings, sources, metrics, Arc::new(Cluster::fixed(slot_map)), None)
    }

    /// An engine over `sources`, with an empty cache, in a cluster, whose requests are recorded.
    pub fn recorded(
        settings: &Settings,
        sources: Sources,
        metrics: Arc<Metrics>,
        cluster: Arc<Cluster>,
        recorder: Option<Arc<Recorder>>,
    ) -> Arc<Self> {
        let limits = FetchLimits::new(settings.store_requests, Arc::clone(&metrics));
        let footer_capacity = settings.footer_capacity.as_u64();
        let of_footers = (footer_capacity - footer_capacity / 4 - footer_capacity / 8) as usize;
        let (footers, renewed) = Footers::new(of_footers, limits.clone(), settings.cluster.is_some());
        let chunks = Cache::new(CacheConfig {
            capacity_bytes: settings.capacity.as_u64(),
            reserve_bytes: settings.reserve_bytes(),
            partitions: settings.partitions,
            protected_share: settings.protected_share,
            reserve_timeout: settings.memory_wait,
        });
        Arc::new(Self {
            sources,
            listings: Listings::default(),
            footers,
            renewed: Mutex::new(Some(renewed)),
            blooms: BloomFilters::new(footer_capacity / 4, limits.clone()),
            plans: KeptPlans::new((footer_capacity / 8) as usize),
            chunks,
            residency: settings.residency,
            limits,
            planner: Arc::default(),
            aggregates: Arc::default(),
            cpu: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(2, std::num::NonZero::get))),
            metrics,
            read_ahead_bytes: settings.read_ahead.as_u64(),
            cluster,
            peers: Peers::new(settings.peer_bandwidth.map(|bytes| bytes.as_u64())),
            handed_over: OnceCell::new(),
            recorder,
            requests: AtomicU64::new(0),
            started_at: std::time::Instant::now(),
        })
    }

    /// The server's metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Permits for work that keeps a core busy.
    pub(crate) fn cpu(&self) -> &Arc<Semaphore> {
        &self.cpu
    }

    /// Which node owns which slot, now. A request that looks more than once keeps what it saw first.
    pub fn slot_map(&self) -> Arc<SlotMap> {
        self.cluster.slot_map()
    }

    /// The nodes, and this one among them.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// What writes the access trace, if anything does.
    pub fn recorder(&self) -> Option<&Arc<Recorder>> {
        self.recorder.as_ref()
    }

    /// A request that begins: its number, and where it is recorded.
    fn next_request(&self) -> (u64, Option<Arc<RequestRecord>>) {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        (number, self.recorder.as_ref().map(|recorder| recorder.request(number)))
    }

    fn count_pruned(&self, row_groups: u64, meter: &ScanMeter) {
        self.metrics.row_groups_pruned.inc_by(row_groups);
        meter.row_groups_pruned.fetch_add(row_groups, Ordering::Relaxed);
    }
}

fn file_column(source: &ColumnSource) -> Option<usize> {
    match source {
        ColumnSource::File(column) => Some(*column),
        ColumnSource::Constant(_) => None,
    }
}

/// A schema as an encapsulated IPC message's header.
pub(crate) fn ipc_schema(schema: &Schema) -> Result<Vec<u8>> {
    let mut tracker = DictionaryTracker::new(false);
    let encoded =
        IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(schema, &mut tracker, &IpcWriteOptions::default());
    if encoded.ipc_message.is_empty() {
        return Err(Error::internal("the schema cannot be encoded"));
    }
    Ok(encoded.ipc_message)
}

fn parse_ipc_schema(bytes: &[u8]) -> Result<Schema> {
    let message =
        arrow::ipc::root_as_message(bytes).map_err(|e| Error::invalid(format!("ticket: its schema cannot be read: {e}")))?;
    let schema = message.header_as_schema().ok_or_else(|| Error::invalid("ticket: its schema is none"))?;
    // The converter trusts its input to name types it knows.
    let schema = std::panic::catch_unwind(|| arrow::ipc::convert::fb_to_schema(schema))
        .map_err(|_| Error::invalid("ticket: its schema has unknown types"))?;
    check_widths(&schema)?;
    Ok(schema)
}
