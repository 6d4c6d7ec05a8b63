//! Every metric: its name, unit, labels and meaning. And the meter of one scan.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flightcache_proto::ScanStats;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

/// Stage latencies: 50 µs to 26 s, in steps of two.
const STAGE_BUCKETS: (f64, f64, usize) = (50e-6, 2.0, 20);

macro_rules! metrics {
    (
        counters { $($counter:ident: $counter_name:literal, $counter_help:literal;)* }
        labelled { $($labelled:ident[$($label:literal),*]: $labelled_name:literal, $labelled_help:literal;)* }
        gauges { $($gauge:ident: $gauge_name:literal, $gauge_help:literal;)* }
        labelled_gauges { $($labelled_gauge:ident[$($gauge_label:literal),*]: $labelled_gauge_name:literal, $labelled_gauge_help:literal;)* }
        histograms { $($histogram:ident: $histogram_name:literal, $histogram_help:literal;)* }
    ) => {
        /// All metrics of one server, in a registry of its own.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $counter_help] pub $counter: IntCounter,)*
            $(#[doc = $labelled_help] pub $labelled: IntCounterVec,)*
            $(#[doc = $gauge_help] pub $gauge: IntGauge,)*
            $(#[doc = $labelled_gauge_help] pub $labelled_gauge: IntGaugeVec,)*
            $(#[doc = $histogram_help] pub $histogram: Histogram,)*
        }

        impl Metrics {
            /// Registers everything. Fails only if two metrics share a name.
            pub fn new() -> Result<Self, prometheus::Error> {
                let registry = Registry::new();
                $(let $counter = IntCounter::new($counter_name, $counter_help)?; registry.register(Box::new($counter.clone()))?;)*
                $(let $labelled = IntCounterVec::new(Opts::new($labelled_name, $labelled_help), &[$($label),*])?; registry.register(Box::new($labelled.clone()))?;)*
                $(let $gauge = IntGauge::new($gauge_name, $gauge_help)?; registry.register(Box::new($gauge.clone()))?;)*
                $(let $labelled_gauge = IntGaugeVec::new(Opts::new($labelled_gauge_name, $labelled_gauge_help), &[$($gauge_label),*])?; registry.register(Box::new($labelled_gauge.clone()))?;)*
                $(
                    let buckets = prometheus::exponential_buckets(STAGE_BUCKETS.0, STAGE_BUCKETS.1, STAGE_BUCKETS.2)?;
                    let $histogram = Histogram::with_opts(HistogramOpts::new($histogram_name, $histogram_help).buckets(buckets))?;
                    registry.register(Box::new($histogram.clone()))?;
                )*
                Ok(Self { registry, $($counter,)* $($labelled,)* $($gauge,)* $($labelled_gauge,)* $($histogram,)* })
            }
        }
    };
}

metrics! {
    counters {
        served_bytes: "flightcache_served_bytes_total", "Encoded bytes sent to clients";
        served_rows: "flightcache_served_rows_total", "Rows sent to clients";
        hit_bytes: "flightcache_chunk_hit_bytes_total", "Bytes of chunks found in the cache";
        miss_bytes: "flightcache_chunk_miss_bytes_total", "Decoded bytes of chunks that had to be read from the store";
        store_requests: "flightcache_store_requests_total", "Reads sent to object stores, retries not counted";
        store_http_requests: "flightcache_store_http_requests_total", "HTTP requests sent to object stores, retries and listings counted";
        store_bytes: "flightcache_store_bytes_total", "Bytes read from object stores";
        peer_chunks: "flightcache_peer_chunks_total", "Chunks that came from other servers of the cluster instead of the store";
        peer_bytes: "flightcache_peer_bytes_total", "Bytes that came from other servers of the cluster: arrays, Parquet, footers";
        peer_refusals: "flightcache_peer_refusals_total", "Row groups and footers that were not asked of other servers, since the bandwidth that is set for that would have had them wait too long";
        chunk_hits: "flightcache_chunk_hits_total", "Chunk look-ups that hit";
        chunk_misses: "flightcache_chunk_misses_total", "Chunk look-ups that missed, joined loads included";
        chunk_joins: "flightcache_chunk_joins_total", "Chunk look-ups that joined a load under way";
        evictions: "flightcache_cache_evictions_total", "Chunks evicted for space";
        rejections: "flightcache_cache_rejections_total", "Loaded chunks that were not kept";
        store_retries: "flightcache_store_retries_total", "Answers of object stores that are retried: 5xx, 408, 429 and broken connections";
        row_groups_pruned: "flightcache_row_groups_pruned_total", "Row groups skipped before all of their columns were read";
        cluster_view_changes: "flightcache_cluster_view_changes_total", "Times the slot map changed as this node sees it";
        gossip_refused: "flightcache_gossip_refused_total", "Gossip messages of other clusters, and answers that were not asked for";
        record_dropped: "flightcache_record_dropped_total", "Requests missing from the access trace, in whole or from some point on";
    }
    labelled {
        peer_pulls["ask", "status"]: "flightcache_peer_pulls_total", "Row groups and footers asked of other servers, by what was asked and how it ended";
        slot_touched_bytes["slots"]: "flightcache_slot_touched_bytes_total", "Bytes of chunks that were asked for, by range of slots; 64 KiB more for each request";
        requests["method", "status"]: "flightcache_requests_total", "Requests answered, by Flight method and gRPC status";
    }
    gauges {
        capacity_bytes: "flightcache_cache_capacity_bytes", "Capacity of the chunk cache";
        resident_bytes: "flightcache_cache_resident_bytes", "Bytes of resident chunks";
        in_flight_bytes: "flightcache_cache_in_flight_bytes", "Bytes reserved by loads under way";
        streaming_bytes: "flightcache_cache_streaming_bytes", "Bytes of evicted chunks that streams still hold";
        resident_chunks: "flightcache_cache_resident_chunks", "Resident chunks";
        footer_bytes: "flightcache_footer_resident_bytes", "Bytes of resident footers";
        resident_footers: "flightcache_footer_resident", "Resident footers";
        recommended_nodes: "flightcache_recommended_nodes", "Nodes the cluster should have, as this one sees it: by working set, hit rate, processors and network";
        active_scans: "flightcache_active_scans", "Scans being streamed";
        active_statements: "flightcache_active_statements", "SQL statements being streamed";
        cluster_epoch: "flightcache_cluster_epoch", "Epoch of the slot map";
        cluster_slots_preferred: "flightcache_cluster_slots_preferred", "Slots this node is the preferred owner of";
        cluster_slots_owned: "flightcache_cluster_slots_owned", "Slots this node is an owner of";
    }
    labelled_gauges {
        cluster_nodes["state"]: "flightcache_cluster_nodes", "Nodes that this node sees, by state";
    }
    histograms {
        plan_seconds: "flightcache_plan_seconds", "Time to plan a scan: listings, footers, pruning";
        fetch_seconds: "flightcache_fetch_seconds", "Time of one read from an object store, retries included";
        peer_wait_seconds: "flightcache_peer_wait_seconds", "Time that asking another server for a row group waited for the bandwidth that is set for that";
        decode_seconds: "flightcache_decode_seconds", "Time to decode one column chunk";
        filter_seconds: "flightcache_filter_seconds", "Time to evaluate a filter over one row group";
        encode_seconds: "flightcache_encode_seconds", "Time to encode one batch";
        first_batch_seconds: "flightcache_first_batch_seconds", "Time from request to the first batch";
        scan_seconds: "flightcache_scan_seconds", "Time from request to the end of a scan";
        statement_seconds: "flightcache_statement_seconds", "Time from request to the end of a SQL statement";
    }
}

impl Metrics {
    /// Prometheus' text format.
    pub fn render(&self) -> Result<String, String> {
        TextEncoder::new().encode_to_string(&self.registry.gather()).map_err(|e| e.to_string())
    }
}

macro_rules! meter {
    ($($field:ident),*) => {
        /// What one scan took, counted from whichever task works for it.
        #[derive(Debug, Default)]
        pub struct ScanMeter { $(pub(crate) $field: AtomicU64,)* }

        impl ScanMeter {
            /// The figures so far.
            pub fn snapshot(&self) -> ScanStats {
                ScanStats { $($field: self.$field.load(Ordering::Relaxed),)* }
            }

            /// Counts what a scan took that is part of this, but for what is told of its own answer.
            pub(crate) fn add(&self, part: &ScanStats) {
                let part = ScanStats { rows: 0, bytes: 0, versions: 0, ..*part };
                $(self.$field.fetch_add(part.$field, Ordering::Relaxed);)*
            }
        }
    };
}

meter!(
    rows,
    bytes,
    row_groups,
    row_groups_as_parquet,
    row_groups_pruned,
    chunks_hit,
    chunks_missed,
    chunks_pulled,
    store_bytes,
    store_requests,
    fetch_us,
    decode_us,
    filter_us,
    aggregate_us,
    encode_us,
    versions
);

impl ScanMeter {
    /// Chunks that came from another server.
    pub(crate) fn pulled(&self, chunks: u64) {
        self.chunks_pulled.fetch_add(chunks, Ordering::Relaxed);
    }

    /// One read from a store.
    pub fn fetched(&self, bytes: u64, elapsed: Duration) {
        self.store_requests.fetch_add(1, Ordering::Relaxed);
        self.store_bytes.fetch_add(bytes, Ordering::Relaxed);
        add_time(&self.fetch_us, elapsed);
    }
}

/// Adds a duration to a counter of microseconds.
pub(crate) fn add_time(counter: &AtomicU64, elapsed: Duration) {
    counter.fetch_add(elapsed.as_micros() as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_prefixed() {
        let metrics = Metrics::new().unwrap();
        metrics.requests.with_label_values(&["do_get", "ok"]).inc();
        metrics.cluster_nodes.with_label_values(&["active"]).set(1);
        let families = metrics.registry.gather();
        let names: std::collections::HashSet<_> = families.iter().map(|family| family.name().to_owned()).collect();
        assert_eq!(names.len(), families.len());
        assert!(names.iter().all(|name| name.starts_with("flightcache_")));
        assert!(metrics.render().unwrap().contains("flightcache_requests_total{method=\"do_get\",status=\"ok\"} 1"));
    }
}
