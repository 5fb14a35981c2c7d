//! Who is at the other end of a control connection, and what that person may do.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Gid, Group, Uid};

/// The group whose members read totals.
const READERS: &str = "tund";

/// The group whose members do everything that root does here.
const ADMINISTRATORS: &str = "tund-admin";

/// More groups than this in one process are not looked at: the kernel allows 65,536.
const GROUPS_MAX: usize = 1024;

/// What a caller may do, the greater including the smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Counts and states; no destinations, no contents.
    Totals,
    /// Everything, changes too.
    Everything,
}

/// The process at the other end, as the kernel saw it when it connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group and all supplementary ones.
    pub gids: Vec<u32>,
    /// Its process id, for logs only: it may be gone.
    pub pid: i32,
}

impl Caller {
    /// Asks the kernel about the other end.
    pub(super) fn of(socket: &impl AsFd) -> io::Result<Self> {
        let credentials = getsockopt(socket, PeerCredentials)?;
        let mut gids = supplementary_groups(socket)?;
        gids.push(credentials.gid());
        Ok(Self {
            uid: credentials.uid(),
            gids,
            pid: credentials.pid(),
        })
    }
}

/// Who may do what. Looked up once: a name service that hangs must not hang the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rights {
    pub(super) own_uid: u32,
    pub(super) readers: Option<u32>,
    pub(super) administrators: Option<u32>,
}

impl Rights {
    /// Reads the group database.
    pub(super) fn look_up() -> Self {
        let gid = |name| {
            Group::from_name(name)
                .ok()
                .flatten()
                .map(|group| group.gid.as_raw())
        };
        Self {
            own_uid: Uid::effective().as_raw(),
            readers: gid(READERS),
            administrators: gid(ADMINISTRATORS),
        }
    }

    /// The group that the socket is given to.
    pub(super) fn socket_group(&self) -> Option<Gid> {
        self.readers.map(Gid::from_raw)
    }

    /// What the caller may do; none if nothing.
    pub(super) fn access(&self, caller: &Caller) -> Option<Access> {
        let is_in = |group: Option<u32>| group.is_some_and(|gid| caller.gids.contains(&gid));
        if caller.uid == 0 || caller.uid == self.own_uid || is_in(self.administrators) {
            Some(Access::Everything)
        } else if is_in(self.readers) {
            Some(Access::Totals)
        } else {
            None
        }
    }
}

/// The supplementary groups of the process at the other end (`SO_PEERGROUPS`).
///
/// They come from the process itself and not from the group database, so that what `newgrp` or a
/// service manager gave or took counts.
#[expect(unsafe_code, reason = "nix has no SO_PEERGROUPS")]
fn supplementary_groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; GROUPS_MAX];
    let mut len = libc::socklen_t::try_from(GROUPS_MAX * size_of::<libc::gid_t>())
        .map_err(io::Error::other)?;
    // SAFETY: the buffer is writable and `len` bytes long, and both outlive the call; the file
    // descriptor is open as long as `socket` is borrowed.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    match Errno::result(result) {
        // More groups than the buffer holds: the caller is taken to be in none.
        Err(Errno::ERANGE) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
        Ok(_) => {
            let len = usize::try_from(len).map_err(io::Error::other)?;
            groups.truncate(len / size_of::<libc::gid_t>());
            Ok(groups)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use nix::unistd::{getgroups, getpid};

    use super::*;

    const RIGHTS: Rights = Rights {
        own_uid: 990,
        readers: Some(80),
        administrators: Some(81),
    };

    fn caller(uid: u32, gids: &[u32]) -> Caller {
        Caller {
            uid,
            gids: gids.to_vec(),
            pid: 1,
        }
    }

    #[test]
    fn each_kind_of_caller_may_do_what_the_interface_says() {
        for (who, expected) in [
            (caller(0, &[0]), Some(Access::Everything)),
            (caller(990, &[990]), Some(Access::Everything)),
            (caller(1000, &[1000, 81]), Some(Access::Everything)),
            (caller(1000, &[1000, 80, 81]), Some(Access::Everything)),
            (caller(1000, &[1000, 80]), Some(Access::Totals)),
            (caller(1000, &[1000]), None),
            (caller(80, &[1000]), None),
        ] {
            assert_eq!(RIGHTS.access(&who), expected, "{who:?}");
        }
    }

    #[test]
    fn groups_that_do_not_exist_give_nothing() {
        let rights = Rights {
            readers: None,
            administrators: None,
            ..RIGHTS
        };

        assert_eq!(rights.access(&caller(1000, &[0, 80, 81])), None);
    }

    #[test]
    fn the_kernel_tells_who_connected() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");

        let caller = Caller::of(&ours).expect("asked");

        assert_eq!(caller.uid, Uid::effective().as_raw());
        assert_eq!(caller.pid, getpid().as_raw());
        let mut groups: Vec<u32> = getgroups()
            .expect("asked")
            .into_iter()
            .map(Gid::as_raw)
            .collect();
        groups.push(Gid::effective().as_raw());
        assert_eq!(caller.gids, groups);
    }
}
