//! Footers that others tell: taken where they are fresh enough, and never fresher than they were where they come from.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flightcache_proto::Version;
use flightcache_server::admin::{Metrics, ScanMeter};
use flightcache_server::object::{FetchLimits, Freshness, ObjectRef, Segments, Sources};
use flightcache_server::parquet::{Elsewhere, Footer, Footers, Told, Wanted, nowhere};
use futures::FutureExt as _;
use object_store::GetRange;
use tokio::time::{Instant, advance};

use crate::store::{TestStore, shared};
use crate::support::file;

const TTL: Duration = Duration::from_mins(1);
const URL: &str = "s3://lake/t.parquet";

fn footers() -> Arc<Footers> {
    Footers::new(16 << 20, FetchLimits::new(8, Arc::new(Metrics::new().unwrap())), true).0
}

/// A server's footers over a store of one object, and another server that has its footer.
struct Two {
    store: Arc<TestStore>,
    object: ObjectRef,
    here: Arc<Footers>,
    there: Arc<Footers>,
    asked: AtomicUsize,
}

impl Two {
    /// The other one has the footer of a file of `rows`.
    async fn new(freshness: Freshness, rows: i64) -> Self {
        let store = Arc::new(TestStore::new());
        store.put("t.parquet", file(0, rows, 10_000, 4)).await;
        let sources = Sources::default().with_store("s3://lake/", shared(&store), freshness).unwrap();
        let object = sources.object(URL).unwrap();
        let two = Self { store, object, here: footers(), there: footers(), asked: AtomicUsize::new(0) };
        two.there.get(&two.object, None, nowhere, &Arc::default()).await.unwrap();
        two.store.take_reads();
        two
    }

    /// What the other one knows, told after a while and changed on its way.
    fn told(&self, after: Duration, change: impl Fn(Told) -> Told + Send + 'static) -> Elsewhere {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (footer, confirmed_at) = self.there.resident_of(URL).unwrap();
        let told = Told {
            version: footer.version().unwrap().clone(),
            size: footer.size,
            tail: footer.tail.clone().unwrap(),
            confirmed_at,
        };
        let told = change(told);
        async move {
            tokio::time::sleep(after).await;
            Some(told)
        }
        .boxed()
    }

    async fn get(&self) -> Arc<Footer> {
        let elsewhere = |_: Wanted| self.told(Duration::ZERO, |told| told);
        self.here.get(&self.object, None, elsewhere, &Arc::default()).await.unwrap()
    }

    /// Requests to the store since the last time, and to the other server.
    fn asked(&self) -> (usize, usize) {
        (self.store.take_reads().len(), self.asked.swap(0, Ordering::Relaxed))
    }
}

fn rows(footer: &Arc<Footer>) -> usize {
    (0..footer.metadata.num_row_groups() as u32).map(|group| footer.row_group_rows(group)).sum()
}

#[tokio::test(start_paused = true)]
async fn a_footer_that_is_told_says_the_same_as_one_that_was_read() {
    let two = Two::new(Freshness::Immutable, 40_000).await;
    let told = two.get().await;
    assert_eq!(two.asked(), (0, 1));
    let read = footers().get(&two.object, None, nowhere, &Arc::default()).await.unwrap();
    assert!(told.is_told && !read.is_told);
    assert_eq!(told.id, read.id);
    assert_eq!(
        (&told.metadata, &told.schema, told.version(), told.size),
        (&read.metadata, &read.schema, read.version(), read.size)
    );
    assert!(told.metadata.offset_index().is_some(), "the page index came as well");
    // Who was told it tells it on.
    let pieces = |footer: &Footer| footer.tail.as_ref().unwrap().pieces().to_vec();
    assert_eq!(pieces(&told), pieces(&read));
    let tail_bytes: usize = pieces(&read).iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(tail_bytes < 8 << 10, "{tail_bytes} bytes are kept: not all that was read");
    assert!(read.weight_bytes() > tail_bytes);
}

#[tokio::test(start_paused = true)]
async fn a_footer_that_is_longer_than_the_first_read_is_told_whole() {
    let two = Two::new(Freshness::Immutable, 40_000).await;
    two.store.put("long.parquet", file(0, 4_000, 10, 40)).await;
    let sources = Sources::default().with_store("s3://lake/", shared(&two.store), Freshness::Immutable).unwrap();
    let object = sources.object("s3://lake/long.parquet").unwrap();
    let read = two.there.get(&object, None, nowhere, &Arc::default()).await.unwrap();
    assert!(two.store.take_reads().len() > 1, "it took more than one read");
    let told = Told {
        version: read.version().unwrap().clone(),
        size: read.size,
        tail: read.tail.clone().unwrap(),
        confirmed_at: Instant::now(),
    };
    let told = std::sync::Mutex::new(Some(told));
    let elsewhere = |_| std::future::ready(told.lock().unwrap().take()).boxed();
    let told = two.here.get(&object, None, elsewhere, &Arc::default()).await.unwrap();
    assert!(told.is_told);
    assert_eq!((&told.metadata, two.store.take_reads().len()), (&read.metadata, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_told_is_as_old_as_it_was_there() {
    let two = Two::new(Freshness::Ttl(TTL), 40_000).await;
    advance(Duration::from_secs(40)).await;
    two.store.put("t.parquet", file(0, 50_000, 10_000, 4)).await;
    // Within the bound, which is the other one's.
    assert_eq!((rows(&two.get().await), two.asked()), (40_000, (0, 1)));
    advance(Duration::from_secs(19)).await;
    assert_eq!((rows(&two.get().await), two.asked()), (40_000, (0, 0)));
    advance(Duration::from_secs(1)).await;
    assert_eq!((rows(&two.get().await), two.asked()), (50_000, (1, 0)), "a minute after the store was asked, there");
}

#[tokio::test(start_paused = true)]
async fn what_is_told_too_late_is_not_taken() {
    let two = Two::new(Freshness::Ttl(TTL), 40_000).await;
    two.store.put("t.parquet", file(0, 50_000, 10_000, 4)).await;
    advance(TTL).await;
    assert_eq!((rows(&two.get().await), two.asked()), (50_000, (1, 1)));
}

#[tokio::test(start_paused = true)]
async fn who_joins_a_question_is_as_strict_as_who_asked_it() {
    let two = Two::new(Freshness::Ttl(TTL), 40_000).await;
    two.store.put("t.parquet", file(0, 50_000, 10_000, 4)).await;
    advance(Duration::from_secs(59)).await;
    let get = async || {
        let elsewhere = |_: Wanted| two.told(Duration::from_secs(5), |told| told);
        rows(&two.here.get(&two.object, None, elsewhere, &Arc::default()).await.unwrap())
    };
    let later = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        get().await
    };
    // For the second it is older than the bound by the time at which it asks.
    assert_eq!(tokio::join!(get(), later), (40_000, 50_000));
    assert_eq!(two.asked(), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_an_answer_too_old_does_not_wait_for_those_that_do_not() {
    // Nothing is fresh that was read before it was asked for: all that join the first read have to ask again.
    let two = Two::new(Freshness::Ttl(Duration::ZERO), 40_000).await;
    for _ in 0..20 {
        let permits = two.store.gate.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
        let ask = || {
            let (here, object) = (Arc::clone(&two.here), two.object.clone());
            tokio::spawn(async move { rows(&here.get(&object, None, nowhere, &Arc::default()).await.unwrap()) })
        };
        let asking: Vec<_> = (0..20).map(|_| ask()).collect();
        tokio::task::yield_now().await;
        two.store.gate.add_permits(permits);
        let answers = tokio::time::timeout(Duration::from_mins(1), futures::future::try_join_all(asking)).await;
        assert_eq!(answers.expect("nobody waits for good").unwrap(), [40_000; 20]);
    }
}

#[tokio::test(start_paused = true)]
async fn under_always_nobody_but_the_store_is_asked() {
    let two = Two::new(Freshness::Always, 40_000).await;
    assert_eq!((rows(&two.get().await), two.asked()), (40_000, (1, 0)));
    // Of a version that somebody else has made sure of, the store need not be asked.
    let version = two.get().await.version().unwrap().to_string();
    let here = footers();
    two.asked();
    let elsewhere = |_: Wanted| two.told(Duration::ZERO, |told| told);
    let footer = here.of_version(&two.object, &version, elsewhere, &Arc::default()).await.unwrap();
    assert_eq!((rows(&footer), two.asked()), (40_000, (0, 1)));
    // But it is no answer to others.
    advance(Duration::from_secs(1)).await;
    here.get(&two.object, None, elsewhere, &Arc::default()).await.unwrap();
    assert_eq!(two.asked(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_was_forgotten_is_not_told_again() {
    for freshness in [Freshness::Immutable, Freshness::Ttl(TTL)] {
        let forget: [fn(&Footers); 3] = [
            |footers| assert_eq!(footers.forget(URL), 0),
            |footers| footers.forget_changed(URL),
            |footers| assert_eq!(footers.forget_if(|_| false), 0),
        ];
        for forget in forget {
            let two = Two::new(freshness, 40_000).await;
            advance(Duration::from_secs(1)).await;
            two.store.put("t.parquet", file(0, 50_000, 10_000, 4)).await;
            forget(&two.here);
            advance(Duration::from_secs(1)).await;
            assert_eq!((rows(&two.get().await), two.asked()), (50_000, (1, 1)), "{freshness}");
        }
        // Of others it is taken, and what was confirmed since.
        let two = Two::new(freshness, 40_000).await;
        two.here.forget("s3://lake/another.parquet");
        assert_eq!((rows(&two.get().await), two.asked()), (40_000, (0, 1)), "{freshness}");
        advance(Duration::from_secs(1)).await;
        two.here.forget(URL);
        two.there.forget(URL);
        two.there.get(&two.object, None, nowhere, &Arc::default()).await.unwrap();
        two.asked();
        assert_eq!((rows(&two.get().await), two.asked()), (40_000, (0, 1)), "{freshness}");
        // However many were.
        advance(Duration::from_secs(1)).await;
        two.here.forget(URL);
        for other in 0..5_000 {
            two.here.forget(&format!("s3://lake/{other}.parquet"));
        }
        advance(Duration::from_secs(1)).await;
        assert_eq!((rows(&two.get().await), two.asked()), (40_000, (1, 1)), "{freshness}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_listing_says_is_current_may_be_told_however_old_it_is() {
    let two = Two::new(Freshness::Ttl(TTL), 40_000).await;
    advance(TTL * 3).await;
    let (asked_at, version) = (Instant::now(), two.there.resident_of(URL).unwrap().0.version().unwrap().clone());
    advance(TTL / 2).await;
    let get = async |version: &Version| {
        let elsewhere = |_: Wanted| two.told(Duration::ZERO, |told| told);
        rows(&two.here.get(&two.object, Some((version, asked_at)), elsewhere, &Arc::default()).await.unwrap())
    };
    assert_eq!((get(&version).await, two.asked()), (40_000, (0, 1)));
    advance(TTL / 2).await;
    assert_eq!((get(&version).await, two.asked()), (40_000, (1, 0)), "the listing is as old as the bound");
    // Of another version it is no use.
    two.here.forget(URL);
    assert_eq!((get(&Version::ETag("\"another\"".into())).await, two.asked()), (40_000, (1, 1)));
}

#[tokio::test(start_paused = true)]
async fn what_is_told_and_cannot_be_is_read_from_the_store() {
    type Change = fn(Told) -> Told;
    let changes: [(&str, Change); 5] = [
        ("nothing", |told| Told { tail: Segments::default(), ..told }),
        ("another size", |told| Told { size: told.size - 1, ..told }),
        ("a very small size", |told| Told { size: 3, ..told }),
        ("zeros", |told| {
            let zeros = told.tail.pieces().iter().map(|(start, bytes)| Segments::at(*start, vec![0; bytes.len()].into()));
            Told { tail: Segments::join(zeros.collect::<Vec<_>>()), ..told }
        }),
        ("no page index", |told| {
            let own = told.tail.pieces()[1..].iter().map(|(start, bytes)| Segments::at(*start, bytes.clone()));
            Told { tail: Segments::join(own.collect::<Vec<_>>()), ..told }
        }),
    ];
    for (what, change) in changes {
        let two = Two::new(Freshness::Immutable, 40_000).await;
        let elsewhere = |_: Wanted| two.told(Duration::ZERO, change);
        let footer = two.here.get(&two.object, None, elsewhere, &Arc::default()).await.unwrap();
        assert!(!footer.is_told, "{what}");
        assert_eq!((rows(&footer), two.asked()), (40_000, (1, 1)), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_bit_of_a_footer_may_be_wrong() {
    let two = Two::new(Freshness::Immutable, 40_000).await;
    let bits = two.there.resident_of(URL).unwrap().0.tail.as_ref().unwrap().len() * 8;
    for bit in (0..bits).step_by(7) {
        let flip = move |told: Told| {
            let mut at = (bit / 8) as usize;
            let flipped = told.tail.pieces().iter().map(|(start, bytes)| {
                let mut bytes = bytes.to_vec();
                if at < bytes.len() {
                    bytes[at] ^= 1 << (bit % 8);
                    at = usize::MAX;
                } else if at != usize::MAX {
                    at -= bytes.len();
                }
                Segments::at(*start, bytes.into())
            });
            Told { tail: Segments::join(flipped.collect::<Vec<_>>()), ..told }
        };
        // It is told or read, or a typed error: that is all that can be said of it here, where nothing tells that it is garbled.
        let here = footers();
        let elsewhere = |_: Wanted| two.told(Duration::ZERO, flip);
        let got = here.get(&two.object, None, elsewhere, &Arc::new(ScanMeter::default())).await;
        assert!(got.is_ok_and(|footer| footer.version() == two.there.resident_of(URL).unwrap().0.version()), "bit {bit}");
    }
    let suffixes = two.store.take_reads().into_iter().filter(|read| matches!(read, Some(GetRange::Suffix(_)))).count();
    assert!(suffixes > 0, "some cannot be parsed");
}
