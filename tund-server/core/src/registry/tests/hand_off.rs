//! What is held for whom, as sessions come and go.

use super::world::{GRACE, SECOND, World, config, key};
use bytes::Bytes;
use std::net::SocketAddr;
use std::time::Duration;
use tund_session::wire::frame::{CloseCode, FlowCode, Framing, HandOff, OnExpiry, Protocol, Take};
use tund_session::{FlowId, Offset, Session, SessionId, Target};

/// A flow that is handed off and begins with what another one has left.
fn ask(world: &mut World, client: usize, takes: &[(SessionId, FlowId)]) -> FlowId {
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
        takes: takes
            .iter()
            .map(|(session, flow)| Take {
                session: *session,
                flow: *flow,
                delivered: Offset(0),
            })
            .collect(),
    };
    let now = world.now;
    let flow = world.clients[client].open_handed_off(&target, hand_off, now);
    flow.unwrap()
}

/// The same, whose origin has answered.
pub(super) fn open(world: &mut World, client: usize, takes: &[(SessionId, FlowId)]) -> FlowId {
    let flow = ask(world, client, takes);
    world.accept(client, flow);
    flow
}

/// The origin of a flow says so many lines of a hundred bytes, or as many as are taken.
fn say_lines(world: &mut World, id: SessionId, flow: FlowId, mut lines: u64) {
    loop {
        let now = world.now;
        let mut taken = 0;
        world.registry.with(id, now, |session| {
            taken = (session.intake(flow) / 100).min(lines);
            let text = format!("{:099}\n", 0).repeat(usize::try_from(taken).unwrap());
            session.write(flow, Bytes::from(text), now);
        });
        lines -= taken;
        if taken == 0 {
            return;
        }
    }
}

/// A client of that key whose flow has expired with so many lines for its application.
pub(super) fn leave_lines(world: &mut World, n: u8, lines: u64) -> (SessionId, FlowId) {
    let (client, id) = world.attached(n, key(n));
    let flow = open(world, client, &[]);
    world.lose(client);
    say_lines(world, id, flow, lines);
    world.pass(GRACE + 31 * SECOND);
    (id, flow)
}

/// The same with one.
fn leave(world: &mut World, n: u8) {
    leave_lines(world, n, 1);
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
fn what_the_same_session_has_left_is_not_forgotten_with_what_others_have() {
    let mut world = World::new(config());
    leave(&mut world, 1);
    let (client, id) = world.attached(11, key(1));
    let flow = open(&mut world, client, &[]);
    say_lines(&mut world, id, flow, 2);
    let now = world.now;
    world.clients[client].abort(flow, FlowCode::Expired, now);
    world.run();
    assert_eq!(world.registry.offers().len(), 2);

    world.clients[client].forget_held();
    world.run();

    assert_eq!(world.registry.offers().len(), 1);
    open(&mut world, client, &[(id, flow)]);
    assert_eq!(world.registry.offers().tally().handed_on, 200);
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

#[test]
fn what_was_taken_and_is_not_read_counts_as_held() {
    let mut world = World::new(config());
    let buffer = config().session.buffer_bytes;
    let name = leave_lines(&mut world, 1, 9_000);
    assert_eq!(world.registry.offers().bytes(), 900_000);
    let (client, id) = world.attached(11, key(1));
    // Its application reads nothing.
    open(&mut world, client, &[name]);
    let ahead = |world: &World| {
        world
            .registry
            .session(id)
            .map_or(0, Session::prologue_bytes)
    };
    assert!(ahead(&world) > buffer / 2, "{}", ahead(&world));

    for _ in 0..10 {
        let flow = open(&mut world, client, &[]);
        say_lines(&mut world, id, flow, 600);
        let now = world.now;
        world.clients[client].abort(flow, FlowCode::Expired, now);
        world.run();

        let held = world.registry.offers().bytes();
        assert!(held > 0 && held + ahead(&world) <= buffer, "{held}");
    }

    assert!(world.registry.offers().tally().lost > 0);
}
