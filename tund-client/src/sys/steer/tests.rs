//! Rule, routes and marks in a namespace of one's own.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use super::*;
use crate::sys::testing::{in_namespace, ip, ip_output};

const MARK: u32 = 0x7d00_0000;
const MINE: [&str; 2] = ["10.111.0.2", "fd11::2"];

fn tun0() -> TunName {
    "tund0".parse().unwrap()
}

fn everything() -> Routing {
    Routing {
        include: ["0.0.0.0/0", "::/0"]
            .map(|net| net.parse().unwrap())
            .to_vec(),
        exclude: vec!["198.51.100.0/24".parse().unwrap()],
        lan_direct: true,
        ..Routing::default()
    }
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

fn begin() -> Steering {
    let addresses = MINE.map(|one| one.parse().unwrap());
    Steering::begin(&tun0(), MARK, &addresses, everything()).unwrap()
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
        let steering = begin();
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
        let steering = begin();
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
        let steering = begin();
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
fn without_an_address_of_a_version_it_is_refused() {
    in_namespace(|| {
        host();
        ip("-6 addr del fd11::2/128 dev tund0");
        let addresses = [MINE[0].parse().unwrap()];
        let _steering = Steering::begin(&tun0(), MARK, &addresses, everything()).unwrap();

        assert_eq!(way("203.0.113.9", 0), "tund0 10.111.0.2");
        assert_eq!(way("2001:db8::9", 0), "none");
        assert_eq!(way("2001:db8::9", MARK), "wifi fd22::2");
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
