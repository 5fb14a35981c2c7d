//! The one error of everything that touches the system: what was tried, what was found, what to do.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// A change of the system, or a question to it, that failed.
#[derive(Debug, thiserror::Error)]
#[error("{tried}: {found}; {remedy}")]
pub(crate) struct SystemError {
    kind: ErrorKind,
    tried: String,
    found: String,
    remedy: String,
    source: Option<io::Error>,
}

/// What sort of failure it was, for those who react to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ErrorKind {
    /// Something of that name or address exists already and is not ours to change.
    Conflict,
    /// The kernel refused for a reason of the moment; trying again may help.
    Failed,
    /// Another process holds it.
    InUse,
    /// A part of the system is not there: a device node, a program, a kernel feature.
    Missing,
    /// A capability is missing: exit code 77.
    Privilege,
}

impl SystemError {
    /// A failure of `kind` without a cause from the kernel.
    pub(crate) fn new(
        kind: ErrorKind,
        tried: impl fmt::Display,
        found: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> Self {
        Self {
            kind,
            tried: tried.to_string(),
            found: found.to_string(),
            remedy: remedy.to_string(),
            source: None,
        }
    }

    /// What the kernel answered to `tried`; EPERM and EACCES become a missing CAP_NET_ADMIN.
    pub(crate) fn from_io(
        tried: impl fmt::Display,
        source: io::Error,
        remedy: impl fmt::Display,
    ) -> Self {
        let denied = is_errno(&source, &[Errno::EPERM, Errno::EACCES]);
        if denied {
            return Self::missing_net_admin(tried, source);
        }
        Self::new(ErrorKind::Failed, tried, &source, remedy).caused_by(source)
    }

    /// The privilege that everything here needs is missing.
    pub(crate) fn missing_net_admin(tried: impl fmt::Display, source: io::Error) -> Self {
        let found = format!("{source}: the capability CAP_NET_ADMIN is missing");
        let remedy = "run it as root, or give it AmbientCapabilities=CAP_NET_ADMIN in its unit";
        Self::new(ErrorKind::Privilege, tried, found, remedy).caused_by(source)
    }

    /// What sort of failure this is.
    pub(crate) fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the program lacks a privilege: exit code 77.
    pub(crate) fn is_missing_privilege(&self) -> bool {
        self.kind == ErrorKind::Privilege
    }

    fn caused_by(mut self, source: io::Error) -> Self {
        self.source = Some(source);
        self
    }
}

/// Whether `error` came from the kernel with one of `candidates`.
pub(super) fn is_errno(error: &io::Error, candidates: &[Errno]) -> bool {
    error
        .raw_os_error()
        .is_some_and(|raw| candidates.contains(&Errno::from_raw(raw)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_permission_names_the_capability() {
        let error = SystemError::from_io("set the MTU", Errno::EPERM.into(), "try again");

        assert!(error.is_missing_privilege());
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    }

    #[test]
    fn any_other_answer_keeps_its_own_remedy() {
        let error = SystemError::from_io("set the MTU", Errno::EINVAL.into(), "lower [tun] mtu");

        assert_eq!(error.kind(), ErrorKind::Failed);
        assert!(error.to_string().starts_with("set the MTU: "), "{error}");
        assert!(error.to_string().ends_with("; lower [tun] mtu"), "{error}");
    }
}
