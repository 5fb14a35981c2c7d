//! What is held for whom, as sessions come and go.

use super::world::{GRACE, SECOND, World, config, key};
use bytes::Bytes;
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::Target;
use tund_session::wire::frame::{CloseCode, Framing, HandOff, OnExpiry, Protocol};

/// A client of that key whose flow has expired, with a message for its application.
fn leave(world: &mut World, n: u8) {
    let (client, id) = world.attached(n, key(n));
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let target = Target {
        protocol: Protocol::Tcp,
        source: address("10.0.0.1:1000"),
        destination: address("192.0.2.1:5222"),
        grace: GRACE,
        on_expiry: OnExpiry::Reset,
        accept_early: false,
    };
    let hand_off = HandOff {
        user: 1000,
        framing: Framing::Line,
        retain: Duration::from_secs(3600),
        takes: Vec::new(),
    };
    let now = world.now;
    let flow = world.clients[client].open_handed_off(&target, hand_off, now);
    let flow = flow.unwrap();
    world.accept(client, flow);
    world.lose(client);
    let now = world.now;
    world.registry.with(id, now, |session| {
        session.write(flow, Bytes::from_static(b"one\n"), now);
    });
    world.pass(GRACE + 31 * SECOND);
}

#[test]
fn what_a_client_will_not_ask_for_is_forgotten_and_no_other_clients() {
    let mut world = World::new(config());
    leave(&mut world, 1);
    leave(&mut world, 2);
    assert_eq!(world.registry.offers().len(), 2);
    let (client, _) = world.attached(11, key(1));
    assert_eq!(world.registry.offers().len(), 2);

    world.clients[client].forget_held();
    world.run();

    assert_eq!(world.registry.offers().len(), 1);
    let (other, _) = world.attached(12, key(2));
    world.clients[other].forget_held();
    world.run();
    assert!(world.registry.offers().is_empty());
}

#[test]
fn whose_session_is_closed_by_a_wish_loses_what_is_held_and_no_other_client() {
    let mut world = World::new(config());
    leave(&mut world, 1);
    leave(&mut world, 2);
    let (idle, _) = world.attached(11, key(1));
    let now = world.now;
    world.clients[idle].close(CloseCode::Idle, now);
    world.run();
    assert_eq!(world.registry.offers().len(), 2);

    let (client, _) = world.attached(12, key(1));
    let now = world.now;
    world.clients[client].close(CloseCode::Asked, now);
    world.run();

    assert_eq!(world.registry.offers().len(), 1);
    world.pass(Duration::from_secs(3600));
    assert!(world.registry.offers().is_empty());
    world.expect_nothing_kept();
}
