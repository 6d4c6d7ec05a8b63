//! Footers by URL: a byte-bounded cache of its own, revalidated as the source's freshness asks, read once whoever asks.
//!
//! Where nothing is known of an object, somebody else may tell its footer before the store is asked. That is taken only if the store
//! confirmed its version recently enough for what is asked here: told, it is as old as it was there.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flightcache_proto::action::{MAX_RENEWED, RenewedObject};
use flightcache_proto::{Error, Result, Version};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use lru::LruCache;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::footer::{Footer, FooterRead};
use crate::admin::ScanMeter;
use crate::object::{FetchLimits, Freshness, ObjectRef, Segments};

/// First guess for the suffix read: the footers, page index included, of most files.
const DEFAULT_HINT_BYTES: u64 = 64 << 10;
/// The largest guess a remembered size may lead to.
const MAX_HINT_BYTES: u64 = 4 << 20;
/// Objects that are not larger are read whole, footer and data in one request, once their directory is known to hold such: at
/// 100 MB/s that costs less than another request.
const MAX_WHOLE_BYTES: u64 = 2 << 20;
/// Objects of which it is remembered when they were forgotten; for others it is the last time that any was.
const MAX_FORGOTTEN: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();

type Read = Pin<Box<dyn Future<Output = Result<Resident>> + Send>>;

/// A footer that somebody else has: the bytes it is parsed of, the version they are of, and since when that is known to be current.
pub struct Told {
    pub version: Version,
    pub size: u64,
    pub tail: Segments,
    pub confirmed_at: Instant,
}

/// Which footer is of use.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Of this version only, by its display form.
    pub version: Option<String>,
    /// Of a version that the store confirmed since.
    pub since: Option<Instant>,
}

impl Wanted {
    fn takes(&self, told: &Told) -> bool {
        self.version.as_ref().is_none_or(|version| *version == told.version.to_string())
            && self.since.is_none_or(|since| told.confirmed_at >= since)
    }
}

/// Asks others. Nothing begins before it is polled.
pub type Elsewhere = BoxFuture<'static, Option<Told>>;

/// Where only the store is to be asked.
pub fn nowhere(_: Wanted) -> Elsewhere {
    std::future::ready(None).boxed()
}

/// What is asked of others, and what they are believed.
struct Hearsay {
    told: Elsewhere,
    wanted: Wanted,
    /// The store confirmed the version that is wanted, whatever they know.
    confirmed_at: Option<Instant>,
}

/// The footer cache.
///
/// `state` guards map operations only, never I/O. Reads under way are shared futures that only their callers hold: when the
/// last caller leaves, the read stops.
pub struct Footers {
    state: Mutex<State>,
    capacity_bytes: usize,
    whole_capacity_bytes: usize,
    limits: FetchLimits,
    /// Others may ask for what footers were read of.
    keeps_tails: bool,
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
    /// When objects were forgotten, some of them by name: what others knew before is no use.
    forgotten: LruCache<String, Instant>,
    any_forgotten_at: Option<Instant>,
}

impl State {
    /// A read under way. Of one that is over, whoever finds its answer too old would find the same again.
    fn joinable(&self, url: &str) -> Option<Shared<Read>> {
        self.under_way.get(url).and_then(WeakShared::upgrade).filter(|read| read.peek().is_none())
    }

    fn forgotten_at(&self, url: &str) -> Option<Instant> {
        self.forgotten.peek(url).copied().max(self.any_forgotten_at)
    }
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
    pub fn new(capacity_bytes: usize, limits: FetchLimits, keeps_tails: bool) -> (Arc<Self>, mpsc::Receiver<RenewedObject>) {
        let (renewed, told) = mpsc::channel(MAX_RENEWED);
        let hints = LruCache::new(NonZeroUsize::new(4_096).unwrap_or(NonZeroUsize::MIN));
        let state = State {
            resident: LruCache::unbounded(),
            resident_bytes: 0,
            under_way: HashMap::new(),
            hints,
            whole: LruCache::unbounded(),
            whole_bytes: 0,
            generation: 0,
            forgotten: LruCache::new(MAX_FORGOTTEN),
            any_forgotten_at: None,
        };
        let whole_capacity_bytes = capacity_bytes / 4;
        let capacity_bytes = capacity_bytes - whole_capacity_bytes;
        (Arc::new(Self { state: Mutex::new(state), capacity_bytes, whole_capacity_bytes, limits, keeps_tails, renewed }), told)
    }

    /// The footer of a version that the source's freshness lets us serve.
    ///
    /// `listed` is what a listing said, and when it was asked: it saves asking the store again. So does `elsewhere`, where nothing is
    /// known here.
    pub async fn get(
        self: &Arc<Self>,
        object: &ObjectRef,
        listed: Option<(&Version, Instant)>,
        elsewhere: impl Fn(Wanted) -> Elsewhere,
        meter: &Arc<ScanMeter>,
    ) -> Result<Arc<Footer>> {
        let freshness = object.source().freshness();
        let arrived_at = Instant::now();
        // A version confirmed after this request arrived is as fresh as can be asked for.
        let is_fresh =
            |confirmed_at: Instant| confirmed_at >= arrived_at || freshness.covers(arrived_at.duration_since(confirmed_at));
        loop {
            let read = {
                let mut state = self.lock();
                let known = state.resident.get_mut(object.url()).map(|resident| {
                    if let Some((version, asked_at)) = listed
                        && resident.footer.version() == Some(version)
                    {
                        resident.confirmed_at = resident.confirmed_at.max(asked_at);
                    }
                    resident.clone()
                });
                if let Some(resident) = known.as_ref().filter(|resident| is_fresh(resident.confirmed_at)) {
                    return Ok(Arc::clone(&resident.footer));
                }
                // Under `always` a read that began before this request may answer with what was true before it.
                let join = freshness != Freshness::Always;
                let read = join.then(|| state.joinable(object.url())).flatten();
                // Of a listing's many objects, none would be kept until its data is asked for.
                let may_be_whole = listed.is_none() && known.is_none();
                read.unwrap_or_else(|| {
                    let hearsay = known.is_none().then(|| {
                        let forgotten_at = state.forgotten_at(object.url());
                        Hearsay::new(freshness, arrived_at, forgotten_at, listed, &elsewhere)
                    });
                    let known = known.map(|known| known.footer);
                    self.begin(&mut state, object, known, hearsay.flatten(), may_be_whole, meter)
                })
            };
            let read = read.await?;
            // A joined read may have begun earlier than the bound allows, or have been told what is older; then ask again.
            if is_fresh(read.confirmed_at) {
                return Ok(read.footer);
            }
        }
    }

    /// The footer of a version, told by its display form, for who knows that it is fresh enough. If it is not known here, or `elsewhere`,
    /// the current version's.
    pub async fn of_version(
        self: &Arc<Self>,
        object: &ObjectRef,
        version: &str,
        elsewhere: impl Fn(Wanted) -> Elsewhere,
        meter: &Arc<ScanMeter>,
    ) -> Result<Arc<Footer>> {
        let read = {
            let mut state = self.lock();
            let known = state.resident.get(object.url()).map(|known| Arc::clone(&known.footer));
            match known {
                Some(footer) if footer.version().is_some_and(|known| known.to_string() == version) => return Ok(footer),
                known => state.joinable(object.url()).unwrap_or_else(|| {
                    let hearsay = known.is_none().then(|| {
                        let wanted = Wanted { version: Some(version.to_owned()), since: state.forgotten_at(object.url()) };
                        Hearsay { told: elsewhere(wanted.clone()), wanted, confirmed_at: None }
                    });
                    self.begin(&mut state, object, known, hearsay, false, meter)
                }),
            }
        };
        Ok(read.await?.footer)
    }

    /// Begins a read that others may join.
    fn begin(
        self: &Arc<Self>,
        state: &mut State,
        object: &ObjectRef,
        known: Option<Arc<Footer>>,
        hearsay: Option<Hearsay>,
        may_be_whole: bool,
        meter: &Arc<ScanMeter>,
    ) -> Shared<Read> {
        let read = self.start(object.clone(), known, hearsay, may_be_whole, state.generation, meter);
        state.under_way.retain(|_, read| read.upgrade().is_some());
        if let Some(weak) = read.downgrade() {
            state.under_way.insert(object.shared_url(), weak);
        }
        read
    }

    fn start(
        self: &Arc<Self>,
        object: ObjectRef,
        known: Option<Arc<Footer>>,
        hearsay: Option<Hearsay>,
        may_be_whole: bool,
        generation: u64,
        meter: &Arc<ScanMeter>,
    ) -> Shared<Read> {
        let (this, meter) = (Arc::clone(self), Arc::clone(meter));
        let task = async move {
            let told = match hearsay {
                Some(hearsay) => hearsay.read(&object).await,
                None => None,
            };
            match told {
                Some(told) => Ok(this.keep(&object, told, None, generation)),
                None => this.read(object, known, may_be_whole, generation, &meter).await,
            }
        };
        let task = AbortOnDropHandle::new(tokio::spawn(task));
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
    ) -> Result<Resident> {
        let directory = object.url().rsplit_once('/').map_or("", |(directory, _)| directory).to_owned();
        let hint = self.lock().hints.get(&directory).copied();
        let hint_bytes = hint.map_or(DEFAULT_HINT_BYTES, |hint| hint.suffix_bytes(may_be_whole));
        let confirmed_at = Instant::now();
        let version = known.as_ref().and_then(|known| known.version());
        let read = Footer::read(&object, version, hint_bytes, self.keeps_tails, &self.limits, meter).await?;
        let (footer, whole) = match (read, &known) {
            (FooterRead::Read { footer, whole }, _) => (Arc::<Footer>::from(footer), whole),
            (FooterRead::NotModified, Some(known)) => (Arc::clone(known), None),
            (FooterRead::NotModified, None) => {
                return Err(Error::internal(format!("{}: not modified, though nothing was known", object.url())));
            }
        };
        if known.is_some_and(|known| known.version() != footer.version()) {
            self.tell(object.url(), footer.version());
        }
        let mut tail_bytes = hint.map_or(DEFAULT_HINT_BYTES, |hint| hint.tail_bytes);
        // What was read is the least that can be said of metadata that was covered at once.
        if footer.tail_bytes > hint_bytes {
            tail_bytes = tail_bytes.max(footer.tail_bytes.next_multiple_of(4 << 10)).min(MAX_HINT_BYTES);
        }
        self.lock().hints.put(directory, Hint { tail_bytes, size: footer.size });
        Ok(self.keep(&object, Resident { footer, confirmed_at }, whole, generation))
    }

    /// Keeps what was read, unless it is no use to others.
    fn keep(&self, object: &ObjectRef, read: Resident, whole: Option<Bytes>, generation: u64) -> Resident {
        let Resident { footer, confirmed_at } = &read;
        let mut state = self.lock();
        let weight = footer.weight_bytes();
        if footer.id.is_some() && state.generation == generation && weight <= self.capacity_bytes {
            let newer = state.resident.peek(object.url()).is_some_and(|resident| resident.confirmed_at > *confirmed_at);
            if !newer {
                state.resident_bytes += weight;
                if let Some((_, old)) = state.resident.push(object.shared_url(), read.clone()) {
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
        drop(state);
        read
    }

    /// A resident footer, for others, and when the request was sent that last confirmed its version.
    pub fn resident_of(&self, url: &str) -> Option<(Arc<Footer>, Instant)> {
        let state = self.lock();
        state.resident.peek(url).map(|resident| (Arc::clone(&resident.footer), resident.confirmed_at))
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

    /// Forgets one object, so that its next use asks the store: what others know of it already is not taken. Returns how many were
    /// resident.
    pub fn forget(&self, url: &str) -> u64 {
        self.forget_named(&HashSet::from([url]))
    }

    /// The same if it is this very footer that is known of it; whether it was.
    pub fn forget_this(&self, footer: &Footer) -> bool {
        let is_this =
            self.lock().resident.peek(footer.object.url()).is_some_and(|known| std::ptr::eq(&raw const *known.footer, footer));
        if is_this {
            self.forget(footer.object.url());
        }
        is_this
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
        if others.is_empty() { 0 } else { self.forget_named(&others) }
    }

    fn tell(&self, url: &str, version: Option<&Version>) {
        // Others find out by themselves, if later.
        let _ = self.renewed.try_send(RenewedObject { url: url.to_owned(), version: version.map(ToString::to_string) });
    }

    fn forget_named(&self, urls: &HashSet<&str>) -> u64 {
        let mut state = self.lock();
        for &url in urls {
            let crowded_out = state.forgotten.push(url.to_owned(), Instant::now()).filter(|(known, _)| known != url);
            state.any_forgotten_at = state.any_forgotten_at.max(crowded_out.map(|(_, at)| at));
        }
        Self::drop_if(&mut state, |url| urls.contains(url))
    }

    /// Forgets every object whose URL matches, and whatever reads under way bring. Returns how many were resident.
    pub fn forget_if(&self, matches: impl Fn(&str) -> bool) -> u64 {
        let mut state = self.lock();
        // Not all that match are known by name.
        state.any_forgotten_at = Some(Instant::now());
        Self::drop_if(&mut state, matches)
    }

    fn drop_if(state: &mut State, matches: impl Fn(&str) -> bool) -> u64 {
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

impl Hearsay {
    /// What others may tell to whom it is asked of since `arrived_at`; `None` where only the store may.
    fn new(
        freshness: Freshness,
        arrived_at: Instant,
        forgotten_at: Option<Instant>,
        listed: Option<(&Version, Instant)>,
        elsewhere: impl Fn(Wanted) -> Elsewhere,
    ) -> Option<Self> {
        let since = match freshness {
            Freshness::Always => return None,
            Freshness::Immutable => forgotten_at,
            Freshness::Ttl(ttl) => forgotten_at.max(Some(arrived_at.checked_sub(ttl)?)),
        };
        let listed = listed.filter(|(_, asked_at)| since.is_none_or(|since| *asked_at >= since));
        let wanted = match listed {
            // It is current, however long ago others looked.
            Some((version, _)) => Wanted { version: Some(version.to_string()), since: None },
            None => Wanted { version: None, since },
        };
        Some(Self { told: elsewhere(wanted.clone()), wanted, confirmed_at: listed.map(|(_, asked_at)| asked_at) })
    }

    /// What others told, if it is what was asked for and can be read. Whatever is wrong with it, there is the store.
    async fn read(self, object: &ObjectRef) -> Option<Resident> {
        let told = self.told.await.filter(|told| self.wanted.takes(told))?;
        let confirmed_at = self.confirmed_at.map_or(told.confirmed_at, |at| at.max(told.confirmed_at));
        match Footer::of_tail(object, told.version, told.size, told.tail).await {
            Ok(footer) => Some(Resident { footer: Arc::new(footer), confirmed_at }),
            Err(error) => {
                tracing::warn!(url = object.url(), cause = %error, "a footer that another server told is not used");
                None
            }
        }
    }
}
