//! The socket of the agent, as a file.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sys::stat::{Mode, umask};
use tokio::sync::Notify;

use super::server::{self, Reply, Request};

/// Why the agent has no socket to answer on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Another agent has the socket.
    #[error("another agent answers on {path}: stop that agent, or use another --socket, --state-dir and --pin-dir")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path is something else's.
    #[error("{path} exists and is not a socket: remove it, or use another --socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("opening the socket {path} failed (--socket sets another path)")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// A Unix socket that only its owner may use. When it is dropped, its file goes and nobody answers any more.
#[derive(Debug)]
pub(crate) struct Listener {
    path: PathBuf,
    socket: UnixListener,
    ended: Arc<Notify>,
}

impl Listener {
    /// Listens on `path`, in place of a socket that nobody answers on any more. If the directory has to be made, only
    /// its owner may use it either.
    ///
    /// Changes the umask for a moment: call it before there are other threads.
    pub(crate) fn bind(path: &Path) -> Result<Self, ListenError> {
        let io = |source| ListenError::Io { path: path.into(), source };
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(io)?;
        }
        clear(path)?;
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let socket = bound.map_err(io)?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(io)?;
        Ok(Self { path: path.into(), socket, ended: Arc::default() })
    }

    /// Answers on threads of its own until this value is dropped.
    pub(crate) fn serve(&self, answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> io::Result<()> {
        server::start(self.socket.try_clone()?, answer, Arc::clone(&self.ended))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ended.notify_one();
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "removing the file of the socket failed");
        }
    }
}

fn clear(path: &Path) -> Result<(), ListenError> {
    let io = |source| ListenError::Io { path: path.into(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(ListenError::NotASocket { path: path.into() }),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(io),
        Err(error) => Err(io(error)),
        Ok(_) => Err(ListenError::InUse { path: path.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_owner_may_use_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/lb.sock");
        let listener = Listener::bind(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lb.sock");
        drop(UnixListener::bind(&path).unwrap());
        let _live = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::InUse { .. })));
        assert!(path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }
}
