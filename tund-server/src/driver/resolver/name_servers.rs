//! Which name servers this host asks.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tund_daemon::clock;
use tund_daemon::resolv_conf::{DNS_PORT, name_servers};
use tund_session::Instant;

/// How old may be what is known of a file.
const READ_EVERY: Duration = Duration::from_secs(1);

/// The name servers of `resolv.conf`, as of a second ago at most.
#[derive(Debug)]
pub(super) struct NameServers {
    file: PathBuf,
    /// Whom a resolver on this host asks.
    behind: PathBuf,
    known: Vec<SocketAddr>,
    read_at: Option<Instant>,
}

impl NameServers {
    /// Those of this host.
    pub(super) fn of_this_host() -> Self {
        let behind = "/run/systemd/resolve/resolv.conf";
        Self::of_files("/etc/resolv.conf".into(), behind.into())
    }

    pub(super) fn of_files(file: PathBuf, behind: PathBuf) -> Self {
        Self {
            file,
            behind,
            known: Vec::new(),
            read_at: None,
        }
    }

    /// These, whatever any file says.
    #[cfg(test)]
    pub(super) fn always(known: Vec<SocketAddr>) -> Self {
        const LONG: Duration = Duration::from_secs(3600);
        Self {
            known,
            read_at: Some(clock::now() + LONG),
            ..Self::of_files(PathBuf::new(), PathBuf::new())
        }
    }

    /// In the order in which they are to be asked.
    pub(super) fn list(&mut self) -> Vec<SocketAddr> {
        let now = clock::now();
        let is_fresh = self.read_at.is_some_and(|at| at + READ_EVERY > now);
        if !is_fresh {
            self.read_at = Some(now);
            self.known = self.read();
        }
        self.known.clone()
    }

    fn read(&self) -> Vec<SocketAddr> {
        let own = text(&self.file);
        let outside = name_servers(&own, |ip| !ip.is_loopback() && !ip.is_unspecified());
        if !outside.is_empty() {
            return outside;
        }
        // A resolver on this host answers from its hosts file too, which is no client's business:
        // where it says whom it asks, they are asked.
        let behind = name_servers(&text(&self.behind), |ip| !ip.is_loopback());
        if !behind.is_empty() {
            return behind;
        }
        let inside = name_servers(&own, |ip| !ip.is_unspecified());
        if !inside.is_empty() {
            return inside;
        }
        // Without any, it is the one on this host (resolv.conf(5)).
        vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), DNS_PORT)]
    }
}

/// What is in a file, whatever its comments are written in; nothing if there is none.
fn text(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_on_this_host_is_the_last_resort() {
        let directory = tempfile::tempdir().unwrap();
        let [own, behind] = ["own", "behind"].map(|name| directory.path().join(name));
        let list = || {
            let mut servers = NameServers::of_files(own.clone(), behind.clone());
            servers
                .list()
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(list(), ["127.0.0.1:53"], "there is no file");
        fs::write(&own, b"# caf\xe9\nnameserver 127.0.0.53\n").unwrap();
        assert_eq!(list(), ["127.0.0.53:53"]);
        fs::write(&behind, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(list(), ["192.0.2.1:53"]);
        fs::write(&own, "search example.org\n").unwrap();
        assert_eq!(list(), ["192.0.2.1:53"], "by default it is loopback");
        fs::remove_file(&behind).unwrap();
        assert_eq!(list(), ["127.0.0.1:53"]);
        fs::write(&own, "nameserver 0.0.0.0\n").unwrap();
        assert_eq!(list(), ["127.0.0.1:53"]);
        fs::write(&own, "nameserver 127.0.0.53\nnameserver 192.0.2.7\n").unwrap();
        assert_eq!(list(), ["192.0.2.7:53"]);
    }
}
