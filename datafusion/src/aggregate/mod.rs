//! Partial aggregates, computed where the rows are.
//!
//! ```text
//!  AggregateExec over a scan --rule--> a scan of states          at the client
//!                              |write
//!                              v
//!                          Aggregation --read--> AggregateExec over the rows of a share      at the server
//! ```

mod read;
mod rule;
#[cfg(test)]
mod tests;
mod write;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use datafusion::logical_expr::AggregateUDF;
use flightcache_proto::aggregation::AGGREGATES;

pub use read::{Bound, read};
pub use rule::AggregatePushdown;
pub(crate) use write::Pushed;

/// The aggregates that may be asked for, as `DataFusion` has them.
static BUILT_IN: LazyLock<HashMap<&'static str, Arc<AggregateUDF>>> = LazyLock::new(|| {
    let known = datafusion::functions_aggregate::all_default_aggregate_functions();
    AGGREGATES.iter().filter_map(|name| Some((*name, Arc::clone(known.iter().find(|known| known.name() == *name)?)))).collect()
});
