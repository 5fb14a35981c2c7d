//! Ways to the server: its addresses, and the devices that lead there past our TUN.

use super::names::name_servers;
use crate::config::Config;
use crate::sys::error::SystemError;
use crate::sys::resolve::nat64::{Nat64Prefix, WELL_KNOWN_NAME};
use crate::sys::resolve::{Way, look_up};
use crate::sys::route::{Path, PathQuery, paths};
use crate::sys::tun::TunName;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::{Context, Poll};
use tokio::task::JoinSet;
use tund_client_core::{Path as UsablePath, PathId};
use tund_daemon::config::{Endpoint, Host};

/// The most addresses of all names together.
const ADDRESSES_MAX: usize = 16;
/// Addresses that keep their number; beyond it, those that no name leads to any more lose theirs.
const NUMBERS_MAX: usize = 256;
/// Addresses for documentation (RFC 5737, RFC 3849): what leads there leads to the world.
const OUTSIDE: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 53),
    SocketAddr::new(
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        53,
    ),
];

/// Prefixes of translators that are tried.
const PREFIXES_MAX: usize = 4;

/// What was found out about names.
struct Resolved {
    /// Of each endpoint.
    addresses: Vec<Vec<SocketAddr>>,
    /// Translators, where they were asked for.
    prefixes: Option<Vec<Nat64Prefix>>,
}

/// What finding out takes, on a thread that may wait.
struct Resolver {
    endpoints: Vec<Endpoint>,
    tun: TunName,
    fwmark: u32,
    preference: Vec<String>,
    stub: Option<IpAddr>,
    /// No device leads to an IPv4 address: is there a translator?
    lacks_v4: bool,
}

impl Resolver {
    fn run(&self) -> Resolved {
        let servers = name_servers(&self.tun, self.stub);
        let ways = self.ways(&servers.known);
        let find = |name: &str| {
            // Where the C library asks the stub, it would need the server for that.
            look_up(name, &ways, self.fwmark, !servers.is_stub_asked)
        };
        let all = self.endpoints.iter().map(|endpoint| match &endpoint.host {
            Host::Address(ip) => vec![SocketAddr::new(*ip, endpoint.port)],
            Host::Name(name) => {
                let at = |ip| SocketAddr::new(ip, endpoint.port);
                find(name).into_iter().map(at).collect()
            }
        });
        let prefixes = self.lacks_v4.then(|| {
            let mut prefixes = Vec::new();
            for address in find(WELL_KNOWN_NAME) {
                let IpAddr::V6(address) = address else {
                    continue;
                };
                prefixes.extend(Nat64Prefix::shown_by(address).filter(|p| !prefixes.contains(p)));
            }
            if prefixes.is_empty() {
                prefixes.push(Nat64Prefix::well_known());
            }
            prefixes.truncate(PREFIXES_MAX);
            prefixes
        });
        Resolved {
            addresses: all.collect(),
            prefixes,
        }
    }

    /// Name servers, and the devices but the TUN that lead to them.
    fn ways(&self, servers: &[SocketAddr]) -> Vec<Way> {
        let mut ways = Vec::new();
        for &server in servers {
            let query = PathQuery {
                server,
                tun: &self.tun,
                fwmark: self.fwmark,
                preference: &self.preference,
            };
            match paths(&query) {
                Ok(found) => ways.extend(found.into_iter().map(|path| Way { server, path })),
                Err(error) => tracing::debug!(%error, "no path to a name server"),
            }
        }
        ways
    }
}

/// What is known of the ways to the server.
pub(super) struct Paths {
    endpoints: Vec<Endpoint>,
    preference: Vec<String>,
    metered: Vec<String>,
    tun: TunName,
    fwmark: u32,
    /// Where the server's resolver answers, which is not asked for the server's name.
    stub: Option<IpAddr>,
    /// Of each endpoint the addresses that it was last known to have: a name that cannot be
    /// resolved, as without a network, keeps its own.
    addresses: Vec<Vec<SocketAddr>>,
    /// Every address ever met; its place is its number, whatever order names resolve to, as the
    /// core remembers at which address its session was made.
    numbers: Vec<SocketAddr>,
    resolving: JoinSet<Resolved>,
    /// No device led to an IPv4 address of the server.
    lacks_v4: bool,
    /// Translators to IPv4, where there is no other way to it.
    prefixes: Vec<Nat64Prefix>,
    known: BTreeMap<PathId, (Path, SocketAddr)>,
}

impl Paths {
    pub(super) fn new(config: &Config, tun: TunName) -> Self {
        let endpoints = config.server_addresses.clone();
        let addresses = endpoints.iter().map(|endpoint| match &endpoint.host {
            Host::Address(ip) => vec![SocketAddr::new(*ip, endpoint.port)],
            Host::Name(_) => Vec::new(),
        });
        Self {
            addresses: addresses.collect(),
            preference: config.interfaces.clone(),
            metered: config.metered.clone(),
            fwmark: config.fwmark,
            stub: config.stub,
            tun,
            endpoints,
            numbers: Vec::new(),
            resolving: JoinSet::new(),
            lacks_v4: false,
            prefixes: Vec::new(),
            known: BTreeMap::new(),
        }
    }

    /// Asks for the addresses of names again, unless that is under way.
    pub(super) fn resolve(&mut self) {
        let has_names = self
            .endpoints
            .iter()
            .any(|e| matches!(e.host, Host::Name(_)));
        if !(has_names || self.lacks_v4) || !self.resolving.is_empty() {
            return;
        }
        let resolver = Resolver {
            endpoints: self.endpoints.clone(),
            tun: self.tun.clone(),
            fwmark: self.fwmark,
            preference: self.preference.clone(),
            stub: self.stub,
            lacks_v4: self.lacks_v4,
        };
        self.resolving.spawn_blocking(move || resolver.run());
    }

    /// Ready when something new was found out about names.
    pub(super) fn poll_resolved(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.resolving.is_empty() {
            return Poll::Pending;
        }
        if let Poll::Ready(Some(Ok(found))) = self.resolving.poll_join_next(cx) {
            let mut is_news = renew(&mut self.addresses, found.addresses);
            if let Some(prefixes) = found.prefixes {
                is_news |= self.prefixes != prefixes;
                self.prefixes = prefixes;
            }
            if is_news {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// Whether news of the network alone can lead to a path that was not found: an address is known
    /// and nothing leads there, or nothing leads anywhere where names could be asked for.
    pub(super) fn waits_for_network(&self) -> bool {
        self.addresses.iter().any(|known| !known.is_empty()) || !self.leads_outside()
    }

    fn leads_outside(&self) -> bool {
        let servers = name_servers(&self.tun, self.stub).known.into_iter();
        let servers = servers.filter(|server| !server.ip().is_loopback());
        let mut outside = servers.chain(OUTSIDE);
        outside.any(|server| self.direct(server).map_or(true, |found| !found.is_empty()))
    }

    /// Every usable way, best first.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub(super) fn find(&mut self) -> Result<Vec<UsablePath>, String> {
        self.known.clear();
        let mut order = Vec::new();
        let mut failure = None;
        self.lacks_v4 = false;
        let current: Vec<_> = self.addresses.iter().flatten().copied().collect();
        let current = current.get(..ADDRESSES_MAX).unwrap_or(&current);
        for server in current {
            let address = number_of(*server, &mut self.numbers, current);
            match self.find_one(*server) {
                Ok((server, found)) => {
                    self.lacks_v4 |= server.is_ipv4() && found.is_empty();
                    for path in found {
                        let id = PathId {
                            interface: path.index,
                            address,
                        };
                        let is_metered = is_metered(&path.interface, &self.metered);
                        if self.known.insert(id, (path, server)).is_none() {
                            order.push(UsablePath { id, is_metered });
                        }
                    }
                }
                Err(error) => failure = Some(error.to_string()),
            }
        }
        if order.is_empty() {
            return Err(failure.unwrap_or_else(|| {
                "no device but the TUN leads to the server; is there a network?".to_owned()
            }));
        }
        Ok(order)
    }

    /// The paths to one address; if there are none, those to what a translator makes of it.
    fn find_one(&self, server: SocketAddr) -> Result<(SocketAddr, Vec<Path>), SystemError> {
        let direct = self.direct(server)?;
        let IpAddr::V4(v4) = server.ip() else {
            return Ok((server, direct));
        };
        if direct.is_empty() {
            for prefix in &self.prefixes {
                let translated = SocketAddr::new(prefix.address_of(v4).into(), server.port());
                let found = self.direct(translated)?;
                if !found.is_empty() {
                    return Ok((translated, found));
                }
            }
        }
        Ok((server, direct))
    }

    fn direct(&self, server: SocketAddr) -> Result<Vec<Path>, SystemError> {
        let query = PathQuery {
            server,
            tun: &self.tun,
            fwmark: self.fwmark,
            preference: &self.preference,
        };
        paths(&query)
    }

    /// What a number stands for.
    pub(super) fn get(&self, id: PathId) -> Option<&(Path, SocketAddr)> {
        self.known.get(&id)
    }

    pub(super) fn fwmark(&self) -> u32 {
        self.fwmark
    }
}

/// Takes over what was found for each endpoint; true if that is news.
fn renew(known: &mut [Vec<SocketAddr>], found: Vec<Vec<SocketAddr>>) -> bool {
    let mut is_news = false;
    for (old, new) in known.iter_mut().zip(found) {
        if !new.is_empty() && *old != new {
            is_news = true;
            *old = new;
        }
    }
    is_news
}

/// Whether bytes cost on an interface, as the configuration says.
fn is_metered(interface: &str, patterns: &[String]) -> bool {
    patterns
        .iter()
        .any(|pattern| match pattern.strip_suffix('*') {
            Some(begin) => interface.starts_with(begin),
            None => interface == pattern,
        })
}

/// The number of an address, a new one if it was never met.
fn number_of(server: SocketAddr, numbers: &mut Vec<SocketAddr>, current: &[SocketAddr]) -> u16 {
    let known = numbers.iter().position(|of| *of == server);
    let place = known.unwrap_or_else(|| {
        if numbers.len() < NUMBERS_MAX {
            numbers.push(server);
            return numbers.len() - 1;
        }
        let stale = numbers.iter().position(|of| !current.contains(of));
        let place = stale.unwrap_or(0);
        if let Some(number) = numbers.get_mut(place) {
            *number = server;
        }
        place
    });
    u16::try_from(place).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: usize) -> SocketAddr {
        let low = u16::try_from(n).unwrap();
        SocketAddr::from(([192, 0, 2, 1], low))
    }

    #[test]
    fn an_address_keeps_its_number_in_whatever_order_names_resolve() {
        let mut numbers = Vec::new();
        let (one, two) = (address(1), address(2));
        assert_eq!(number_of(one, &mut numbers, &[one, two]), 0);
        assert_eq!(number_of(two, &mut numbers, &[one, two]), 1);

        assert_eq!(number_of(two, &mut numbers, &[two, one]), 1);
        assert_eq!(number_of(one, &mut numbers, &[two, one]), 0);
    }

    #[test]
    fn a_name_that_cannot_be_resolved_any_more_keeps_its_addresses() {
        let (named, plain) = (address(1), address(2));
        let mut known = vec![Vec::new(), vec![plain]];
        assert!(renew(&mut known, vec![vec![named], vec![plain]]));

        assert!(!renew(&mut known, vec![Vec::new(), vec![plain]]));
        assert_eq!(known, [[named], [plain]]);

        let moved = address(3);
        assert!(renew(&mut known, vec![vec![moved], Vec::new()]));
        assert_eq!(known, [[moved], [plain]]);
    }

    #[test]
    fn patterns_name_one_interface_or_all_that_begin_so() {
        let patterns = ["ww*".to_owned(), "usb0".to_owned()];

        for (name, metered) in [
            ("wwan0", true),
            ("wwp0s20", true),
            ("ww", true),
            ("wlan0", false),
            ("usb0", true),
            ("usb01", false),
        ] {
            assert_eq!(is_metered(name, &patterns), metered, "{name}");
        }
    }

    #[test]
    fn numbers_are_bounded_and_current_addresses_keep_theirs() {
        let mut numbers = Vec::new();
        let kept = address(0);
        for n in 0..2 * NUMBERS_MAX {
            let current = [kept, address(n)];
            assert_eq!(number_of(kept, &mut numbers, &current), 0);
            let number = number_of(address(n), &mut numbers, &current);
            assert!(usize::from(number) < NUMBERS_MAX);
        }
        assert_eq!(numbers.len(), NUMBERS_MAX);
    }
}
