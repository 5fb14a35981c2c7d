//! Memory and work: slots used again, pages given back, idle connections that cost nothing.

use std::time::Duration;

use super::world::{Collector, V4, World, config, pattern};
use crate::netstack::{AcceptError, NetEvent, Netstack};
use crate::packet::Flags;

#[test]
fn a_slot_used_again_shows_nothing_of_the_connection_before() {
    let mut world = World::new(V4);
    let (handle, first) = world.open();
    world.app_write(handle, &pattern(200_000, 1));
    world.run();
    world.net.send(first, &pattern(500_000, 2));
    world.net.reset(first);
    world.run();
    world.kernel.sockets.remove(handle);
    world.events.clear();

    let (handle, second) = world.open();
    assert_ne!(first, second);
    assert_eq!(world.net.readable(second), 0);
    assert_eq!(world.net.unsent(second), 0);
    // A piece behind a gap: what lies in the gap is memory of the first connection.
    let start = world.first();
    let packet = world.intruder(start.wrapping_add(1000), &[7; 100], Flags::default());
    world.handle(&packet);
    assert_eq!(world.read(second), []);
    world.net.send(second, b"mine");
    world.run();
    assert_eq!(world.app_read(handle), b"mine");

    let packet = world.intruder(start, &[8; 1000], Flags::default());
    world.handle(&packet);
    assert_eq!(world.read(second), [&[8; 1000][..], &[7; 100]].concat());
}

#[test]
fn slots_are_used_last_in_first_out_and_their_number_bounds_the_connections() {
    let mut world = World::new(V4);
    let memory = super::world::Memory {
        receive_bytes: 65_536,
        send_bytes: 65_536,
        slots: 2,
        idled: world.idled.clone(),
    };
    world.net = Netstack::new(&config(V4), Box::new(memory), world.now);
    let (_, first) = world.open();
    let (_, _) = world.open();
    let (_, third) = world.ask();

    assert_eq!(world.net.accept(third), Err(AcceptError::NoMemory));
    world.net.reset(first);
    world.run();

    assert_eq!(world.net.accept(third), Ok(()), "it was still held");
}

#[test]
fn pages_of_an_idle_connection_are_given_back_and_it_goes_on() {
    let mut world = World::new(V4);
    let (handle, connection) = world.open();
    world.app_write(handle, b"ping");
    world.run();
    assert_eq!(world.read(connection), b"ping");
    world.net.send(connection, b"pong");
    world.run();

    world.pass(Duration::from_secs(1));
    assert_eq!(world.idled(), [0, 0]);
    world.pass(Duration::from_secs(4));
    assert_eq!(world.idled(), [1, 0]);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.idled(), [1, 0], "once is enough");

    assert_eq!(world.app_read(handle), b"pong");
    world.app_write(handle, b"again");
    world.run();
    assert_eq!(world.read(connection), b"again");
    world.pass(Duration::from_secs(5));
    assert_eq!(world.idled(), [2, 0]);
    assert_eq!(world.net.stats().slots_idled, 2);
}

#[test]
fn pages_that_hold_something_are_kept() {
    let mut world = World::new(V4);
    let (reader, unread) = world.open();
    world.app_write(reader, b"not read");
    let (_, gap) = world.open();
    let start = world.first();
    world.run();
    let packet = world.intruder(start.wrapping_add(10), b"behind a gap", Flags::default());
    world.handle(&packet);

    world.pass(Duration::from_secs(60));
    assert_eq!(world.idled(), [0, 0]);

    let packet = world.intruder(start, b"0123456789", Flags::default());
    world.handle(&packet);
    assert_eq!(world.read(gap), b"0123456789behind a gap");
    assert_eq!(world.read(unread), b"not read");
    world.pass(Duration::from_secs(5));
    assert_eq!(world.idled(), [1, 1]);
}

#[test]
fn pages_of_a_slot_that_nobody_uses_are_given_back() {
    let mut world = World::new(V4);
    let (handle, connection) = world.open();
    world.app_write(handle, &pattern(1000, 3));
    world.run();
    world.net.reset(connection);

    world.pass(Duration::from_secs(5));

    assert_eq!(world.idled(), [1, 0]);
}

#[test]
fn a_thousand_idle_connections_cost_nothing_per_packet() {
    let mut costs = Vec::new();
    for idle in [0, 1000] {
        let mut config = config(V4);
        config.idle_after = Duration::from_secs(3600);
        let mut world = World::with(V4, config, 4096, 4096);
        let mut connections = Vec::new();
        for _ in 0..idle {
            let (handle, connection) = world.open();
            world.kernel.sockets.remove(handle);
            connections.push(connection);
        }
        let (handle, connection) = world.open();
        let before = world.net.stats().clone();

        for n in 0..100 {
            world.app_write(handle, &[n]);
            world.run();
            assert_eq!(world.read(connection), [n]);
            world.net.send(connection, &[n]);
            world.run();
            assert_eq!(world.app_read(handle), [n]);
        }

        let after = world.net.stats();
        costs.push((
            after.egress_polls - before.egress_polls,
            after.packets_out - before.packets_out,
            after.packets_in - before.packets_in,
        ));
        assert_eq!(world.net.connections(), idle + 1);
    }

    assert_eq!(costs[0], costs[1]);
}

#[test]
fn when_all_is_quiet_a_second_look_finds_nothing_and_the_same_deadline() {
    let mut world = World::new(V4);
    let (_, connection) = world.open();
    world.net.send(connection, b"x");
    world.run();
    let due = world.net.poll_timeout();
    let mut sink = Collector::default();

    world.net.flush(world.now, &mut sink);
    world.net.handle_timeout(world.now, &mut sink);

    assert_eq!(sink.0.len(), 0);
    assert_eq!(world.net.poll_event(), None);
    assert_eq!(world.net.poll_timeout(), due);
}

#[test]
fn names_are_never_used_twice() {
    let mut world = World::new(V4);
    let mut seen = std::collections::BTreeSet::new();

    for _ in 0..50 {
        let (handle, connection) = world.open();
        assert!(seen.insert(connection), "{connection}");
        world.net.reset(connection);
        world.run();
        world.kernel.sockets.remove(handle);
    }

    world.events.clear();
    for old in seen {
        assert_eq!(world.net.send(old, b"x"), 0);
        assert_eq!(world.net.recv(old, 10, |_| {}), 0);
        world.net.finish(old);
        world.net.reset(old);
    }
    world.run();
    assert_eq!(world.events, [] as [NetEvent; 0]);
}

#[test]
fn timers_do_not_pile_up_on_a_connection_that_is_busy_for_hours() {
    let mut world = World::new(V4);
    let (handle, connection) = world.open();

    for _ in 0..2000 {
        world.net.send(connection, b"tick");
        world.pass(Duration::from_millis(1500));
        assert_eq!(world.app_read(handle), b"tick");
    }

    assert!(world.net.timers.len() < 100, "{}", world.net.timers.len());
}
