//! Applications' datagrams through the whole client: into mappings, back as packets, and as ICMP.

use super::server::OriginId;
use super::world::{SECOND, World, client_config, registry_config};
use crate::account::{EndedBy, FlowAccount, HowEnded};
use crate::client::{ClientConfig, ClientEvent, State};
use crate::netstack::offload::{self, VNET_HEADER_BYTES};
use crate::netstack::tests::world::{APP_V4, APP_V6, Collector, ORIGIN_V4, ORIGIN_V6};
use crate::netstack::{Bounce, NetstackConfig};
use crate::packet::Reason;
use bytes::Bytes;
use etherparse::{IpFragOffset, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, PacketBuilder};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tund_session::MappingError;
use tund_session::wire::frame::{DeniedBy, Protocol, capability};

const APP_PORT: u16 = 4000;
const IP_NUMBER_UDP: u8 = 17;

fn both() -> [(SocketAddr, SocketAddr); 2] {
    [(APP_V4, ORIGIN_V4), (APP_V6, ORIGIN_V6)].map(|(app, origin)| {
        let app = SocketAddr::new(app, APP_PORT);
        (app, SocketAddr::new(origin, 53))
    })
}

fn v4() -> (SocketAddr, SocketAddr) {
    both()[0]
}

fn dual_stack() -> ClientConfig {
    let mut config = client_config();
    config.netstack.local_addresses = vec![APP_V4, APP_V6];
    config
}

fn world() -> World {
    World::with(dual_stack(), server(capability::DATAGRAM))
}

fn server(capabilities: u64) -> tund_server_core::registry::RegistryConfig {
    let mut config = registry_config(200);
    config.session.capabilities = capabilities;
    config
}

fn packet(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let step = match (from.ip(), to.ip()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 64),
        _ => panic!("two families"),
    };
    let mut bytes = Vec::new();
    step.udp(from.port(), to.port())
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251).to_le_bytes()[0]).collect()
}

/// A packet cut as a kernel cuts it, at this many bytes of IP payload.
fn cut(packet: &[u8], at: usize) -> Vec<Vec<u8>> {
    let head = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let payload = &packet[head..];
    let pieces = payload.chunks(at).enumerate();
    let count = payload.len().div_ceil(at);
    let cut = pieces.map(|(number, piece)| {
        let offset = u16::try_from(number * at / 8).unwrap();
        let offset = IpFragOffset::try_new(offset).unwrap();
        let has_more = number + 1 < count;
        let mut bytes = if head == 20 {
            let (mut header, _) = Ipv4Header::from_slice(packet).unwrap();
            header.dont_fragment = false;
            header.identification = 77;
            header.more_fragments = has_more;
            header.fragment_offset = offset;
            header.set_payload_len(piece.len()).unwrap();
            header.header_checksum = header.calc_header_checksum();
            header.to_bytes().to_vec()
        } else {
            let (mut header, _) = Ipv6Header::from_slice(packet).unwrap();
            let fragment = Ipv6FragmentHeader::new(header.next_header, offset, has_more, 77);
            header.next_header = etherparse::IpNumber::IPV6_FRAGMENTATION_HEADER;
            header.payload_length = u16::try_from(8 + piece.len()).unwrap();
            let mut bytes = header.to_bytes().to_vec();
            bytes.extend_from_slice(&fragment.to_bytes());
            bytes
        };
        bytes.extend_from_slice(piece);
        bytes
    });
    cut.collect()
}

impl World {
    fn put(&mut self, packet: &[u8]) {
        let mut bytes = vec![0; VNET_HEADER_BYTES];
        bytes.extend_from_slice(packet);
        let mut sink = Collector::default();
        self.client.handle_packet(&mut bytes, self.now, &mut sink);
        self.deliver(sink);
    }

    fn throw(&mut self, (from, to): (SocketAddr, SocketAddr), payload: &[u8]) {
        self.put(&packet(from, to, payload));
        self.run();
    }

    fn mapping(&self) -> OriginId {
        self.opened.last().expect("a mapping was asked for").0
    }

    /// What the server has for its socket.
    fn at_server(&mut self, (session, flow): OriginId) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut caught = Vec::new();
        let now = self.now;
        self.registry.with(session, now, |s| {
            while let Some((remote, payload)) = s.datagram(flow, now) {
                caught.push((remote, payload.to_vec()));
                s.datagram_taken(flow);
            }
        });
        caught
    }

    fn answer(&mut self, (session, flow): OriginId, remote: SocketAddr, payload: &[u8]) {
        let (now, payload) = (self.now, Bytes::copy_from_slice(payload));
        self.registry.with(session, now, |s| {
            s.send_datagram(flow, remote, payload, now);
        });
        self.run();
    }

    fn bounce(&mut self, (session, flow): OriginId, remote: SocketAddr, errno: u32, info: u32) {
        let error = MappingError {
            remote,
            errno,
            info,
        };
        let now = self.now;
        self.registry
            .with(session, now, |s| s.send_datagram_error(flow, error));
        self.run();
    }

    /// What applications' kernels got since the last look.
    fn seen(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.datagrams)
    }

    fn accounts(&self) -> Vec<FlowAccount> {
        let events = self.events.iter();
        let accounts = events.filter_map(|(_, event)| {
            let ClientEvent::FlowEnded(account) = event else {
                return None;
            };
            Some(*account)
        });
        accounts.collect()
    }
}

/// The datagram in one packet, or in all fragments of one, with everything about it checked.
fn read(packets: &[Vec<u8>]) -> (SocketAddr, SocketAddr, Vec<u8>) {
    let mut whole = Vec::new();
    let mut ends = None;
    for bytes in packets {
        let header = offload::VnetHeader::parse(bytes.first_chunk().unwrap());
        let packet = &bytes[VNET_HEADER_BYTES..];
        assert!(packet.len() <= 1500, "{} bytes", packet.len());
        let (source, destination, payload) = if packet[0] >> 4 == 4 {
            let (ip, rest) = Ipv4Header::from_slice(packet).unwrap();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(usize::from(ip.total_len), packet.len());
            assert_eq!(ip.more_fragments, bytes != packets.last().unwrap());
            assert_eq!(usize::from(ip.fragment_offset.byte_offset()), whole.len());
            (IpAddr::from(ip.source), IpAddr::from(ip.destination), rest)
        } else {
            let (ip, rest) = Ipv6Header::from_slice(packet).unwrap();
            assert_eq!(usize::from(ip.payload_length), rest.len());
            let rest = if packets.len() > 1 {
                let (piece, rest) = Ipv6FragmentHeader::from_slice(rest).unwrap();
                assert_eq!(piece.more_fragments, bytes != packets.last().unwrap());
                assert_eq!(
                    usize::from(piece.fragment_offset.byte_offset()),
                    whole.len()
                );
                assert_eq!(piece.next_header.0, IP_NUMBER_UDP);
                rest
            } else {
                assert_eq!(ip.next_header.0, IP_NUMBER_UDP);
                rest
            };
            (IpAddr::from(ip.source), IpAddr::from(ip.destination), rest)
        };
        whole.extend_from_slice(payload);
        ends = Some((source, destination));
        if packets.len() == 1 {
            let at = packet.len() - payload.len();
            let pseudo = offload::pseudo_sum(packet, IP_NUMBER_UDP, payload.len());
            assert!(header.needs_csum);
            assert_eq!(
                (usize::from(header.csum_start), header.csum_offset),
                (at, 6)
            );
            assert_eq!(payload[6..8], offload::fold(pseudo).to_be_bytes());
        } else {
            assert_eq!(header, offload::VnetHeader::default());
        }
    }
    let (source, destination) = ends.expect("packets");
    if packets.len() > 1 {
        let first = &packets[0][VNET_HEADER_BYTES..];
        let pseudo = offload::pseudo_sum(first, IP_NUMBER_UDP, whole.len());
        assert_eq!(offload::fold(pseudo + offload::sum(&whole)), 0xffff);
    }
    let port = |at: usize| u16::from_be_bytes([whole[at], whole[at + 1]]);
    assert_eq!(usize::from(port(4)), whole.len());
    (
        SocketAddr::new(source, port(0)),
        SocketAddr::new(destination, port(2)),
        whole[8..].to_vec(),
    )
}

#[test]
fn a_question_and_its_answer_in_both_versions_and_all_sizes() {
    for (app, origin) in both() {
        let mut world = world();
        for (count, len) in [(1, 0), (1, 1), (1, 1452), (2, 1473), (45, 65_507)] {
            let sent = payload(len);
            let whole = packet(app, origin, &sent);
            for piece in cut(&whole, 1480) {
                world.put(if whole.len() <= 1500 { &whole } else { &piece });
                if whole.len() <= 1500 {
                    break;
                }
            }
            world.run();

            let mapping = world.mapping();
            assert_eq!(world.at_server(mapping), [(origin, sent.clone())]);
            world.answer(mapping, origin, &sent);
            let seen = world.seen();
            assert!(
                seen.len() >= count,
                "{} packets for {len} bytes",
                seen.len()
            );
            assert_eq!(read(&seen), (origin, app, sent), "{len} bytes");
        }
        assert_eq!(world.opened.len(), 1, "one mapping for all");
        let open = &world.opened[0].1;
        assert_eq!((open.protocol, open.source), (Protocol::Udp, app));
    }
}

#[test]
fn fragments_come_in_any_order_and_those_of_nonsense_are_counted() {
    let mut world = world();
    let (app, origin) = v4();
    let sent = payload(5000);
    let mut pieces = cut(&packet(app, origin, &sent), 1480);
    pieces.reverse();
    for piece in &pieces {
        world.put(piece);
    }
    world.run();
    let mapping = world.mapping();
    assert_eq!(world.at_server(mapping), [(origin, sent)]);

    // Of a packet of which a part never comes, and of one that is longer than any may be.
    world.put(&pieces[0]);
    world.pass(SECOND * 6);
    let huge = cut(&packet(app, origin, &payload(65_507)), 1480);
    for piece in &huge[1..] {
        world.put(piece);
    }
    let mut first = huge[0].clone();
    first[3] = 0;
    world.put(&first);
    assert!(world.client.netstack().stats().untaken(Reason::Fragment) >= 1);
    assert_eq!(world.at_server(mapping), []);
}

#[test]
fn a_datagram_with_a_wrong_checksum_is_dropped_and_one_without_is_not() {
    let mut world = world();
    let (app, origin) = v4();
    let mut wrong = packet(app, origin, b"wrong");
    wrong[26] ^= 1;
    let mut without = packet(app, origin, b"without");
    without[26..28].fill(0);
    let mut without_v6 = packet(both()[1].0, both()[1].1, b"without");
    without_v6[46..48].fill(0);
    for packet in [&wrong, &without, &without_v6] {
        world.put(packet);
    }
    world.run();

    let mapping = world.mapping();
    assert_eq!(world.at_server(mapping), [(origin, b"without".to_vec())]);
    assert_eq!(world.opened.len(), 1);
    assert_eq!(world.client.netstack().stats().untaken(Reason::Checksum), 2);
}

#[test]
fn one_mapping_speaks_to_many_and_another_port_has_its_own() {
    let mut world = world();
    let (app, origin) = v4();
    let other = SocketAddr::new(ORIGIN_V4, 99);
    world.throw((app, origin), b"one");
    world.throw((app, other), b"two");
    let mapping = world.mapping();
    let both = [(origin, b"one".to_vec()), (other, b"two".to_vec())];
    assert_eq!(world.at_server(mapping), both);

    world.throw((SocketAddr::new(APP_V4, 4001), origin), b"three");

    assert_eq!(world.opened.len(), 2);
    assert_eq!(world.client.mappings().len(), 2);
}

#[test]
fn what_a_datagram_met_is_told_as_icmp_that_quotes_its_own_headers() {
    for (app, origin) in both() {
        let mut world = world();
        let sent = packet(app, origin, b"anybody?");
        world.throw((app, origin), b"anybody?");
        let mapping = world.mapping();
        let head = if app.is_ipv4() { 20 } else { 40 };
        let v4 = app.is_ipv4();
        let cases = [
            (111, 0, if v4 { (3, 3) } else { (1, 4) }),
            (113, 0, if v4 { (3, 1) } else { (1, 3) }),
            (101, 0, if v4 { (3, 0) } else { (1, 0) }),
            (13, 6, if v4 { (3, 13) } else { (1, 1) }),
            (92, 0, if v4 { (3, 2) } else { (4, 1) }),
            (90, 1400, if v4 { (3, 4) } else { (2, 0) }),
            (90, 600, if v4 { (3, 4) } else { (2, 0) }),
        ];
        for (errno, info, icmp) in cases {
            world.bounce(mapping, origin, errno, info);

            let seen = world.seen();
            assert_eq!(seen.len(), 1, "errno {errno}");
            let message = &seen[0][VNET_HEADER_BYTES..];
            assert_eq!((message[head], message[head + 1]), icmp, "errno {errno}");
            assert_eq!(message[head + 8..], sent[..head + 8], "errno {errno}");
            if errno == 90 {
                let mtu = u16::from_be_bytes([message[head + 6], message[head + 7]]);
                assert_eq!(u32::from(mtu), info.max(1280));
            }
        }
        let denied = ClientEvent::Denied {
            destination: origin,
            by: DeniedBy::Default,
        };
        assert!(world.events.iter().any(|(_, event)| *event == denied));
        // About a datagram that was never sent, and of no known kind.
        world.bounce(mapping, SocketAddr::new(origin.ip(), 9), 111, 0);
        world.bounce(mapping, origin, 5, 0);
        assert_eq!(world.seen().len(), 0);
    }
}

#[test]
fn a_hostile_server_shows_an_application_nothing_it_did_not_ask_for() {
    let mut world = world();
    let (app, origin) = v4();
    world.throw((app, origin), b"question");
    let mapping = world.mapping();
    let never = [
        "127.0.0.1:53",
        "224.0.0.1:53",
        "10.111.0.2:53",
        "192.168.0.1:53",
        "203.0.113.9:0",
    ];
    for from in never {
        world.answer(mapping, from.parse().unwrap(), b"forged");
    }
    world.answer(mapping, SocketAddr::new(ORIGIN_V6, 53), b"forged");
    assert_eq!(world.seen().len(), 0);

    // The same address by another port is a friend.
    world.answer(mapping, SocketAddr::new(ORIGIN_V4, 54), b"friend");
    assert_eq!(world.seen().len(), 1);
}

#[test]
fn with_filtering_by_endpoint_strangers_are_shown_but_never_special_addresses() {
    let mut config = dual_stack();
    config.mappings.filtering = crate::mappings::Filtering::Endpoint;
    let mut world = World::with(config, server(capability::DATAGRAM));
    world.throw(v4(), b"question");
    let mapping = world.mapping();
    assert_eq!(world.opened[0].1.protocol, Protocol::UdpAny);

    world.answer(mapping, "198.51.100.77:1".parse().unwrap(), b"stranger");
    assert_eq!(world.seen().len(), 1);
    let lan = [
        "192.168.0.1:53",
        "10.0.0.1:53",
        "100.64.0.1:53",
        "169.254.1.1:53",
    ];
    for from in ["127.0.0.1:53", "224.0.0.1:53", "10.111.0.2:53"]
        .iter()
        .chain(&lan)
    {
        world.answer(mapping, from.parse().unwrap(), b"forged");
    }
    assert_eq!(world.seen().len(), 0);

    // Who speaks to a private network through tund hears its strangers, too.
    world.throw((v4().0, "10.9.9.9:53".parse().unwrap()), b"question");
    for from in lan {
        world.answer(mapping, from.parse().unwrap(), b"stranger");
    }
    assert_eq!(world.seen().len(), lan.len());
}

#[test]
fn a_mapping_lives_for_its_idle_time_and_outages_do_not_count() {
    let mut world = world();
    world.throw(v4(), b"hello");
    let mapping = world.mapping();
    world.at_server(mapping);
    world.pass(SECOND * 200);
    world.fail();
    world.pass(SECOND * 50);
    world.heal();
    world.pass(SECOND * 99);
    assert_eq!(world.client.mappings().len(), 1);

    world.pass(SECOND * 3);

    assert_eq!(world.client.mappings().len(), 0);
    assert_eq!(
        world.registry.session(mapping.0).map(|s| s.flow_count()),
        Some(0)
    );
    let accounts = world.accounts();
    assert_eq!(accounts.len(), 1, "{accounts:?}");
    let account = accounts[0];
    assert_eq!(
        (account.protocol, account.by, account.how),
        (Protocol::Udp, EndedBy::Client, HowEnded::Idle)
    );
    assert_eq!((account.up_bytes, account.outages), (5, 1));
    assert_eq!(world.client.mappings().kept(), 0);
}

#[test]
fn what_is_sent_in_an_outage_arrives_if_it_is_short_and_not_if_it_is_long() {
    let mut world = world();
    world.throw(v4(), b"before");
    let mapping = world.mapping();
    assert_eq!(world.at_server(mapping).len(), 1);
    for (length, arrives) in [(Duration::from_millis(1000), true), (SECOND * 3, false)] {
        world.fail();
        world.throw(v4(), b"meanwhile");
        world.pass(length);
        world.heal();
        world.until("attached", |world| world.client.state() == State::Attached);

        assert_eq!(!world.at_server(mapping).is_empty(), arrives, "{length:?}");
    }
    assert_eq!(world.opened.len(), 1);
    world.answer(mapping, v4().1, b"still here");
    assert_eq!(world.seen().len(), 1);
}

#[test]
fn an_application_that_goes_on_sending_does_not_keep_the_dialer_busy() {
    let mut config = dual_stack();
    config.mappings.grace = SECOND * 3600;
    let mut world = World::with(config, server(capability::DATAGRAM));
    world.throw(v4(), b"hello");
    world.fail();
    world.pass(SECOND * 400);

    // One that was silent has somebody waiting.
    let before = world.dials.len();
    world.throw(v4(), b"hello?");
    world.pass(Duration::from_millis(1));
    assert!(world.dials.len() > before);
    let before = world.dials.len();
    for _ in 0..60 {
        world.throw(v4(), b"hello?");
        world.pass(SECOND);
    }
    let dials = world.dials.len() - before;
    assert!((5..40).contains(&dials), "{dials} attempts in a minute");
}

#[test]
fn where_the_server_carries_no_datagrams_nobody_listens() {
    let mut world = World::with(dual_stack(), server(0));
    for _ in 0..2 {
        world.throw(v4(), b"hello");
        world.pass(SECOND);
        let seen = world.seen();
        assert_eq!(seen.len(), 1);
        let message = &seen[0][VNET_HEADER_BYTES..];
        assert_eq!((message[20], message[21]), (3, 3));
    }
    assert_eq!(world.client.mappings().kept(), 0);
    assert!(world.opened.is_empty());
}

#[test]
fn a_restarted_server_has_new_mappings_for_the_same_applications() {
    let mut world = world();
    world.throw(v4(), b"one");
    world.restart_server();
    world.pass(SECOND * 2);
    let accounts = world.accounts();
    assert_eq!(accounts.len(), 1);
    assert_eq!(accounts[0].how, HowEnded::Restarted);

    world.throw(v4(), b"two");

    assert_eq!(world.opened.len(), 2);
    let mapping = world.mapping();
    assert_eq!(world.at_server(mapping), [(v4().1, b"two".to_vec())]);
}

#[test]
fn a_user_who_disconnects_ends_mappings_and_leaves_nothing() {
    let mut world = world();
    world.throw(v4(), b"one");
    world.client.disconnect(world.now);
    world.run();

    let accounts = world.accounts();
    assert_eq!(accounts.len(), 1);
    assert_eq!(
        (accounts[0].by, accounts[0].how),
        (EndedBy::User, HowEnded::Disconnected)
    );
    assert_eq!(world.client.mappings().kept(), 0);
    assert_eq!(world.client.state(), State::Ready);
}

#[test]
fn own_addresses_foreign_sources_and_port_0_are_refused_as_before() {
    let mut world = world();
    let (app, origin) = v4();
    let foreign: SocketAddr = "192.0.2.1:1".parse().unwrap();
    world.throw((foreign, origin), b"forwarded");
    world.throw((app, SocketAddr::new(APP_V4, 1)), b"own");
    world.throw((app, SocketAddr::new(ORIGIN_V4, 0)), b"nowhere");

    assert!(world.opened.is_empty());
    let stats = world.client.netstack().stats().clone();
    assert_eq!(stats.untaken(Reason::ForeignSource), 1);
    assert_eq!(stats.untaken(Reason::OwnDestination), 1);
    assert_eq!(stats.untaken(Reason::Udp), 1);
    let codes: Vec<_> = world.seen().iter().map(|m| (m[30], m[31])).collect();
    assert_eq!(codes, [(3, 13), (3, 3)]);
}

#[test]
fn without_offload_checksums_are_whole() {
    for (app, origin) in both() {
        let mut config = dual_stack();
        config.netstack = NetstackConfig {
            offload: false,
            ..config.netstack
        };
        let mut netstack = crate::netstack::tests::world::bare(&config.netstack);
        let mut sink = Collector::default();
        for len in [0, 5, 1400, 5000] {
            netstack.send_datagram(origin, app, &payload(len), &mut sink);
        }
        netstack.send_bounce(
            &packet(app, origin, b"x"),
            origin.ip(),
            Bounce::TooBig(1300),
            &mut sink,
        );
        for packet in &sink.0[..3] {
            let head = if app.is_ipv4() { 20 } else { 40 };
            let udp = &packet[head..];
            let pseudo = offload::pseudo_sum(packet, IP_NUMBER_UDP, udp.len());
            assert_eq!(offload::fold(pseudo + offload::sum(udp)), 0xffff);
        }
        assert!(sink.0.len() > 5);
    }
}
