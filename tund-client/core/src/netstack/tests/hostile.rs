//! Packets that no honest kernel sends, and honest ones that are not wanted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{IpNumber, PacketBuilder};
use proptest::prelude::*;

use super::world::{Collector, KINDS, ORIGIN_V4, ORIGIN_V6, V4, World};
use crate::netstack::offload::VNET_HEADER_BYTES;
use crate::netstack::{NetEvent, Netstack};
use crate::packet::{Flags, Reason};

const APP: [u8; 4] = [10, 111, 0, 2];
const ORIGIN: [u8; 4] = [203, 0, 113, 9];

fn syn_from(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(source, destination, 64)
        .tcp(4000, 80, 7, 65_000)
        .syn()
        .write(&mut packet, &[])
        .unwrap();
    packet
}

fn syn_from_v6(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
        .tcp(4000, 80, 7, 65_000)
        .syn()
        .write(&mut packet, &[])
        .unwrap();
    packet
}

/// What became of a packet: the ICMP type and code of the answer if there was one, and the reason
/// that was counted.
fn fate(net: &mut Netstack, world: &mut World, packet: &[u8]) -> (Option<(u8, u8)>, Reason) {
    let before: Vec<_> = Reason::ALL
        .map(|reason| net.stats().untaken(reason))
        .to_vec();
    let mut sink = Collector::default();
    net.handle_packet(&mut world.wrap(packet), world.now, &mut sink);
    assert!(sink.0.len() <= 1);
    let answer = sink.0.first().map(|bytes| {
        let packet = world.inspector.inspect(bytes).remove(0);
        let at = if packet[0] >> 4 == 4 { 20 } else { 40 };
        (packet[at], packet[at + 1])
    });
    let counted: Vec<_> = Reason::ALL
        .into_iter()
        .filter(|reason| net.stats().untaken(*reason) > before[reason.index()])
        .collect();
    assert_eq!(counted.len(), 1, "{counted:?}");
    (answer, counted[0])
}

/// Every packet meets its fate, and nothing else happens.
fn expect(cases: impl IntoIterator<Item = (Vec<u8>, Option<(u8, u8)>, Reason)>) {
    let mut world = World::new(V4);
    let mut net = World::new(V4).net;
    for (packet, answer, reason) in cases {
        let met = fate(&mut net, &mut world, &packet);
        assert_eq!(met, (answer, reason), "{packet:02x?}");
        assert_eq!(net.poll_event(), None);
    }
}

const APP_V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const FAR_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

#[test]
fn other_protocols_are_answered_as_a_host_would_or_counted() {
    let mut packets: [Vec<u8>; 3] = Default::default();
    let [reply, other, other_v6] = &mut packets;
    let v4 = || PacketBuilder::ipv4(APP, ORIGIN, 64);
    let v6 = || PacketBuilder::ipv6(APP_V6, FAR_V6, 64);
    v4().icmpv4_echo_reply(1, 1).write(reply, &[]).unwrap();
    v4().write(other, IpNumber(132), b"sctp").unwrap();
    v6().write(other_v6, IpNumber(132), b"sctp").unwrap();
    let [reply, other, other_v6] = packets;

    expect([
        (reply, None, Reason::Icmp),
        (other, Some((3, 2)), Reason::UnknownProtocol),
        (other_v6, Some((4, 1)), Reason::UnknownProtocol),
        (vec![], None, Reason::Malformed),
        (vec![0x45; 19], None, Reason::Malformed),
    ]);
}

#[test]
fn addresses_that_no_packet_may_bear_are_answered_or_counted() {
    let v6 = |to: &str| syn_from_v6(APP_V6.into(), to.parse().unwrap());
    let prohibited = Some((3, 13));
    let prohibited_v6 = Some((1, 1));

    expect([
        (syn_from(APP, [224, 0, 0, 1]), None, Reason::Multicast),
        (syn_from(APP, [255; 4]), None, Reason::Multicast),
        (
            syn_from(APP, [127, 0, 0, 1]),
            prohibited,
            Reason::SpecialAddress,
        ),
        (
            syn_from(APP, [0, 0, 0, 0]),
            prohibited,
            Reason::SpecialAddress,
        ),
        (
            syn_from(APP, [240, 0, 0, 1]),
            prohibited,
            Reason::SpecialAddress,
        ),
        (syn_from(APP, APP), prohibited, Reason::OwnDestination),
        (
            syn_from([127, 0, 0, 1], ORIGIN),
            None,
            Reason::SpecialAddress,
        ),
        (
            syn_from([192, 0, 2, 1], ORIGIN),
            None,
            Reason::ForeignSource,
        ),
        (v6("ff02::1"), None, Reason::Multicast),
        (v6("::"), prohibited_v6, Reason::SpecialAddress),
        (v6("::1"), prohibited_v6, Reason::SpecialAddress),
        (
            v6("::ffff:127.0.0.1"),
            prohibited_v6,
            Reason::SpecialAddress,
        ),
        (v6("fd00::2"), prohibited_v6, Reason::OwnDestination),
        (
            syn_from_v6(FAR_V6.into(), FAR_V6.into()),
            None,
            Reason::ForeignSource,
        ),
    ]);
}

#[test]
fn extension_headers_and_damaged_packets_are_dropped() {
    let mut world = World::new(V4);
    let mut net = World::new(V4).net;
    let mut extended = syn_from_v6("fd00::2".parse().unwrap(), "2001:db8::9".parse().unwrap());
    let tcp = extended.split_off(40);
    extended[6] = 60;
    extended[5] += 8;
    extended.extend_from_slice(&[6, 0, 1, 4, 0, 0, 0, 0]);
    extended.extend(tcp);
    let mut damaged = syn_from(APP, ORIGIN);
    damaged[8] ^= 1;

    assert_eq!(
        fate(&mut net, &mut world, &extended),
        (None, Reason::ExtensionHeader)
    );
    assert_eq!(
        fate(&mut net, &mut world, &damaged),
        (None, Reason::Checksum)
    );
}

#[test]
fn forwarded_packets_are_taken_where_they_are_wanted() {
    let mut config = super::world::config(V4);
    config.accept_forwarded = true;
    let mut world = World::with(V4, config, 4096, 4096);
    let mut sink = Collector::default();

    let mut packet = world.wrap(&syn_from([192, 168, 7, 7], ORIGIN));
    world.net.handle_packet(&mut packet, world.now, &mut sink);

    let source = SocketAddr::from(([192, 168, 7, 7], 4000));
    assert!(matches!(world.net.poll_event(), Some(NetEvent::Syn { source: s, .. }) if s == source));
}

#[test]
fn a_link_of_our_own_that_is_steered_into_the_device_is_dropped() {
    let mut world = World::new(V4);
    let from = SocketAddr::from((APP, 4000));
    let to = SocketAddr::new(ORIGIN_V4, 80);
    world.net.set_links(&[(from, to)]);
    let mut sink = Collector::default();

    let mut packet = world.wrap(&syn_from(APP, ORIGIN));
    world.net.handle_packet(&mut packet, world.now, &mut sink);

    assert_eq!(world.net.poll_event(), None);
    assert_eq!(sink.0.len(), 0);
    assert_eq!(world.net.stats().untaken(Reason::Loop), 1);
}

#[test]
fn addresses_of_the_host_can_change() {
    let mut world = World::new(V4);
    let mut sink = Collector::default();
    world
        .net
        .set_local_addresses(vec![IpAddr::V4(Ipv4Addr::new(10, 9, 9, 9))]);

    let mut old = world.wrap(&syn_from(APP, ORIGIN));
    let mut new = world.wrap(&syn_from([10, 9, 9, 9], ORIGIN));
    world.net.handle_packet(&mut old, world.now, &mut sink);
    assert_eq!(world.net.poll_event(), None);
    world.net.handle_packet(&mut new, world.now, &mut sink);
    assert!(matches!(world.net.poll_event(), Some(NetEvent::Syn { .. })));
}

/// Any header fields, in a packet whose lengths and checksums are right, so that it gets far.
#[derive(Clone, Debug)]
struct Forged {
    sequence: u32,
    acknowledgment: u32,
    flags: u8,
    window: u16,
    payload: usize,
    options: Vec<u8>,
}

fn forged() -> impl Strategy<Value = Forged> {
    // Numbers near those in use matter most: offsets from the true ones, and anything at all.
    let number = || prop_oneof![-70_000i32..70_000, -10i32..10, any::<i32>()];
    let options = proptest::collection::vec(any::<u8>(), 0..10);
    (
        number(),
        number(),
        any::<u8>(),
        any::<u16>(),
        0..3000usize,
        options,
    )
        .prop_map(
            |(sequence, acknowledgment, flags, window, payload, mut options)| {
                options.resize(options.len().next_multiple_of(4), 0);
                Forged {
                    sequence: sequence.cast_unsigned(),
                    acknowledgment: acknowledgment.cast_unsigned(),
                    flags,
                    window,
                    payload,
                    options,
                }
            },
        )
}

impl World {
    /// A packet from the application's side to the connection that was opened last.
    pub(super) fn intruder(&self, sequence: u32, payload: &[u8], flags: Flags) -> Vec<u8> {
        let forged = Forged {
            sequence,
            acknowledgment: self.acknowledged(),
            flags: 0x10 | u8::from(flags.fin) | if flags.rst { 4 } else { 0 },
            window: 1000,
            payload: 0,
            options: Vec::new(),
        };
        self.forge(&forged, payload)
    }

    /// A segment from the application's side, as its kernel would send it.
    pub(super) fn segment(
        &self,
        sequence: u32,
        acknowledgment: u32,
        fin: bool,
        payload: &[u8],
    ) -> Vec<u8> {
        let forged = Forged {
            sequence,
            acknowledgment,
            flags: 0x10 | u8::from(fin),
            window: 1000,
            payload: 0,
            options: Vec::new(),
        };
        self.forge(&forged, payload)
    }

    /// The number of the first byte from the application.
    pub(super) fn first(&self) -> u32 {
        self.inspector.first[&self.port()]
    }

    /// What the application has acknowledged: all that it was sent.
    fn acknowledged(&self) -> u32 {
        let head = if self.kind.offload {
            VNET_HEADER_BYTES
        } else {
            0
        };
        let at = head + if self.kind.is_v6 { 40 } else { 20 };
        let last = self
            .inspector
            .seen
            .iter()
            .rev()
            .find(|bytes| bytes[at + 13] & 4 == 0)
            .unwrap();
        let sequence = u32::from_be_bytes(last[at + 4..at + 8].try_into().unwrap());
        let headers = at + usize::from(last[at + 12] >> 4) * 4;
        let len = u32::try_from(last.len() - headers).unwrap();
        sequence
            .wrapping_add(len)
            .wrapping_add(u32::from(last[at + 13] & 2 != 0))
    }

    fn forge(&self, forged: &Forged, payload: &[u8]) -> Vec<u8> {
        let port = self.port();
        let mut header = etherparse::TcpHeader::new(port, 80, forged.sequence, forged.window);
        header.acknowledgment_number = forged.acknowledgment;
        header.options = etherparse::TcpOptions::try_from_slice(&forged.options).unwrap();
        let step = match (self.app(port), self.kind.is_v6) {
            (SocketAddr::V6(app), true) => {
                let IpAddr::V6(origin) = ORIGIN_V6 else {
                    panic!()
                };
                PacketBuilder::ipv6(app.ip().octets(), origin.octets(), 64)
            }
            _ => PacketBuilder::ipv4(APP, ORIGIN, 64),
        };
        let mut packet = Vec::new();
        step.tcp_header(header).write(&mut packet, payload).unwrap();
        let at = if self.kind.is_v6 { 40 } else { 20 };
        packet[at + 13] = forged.flags;
        packet[at + 16..at + 18].fill(0);
        let checksum = !super::kernel::tcp_sum(&packet, at);
        packet[at + 16..at + 18].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    /// The netstack takes a packet, and what it says to that is checked.
    pub(super) fn handle(&mut self, packet: &[u8]) {
        let mut sink = Collector::default();
        let mut bytes = self.wrap(packet);
        self.net.handle_packet(&mut bytes, self.now, &mut sink);
        self.net.flush(self.now, &mut sink);
        while let Some(event) = self.net.poll_event() {
            self.events.push(event);
        }
        for bytes in sink.0 {
            self.inspector.inspect(&bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 1..20),
        version in prop_oneof![Just(0x45u8), Just(0x60), Just(0x4f), any::<u8>()],
        offload in any::<bool>(),
    ) {
        let mut world = World::with(
            super::world::Kind { offload, ..V4 }, super::world::config(V4), 4096, 4096);
        for mut bytes in packets {
            if let Some(first) = bytes.get_mut(if offload { VNET_HEADER_BYTES } else { 0 }) {
                *first = version;
            }
            let mut sink = Collector::default();
            world.net.handle_packet(&mut bytes, world.now, &mut sink);
            world.net.flush(world.now, &mut sink);
        }
    }

    #[test]
    fn forged_segments_never_panic_nor_pass_the_intake(
        segments in proptest::collection::vec((forged(), 0..4u8, any::<bool>()), 1..40),
        kind in 0..4usize,
        intake in prop_oneof![Just(0u64), 0..5000u64, Just(u64::MAX)],
    ) {
        let kind = KINDS[kind];
        let mut world = World::with(kind, super::world::config(kind), 65_536, 65_536);
        let (handle, connection) = world.open_with(intake);
        world.app_write(handle, &[1; 100]);
        world.net.send(connection, &[2; 1000]);
        world.run();
        let base = world.first();
        let mut taken = 0;
        for (forged, action, near) in segments {
            let shifted = Forged {
                sequence: forged.sequence.wrapping_add(if near { base } else { 0 }),
                acknowledgment: forged.acknowledgment
                    .wrapping_add(if near { world.acknowledged() } else { 0 }),
                flags: if near && action > 0 { forged.flags & 0x1b | 0x10 } else { forged.flags },
                ..forged
            };
            let packet = world.forge(&shifted, &vec![3; shifted.payload]);
            world.handle(&packet);
            match action {
                0 => { world.net.send(connection, &[4; 700]); }
                1 => { taken += world.net.recv(connection, 500, |_| {}); }
                2 => world.net.finish(connection),
                _ => world.pass(std::time::Duration::from_millis(700)),
            }
            let held = taken + world.net.readable(connection);
            prop_assert!(u64::try_from(held).unwrap() <= intake, "{held} of {intake}");
        }
        world.net.reset(connection);
        world.run();
        world.pass(std::time::Duration::from_secs(60));
        prop_assert_eq!(world.net.connections(), 0);
    }
}
