//! Integration: a server in process on a port of its own, the real client over a real socket, and a store that can be told to
//! count, stall, fail, and change under the reader's feet.

mod aggregates;
mod cluster;
mod dictionaries;
mod exchange;
mod faults;
mod footers;
mod hostile;
mod memory;
mod parquet_rows;
mod peer_asks;
mod peer_faults;
mod peers;
mod plans;
mod pushdown;
mod random_types;
mod record;
mod requests;
mod reroute;
mod residency;
mod shared_tables;
mod sql;
mod sql_bounds;
mod store;
mod support;
mod tables;
mod unix;
