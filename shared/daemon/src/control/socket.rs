//! The socket's file: closed to others from its first moment, never taken from a live daemon.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, chown};
use socket2::{Domain, SockAddr, Socket, Type};

/// Connections that wait in the kernel while [`super::CONNECTIONS_MAX`] are served.
const BACKLOG: i32 = 16;

/// Why the control socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error(
        "another daemon answers at {}; stop it first, or give this one another [control] socket",
        .0.display()
    )]
    InUse(PathBuf),
    /// Something else has the name.
    #[error(
        "{} exists and is not a socket; remove it, or give this daemon another [control] socket",
        .0.display()
    )]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot make the control socket {}: {action}: {error}", path.display())]
    System {
        /// The socket that was wanted.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// The listening socket and its file, which is removed with it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode, so that a successor's socket is not removed.
    identity: (u64, u64),
}

/// Listens at `path` for its owner, and for `group` where there is one.
pub(super) fn listen(
    path: &Path,
    group: Option<Gid>,
) -> Result<(UnixListener, SocketFile), BindError> {
    let failed = |action| {
        move |error| BindError::System {
            path: path.to_path_buf(),
            action,
            error,
        }
    };
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    make_directory(directory).map_err(failed("make its directory"))?;
    make_way(path)?;

    // The file is made under a name of its own and renamed, which replaces a socket that a
    // crashed daemon left without a moment in which there is none.
    let new_path = directory.join(format!(".{}", std::process::id()));
    remove(&new_path).map_err(failed("remove what a crash left"))?;
    let listener = bind_private(&new_path).map_err(failed("bind"))?;
    let made = SocketFile::of(&new_path).map_err(failed("stat"))?;
    fs::rename(&new_path, path).map_err(failed("rename"))?;
    let file = made.moved_to(path);

    if let Some(group) = group {
        chown(path, None, Some(group))
            .map_err(|errno| failed("give it to the group tund")(errno.into()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))
            .map_err(failed("open it to the group tund"))?;
    }
    Ok((listener, file))
}

/// Makes the socket's directory if there is none. Everybody may pass, whatever the umask: who may
/// talk to the daemon is decided by the socket.
fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(directory)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
}

/// Makes sure that nothing of value stands at `path`.
fn make_way(path: &Path) -> Result<(), BindError> {
    let failed = |error| BindError::System {
        path: path.to_path_buf(),
        action: "look whether a daemon answers there",
        error,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_path_buf()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(BindError::InUse(path.to_path_buf())),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Binds and listens; the file has mode 0600 when it appears.
///
/// Linux gives the new file the mode of the socket itself, less the umask. Setting that first
/// leaves no moment with another mode and changes nothing for the rest of the process, as a
/// changed umask would.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(UnixListener::from(OwnedFd::from(socket)))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_path_buf(),
            identity: identity_of(path)?,
        })
    }

    fn moved_to(mut self, path: &Path) -> Self {
        self.path = path.to_path_buf();
        self
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = identity_of(&self.path).is_ok_and(|identity| identity == self.identity);
        if !is_ours {
            return;
        }
        if let Err(error) = remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the control socket stays behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn mode_of(path: &Path) -> u32 {
        fs::symlink_metadata(path)
            .expect("it exists")
            .permissions()
            .mode()
            & 0o7777
    }

    #[test]
    fn a_bound_socket_is_closed_to_others_before_anything_else_is_done_to_it() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("x.sock");

        let _listener = bind_private(&path).expect("bound");

        assert_eq!(mode_of(&path), 0o600);
    }

    #[test]
    fn nobody_ever_sees_the_socket_with_another_mode() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("x.sock");
        let done = AtomicBool::new(false);

        let modes = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut modes = std::collections::BTreeSet::new();
                while !done.load(Ordering::Relaxed) {
                    let entries = fs::read_dir(directory.path()).expect("listed");
                    let seen =
                        entries.filter_map(|entry| fs::symlink_metadata(entry.ok()?.path()).ok());
                    modes.extend(seen.map(|metadata| metadata.permissions().mode() & 0o7777));
                }
                modes
            });
            for _ in 0..500 {
                drop(listen(&path, None).expect("listening"));
            }
            done.store(true, Ordering::Relaxed);
            watcher.join().expect("the watcher ends")
        });

        assert!(modes.iter().all(|mode| *mode == 0o600), "{modes:?}");
    }

    #[test]
    fn the_group_gets_it_afterwards() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("run/x.sock");

        let _held = listen(&path, Some(Gid::effective())).expect("listening");

        assert_eq!(mode_of(&path), 0o660);
        assert_eq!(mode_of(path.parent().expect("has one")), 0o755);
    }

    #[test]
    fn a_socket_that_a_crash_left_is_replaced() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("x.sock");
        drop(UnixListener::bind(&path).expect("bound"));
        assert!(path.exists());

        let (listener, file) = listen(&path, None).expect("listening");

        UnixStream::connect(&path).expect("connected");
        drop((listener, file));
        assert!(!path.exists());
    }

    #[test]
    fn a_live_daemon_is_left_alone() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("x.sock");
        let _first = listen(&path, None).expect("listening");

        let error = listen(&path, None).expect_err("in use");

        assert!(matches!(error, BindError::InUse(_)), "{error}");
        assert!(error.to_string().contains("stop it first"), "{error}");
        UnixStream::connect(&path).expect("the first one still answers");
    }

    #[test]
    fn a_file_that_is_no_socket_is_kept() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("x.sock");
        fs::write(&path, "precious").expect("written");

        let error = listen(&path, None).expect_err("not a socket");

        assert!(matches!(error, BindError::NotASocket(_)), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
    }

    #[test]
    fn the_socket_of_a_successor_is_not_removed() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("x.sock");
        let (listener, file) = listen(&path, None).expect("listening");
        drop(listener);
        let _successor = listen(&path, None).expect("listening");

        drop(file);

        UnixStream::connect(&path).expect("the successor still answers");
    }
}
