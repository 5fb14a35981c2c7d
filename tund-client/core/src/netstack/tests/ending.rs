//! How connections end: by FIN, by RST, one direction at a time, and when nobody answers.

use std::time::Duration;

use smoltcp::socket::tcp::State;

use super::world::{KINDS, V4, World, pattern};
use crate::netstack::{ConnectionId, NetEvent};
use crate::packet::Flags;

fn closed(connection: ConnectionId) -> NetEvent {
    NetEvent::Closed { connection }
}

fn drained(connection: ConnectionId) -> NetEvent {
    NetEvent::Drained { connection }
}

fn finished(connection: ConnectionId) -> NetEvent {
    NetEvent::Finished { connection }
}

fn readable(connection: ConnectionId) -> NetEvent {
    NetEvent::Readable { connection }
}

fn reset_by_app(connection: ConnectionId) -> NetEvent {
    NetEvent::ResetByApp { connection }
}

#[test]
fn the_application_closes_first_and_still_gets_its_reply() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let (handle, connection) = world.open();
        let (up, down) = (pattern(100_000, 1), pattern(100_000, 2));
        world.app_write(handle, &up);
        world.kernel.socket(handle).close();
        world.run();

        assert_eq!(
            world.events_of(connection),
            [readable(connection)],
            "{kind:?}"
        );
        assert_eq!(world.read(connection), up);
        world.run();
        assert_eq!(world.events_of(connection), [finished(connection)]);

        world.net.send(connection, &down);
        world.net.finish(connection);
        world.run();

        assert_eq!(world.app_read(handle), down, "{kind:?}");
        assert_eq!(
            world.events_of(connection),
            [drained(connection), closed(connection)]
        );
        assert_eq!(world.net.connections(), 0);
        assert_eq!(world.kernel.socket(handle).state(), State::TimeWait);
    }
}

#[test]
fn a_slow_reader_that_has_half_closed_is_served_without_waiting() {
    let mut world = World::new(V4);
    let (handle, connection) = world.open();
    world.kernel.socket(handle).close();
    let down = pattern(1_500_000, 11);
    world.run();
    let mut sent = world.net.send(connection, &down);
    world.run();
    sent += world.net.send(connection, &down[sent..]);
    world.run();
    sent += world.net.send(connection, &down[sent..]);
    assert_eq!(sent, down.len());
    world.net.finish(connection);
    world.run();
    assert!(world.net.unsent(connection) > 0, "the window is shut");
    let start = world.now;

    let mut got = Vec::new();
    while got.len() < down.len() {
        let piece = world.app_read(handle);
        assert_ne!(piece, [], "stalled at {}", got.len());
        got.extend(piece);
        world.run();
    }

    assert_eq!(world.now, start, "no timer was needed");
    assert!(got == down);
    assert_eq!(world.kernel.socket(handle).state(), State::TimeWait);
}

#[test]
fn the_owner_closes_first_and_still_takes_what_comes() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let (handle, connection) = world.open();
        let (up, down) = (pattern(100_000, 3), pattern(100_000, 4));
        world.net.send(connection, &down);
        world.net.finish(connection);
        assert_eq!(world.net.send(connection, b"late"), 0);
        world.run();

        assert_eq!(world.app_read(handle), down, "{kind:?}");
        assert_eq!(world.events_of(connection), [drained(connection)]);
        assert_eq!(world.kernel.socket(handle).state(), State::CloseWait);

        world.pass(Duration::from_secs(3 * 3600));
        world.app_write(handle, &up);
        world.run();
        assert_eq!(
            world.read(connection),
            up,
            "{kind:?}: half-closed for hours"
        );
        world.kernel.socket(handle).close();
        world.run();

        assert_eq!(
            world.events_of(connection),
            [
                readable(connection),
                finished(connection),
                closed(connection)
            ]
        );
        assert_eq!(world.kernel.socket(handle).state(), State::Closed);
        assert_eq!(world.net.connections(), 0);
    }
}

#[test]
fn a_fin_before_the_handshake_is_complete_waits_for_it() {
    let mut world = World::new(V4);
    let (handle, connection) = world.ask();
    world.net.accept(connection).unwrap();
    world.net.finish(connection);

    world.run();

    assert_eq!(world.kernel.socket(handle).state(), State::CloseWait);
    assert_eq!(world.events_of(connection), [drained(connection)]);
}

#[test]
fn unread_bytes_outlive_the_connection_for_as_long_as_it_takes() {
    let mut world = World::new(V4);
    let (handle, connection) = world.open();
    let up = pattern(50_000, 5);
    world.app_write(handle, &up);
    world.kernel.socket(handle).close();
    world.net.finish(connection);
    world.pass(Duration::from_secs(3600));

    assert_eq!(world.kernel.socket(handle).state(), State::Closed);
    let events = world.events_of(connection);
    assert_eq!(events, [readable(connection), drained(connection)]);
    assert_eq!(world.read(connection), up);
    world.run();
    assert_eq!(
        world.events_of(connection),
        [finished(connection), closed(connection)]
    );
}

#[test]
fn a_reset_by_the_application_is_told_after_the_bytes_before_it() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let (handle, connection) = world.open();
        let up = pattern(100_000, 6);
        world.app_write(handle, &up);
        world.run();
        world.kernel.socket(handle).abort();
        world.run();

        assert_eq!(
            world.events_of(connection),
            [readable(connection)],
            "{kind:?}"
        );
        assert_eq!(world.net.send(connection, b"x"), 0);
        assert_eq!(world.net.send_room(connection), 0);
        let mut got = Vec::new();
        while got.len() < up.len() {
            world.run();
            assert_eq!(world.events_of(connection), []);
            world
                .net
                .recv(connection, 30_000, |piece| got.extend_from_slice(piece));
        }
        assert_eq!(got, up);
        world.run();
        assert_eq!(
            world.events_of(connection),
            [reset_by_app(connection), closed(connection)]
        );
        assert_eq!(world.net.connections(), 0);
    }
}

#[test]
fn a_fin_and_then_a_reset_are_told_apart_from_a_fin() {
    let mut world = World::new(V4);
    let (handle, connection) = world.open();
    world.app_write(handle, b"all of it");
    world.kernel.socket(handle).close();
    world.run();
    // The application is gone for good; what comes now is answered by RST.
    world.kernel.socket(handle).abort();
    world.run();

    assert_eq!(world.read(connection), b"all of it");
    world.run();
    assert_eq!(
        world.events_of(connection),
        [
            readable(connection),
            finished(connection),
            reset_by_app(connection),
            closed(connection)
        ]
    );
}

#[test]
fn a_reset_before_the_handshake_is_complete_ends_it() {
    let mut world = World::new(V4);
    let (handle, connection) = world.ask();
    world.net.accept(connection).unwrap();
    world.kernel.sockets.remove(handle);

    world.run();

    assert_eq!(
        world.events_of(connection),
        [reset_by_app(connection), closed(connection)]
    );
    assert_eq!(world.net.connections(), 0);
    world.open();
}

#[test]
fn reset_ends_at_once_whatever_is_in_the_rings() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let (handle, connection) = world.open();
        world.app_write(handle, &pattern(10_000, 7));
        world.run();
        world.net.send(connection, &pattern(100_000, 8));
        world.events.clear();

        world.net.reset(connection);
        assert_eq!(
            world.net.readable(connection),
            0,
            "the name means nothing now"
        );
        world.run();

        assert_eq!(
            world.kernel.socket(handle).state(),
            State::Closed,
            "{kind:?}"
        );
        assert_eq!(world.app_read(handle), []);
        assert_eq!(world.events, []);
        assert_eq!(world.net.connections(), 0);
    }
}

#[test]
fn reset_of_a_held_syn_refuses_it() {
    let mut world = World::new(V4);
    let (handle, connection) = world.ask();

    world.net.reset(connection);
    world.run();

    assert_eq!(world.kernel.socket(handle).state(), State::Closed);
    assert_eq!(world.net.connections(), 0);
}

#[test]
fn reset_right_after_accept_ends_the_connect() {
    let mut world = World::new(V4);
    let (handle, connection) = world.ask();

    world.net.accept(connection).unwrap();
    world.net.reset(connection);
    world.run();

    assert_eq!(world.kernel.socket(handle).state(), State::Closed);
    assert_eq!(world.net.connections(), 0);
}

#[test]
fn reset_when_drained_delivers_everything_first() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let (handle, connection) = world.open();
        let down = pattern(400_000, 9);
        assert_eq!(world.net.send(connection, &down), down.len());

        world.net.reset_when_drained(connection);
        world.run();

        assert_eq!(
            world.kernel.socket(handle).state(),
            State::Closed,
            "{kind:?}"
        );
        assert_eq!(world.app_read(handle), down);
        assert_eq!(
            world.events_of(connection),
            [drained(connection), closed(connection)]
        );
        assert_eq!(world.net.connections(), 0);
    }
}

#[test]
fn reset_when_drained_waits_for_a_slow_reader() {
    let mut world = World::new(V4);
    let (handle, connection) = world.open();
    let down = pattern(2 << 20, 10);
    let mut sent = 0;
    loop {
        let more = world.net.send(connection, &down[sent..]);
        sent += more;
        world.run();
        if more == 0 {
            break;
        }
    }
    world.events.clear();
    world.net.reset_when_drained(connection);
    world.pass(Duration::from_secs(3600));
    assert!(
        world.net.unsent(connection) > 0,
        "zero-window probes are answered for an hour"
    );
    assert_eq!(world.events_of(connection), []);

    let mut got = Vec::new();
    while got.len() < sent {
        got.extend(world.app_read(handle));
        world.run();
    }

    assert!(got == down[..sent]);
    assert_eq!(
        world.events_of(connection),
        [drained(connection), closed(connection)]
    );
    assert_eq!(world.kernel.socket(handle).state(), State::Closed);
}

#[test]
fn reset_when_drained_follows_a_finish_and_drops_what_was_not_read() {
    let mut world = World::new(V4);
    let (handle, connection) = world.open();
    world.app_write(handle, b"nobody reads this");
    world.net.send(connection, b"the end");
    world.net.finish(connection);
    world.run();
    world.net.reset_when_drained(connection);
    world.net.finish(connection);
    world.run();

    assert_eq!(world.app_read(handle), b"the end");
    assert_eq!(world.kernel.socket(handle).state(), State::Closed);
    assert_eq!(
        world.events_of(connection),
        [
            readable(connection),
            drained(connection),
            closed(connection)
        ]
    );
}

#[test]
fn a_host_that_does_not_answer_is_given_up_after_minutes() {
    let mut world = World::new(V4);
    let (_, connection) = world.open();
    world.net.send(connection, b"anyone?");
    world.hears = false;

    world.pass(Duration::from_secs(500));
    assert_eq!(world.events_of(connection), []);
    world.pass(Duration::from_secs(300));

    assert_eq!(
        world.events_of(connection),
        [reset_by_app(connection), closed(connection)]
    );
    assert_eq!(world.net.stats().given_up, 1);
}

#[test]
fn a_handshake_that_is_not_completed_is_given_up_after_a_minute() {
    let mut world = World::new(V4);
    let (handle, connection) = world.ask();
    world.hears = false;
    world.net.accept(connection).unwrap();
    world.kernel.sockets.remove(handle);

    world.pass(Duration::from_secs(60));
    assert_eq!(world.events_of(connection), []);
    world.pass(Duration::from_secs(120));

    assert_eq!(
        world.events_of(connection),
        [reset_by_app(connection), closed(connection)]
    );
}

#[test]
fn an_idle_connection_lives_for_days_and_one_whose_host_forgot_it_does_not() {
    let mut world = World::new(V4);
    let (handle, connection) = world.open();
    world.pass(Duration::from_secs(3 * 86_400));
    assert_eq!(world.events_of(connection), []);

    world.kernel.sockets.remove(handle);
    world.pass(Duration::from_secs(2 * 3600 + 1));

    assert_eq!(
        world.events_of(connection),
        [reset_by_app(connection), closed(connection)]
    );
}

#[test]
fn long_sleep_gives_nobody_up() {
    let mut world = World::new(V4);
    let (handle, connection) = world.open();
    world.net.send(connection, b"before");
    let mut sink = super::world::Collector::default();
    world.net.flush(world.now, &mut sink);

    world.now = world.now + Duration::from_secs(10 * 3600);
    world.net.handle_timeout(world.now, &mut sink);
    world.deliver(sink);
    world.run();

    assert_eq!(world.events_of(connection), []);
    assert_eq!(world.app_read(handle), b"before");
}

#[test]
fn a_syn_on_an_old_connection_that_its_host_forgot_makes_room() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let (handle, connection) = world.open();
        let (from, to) = (world.app(world.port()), world.origin());
        world.kernel.sockets.remove(handle);
        world.kernel.connect(from, to, 65_536);

        world.pass(Duration::from_secs(2));

        let events = world.events_of(connection);
        assert_eq!(
            events,
            [reset_by_app(connection), closed(connection)],
            "{kind:?}"
        );
        assert!(matches!(world.events[..], [NetEvent::Syn { source, .. }] if source == from));
    }
}

#[test]
fn a_port_can_be_used_again_at_once() {
    let mut world = World::new(V4);
    let (handle, connection) = world.open();
    let (from, to) = (world.app(world.port()), world.origin());
    world.net.finish(connection);
    world.run();
    world.kernel.socket(handle).close();
    // The last ACK and the next SYN come in one batch.
    world.kernel.poll(world.now);
    world.kernel.sockets.remove(handle);
    world.kernel.connect(from, to, 65_536);

    world.run();

    let events = world.events_of(connection);
    assert_eq!(
        events,
        [
            drained(connection),
            finished(connection),
            closed(connection)
        ]
    );
    assert!(matches!(world.events[..], [NetEvent::Syn { source, .. }] if source == from));
    assert_eq!(world.net.connections(), 1);
}

#[test]
fn a_reset_after_an_orderly_end_is_none() {
    let mut world = World::new(V4);
    let (handle, connection) = world.open();
    world.app_write(handle, b"not read yet");
    world.net.finish(connection);
    world.run();
    world.kernel.socket(handle).close();
    world.run();

    let next = world.first().wrapping_add(13);
    let reset = world.intruder(
        next,
        &[],
        Flags {
            rst: true,
            ..Flags::default()
        },
    );
    world.handle(&reset);
    world.read(connection);
    world.run();

    assert_eq!(
        world.events_of(connection),
        [
            readable(connection),
            drained(connection),
            finished(connection),
            closed(connection)
        ]
    );
}

#[test]
fn unread_bytes_of_an_old_connection_do_not_hinder_a_new_one_at_its_port() {
    let mut world = World::new(V4);
    let (handle, old) = world.open();
    let (from, to) = (world.app(world.port()), world.origin());
    world.app_write(handle, b"old bytes");
    world.run();
    world.kernel.socket(handle).abort();
    world.run();
    world.kernel.sockets.remove(handle);
    let handle = world.kernel.connect(from, to, 65_536);
    world.run();
    let new = world.take_syn(from);
    world.net.set_intake(new, 1 << 20);
    world.net.accept(new).unwrap();
    world.run();
    world.app_write(handle, b"new bytes");
    world.run();

    assert_eq!(world.read(new), b"new bytes");
    assert_eq!(world.read(old), b"old bytes");
    world.run();
    let events = world.events_of(old);
    assert_eq!(events, [readable(old), reset_by_app(old), closed(old)]);
    assert_eq!(world.net.connections(), 1);
}
