//! Names for URLs: from the settings, and made at run time.
//!
//! What is made at run time is so on all servers of a cluster: each keeps, for every name, what was said last of it anywhere. Of two
//! sayings the later one holds, so that servers that were told the same know the same, in whatever order they were told.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use flightcache_proto::action::NamedTable;
use flightcache_proto::{Error, ErrorKind, Result};
use tokio::sync::watch;

use crate::cluster::now_ms;

/// The one catalog.
pub const CATALOG: &str = "flightcache";
/// Its one schema, beside `information_schema`.
pub const SCHEMA: &str = "public";

/// Tables made at run time, at most; and names of which it is known that they were dropped.
const MAX_CREATED: usize = 1_000;
/// Tables made on servers that did not know each other, at most, once they do.
const MAX_TOLD: usize = 4 * MAX_CREATED;
/// Later times are none.
const MAX_AT: u64 = 1 << 53;
/// Longer names are refused.
pub const MAX_NAME_BYTES: usize = 256;
/// Longer URLs are: keys in S3 have 1,024 bytes at most.
const MAX_URL_BYTES: usize = 4 << 10;

/// The names a server knows. What is made at run time is gone with the last server of its cluster.
///
/// The lock guards map operations only.
#[derive(Debug, Default)]
pub(super) struct Tables {
    configured: BTreeMap<String, String>,
    created: Mutex<Created>,
    /// How many changes there were.
    version: watch::Sender<u64>,
    /// How many of them all other servers have been told.
    told: watch::Sender<u64>,
}

/// What was said of names at run time.
#[derive(Debug, Default)]
struct Created {
    said: BTreeMap<String, Said>,
    /// How many of them stand for something.
    count: usize,
    /// When anything was said last.
    latest: u64,
    version: u64,
}

#[derive(Debug)]
struct Said {
    /// Nothing once it is dropped.
    url: Option<String>,
    at: u64,
    /// The change that this was here.
    version: u64,
}

impl Created {
    fn url(&self, name: &str) -> Option<&str> {
        self.said.get(name)?.url.as_deref()
    }

    fn say(&mut self, name: &str, url: Option<&str>, at: u64) {
        self.latest = self.latest.max(at);
        self.version += 1;
        let said = Said { url: url.map(str::to_owned), at, version: self.version };
        self.count += usize::from(said.url.is_some());
        let before = self.said.insert(name.to_owned(), said);
        self.count -= usize::from(before.is_some_and(|before| before.url.is_some()));
        if self.said.len() - self.count > MAX_CREATED {
            // Who has not heard of it for so long may bring it back.
            let dropped = self.said.iter().filter(|(_, said)| said.url.is_none());
            let oldest = dropped.min_by_key(|(_, said)| said.at).map(|(name, _)| name.clone());
            oldest.map(|name| self.said.remove(&name));
        }
    }

    /// Later than all that is known, as far as there are times.
    fn now(&self) -> u64 {
        now_ms().max(self.latest + 1).min(MAX_AT - 1)
    }
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) url: String,
    /// Made at run time: other servers may not know it.
    pub(super) is_created: bool,
}

impl Tables {
    pub(super) fn new(configured: BTreeMap<String, String>) -> Self {
        Self { configured, ..Self::default() }
    }

    pub(super) fn get(&self, name: &str) -> Option<Named> {
        if let Some(url) = self.configured.get(name) {
            return Some(Named { url: url.clone(), is_created: false });
        }
        self.created().url(name).map(|url| Named { url: url.to_owned(), is_created: true })
    }

    /// All names, ascending.
    pub(super) fn names(&self) -> Vec<String> {
        let created = self.created();
        let is_there = |(name, said): (&String, &Said)| said.url.is_some().then(|| name.clone());
        let mut names: Vec<String> = self.configured.keys().cloned().chain(created.said.iter().filter_map(is_there)).collect();
        drop(created);
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Names a URL. The same name for the same URL is no error: a request may come twice.
    pub(super) fn create(&self, name: &str, url: &str, if_not_exists: bool, or_replace: bool) -> Result<()> {
        check_lengths(name, Some(url))?;
        let exists = |url: &str| Err(Error::invalid(format!("table {name:?} exists already: it is {url}")));
        if let Some(known) = self.configured.get(name) {
            return if known == url || if_not_exists { Ok(()) } else { exists(known) };
        }
        self.change(|created| {
            match created.url(name) {
                Some(known) if known == url => return Ok(()),
                Some(known) if !or_replace => return if if_not_exists { Ok(()) } else { exists(known) },
                None if created.count >= MAX_CREATED => {
                    let message = format!("{MAX_CREATED} tables were created already; drop some");
                    return Err(Error::new(ErrorKind::ResourceExhausted, message));
                }
                _ => {}
            }
            created.say(name, Some(url), created.now());
            Ok(())
        })
    }

    /// Forgets a name that was made at run time.
    pub(super) fn remove(&self, name: &str, if_exists: bool) -> Result<()> {
        if self.configured.contains_key(name) {
            let message = format!("table {name:?} comes from the server's settings and cannot be dropped");
            return Err(Error::new(ErrorKind::Denied, message));
        }
        self.change(|created| {
            if created.url(name).is_some() {
                created.say(name, None, created.now());
            } else if !if_exists {
                return Err(Error::new(ErrorKind::NotFound, format!("no table {name:?}")));
            }
            Ok(())
        })
    }

    /// Takes what another server knows. Of what is no name, no URL or no time, nothing is taken; names beyond [`MAX_TOLD`] are not.
    pub(super) fn take(&self, told: &[NamedTable]) -> Result<()> {
        if told.len() > MAX_TOLD + MAX_CREATED {
            return Err(Error::invalid(format!("{} names of tables; at most {}", told.len(), MAX_TOLD + MAX_CREATED)));
        }
        for NamedTable { name, url, at } in told {
            check_lengths(name, url.as_deref())?;
            if *at >= MAX_AT {
                return Err(Error::invalid(format!("table {name:?} was made or dropped at {at}, which is no time")));
            }
        }
        self.change(|created| {
            for NamedTable { name, url, at } in told {
                let is_later = created.said.get(name).is_none_or(|known| (known.at, &known.url) < (*at, url));
                let is_one_more = url.is_some() && created.url(name).is_none();
                if is_later && is_one_more && created.count >= MAX_TOLD {
                    tracing::warn!(name, "a table that was made on another server finds no room here");
                } else if is_later {
                    created.say(name, url.as_deref(), *at);
                }
            }
            Ok(())
        })
    }

    /// What was said since a change, for others.
    pub(super) fn since(&self, version: u64) -> Vec<NamedTable> {
        let created = self.created();
        let later = created.said.iter().filter(|(_, said)| said.version > version);
        later.map(|(name, said)| NamedTable { name: name.clone(), url: said.url.clone(), at: said.at }).collect()
    }

    /// How many changes there were.
    pub(super) fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// How many of them all other servers know.
    pub(super) fn told(&self) -> watch::Receiver<u64> {
        self.told.subscribe()
    }

    /// All other servers know what there was until this change.
    pub(super) fn all_know(&self, version: u64) {
        self.told.send_replace(version);
    }

    fn change(&self, change: impl FnOnce(&mut Created) -> Result<()>) -> Result<()> {
        let mut created = self.created();
        change(&mut created)?;
        let version = created.version;
        // Under the lock: it never falls.
        self.version.send_if_modified(|known| std::mem::replace(known, version) != version);
        Ok(())
    }

    fn created(&self) -> MutexGuard<'_, Created> {
        self.created.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_lengths(name: &str, url: Option<&str>) -> Result<()> {
    if name.len() > MAX_NAME_BYTES {
        return Err(Error::invalid(format!("a table's name of {} bytes; at most {MAX_NAME_BYTES}", name.len())));
    }
    match url {
        Some(url) if url.len() > MAX_URL_BYTES => {
            Err(Error::invalid(format!("a URL of {} bytes; at most {MAX_URL_BYTES}", url.len())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_made_and_dropped() {
        let tables = Tables::new([("fixed".to_owned(), "s3://lake/f/".to_owned())].into());
        tables.create("t", "s3://lake/a/", false, false).unwrap();
        tables.create("t", "s3://lake/a/", false, false).unwrap();
        assert!(tables.create("t", "s3://lake/b/", false, false).unwrap_err().message.contains("s3://lake/a/"));
        tables.create("t", "s3://lake/b/", true, false).unwrap();
        assert_eq!(tables.get("t"), Some(Named { url: "s3://lake/a/".into(), is_created: true }));
        tables.create("t", "s3://lake/b/", false, true).unwrap();
        assert_eq!(tables.get("t").unwrap().url, "s3://lake/b/");
        assert_eq!(tables.names(), ["fixed", "t"]);
        tables.remove("t", false).unwrap();
        assert_eq!(tables.remove("t", false).unwrap_err().kind, ErrorKind::NotFound);
        tables.remove("t", true).unwrap();
        assert_eq!(tables.remove("fixed", true).unwrap_err().kind, ErrorKind::Denied);
        assert!(tables.create("fixed", "s3://lake/x/", false, true).is_err());
    }

    #[test]
    fn there_is_a_bound() {
        let tables = Tables::default();
        for at in 0..MAX_CREATED {
            tables.create(&format!("t{at}"), "s3://lake/a/", false, false).unwrap();
        }
        assert_eq!(tables.create("one_more", "s3://lake/a/", false, false).unwrap_err().kind, ErrorKind::ResourceExhausted);
        assert!(tables.create(&"x".repeat(300), "s3://lake/a/", false, false).is_err());
        assert!(tables.create("t0", &format!("s3://lake/{}", "x".repeat(5_000)), false, true).is_err());
    }

    fn told(name: &str, url: Option<&str>, at: u64) -> NamedTable {
        NamedTable { name: name.into(), url: url.map(Into::into), at }
    }

    proptest! {
        /// Whatever is said where, and in whatever order it is told, all know the same in the end: what was said last.
        #[test]
        fn who_was_told_the_same_knows_the_same(
            said in prop::collection::vec(("[a-c]", prop::option::of("[x-z]"), 0..5_u64), 0..12),
            order in prop::collection::vec(any::<u64>(), 12),
        ) {
            let said: Vec<_> = said.iter().map(|(name, url, at)| told(name, url.as_deref(), *at)).collect();
            let mut shuffled: Vec<_> = said.iter().cloned().zip(order).collect();
            shuffled.sort_by_key(|(_, order)| *order);
            let (one, other, third) = (Tables::default(), Tables::default(), Tables::default());
            one.take(&said).unwrap();
            for (told, _) in shuffled {
                other.take(&[told]).unwrap();
            }
            third.take(&other.since(0)).unwrap();
            for tables in [&other, &third] {
                prop_assert_eq!(one.since(0), tables.since(0));
            }
            for name in ["a", "b", "c"] {
                let last = said.iter().filter(|said| said.name == name).max_by_key(|said| (said.at, &said.url));
                prop_assert_eq!(one.get(name).map(|named| named.url), last.and_then(|last| last.url.clone()));
            }
        }
    }

    #[test]
    fn what_is_said_later_holds() {
        let (one, other) = (Tables::default(), Tables::default());
        one.create("t", "s3://lake/a/", false, false).unwrap();
        // A clock that is ahead is no reason why what is said after it should not hold.
        let ahead = now_ms() + 1_000_000;
        one.take(&[told("t", Some("s3://lake/b/"), ahead)]).unwrap();
        assert_eq!(one.get("t").unwrap().url, "s3://lake/b/");
        let version = *one.version().borrow();
        one.remove("t", false).unwrap();
        assert_eq!(one.since(version), [told("t", None, ahead + 1)], "nothing else is told again");
        other.create("t", "s3://lake/c/", false, false).unwrap();
        other.take(&one.since(0)).unwrap();
        assert_eq!(other.get("t"), None);
        other.create("t", "s3://lake/d/", false, false).unwrap();
        one.take(&other.since(0)).unwrap();
        assert_eq!(one.get("t").unwrap().url, "s3://lake/d/");
        let version = *one.version().borrow();
        one.take(&other.since(0)).unwrap();
        assert!(!one.version().has_changed().unwrap() && *one.version().borrow() == version, "it knew that");
    }

    #[test]
    fn what_is_told_is_bounded() {
        let tables = Tables::default();
        let bad =
            [told(&"x".repeat(300), None, 1), told("t", Some(&"x".repeat(5_000)), 1), told("t", Some("s3://lake/a/"), u64::MAX)];
        for bad in bad {
            let error = tables.take(&[told("good", Some("s3://lake/a/"), 1), bad]).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidRequest);
        }
        assert_eq!(tables.names(), [""; 0], "none of it");
        let many = |first: usize, url: Option<&str>| -> Vec<NamedTable> {
            (first..first + MAX_TOLD).map(|at| told(&format!("t{at:06}"), url, at as u64 + 1)).collect()
        };
        tables.take(&many(0, Some("s3://lake/a/"))).unwrap();
        tables.take(&many(MAX_TOLD, Some("s3://lake/a/"))).unwrap();
        assert_eq!(tables.names().len(), MAX_TOLD);
        let dropped: Vec<_> = many(0, None).into_iter().map(|told| NamedTable { at: told.at + 1, ..told }).collect();
        tables.take(&dropped).unwrap();
        assert_eq!((tables.names().len(), tables.since(0).len()), (0, MAX_CREATED));
        let too_many = [many(0, None), many(MAX_TOLD, None)].concat();
        assert_eq!(tables.take(&too_many).unwrap_err().kind, ErrorKind::InvalidRequest);
    }
}
