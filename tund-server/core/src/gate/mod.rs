//! The gate: how many connections that have not proved a key there may be, and for how long.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use tund_session::{Instant, LinkId};

/// Unauthenticated connections at once; at the limit one is displaced, or the newcomer refused.
pub const MAX_PENDING: usize = 512;
/// Of them, from one IPv4 /24 or IPv6 /64; at the limit likewise.
pub const MAX_PENDING_PER_NETWORK: usize = 64;
/// How long each may take to authenticate; then it is closed.
pub const AUTHENTICATION_TIME: Duration = Duration::from_secs(10);
/// How long each is safe from being displaced by a newcomer of its own network: an honest
/// handshake is over by then, an idle connection is not. Shorter and a burst of honest clients of
/// one network displaces itself; longer and idle connections keep an honest neighbour out.
pub const UNDISTURBED_TIME: Duration = Duration::from_secs(2);
/// Between two reports of what was turned away.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Counts connections from accept to authentication and says which one has to go.
///
/// When there is no room, networks are treated as equals and the one with most connections gives
/// way: first a newcomer displaces the oldest connection of its own network if that has reached
/// [`MAX_PENDING_PER_NETWORK`], else the oldest of the network with most, and never one of a
/// network with fewer than its own. Whoever floods thereby displaces only itself, and an honest
/// client of another network always finds a place. Among equals, connections younger than
/// [`UNDISTURBED_TIME`] are not displaced: a burst of honest clients is served as far as there is
/// room, and the rest comes again.
///
/// The owner calls [`Gate::admit`] at accept, and later exactly one of [`Gate::authenticated`]
/// and [`Gate::gone`], except for a connection that the gate itself has named as displaced or
/// expired: it has forgotten those. Times never go back.
#[derive(Debug, Default)]
pub struct Gate {
    /// In the order of their arrival; at most [`MAX_PENDING`].
    pending: Vec<Pending>,
    /// How many of them each network has; no zeros. Each at most [`MAX_PENDING_PER_NETWORK`].
    networks: BTreeMap<Network, usize>,
    turned_away: TurnedAway,
    last_report: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    id: LinkId,
    network: Network,
    since: Instant,
}

/// What is counted together: an IPv4 /24 or an IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Network {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
}

impl Network {
    fn of(ip: IpAddr) -> Self {
        const V4_MASK: u32 = 0xffff_ff00;
        const V6_MASK: u128 = 0xffff_ffff_ffff_ffff << 64;
        match ip.to_canonical() {
            IpAddr::V4(v4) => Self::V4(Ipv4Addr::from_bits(v4.to_bits() & V4_MASK)),
            IpAddr::V6(v6) => Self::V6(Ipv6Addr::from_bits(v6.to_bits() & V6_MASK)),
        }
    }
}

/// What becomes of a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on.
    Admitted,
    /// It may go on; this other one is to be closed, and is forgotten here.
    Displaces(LinkId),
    /// It is to be closed.
    Refused,
}

/// How many connections were turned away since the last report, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnedAway {
    /// There was no room.
    pub refused: u64,
    /// A newcomer took the place.
    pub displaced: u64,
    /// Too slow.
    pub expired: u64,
    /// Ended without authenticating: an unlisted key, another protocol, too many bytes, or it went
    /// by itself.
    pub unauthenticated: u64,
}

impl Gate {
    /// A gate that nobody has come to yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A connection from `ip` was accepted; `id` is one that is not pending.
    pub fn admit(&mut self, id: LinkId, ip: IpAddr, now: Instant) -> Verdict {
        let network = Network::of(ip);
        let verdict = match self.place_for(network, now) {
            Place::Free => Verdict::Admitted,
            Place::Of(index) => {
                self.turned_away.displaced += 1;
                Verdict::Displaces(self.remove(index))
            }
            Place::None => {
                self.turned_away.refused += 1;
                return Verdict::Refused;
            }
        };
        self.pending.push(Pending {
            id,
            network,
            since: now,
        });
        *self.networks.entry(network).or_insert(0) += 1;
        debug_assert!(self.pending.len() <= MAX_PENDING, "a place was found");
        verdict
    }

    fn place_for(&self, network: Network, now: Instant) -> Place {
        let count = self.networks.get(&network).copied().unwrap_or(0);
        let largest = self.networks.iter().max_by_key(|(_, count)| **count);
        if count >= MAX_PENDING_PER_NETWORK {
            self.oldest_if_disturbable(|pending| pending.network == network, now)
        } else if self.pending.len() < MAX_PENDING {
            Place::Free
        } else if let Some((largest, most)) = largest
            && *most > count + 1
        {
            let oldest = self
                .pending
                .iter()
                .position(|pending| pending.network == *largest);
            oldest.map_or(Place::None, Place::Of)
        } else {
            let no_smaller = |pending: &Pending| {
                self.networks
                    .get(&pending.network)
                    .is_some_and(|theirs| *theirs >= count)
            };
            self.oldest_if_disturbable(no_smaller, now)
        }
    }

    fn oldest_if_disturbable(&self, among: impl Fn(&Pending) -> bool, now: Instant) -> Place {
        let oldest = self
            .pending
            .iter()
            .enumerate()
            .find(|(_, pending)| among(pending));
        match oldest {
            Some((index, pending)) if pending.since + UNDISTURBED_TIME <= now => Place::Of(index),
            Some(_) | None => Place::None,
        }
    }

    /// The connection has proved a listed key: it counts here no more.
    pub fn authenticated(&mut self, id: LinkId) {
        if let Some(index) = self.index(id) {
            self.remove(index);
        }
    }

    /// The connection has ended, or is closed, without having proved a listed key.
    pub fn gone(&mut self, id: LinkId) {
        if let Some(index) = self.index(id) {
            self.turned_away.unauthenticated += 1;
            self.remove(index);
        }
    }

    /// A connection whose time is over: it is to be closed, and is forgotten here. Ask until none.
    pub fn poll_expired(&mut self, now: Instant) -> Option<LinkId> {
        let oldest = self.pending.first()?;
        if oldest.since + AUTHENTICATION_TIME > now {
            return None;
        }
        self.turned_away.expired += 1;
        Some(self.remove(0))
    }

    /// What was turned away since the last report, if there was anything: at most once in
    /// [`REPORT_INTERVAL`], the first at once.
    pub fn poll_report(&mut self, now: Instant) -> Option<TurnedAway> {
        if self.report_due()? > now {
            return None;
        }
        self.last_report = Some(now);
        Some(std::mem::take(&mut self.turned_away))
    }

    /// When to ask [`Gate::poll_expired`] and [`Gate::poll_report`] again, if nothing happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let expiry = self
            .pending
            .first()
            .map(|oldest| oldest.since + AUTHENTICATION_TIME);
        [expiry, self.report_due()].into_iter().flatten().min()
    }

    /// How many connections are pending.
    pub const fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether none is.
    pub const fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    fn report_due(&self) -> Option<Instant> {
        let any = self.turned_away != TurnedAway::default();
        let earliest = self
            .last_report
            .map(|last| last + REPORT_INTERVAL)
            .unwrap_or_default();
        any.then_some(earliest)
    }

    fn index(&self, id: LinkId) -> Option<usize> {
        self.pending.iter().position(|pending| pending.id == id)
    }

    fn remove(&mut self, index: usize) -> LinkId {
        let gone = self.pending.remove(index);
        if let Some(count) = self.networks.get_mut(&gone.network) {
            *count -= 1;
            if *count == 0 {
                self.networks.remove(&gone.network);
            }
        }
        gone.id
    }
}

/// Where a newcomer may stand.
enum Place {
    Free,
    /// In that of the connection at this index.
    Of(usize),
    None,
}
