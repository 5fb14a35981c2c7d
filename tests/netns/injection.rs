//! Packets that no honest application sends: injected at the TUN device, and spoofed by a
//! neighbour on the access link.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike as _, sendmsg, socket,
};
use tund_tests::lab::{Family, ORIGIN_PORT, Origin, Settings, TUN, wait};

use crate::support::{SOON, Scene};

const OWN4: Ipv4Addr = Ipv4Addr::new(10, 111, 0, 2);
const OWN6: Ipv6Addr = Ipv6Addr::new(0xfd11, 0, 0, 0, 0, 0, 0, 2);

/// Internet checksum over some pieces of even length.
fn checksum(pieces: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0_u32;
    for pair in pieces.iter().flat_map(|piece| piece.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).expect("it was folded")).to_be_bytes()
}

/// A SYN to `target`, with the TUN's own address as its source.
fn syn(target: SocketAddr, source_port: u16) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(source_port.to_be_bytes());
    segment.extend(target.port().to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let length = u8::try_from(segment.len()).expect("20");
    let mut packet = Vec::new();
    let sum = match target.ip() {
        IpAddr::V4(to) => {
            let ends = [OWN4.octets(), to.octets()].concat();
            let mut header = vec![0x45, 0, 0, 20 + length, 0, 1, 0x40, 0, 64, 6, 0, 0];
            header.extend(&ends);
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum);
            packet.extend(header);
            checksum(&[&ends, &[0, 6, 0, length], &segment])
        }
        IpAddr::V6(to) => {
            let ends = [OWN6.octets(), to.octets()].concat();
            packet.extend([0x60, 0, 0, 0, 0, length, 6, 64]);
            packet.extend(&ends);
            checksum(&[&ends, &[0, 0, 0, length, 0, 0, 0, 6], &segment])
        }
    };
    segment[16..18].copy_from_slice(&sum);
    packet.extend(segment);
    packet
}

/// Puts packets into the TUN device as if the kernel had routed them there.
fn inject(scene: &Scene, packets: &[Vec<u8>]) {
    let sent = scene.lab.client.enter(|| -> io::Result<()> {
        let device = link_address(if_nametoindex(TUN)?);
        let raw = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        for packet in packets {
            let pieces = [IoSlice::new(packet)];
            sendmsg(
                raw.as_raw_fd(),
                &pieces,
                &[],
                MsgFlags::empty(),
                Some(&device),
            )?;
        }
        Ok(())
    });
    sent.unwrap();
}

/// The address of a device for packet sockets; nix can read one, but not make one.
fn link_address(index: u32) -> LinkAddr {
    let raw = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).expect("17"),
        sll_protocol: 0,
        sll_ifindex: i32::try_from(index).expect("devices are counted from 1"),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = u32::try_from(size_of_val(&raw)).expect("20");
    #[expect(
        unsafe_code,
        reason = "a socket address of a kind that has no safe constructor"
    )]
    // SAFETY: `raw` is a whole sockaddr_ll, of that length and family.
    let address = unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(length)) };
    address.expect("its family and length are right")
}

#[test]
fn no_spelling_of_the_servers_own_addresses_is_reached_by_injected_packets() {
    let scene = Scene::new("injected packets", &Settings::new());
    drop(scene.echo());
    let local = Origin::start(&scene.lab.server);
    let hosts = [
        "0.0.0.0",
        "127.0.0.1",
        "127.1.2.3",
        "10.77.3.2",
        "10.77.5.1",
        "169.254.169.254",
        "255.255.255.255",
        "224.0.0.1",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.77.3.2",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a4d:302",
        "2002:7f00:1::",
        "2002:a4d:302::1",
        "fd77:0:0:3::2",
        "fd77:0:0:5::1",
        "fe80::1",
        "ff02::1",
    ];
    let addresses = hosts.map(|host| SocketAddr::new(host.parse().unwrap(), ORIGIN_PORT));
    let packets: Vec<_> = (40_000..)
        .zip(addresses)
        .map(|(port, to)| syn(to, port))
        .collect();
    // The same way of sending, to an origin that may be reached: the packets are right.
    let accepted = scene.origin.accepted();
    let honest = [Family::V4, Family::V6]
        .map(|family| syn(scene.lab.origin_address(family, ORIGIN_PORT), 50_000));
    inject(&scene, &honest);
    wait::until_true("the honest packets are right", SOON, || {
        scene.origin.accepted() == accepted + 2
    });

    inject(&scene, &packets);

    wait::throughout("nothing is reached", Duration::from_secs(2), || {
        local.accepted() == 0
    });
    drop(scene.echo());
    wait::until_true("nothing of it is left", SOON, || {
        scene.tund.client.status().flows.tcp == 0
    });
    wait::until_true("the log says that no setting opens them", SOON, || {
        let log = scene.tund.client.process.log();
        log.contains("loopback") && log.contains("no setting opens them")
    });
}

#[test]
fn random_packets_at_the_device_do_no_harm() {
    let scene = Scene::new("random packets", &Settings::new());
    let mut echo = scene.echo();
    let mut packets = Vec::new();
    for number in 0..2000_u32 {
        let mut packet = syn(scene.lab.origin_address(Family::V4, 9), 40_000);
        let length = packet.len();
        let place = usize::try_from(number.wrapping_mul(2_654_435_761) >> 7).unwrap() % length;
        packet[place] ^= number.to_le_bytes()[0] | 1;
        packet.truncate(length - usize::try_from(number % 3).unwrap() * 9);
        packets.push(packet);
    }

    inject(&scene, &packets);

    echo.round_trip().unwrap();
    drop(scene.echo());
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
    let scene = Scene::new("a neighbour", &Settings::new());
    drop(scene.echo());
    let lab = &scene.lab;
    lab.router.run("ip route add 10.111.0.2 via 10.77.1.2");
    lab.router.run("ip route add fd11::2 via fd77:0:0:1::2");
    let application = |own: IpAddr| {
        let socket = lab.client.enter(|| UdpSocket::bind((own, 0))).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        socket
    };
    let neighbour = lab.router.enter(|| UdpSocket::bind("[::]:0")).unwrap();
    for filter in ["0", "1", "2"] {
        for which in ["all", "wifi", TUN] {
            lab.client
                .sysctl(&format!("ipv4.conf.{which}.rp_filter"), filter);
        }
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
