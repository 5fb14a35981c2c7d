//! What can happen to the network: verbs that act on the router and on the client's links.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::{Access, Family, Lab, address, prefixed, wait};

/// The kernel tells of a lost carrier within a second.
const CARRIER_TOLD: Duration = Duration::from_secs(5);

/// Nobody listens there.
const NOBODY_PORT: u16 = 1;

/// The router's rules before anything has happened.
///
/// `cut` is filled by the verbs of that name. The sets hold 5-tuples as the client sees them. An
/// access network drops packets with sources that are not its own, so that a client which moved
/// cannot go on with its old address.
pub(super) const TABLE: &str = "
table inet lab {
    set gone4 { type ipv4_addr . inet_service . ipv4_addr . inet_service; }
    set gone6 { type ipv6_addr . inet_service . ipv6_addr . inet_service; }
    set reset4 { type ipv4_addr . inet_service . ipv4_addr . inet_service; }
    set reset6 { type ipv6_addr . inet_service . ipv6_addr . inet_service; }
    chain cut { type filter hook forward priority -20; policy accept; }
    chain source {
        type filter hook forward priority -15; policy accept;
        iifname w0 ip saddr != 10.77.1.0/24 drop
        iifname m0 ip saddr != 10.77.2.0/24 drop
        iifname w0 ip6 saddr != fd77:0:0:1::/64 drop
        iifname m0 ip6 saddr != fd77:0:0:2::/64 drop
    }
    chain tuples {
        type filter hook forward priority -10; policy accept;
        ip saddr . tcp sport . ip daddr . tcp dport @gone4 drop
        ip daddr . tcp dport . ip saddr . tcp sport @gone4 drop
        ip6 saddr . tcp sport . ip6 daddr . tcp dport @gone6 drop
        ip6 daddr . tcp dport . ip6 saddr . tcp sport @gone6 drop
        ip saddr . tcp sport . ip daddr . tcp dport @reset4 reject with tcp reset
        ip daddr . tcp dport . ip saddr . tcp sport @reset4 reject with tcp reset
        ip6 saddr . tcp sport . ip6 daddr . tcp dport @reset6 reject with tcp reset
        ip6 daddr . tcp dport . ip6 saddr . tcp sport @reset6 reject with tcp reset
    }
}
";

/// A TCP connection as its client sees it: own address, peer's address.
type Tuple = (SocketAddr, SocketAddr);

/// A direction across the access links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From server and origin to the client.
    Down,
    /// From the client to server and origin.
    Up,
}

impl Lab {
    /// Drops everything between the access links and the rest, silently, in both directions.
    pub fn cut(&self) {
        self.cut_one_way(Direction::Up);
        self.cut_one_way(Direction::Down);
    }

    /// Drops everything in one direction, silently.
    pub fn cut_one_way(&self, direction: Direction) {
        let side = match direction {
            Direction::Down => "oifname",
            Direction::Up => "iifname",
        };
        self.router
            .nft(&format!("add rule inet lab cut {side} {{ w0, m0 }} drop\n"));
    }

    /// Drops everything that crosses one access link, silently, in both directions.
    pub fn cut_access(&self, access: Access) {
        let device = access.router_device();
        let cut = |side| format!("add rule inet lab cut {side} {device} drop\n");
        // At one stroke: tests count from before it.
        self.router.nft(&(cut("iifname") + &cut("oifname")));
    }

    /// Undoes the cuts.
    pub fn heal(&self) {
        self.router.nft("flush chain inet lab cut\n");
    }

    /// Forgets every connection that exists across the access links, as a NAT that lost its state
    /// does: their packets are dropped from here on, silently, both ways, while new ones work.
    ///
    /// Attempts whose SYN has not been answered are not forgotten: a NAT makes a new entry for the
    /// next SYN. Gives the number of connections.
    pub fn forget(&self) -> usize {
        self.mark("gone")
    }

    /// Resets every connection that exists across the access links, as some middleboxes do: the
    /// next packet from either end is answered with a RST, and so is each later one. Gives the
    /// number of connections.
    pub fn rst(&self) -> usize {
        self.mark("reset")
    }

    /// Undoes [`Self::forget`] and [`Self::rst`].
    pub fn forgive(&self) {
        for set in ["gone4", "gone6", "reset4", "reset6"] {
            self.router.nft(&format!("flush set inet lab {set}\n"));
        }
    }

    /// Takes the far end of an access link down (the near end loses its carrier) or up again; done
    /// when the client's kernel tells of it. That may take a second: the kernel collects such changes
    /// of all namespaces, and tells them once a second.
    pub fn carrier(&self, access: Access, on: bool) {
        if self.emulators.is_some() {
            // A TUN device does not see the state of the other one; it can be told.
            let carrier = if on { "on" } else { "off" };
            let device = access.device();
            self.client
                .run(&format!("ip link set dev {device} carrier {carrier}"));
        }
        let state = if on { "up" } else { "down" };
        self.router.run(&format!(
            "ip link set dev {} {state}",
            access.router_device()
        ));
        let show = format!("ip -o link show dev {}", access.device());
        wait::until_true("the client's kernel tells", CARRIER_TOLD, || {
            self.client.run(&show).contains("NO-CARRIER") != on
        });
        if on && self.emulators.is_none() {
            // A device that has its carrier again may be without a queue for most of a second, and what
            // asks for its neighbour meanwhile is lost.
            let near = SocketAddr::new(address(Family::V4, access.subnet(), 2), NOBODY_PORT);
            let answer = self
                .router
                .enter(|| TcpStream::connect_timeout(&near, CARRIER_TOLD));
            assert_eq!(
                answer.err().map(|error| error.kind()),
                Some(ErrorKind::ConnectionRefused)
            );
        }
    }

    /// Moves the client to the other access link: the old address and its route are gone before
    /// the new ones come.
    pub fn switch(&mut self) {
        self.switch_after(Duration::ZERO);
    }

    /// As [`Self::switch`], with `gap` of no network at all between the old and the new. Gives the
    /// moment at which the new one began to come.
    pub fn switch_after(&mut self, gap: Duration) -> Instant {
        self.lower(self.access);
        wait::let_pass(gap);
        let back = wait::now();
        self.use_access(self.access.other());
        back
    }

    /// Raises an access link as the one in use, with the better metric from now on.
    pub fn use_access(&mut self, access: Access) {
        self.access = access;
        self.raise(access);
    }

    /// As [`Self::use_access`], while the other one is up: its routes get the worse metric before.
    pub fn prefer(&mut self, access: Access) {
        let other = access.other();
        let mut lines = Vec::new();
        for family in [Family::V4, Family::V6] {
            let router = address(family, other.subnet(), 1);
            let device = other.device();
            let route = format!("default via {router} dev {device}");
            lines.push(format!("route add {route} metric 200"));
            lines.push(format!("route del {route} metric 100"));
        }
        self.client.ip_batch(&lines);
        self.use_access(access);
    }

    /// Gives an access link its addresses and default routes, as joining a network does.
    ///
    /// With both raised, the one in use has the better metric.
    pub fn raise(&self, access: Access) {
        let device = access.device();
        let metric = if access == self.access { 100 } else { 200 };
        let mut lines = Vec::new();
        for family in [Family::V4, Family::V6] {
            let own = prefixed(family, access.subnet(), 2);
            let router = address(family, access.subnet(), 1);
            lines.push(format!("addr add {own} dev {device}"));
            lines.push(format!(
                "route add default via {router} dev {device} metric {metric}"
            ));
        }
        self.client.ip_batch(&lines);
    }

    /// Takes an access link's addresses away, and with them its routes; the device stays up.
    pub fn lower(&self, access: Access) {
        let device = access.device();
        let mut lines = Vec::new();
        for family in [Family::V4, Family::V6] {
            let own = prefixed(family, access.subnet(), 2);
            let router = address(family, access.subnet(), 1);
            lines.push(format!("route del default via {router} dev {device}"));
            lines.push(format!("addr del {own} dev {device}"));
        }
        self.client.ip_batch(&lines);
    }

    /// Limits both access links to `megabits` a second each way, with a queue of 50 ms.
    pub fn limit_rate(&self, megabits: u32) {
        // A burst of 2 ms at the rate, and at least one large segment.
        let burst = (megabits * 250).max(70_000);
        self.each_access_end(&format!(
            "root tbf rate {megabits}mbit burst {burst} latency 50ms"
        ));
    }

    /// Undoes [`Self::limit_rate`].
    pub fn lift_rate_limit(&self) {
        for access in [Access::Wifi, Access::Mobile] {
            self.client
                .run(&format!("tc qdisc del dev {} root", access.device()));
            self.router
                .run(&format!("tc qdisc del dev {} root", access.router_device()));
        }
    }

    fn each_access_end(&self, discipline: &str) {
        for access in [Access::Wifi, Access::Mobile] {
            let (near, far) = (access.device(), access.router_device());
            self.client
                .run(&format!("tc qdisc replace dev {near} {discipline}"));
            self.router
                .run(&format!("tc qdisc replace dev {far} {discipline}"));
        }
    }

    /// The connections of the client that cross an access link.
    pub fn connections(&self) -> usize {
        self.tuples().len()
    }

    fn tuples(&self) -> BTreeSet<Tuple> {
        let own: Vec<IpAddr> = [Family::V4, Family::V6]
            .into_iter()
            .flat_map(|family| [Access::Wifi, Access::Mobile].map(|access| (family, access)))
            .map(|(family, access)| self.access_address(family, access))
            .collect();
        let listing = self.client.run("ss -Htan");
        let tuples = listing.lines().filter_map(tuple_of_line);
        tuples
            .filter(|(local, _)| own.contains(&local.ip()))
            .collect()
    }

    fn mark(&self, set: &str) -> usize {
        let tuples = self.tuples();
        let script: String = tuples
            .iter()
            .map(|(local, peer)| {
                let family = if local.is_ipv4() { 4 } else { 6 };
                let (own, own_port) = (local.ip(), local.port());
                let (far, far_port) = (peer.ip(), peer.port());
                format!(
                    "add element inet lab {set}{family} {{ {own} . {own_port} . {far} . {far_port} }}\n"
                )
            })
            .collect();
        self.router.nft(&script);
        tuples.len()
    }
}

/// Reads a line of `ss -Htan`; none for listening sockets and unanswered attempts.
fn tuple_of_line(line: &str) -> Option<Tuple> {
    let words: Vec<_> = line.split_ascii_whitespace().collect();
    let &[state, _, _, local, peer, ..] = words.as_slice() else {
        return None;
    };
    if state == "LISTEN" || state == "SYN-SENT" {
        return None;
    }
    Some((socket_address(local)?, socket_address(peer)?))
}

/// Reads `10.0.0.1%wifi:80`, `[fd00::1]:80` or `[::ffff:10.0.0.1]%wifi:80`.
fn socket_address(word: &str) -> Option<SocketAddr> {
    let (host, port) = word.rsplit_once(':')?;
    let host = host.split('%').next()?;
    let ip: IpAddr = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok()?;
    Some(SocketAddr::new(ip.to_canonical(), port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_ss_gives_the_tuple_in_every_spelling() {
        let expected = Some((
            "10.77.1.2:40000".parse().unwrap(),
            "10.77.3.2:443".parse().unwrap(),
        ));
        for line in [
            "ESTAB 0 0 10.77.1.2:40000 10.77.3.2:443",
            "FIN-WAIT-1 0 99 10.77.1.2%wifi:40000 10.77.3.2:443 timer:(on,1sec,0)",
            "ESTAB 0 0 [::ffff:10.77.1.2]:40000 [::ffff:10.77.3.2]:443",
        ] {
            assert_eq!(tuple_of_line(line), expected, "{line}");
        }
    }

    #[test]
    fn listening_sockets_and_unanswered_attempts_are_no_connections() {
        assert_eq!(tuple_of_line("LISTEN 0 128 0.0.0.0:443 0.0.0.0:*"), None);
        assert_eq!(
            tuple_of_line("SYN-SENT 0 1 10.77.1.2:40000 10.77.3.2:443"),
            None
        );
    }
}
