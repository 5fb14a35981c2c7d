//! Datagrams there and back: every size, in fragments, in bursts, with whatever checksums.

use super::super::world::{SECOND, World};
use super::{IP_NUMBER_UDP, both, cut, dual_stack, packet, payload, read, v4, world};
use crate::netstack::offload;
use crate::netstack::tests::world::{APP_V4, Collector, ORIGIN_V4};
use crate::netstack::{Bounce, NetstackConfig};
use crate::packet::{DatagramKind, Reason};
use bytes::Bytes;
use etherparse::{IpFragOffset, Ipv4Header};
use std::net::SocketAddr;
use tund_session::Outbox;
use tund_session::wire::frame::Protocol;

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
fn pieces_of_ipv6_that_overlap_spoil_their_packet() {
    let mut world = world();
    let (app, origin) = both()[1];
    let packet = packet(app, origin, &payload(4000));
    let pieces = cut(&packet, 1480);
    let finer = cut(&packet, 800);
    for piece in [&pieces[0], &finer[1], &pieces[1], &pieces[2]] {
        world.put(piece);
    }
    world.run();
    assert!(world.opened.is_empty());
    let dropped = world.client.netstack().stats().untaken(Reason::Fragment);
    assert_eq!(dropped, 1);
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
            netstack.send_datagram(DatagramKind::Udp, origin, app, &payload(len), &mut sink);
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
