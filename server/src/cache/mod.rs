//! A byte-capacity cache with single flight. Knows neither object stores nor Parquet.
//!
//! ```text
//!             lookup(key)                      permit.complete(value)
//!  request ------------------> Partition <--------------------------- load task
//!            Hit | Wait | Lead  probation, protected LRU, ghosts, in-flight records
//!                                   |  all partitions, one
//!                                 Budget: resident + in-flight + streaming bytes
//! ```
//!
//! - **Order.** Segmented LRU (Karedla, Love, Wherry: *Caching Strategies to Improve Disk System Performance*, 1994). A new
//!   entry is on probation; use by a second request protects it. Victims come from probation, as long as the protected hold
//!   no more than a share of the capacity; beyond that the older of the two tails goes, as in plain LRU. So a scan, however
//!   long, whose entries do not come back within a capacity of bytes, leaves that share of the protected: those used last.
//!   A protected share of 0 makes it plain LRU.
//! - **Ghosts.** Keys of evicted entries (as in 2Q; Johnson, Shasha, VLDB 1994). An evicted entry that another request asks
//!   for before as many more bytes were admitted as were protected when it went, is protected as soon as it is loaded again.
//!   Probation and ghosts together thus reach as far back as plain LRU of the same capacity: what that would find again and
//!   again is missed once more, then found. Protected entries therefore need not age: what LRU could find displaces them,
//!   and for anything else they need not go. Bytes admitted to all partitions are the clock.
//! - **Derived entries.** What can be made again of another entry, its source, is in segments of its own: used once, or used
//!   again. It gives way to sources, the former to any, the latter to protected ones. To enter a full cache it may displace
//!   derived entries whose uses count for less, by more than one, and sources that were used once and then not for long; uses
//!   halve each time as many bytes of sources were used as the cache may hold. So of a circle of entries that do not all fit, sources
//!   stay, and of what is made of them some, rather than each only until it would have been used again.
//! - **One budget.** Every use stamps an entry with a tick of one clock. A victim is taken from the partition whose oldest
//!   tick is the smallest, which makes the order global, and lets a hot partition take space from a cold one. Ticks are read
//!   without locks: a victim may be younger than the globally oldest entry only by uses that happened between reading the
//!   ticks and locking the partition. With one thread the order is exact.
//! - **Locks.** Each partition has one mutex, the budget has one. A partition's is never taken while another partition's or
//!   the budget's is held; the budget's is taken last. None is held across an await. What runs of the caller's code under
//!   one: a key's `Hash`, `Eq` and `Clone`, the predicate of [`Cache::remove_if`], the visitor of
//!   [`Cache::for_each_resident`]. Values are dropped outside.
//! - **Waiting for memory.** Who waits for a load while holding other entries may wait for others who do the same: evicted
//!   entries in use cannot be freed. The time limit of [`Cache::reserve`] ends that; a reserve for what all requests can hold
//!   at once prevents it.
//! - **Cancel, error, panic.** A load runs in a task of its own that only those who wait for it keep alive. When the last
//!   one leaves it is aborted. A permit that is dropped for whatever reason removes its record, and whoever still waits
//!   learns that the load was abandoned.
//!
//! Reading order: `budget`, `entry`, `partition`, `flight`, `lookup`, `evict`, `reserve`, `stats`; `weight` stands alone.

mod budget;
mod entry;
mod evict;
mod flight;
mod lookup;
mod partition;
mod reserve;
mod stats;
#[cfg(test)]
mod tests;
mod weight;

pub use budget::{Budget, Usage};
pub use entry::{Entry, Pinned};
pub use flight::{Flight, FlightError, LoadGroup, Permit};
pub use lookup::{Cache, CacheConfig, CacheKey, DerivedLookup, DerivedUse, Lookup};
pub use reserve::{Reservation, ReserveError};
pub use stats::CacheStats;
pub use weight::{buffers_weight, compact};
