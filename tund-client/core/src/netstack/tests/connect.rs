//! Asking for a connection: accepted, refused in each way, forgotten in time.

use std::time::Duration;

use smoltcp::socket::tcp;

use super::world::{Collector, KINDS, V4, World, config};
use crate::netstack::offload::VNET_HEADER_BYTES;
use crate::netstack::{AcceptError, NetEvent, RECEIVE_RING_BYTES, Refusal, SEND_RING_BYTES};
use crate::packet::{Reason, Unreachable};

const NANO: Duration = Duration::from_nanos(1);

#[test]
fn an_accepted_connection_is_open_on_both_sides() {
    for kind in KINDS {
        let mut world = World::new(kind);

        let (handle, connection) = world.open();

        assert_eq!(
            world.kernel.socket(handle).state(),
            tcp::State::Established,
            "{kind:?}"
        );
        assert_eq!(world.events_of(connection), []);
        assert_eq!(world.net.accept(connection), Err(AcceptError::Gone));
        assert_eq!(world.net.stats().accepted, 1);
    }
}

#[test]
fn the_syn_tells_the_ends_and_nothing_is_answered_before_the_owner_speaks() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let (from, to) = (world.app(40_000), world.origin());
        world.kernel.connect(from, to, 65_536);

        world.run();

        let events = std::mem::take(&mut world.events);
        let [
            NetEvent::Syn {
                source,
                destination,
                ..
            },
        ] = events[..]
        else {
            panic!("{events:?}");
        };
        assert_eq!((source, destination), (from, to));
        assert_eq!(world.inspector.seen.len(), 0);
    }
}

#[test]
fn a_syn_ack_states_the_true_segment_size() {
    for kind in KINDS {
        let mut world = World::new(kind);

        world.open();

        let head = if kind.offload { VNET_HEADER_BYTES } else { 0 };
        let at = head + if kind.is_v6 { 40 } else { 20 };
        let option = &world.inspector.seen[0][at + 20..at + 24];
        let size: u16 = if kind.is_v6 { 1440 } else { 1460 };
        assert_eq!(option, [&[2, 4], &size.to_be_bytes()[..]].concat());
    }
}

#[test]
fn a_refusal_by_reset_ends_the_connect() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let (handle, connection) = world.ask();

        world.net.refuse(connection, Refusal::Reset);
        world.run();

        assert_eq!(
            world.kernel.socket(handle).state(),
            tcp::State::Closed,
            "{kind:?}"
        );
        assert_eq!(world.net.connections(), 0);
        assert_eq!(world.events_of(connection), []);
    }
}

#[test]
fn a_refusal_by_icmp_quotes_the_syn() {
    let cases = [
        (Unreachable::Host, (3, 1), (1, 3)),
        (Unreachable::Network, (3, 0), (1, 0)),
        (Unreachable::Port, (3, 3), (1, 4)),
        (Unreachable::Prohibited, (3, 13), (1, 1)),
    ];
    for kind in KINDS {
        for (unreachable, v4, v6) in cases {
            let mut world = World::new(kind);
            let (_, connection) = world.ask();

            world
                .net
                .refuse(connection, Refusal::Unreachable(unreachable));
            world.run();

            let bytes = &world.inspector.seen[0];
            let packet = if kind.offload {
                &bytes[VNET_HEADER_BYTES..]
            } else {
                &bytes[..]
            };
            let (at, ports_at) = if kind.is_v6 { (40, 40) } else { (20, 20) };
            let expected = if kind.is_v6 { v6 } else { v4 };
            assert_eq!(
                (packet[at], packet[at + 1]),
                expected,
                "{kind:?} {unreachable:?}"
            );
            // Source and destination of the answer, then of the quoted packet, are mirrored.
            let quoted = &packet[at + 8..];
            let address = if kind.is_v6 { 16 } else { 4 };
            let ends = at - 2 * address;
            assert_eq!(
                packet[ends..ends + address],
                quoted[ends + address..ends + 2 * address]
            );
            assert_eq!(packet[ends + address..at], quoted[ends..ends + address]);
            let port = u16::from_be_bytes([quoted[ports_at], quoted[ports_at + 1]]);
            assert_eq!(port, world.port());
            assert_eq!(world.net.stats().icmp_out, 1);
        }
    }
}

#[test]
fn silence_lasts_until_the_application_gives_up() {
    let mut world = World::new(V4);
    let (handle, connection) = world.ask();

    world.net.refuse(connection, Refusal::Silence);
    // The kernel asks again after 1, 3, 7, 15 s.
    world.pass(Duration::from_secs(20));

    assert_eq!(world.events, [], "a repeated SYN is no new one");
    assert_eq!(world.inspector.seen.len(), 0);
    assert_eq!(world.net.connections(), 1);
    assert_eq!(world.kernel.socket(handle).state(), tcp::State::SynSent);

    world.kernel.socket(handle).abort();
    world.kernel.wire.from_kernel.clear();
    world.kernel.sockets.remove(handle);
    world.pass(Duration::from_secs(40));
    assert_eq!(world.net.connections(), 0);
    assert_eq!(world.events, []);
}

#[test]
fn a_repeated_syn_is_no_second_one_and_is_answered_when_the_owner_speaks() {
    let mut world = World::new(V4);
    let (handle, connection) = world.ask();

    world.pass(Duration::from_secs(4));
    assert_eq!(world.events, []);
    world.net.accept(connection).unwrap();
    world.pass(Duration::from_secs(5));

    assert_eq!(world.kernel.socket(handle).state(), tcp::State::Established);
}

/// A SYN as the kernel sends it, to be repeated at will.
fn raw_syn(world: &mut World) -> Vec<u8> {
    let (from, to) = (world.app(50_000), world.origin());
    world.kernel.connect(from, to, 65_536);
    world.kernel.poll(world.now);
    let packet = world.kernel.wire.from_kernel.pop_front().unwrap();
    world.wrap(&packet)
}

#[test]
fn a_held_syn_that_is_not_repeated_lives_three_seconds() {
    for (time, is_gone) in [
        (Duration::from_secs(3) - NANO, false),
        (Duration::from_secs(3), true),
    ] {
        let mut world = World::new(V4);
        let syn = raw_syn(&mut world);
        let mut sink = Collector::default();
        world
            .net
            .handle_packet(&mut syn.clone(), world.now, &mut sink);
        let Some(NetEvent::Syn { connection, .. }) = world.net.poll_event() else {
            panic!()
        };

        world.net.handle_timeout(world.now + time, &mut sink);

        let expected = is_gone.then_some(NetEvent::SynGone { connection });
        assert_eq!(world.net.poll_event(), expected, "after {time:?}");
        assert_eq!(world.net.connections(), usize::from(!is_gone));
        assert_eq!(sink.0.len(), 0);
    }
}

#[test]
fn a_held_syn_lives_twice_its_last_gap_and_a_second() {
    // Repeated after 1, 3 and 7 s: the last gap is 4 s, so 9 s more.
    let end = Duration::from_secs(7 + 9);
    for (time, is_gone) in [(end - NANO, false), (end, true)] {
        let mut world = World::new(V4);
        let syn = raw_syn(&mut world);
        let mut sink = Collector::default();
        for at in [0, 1, 3, 7] {
            let now = world.now + Duration::from_secs(at);
            world.net.handle_timeout(now, &mut sink);
            world.net.handle_packet(&mut syn.clone(), now, &mut sink);
        }
        let Some(NetEvent::Syn { connection, .. }) = world.net.poll_event() else {
            panic!()
        };
        assert_eq!(world.net.poll_event(), None);

        world.net.handle_timeout(world.now + time, &mut sink);

        let expected = is_gone.then_some(NetEvent::SynGone { connection });
        assert_eq!(world.net.poll_event(), expected, "after {time:?}");
        assert_eq!(world.net.accept(connection).is_ok(), !is_gone);
    }
}

#[test]
fn two_syns_that_are_read_late_and_together_do_not_end_the_wait() {
    let mut world = World::new(V4);
    let syn = raw_syn(&mut world);
    let mut sink = Collector::default();
    for _ in 0..2 {
        let mut syn = syn.clone();
        world.net.handle_packet(&mut syn, world.now, &mut sink);
    }
    let Some(NetEvent::Syn { connection, .. }) = world.net.poll_event() else {
        panic!()
    };

    // The third comes 2 s after the second.
    let now = world.now + Duration::from_secs(2);
    world.net.handle_timeout(now, &mut sink);

    assert_eq!(world.net.poll_event(), None);
    assert!(world.net.accept(connection).is_ok());
}

#[test]
fn early_timeouts_change_nothing_about_a_held_syn() {
    let mut world = World::new(V4);
    let mut syn = raw_syn(&mut world);
    let mut sink = Collector::default();
    world.net.handle_packet(&mut syn, world.now, &mut sink);
    world.net.poll_event().unwrap();

    for millis in 1..3000 {
        world
            .net
            .handle_timeout(world.now + Duration::from_millis(millis), &mut sink);
        assert_eq!(world.net.poll_event(), None);
    }

    assert_eq!(
        world.net.poll_timeout(),
        Some(world.now + Duration::from_secs(3))
    );
}

#[test]
fn a_reset_ends_a_held_syn() {
    let mut world = World::new(V4);
    let (handle, connection) = world.ask();
    let reset = rst_of_a_syn(&mut world);
    let mut reset = world.wrap(&reset);
    let mut sink = Collector::default();

    world.net.handle_packet(&mut reset, world.now, &mut sink);

    assert_eq!(
        world.net.poll_event(),
        Some(NetEvent::SynGone { connection })
    );
    assert_eq!(world.net.connections(), 0);
    assert_eq!(sink.0.len(), 0);
    assert_eq!(world.kernel.socket(handle).state(), tcp::State::SynSent);
}

/// The RST that would end the connection that the kernel asks for now.
fn rst_of_a_syn(world: &mut World) -> Vec<u8> {
    world.now = world.now + Duration::from_secs(1);
    world.kernel.poll(world.now);
    let mut packet = world.kernel.wire.from_kernel.pop_front().unwrap();
    let sequence = u32::from_be_bytes(packet[24..28].try_into().unwrap()).wrapping_add(1);
    packet[24..28].copy_from_slice(&sequence.to_be_bytes());
    packet[33] = 0x04;
    packet[36..38].fill(0);
    let checksum = !super::kernel::tcp_sum(&packet, 20);
    packet[36..38].copy_from_slice(&checksum.to_be_bytes());
    packet
}

#[test]
fn a_syn_with_another_number_takes_the_place_of_a_held_one() {
    let mut world = World::new(V4);
    let (from, to) = (world.app(50_000), world.origin());
    let mut first = raw_syn(&mut world);
    world.kernel.connect(from, to, 65_536);
    world.kernel.poll(world.now);
    let second = world.kernel.wire.from_kernel.pop_front().unwrap();
    let mut sink = Collector::default();

    world.net.handle_packet(&mut first, world.now, &mut sink);
    world
        .net
        .handle_packet(&mut world.wrap(&second), world.now, &mut sink);

    let Some(NetEvent::Syn {
        connection: old, ..
    }) = world.net.poll_event()
    else {
        panic!()
    };
    assert_eq!(
        world.net.poll_event(),
        Some(NetEvent::SynGone { connection: old })
    );
    let Some(NetEvent::Syn {
        connection: new, ..
    }) = world.net.poll_event()
    else {
        panic!()
    };
    assert_ne!(old, new);
    assert_eq!(world.net.accept(old), Err(AcceptError::Gone));
    assert_eq!(world.net.connections(), 1);
}

#[test]
fn beyond_the_bounds_syns_are_dropped_and_their_repetition_is_taken() {
    let mut few = config(V4);
    few.max_connections = 2;
    let mut world = World::with(V4, few, RECEIVE_RING_BYTES, SEND_RING_BYTES);
    let (_, first) = world.ask();
    world.ask();
    let (from, to) = (world.app(50_000), world.origin());
    world.kernel.connect(from, to, 65_536);

    world.run();
    assert_eq!(world.events, []);
    assert_eq!(world.net.stats().untaken(Reason::TableFull), 1);

    world.net.refuse(first, Refusal::Reset);
    world.pass(Duration::from_secs(2));
    assert!(matches!(world.events[..], [NetEvent::Syn { source, .. }] if source == from));
}

#[test]
fn a_syn_to_port_zero_and_a_segment_of_nothing_are_reset() {
    use etherparse::PacketBuilder;

    let mut world = World::new(V4);
    let (app, origin) = ([10, 111, 0, 2], [203, 0, 113, 9]);
    let to_port_zero = PacketBuilder::ipv4(app, origin, 64)
        .tcp(4000, 0, 77, 1000)
        .syn();
    let data = PacketBuilder::ipv4(app, origin, 64)
        .tcp(4000, 80, 100, 1000)
        .ack(55);
    let fin = PacketBuilder::ipv4(app, origin, 64)
        .tcp(4000, 80, 100, 1000)
        .fin();
    let rst = PacketBuilder::ipv4(app, origin, 64)
        .tcp(4000, 80, 100, 1000)
        .rst();

    // Flags, sequence and acknowledgement of the answer (RFC 9293 §3.10.7.1).
    let cases = [
        (built(to_port_zero, &[]), Some((0x14, 0, 78))),
        (built(data, b"xyz"), Some((0x04, 55, 0))),
        (built(fin, b"xyz"), Some((0x14, 0, 104))),
        (built(rst, &[]), None),
    ];
    for (packet, expected) in cases {
        let mut sink = Collector::default();
        world
            .net
            .handle_packet(&mut world.wrap(&packet), world.now, &mut sink);

        let answer = sink.0.first().map(|bytes| {
            let tcp = &bytes[VNET_HEADER_BYTES + 20..];
            let number = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
            (tcp[13], number(4), number(8))
        });
        assert_eq!(answer, expected);
        assert_eq!(world.net.poll_event(), None);
        for bytes in sink.0 {
            world.inspector.inspect(&bytes);
        }
    }
}

fn built(step: etherparse::PacketBuilderStep<etherparse::TcpHeader>, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    step.write(&mut packet, payload).unwrap();
    packet
}
