//! Ways to the server: its addresses, and the devices that lead there past our TUN.

use crate::config::Config;
use crate::sys::route::{Path, PathQuery, paths};
use crate::sys::tun::TunName;
use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::task::{Context, Poll};
use tokio::task::JoinSet;
use tund_client_core::PathId;
use tund_daemon::config::{Endpoint, Host};

/// The most addresses of all names together.
const ADDRESSES_MAX: usize = 16;
/// Addresses that keep their number; beyond it, those that no name leads to any more lose theirs.
const NUMBERS_MAX: usize = 256;

/// What is known of the ways to the server.
pub(super) struct Paths {
    endpoints: Vec<Endpoint>,
    preference: Vec<String>,
    tun: TunName,
    fwmark: u32,
    /// Of each endpoint the addresses that it was last known to have: a name that cannot be
    /// resolved, as without a network, keeps its own.
    addresses: Vec<Vec<SocketAddr>>,
    /// Every address ever met; its place is its number, whatever order names resolve to, as the
    /// core remembers at which address its session was made.
    numbers: Vec<SocketAddr>,
    resolving: JoinSet<Vec<Vec<SocketAddr>>>,
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
            fwmark: config.fwmark,
            tun,
            endpoints,
            numbers: Vec::new(),
            resolving: JoinSet::new(),
            known: BTreeMap::new(),
        }
    }

    /// Asks for the addresses of names again, unless that is under way.
    pub(super) fn resolve(&mut self) {
        let has_names = self
            .endpoints
            .iter()
            .any(|e| matches!(e.host, Host::Name(_)));
        if !has_names || !self.resolving.is_empty() {
            return;
        }
        let endpoints = self.endpoints.clone();
        self.resolving.spawn_blocking(move || {
            let all = endpoints.iter().map(|endpoint| match &endpoint.host {
                Host::Address(ip) => vec![SocketAddr::new(*ip, endpoint.port)],
                Host::Name(name) => {
                    let found = (name.as_str(), endpoint.port).to_socket_addrs();
                    found.map(Iterator::collect).unwrap_or_default()
                }
            });
            all.collect()
        });
    }

    /// Ready when names have been resolved.
    pub(super) fn poll_resolved(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.resolving.is_empty() {
            return Poll::Pending;
        }
        if let Poll::Ready(Some(Ok(found))) = self.resolving.poll_join_next(cx)
            && renew(&mut self.addresses, found)
        {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Every usable way, best first.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub(super) fn find(&mut self) -> Result<Vec<PathId>, String> {
        self.known.clear();
        let mut order = Vec::new();
        let mut failure = None;
        let current: Vec<_> = self.addresses.iter().flatten().copied().collect();
        let current = current.get(..ADDRESSES_MAX).unwrap_or(&current);
        for server in current {
            let address = number_of(*server, &mut self.numbers, current);
            let query = PathQuery {
                server: *server,
                tun: &self.tun,
                fwmark: self.fwmark,
                preference: &self.preference,
            };
            match paths(&query) {
                Ok(found) => {
                    for path in found {
                        let id = PathId {
                            interface: path.index,
                            address,
                        };
                        if self.known.insert(id, (path, *server)).is_none() {
                            order.push(id);
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

    /// What a number stands for.
    pub(super) fn get(&self, id: PathId) -> Option<&(Path, SocketAddr)> {
        self.known.get(&id)
    }

    pub(super) fn fwmark(&self) -> u32 {
        self.fwmark
    }
}

/// Takes over what was found for each endpoint; true if that was anything.
fn renew(known: &mut [Vec<SocketAddr>], found: Vec<Vec<SocketAddr>>) -> bool {
    let mut any = false;
    for (old, new) in known.iter_mut().zip(found) {
        if !new.is_empty() {
            any = true;
            *old = new;
        }
    }
    any
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

        assert!(renew(&mut known, vec![Vec::new(), vec![plain]]));
        assert_eq!(known, [[named], [plain]]);

        assert!(!renew(&mut known, vec![Vec::new(), Vec::new()]));
        assert_eq!(known, [[named], [plain]]);
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
