//! What the kernel lets this process do, asked before it is needed, so that the answer is clear.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A Linux capability that a daemon may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// TUN devices, routes, packet marks.
    NetAdmin,
    /// Ports below 1024.
    NetBindService,
}

impl Capability {
    const fn bit(self) -> u32 {
        match self {
            Self::NetAdmin => 12,
            Self::NetBindService => 10,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetBindService => "CAP_NET_BIND_SERVICE",
        }
    }
}

/// A privilege that is needed and not there; the program ends with 77.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name} is missing, which is needed {purpose}; run as root (sudo), or give the unit \
     AmbientCapabilities={name}", name = .capability.name()
)]
pub struct MissingPrivilege {
    /// What is missing.
    pub capability: Capability,
    /// What for: `to open the TUN device`.
    pub purpose: String,
}

impl MissingPrivilege {
    /// `purpose` completes "which is needed …".
    pub fn new(capability: Capability, purpose: impl Into<String>) -> Self {
        Self {
            capability,
            purpose: purpose.into(),
        }
    }
}

impl Capability {
    /// Makes sure that the process has it.
    ///
    /// # Errors
    ///
    /// It is missing. Where the kernel does not tell, this is no error: the call that needs it
    /// will say.
    pub fn require(self, purpose: &str) -> Result<(), MissingPrivilege> {
        if has_capability(self) == Some(false) {
            return Err(MissingPrivilege::new(self, purpose));
        }
        Ok(())
    }
}

/// Whether the capability is in the effective set; none where `/proc` does not tell.
pub fn has_capability(capability: Capability) -> Option<bool> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    effective_set(&status).map(|set| set >> capability.bit() & 1 == 1)
}

fn effective_set(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Raises the limit of open files as far as it goes, and returns it: each flow may need a socket.
///
/// # Errors
///
/// The system call's.
pub fn raise_file_limit() -> std::io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read_and_not_another() {
        let status = "CapInh:\t0000000000000000\nCapPrm:\t00000000ffffffff\n\
                      CapEff:\t0000000000001000\nCapBnd:\t000001ffffffffff\n";

        assert_eq!(effective_set(status), Some(1 << 12));
        assert_eq!(effective_set("Name:\tx\n"), None);
    }

    #[test]
    fn a_missing_privilege_says_which_and_what_to_do() {
        let error = MissingPrivilege::new(Capability::NetAdmin, "to open the TUN device");

        assert_eq!(
            error.to_string(),
            "CAP_NET_ADMIN is missing, which is needed to open the TUN device; run as root \
             (sudo), or give the unit AmbientCapabilities=CAP_NET_ADMIN"
        );
    }

    #[test]
    fn the_file_limit_ends_at_the_hard_limit() {
        let limit = raise_file_limit().expect("raised");

        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("asked");
        assert_eq!((soft, hard), (limit, limit));
    }
}
