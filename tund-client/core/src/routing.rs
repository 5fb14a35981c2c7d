//! Which routes lead the host's traffic into the TUN (`[routes] mode = "auto"`), and when they are
//! looked at.
//!
//! A table of our own is asked before all others by whatever does not carry our mark, so no route that
//! another program, a DHCP server or a router puts into the main table changes anything. What stays
//! outside is passed on: the kernel asks the next table, as if we were not there. Beside each route into
//! the TUN stands a refusal, which is worse: where the device is gone, nothing leaves by another way.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tund_session::Instant;

/// The kernel's rules and routes are looked at no more often than this: two programs that undo each
/// other's changes must not keep the host busy.
const EVERY: Duration = Duration::from_secs(1);
/// A local network has at least so long a prefix: who hands out addresses could otherwise take a large
/// part of the private ranges, and what is behind them, out of the TUN.
const LAN_LENGTH: (u8, u8) = (16, 64);
/// More local networks than this are led into the TUN; chosen.
const LAN_PREFIXES: usize = 256;

/// What `[routes]` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// What goes into the TUN.
    pub include: Vec<IpNet>,
    /// What stays outside, whatever is included in it.
    pub exclude: Vec<IpNet>,
    /// Private prefixes that devices of this host are on stay outside.
    pub lan_direct: bool,
    /// What answers questions for names, inside in any case.
    pub stub: Option<IpAddr>,
}

/// Where a route of our table leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// To the TUN.
    Tun,
    /// Past it: other tables are asked.
    Past,
    /// Nowhere, unless a better route is there.
    Refused,
}

/// A route of our table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The destinations.
    pub prefix: IpNet,
    /// Where they go.
    pub way: Way,
}

impl Routing {
    /// What goes into the TUN.
    pub fn inside(&self) -> Vec<IpNet> {
        let excluded = |prefix: &IpNet| self.exclude.iter().any(|net| net.contains(prefix));
        let included = self.include.iter().map(IpNet::trunc);
        let included = included.filter(|net| !excluded(net));
        let all: BTreeSet<IpNet> = included.chain(self.stub.map(IpNet::from)).collect();
        all.into_iter().collect()
    }

    /// What goes past it, by whatever device.
    pub fn past(&self) -> Vec<IpNet> {
        let excluded = self.exclude.iter().map(IpNet::trunc);
        let excluded = excluded.filter(|net| Some(*net) != self.stub.map(IpNet::from));
        let past = excluded.chain(link_scope());
        past.collect::<BTreeSet<IpNet>>().into_iter().collect()
    }

    /// Of the prefixes that devices are on, those that stay outside by that device.
    pub fn lan(&self, on_link: &[(String, IpNet)]) -> Vec<(String, IpNet)> {
        let into = self.inside();
        let all = on_link
            .iter()
            .map(|(device, net)| (device.clone(), net.trunc()));
        // What the user names himself goes the way he says.
        let lan = all.filter(|(_, net)| self.lan_direct && is_lan(net) && !into.contains(net));
        let lan: BTreeSet<(String, IpNet)> = lan.collect();
        // A filter takes no prefix within another one.
        let is_within = |(device, net): &(String, IpNet)| {
            let mut wider = lan.iter().filter(|(by, wide)| by == device && wide != net);
            wider.any(|(_, wide)| wide.contains(net))
        };
        let outer = lan.iter().filter(|one| !is_within(one));
        outer.take(LAN_PREFIXES).cloned().collect()
    }

    /// The routes there should be. If the daemon is not there to take packets, none leads to it.
    pub fn routes(&self, on_link: &[(String, IpNet)], is_serving: bool) -> BTreeSet<Route> {
        let lan = self.lan(on_link).into_iter().map(|(_, net)| net);
        let past: BTreeSet<IpNet> = self.past().into_iter().chain(lan).collect();
        let mut routes = BTreeSet::new();
        let mut add = |prefix, way| routes.insert(Route { prefix, way });
        for prefix in self.inside().into_iter().filter(|net| !past.contains(net)) {
            add(prefix, Way::Refused);
            if is_serving {
                add(prefix, Way::Tun);
            }
        }
        for prefix in past {
            add(prefix, Way::Past);
        }
        routes
    }
}

/// A prefix of a local network: private (RFC 1918) or unique local (RFC 4193), and not too large.
fn is_lan(net: &IpNet) -> bool {
    match net {
        IpNet::V4(v4) => v4.prefix_len() >= LAN_LENGTH.0 && v4.network().is_private(),
        IpNet::V6(v6) => v6.prefix_len() >= LAN_LENGTH.1 && v6.network().is_unique_local(),
    }
}

/// What never leaves its link, or is for many: DHCP, neighbour discovery and the like would not work
/// from anywhere else.
fn link_scope() -> [IpNet; 5] {
    let v4 = |a, b, length| IpNet::V4(Ipv4Net::new_assert([a, b, 0, 0].into(), length));
    let v6 = |first: u16, length| {
        IpNet::V6(Ipv6Net::new_assert(
            [first, 0, 0, 0, 0, 0, 0, 0].into(),
            length,
        ))
    };
    [
        v4(169, 254, 16),
        v4(224, 0, 4),
        IpNet::V4(Ipv4Net::new_assert([255; 4].into(), 32)),
        v6(0xfe80, 10),
        v6(0xff00, 8),
    ]
}

/// When the kernel's rules and routes are looked at again: at once when there are news, but not all the
/// time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lookout {
    last: Option<Instant>,
    at: Option<Instant>,
}

impl Lookout {
    /// Something has changed in the kernel's tables.
    pub fn news(&mut self, now: Instant) {
        let rested = self.last.map_or(now, |last| (last + EVERY).max(now));
        self.at.get_or_insert(rested);
    }

    /// When it is to be looked.
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.at
    }

    /// True once, when it is time to look.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.at.is_some_and(|at| at <= now);
        if is_due {
            self.at = None;
            self.last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn everything() -> Routing {
        Routing {
            include: nets(&["0.0.0.0/0", "::/0"]),
            exclude: Vec::new(),
            lan_direct: true,
            stub: None,
        }
    }

    fn on(device: &str, texts: &[&str]) -> Vec<(String, IpNet)> {
        nets(texts)
            .into_iter()
            .map(|net| (device.to_owned(), net))
            .collect()
    }

    fn ways(routes: &BTreeSet<Route>, prefix: &str) -> Vec<Way> {
        let prefix: IpNet = prefix.parse().unwrap();
        let found = routes.iter().filter(|route| route.prefix == prefix);
        found.map(|route| route.way).collect()
    }

    /// Where a packet goes: the longest prefix, and of that the best way.
    fn way_of(routes: &BTreeSet<Route>, address: &str) -> Option<Way> {
        let address: IpAddr = address.parse().unwrap();
        let found = routes
            .iter()
            .filter(|route| route.prefix.contains(&address));
        let best =
            found.max_by_key(|route| (route.prefix.prefix_len(), std::cmp::Reverse(route.way)));
        best.map(|route| route.way)
    }

    #[test]
    fn everything_goes_into_the_tun_but_what_stays_on_its_link() {
        let routes = everything().routes(&on("wifi", &["192.168.1.7/24", "fd12::/64"]), true);

        for (address, way) in [
            ("203.0.113.9", Way::Tun),
            ("2001:db8::1", Way::Tun),
            ("10.1.2.3", Way::Tun),
            ("192.168.1.7", Way::Past),
            ("192.168.2.7", Way::Tun),
            ("fd12::9", Way::Past),
            ("fd13::9", Way::Tun),
            ("224.0.0.251", Way::Past),
            ("255.255.255.255", Way::Past),
            ("169.254.169.254", Way::Past),
            ("fe80::1", Way::Past),
            ("ff02::1", Way::Past),
        ] {
            assert_eq!(way_of(&routes, address), Some(way), "{address}");
        }
        assert_eq!(ways(&routes, "0.0.0.0/0"), [Way::Tun, Way::Refused]);
    }

    #[test]
    fn a_local_network_that_is_public_or_too_large_does_not_stay_outside() {
        let greedy = on(
            "wifi",
            &[
                "8.8.8.0/24",
                "10.0.0.0/8",
                "172.16.0.0/12",
                "2001:db8::/64",
                "fd00::/8",
            ],
        );

        let routes = everything().routes(&greedy, true);

        for address in [
            "8.8.8.8",
            "10.1.1.1",
            "172.16.5.5",
            "2001:db8::1",
            "fd00::1",
        ] {
            assert_eq!(way_of(&routes, address), Some(Way::Tun), "{address}");
        }
        let strict = Routing {
            lan_direct: false,
            ..everything()
        };
        let routes = strict.routes(&on("wifi", &["192.168.1.0/24"]), true);
        assert_eq!(way_of(&routes, "192.168.1.7"), Some(Way::Tun));
    }

    #[test]
    fn what_is_excluded_stays_outside_whatever_is_included_in_it() {
        let routing = Routing {
            include: nets(&["10.0.0.0/8", "10.5.1.0/24", "192.168.1.0/24"]),
            exclude: nets(&["10.5.0.0/16"]),
            ..everything()
        };

        let routes = routing.routes(&on("wifi", &["192.168.1.0/24"]), true);

        assert_eq!(way_of(&routes, "10.4.0.1"), Some(Way::Tun));
        assert_eq!(way_of(&routes, "10.5.1.1"), Some(Way::Past));
        assert_eq!(
            way_of(&routes, "192.168.1.1"),
            Some(Way::Tun),
            "named by the user"
        );
        assert_eq!(way_of(&routes, "203.0.113.9"), None);
    }

    #[test]
    fn the_stub_is_inside_whatever_else_is_not() {
        let stub = "10.111.0.1".parse().ok();
        for exclude in ["10.0.0.0/8", "10.111.0.1/32"] {
            let routing = Routing {
                include: nets(&["203.0.113.0/24"]),
                exclude: nets(&[exclude]),
                stub,
                ..everything()
            };
            let routes = routing.routes(&on("wifi", &["10.111.0.0/16"]), true);
            assert_eq!(way_of(&routes, "10.111.0.1"), Some(Way::Tun), "{exclude}");
        }
    }

    #[test]
    fn nothing_leads_to_a_daemon_that_is_away() {
        let routes = everything().routes(&[], false);

        assert_eq!(ways(&routes, "0.0.0.0/0"), [Way::Refused]);
        assert_eq!(way_of(&routes, "fe80::1"), Some(Way::Past));
    }

    #[test]
    fn a_local_network_is_one_of_its_device() {
        let routing = everything();
        let mut seen = on("wifi", &["192.168.1.7/24", "192.168.1.1/32", "8.8.8.0/24"]);
        seen.extend(on("eth0", &["192.168.1.2/24"]));

        let lan = routing.lan(&seen);

        assert_eq!(
            lan,
            [
                on("eth0", &["192.168.1.0/24"]),
                on("wifi", &["192.168.1.0/24"])
            ]
            .concat()
        );
    }

    #[test]
    fn news_are_looked_into_at_once_and_swarms_of_them_once_a_second() {
        let start = Instant::from_nanos(5_000_000_000);
        let mut lookout = Lookout::default();
        assert!(!lookout.is_due(start));

        lookout.news(start);
        assert!(lookout.is_due(start));
        assert!(!lookout.is_due(start), "once");

        lookout.news(start + EVERY / 10);
        lookout.news(start + EVERY / 5);
        assert!(!lookout.is_due(start + EVERY / 2));
        assert_eq!(lookout.poll_timeout(), Some(start + EVERY));
        assert!(lookout.is_due(start + EVERY));
    }
}
