//! Plans that were made, for tickets that come again: dashboards ask the same things over and over, and a small answer takes
//! less time than its plan.
//!
//! A plan follows from its ticket and its footers, so it is asked for with both: what the source's freshness demands has been
//! done by then, and a plan of any other version is none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flightcache_proto::{ScanRequest, Ticket};
use lru::LruCache;

use super::plan::ScanPlan;
use crate::parquet::Footer;

/// Longer filters are not kept: what they take is not known.
const MAX_FILTER_BYTES: usize = 4 << 10;
/// What a plan takes, about: itself, and each field of its table.
const PLAN_BYTES: usize = 4 << 10;
const FIELD_BYTES: usize = 512;

/// Plans by ticket, least recently used ones let go.
///
/// The lock guards map operations only.
pub(super) struct KeptPlans {
    state: Mutex<State>,
    capacity_bytes: usize,
}

struct State {
    plans: LruCache<Ticket, Kept>,
    bytes: usize,
}

struct Kept {
    plan: Arc<ScanPlan>,
    bytes: usize,
}

impl KeptPlans {
    /// Room for so many bytes, the footers that plans hold included.
    pub(super) fn new(capacity_bytes: usize) -> Self {
        Self { state: Mutex::new(State { plans: LruCache::unbounded(), bytes: 0 }), capacity_bytes }
    }

    /// The plan of a ticket, if it was made on these footers.
    pub(super) fn get<'a>(
        &self,
        ticket: &Ticket,
        footers: impl ExactSizeIterator<Item = &'a Arc<Footer>>,
    ) -> Option<Arc<ScanPlan>> {
        let mut state = self.lock();
        let kept = &state.plans.get(ticket)?.plan;
        let is_same = kept.objects.len() == footers.len()
            && kept.objects.iter().zip(footers).all(|(object, footer)| Arc::ptr_eq(&object.footer, footer));
        is_same.then(|| Arc::clone(kept))
    }

    /// Keeps a plan, unless it is large or would not hold for the next request.
    pub(super) fn keep(&self, ticket: &Ticket, plan: &Arc<ScanPlan>) {
        let request = &plan.request;
        let is_large = request.rows.is_some() || request.filter.as_ref().is_some_and(|filter| filter.len() > MAX_FILTER_BYTES);
        // A share says what `now()` means; a scan does not.
        let is_of_its_time =
            matches!(ticket, Ticket::Scan(_)) && plan.predicate.as_ref().is_some_and(|predicate| predicate.depends_on_time());
        let bytes = bytes_of(ticket, plan);
        if is_large || is_of_its_time || bytes > self.capacity_bytes {
            return;
        }
        let mut state = self.lock();
        state.bytes += bytes;
        if let Some((_, old)) = state.plans.push(ticket.clone(), Kept { plan: Arc::clone(plan), bytes }) {
            state.bytes -= old.bytes;
        }
        while state.bytes > self.capacity_bytes {
            let Some((_, old)) = state.plans.pop_lru() else { break };
            state.bytes -= old.bytes;
        }
    }

    /// Lets all of them go.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        state.plans.clear();
        state.bytes = 0;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes_of(ticket: &Ticket, plan: &ScanPlan) -> usize {
    let names = |request: &ScanRequest| request.columns.iter().flatten().map(|name| name.len() + 32).sum::<usize>();
    let (request, parts) = match ticket {
        Ticket::Scan(request) => (request, 0),
        Ticket::Share(share) => {
            let objects =
                share.objects.iter().map(|object| object.url.len() + 128 + object.row_groups.iter().flatten().count() * 4);
            (&share.scan, objects.sum::<usize>() + share.schema.as_ref().map_or(0, Vec::len))
        }
    };
    let objects = plan.objects.iter().map(|object| object.footer.weight_bytes() + object.row_groups.len() * 4 + 128);
    let fields = plan.table.fields().len() + plan.schema.fields().len();
    PLAN_BYTES + fields * FIELD_BYTES + request.url.len() + 2 * names(request) + parts + objects.sum::<usize>()
}
