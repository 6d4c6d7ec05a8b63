//! Who a node is: a UUID that outlives the process, and the incarnation that tells its runs apart.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use flightcache_proto::{Error, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// In the data directory: what outlives the process.
const NODE_FILE: &str = "node.json";
/// In the data directory: locked as long as the process lives.
const LOCK_FILE: &str = "lock";
/// What a node file holds at most.
const MAX_FILE_BYTES: u64 = 4 << 10;

/// A node's name. Of two runs under one UUID, the one of the higher incarnation counts.
#[derive(Debug)]
pub struct Identity {
    uuid: Uuid,
    incarnation: u64,
    epoch: u64,
    directory: Option<PathBuf>,
    /// Held, for its lock.
    _lock: Option<File>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    uuid: String,
    incarnation: u64,
    #[serde(default)]
    epoch: u64,
}

impl Identity {
    /// The identity that a directory keeps, made now if it keeps none; without a directory one for this run only. The incarnation is
    /// `now_ms`, or more, should the clock have been ahead of it before.
    pub fn load(directory: Option<&Path>, now_ms: u64) -> Result<Self> {
        let Some(directory) = directory else {
            return Ok(Self { uuid: Uuid::new_v4(), incarnation: now_ms, epoch: 0, directory: None, _lock: None });
        };
        std::fs::create_dir_all(directory).map_err(|e| failed(directory, &e))?;
        let lock = lock(&directory.join(LOCK_FILE))?;
        let kept = read(&directory.join(NODE_FILE))?;
        let (uuid, last, epoch) = kept.unwrap_or_else(|| (Uuid::new_v4(), 0, 0));
        let incarnation = now_ms.max(last.saturating_add(1));
        let identity = Self { uuid, incarnation, epoch, directory: Some(directory.to_owned()), _lock: Some(lock) };
        identity.write(epoch)?;
        Ok(identity)
    }

    /// The stable name.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Higher with each run.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The slot map's epoch when it was kept last: that of the next run is higher.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Keeps the slot map's epoch, if there is a directory.
    pub fn keep_epoch(&self, epoch: u64) -> Result<()> {
        self.write(epoch)
    }

    /// Replaces the file as a whole.
    fn write(&self, epoch: u64) -> Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let path = directory.join(NODE_FILE);
        let next = directory.join(format!("{NODE_FILE}.new"));
        let kept = Kept { uuid: self.uuid.to_string(), incarnation: self.incarnation, epoch };
        let json = serde_json::to_vec(&kept).map_err(|e| Error::internal(e.to_string()))?;
        let mut file = File::create(&next).map_err(|e| failed(&next, &e))?;
        file.write_all(&json).and_then(|()| file.sync_all()).map_err(|e| failed(&next, &e))?;
        std::fs::rename(&next, &path).map_err(|e| failed(&path, &e))
    }
}

fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).map_err(|e| failed(path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::invalid(format!("{}: another server runs with this data directory", path.display())))
        }
        Err(TryLockError::Error(e)) => Err(failed(path, &e)),
    }
}

/// UUID, incarnation and epoch of the last run.
fn read(path: &Path) -> Result<Option<(Uuid, u64, u64)>> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(path, &e)),
    };
    if size > MAX_FILE_BYTES {
        return Err(Error::invalid(format!("{}: {size} bytes are more than a node's identity takes", path.display())));
    }
    let bytes = std::fs::read(path).map_err(|e| failed(path, &e))?;
    let strange = |e: String| Error::invalid(format!("{}: this is no node's identity: {e}", path.display()));
    let kept: Kept = serde_json::from_slice(&bytes).map_err(|e| strange(e.to_string()))?;
    let uuid = Uuid::try_parse(&kept.uuid).map_err(|e| strange(e.to_string()))?;
    Ok(Some((uuid, kept.incarnation, kept.epoch)))
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    Error::invalid(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_the_name_and_incarnations_grow() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        let first = Identity::load(Some(&path), 1_000).unwrap();
        first.keep_epoch(77).unwrap();
        let uuid = first.uuid();
        assert_eq!((first.incarnation(), first.epoch()), (1_000, 0));
        drop(first);
        // The clock was set back.
        let again = Identity::load(Some(&path), 400).unwrap();
        assert_eq!((again.uuid(), again.incarnation(), again.epoch()), (uuid, 1_001, 77));
        drop(again);
        let later = Identity::load(Some(&path), 5_000).unwrap();
        assert_eq!((later.uuid(), later.incarnation()), (uuid, 5_000));
        assert_ne!(Identity::load(None, 1).unwrap().uuid(), Identity::load(None, 1).unwrap().uuid());
    }

    #[test]
    fn two_runs_at_once_and_strange_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let first = Identity::load(Some(directory.path()), 1).unwrap();
        let error = Identity::load(Some(directory.path()), 1).unwrap_err();
        assert!(error.message.contains("another server runs"), "{error}");
        drop(first);
        let long = format!("\"{}\"", "x".repeat(5_000));
        for strange in ["", "{}", "{\"uuid\":\"x\",\"incarnation\":1}", &long] {
            std::fs::write(directory.path().join(NODE_FILE), strange).unwrap();
            let error = Identity::load(Some(directory.path()), 1).unwrap_err();
            assert!(error.message.contains(NODE_FILE), "{error}");
        }
        std::fs::write(directory.path().join("file"), "").unwrap();
        assert!(Identity::load(Some(&directory.path().join("file")), 1).is_err());
    }
}
