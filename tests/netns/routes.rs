//! The daemon looks after the routes: whatever others do to them, and however it ends, nothing that
//! should go by tund is seen on an access link.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use socket2::{Domain, SockRef, Socket, Type};
use tund_tests::lab::{Access, Family, Lab, Namespace, ORIGIN_PORT, SERVER_PORT, Settings, wait};

use crate::sniffer::Sniffer;
use crate::support::{Echo, LATER, LONG, SOON, Scene};

/// A packet that is refused on the spot needs no time; one that goes nowhere takes this long.
const PATIENCE: Duration = Duration::from_millis(700);

/// The router on the access links.
const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 1, 1));
const OTHER_ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 2, 1));

/// Both access links, read along.
struct Eyes([(Access, Sniffer); 2]);

impl Eyes {
    fn open(lab: &Lab) -> Self {
        let eye = |access: Access| (access, Sniffer::start(&lab.client, access.device()));
        Self([eye(Access::Wifi), eye(Access::Mobile)])
    }

    /// Nothing has been seen since the last call but connection B and what links need themselves.
    #[track_caller]
    fn assert_blind(&mut self, lab: &Lab, when: &str) {
        let server = lab.server_address(Family::V4).ip();
        for (access, sniffer) in &mut self.0 {
            for packet in sniffer.packets() {
                let seen = foreign(&packet, server);
                assert_eq!(seen, None, "{when}, on {}", access.device());
            }
        }
    }

    /// Waits until something else was seen, which shows that these eyes are open.
    #[track_caller]
    fn wait_for_more(&mut self, lab: &Lab) {
        let server = lab.server_address(Family::V4).ip();
        wait::until_true("a packet past tund is seen", SOON, || {
            let mut seen = self.0.iter_mut().flat_map(|(_, sniffer)| sniffer.packets());
            seen.any(|packet| foreign(&packet, server).is_some())
        });
    }
}

/// What a frame is, if it is neither of connection B nor one that never leaves its link.
fn foreign(frame: &[u8], server: IpAddr) -> Option<String> {
    const ARP: [u8; 2] = [0x08, 0x06];
    if frame.get(12..14) == Some(&ARP) {
        return None;
    }
    let packet = SlicedPacket::from_ethernet(frame).expect("a whole frame");
    let (from, to): (IpAddr, IpAddr) = match packet.net.as_ref()? {
        NetSlice::Ipv4(v4) => {
            let header = v4.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
            )
        }
        NetSlice::Ipv6(v6) => {
            let header = v6.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
            )
        }
        NetSlice::Arp(_) => return None,
    };
    let local = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_multicast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast(),
    };
    // Neighbour discovery, also from and for an address of the link.
    let is_neighbour = matches!(&packet.transport, Some(TransportSlice::Icmpv6(icmp))
        if (133..=136).contains(&icmp.type_u8()));
    let is_link = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            (from, tcp.source_port()) == (server, SERVER_PORT)
                || (to, tcp.destination_port()) == (server, SERVER_PORT)
        }
        // What the daemon itself asks: how networks without IPv4 are left (RFC 7050).
        Some(TransportSlice::Udp(udp)) => {
            udp.destination_port() == 53 && udp.payload().windows(8).any(|part| part == b"ipv4only")
        }
        // Of the router, to the host: what became of a packet of a link.
        Some(TransportSlice::Icmpv4(_)) => from == ROUTER || from == OTHER_ROUTER,
        _ => false,
    };
    (!is_link && !is_neighbour && !local(to)).then(|| format!("{from} to {to}: {packet:?}"))
}

fn targets(lab: &Lab) -> [SocketAddr; 3] {
    [
        lab.origin_address(Family::V4, ORIGIN_PORT),
        lab.plain_origin_address(Family::V4, ORIGIN_PORT),
        lab.origin_address(Family::V6, ORIGIN_PORT),
    ]
}

/// Applications of all kinds reach what they want.
#[track_caller]
fn assert_reached(lab: &Lab, when: &str) {
    for target in targets(lab) {
        let echo = Echo::open(&lab.client, target);
        assert!(echo.is_ok(), "{when}: {target}: {echo:?}");
    }
}

/// Applications of all kinds reach nothing, not even by datagrams.
#[track_caller]
fn assert_blocked(host: &Namespace, lab: &Lab, when: &str) {
    for target in targets(lab) {
        let outcome = host.enter(|| TcpStream::connect_timeout(&target, PATIENCE));
        assert!(outcome.is_err(), "{when}: {target}: {outcome:?}");
        let any = SocketAddr::new(
            if target.is_ipv4() {
                IpAddr::from([0; 4])
            } else {
                IpAddr::from([0; 16])
            },
            0,
        );
        let said = host.enter(|| UdpSocket::bind(any)?.send_to(b"anybody?", target));
        for device in [Access::Wifi, Access::Mobile].map(Access::device) {
            let stray = host.enter(|| -> io::Result<usize> {
                let socket = UdpSocket::bind(any)?;
                SockRef::from(&socket).bind_device(Some(device.as_bytes()))?;
                socket.send_to(b"astray?", target)
            });
            assert!(stray.is_err(), "{when}: {target} by {device}");
        }
        let kinds = [ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable];
        let refused = said.err().map(|error| error.kind());
        assert!(
            refused.is_none_or(|kind| kinds.contains(&kind)),
            "{when}: {refused:?}"
        );
    }
}

/// Sockets that are bound to the access device reach nothing beyond it.
#[track_caller]
fn assert_no_strays(lab: &Lab) {
    for target in targets(lab) {
        let outcome = lab.client.enter(|| -> io::Result<TcpStream> {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
            socket.bind_device(Some(Access::Wifi.device().as_bytes()))?;
            socket.connect_timeout(&target.into(), PATIENCE)?;
            Ok(socket.into())
        });
        assert!(outcome.is_err(), "{target}: {outcome:?}");
    }
}

/// Rules and routes that a daemon could leave behind.
fn traces(lab: &Lab) -> Vec<String> {
    let mut traces: Vec<String> = ["ip rule show", "ip -6 rule show", "nft list tables"]
        .map(|command| lab.client.run(command))
        .to_vec();
    for family in ["-4", "-6"] {
        let shown = lab
            .client
            .try_run(&format!("ip {family} route show table 32000"));
        traces.push(shown.unwrap_or_default());
    }
    // Tables are listed in the order in which they were made.
    let sorted = |text: &String| {
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    traces.iter().map(sorted).collect()
}

#[test]
fn nothing_leaves_by_another_way_whatever_happens_to_routes_and_daemon() {
    let lab = Lab::new("auto routes");
    let mut eyes = Eyes::open(&lab);
    let mut scene = Scene::within(lab, &Settings::new().auto_routes());
    let with_daemon = traces(&scene.lab);
    assert_reached(&scene.lab, "at first");
    eyes.assert_blind(&scene.lab, "at first");

    // What a DHCP server or another program may push.
    for rogue in ["0.0.0.0/1", "128.0.0.0/1", "10.77.4.0/24"] {
        scene
            .lab
            .client
            .run(&format!("ip route add {rogue} via 10.77.1.1"));
    }
    scene
        .lab
        .client
        .run("ip -6 route add fd77:0:0:4::/64 via fd77:0:0:1::1");
    assert_reached(&scene.lab, "with pushed routes");
    for command in ["ip rule del priority 5000", "ip -6 route flush table 32000"] {
        scene.lab.client.run(command);
        wait::until_true("it is put right", SOON, || {
            traces(&scene.lab) == with_daemon
        });
    }
    // In the moment before, applications were not asked to hold still, and none was asked to send.
    assert_reached(&scene.lab, "after changes of another program");
    eyes.assert_blind(&scene.lab, "with pushed and deleted routes");

    assert_no_strays(&scene.lab);
    eyes.assert_blind(&scene.lab, "with sockets bound to devices");

    scene.lab.cut();
    assert_blocked(&scene.lab.client, &scene.lab, "without a network");
    scene.lab.heal();
    scene.lab.switch();
    assert_reached(&scene.lab, "on the other access link");
    eyes.assert_blind(&scene.lab, "through a cut and a switch");
    wait::until_true("the new local network stays outside", SOON, || {
        let traces = traces(&scene.lab);
        traces
            .iter()
            .any(|text| text.contains("throw 10.77.2.0/24"))
    });
    let with_daemon = traces(&scene.lab);

    scene.tund.client.process.kill();
    assert_blocked(&scene.lab.client, &scene.lab, "after a crash");
    scene.lab.client.run("ip link del tund0");
    assert_blocked(&scene.lab.client, &scene.lab, "without the device");
    eyes.assert_blind(&scene.lab, "after a crash");

    scene.tund.client.start_again(&scene.lab);
    assert_reached(&scene.lab, "again");
    assert_eq!(traces(&scene.lab), with_daemon, "nothing is there twice");
    eyes.assert_blind(&scene.lab, "from the crash to the new start");

    let status = scene.tund.client.process.terminate(LONG);
    assert!(status.success(), "{status}");
    let left = traces(&scene.lab);
    assert!(left.iter().all(|text| !text.contains("32000")), "{left:?}");
    assert!(!left.iter().any(|text| text.contains("routes")), "{left:?}");
    // The others went with the addresses of the first access link.
    let rogue = "ip -6 route del fd77:0:0:4::/64 via fd77:0:0:1::1";
    scene.lab.client.run(rogue);
    assert_reached(&scene.lab, "directly, without a daemon");
    eyes.wait_for_more(&scene.lab);
}

#[test]
fn with_the_kill_switch_nothing_leaves_while_the_daemon_is_stopped() {
    let lab = Lab::new("kill switch");
    let mut eyes = Eyes::open(&lab);
    let settings = Settings::new()
        .auto_routes()
        .client("routes", "kill_switch", "true");
    let mut scene = Scene::within(lab, &settings);
    assert_reached(&scene.lab, "at first");

    assert!(scene.tund.client.process.terminate(LONG).success());

    assert_blocked(&scene.lab.client, &scene.lab, "stopped");
    let router = SocketAddr::new("10.77.1.1".parse().unwrap(), 1);
    eyes.assert_blind(&scene.lab, "stopped");
    let near = scene
        .lab
        .client
        .enter(|| TcpStream::connect_timeout(&router, SOON));
    let refused = near
        .map_err(|error| error.kind())
        .expect_err("nobody listens");
    assert_eq!(
        refused,
        ErrorKind::ConnectionRefused,
        "the local network is there"
    );

    scene.tund.client.start_again(&scene.lab);
    assert_reached(&scene.lab, "again");
}

#[test]
fn connections_that_were_there_before_go_on_where_they_were() {
    let lab = Lab::new("before the routes");
    let origin = tund_tests::lab::Origin::start(&lab.origin);
    let mut before: Vec<Echo> = targets(&lab)
        .into_iter()
        .map(|target| Echo::open(&lab.client, target).expect("a direct connection"))
        .collect();

    // As strict as a host may be about where packets come from.
    for which in ["all", "wifi"] {
        lab.client
            .sysctl(&format!("ipv4.conf.{which}.rp_filter"), "1");
    }
    let tund = tund_tests::lab::Tund::start(&lab, &Settings::new().auto_routes());

    for echo in &mut before {
        echo.round_trip().expect("it goes on");
    }
    let mut after = Echo::open(&lab.client, targets(&lab)[0]).expect("a connection through tund");
    after.round_trip().unwrap();
    let status = tund.client.wait_attached(LATER);
    assert_eq!(status.flows.tcp, 1, "only the new one: {status:?}");
    drop((origin, before));
}
