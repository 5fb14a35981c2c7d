//! `resolv.conf` and systemd-resolved: what is there, and how it is changed.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

use super::error::{ErrorKind, SystemError, is_errno};
use super::tun::TunName;
use super::watch::{Watched, readable};

/// Where `resolv.conf` stands.
const DIRECTORY: &str = "/etc";
const FILE: &str = "resolv.conf";
/// While it is being written.
const DRAFT: &str = ".resolv.conf.tund";
/// As everybody reads it.
const MODE: u32 = 0o644;
/// No `resolv.conf` is longer.
const TEXT_BYTES: u64 = 64 * 1024;
/// Of systemd-resolved: whom it asks itself, and what it was told of each device, by its index.
const RESOLVED: &str = "/run/systemd/resolve";
/// How many milliseconds it may take for an answer.
const ANSWER_MS: u16 = 3000;

/// Tells when the file has changed.
#[derive(Debug)]
pub(crate) struct FileWatch(AsyncFd<Watched<Inotify>>);

impl AsRawFd for Watched<Inotify> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl FileWatch {
    /// Ready when somebody, this daemon too, has changed the file.
    pub(crate) fn poll_news(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut is_news = false;
        loop {
            let Ok(mut guard) = ready!(self.0.poll_read_ready(cx)) else {
                return Poll::Pending;
            };
            match guard.try_io(|watched| Ok(watched.get_ref().0.read_events()?)) {
                Ok(Ok(events)) => {
                    // Too many at once have no name.
                    is_news |= events
                        .iter()
                        .any(|event| event.name.as_ref().is_none_or(|name| name == FILE));
                }
                Ok(Err(_)) => return Poll::Pending, // nothing will be told any more
                Err(_would_block) if is_news => return Poll::Ready(()),
                Err(_would_block) => {}
            }
        }
    }
}

/// What is to be kept beside a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep<'a> {
    /// What was kept before.
    AsBefore,
    /// What the new file takes the place of.
    WhatIsThere,
    /// This text.
    This(&'a str),
}

/// A directory with a `resolv.conf`, and beside it the one that was there before a daemon's.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    directory: PathBuf,
    kept: String,
}

impl Place {
    /// That of this host, for the daemon with that device.
    pub(crate) fn of_this_host(tun: &TunName) -> Self {
        Self::at(DIRECTORY.into(), tun)
    }

    /// That directory.
    pub(crate) fn at(directory: PathBuf, tun: &TunName) -> Self {
        Self {
            directory,
            kept: format!("{FILE}.before-{tun}"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Begins to watch the file.
    ///
    /// # Errors
    ///
    /// When the kernel has no more watches.
    pub(crate) fn watch(&self) -> Result<FileWatch, SystemError> {
        let open = || -> io::Result<FileWatch> {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            let changes = AddWatchFlags::IN_CLOSE_WRITE
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_MOVED_FROM
                | AddWatchFlags::IN_DELETE;
            inotify.add_watch(&self.directory, changes)?;
            Ok(FileWatch(readable(Watched(inotify))?))
        };
        open().map_err(|error| self.failure("watch it", error))
    }

    /// What the file says: nothing if it is a link that leads nowhere; none if nothing is there.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub(crate) fn read(&self) -> Result<Option<String>, SystemError> {
        match read(&self.path(FILE)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let is_link = self.path(FILE).symlink_metadata().is_ok();
                Ok(is_link.then(String::new))
            }
            Err(error) => Err(self.failure("read it", error)),
        }
    }

    /// The host's own is beside the file.
    pub(crate) fn is_kept(&self) -> bool {
        self.path(&self.kept).symlink_metadata().is_ok()
    }

    /// What the host's own says, while it is kept.
    pub(crate) fn kept(&self) -> String {
        read(&self.path(&self.kept)).unwrap_or_default()
    }

    /// Replaces the file, whole at any moment.
    ///
    /// # Errors
    ///
    /// Where the directory cannot be written to; the file is as it was then.
    pub(crate) fn write(&self, text: &str, keep: Keep<'_>) -> Result<(), SystemError> {
        let written = match keep {
            Keep::WhatIsThere => self.swap(text),
            Keep::AsBefore => self.replace(text),
            Keep::This(own) => self.keep(own).and_then(|()| self.replace(text)),
        };
        written.map_err(|error| {
            let _gone = discard(&self.path(DRAFT)).is_ok();
            self.failure("have this host ask the stub for names", error)
        })
    }

    /// The new file and the old one change places, so that nothing that somebody writes in between is
    /// lost, and the old one is what it was: a link, somebody's, of some mode.
    fn swap(&self, text: &str) -> io::Result<()> {
        let (file, kept) = (self.path(FILE), self.path(&self.kept));
        discard(&kept)?;
        write_new(&kept, text.as_bytes())?;
        let swapped = renameat2(
            AT_FDCWD,
            &kept,
            AT_FDCWD,
            &file,
            RenameFlags::RENAME_EXCHANGE,
        );
        match swapped {
            Ok(()) => Ok(()),
            Err(Errno::ENOENT) => fs::rename(&kept, &file),
            // A mount point, as in a container: its name stays. Or a file system that cannot.
            Err(_) => {
                let copied = fs::read(&file).and_then(|own| {
                    discard(&kept)?;
                    write_new(&kept, &own)?;
                    write_over(&file, text.as_bytes())
                });
                if copied.is_err() {
                    discard(&kept)?;
                }
                copied
            }
        }
    }

    fn keep(&self, own: &str) -> io::Result<()> {
        discard(&self.path(DRAFT))?;
        write_new(&self.path(DRAFT), own.as_bytes())?;
        fs::rename(self.path(DRAFT), self.path(&self.kept))
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        let (file, draft) = (self.path(FILE), self.path(DRAFT));
        discard(&draft)?;
        write_new(&draft, text.as_bytes())?;
        match fs::rename(&draft, &file) {
            Err(error) if is_errno(&error, &[Errno::EBUSY]) => {
                discard(&draft)?;
                write_over(&file, text.as_bytes())
            }
            result => result,
        }
    }

    /// Puts the host's own back.
    ///
    /// # Errors
    ///
    /// It is where it was kept, then.
    pub(crate) fn put_back(&self) -> Result<(), SystemError> {
        let (file, kept) = (self.path(FILE), self.path(&self.kept));
        let done = match fs::rename(&kept, &file) {
            Err(error) if is_errno(&error, &[Errno::EBUSY]) => fs::read(&kept)
                .and_then(|own| write_over(&file, &own))
                .and_then(|()| fs::remove_file(&kept)),
            result => result,
        };
        let tried = format!("put {} back", kept.display());
        done.map_err(|error| self.failure(&tried, error))
    }

    /// Removes the file.
    ///
    /// # Errors
    ///
    /// Where that cannot be done.
    pub(crate) fn remove(&self) -> Result<(), SystemError> {
        let removed = fs::remove_file(self.path(FILE));
        removed.map_err(|error| self.failure("remove ours", error))
    }

    /// Removes what was kept.
    ///
    /// # Errors
    ///
    /// Where that cannot be done.
    pub(crate) fn forget(&self) -> Result<(), SystemError> {
        let kept = self.path(&self.kept);
        let tried = format!("remove {}", kept.display());
        fs::remove_file(kept).map_err(|error| self.failure(&tried, error))
    }

    fn failure(&self, tried: &str, error: io::Error) -> SystemError {
        let denied = [Errno::EACCES, Errno::EPERM, Errno::EROFS];
        let tried = format!("{tried}, by {}", self.path(FILE).display());
        let (kind, remedy) = if is_errno(&error, &denied) {
            (
                ErrorKind::Privilege,
                "see that it may be written to: run the daemon as root, give its unit \
                 tund-client.service.d/resolv-conf.conf, or use systemd-resolved",
            )
        } else {
            (
                ErrorKind::Failed,
                "see what is there, or write [dns] mode = \"off\"",
            )
        };
        SystemError::new(kind, tried, error, remedy)
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path)?;
    file.take(TEXT_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn discard(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(MODE).open(path)?;
    // Whatever the umask of a unit is.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(MODE))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// First the new text, then its end: the file is never empty.
fn write_over(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(bytes)?;
    file.set_len(u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
    file.sync_all()
}

/// Has systemd-resolved ask `stub` by the device `tun`: for every name, before those that other
/// devices have. Waits for its answers.
///
/// # Errors
///
/// Where it does not do so.
pub(crate) fn tell_resolved(tun: &TunName, stub: IpAddr) -> Result<(), SystemError> {
    let device = tun.to_string();
    resolvectl(&["dns", &device, &stub.to_string()])?;
    resolvectl(&["domain", &device, "~."])?;
    resolvectl(&["default-route", &device, "yes"])
}

/// Takes back what it was told, if it was told anything; true if so.
///
/// # Errors
///
/// As for [`tell_resolved`].
pub(crate) fn untell_resolved(tun: &TunName) -> Result<bool, SystemError> {
    if !is_resolved_told(tun) {
        return Ok(false);
    }
    resolvectl(&["revert", &tun.to_string()])?;
    Ok(true)
}

/// Whether systemd-resolved was told of the device.
pub(crate) fn is_resolved_told(tun: &TunName) -> bool {
    let told = Path::new(RESOLVED).join("netif");
    let is_told = |index: u32| told.join(index.to_string()).exists();
    tun.index().is_some_and(is_told)
}

/// Whether systemd-resolved runs and can be told.
pub(crate) fn has_resolved() -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut paths = std::env::split_paths(&paths);
    // Made when it starts, removed by the service manager when it ends.
    Path::new(RESOLVED).exists() && paths.any(|path| path.join("resolvectl").is_file())
}

/// Which name servers systemd-resolved asks, as a `resolv.conf`.
pub(crate) fn asked_by_resolved() -> String {
    read(&Path::new(RESOLVED).join(FILE)).unwrap_or_default()
}

/// Has systemd-resolved take a setting of a device.
fn resolvectl(arguments: &[&str]) -> Result<(), SystemError> {
    let tried = format!("resolvectl {}", arguments.join(" "));
    let remedy = "see `systemctl status systemd-resolved`; a daemon that is not root needs the polkit \
                  rule of tund (50-tund.rules)";
    let mut command = Command::new("resolvectl");
    command.args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let failed = |found: String| SystemError::new(ErrorKind::Failed, &tried, found, remedy);
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    let Some(said) = said_by(&mut child) else {
        let _ended = child.kill().is_ok();
        let _reaped = child.wait().is_ok();
        return Err(failed(format!("no answer within {ANSWER_MS} ms")));
    };
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => {
            let said = said.lines().next().unwrap_or("nothing");
            Err(failed(format!("it said: {said}")))
        }
        Err(error) => Err(failed(error.to_string())),
    }
}

/// What it says on its standard error until it ends; none if it is silent for too long before.
fn said_by(child: &mut Child) -> Option<String> {
    let stderr = child.stderr.as_mut()?;
    let (mut said, mut piece) = (Vec::new(), [0; 1024]);
    loop {
        let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLIN)];
        let count = poll(&mut ready, PollTimeout::from(ANSWER_MS)).ok()?;
        if count == 0 {
            return None;
        }
        match stderr.read(&mut piece).ok()? {
            0 => return Some(String::from_utf8_lossy(&said).into_owned()),
            len => said.extend_from_slice(piece.get(..len)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::thread;

    use super::*;

    const OWN: &str = "nameserver 192.0.2.53\nsearch example.org\n";
    const OURS: &str = "nameserver 10.111.0.1\n";
    const KEPT: &str = "resolv.conf.before-tund0";

    fn stage() -> (tempfile::TempDir, Place) {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::at(directory.path().into(), &"tund0".parse().unwrap());
        (directory, place)
    }

    fn names(place: &Place) -> Vec<String> {
        let entries = fs::read_dir(&place.directory).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    fn text(place: &Place) -> String {
        place.read().unwrap().unwrap()
    }

    #[test]
    fn a_file_is_kept_as_it_was_and_put_back() {
        let (_directory, place) = stage();
        fs::write(place.path(FILE), OWN).unwrap();
        let mode = fs::Permissions::from_mode(0o640);
        fs::set_permissions(place.path(FILE), mode).unwrap();

        place.write(OURS, Keep::WhatIsThere).unwrap();
        assert_eq!(text(&place), OURS);
        assert_eq!(place.kept(), OWN);
        assert_eq!(names(&place), [FILE, KEPT]);
        place.write(OURS, Keep::AsBefore).unwrap();
        assert_eq!(place.kept(), OWN);

        place.put_back().unwrap();
        assert_eq!(text(&place), OWN);
        assert_eq!(names(&place), [FILE]);
        let mode = fs::metadata(place.path(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    #[test]
    fn a_link_is_kept_as_a_link() {
        let (_directory, place) = stage();
        fs::write(place.path("elsewhere"), OWN).unwrap();
        symlink("elsewhere", place.path(FILE)).unwrap();

        place.write(OURS, Keep::WhatIsThere).unwrap();
        let elsewhere = fs::read_to_string(place.path("elsewhere")).unwrap();
        assert_eq!(elsewhere, OWN, "not written through it");
        place.put_back().unwrap();

        let leads_to = fs::read_link(place.path(FILE)).unwrap();
        assert_eq!(leads_to, Path::new("elsewhere"));
    }

    #[test]
    fn a_link_that_leads_nowhere_is_there_all_the_same() {
        let (_directory, place) = stage();
        assert_eq!(place.read().unwrap(), None);
        symlink("nowhere", place.path(FILE)).unwrap();
        assert_eq!(place.read().unwrap(), Some(String::new()));
        place.write(OURS, Keep::WhatIsThere).unwrap();
        assert!(place.is_kept());
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_missing() {
        let (_directory, place) = stage();
        fs::create_dir(place.path(FILE)).unwrap();
        assert!(place.read().is_err());
    }

    #[test]
    fn a_file_that_is_gone_meanwhile_is_written_all_the_same() {
        let (_directory, place) = stage();
        place.write(OURS, Keep::WhatIsThere).unwrap();
        assert_eq!(names(&place), [FILE]);
        place.write(OURS, Keep::This(OWN)).unwrap();
        assert_eq!(place.kept(), OWN);
    }

    #[test]
    fn a_mount_point_is_written_over_and_put_back() {
        let (_directory, place) = stage();
        let own = place.path("own");
        fs::write(&own, OWN.repeat(20)).unwrap();
        fs::write(place.path(FILE), "").unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                use nix::mount::{MsFlags, mount};
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
                let none = None::<&str>;
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(none, "/", none, private, none).unwrap();
                mount(Some(&own), &place.path(FILE), none, MsFlags::MS_BIND, none).unwrap();

                place.write(OURS, Keep::WhatIsThere).unwrap();
                assert_eq!(text(&place), OURS);
                place.write(OWN, Keep::AsBefore).unwrap();
                place.put_back().unwrap();
                assert_eq!(text(&place), OWN.repeat(20));
                assert!(!place.is_kept());
            });
        });
    }
}
