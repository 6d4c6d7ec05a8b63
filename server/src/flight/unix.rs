//! The Unix socket that clients of the same host may use.

use std::fs::Metadata;
use std::io::{Error as IoError, ErrorKind as IoErrorKind, Result as IoResult};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use axum::serve::Listener;
use flightcache_proto::{Error, Result};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

/// A listening Unix socket, whose file goes with it.
pub struct UnixSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// The file of a socket, as it was made: what has taken its place since is not ours to remove.
struct SocketFile {
    path: PathBuf,
    device_and_inode: Option<(u64, u64)>,
}

impl UnixSocket {
    /// Listens at `path`. The socket of a server that is gone is replaced; anything else there is left alone.
    pub async fn bind(path: &Path) -> Result<Self> {
        let failed = |why: String| Error::invalid(format!("cannot listen on {}: {why}", path.display()));
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == IoErrorKind::AddrInUse => {
                give_way(path).await.map_err(failed)?;
                UnixListener::bind(path)
            }
            bound => bound,
        };
        let listener = listener.map_err(|e| failed(e.to_string()))?;
        let made = std::fs::symlink_metadata(path).ok();
        let file = SocketFile { path: path.to_owned(), device_and_inode: made.as_ref().map(identity) };
        Ok(Self { listener, file })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.file.path
    }
}

/// Removes the socket of a server that is gone; says what else is there.
async fn give_way(path: &Path) -> Result<(), String> {
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => {}
        Ok(_) => return Err("there is a file that is no socket".to_owned()),
        // Gone meanwhile.
        Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.to_string()),
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err("another server answers there".to_owned()),
        Err(error) if error.kind() == IoErrorKind::ConnectionRefused => remove(path).map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn remove(path: &Path) -> IoResult<()> {
    std::fs::remove_file(path).or_else(|e: IoError| if e.kind() == IoErrorKind::NotFound { Ok(()) } else { Err(e) })
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = std::fs::symlink_metadata(&self.path).is_ok_and(|file| Some(identity(&file)) == self.device_and_inode);
        if is_ours && let Err(error) = remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket's file stays");
        }
    }
}

impl Listener for UnixSocket {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        Listener::accept(&mut self.listener).await
    }

    fn local_addr(&self) -> IoResult<SocketAddr> {
        self.listener.local_addr()
    }
}
