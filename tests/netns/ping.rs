//! ICMP echo through the real daemons: what a ping socket of an application sees, sizes, errors, outages.

use std::io::{self, IoSliceMut, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tund_tests::lab::{Access, Family, Lab, Namespace, Settings, TUN, address, wait};

use crate::support::{LATER, SOON, Scene};

const BOTH: [Family; 2] = [Family::V4, Family::V6];
const IDENTIFIER: u16 = 4711;
/// Whose ping sockets the kernel permits: nobody's, which it does by default, and everybody's.
const NOBODY: &str = "1 0";
const EVERYBODY: &str = "0 2147483647";
/// Longer than a daemon keeps a datagram.
const STALE: Duration = Duration::from_secs(3);
/// Longer than an answer takes, where there is none.
const SILENCE: Duration = Duration::from_millis(700);

/// An application that pings one host.
struct Ping {
    socket: Socket,
    is_v4: bool,
    identifier: u16,
}

/// What an application is told of a request of its own.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    errno: Errno,
    /// Type and code of the ICMP message.
    icmp: (u8, u8),
    sequence: u16,
    from: IpAddr,
}

impl Ping {
    fn new(scene: &Scene, to: IpAddr, identifier: u16) -> Self {
        let any: IpAddr = match to {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self::from(scene, any, to, identifier)
    }

    /// By an identifier that others may have too.
    fn from(scene: &Scene, source: IpAddr, to: IpAddr, identifier: u16) -> Self {
        let client = &scene.lab.client;
        client.sysctl("ipv4.ping_group_range", EVERYBODY);
        let is_v4 = to.is_ipv4();
        let (domain, protocol) = if is_v4 {
            (Domain::IPV4, Protocol::ICMPV4)
        } else {
            (Domain::IPV6, Protocol::ICMPV6)
        };
        let socket = client
            .enter(|| Socket::new(domain, Type::DGRAM, Some(protocol)))
            .unwrap();
        if is_v4 {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true).unwrap();
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true).unwrap();
        }
        socket.set_reuse_address(true).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket
            .bind(&SocketAddr::new(source, identifier).into())
            .unwrap();
        socket.connect(&SocketAddr::new(to, 0).into()).unwrap();
        Self {
            socket,
            is_v4,
            identifier,
        }
    }

    fn send(&self, sequence: u16, data: &[u8]) {
        let [high, low] = sequence.to_be_bytes();
        let kind = if self.is_v4 { 8 } else { 128 };
        // The kernel fills in checksum and identifier.
        let mut request = vec![kind, 0, 0, 0, 0, 0, high, low];
        request.extend_from_slice(data);
        // What an earlier one has met is told by the next call, which then does nothing.
        if self.socket.send(&request).is_err() {
            self.socket.send(&request).unwrap();
        }
    }

    /// The sequence number and the data of the next reply.
    fn recv(&self) -> io::Result<(u16, Vec<u8>)> {
        let mut reply = vec![0; 65_536];
        let len = (&self.socket).read(&mut reply)?;
        reply.truncate(len);
        let kind = if self.is_v4 { 0 } else { 129 };
        assert_eq!(reply[..2], [kind, 0]);
        let identifier = u16::from_be_bytes([reply[4], reply[5]]);
        assert_eq!(identifier, self.identifier);
        let sequence = u16::from_be_bytes([reply[6], reply[7]]);
        Ok((sequence, reply[8..].to_vec()))
    }

    #[track_caller]
    fn exchange(&self, sequence: u16, data: &[u8]) {
        self.send(sequence, data);
        let reply = self.recv().expect("a reply");
        let is_same = reply == (sequence, data.to_vec());
        assert!(is_same, "{} bytes, number {}", reply.1.len(), reply.0);
    }

    /// Nothing comes for a while.
    #[track_caller]
    fn expect_silence(&self) {
        self.socket.set_read_timeout(Some(SILENCE)).unwrap();
        let heard = self.recv().map_err(|error| error.kind());
        assert_eq!(heard, Err(io::ErrorKind::WouldBlock));
        self.socket.set_read_timeout(Some(SOON)).unwrap();
    }

    /// The next error, with what of a request it quotes.
    #[track_caller]
    fn told(&self) -> Told {
        wait::until("an error is told", SOON, || self.try_told())
    }

    fn try_told(&self) -> Option<Told> {
        let mut request = [0; 8];
        let mut pieces = [IoSliceMut::new(&mut request)];
        let mut control = nix::cmsg_space!(nix::libc::sock_extended_err, nix::libc::sockaddr_in6);
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let fd = self.socket.as_raw_fd();
        let message =
            recvmsg::<SockaddrStorage>(fd, &mut pieces, Some(&mut control), flags).ok()?;
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "only these two were asked for"
        )]
        let error = message.cmsgs().unwrap().find_map(|control| match control {
            ControlMessageOwned::Ipv4RecvErr(error, offender) => {
                let from = offender.map(|from| Ipv4Addr::from(u32::from_be(from.sin_addr.s_addr)));
                Some((error, from.map(IpAddr::from)))
            }
            ControlMessageOwned::Ipv6RecvErr(error, offender) => {
                let from = offender.map(|from| Ipv6Addr::from(from.sin6_addr.s6_addr));
                Some((error, from.map(IpAddr::from)))
            }
            _ => None,
        });
        let (error, from) = error.expect("it is one");
        let identifier = u16::from_be_bytes([request[4], request[5]]);
        assert_eq!(identifier, self.identifier);
        Some(Told {
            errno: Errno::from_raw(i32::try_from(error.ee_errno).unwrap()),
            icmp: (error.ee_type, error.ee_code),
            sequence: u16::from_be_bytes([request[6], request[7]]),
            from: from.expect("whose it is"),
        })
    }
}

/// A scene whose server may have ping sockets if `range` says so, as its kernel begins.
fn scene(title: &str, range: &str, settings: &Settings) -> Scene {
    let lab = Lab::new(title);
    lab.server.sysctl("ipv4.ping_group_range", range);
    Scene::within(lab, settings)
}

fn data(len: usize) -> Vec<u8> {
    (0..len)
        .map(|index| (index * 7 % 251).to_le_bytes()[0])
        .collect()
}

/// A counter of a host's kernel: a line of /proc/net/snmp or snmp6.
fn counter(host: &Namespace, file: &str, name: &str) -> u64 {
    let text = host.enter(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")));
    let text = text.unwrap();
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_ascii_whitespace().collect())
        .collect();
    // Of IPv6 a line has a name and a number; of IPv4 a line of names stands above one of numbers.
    let plain = rows.iter().find(|row| row.len() == 2 && row[0] == name);
    let number = match plain {
        Some(row) => row[1],
        None => {
            let of = |row: &[&str]| row.iter().position(|word| *word == name);
            let (above, place) = (0..rows.len())
                .find_map(|above| Some((above, of(&rows[above])?)))
                .unwrap();
            rows[above + 1][place]
        }
    };
    number.parse().unwrap()
}

/// Sockets of the server's kernel for ICMP: for ping, and raw ones.
fn sockets(scene: &Scene) -> (usize, usize) {
    let count = |file: &str| {
        let path = format!("/proc/thread-self/net/{file}");
        let text = scene.lab.server.enter(|| std::fs::read_to_string(path));
        text.unwrap().lines().count() - 1
    };
    (count("icmp") + count("icmp6"), count("raw") + count("raw6"))
}

fn rows(scene: &Scene, arguments: &[&str]) -> Vec<serde_json::Value> {
    let text = scene.tund.client.command(arguments).unwrap();
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    rows.into_iter()
        .filter(|row| row["protocol"] == "icmp")
        .collect()
}

fn asked(scene: &Scene) -> u64 {
    let origin = &scene.lab.origin;
    let v6 = counter(origin, "snmp6", "Icmp6InEchos");
    counter(origin, "snmp", "InEchos") + v6
}

#[test]
fn echo_requests_of_all_sizes_go_there_and_back_by_either_kind_of_socket() {
    const SIZES: [usize; 7] = [56, 0, 1, 1472, 8000, 40_001, 65_507];
    for (range, expected) in [(EVERYBODY, (2, 0)), (NOBODY, (0, 2))] {
        let scene = scene("pings", range, &Settings::new());
        let before = asked(&scene);
        for family in BOTH {
            let origin = scene.lab.origin_address(family, 0).ip();
            let ping = Ping::new(&scene, origin, IDENTIFIER);
            for (sequence, size) in (0..).zip(SIZES) {
                ping.exchange(sequence, &data(size));
            }
            ping.exchange(u16::MAX, b"last");
        }
        assert_eq!(sockets(&scene), expected, "{range}");
        // Each reached the origin: nobody answers in its place.
        let count = u64::try_from(SIZES.len()).unwrap() + 1;
        assert_eq!(asked(&scene) - before, 2 * count);

        let flows = rows(&scene, &["flows", "--json"]);
        assert_eq!(flows.len(), 2, "{flows:?}");
        assert_eq!(flows[0]["bytes"]["up"], SIZES.iter().sum::<usize>() + 4);
        assert_eq!(flows[0]["bytes"]["down"], flows[0]["bytes"]["up"]);
        assert_eq!(flows[0]["source"], format!("10.111.0.2:{IDENTIFIER}"));
        let status = scene.tund.client.status();
        assert_eq!((status.flows.udp, status.flows.icmp), (0, 2));
        let sessions = scene.tund.server.sessions().unwrap();
        assert_eq!(sessions[0]["flows"]["icmp"], 2);
        assert_eq!(sessions[0]["flows"]["udp"], 0);
    }
}

#[test]
fn nobody_answers_in_the_place_of_an_origin_that_is_silent() {
    let scene = scene("a silent origin", EVERYBODY, &Settings::new());
    let origin = &scene.lab.origin;
    origin.sysctl("ipv4.icmp_echo_ignore_all", "1");
    let to = scene.lab.origin_address(Family::V4, 0).ip();
    let ping = Ping::new(&scene, to, IDENTIFIER);
    let before = asked(&scene);
    ping.send(1, b"anybody?");
    ping.expect_silence();
    assert_eq!(asked(&scene) - before, 1);
    origin.sysctl("ipv4.icmp_echo_ignore_all", "0");
    ping.exchange(2, b"and now?");
}

#[test]
fn two_applications_with_one_identifier_get_their_own_answers() {
    let scene = scene("one identifier", EVERYBODY, &Settings::new());
    let origin = scene.lab.origin_address(Family::V4, 0).ip();
    let sources = [
        "10.111.0.2".parse().unwrap(),
        scene.lab.access_address(Family::V4, Access::Wifi),
    ];
    let both = sources.map(|source| Ping::from(&scene, source, origin, IDENTIFIER));
    let plain = scene.lab.plain_origin_address(Family::V4, 0).ip();
    let route = format!("ip route add {plain} dev {TUN}");
    scene.lab.client.run(&route);
    let third = Ping::from(&scene, sources[0], plain, IDENTIFIER + 1);

    for (sequence, ping) in (1_u16..).zip(&both) {
        ping.send(sequence, &sequence.to_be_bytes());
    }
    third.send(3, b"third");

    for (sequence, ping) in (1_u16..).zip(&both) {
        let reply = ping.recv().expect("a reply");
        assert_eq!(reply, (sequence, sequence.to_be_bytes().to_vec()));
    }
    assert_eq!(third.recv().unwrap(), (3, b"third".to_vec()));
    assert_eq!(rows(&scene, &["flows", "--json"]).len(), 3);
    assert_eq!(sockets(&scene), (3, 0));
}

/// Hosts that are not reached, one way or another.
fn lay_traps(scene: &Scene) {
    let (client, router, server) = (&scene.lab.client, &scene.lab.router, &scene.lab.server);
    for network in ["9.9.9.", "2620:fe::"] {
        for number in 1..=3 {
            client.run(&format!("ip route add {network}{number} dev {TUN}"));
        }
        router.run(&format!("ip route add unreachable {network}1"));
        router.run(&format!("ip route add prohibit {network}2"));
    }
    // As if they were many hops away.
    for (far, family) in [("9.9.9.3", Family::V4), ("2620:fe::3", Family::V6)] {
        let (near, beyond) = (address(family, 3, 1), address(family, 4, 2));
        server.run(&format!("ip route add {far} via {near} hoplimit 1"));
        router.run(&format!("ip route add {far} via {beyond}"));
    }
    for denied in ["10.77.6.1", "fd77:0:0:6::1"] {
        client.run(&format!("ip route add {denied} dev {TUN}"));
    }
}

#[test]
fn what_a_request_met_on_its_way_is_told_as_icmp_that_quotes_it() {
    let cases = [
        ("9.9.9.1", Errno::EHOSTUNREACH, (3, 1)),
        ("2620:fe::1", Errno::ENETUNREACH, (1, 0)),
        ("9.9.9.2", Errno::EHOSTUNREACH, (3, 1)),
        ("2620:fe::2", Errno::EACCES, (1, 1)),
        ("9.9.9.3", Errno::EHOSTUNREACH, (11, 0)),
        ("2620:fe::3", Errno::EHOSTUNREACH, (3, 0)),
        ("10.77.6.1", Errno::EHOSTUNREACH, (3, 13)),
        ("fd77:0:0:6::1", Errno::EACCES, (1, 1)),
    ];
    for (range, expected) in [(EVERYBODY, (9, 0)), (NOBODY, (0, 9))] {
        let scene = scene("errors of pings", range, &Settings::new());
        lay_traps(&scene);
        for (identifier, (to, errno, icmp)) in (IDENTIFIER..).zip(cases) {
            let to: IpAddr = to.parse().unwrap();
            let ping = Ping::new(&scene, to, identifier);
            for sequence in [7, 8] {
                ping.send(sequence, &data(56));
            }
            let told = [ping.told(), ping.told()];
            let expected = [7, 8].map(|sequence| Told {
                errno,
                icmp,
                sequence,
                from: to,
            });
            assert_eq!(told, expected, "{to}");
        }
        let log = scene.tund.server.process.log();
        assert!(log.contains("are refused unless"), "{log}");
        let origin = scene.lab.origin_address(Family::V4, 0).ip();
        Ping::new(&scene, origin, 1).exchange(1, b"others are answered");
        assert_eq!(sockets(&scene), expected, "{range}");
    }
}

#[test]
fn a_request_too_big_for_the_path_is_told_of_and_later_ones_pass() {
    for range in [EVERYBODY, NOBODY] {
        let scene = scene("path MTU of pings", range, &Settings::new());
        scene.lab.router.run("ip link set dev o0 mtu 1300");
        scene.lab.origin.run("ip link set dev up mtu 1300");
        for family in BOTH {
            let origin = scene.lab.origin_address(family, 0).ip();
            let ping = Ping::new(&scene, origin, IDENTIFIER);
            ping.exchange(1, &data(56));

            ping.send(2, &data(1400));

            let told = ping.told();
            let icmp = if origin.is_ipv4() { (3, 4) } else { (2, 0) };
            assert_eq!((told.errno, told.icmp), (Errno::EMSGSIZE, icmp));
            assert_eq!(told.sequence, 2);
            ping.exchange(3, &data(1400));
        }
    }
}

#[test]
fn nothing_is_answered_in_an_outage_and_after_it_the_identifier_works_on() {
    let scene = scene("an outage of pings", EVERYBODY, &Settings::new());
    let pings = BOTH.map(|family| {
        let origin = scene.lab.origin_address(family, 0).ip();
        Ping::new(&scene, origin, IDENTIFIER)
    });
    for ping in &pings {
        ping.exchange(1, b"before");
    }
    let before = sockets(&scene);

    scene.lab.cut();
    scene.lab.forget();
    for ping in &pings {
        ping.send(2, b"meanwhile");
    }
    scene.tund.client.wait_for("detached", LATER);
    wait::let_pass(STALE);
    for ping in &pings {
        ping.expect_silence();
    }
    let flows = rows(&scene, &["flows", "--json"]);
    assert_eq!(flows[0]["buffered_bytes"]["up"], 0, "{flows:?}");
    scene.lab.heal();
    scene.tund.client.wait_attached(LATER);

    for ping in &pings {
        ping.exchange(3, b"after");
    }
    assert_eq!((sockets(&scene), before), ((2, 0), (2, 0)));
    let flows = rows(&scene, &["flows", "--json"]);
    assert_eq!(flows.len(), 2, "{flows:?}");
    assert!(flows.iter().all(|row| row["outages"] == 1), "{flows:?}");
}

#[test]
fn a_server_that_may_open_no_socket_says_what_to_set_and_applications_are_told() {
    let settings = Settings::new().without_raw_sockets();
    let scene = Scene::new("forbidden pings", &settings);
    let log = || scene.tund.server.process.log();
    for (family, icmp) in [(Family::V4, (3, 13)), (Family::V6, (1, 1))] {
        let origin = scene.lab.origin_address(family, 0).ip();
        let ping = Ping::new(&scene, origin, IDENTIFIER);
        scene.lab.server.sysctl("ipv4.ping_group_range", NOBODY);
        for sequence in [1, 2] {
            ping.send(sequence, b"may I?");
            let told = ping.told();
            assert_eq!((told.icmp, told.sequence), (icmp, sequence));
        }
        let told = log().matches("echo requests (ping) are refused").count();
        assert_eq!(told, 1, "{}", log());
        assert!(log().contains("net.ipv4.ping_group_range"));

        scene.lab.server.sysctl("ipv4.ping_group_range", EVERYBODY);
        ping.exchange(3, b"and now?");
    }
}
