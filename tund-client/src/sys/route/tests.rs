//! Proves the choice of a way against the kernel, in network namespaces of the tests' own.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::task::Poll;

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::{TcpSocket, TcpStream};

use super::*;
use crate::sys::error::ErrorKind;
use crate::sys::socket::link_socket;
use crate::sys::testing::{Neighbour, PATIENCE, in_namespace, ip};
use crate::sys::tun::{Offload, TunDevice, TunOptions};

const MARK: u32 = 0x7d00_0000;
const SERVER: &str = "203.0.113.7";

/// What a user or another program did, and the ways that are left, the best first.
const RULES: &[(&[&str], &[&str])] = &[
    // A table of its own for our mark.
    (
        &[
            "route add default via 198.51.100.1 table 100",
            "rule add fwmark 0x7d000000/0xff000000 lookup 100 priority 50",
        ],
        &["mobile", "wifi"],
    ),
    // The same for another's mark.
    (
        &[
            "route add default via 198.51.100.1 table 100",
            "rule add fwmark 0x1 lookup 100 priority 50",
        ],
        &["wifi", "mobile"],
    ),
    // What VPNs install: everything but their own into their table, yet local networks first.
    (
        &[
            "route add default via 198.51.100.1 table 51820",
            "rule add not fwmark 51820 lookup 51820 priority 60",
            "rule add lookup main suppress_prefixlength 0 priority 50",
        ],
        &["mobile", "wifi"],
    ),
    // A table for those who ask for the device does not make it the best.
    (
        &[
            "route del default metric 600",
            "route add default via 198.51.100.1 table 100",
            "rule add oif mobile lookup 100 priority 50",
        ],
        &["wifi", "mobile"],
    ),
    (&["rule add to 203.0.113.0/24 blackhole priority 50"], &[]),
    (
        &["rule add to 203.0.114.0/24 blackhole priority 50"],
        &["wifi", "mobile"],
    ),
    (
        &["rule add ipproto tcp dport 443 prohibit priority 50"],
        &[],
    ),
    (
        &["rule add ipproto udp dport 443 prohibit priority 50"],
        &["wifi", "mobile"],
    ),
    (
        &["rule add ipproto tcp dport 444 prohibit priority 50"],
        &["wifi", "mobile"],
    ),
    (
        &["rule add from 192.0.2.2 blackhole priority 50"],
        &["wifi", "mobile"],
    ),
    (
        &["rule add iif wifi blackhole priority 50"],
        &["wifi", "mobile"],
    ),
    (&["rule add iif lo blackhole priority 50"], &[]),
    (
        &["rule add uidrange 1-9999 blackhole priority 50"],
        &["wifi", "mobile"],
    ),
    (&["rule add uidrange 0-0 blackhole priority 50"], &[]),
    (
        &[
            "rule add goto 32766 priority 50",
            "rule add blackhole priority 60",
        ],
        &["wifi", "mobile"],
    ),
    (
        &[
            "rule add goto 60 priority 50",
            "rule add blackhole priority 60",
        ],
        &[],
    ),
    // A route that refuses ends the search, unless a longer prefix was there before it.
    (&["route add unreachable 203.0.0.0/16"], &[]),
    (
        &[
            "route add unreachable 203.0.0.0/16",
            "route add 203.0.113.0/24 via 198.51.100.1",
        ],
        &["mobile"],
    ),
    (&["route add throw 203.0.0.0/16"], &[]),
];

#[test]
fn half_routes_into_the_tun_do_not_hide_the_networks_behind_them() {
    in_namespace(|| {
        let _far = two_networks();
        for route in [
            "0.0.0.0/1",
            "128.0.0.0/1",
            "default metric 1",
            "203.0.113.7/32",
        ] {
            ip(&format!("route add {route} dev tund0"));
        }
        ip("-6 route add ::/1 dev tund0");
        ip("-6 route add 8000::/1 dev tund0");

        assert_eq!(find(SERVER, &[]), [wifi(), mobile()]);
        assert_eq!(
            find("2001:db8:7::7", &[]),
            [way("wifi", "2001:db8:1::2", Some("2001:db8:1::1"))]
        );
        assert_eq!(find("::ffff:203.0.113.7", &[]), [wifi(), mobile()]);
    });
}

#[test]
fn preferred_devices_come_first_and_the_others_after_them() {
    in_namespace(|| {
        let _far = two_networks();

        assert_eq!(find(SERVER, &["absent", "mobile"]), [mobile(), wifi()]);
        assert_eq!(find(SERVER, &["wifi"]), [wifi(), mobile()]);
    });
}

#[test]
fn a_longer_prefix_beats_a_better_metric() {
    in_namespace(|| {
        let _far = two_networks();
        ip("route add 203.0.113.0/24 via 198.51.100.1 metric 900");

        assert_eq!(find(SERVER, &[]), [mobile(), wifi()]);
    });
}

#[test]
fn a_device_that_is_down_is_no_way() {
    in_namespace(|| {
        let _far = two_networks();
        ip("link set wifi down");

        assert_eq!(find(SERVER, &[]), [mobile()]);

        ip("link set mobile down");
        assert_eq!(find(SERVER, &[]), []);
    });
}

#[test]
fn a_server_on_its_own_network_has_no_gateway() {
    in_namespace(|| {
        let _far = two_networks();

        assert_eq!(find("192.0.2.1", &[])[0], way("wifi", "192.0.2.2", None));
    });
}

#[test]
fn a_server_on_this_host_is_reached_without_leaving_it() {
    in_namespace(|| {
        let _far = two_networks();
        ip("route add 0.0.0.0/1 dev tund0");

        for own in [
            "127.0.0.1",
            "127.9.9.9",
            "192.0.2.2",
            "10.111.0.2",
            "::1",
            "2001:db8:1::2",
        ] {
            let ways = find(own, &[]);
            assert!(
                matches!(&ways[..], [one] if one.local && one.gateway.is_none()),
                "{ways:?}"
            );
        }
    });
}

#[test]
fn every_next_hop_of_a_multipath_route_is_a_way() {
    in_namespace(|| {
        let _far = two_networks();
        ip("route del default metric 100");
        ip("route del default metric 600");
        ip("route add default nexthop via 198.51.100.1 nexthop via 192.0.2.1 nexthop dev tund0");

        let mut ways = find(SERVER, &["wifi"]);

        ways.sort_by_key(|way| way.index);
        assert_eq!(ways, [wifi(), mobile()]);
    });
}

#[test]
fn rules_decide_as_they_do_in_the_kernel() {
    for (changes, expected) in RULES {
        in_namespace(|| {
            let _far = two_networks();
            ip("route add 0.0.0.0/1 dev tund0");
            changes.iter().for_each(|change| ip(change));

            let ways = find(SERVER, &[]);

            let names: Vec<&str> = ways.iter().map(|way| way.interface.as_str()).collect();
            assert_eq!(names, *expected, "{changes:?}");
        });
    }
}

#[test]
fn a_link_goes_past_half_routes_by_each_way_and_the_tun_sees_nothing() {
    in_namespace(|| {
        let far = two_networks();
        ip("link del tund0");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let tun = TunDevice::open(&TunOptions {
                name: tund0(),
                mtu: None,
                addresses: Vec::new(),
                offload: Offload::Segmentation,
            });
            let mut tun = tun.unwrap();
            ip("route add 0.0.0.0/1 dev tund0");
            ip("route add 128.0.0.0/1 dev tund0");
            let listener = far.run(|| TcpListener::bind("203.0.113.7:443").unwrap());
            let server: SocketAddr = "203.0.113.7:443".parse().unwrap();

            for path in paths(&query(SERVER, &tund0(), &[])).unwrap() {
                let socket = link_socket(&path, server, MARK).unwrap();
                assert_eq!(getsockopt(&socket.as_fd(), sockopt::Mark).unwrap(), MARK);
                let link = tokio::time::timeout(PATIENCE, connect(socket, server)).await;
                let link = link.unwrap().unwrap();
                assert_eq!(link.local_addr().unwrap().ip(), path.source);
                let (_, from) = listener.accept().unwrap();
                assert_eq!(from, link.local_addr().unwrap());
            }

            let mut buf = [0; 100];
            let read =
                std::future::poll_fn(|cx| Poll::Ready(tun.poll_read(cx, &mut buf).is_pending()));
            assert!(read.await, "a packet of a link entered the TUN");
        });
    });
}

#[test]
fn a_link_to_this_host_is_connected_though_everything_goes_into_the_tun() {
    in_namespace(|| {
        let _far = two_networks();
        ip("route add 0.0.0.0/1 dev tund0");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            for own in ["127.0.0.1:0", "192.0.2.2:0", "10.111.0.2:0", "[::1]:0"] {
                let listener = TcpListener::bind(own).unwrap();
                let server = listener.local_addr().unwrap();
                let path = find(&server.ip().to_string(), &[]).remove(0);

                let link = connect(link_socket(&path, server, MARK).unwrap(), server);

                tokio::time::timeout(PATIENCE, link).await.unwrap().unwrap();
            }
        });
    });
}

#[test]
fn a_device_that_went_meanwhile_is_told() {
    in_namespace(|| {
        let _far = two_networks();
        let path = find(SERVER, &[]).remove(0);
        ip("link del wifi");

        let error = link_socket(&path, "203.0.113.7:443".parse().unwrap(), MARK).unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Failed);
        assert!(
            error.to_string().contains("wifi: the device has gone"),
            "{error}"
        );
    });
}

async fn connect(socket: socket2::Socket, server: SocketAddr) -> io::Result<TcpStream> {
    TcpSocket::from_std_stream(socket.into())
        .connect(server)
        .await
}

fn find(server: &str, preference: &[&str]) -> Vec<Path> {
    let preference: Vec<String> = preference.iter().map(ToString::to_string).collect();
    paths(&query(server, &tund0(), &preference)).unwrap()
}

fn query<'a>(server: &str, tun: &'a TunName, preference: &'a [String]) -> PathQuery<'a> {
    PathQuery {
        server: SocketAddr::new(server.parse().unwrap(), 443),
        tun,
        fwmark: MARK,
        preference,
    }
}

fn tund0() -> TunName {
    "tund0".parse().unwrap()
}

fn wifi() -> Path {
    way("wifi", "192.0.2.2", Some("192.0.2.1"))
}

fn mobile() -> Path {
    way("mobile", "198.51.100.2", Some("198.51.100.1"))
}

fn way(interface: &str, source: &str, gateway: Option<&str>) -> Path {
    Path {
        interface: interface.to_owned(),
        index: nix::net::if_::if_nametoindex(interface).unwrap(),
        source: source.parse().unwrap(),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        local: false,
    }
}

/// A TUN, and two access networks that both lead to a server: wifi, better, and mobile.
fn two_networks() -> Neighbour {
    let far = Neighbour::new();
    for (name, network) in [("wifi", "192.0.2"), ("mobile", "198.51.100")] {
        let peer = format!("{name}-far");
        ip(&format!(
            "link add {name} type veth peer name {peer} netns {}",
            far.tid()
        ));
        let address = format!("address add {network}.1/24 dev {peer}");
        far.run(move || {
            ip(&format!("link set {peer} up"));
            ip(&address);
        });
        ip(&format!("link set {name} up"));
        ip(&format!("address add {network}.2/24 dev {name}"));
    }
    far.run(|| ip("address add 203.0.113.7/32 dev lo"));
    ip("address add 2001:db8:1::2/64 dev wifi nodad");
    ip("-6 route add default via 2001:db8:1::1");
    ip("route add default via 192.0.2.1 metric 100");
    ip("route add default via 198.51.100.1 metric 600");
    ip("tuntap add dev tund0 mode tun");
    ip("address add 10.111.0.2/32 dev tund0");
    ip("link set tund0 up");
    far
}
