//! Rule, routes and marks in a namespace of one's own.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use super::*;
use crate::sys::testing::{Neighbour, PATIENCE, in_namespace, ip, ip_output};

const MARK: u32 = 0x7d00_0000;
const MINE: [&str; 2] = ["10.111.0.2", "fd11::2"];

fn tun0() -> TunName {
    "tund0".parse().unwrap()
}

/// Everything goes into the TUN but 198.51.100.0/24, what is on the link, and private networks there.
fn everything() -> Planner {
    let nets =
        |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|text| text.parse().unwrap()).collect() };
    Box::new(move |on_link, is_serving| {
        let is_private = |net: &IpNet| match net {
            IpNet::V4(v4) => v4.network().is_private(),
            IpNet::V6(v6) => v6.network().is_unique_local(),
        };
        let lan = on_link.iter().filter(|(_, net)| is_private(net)).cloned();
        let mut plan = Plan {
            routes: BTreeSet::new(),
            into: nets(&["0.0.0.0/0", "::/0"]),
            past: nets(&["198.51.100.0/24", "224.0.0.0/4", "fe80::/10"]),
            lan: lan.collect(),
            stub: "198.51.100.53".parse().ok(),
        };
        let mut add = |prefix, way| plan.routes.insert(Route { prefix, way });
        for prefix in plan.past.iter().chain(plan.lan.iter().map(|(_, net)| net)) {
            add(*prefix, Way::Past);
        }
        for prefix in &plan.into {
            add(*prefix, Way::Refused);
            if is_serving {
                add(*prefix, Way::Tun);
            }
        }
        plan
    })
}

/// A host on a private network behind a router, with something in place of the TUN.
fn host() {
    for command in [
        "link add wifi type veth peer name far",
        "addr add 192.168.1.2/24 dev wifi",
        "-6 addr add fd22::2/64 dev wifi nodad",
        "link set far up",
        "link set wifi up",
        "route add default via 192.168.1.1",
        "-6 route add default via fd22::1",
        "tuntap add dev tund0 mode tun",
        "addr add 10.111.0.2/32 dev tund0",
        "-6 addr add fd11::2/128 dev tund0 nodad",
        "link set tund0 up",
    ] {
        ip(command);
    }
}

fn mine() -> Vec<InterfaceAddress> {
    let lengths = [32, 128];
    let addresses = MINE.iter().zip(lengths);
    addresses
        .map(|(address, length)| (address.parse().unwrap(), length).into())
        .collect()
}

fn begin() -> Steering {
    Steering::begin(&tun0(), MARK, &mine(), everything()).unwrap()
}

/// The device and source that the kernel takes to `destination`; how it refuses, where it does.
fn way(destination: &str, mark: u32) -> String {
    let output = ip_output(&format!("route get {destination} mark {mark}"));
    let words: Vec<&str> = output.split_whitespace().collect();
    let after = |word: &str| {
        let place = words.iter().position(|one| *one == word)?;
        words.get(place + 1).copied()
    };
    match (after("dev"), after("src")) {
        (Some(device), Some(source)) => format!("{device} {source}"),
        _ => "none".to_owned(),
    }
}

/// All that could be left behind.
fn traces() -> [String; 4] {
    [
        ip_output("rule show"),
        ip_output("-6 rule show"),
        ip_output("route show table 32000"),
        ip_output("-6 route show table 32000"),
    ]
}

#[test]
fn what_is_not_ours_goes_into_the_tun_and_what_is_marked_past_it() {
    in_namespace(|| {
        host();
        let _steering = begin();

        for (destination, tun, past) in [
            ("203.0.113.9", "tund0 10.111.0.2", "wifi 192.168.1.2"),
            ("2001:db8::9", "tund0 fd11::2", "wifi fd22::2"),
            ("10.9.9.9", "tund0 10.111.0.2", "wifi 192.168.1.2"),
            ("192.168.1.77", "wifi 192.168.1.2", "wifi 192.168.1.2"),
            ("fd22::77", "wifi fd22::2", "wifi fd22::2"),
            ("198.51.100.4", "wifi 192.168.1.2", "wifi 192.168.1.2"),
        ] {
            assert_eq!(way(destination, 0), tun, "{destination}");
            assert_eq!(way(destination, 0x42), tun, "{destination}: another's mark");
            assert_eq!(way(destination, MARK), past, "{destination}, marked");
            assert_eq!(
                way(destination, MARK | 0x42),
                past,
                "{destination}, marked twice"
            );
        }
    });
}

#[test]
fn routes_of_others_change_nothing() {
    in_namespace(|| {
        host();
        let mut steering = begin();
        for rogue in [
            "route add 0.0.0.0/1 via 192.168.1.66",
            "route add 128.0.0.0/1 via 192.168.1.66",
            "route add 203.0.113.0/24 via 192.168.1.66",
            "-6 route add 2000::/3 via fd22::66",
        ] {
            ip(rogue);
        }

        assert_eq!(way("203.0.113.9", 0), "tund0 10.111.0.2");
        assert_eq!(way("2001:db8::9", 0), "tund0 fd11::2");
        assert_eq!(steering.mend().unwrap(), 0, "nothing of ours was touched");
    });
}

#[test]
fn what_another_program_deletes_or_adds_is_put_right() {
    in_namespace(|| {
        host();
        let mut steering = begin();
        let before = traces();
        for attack in [
            "rule del priority 5000",
            "-6 rule del priority 5000",
            "route flush table 32000",
            "-6 route flush table 32000",
            "route add 203.0.113.0/24 dev wifi table 32000",
            "route del 0.0.0.0/0 dev tund0 table 32000",
            "route add 0.0.0.0/0 dev wifi metric 0 table 32000",
        ] {
            ip(attack);
            assert!(steering.mend().unwrap() > 0, "{attack}");
            assert_eq!(traces(), before, "{attack}");
            assert_eq!(steering.mend().unwrap(), 0, "{attack}: once");
        }
    });
}

#[test]
fn a_new_local_network_stays_outside_at_the_next_look() {
    in_namespace(|| {
        host();
        let mut steering = begin();
        assert_eq!(way("172.16.5.9", 0), "tund0 10.111.0.2");

        ip("addr add 172.16.5.2/24 dev wifi");
        assert!(steering.mend().unwrap() > 0);

        assert_eq!(way("172.16.5.9", 0), "wifi 172.16.5.2");
    });
}

#[test]
fn nothing_is_left_at_the_end_and_nothing_leaves_if_it_blocks() {
    in_namespace(|| {
        host();
        let before = traces();
        begin().end(true).unwrap();
        assert_eq!(way("203.0.113.9", 0), "none");
        assert_eq!(way("2001:db8::9", 0), "none");
        assert_eq!(way("192.168.1.77", 0), "wifi 192.168.1.2");
        ip("link del tund0");
        assert_eq!(way("203.0.113.9", 0), "none", "also without the device");

        assert!(remove(&tun0()).unwrap(), "found");
        assert_eq!(traces(), before);
        assert!(!remove(&tun0()).unwrap(), "nothing is left to be found");
        assert_eq!(way("203.0.113.9", 0), "wifi 192.168.1.2");
    });
}

#[test]
fn a_crashed_daemon_blocks_and_its_successor_takes_over() {
    in_namespace(|| {
        host();
        std::mem::forget(begin());
        let before = traces();
        ip("link del tund0");
        assert_eq!(way("203.0.113.9", 0), "none");
        assert_eq!(way("2001:db8::9", 0), "none");

        for command in [
            "tuntap add dev tund0 mode tun",
            "addr add 10.111.0.2/32 dev tund0",
            "-6 addr add fd11::2/128 dev tund0 nodad",
            "link set tund0 up",
        ] {
            ip(command);
        }
        begin();

        assert_eq!(traces(), before, "no rule or route is there twice");
        assert_eq!(way("203.0.113.9", 0), "tund0 10.111.0.2");
    });
}

#[test]
fn without_an_address_of_a_version_it_is_refused_but_for_what_was_there_before() {
    in_namespace(|| {
        host();
        ip("neigh add fd22::1 lladdr 02:00:00:00:00:01 dev wifi nud permanent");
        ip("-6 addr del fd11::2/128 dev tund0");
        let before = UdpSocket::bind("[fd22::2]:0").unwrap();
        before.connect("[2001:db8::9]:7").unwrap();
        let v4 = [mine()[0]];
        let _steering = Steering::begin(&tun0(), MARK, &v4, everything()).unwrap();

        assert_eq!(way("203.0.113.9", 0), "tund0 10.111.0.2");
        let refused = TcpStream::connect("[2001:db8::9]:7").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let wifi = sent("wifi");
        before.send(b"old").unwrap();
        assert_eq!(sent("wifi"), wifi + 1);
    });
}

#[test]
fn a_host_whose_ipv6_is_switched_off_is_steered_all_the_same() {
    in_namespace(|| {
        for which in ["all", "default", "lo"] {
            let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
            fs::write(path, "1").unwrap();
        }
        for command in [
            "link add wifi type veth peer name far",
            "addr add 192.168.1.2/24 dev wifi",
            "link set far up",
            "link set wifi up",
            "tuntap add dev tund0 mode tun",
            "addr add 10.111.0.2/32 dev tund0",
            "link set tund0 up",
        ] {
            ip(command);
        }

        let mut steering = begin();

        assert_eq!(way("203.0.113.9", 0), "tund0 10.111.0.2");
        assert_eq!(steering.mend().unwrap(), 0);
    });
}

#[test]
fn what_cannot_begin_leaves_nothing() {
    in_namespace(|| {
        host();
        let before = traces();
        // As if another daemon had its device there.
        ip("route add 203.0.113.0/24 dev wifi table 32000");

        let begun = Steering::begin(&tun0(), MARK, &mine(), everything());
        let error = begun.err().unwrap();

        assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        ip("route flush table 32000");
        assert_eq!(traces(), before);
    });
}

/// Everything in reach of a socket that is bound to the access device.
fn stray(destination: &str) -> Vec<bool> {
    let to: SocketAddr = destination.parse().unwrap();
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let udp = UdpSocket::bind(any).unwrap();
    let bound = socket2::SockRef::from(&udp).bind_device(Some(b"wifi"));
    bound.unwrap();
    let before = sent("wifi");
    let told = udp.send_to(b"stray", to).is_ok();
    vec![told, sent("wifi") > before]
}

#[test]
fn a_socket_that_is_bound_to_another_device_goes_nowhere() {
    in_namespace(|| {
        host();
        for neighbour in ["192.168.1.1", "fd22::1", "192.168.1.77", "203.0.113.9"] {
            ip(&format!(
                "neigh add {neighbour} lladdr 02:00:00:00:00:01 dev wifi nud permanent"
            ));
        }
        assert_eq!(stray("203.0.113.9:7"), [true, true], "without routes");
        let steering = begin();

        for away in ["203.0.113.9:7", "[2001:db8::9]:7"] {
            assert_eq!(stray(away), [false, false], "{away}");
        }
        assert_eq!(stray("192.168.1.77:7"), [true, true], "on its own link");
        assert_eq!(stray("198.51.100.4:7"), [true, true], "past it");
        assert_eq!(stray("198.51.100.53:53"), [false, false], "the stub");
        ip("rule del priority 5000");
        assert_eq!(stray("203.0.113.9:7"), [false, false], "with the rule gone");

        steering.end(true).unwrap();
        assert_eq!(stray("203.0.113.9:7"), [false, false], "while it blocks");
        // The same prefix by another device is another network.
        ip("link set wifi down");
        ip("link add wwan type veth peer name away");
        for command in [
            "addr add 198.51.101.2/24 dev wwan",
            "link set away up",
            "link set wwan up",
            "route add default via 198.51.101.1 dev wwan",
            "neigh add 198.51.101.1 lladdr 02:00:00:00:00:01 dev wwan nud permanent",
        ] {
            ip(command);
        }
        let before = sent("wwan");
        let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
        assert!(udp.send_to(b"stray", "192.168.1.77:7").is_err());
        assert_eq!(sent("wwan"), before);
    });
}

#[test]
fn a_successor_with_another_address_leads_from_there_at_once() {
    in_namespace(|| {
        host();
        std::mem::forget(begin());
        ip("addr add 10.111.0.9/32 dev tund0");
        let other = [("10.111.0.9".parse().unwrap(), 32).into(), mine()[1]];

        let _successor = Steering::begin(&tun0(), MARK, &other, everything()).unwrap();

        assert_eq!(way("203.0.113.9", 0), "tund0 10.111.0.9");
    });
}

#[test]
fn connections_of_the_tuns_time_are_not_let_out_by_a_successor() {
    in_namespace(|| {
        host();
        ip("neigh add 192.168.1.1 lladdr 02:00:00:00:00:01 dev wifi nud permanent");
        std::mem::forget(begin());
        let inside = UdpSocket::bind("192.168.1.2:0").unwrap();
        inside.connect("203.0.113.9:7").unwrap();

        let _successor = begin();

        let wifi = sent("wifi");
        let _into_the_tun = inside.send(b"inside");
        assert_eq!(sent("wifi"), wifi);
    });
}

#[test]
fn the_daemon_of_another_device_is_left_alone() {
    in_namespace(|| {
        host();
        let _steering = begin();
        let before = traces();

        assert!(!remove(&"tund1".parse().unwrap()).unwrap());

        assert_eq!(traces(), before);
    });
}

#[test]
fn a_gateway_of_another_program_is_not_looked_for_in_the_tun() {
    in_namespace(|| {
        host();
        let _steering = begin();
        ip("link add wwan type veth peer name away");
        ip("link set away up");
        ip("link set wwan up");
        ip("addr add 198.51.101.2/24 dev wwan");

        ip("route add default via 198.51.101.1 metric 50");

        let shown = ip_output("route show default");
        assert!(shown.contains("via 198.51.101.1 dev wwan"), "{shown}");
    });
}

#[test]
fn a_device_that_was_down_has_its_addresses_and_routes_again() {
    in_namespace(|| {
        host();
        let mut steering = begin();
        ip("link set tund0 down");
        let _while_down = steering.mend();
        ip("link set tund0 up");

        steering.mend().unwrap();

        assert_eq!(way("203.0.113.9", 0), "tund0 10.111.0.2");
        assert_eq!(way("2001:db8::9", 0), "tund0 fd11::2");
    });
}

#[test]
fn a_flushed_filter_keeps_nobody_from_undoing_the_routes() {
    in_namespace(|| {
        host();
        let before = traces();
        for is_stopped in [true, false] {
            let steering = begin();
            super::super::nft::apply("flush all", "flush ruleset\n").unwrap();
            if is_stopped {
                steering.end(false).unwrap();
            } else {
                std::mem::forget(steering);
                assert!(remove(&tun0()).unwrap());
            }
            assert_eq!(traces(), before, "stopped: {is_stopped}");
        }
    });
}

#[test]
fn only_networks_that_the_device_is_on_stay_outside_and_no_one_is_within_another() {
    in_namespace(|| {
        host();
        // As network managers make them, and as a DHCP server may have them make.
        ip("route add 192.168.1.1 dev wifi proto dhcp scope link");
        ip("-6 addr add fd22::5/128 dev wifi nodad");
        ip("route add 10.99.0.0/16 dev wifi proto dhcp scope link");

        let _steering = begin();

        assert_eq!(way("192.168.1.1", 0), "wifi 192.168.1.2");
        assert_eq!(way("192.168.1.77", 0), "wifi 192.168.1.2");
        assert_eq!(way("10.99.0.1", 0), "tund0 10.111.0.2");
    });
}

#[test]
fn what_is_forwarded_past_the_tun_goes_nowhere() {
    in_namespace(|| {
        host();
        ip("neigh add 192.168.1.1 lladdr 02:00:00:00:00:01 dev wifi nud permanent");
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let guest = Neighbour::new();
        ip(&format!(
            "link add inside type veth peer name out netns {}",
            guest.tid()
        ));
        ip("addr add 172.17.0.1/24 dev inside");
        ip("link set inside up");
        guest.run(|| {
            ip("addr add 172.17.0.2/24 dev out");
            ip("link set out up");
            ip("route add default via 172.17.0.1");
        });
        let _steering = begin();
        ip("rule add from 172.17.0.0/16 lookup main");
        let wifi = sent("wifi");

        let said = guest.run(|| {
            let to = "203.0.113.9:7".parse().unwrap();
            TcpStream::connect_timeout(&to, PATIENCE).map_err(|error| error.kind())
        });

        let unreachable = [
            io::ErrorKind::NetworkUnreachable,
            io::ErrorKind::HostUnreachable,
        ];
        assert!(said.is_err_and(|kind| unreachable.contains(&kind)));
        assert_eq!(sent("wifi"), wifi);
    });
}

#[test]
fn a_filter_that_was_flushed_is_made_again_at_the_next_look() {
    in_namespace(|| {
        host();
        ip("neigh add 203.0.113.9 lladdr 02:00:00:00:00:01 dev wifi nud permanent");
        let mut steering = begin();
        super::super::nft::apply("flush all", "flush ruleset\n").unwrap();

        assert!(steering.mend().unwrap() > 0);

        assert_eq!(stray("203.0.113.9:7"), [false, false]);
    });
}

/// Packets that the device has sent.
fn sent(device: &str) -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let mut rows = table.lines().filter_map(|line| line.split_once(':'));
    let (_, counts) = rows.find(|row| row.0.trim() == device).unwrap();
    counts.split_whitespace().nth(9).unwrap().parse().unwrap()
}

#[test]
fn what_was_connected_before_goes_on_where_it_was() {
    in_namespace(|| {
        host();
        ip("neigh add 192.168.1.1 lladdr 02:00:00:00:00:01 dev wifi nud permanent");
        let before = UdpSocket::bind("192.168.1.2:0").unwrap();
        before.connect("203.0.113.9:7").unwrap();
        let _steering = begin();
        let after = UdpSocket::bind("0.0.0.0:0").unwrap();
        after.connect("203.0.113.9:7").unwrap();
        let wifi = sent("wifi");

        assert_eq!(before.send(b"old").unwrap(), 3);

        assert_eq!(sent("wifi"), wifi + 1, "past the TUN");
        let source: SocketAddr = after.local_addr().unwrap();
        assert_eq!(source.ip().to_string(), MINE[0]);
        let _dropped = after.send(b"new");
        assert_eq!(sent("wifi"), wifi + 1, "into the TUN");
    });
}

#[test]
fn connections_within_the_host_are_left_alone() {
    in_namespace(|| {
        host();
        let _steering = begin();
        let listener = TcpListener::bind("192.168.1.2:0").unwrap();

        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();

        assert!(listener.accept().is_ok(), "{stream:?}");
    });
}
