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
use tund_session::wire::frame::{DeniedBy, OpenError, Protocol, capability};
use tund_session::{MappingError, Outbox};

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

    let dropped = |world: &mut World| world.client.netstack().stats().untaken(Reason::Fragment);
    assert_eq!(dropped(&mut world), 0);
    // Of a packet of which the rest never comes.
    world.put(&pieces[0]);
    world.pass(SECOND * 6);
    world.put(&pieces[0]);
    assert_eq!(dropped(&mut world), 1);
    // Longer than any packet may be: the last piece lies beyond the end.
    let (mut last, _) = Ipv4Header::from_slice(&pieces[0]).unwrap();
    last.identification = 78;
    last.fragment_offset = IpFragOffset::try_new(8191).unwrap();
    last.header_checksum = last.calc_header_checksum();
    let mut beyond = last.to_bytes().to_vec();
    beyond.extend_from_slice(&pieces[0][20..]);
    world.put(&beyond);
    assert_eq!(dropped(&mut world), 2);
    // Of too many packets at once the oldest goes.
    for id in 0..16 {
        let (mut header, _) = Ipv4Header::from_slice(&pieces[0]).unwrap();
        header.identification = 100 + id;
        header.header_checksum = header.calc_header_checksum();
        let mut piece = header.to_bytes().to_vec();
        piece.extend_from_slice(&pieces[0][20..]);
        world.put(&piece);
    }
    assert_eq!(dropped(&mut world), 3);
    assert_eq!(world.at_server(mapping), []);
}

#[test]
fn a_packet_in_one_fragment_is_whole() {
    let mut world = world();
    let (app, origin) = both()[1];
    let pieces = cut(&packet(app, origin, b"whole"), 1480);
    assert_eq!(pieces.len(), 1);
    world.put(&pieces[0]);
    world.run();

    let mapping = world.mapping();
    assert_eq!(world.at_server(mapping), [(origin, b"whole".to_vec())]);
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

    // The outage counts from when the server was heard last.
    world.pass(SECOND * 30);

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

#[test]
fn a_sleep_is_no_idle_time() {
    let mut config = dual_stack();
    config.mappings.grace = SECOND * 3600;
    let mut world = World::with(config, server(capability::DATAGRAM));
    world.throw(v4(), b"hello");
    let mapping = world.mapping();
    world.at_server(mapping);
    world.pass(SECOND * 100);

    // Nothing happens here for ten minutes, and then everything is due at once.
    let before = world.now;
    world.now = world.now + SECOND * 600;
    let mut sink = Collector::default();
    world.client.handle_woken(world.now);
    world.client.handle_timeout(world.now, &mut sink);
    assert_eq!(world.client.mappings().len(), 1);
    world.now = before + SECOND * 600;
    world.run();
    world.pass(SECOND * 150);
    assert_eq!(
        world.client.mappings().len(),
        1,
        "100 s and 150 s are less than 300 s"
    );
    world.pass(SECOND * 120);
    assert_eq!(world.client.mappings().len(), 0);
}

#[test]
fn where_there_are_few_flows_mappings_leave_half_of_them_and_make_room() {
    // Both ends allow 64 flows.
    let mut world = world();
    let (app, origin) = v4();
    let from = |port: u16| SocketAddr::new(app.ip(), 5000 + port);
    for port in 0..32 {
        world.throw((from(port), origin), b"hello");
    }
    assert_eq!(world.client.mappings().len(), 32);
    world.throw((from(32), origin), b"no room");
    assert_eq!(world.client.mappings().len(), 32);
    assert_eq!(
        world.client.netstack().stats().untaken(Reason::TableFull),
        1
    );

    world.pass(SECOND * 29);
    world.throw((from(0), origin), b"still here");
    world.pass(SECOND);
    world.throw((from(33), origin), b"room");

    assert_eq!(world.client.mappings().len(), 32);
    let has = |world: &World, port| world.client.mappings().find(from(port)).is_some();
    assert!(has(&world, 0) && has(&world, 33) && !has(&world, 1));
    // Connections find the other half, and one more makes room of the same kind.
    for _ in 0..32 {
        world.connect(80);
    }
    assert_eq!(world.client.flows().len(), 32);
    world.connect(80);
    world.pass(SECOND * 3);
    assert_eq!(world.client.flows().len(), 33);
    assert_eq!(world.client.mappings().len(), 31);
}

#[test]
fn mappings_that_the_server_never_heard_of_are_not_asked_for_in_vain() {
    let mut config = dual_stack();
    config.mappings.grace = SECOND * 3600;
    let mut world = World::with(config, server(capability::DATAGRAM));
    let (app, origin) = v4();
    world.throw((app, origin), b"before");
    world.fail();
    for port in 0..100 {
        let from = SocketAddr::new(app.ip(), 5000 + port);
        world.throw((from, origin), b"question");
        world.pass(SECOND);
    }
    assert!(
        world.client.mappings().len() <= 8,
        "{}",
        world.client.mappings().len()
    );
    let asked = world.opened.len();

    world.heal();
    world.until("attached", |world| world.client.state() == State::Attached);
    world.run();

    assert!(world.opened.len() - asked <= 8);
    assert!(world.client.mappings().find(app).is_some());
}

#[test]
fn a_burst_that_comes_in_one_turn_of_a_link_is_shown_whole() {
    let mut world = world();
    let (app, origin) = v4();
    world.throw((app, origin), b"question");
    let (session, flow) = world.mapping();
    let link = world.client.links().next().unwrap();
    let now = world.now;
    let mut shown = 0;
    let mut records: Vec<Bytes> = Vec::new();
    for burst in 0..10 {
        world.registry.with(session, now, |s| {
            for number in 0..100_u64 {
                let payload = (burst * 100 + number).to_be_bytes().to_vec();
                s.send_datagram(flow, origin, payload.into(), now);
            }
        });
        let mut out = Outbox::new();
        while world.registry.poll_transmit(link, 16_000, &mut out, now) {
            records.push(out.to_vec().into());
            out.clear();
        }
    }

    // As the driver does it.
    let mut sink = Collector::default();
    for record in records {
        world.client.handle_bytes(link, record, now);
        if world.client.has_datagrams_waiting() {
            world.client.flush(now, &mut sink);
        }
    }
    world.client.flush(now, &mut sink);
    for bytes in &sink.0 {
        let (_, _, payload) = read(std::slice::from_ref(bytes));
        assert_eq!(payload, u64::to_be_bytes(shown).to_vec());
        shown += 1;
    }
    assert_eq!(shown, 1000);
}

#[test]
fn a_server_without_that_version_of_ip_has_no_route_and_one_without_room_is_asked_again() {
    let mut world = world();
    let (app, origin) = both()[1];
    world.answers.insert(53, OpenError::Other(97));
    world.throw((app, origin), b"six");
    let seen = world.seen();
    assert_eq!(seen.len(), 1);
    let message = &seen[0][VNET_HEADER_BYTES..];
    assert_eq!((message[40], message[41]), (1, 0));
    assert_eq!(world.accounts().len(), 1);

    world.answers.insert(53, OpenError::Exhausted);
    world.throw((app, origin), b"again");
    assert_eq!(world.seen().len(), 0);
    world.answers.clear();
    world.throw((app, origin), b"and again");
    let mapping = world.mapping();
    assert_eq!(world.at_server(mapping), [(origin, b"and again".to_vec())]);
}
