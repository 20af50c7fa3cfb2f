//! The socket of the agent, as a file.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::{
            fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sys::{
    socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
    stat::{Mode, fchmod},
};
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
    pub(crate) fn bind(path: &Path) -> Result<Self, ListenError> {
        let io = |source| ListenError::Io { path: path.into(), source };
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(io)?;
        }
        clear(path)?;
        let socket = bind_private(path).map_err(io)?;
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

/// Listens on `path`, which nobody else may ever use.
///
/// The file gets the mode of the socket when it is bound, less the bits of the umask ([`unix_bind_bsd`]). The umask
/// belongs to all threads of the process, and an embedder's may make files at the same time: it stays as it is.
///
/// [`unix_bind_bsd`]: https://elixir.bootlin.com/linux/v6.18/source/net/unix/af_unix.c
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    fchmod(socket.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    // A umask may have taken bits away. Nobody can connect before the socket listens.
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok(socket.into())
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
    fn files_that_other_threads_make_meanwhile_keep_their_mode() {
        let directory = tempfile::tempdir().unwrap();
        let (file, bound) = (directory.path().join("file"), std::sync::atomic::AtomicBool::new(false));
        let make = || {
            fs::write(&file, "").unwrap();
            let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
            fs::remove_file(&file).unwrap();
            mode
        };
        let usual = make();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (0..2000).for_each(|_| drop(Listener::bind(&directory.path().join("lb.sock")).unwrap()));
                bound.store(true, std::sync::atomic::Ordering::Release);
            });
            while !bound.load(std::sync::atomic::Ordering::Acquire) {
                assert_eq!(make(), usual);
            }
        });
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
