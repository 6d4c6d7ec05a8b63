//! Plans that were made, for tickets that come again: dashboards ask the same things over and over, and a small answer takes
//! less time than its plan.
//!
//! A plan follows from its ticket and its footers, so it is asked for with both: what the source's freshness demands has been
//! done by then, and a plan of any other version is none.

use std::hash::{BuildHasher as _, RandomState};
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
/// What each byte of a filter becomes, about: an expression as announced and one as it is evaluated, of literals of a few bytes.
const BYTES_PER_FILTER_BYTE: usize = 256;

/// Plans by ticket, least recently used ones let go.
///
/// The lock guards map operations only: tickets may be long, so they are hashed before, compared and dropped after.
pub(super) struct KeptPlans {
    state: Mutex<State>,
    hashes: RandomState,
    capacity_bytes: usize,
}

struct State {
    /// By their tickets' hashes: of two tickets with one hash, the later is kept.
    plans: LruCache<u64, Kept>,
    bytes: usize,
}

struct Kept {
    ticket: Arc<Ticket>,
    plan: Arc<ScanPlan>,
    bytes: usize,
}

impl KeptPlans {
    /// Room for so many bytes, the footers that plans hold included.
    pub(super) fn new(capacity_bytes: usize) -> Self {
        let state = Mutex::new(State { plans: LruCache::unbounded(), bytes: 0 });
        Self { state, hashes: RandomState::new(), capacity_bytes }
    }

    /// The plan of a ticket, if it was made on these footers.
    pub(super) fn get<'a>(
        &self,
        ticket: &Ticket,
        footers: impl ExactSizeIterator<Item = &'a Arc<Footer>>,
    ) -> Option<Arc<ScanPlan>> {
        if is_never_kept(ticket.request()) {
            return None;
        }
        let hash = self.hashes.hash_one(ticket);
        let (of, plan) = self.lock().plans.get(&hash).map(|kept| (Arc::clone(&kept.ticket), Arc::clone(&kept.plan)))?;
        let is_same = plan.objects.len() == footers.len()
            && plan.objects.iter().zip(footers).all(|(object, footer)| Arc::ptr_eq(&object.footer, footer));
        (is_same && *of == *ticket).then_some(plan)
    }

    /// Keeps a plan, unless it is large or would not hold for the next request.
    pub(super) fn keep(&self, ticket: &Ticket, plan: &Arc<ScanPlan>) {
        // The shares of a flight say what `now()` means; a scan does not.
        let is_of_now = match ticket {
            Ticket::Scan(_) => true,
            Ticket::Share(share) => share.asked_at_us == 0,
        };
        let is_of_its_time = is_of_now && plan.predicate.as_ref().is_some_and(|predicate| predicate.depends_on_time());
        if is_never_kept(&plan.request) || is_of_its_time {
            return;
        }
        let bytes = bytes_of(ticket, plan);
        if bytes > self.capacity_bytes {
            return;
        }
        let hash = self.hashes.hash_one(ticket);
        let kept = Kept { ticket: Arc::new(ticket.clone()), plan: Arc::clone(plan), bytes };
        let mut let_go = Vec::new();
        let mut state = self.lock();
        state.bytes += bytes;
        if let Some((_, old)) = state.plans.push(hash, kept) {
            state.bytes -= old.bytes;
            let_go.push(old);
        }
        while state.bytes > self.capacity_bytes {
            let Some((_, old)) = state.plans.pop_lru() else { break };
            state.bytes -= old.bytes;
            let_go.push(old);
        }
        drop(state);
        drop(let_go);
    }

    /// Lets all of them go.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        let let_go = std::mem::replace(&mut state.plans, LruCache::unbounded());
        state.bytes = 0;
        drop(state);
        drop(let_go);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the plans of a request are not worth their room.
fn is_never_kept(request: &ScanRequest) -> bool {
    request.rows.is_some() || filter_bytes(request) > MAX_FILTER_BYTES
}

fn filter_bytes(request: &ScanRequest) -> usize {
    let sent = request.predicate.iter().chain(&request.aggregation).map(Vec::len).sum::<usize>();
    request.filter.as_ref().map_or(0, String::len) + sent
}

fn bytes_of(ticket: &Ticket, plan: &ScanPlan) -> usize {
    let names = |request: &ScanRequest| request.columns.iter().flatten().map(|name| name.len() + 32).sum::<usize>();
    let request = ticket.request();
    let parts = match ticket {
        Ticket::Scan(_) => 0,
        Ticket::Share(share) => {
            let objects =
                share.objects.iter().map(|object| object.url.len() + 128 + object.row_groups.iter().flatten().count() * 4);
            objects.sum::<usize>() + share.schema.as_ref().map_or(0, Vec::len)
        }
    };
    let filter = filter_bytes(request) * BYTES_PER_FILTER_BYTE;
    let objects = plan.objects.iter().map(|object| object.footer.weight_bytes() + object.row_groups.len() * 4 + 128);
    let fields = plan.table.fields().len() + plan.schema.fields().len();
    PLAN_BYTES + fields * FIELD_BYTES + filter + request.url.len() + 2 * names(request) + parts + objects.sum::<usize>()
}
