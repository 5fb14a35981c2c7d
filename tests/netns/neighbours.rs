//! A neighbour on the access link, whose packets must not reach an application through the TUN
//! device's addresses.

use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use tund_tests::lab::{Family, ORIGIN_PORT, Settings, TUN, address, wait};

use crate::sniffer::{Sniffer, send_raw};
use crate::support::{Echo, SOON, Scene};

/// The TUN device's addresses.
pub(crate) const OWN4: Ipv4Addr = Ipv4Addr::new(10, 111, 0, 2);
/// The other one.
pub(crate) const OWN6: Ipv6Addr = Ipv6Addr::new(0xfd11, 0, 0, 0, 0, 0, 0, 2);
/// Longer than a packet takes that is let through.
const A_MOMENT: Duration = Duration::from_millis(300);

/// Has the neighbour send what is for the TUN's addresses to the client.
fn scene(title: &str) -> Scene {
    let scene = Scene::new(title, &Settings::new());
    drop(scene.echo());
    let router = &scene.lab.router;
    router.run("ip route add 10.111.0.2 via 10.77.1.2");
    router.run("ip route add fd11::2 via fd77:0:0:1::2");
    scene
}

fn filter_sources(scene: &Scene, strictness: &str) {
    for which in ["all", "wifi", TUN] {
        let key = format!("ipv4.conf.{which}.rp_filter");
        scene.lab.client.sysctl(&key, strictness);
    }
}

/// Takes a datagram; a signal that happens to arrive is none.
fn receive(socket: &UdpSocket) -> io::Result<usize> {
    loop {
        match socket.recv(&mut [0; 9]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[test]
fn a_neighbour_reaches_no_application_through_the_devices_addresses() {
    let scene = scene("a neighbour");
    let lab = &scene.lab;
    let application = |own: IpAddr| {
        let socket = lab.client.enter(|| UdpSocket::bind((own, 0))).unwrap();
        socket.set_read_timeout(Some(A_MOMENT)).unwrap();
        socket
    };
    let neighbour = lab.router.enter(|| UdpSocket::bind("[::]:0")).unwrap();
    for filter in ["0", "1", "2"] {
        filter_sources(&scene, filter);
        for (open, protected) in [
            (
                lab.access_address(Family::V4, lab.access()),
                IpAddr::V4(OWN4),
            ),
            (
                lab.access_address(Family::V6, lab.access()),
                IpAddr::V6(OWN6),
            ),
        ] {
            for bound_to in [protected, IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
                let socket = application(bound_to);
                let port = socket.local_addr().unwrap().port();
                let send = |to: IpAddr| {
                    let to = match to {
                        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                        IpAddr::V6(v6) => v6,
                    };
                    neighbour.send_to(b"spoofed", (to, port)).unwrap();
                };
                send(protected);
                let error = receive(&socket).unwrap_err();
                assert_eq!(
                    error.kind(),
                    io::ErrorKind::WouldBlock,
                    "rp_filter {filter}"
                );
                if bound_to.is_unspecified() {
                    send(open);
                    // The way is open for what is meant for the access link's own address.
                    receive(&socket).unwrap();
                }
            }
        }
    }
}

/// A TCP segment: a SYN without an acknowledgement, data with one.
fn segment(
    (from, to): (SocketAddr, SocketAddr),
    (sequence, acknowledged): (u32, Option<u32>),
) -> Vec<u8> {
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("{from}, {to}"),
    };
    let tcp = ip.tcp(from.port(), to.port(), sequence, 0xffff);
    let tcp = match acknowledged {
        None => tcp.syn(),
        Some(number) => tcp.ack(number).psh(),
    };
    let mut bytes = Vec::new();
    tcp.write(&mut bytes, b"spoofed").unwrap();
    bytes
}

/// What got through of a neighbour's attempts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Reached {
    /// It connected to a listening application.
    connect: bool,
    /// Its SYN with data is being answered.
    syn: bool,
    /// Its bytes arrived within a connection through tund.
    data: bool,
}

/// A neighbour's attempts on an application that listens at the TUN's address, and on one that is
/// connected through it.
fn intrude(scene: &Scene, family: Family) -> Reached {
    let lab = &scene.lab;
    let own = match family {
        Family::V4 => IpAddr::V4(OWN4),
        Family::V6 => IpAddr::V6(OWN6),
    };
    let listener = lab.client.enter(|| TcpListener::bind((own, 0))).unwrap();
    let listening = listener.local_addr().unwrap();
    let connect = lab.router.connect(listening, A_MOMENT).is_ok();

    // From an address that nobody has, so that nobody resets what the client answers.
    let stranger = SocketAddr::new(address(family, 1, 77), 1234);
    send_raw(
        &lab.router,
        &segment((stranger, listening), (1000, None)),
        own,
    );
    let asked = format!("ss -Htan state syn-recv sport = :{}", listening.port());
    let syn = happens(|| !lab.client.run(&asked).is_empty());

    // As the origin of a connection would send it, byte for byte where the next one belongs.
    let mut sniffer = Sniffer::start(&lab.client, TUN);
    let origin = lab.origin_address(family, ORIGIN_PORT);
    let mut echo = Echo::open(&lab.client, origin).unwrap();
    let application = echo.stream.local_addr().unwrap();
    let numbers = sniffer.wait_for("the echo has passed the device", SOON, |packet| {
        next_byte(packet, (origin, application))
    });
    let forged = segment((origin, application), (numbers.0, Some(numbers.1)));
    send_raw(&lab.router, &forged, own);
    echo.stream.set_read_timeout(Some(A_MOMENT)).unwrap();
    let data = echo.stream.read(&mut [0; 9]).is_ok();
    Reached { connect, syn, data }
}

/// Sequence and acknowledgement of the byte behind this segment, if it has data and these ends.
fn next_byte(packet: &[u8], (from, to): (SocketAddr, SocketAddr)) -> Option<(u32, u32)> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        return None;
    };
    let ports = (tcp.source_port(), tcp.destination_port());
    let length = u32::try_from(tcp.payload().len()).ok()?;
    (ports == (from.port(), to.port()) && length > 0).then(|| {
        let next = tcp.sequence_number().wrapping_add(length);
        (next, tcp.acknowledgment_number())
    })
}

/// Whether it is so within a moment.
fn happens(mut is_so: impl FnMut() -> bool) -> bool {
    let start = wait::now();
    while wait::now() - start < A_MOMENT {
        if is_so() {
            return true;
        }
    }
    false
}

#[test]
fn a_neighbour_neither_opens_nor_enters_a_tcp_connection_of_an_application() {
    let scene = scene("a neighbour who speaks TCP");
    for filter in ["0", "1", "2"] {
        filter_sources(&scene, filter);
        for family in [Family::V4, Family::V6] {
            let reached = intrude(&scene, family);
            assert_eq!(
                reached,
                Reached::default(),
                "rp_filter {filter}, {family:?}"
            );
        }
    }
    assert_eq!(scene.tund.client.status().outages.count, 0);

    // Without the guard all of it gets through: the packets are right.
    filter_sources(&scene, "0");
    scene
        .lab
        .client
        .run(&format!("nft delete table inet tund-{TUN}"));
    for family in [Family::V4, Family::V6] {
        let all = Reached {
            connect: true,
            syn: true,
            data: true,
        };
        assert_eq!(intrude(&scene, family), all, "{family:?}");
    }
}
