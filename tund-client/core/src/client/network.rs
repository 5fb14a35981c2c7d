//! What the network offers: links that are lost, better paths, and a second link that stands by.

use super::{Client, ClientEvent};
use crate::dialer::{DialOrder, PathId};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use tund_session::{Instant, LinkDeath, LinkId, Session, Traffic};

/// News are looked into so long after the first of them while a link works: they come in swarms,
/// and what has just come may go again.
const DEBOUNCE: Duration = Duration::from_secs(1);
/// Flows have been active for so long before a second link is worth its handshake.
const BUSY_FOR: Duration = Duration::from_secs(2);
/// Flows are active until so long after the last byte.
const ACTIVE_FOR: Duration = Duration::from_secs(60);
/// An interface whose link fell silent while another worked rests so long before it is preferred
/// again; doubled each time, until news come.
const REST_FIRST: Duration = Duration::from_secs(2);
/// The longest rest.
const REST_LAST: Duration = Duration::from_secs(300);
/// Interfaces that rest, at most; the first to be over goes.
const RESTING_MAX: usize = 64;

/// A path that can be used at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Interface and server address.
    pub id: PathId,
    /// Bytes cost there: nothing is kept in standby.
    pub is_metered: bool,
}

/// What links can rely on at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Indexes of the interfaces that are up and have a carrier.
    pub running: BTreeSet<u32>,
    /// Every address of this host.
    pub addresses: BTreeSet<IpAddr>,
    /// Every network that it is on.
    pub networks: BTreeSet<IpNet>,
}

/// A link or an attempt, as far as the network is concerned.
#[derive(Clone, Copy, Debug)]
struct Known {
    path: PathId,
    source: Option<IpAddr>,
    is_lost: bool,
    /// What the session was told: preference, and whether it is kept.
    told: Option<(u32, bool)>,
}

/// A rest of an interface.
#[derive(Clone, Copy, Debug)]
struct Rest {
    until: Instant,
    times: u32,
}

/// Since when bytes move, and until when that counts.
#[derive(Clone, Copy, Debug)]
struct Activity {
    since: Instant,
    until: Instant,
}

/// All that is known of the paths to the server.
#[derive(Debug, Default)]
pub(super) struct Outlook {
    /// The usable ones, best first, as they were looked up last.
    paths: Vec<Path>,
    network: Network,
    known: BTreeMap<LinkId, Known>,
    /// The paths are looked up again then.
    look_at: Option<Instant>,
    /// The machine has slept: whether the links work is not known.
    in_doubt: bool,
    resting: BTreeMap<u32, Rest>,
    traffic: Traffic,
    activity: Option<Activity>,
    /// Flows are active enough for a second link, as of the last look.
    is_active: bool,
}

impl Outlook {
    pub(super) fn dialled(&mut self, link: LinkId, path: PathId) {
        let known = Known {
            path,
            source: None,
            is_lost: false,
            told: None,
        };
        self.known.insert(link, known);
    }

    pub(super) fn forget(&mut self, link: LinkId) {
        self.known.remove(&link);
    }

    pub(super) fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// Some link is heard.
    pub(super) fn settled(&mut self) {
        self.in_doubt = false;
    }

    /// The place of an interface among the paths; the least is best.
    fn rank(&self, interface: u32) -> u32 {
        let place = self
            .paths
            .iter()
            .position(|path| path.id.interface == interface);
        place
            .and_then(|place| u32::try_from(place).ok())
            .unwrap_or(u32::MAX)
    }

    fn is_metered(&self, interface: u32) -> bool {
        let mut paths = self.paths.iter();
        paths
            .find(|path| path.id.interface == interface)
            .is_none_or(|path| path.is_metered)
    }

    fn interface(&self, link: LinkId) -> Option<u32> {
        self.known.get(&link).map(|known| known.path.interface)
    }

    /// The network is no more what a link was made by.
    fn has_lost(&self, known: &Known) -> bool {
        let has_address = |source: IpAddr| self.network.addresses.contains(&source);
        !self.network.running.contains(&known.path.interface)
            || known.source.is_some_and(|source| !has_address(source))
    }

    fn rest(&mut self, interface: u32, now: Instant) {
        if self.resting.len() >= RESTING_MAX
            && let Some(first) = self.resting.iter().min_by_key(|(_, rest)| rest.until)
        {
            let first = *first.0;
            self.resting.remove(&first);
        }
        let rest = self.resting.entry(interface).or_insert(Rest {
            until: now,
            times: 0,
        });
        let pause = REST_FIRST * 2_u32.pow(rest.times.min(8));
        rest.until = now + pause.min(REST_LAST);
        rest.times = rest.times.saturating_add(1);
    }

    fn has_rested(&mut self, now: Instant) {
        for rest in self.resting.values_mut() {
            if rest.until <= now {
                rest.until = Instant::default();
            }
        }
    }

    fn is_resting(&self, interface: u32) -> bool {
        self.resting
            .get(&interface)
            .is_some_and(|rest| rest.until > Instant::default())
    }

    fn note_traffic(&mut self, traffic: Traffic, has_flows: bool, now: Instant) {
        if traffic != self.traffic {
            self.traffic = traffic;
            let going = self.activity.filter(|activity| activity.until > now);
            self.activity = Some(Activity {
                since: going.map_or(now, |activity| activity.since),
                until: now + ACTIVE_FOR,
            });
        }
        if !has_flows || self.activity.is_some_and(|activity| activity.until <= now) {
            self.activity = None;
        }
        self.is_active = self
            .activity
            .is_some_and(|activity| activity.since + BUSY_FOR <= now);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let resting = self.resting.values().map(|rest| rest.until);
        let resting = resting.filter(|until| *until > Instant::default()).min();
        let activity = self.activity.map(|activity| {
            if self.is_active {
                activity.until
            } else {
                activity.since + BUSY_FOR
            }
        });
        [self.look_at, resting, activity]
            .into_iter()
            .flatten()
            .min()
    }
}

impl Client {
    /// The paths to the server, best first; none if there is no usable route.
    pub fn handle_paths(&mut self, paths: &[Path], now: Instant) {
        self.outlook.paths = paths.to_vec();
        self.tend(now);
        let want = self.wanted();
        self.dialer.want(want, now, &mut self.orders);
        let ids: Vec<_> = paths.iter().map(|path| path.id).collect();
        self.dialer.paths(&ids, now, &mut self.orders);
    }

    /// An attempt has begun, from that address.
    pub fn handle_source(&mut self, link: LinkId, source: IpAddr) {
        if let Some(known) = self.outlook.known.get_mut(&link) {
            known.source = Some(source);
        }
    }

    /// The network has changed, or may have: what it is like now, and whether routes are concerned.
    pub fn handle_network(&mut self, network: Network, has_new_routes: bool, now: Instant) {
        if network == self.outlook.network && !has_new_routes {
            return;
        }
        let addresses = network.addresses.iter().copied().collect();
        self.netstack.set_local_addresses(addresses);
        let networks = network.networks.iter().copied().collect();
        self.netstack.set_local_networks(networks);
        self.outlook.network = network;
        self.outlook.resting.clear();
        self.lose_links(now);
        let Some(session) = &self.session else {
            return;
        };
        if session.is_attached() {
            self.outlook.look_at.get_or_insert(now + DEBOUNCE);
        } else {
            self.dialer.news(now);
        }
    }

    /// The machine has slept: every link is asked whether it lives, and another is begun beside.
    pub fn handle_woken(&mut self, now: Instant) {
        self.outlook.resting.clear();
        if let Some(session) = &mut self.session {
            self.outlook.in_doubt = session.is_attached();
            session.probe(now);
            self.dialer.news(now);
        }
    }

    fn lose_links(&mut self, now: Instant) {
        let outlook = &self.outlook;
        let changed = outlook.known.iter().filter_map(|(link, known)| {
            let is_lost = outlook.has_lost(known);
            (is_lost != known.is_lost).then_some((*link, is_lost))
        });
        for (link, is_lost) in changed.collect::<Vec<_>>() {
            if let Some(known) = self.outlook.known.get_mut(&link) {
                known.is_lost = is_lost;
            }
            if is_lost && self.dialer.ended(link).is_some() {
                self.orders.push(DialOrder::GiveUp(link));
            } else if let Some(session) = &mut self.session {
                if is_lost {
                    session.handle_link_lost(link, now);
                } else {
                    session.handle_link_found(link, now);
                }
            }
        }
    }

    /// A link fell silent while another one works: it was no outage of everything.
    pub(super) fn note_death(&mut self, link: LinkId, death: LinkDeath, now: Instant) {
        let has_other = self.session.as_ref().is_some_and(Session::is_attached);
        if let (LinkDeath::Silent, true, Some(interface)) =
            (death, has_other, self.outlook.interface(link))
        {
            self.outlook.rest(interface, now);
        }
    }

    pub(super) fn look_if_due(&mut self, now: Instant) {
        self.outlook.has_rested(now);
        if self.outlook.look_at.is_some_and(|at| at <= now) {
            self.outlook.look_at = None;
            if self.session.is_some() {
                self.events.push_back(ClientEvent::FindPaths);
            }
        }
    }

    /// Tells the session which links are better, and which one stays in standby.
    pub(super) fn tend(&mut self, now: Instant) {
        let Some(session) = &mut self.session else {
            self.outlook.activity = None;
            return;
        };
        let has_flows = session.flow_count() > 0;
        self.outlook.note_traffic(session.traffic(), has_flows, now);
        if self.outlook.paths.is_empty() {
            return;
        }
        let links: Vec<LinkId> = session.live_links().map(|(link, _)| link).collect();
        let standby = self.standby(&links);
        let Some(session) = &mut self.session else {
            return;
        };
        for link in links {
            let Some(interface) = self.outlook.interface(link) else {
                continue;
            };
            let wish = (self.outlook.rank(interface), Some(link) == standby);
            let Some(known) = self.outlook.known.get_mut(&link) else {
                continue;
            };
            if known.told.replace(wish) != Some(wish) {
                session.keep(link, wish.1, now);
                session.prefer(link, wish.0, now);
            }
        }
    }

    /// The link that stays although another one carries: the best on another interface.
    fn standby(&self, links: &[LinkId]) -> Option<LinkId> {
        let carrier = self.session.as_ref()?.carrier()?;
        let here = self.outlook.interface(carrier)?;
        let may_stay = |link: &LinkId| {
            let interface = self.outlook.interface(*link);
            // A link that is there has its handshake behind it: any activity keeps it.
            let is_active = self.outlook.activity.is_some();
            interface.is_some_and(|there| there != here && is_active && self.may_stand_by(there))
        };
        let candidates = links.iter().copied().filter(may_stay);
        candidates.min_by_key(|link| {
            let interface = self.outlook.interface(*link);
            interface.map_or(u32::MAX, |there| self.outlook.rank(there))
        })
    }

    fn may_stand_by(&self, interface: u32) -> bool {
        self.config.standby && !self.outlook.is_metered(interface)
    }

    /// Paths by which another link is wanted although one works: a better one, one in standby, or
    /// one in place of a link whose keys are worn.
    pub(super) fn further_paths(&self, session: &Session) -> Vec<PathId> {
        let Some(carrier) = session.carrier() else {
            return Vec::new();
        };
        let Some(here) = self.outlook.interface(carrier) else {
            return Vec::new();
        };
        let is_worn = self.worn == Some(carrier);
        let mut interfaces = self.outlook.paths.iter().map(|path| path.id.interface);
        if !is_worn && interfaces.all(|there| there == here) {
            return Vec::new(); // as on most hosts
        }
        let live: BTreeSet<u32> = session
            .live_links()
            .filter_map(|(link, _)| self.outlook.interface(link))
            .collect();
        let own_rank = self.outlook.rank(here);
        let is_free = |there: u32| !live.contains(&there) && !self.outlook.is_resting(there);
        let paths = &self.outlook.paths;
        let has_standby = live.iter().any(|there| *there != here);
        let mut candidates = paths.iter().map(|path| path.id.interface);
        let standby = candidates
            .find(|there| *there != here && is_free(*there) && self.may_stand_by(*there))
            .filter(|_| !has_standby && self.outlook.is_active);
        let is_wanted = |path: &&Path| {
            let there = path.id.interface;
            let is_better = self.outlook.rank(there) < own_rank && is_free(there);
            is_better || Some(there) == standby || (is_worn && there == here)
        };
        paths.iter().filter(is_wanted).map(|path| path.id).collect()
    }
}
