//! Packets that no honest application sends, injected at the TUN device.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use etherparse::{Icmpv4Type, Icmpv6Type, SlicedPacket, TransportSlice, icmpv4, icmpv6};
use tund_tests::lab::{Family, ORIGIN_PORT, Origin, Settings, TUN, wait};

use crate::neighbours::{OWN4, OWN6};
use crate::sniffer::{Sniffer, inject};
use crate::support::{LATER, SOON, Scene};

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

/// Destinations that the client itself refuses: no packet on a wire may have them.
const IMPOSSIBLE: [&str; 7] = [
    "0.0.0.0",
    "127.0.0.1",
    "127.1.2.3",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.77.3.2",
];

/// Destinations that the server refuses.
const FORBIDDEN: [&str; 11] = [
    "10.77.3.2",
    "10.77.5.1",
    "169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a4d:302",
    "2002:7f00:1::",
    "2002:a4d:302::1",
    "fd77:0:0:3::2",
    "fd77:0:0:5::1",
    "fe80::1",
];

/// Destinations of many hosts, about which no host may say anything (RFC 1122 §3.2.2).
const MANY: [&str; 3] = ["255.255.255.255", "224.0.0.1", "ff02::1"];

/// Which SYN's destination a packet says to be administratively prohibited.
fn prohibited(packet: &[u8]) -> Option<IpAddr> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let quoted = match sliced.transport? {
        TransportSlice::Icmpv4(icmp) => {
            let why = icmpv4::DestUnreachableHeader::FilterProhibited;
            (icmp.icmp_type() == Icmpv4Type::DestinationUnreachable(why)).then(|| icmp.payload())?
        }
        TransportSlice::Icmpv6(icmp) => {
            let why = icmpv6::DestUnreachableCode::Prohibited;
            (icmp.icmp_type() == Icmpv6Type::DestinationUnreachable(why)).then(|| icmp.payload())?
        }
        TransportSlice::Tcp(_) | TransportSlice::Udp(_) | TransportSlice::Igmp(_) => return None,
    };
    // The quotation may be cut short behind its header.
    match quoted.first()? >> 4 {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(quoted.get(16..20)?).ok()?)),
        _ => Some(IpAddr::from(
            <[u8; 16]>::try_from(quoted.get(24..40)?).ok()?,
        )),
    }
}

#[test]
fn injected_packets_reach_nothing_forbidden_and_are_answered_as_prohibited() {
    let scene = Scene::new("injected packets", &Settings::new());
    drop(scene.echo());
    let local = Origin::start(&scene.lab.server);
    let address = |host: &&str| -> IpAddr { host.parse().unwrap() };
    let told: BTreeSet<_> = IMPOSSIBLE.iter().chain(&FORBIDDEN).map(address).collect();
    let hosts = told.iter().copied().chain(MANY.iter().map(address));
    let packets: Vec<_> = (40_000..)
        .zip(hosts)
        .map(|(port, host)| syn(SocketAddr::new(host, ORIGIN_PORT), port))
        .collect();
    // The same way of sending, to an origin that may be reached: the packets are right.
    let accepted = scene.origin.accepted();
    let honest = [Family::V4, Family::V6]
        .map(|family| syn(scene.lab.origin_address(family, ORIGIN_PORT), 50_000));
    inject(&scene.lab.client, TUN, &honest);
    wait::until_true("the honest packets are right", SOON, || {
        scene.origin.accepted() == accepted + 2
    });
    let mut sniffer = Sniffer::start(&scene.lab.client, TUN);

    inject(&scene.lab.client, TUN, &packets);

    let mut answered = BTreeSet::new();
    wait::until_true("each is answered as prohibited", LATER, || {
        let packets = sniffer.packets();
        answered.extend(packets.iter().filter_map(|packet| prohibited(packet)));
        answered.len() >= told.len()
    });
    assert_eq!(answered, told);
    drop(scene.echo());
    wait::until_true("nothing of it is left", SOON, || {
        scene.tund.client.status().flows.tcp == 0
    });
    let late = sniffer.packets();
    assert_eq!(
        late.iter().filter_map(|packet| prohibited(packet)).count(),
        0,
        "an answer about many hosts, or a second one"
    );
    assert_eq!(local.accepted(), 0);
    let log = scene.tund.server.process.log();
    let named = log.lines().filter(|line| line.contains("[origin] allow"));
    assert_eq!(named.count(), FORBIDDEN.len(), "{log}");
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

    inject(&scene.lab.client, TUN, &packets);

    echo.round_trip().unwrap();
    drop(scene.echo());
}
