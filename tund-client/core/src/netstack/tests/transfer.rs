//! Bytes both ways: all of them, in order, within the windows.

use std::time::Duration;

use super::world::{Collector, KINDS, Kind, V4, World, config, pattern};
use crate::netstack::{NetEvent, SEND_RING_BYTES};
use crate::packet::{Flags, Reason};

const BULK: usize = 1_000_000;

#[test]
fn bulk_to_the_application_arrives_whole() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let (handle, connection) = world.open();
        let bytes = pattern(BULK, 1);
        let mut got = Vec::new();
        let mut sent = 0;

        while got.len() < bytes.len() {
            sent += world.net.send(connection, &bytes[sent..]);
            world.step();
            got.extend(world.app_read(handle));
        }

        assert!(got == bytes, "{kind:?}");
        assert_eq!(world.inspector.gso_packets > 10, kind.offload, "{kind:?}");
        world.run();
        assert_eq!(world.net.unsent(connection), 0);
    }
}

#[test]
fn bulk_from_the_application_arrives_whole() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let (handle, connection) = world.open();
        let bytes = pattern(BULK, 2);
        let mut got = Vec::new();
        let mut sent = 0;

        while got.len() < bytes.len() {
            sent += world.app_write(handle, &bytes[sent..]);
            world.step();
            let readable = world.net.readable(connection);
            let before = got.len();
            got.extend(world.read(connection));
            assert_eq!(got.len() - before, readable);
        }

        assert!(got == bytes, "{kind:?}");
    }
}

#[test]
fn both_directions_at_once_do_not_disturb_each_other() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let (handle, connection) = world.open();
        let (up, down) = (pattern(BULK, 3), pattern(BULK, 4));
        let (mut sent_up, mut sent_down) = (0, 0);
        let (mut got_up, mut got_down) = (Vec::new(), Vec::new());

        while got_up.len() < up.len() || got_down.len() < down.len() {
            sent_up += world.app_write(handle, &up[sent_up..]);
            sent_down += world.net.send(connection, &down[sent_down..]);
            world.step();
            got_down.extend(world.app_read(handle));
            got_up.extend(world.read(connection));
        }

        assert!(got_up == up && got_down == down, "{kind:?}");
    }
}

#[test]
fn recv_takes_no_more_than_it_is_asked_for() {
    let mut world = World::new(V4);
    let (handle, connection) = world.open();
    let bytes = pattern(10_000, 5);
    world.app_write(handle, &bytes);
    world.run();
    let mut got = Vec::new();

    for max in [0, 1, 999, 5000, 1_000_000] {
        let count = world
            .net
            .recv(connection, max, |piece| got.extend_from_slice(piece));
        assert_eq!(count, max.min(bytes.len() - (got.len() - count)));
    }

    assert_eq!(got, bytes);
    assert_eq!(
        world
            .net
            .recv(connection, 10, |_| panic!("nothing is left")),
        0
    );
}

#[test]
fn writable_is_said_whenever_the_kernel_has_acknowledged_more() {
    let mut world = World::new(V4);
    let (handle, connection) = world.open();
    let writable = NetEvent::Writable { connection };
    assert_eq!(
        std::mem::take(&mut world.events),
        [writable],
        "by the handshake"
    );
    let bytes = pattern(4 << 20, 6);

    let mut sent = world.net.send(connection, &bytes);
    assert_eq!(sent, SEND_RING_BYTES);
    assert_eq!(world.net.send_room(connection), 0);
    world.run();
    assert!(world.events.contains(&writable));
    assert_eq!(world.net.unsent(connection), 0);

    // The application stops reading: its window, then the ring, fill up.
    loop {
        let more = world.net.send(connection, &bytes[sent..]);
        sent += more;
        world.run();
        if more == 0 {
            break;
        }
    }
    world.events.clear();
    assert_eq!(world.net.unsent(connection), SEND_RING_BYTES);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.events, [], "probes acknowledge nothing");

    let mut got = world.app_read(handle);
    world.run();
    assert!(world.events.contains(&writable));
    while got.len() < sent {
        got.extend(world.app_read(handle));
        world.run();
    }
    assert!(got == bytes[..sent]);
}

#[test]
fn send_before_the_handshake_is_complete_is_woken_by_it() {
    let mut world = World::new(V4);
    let (handle, connection) = world.ask();
    world.net.accept(connection).unwrap();

    assert_eq!(world.net.send(connection, b"banner"), 0);
    world.run();

    assert_eq!(world.events, [NetEvent::Writable { connection }]);
    assert_eq!(world.net.send(connection, b"banner"), 6);
    world.run();
    assert_eq!(world.app_read(handle), b"banner");
}

#[test]
fn the_application_sends_no_more_than_it_is_let_in() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let (handle, connection) = world.open_with(10_001);
        let bytes = pattern(200_000, 7);
        world.app_write(handle, &bytes);

        world.pass(Duration::from_secs(5));
        let held = world.net.readable(connection);
        // The last few bytes of a scaled window cannot be told.
        assert!((10_001 - 8..=10_001).contains(&held), "{kind:?}: {held}");

        // Reading alone lets nothing more in.
        let mut got = world.read(connection);
        world.pass(Duration::from_secs(5));
        assert!(
            got.len() + world.net.readable(connection) <= 10_001,
            "{kind:?}"
        );

        world.net.set_intake(connection, 5000);
        world.pass(Duration::from_secs(5));
        got.extend(world.read(connection));
        assert!(
            (15_001 - 8..=15_001).contains(&got.len()),
            "{kind:?}: {}",
            got.len()
        );

        // A smaller number takes nothing back.
        world.net.set_intake(connection, 100_000);
        world.net.set_intake(connection, 1);
        world.pass(Duration::from_secs(1));
        got.extend(world.read(connection));
        assert!(
            (115_001 - 8..=115_001).contains(&got.len()),
            "{kind:?}: {}",
            got.len()
        );
        assert!(got == bytes[..got.len()]);
    }
}

#[test]
fn a_window_that_opens_is_told_at_once() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let (handle, connection) = world.open_with(0);
        let bytes = pattern(100_000, 8);
        world.app_write(handle, &bytes);
        world.pass(Duration::from_secs(30));
        assert_eq!(world.net.readable(connection), 0, "{kind:?}");

        let before = world.now;
        world.net.set_intake(connection, 1 << 20);
        world.run();

        assert_eq!(world.now, before);
        assert_eq!(world.net.readable(connection), bytes.len(), "{kind:?}");
        assert_eq!(world.read(connection), bytes);
    }
}

#[test]
fn a_full_ring_stops_the_application_until_it_is_read() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let (handle, connection) = world.open();
        let bytes = pattern(1 << 20, 9);
        world.app_write(handle, &bytes);

        world.run();
        // Twice the rounding of the scale is not used.
        let held = world.net.readable(connection);
        assert!(
            (256 * 1024 - 14..=256 * 1024).contains(&held),
            "{kind:?}: {held}"
        );

        let mut got = Vec::new();
        while got.len() < bytes.len() {
            let count = world.read(connection);
            assert_ne!(count.len(), 0, "stalled at {}", got.len());
            got.extend(count);
            let before = world.now;
            world.run();
            assert_eq!(world.now, before, "no timer was needed");
        }
        assert!(got == bytes);
    }
}

#[test]
fn nothing_is_said_of_a_window_that_has_not_changed() {
    let mut world = World::with(V4, config(V4), 16_384, 16_384);
    let (handle, connection) = world.open_with(14_000);
    world.app_write(handle, &pattern(20_000, 15));
    world.run();
    let before = world.inspector.seen.len();

    // The ring has room again, and smoltcp would say so, but nothing more is let in.
    assert_eq!(world.read(connection).len(), 14_000);
    world.run();

    assert_eq!(world.inspector.seen.len(), before);
}

#[test]
fn a_trickle_of_intake_is_told_in_worthwhile_steps() {
    let mut world = World::new(V4);
    let (handle, connection) = world.open_with(3000);
    let bytes = pattern(500_000, 10);
    world.app_write(handle, &bytes);
    let mut got = Vec::new();
    let mut allowed = 3000;

    while got.len() < 200_000 {
        world.run();
        got.extend(world.read(connection));
        allowed += 100;
        let left = u64::try_from(allowed - got.len()).unwrap();
        world.net.set_intake(connection, left);
    }

    let updates = world.net.stats().window_updates;
    assert!(updates > 0 && got.len() <= allowed, "{updates}");
    assert!(got == bytes[..got.len()]);
}

#[test]
fn segments_out_of_order_and_lost_are_put_right() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let (handle, connection) = world.open();
        let bytes = pattern(100_000, 11);
        world.app_write(handle, &bytes);
        world.kernel.poll(world.now);
        // One is lost, the rest comes in reverse.
        let mut packets: Vec<_> = world.kernel.wire.from_kernel.drain(..).collect();
        packets.remove(3);
        packets.reverse();
        world.kernel.wire.from_kernel.extend(packets);

        world.pass(Duration::from_secs(10));

        assert_eq!(world.read(connection), bytes, "{kind:?}");
    }
}

#[test]
fn what_the_kernel_did_not_hear_is_sent_again() {
    let mut world = World::new(V4);
    let (handle, connection) = world.open();
    let bytes = pattern(100_000, 12);
    world.hears = false;
    world.net.send(connection, &bytes);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.app_read(handle), []);

    world.hears = true;
    world.pass(Duration::from_secs(10));

    assert_eq!(world.app_read(handle), bytes);
}

#[test]
fn bytes_beyond_the_window_are_cut_off_and_answered() {
    let mut world = World::new(V4);
    let (handle, connection) = world.open_with(1000);
    world.app_write(handle, &pattern(1000, 13));
    world.run();
    assert_eq!(world.net.readable(connection), 1000);
    let edge = world.inspector.edge(world.port());

    // A kernel that does not keep to the window: its next byte, with a FIN behind it.
    let packet = world.intruder(
        edge,
        &[1; 500],
        Flags {
            fin: true,
            ..Flags::default()
        },
    );
    let seen = world.inspector.seen.len();
    world.handle(&packet);

    assert_eq!(world.net.readable(connection), 1000);
    assert!(world.inspector.seen.len() > seen, "a probe is answered");
    world.read(connection);
    world.run();
    assert!(!world.events.contains(&NetEvent::Finished { connection }));
}

/// What of five bytes arrives whose checksum is as `spoil` leaves it, with these vnet flags.
fn arrives(kind: Kind, vnet_flags: u8, spoil: bool) -> usize {
    let mut world = World::new(kind);
    let (_, connection) = world.open();
    let mut packet = world.intruder(world.first(), b"hello", Flags::default());
    let last = packet.len() - 1;
    packet[last] ^= u8::from(spoil);
    let mut bytes = world.wrap(&packet);
    if kind.offload {
        bytes[0] = vnet_flags;
    }
    world
        .net
        .handle_packet(&mut bytes, world.now, &mut Collector::default());
    let counted = world.net.stats().untaken(Reason::Checksum);
    let arrived = world.net.readable(connection);
    assert_eq!(counted == 0, arrived == 5);
    arrived
}

#[test]
fn checksums_are_verified_unless_the_device_vouches_for_them() {
    for kind in KINDS {
        assert_eq!(arrives(kind, 0, false), 5, "{kind:?}");
        assert_eq!(arrives(kind, 0, true), 0, "{kind:?}");
        if kind.offload {
            assert_eq!(arrives(kind, 1, true), 5, "needs_csum {kind:?}");
            assert_eq!(arrives(kind, 2, true), 5, "data_valid {kind:?}");
            assert_eq!(arrives(kind, 4, true), 0, "{kind:?}");
        }
    }
}

#[test]
fn a_kernel_that_does_not_scale_windows_is_not_told_scaled_ones() {
    for kind in KINDS {
        let mut world = World::new(kind);
        world.scales = false;
        let (handle, connection) = world.open_with(100_000);
        let bytes = pattern(150_000, 16);
        world.app_write(handle, &bytes);
        world.pass(Duration::from_secs(1));
        // To the byte, as nothing is rounded.
        let mut got = world.read(connection);
        assert_eq!(got.len(), 100_000, "{kind:?}");
        world.net.set_intake(connection, 50_000);
        world.run();
        got.extend(world.read(connection));
        assert!(got == bytes);

        assert_eq!(world.net.send(connection, &bytes), bytes.len());
        let mut down = Vec::new();
        while down.len() < bytes.len() {
            world.run();
            down.extend(world.app_read(handle));
        }
        assert!(down == bytes, "{kind:?}");
    }
}

#[test]
fn any_size_of_segment_that_a_kernel_asks_for_is_kept_to() {
    for mtu in [200, 300, 576, 9000, 65_535] {
        for kind in KINDS {
            let mut world = World::new(kind);
            world.kernel = super::kernel::Kernel::new(mtu, world.now);
            let (handle, connection) = world.open();
            let bytes = pattern(100_000, 14);
            let mut got = Vec::new();
            let mut sent = 0;

            // Some more than a segment each, then as much as the ring takes.
            for piece in bytes[..5000].chunks(1000) {
                sent += world.net.send(connection, piece);
                world.run();
            }
            while got.len() < bytes.len() {
                sent += world.net.send(connection, &bytes[sent..]);
                world.step();
                got.extend(world.app_read(handle));
            }

            assert!(got == bytes, "{mtu} {kind:?}");
            assert_eq!(world.inspector.longest_segment, mtu.min(1500), "{kind:?}");
        }
    }
}
