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

/// What is known of the ways to the server.
pub(super) struct Paths {
    endpoints: Vec<Endpoint>,
    preference: Vec<String>,
    tun: TunName,
    fwmark: u32,
    /// What the names resolved to last, in the order of the configuration.
    addresses: Vec<SocketAddr>,
    resolving: JoinSet<Vec<SocketAddr>>,
    known: BTreeMap<PathId, (Path, SocketAddr)>,
}

impl Paths {
    pub(super) fn new(config: &Config, tun: TunName) -> Self {
        let endpoints = config.server_addresses.clone();
        let addresses = endpoints
            .iter()
            .filter_map(|endpoint| match &endpoint.host {
                Host::Address(ip) => Some(SocketAddr::new(*ip, endpoint.port)),
                Host::Name(_) => None,
            });
        Self {
            addresses: addresses.collect(),
            preference: config.interfaces.clone(),
            fwmark: config.fwmark,
            tun,
            endpoints,
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
            let all = endpoints.iter().flat_map(|endpoint| match &endpoint.host {
                Host::Address(ip) => vec![SocketAddr::new(*ip, endpoint.port)],
                Host::Name(name) => {
                    let found = (name.as_str(), endpoint.port).to_socket_addrs();
                    found.map(Iterator::collect).unwrap_or_default()
                }
            });
            all.take(ADDRESSES_MAX).collect()
        });
    }

    /// Ready when names have been resolved.
    pub(super) fn poll_resolved(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.resolving.is_empty() {
            return Poll::Pending;
        }
        match self.resolving.poll_join_next(cx) {
            Poll::Ready(Some(Ok(addresses))) if !addresses.is_empty() => {
                self.addresses = addresses;
                Poll::Ready(())
            }
            Poll::Ready(_) | Poll::Pending => Poll::Pending,
        }
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
        for (index, server) in self.addresses.iter().enumerate() {
            let query = PathQuery {
                server: *server,
                tun: &self.tun,
                fwmark: self.fwmark,
                preference: &self.preference,
            };
            match paths(&query) {
                Ok(found) => {
                    for path in found {
                        let address = u16::try_from(index).unwrap_or(u16::MAX);
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
