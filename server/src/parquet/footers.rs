//! Footers by URL: a byte-bounded cache of its own, revalidated as the source's freshness asks, read once whoever asks.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flightcache_proto::action::{MAX_RENEWED, RenewedObject};
use flightcache_proto::{Error, Result, Version};
use futures::FutureExt as _;
use futures::future::{Shared, WeakShared};
use lru::LruCache;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::footer::{Footer, FooterRead};
use crate::admin::ScanMeter;
use crate::object::{FetchLimits, Freshness, ObjectRef};

/// First guess for the suffix read: the footers, page index included, of most files.
const DEFAULT_HINT_BYTES: u64 = 64 << 10;
/// The largest guess a remembered size may lead to.
const MAX_HINT_BYTES: u64 = 4 << 20;
/// Objects that are not larger are read whole, footer and data in one request, once their directory is known to hold such: at
/// 100 MB/s that costs less than another request.
const MAX_WHOLE_BYTES: u64 = 2 << 20;

type Read = Pin<Box<dyn Future<Output = Result<Arc<Footer>>> + Send>>;

/// The footer cache.
///
/// `state` guards map operations only, never I/O. Reads under way are shared futures that only their callers hold: when the
/// last caller leaves, the read stops.
pub struct Footers {
    state: Mutex<State>,
    capacity_bytes: usize,
    whole_capacity_bytes: usize,
    limits: FetchLimits,
    /// Told of objects that turned out overwritten; what it has no room for is not told.
    renewed: mpsc::Sender<RenewedObject>,
}

struct State {
    resident: LruCache<Arc<str>, Resident>,
    resident_bytes: usize,
    under_way: HashMap<Arc<str>, WeakShared<Read>>,
    /// What the objects of a directory were like.
    hints: LruCache<String, Hint>,
    /// Objects that came whole with their footers, until their data is asked for.
    whole: LruCache<Arc<str>, Whole>,
    whole_bytes: usize,
    /// Grows with every eviction on request, so that a read begun before it is not kept.
    generation: u64,
}

struct Whole {
    version: Version,
    bytes: Bytes,
    /// Row groups whose data has not been asked for yet.
    row_groups_left: usize,
}

#[derive(Clone, Copy)]
struct Hint {
    /// The longest metadata, in bytes from the end.
    tail_bytes: u64,
    /// Size of the last object, in bytes.
    size: u64,
}

impl Hint {
    fn suffix_bytes(self, may_be_whole: bool) -> u64 {
        let whole = if may_be_whole && self.size <= MAX_WHOLE_BYTES { self.size + self.size / 4 } else { 0 };
        self.tail_bytes.max(whole)
    }
}

#[derive(Clone)]
struct Resident {
    footer: Arc<Footer>,
    /// When the request that last confirmed this version was sent.
    confirmed_at: Instant,
}

impl Footers {
    /// A cache of at most `capacity_bytes`, a quarter of it for small objects that came whole; and who tells of objects that turned
    /// out overwritten.
    pub fn new(capacity_bytes: usize, limits: FetchLimits) -> (Arc<Self>, mpsc::Receiver<RenewedObject>) {
        let (renewed, told) = mpsc::channel(MAX_RENEWED);
        let hints = LruCache::new(std::num::NonZeroUsize::new(4_096).unwrap_or(std::num::NonZeroUsize::MIN));
        let state = State {
            resident: LruCache::unbounded(),
            resident_bytes: 0,
            under_way: HashMap::new(),
            hints,
            whole: LruCache::unbounded(),
            whole_bytes: 0,
            generation: 0,
        };
        let whole_capacity_bytes = capacity_bytes / 4;
        let capacity_bytes = capacity_bytes - whole_capacity_bytes;
        (Arc::new(Self { state: Mutex::new(state), capacity_bytes, whole_capacity_bytes, limits, renewed }), told)
    }

    /// The footer of a version that the source's freshness lets us serve.
    ///
    /// `listed` is what a listing said, and when it was asked: it saves asking the store again.
    pub async fn get(
        self: &Arc<Self>,
        object: &ObjectRef,
        listed: Option<(&Version, Instant)>,
        meter: &Arc<ScanMeter>,
    ) -> Result<Arc<Footer>> {
        let freshness = object.source().freshness();
        let arrived_at = Instant::now();
        loop {
            let (known, read) = {
                let mut state = self.lock();
                let known = state.resident.get_mut(object.url()).map(|resident| {
                    if let Some((version, asked_at)) = listed
                        && resident.footer.version() == Some(version)
                    {
                        resident.confirmed_at = resident.confirmed_at.max(asked_at);
                    }
                    resident.clone()
                });
                if let Some(resident) = &known {
                    // A version confirmed after this request arrived is as fresh as can be asked for.
                    if resident.confirmed_at >= arrived_at || freshness.covers(arrived_at.duration_since(resident.confirmed_at)) {
                        return Ok(Arc::clone(&resident.footer));
                    }
                }
                // Under `always` a read that began before this request may answer with what was true before it.
                let join = freshness != Freshness::Always;
                let read = join.then(|| state.under_way.get(object.url()).and_then(WeakShared::upgrade)).flatten();
                // Of a listing's many objects, none would be kept until its data is asked for.
                let may_be_whole = listed.is_none() && known.is_none();
                let known_footer = || known.as_ref().map(|known| Arc::clone(&known.footer));
                let read = read.unwrap_or_else(|| self.begin(&mut state, object, known_footer(), may_be_whole, meter));
                (known, read)
            };
            let footer = read.await?;
            let fresh_enough = match freshness {
                Freshness::Immutable | Freshness::Always => true,
                // A joined read may have begun earlier than the bound allows; then ask again.
                Freshness::Ttl(ttl) => {
                    ttl.is_zero() || known.is_none() || arrived_at.elapsed() <= ttl || self.is_fresh(object, arrived_at)
                }
            };
            if fresh_enough {
                return Ok(footer);
            }
        }
    }

    /// The footer of a version, told by its display form, for who knows that it is fresh enough. If it is not known here, the current
    /// version's.
    pub async fn of_version(self: &Arc<Self>, object: &ObjectRef, version: &str, meter: &Arc<ScanMeter>) -> Result<Arc<Footer>> {
        let read = {
            let mut state = self.lock();
            let known = state.resident.get(object.url()).map(|known| Arc::clone(&known.footer));
            match known {
                Some(footer) if footer.version().is_some_and(|known| known.to_string() == version) => return Ok(footer),
                known => {
                    let under_way = state.under_way.get(object.url()).and_then(WeakShared::upgrade);
                    under_way.unwrap_or_else(|| self.begin(&mut state, object, known, false, meter))
                }
            }
        };
        read.await
    }

    /// Begins a read that others may join.
    fn begin(
        self: &Arc<Self>,
        state: &mut State,
        object: &ObjectRef,
        known: Option<Arc<Footer>>,
        may_be_whole: bool,
        meter: &Arc<ScanMeter>,
    ) -> Shared<Read> {
        let read = self.start(object.clone(), known, may_be_whole, state.generation, meter);
        state.under_way.retain(|_, read| read.upgrade().is_some());
        if let Some(weak) = read.downgrade() {
            state.under_way.insert(object.shared_url(), weak);
        }
        read
    }

    fn is_fresh(&self, object: &ObjectRef, arrived_at: Instant) -> bool {
        let freshness = object.source().freshness();
        let state = self.lock();
        let resident = state.resident.peek(object.url());
        resident.is_none_or(|resident| {
            resident.confirmed_at >= arrived_at || freshness.covers(arrived_at.duration_since(resident.confirmed_at))
        })
    }

    fn start(
        self: &Arc<Self>,
        object: ObjectRef,
        known: Option<Arc<Footer>>,
        may_be_whole: bool,
        generation: u64,
        meter: &Arc<ScanMeter>,
    ) -> Shared<Read> {
        let (this, meter) = (Arc::clone(self), Arc::clone(meter));
        let task =
            AbortOnDropHandle::new(tokio::spawn(async move { this.read(object, known, may_be_whole, generation, &meter).await }));
        let read: Read =
            Box::pin(async move { task.await.unwrap_or_else(|e| Err(Error::internal(format!("footer read ended early: {e}")))) });
        read.shared()
    }

    async fn read(
        &self,
        object: ObjectRef,
        known: Option<Arc<Footer>>,
        may_be_whole: bool,
        generation: u64,
        meter: &ScanMeter,
    ) -> Result<Arc<Footer>> {
        let directory = object.url().rsplit_once('/').map_or("", |(directory, _)| directory).to_owned();
        let hint = self.lock().hints.get(&directory).copied();
        let hint_bytes = hint.map_or(DEFAULT_HINT_BYTES, |hint| hint.suffix_bytes(may_be_whole));
        let sent_at = Instant::now();
        let version = known.as_ref().and_then(|known| known.version());
        let (footer, whole) = match (Footer::read(&object, version, hint_bytes, &self.limits, meter).await?, &known) {
            (FooterRead::Read { footer, whole }, _) => (Arc::<Footer>::from(footer), whole),
            (FooterRead::NotModified, Some(known)) => (Arc::clone(known), None),
            (FooterRead::NotModified, None) => {
                return Err(Error::internal(format!("{}: not modified, though nothing was known", object.url())));
            }
        };
        if known.is_some_and(|known| known.version() != footer.version()) {
            self.tell(object.url(), footer.version());
        }
        let mut state = self.lock();
        let mut tail_bytes = hint.map_or(DEFAULT_HINT_BYTES, |hint| hint.tail_bytes);
        // What was read is the least that can be said of metadata that was covered at once.
        if footer.tail_bytes > hint_bytes {
            tail_bytes = tail_bytes.max(footer.tail_bytes.next_multiple_of(4 << 10)).min(MAX_HINT_BYTES);
        }
        state.hints.put(directory, Hint { tail_bytes, size: footer.size });
        let weight = footer.weight_bytes();
        if footer.id.is_some() && state.generation == generation && weight <= self.capacity_bytes {
            let newer = state.resident.peek(object.url()).is_some_and(|resident| resident.confirmed_at > sent_at);
            if !newer {
                state.resident_bytes += weight;
                let resident = Resident { footer: Arc::clone(&footer), confirmed_at: sent_at };
                if let Some((_, old)) = state.resident.push(object.shared_url(), resident) {
                    state.resident_bytes -= old.footer.weight_bytes();
                }
            }
            while state.resident_bytes > self.capacity_bytes {
                let Some((_, old)) = state.resident.pop_lru() else { break };
                state.resident_bytes -= old.footer.weight_bytes();
            }
            if let (Some(bytes), Some(version)) = (whole, footer.version()) {
                state.whole_bytes += bytes.len();
                let whole = Whole { version: version.clone(), bytes, row_groups_left: footer.metadata.num_row_groups() };
                if let Some((_, old)) = state.whole.push(object.shared_url(), whole) {
                    state.whole_bytes -= old.bytes.len();
                }
                while state.whole_bytes > self.whole_capacity_bytes {
                    let Some((_, old)) = state.whole.pop_lru() else { break };
                    state.whole_bytes -= old.bytes.len();
                }
            }
        }
        Ok(footer)
    }

    /// Whether the bytes of an object came whole with this footer, and are there.
    pub fn has_whole(&self, footer: &Footer) -> bool {
        self.lock().whole.peek(footer.object.url()).is_some_and(|whole| footer.version() == Some(&whole.version))
    }

    /// The bytes of an object that came whole with this footer, for whoever first asks for a row group's data.
    pub fn take_whole(&self, footer: &Footer) -> Option<Bytes> {
        let mut state = self.lock();
        let whole = state.whole.get_mut(footer.object.url())?;
        whole.row_groups_left = whole.row_groups_left.saturating_sub(1);
        let bytes = (footer.version() == Some(&whole.version)).then(|| whole.bytes.clone());
        if whole.row_groups_left == 0 || bytes.is_none() {
            state.whole_bytes -= state.whole.pop(footer.object.url()).map_or(0, |gone| gone.bytes.len());
        }
        bytes
    }

    /// Forgets one object, so that its next use asks the store.
    pub fn forget(&self, url: &str) {
        self.forget_if(|candidate| candidate == url);
    }

    /// The same for one that a read found overwritten, or gone.
    pub fn forget_changed(&self, url: &str) {
        self.forget(url);
        self.tell(url, None);
    }

    /// Forgets objects of which somebody saw another version than is known here. Returns how many there were.
    pub fn forget_renewed(&self, objects: &[RenewedObject]) -> u64 {
        let is_other = |object: &&RenewedObject| {
            let state = self.lock();
            let known = state.resident.peek(&*object.url).and_then(|known| known.footer.version());
            known.is_some_and(|known| object.version.as_ref() != Some(&known.to_string()))
        };
        let others: HashSet<&str> = objects.iter().filter(is_other).map(|object| object.url.as_str()).collect();
        if others.is_empty() { 0 } else { self.forget_if(|url| others.contains(url)) }
    }

    fn tell(&self, url: &str, version: Option<&Version>) {
        // Others find out by themselves, if later.
        let _ = self.renewed.try_send(RenewedObject { url: url.to_owned(), version: version.map(ToString::to_string) });
    }

    /// Forgets every object whose URL matches, and whatever reads under way bring. Returns how many were resident.
    pub fn forget_if(&self, matches: impl Fn(&str) -> bool) -> u64 {
        let mut state = self.lock();
        state.generation += 1;
        state.under_way.retain(|url, _| !matches(url));
        let whole: Vec<_> = state.whole.iter().map(|(url, _)| Arc::clone(url)).filter(|url| matches(url)).collect();
        for url in whole {
            state.whole_bytes -= state.whole.pop(&url).map_or(0, |gone| gone.bytes.len());
        }
        let gone: Vec<_> = state.resident.iter().map(|(url, _)| Arc::clone(url)).filter(|url| matches(url)).collect();
        for url in &gone {
            if let Some(old) = state.resident.pop(url) {
                state.resident_bytes -= old.footer.weight_bytes();
            }
        }
        gone.len() as u64
    }

    /// All resident footers.
    pub fn resident(&self) -> Vec<Arc<Footer>> {
        self.lock().resident.iter().map(|(_, resident)| Arc::clone(&resident.footer)).collect()
    }

    /// Number and bytes of resident footers.
    pub fn usage(&self) -> (usize, usize) {
        let state = self.lock();
        (state.resident.len(), state.resident_bytes)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
