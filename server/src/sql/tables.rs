//! Names for URLs: from the settings, and made at run time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use flightcache_proto::{Error, ErrorKind, Result};

/// The one catalog.
pub const CATALOG: &str = "flightcache";
/// Its one schema, beside `information_schema`.
pub const SCHEMA: &str = "public";

/// Tables made at run time, at most.
const MAX_CREATED: usize = 1_000;
/// Longer names are refused.
pub const MAX_NAME_BYTES: usize = 256;
/// Longer URLs are: keys in S3 have 1,024 bytes at most.
const MAX_URL_BYTES: usize = 4 << 10;

/// The names a server knows. What is made at run time is gone with the server.
///
/// The lock guards map operations only.
#[derive(Debug, Default)]
pub(super) struct Tables {
    configured: BTreeMap<String, String>,
    created: Mutex<BTreeMap<String, String>>,
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
        Self { configured, created: Mutex::default() }
    }

    pub(super) fn get(&self, name: &str) -> Option<Named> {
        if let Some(url) = self.configured.get(name) {
            return Some(Named { url: url.clone(), is_created: false });
        }
        self.created().get(name).map(|url| Named { url: url.clone(), is_created: true })
    }

    /// All names, ascending.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.configured.keys().chain(self.created().keys()).cloned().collect();
        names.sort_unstable();
        names
    }

    /// Names a URL. The same name for the same URL is no error: a request may come twice.
    pub(super) fn create(&self, name: &str, url: &str, if_not_exists: bool, or_replace: bool) -> Result<()> {
        if name.len() > MAX_NAME_BYTES {
            return Err(Error::invalid(format!("a table's name of {} bytes; at most {MAX_NAME_BYTES}", name.len())));
        }
        if url.len() > MAX_URL_BYTES {
            return Err(Error::invalid(format!("a URL of {} bytes; at most {MAX_URL_BYTES}", url.len())));
        }
        let exists = |url: &str| Err(Error::invalid(format!("table {name:?} exists already: it is {url}")));
        if let Some(known) = self.configured.get(name) {
            return if known == url || if_not_exists { Ok(()) } else { exists(known) };
        }
        let mut created = self.created();
        if let Some(known) = created.get(name)
            && known != url
            && !or_replace
        {
            return if if_not_exists { Ok(()) } else { exists(known) };
        }
        if !created.contains_key(name) && created.len() >= MAX_CREATED {
            let message = format!("{MAX_CREATED} tables were created already; drop some");
            return Err(Error::new(ErrorKind::ResourceExhausted, message));
        }
        created.insert(name.to_owned(), url.to_owned());
        Ok(())
    }

    /// Forgets a name that was made at run time.
    pub(super) fn remove(&self, name: &str, if_exists: bool) -> Result<()> {
        if self.configured.contains_key(name) {
            let message = format!("table {name:?} comes from the server's settings and cannot be dropped");
            return Err(Error::new(ErrorKind::Denied, message));
        }
        if self.created().remove(name).is_none() && !if_exists {
            return Err(Error::new(ErrorKind::NotFound, format!("no table {name:?}")));
        }
        Ok(())
    }

    fn created(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.created.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
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
}
