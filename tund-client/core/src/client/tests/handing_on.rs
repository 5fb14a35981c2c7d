//! What an application did not get of a connection that expired reaches its user's next one.

use super::server::{End, OriginId};
use super::storing;
use super::world::{GRACE, RULES, SECOND, USER, World, client_config, registry_config};
use crate::client::ClientConfig;
use crate::netstack::tests::world::ORIGIN_V4;
use crate::policy::{DuringOutage, HandOff, Policies, Policy};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use std::time::Duration;
use tund_session::wire::frame::{Framing, OpenError};

/// What it pushes is handed on, line by line.
const FEED: u16 = 5222;
/// The same, and what is sent to it is stored.
const BOTH: u16 = 5223;
const RETAIN: Duration = Duration::from_secs(3 * 3600);
/// The server's clocks of grace run so much longer.
const SERVER_EXTRA: Duration = Duration::from_secs(30);

fn policy(port: u16) -> Policy {
    let hand_off = HandOff {
        framing: Framing::Line,
        retain: RETAIN,
    };
    Policy {
        network: ORIGIN_V4.into(),
        port: Some(port),
        grace: None,
        during_outage: None,
        store: None,
        hand_off: Some(hand_off),
    }
}

fn world() -> World {
    let both = Policy {
        store: storing::policy(BOTH, None).store,
        ..policy(BOTH)
    };
    let config = ClientConfig {
        policies: Policies::new(RULES, vec![policy(FEED), both]),
        ..client_config()
    };
    World::with(config, registry_config(200))
}

/// An application whose origin has answered.
fn open(world: &mut World, port: u16) -> (SocketHandle, OriginId) {
    let app = world.connect(port);
    world.pass(SECOND);
    assert_eq!(world.state(app), tcp::State::Established);
    let origin = world.opened.last().expect("an origin was asked for").0;
    (app, origin)
}

fn push(world: &mut World, origin: OriginId, text: &str) {
    let to_send = &mut world.origin(origin).to_send;
    to_send.extend_from_slice(text.as_bytes());
    world.run();
}

fn read(world: &mut World, app: SocketHandle) -> String {
    let mut all = world.read(app);
    world.pass(SECOND);
    all.extend(world.read(app));
    String::from_utf8(all).unwrap()
}

fn lines(range: std::ops::Range<u32>) -> String {
    range.map(|n| format!("message {n}\n")).collect()
}

/// An application that has read the first of these lines; the others were pushed in an outage that
/// its connection did not outlive.
fn lose(world: &mut World, port: u16, text: &str) -> SocketHandle {
    let (app, origin) = open(world, port);
    push(world, origin, "before\n");
    assert_eq!(read(world, app), "before\n");
    world.fail();
    push(world, origin, text);
    world.pass(GRACE + SECOND);
    assert_eq!(world.state(app), tcp::State::Closed);
    app
}

#[test]
fn a_thousand_messages_reach_the_next_connection_once_and_in_order() {
    for late in [Duration::ZERO, SERVER_EXTRA * 2] {
        let mut world = world();
        lose(&mut world, FEED, &lines(0..1_000));
        world.pass(late);
        world.heal();

        let (app, origin) = open(&mut world, FEED);
        push(&mut world, origin, "new\n");
        assert_eq!(read(&mut world, app), lines(0..1_000) + "new\n");

        let (app, origin) = open(&mut world, FEED);
        push(&mut world, origin, "newer\n");
        assert_eq!(read(&mut world, app), "newer\n");
        assert!(world.registry.offers().is_empty());
        assert_eq!(world.registry.offers().tally().lost, 0);
        assert_eq!(world.client.takes.kept(), 0);
    }
}

#[test]
fn a_message_that_was_cut_is_said_again_whole_and_one_that_was_read_is_not() {
    let mut world = world();
    let app = world.connect_to(FEED, 10);
    world.run();
    let origin = world.opened.last().expect("an origin").0;
    push(&mut world, origin, "one\ntwo\nthree\nfour\n");
    // The application's kernel has ten bytes, the client's ring the others.
    assert_eq!(world.kernel.socket(app).recv_queue(), 10);
    world.fail();
    world.pass(GRACE + SECOND);
    let got = world.read_silently(app, 100);
    assert!(b"one\ntwo\nth".starts_with(&got), "{got:?}");
    world.heal();

    let (app, _) = open(&mut world, FEED);

    assert_eq!(read(&mut world, app), "three\nfour\n");
}

#[test]
fn what_lies_in_the_ring_is_not_delivered_though_the_server_could_have_let_go_of_it() {
    let mut world = world();
    let app = world.connect_to(FEED, 1_000);
    world.run();
    let origin = world.opened.last().expect("an origin").0;
    let text = lines(0..2_000);
    push(&mut world, origin, &text);
    world.pass(SECOND * 2);
    assert_eq!(world.kernel.socket(app).recv_queue(), 1_000);
    world.fail();
    world.pass(GRACE + SECOND);
    let account = *world.client.flows().ended().last().expect("an account");
    world.heal();

    let (next, _) = open(&mut world, FEED);

    let boundary = text[..1_000].rfind('\n').unwrap() + 1;
    assert!(read(&mut world, next) == text[boundary..], "not the rest");
    // What had come to the client, and no more is known there.
    let came = tund_session::limits::INITIAL_SHARE;
    assert_eq!((account.lost.down, account.held_bytes), (0, came - 1_000));
    assert_eq!(account.down_bytes, 1_000);
}

/// Bytes to the application of the flows that ended: lost, and held.
fn accounts(world: &World) -> Vec<(u64, u64)> {
    let ended = world.client.flows().ended();
    ended
        .map(|account| (account.lost.down, account.held_bytes))
        .collect()
}

#[test]
fn what_is_no_run_of_messages_counts_as_lost() {
    let mut world = world();
    let app = world.connect_to(FEED, 10);
    world.run();
    let origin = world.opened.last().expect("an origin").0;
    push(&mut world, origin, "SSH-2.0-some\nmore\n");
    assert_eq!(world.kernel.socket(app).recv_queue(), 10);
    world.fail();

    world.pass(GRACE + SECOND);

    assert_eq!(accounts(&world), [(8, 0)]);
    assert_eq!(world.client.takes.kept(), 0);
}

#[test]
fn what_a_server_without_room_does_not_hold_counts_as_lost() {
    let mut server = registry_config(200);
    // Not the longest message.
    server.session.buffer_bytes = 50_000;
    let config = ClientConfig {
        policies: Policies::new(RULES, vec![policy(FEED)]),
        ..client_config()
    };
    let mut world = World::with(config, server);
    // The one asks before the server is known, the other behind.
    for _ in 0..2 {
        world.connect_to(FEED, 10);
        world.run();
        let origin = world.opened.last().expect("an origin").0;
        push(&mut world, origin, "one\ntwo\nthree\n");
    }
    world.fail();

    world.pass(GRACE + SECOND);

    assert_eq!(accounts(&world), [(4, 0), (4, 0)]);
    assert_eq!(world.client.takes.kept(), 0);
}

#[test]
fn another_user_gets_nothing_and_the_first_one_all_of_it() {
    let mut world = world();
    lose(&mut world, FEED, &lines(0..10));
    world.heal();

    for user in [Some(USER + 1), None] {
        world.user = user;
        let (app, origin) = open(&mut world, FEED);
        push(&mut world, origin, "new\n");
        assert_eq!(read(&mut world, app), "new\n", "{user:?}");
    }

    world.user = Some(USER);
    let (app, _) = open(&mut world, FEED);
    assert_eq!(read(&mut world, app), lines(0..10));
}

#[test]
fn another_destination_gets_nothing() {
    let mut world = world();
    lose(&mut world, FEED, &lines(0..10));
    world.heal();

    let (app, origin) = open(&mut world, BOTH);
    push(&mut world, origin, "new\n");

    assert_eq!(read(&mut world, app), "new\n");
    assert_eq!(world.registry.offers().len(), 1);
}

#[test]
fn of_a_user_who_is_not_known_nothing_is_held() {
    let mut world = world();
    world.user = None;
    lose(&mut world, FEED, &lines(0..10));
    world.pass(SERVER_EXTRA * 2);
    assert!(world.registry.offers().is_empty());
    world.heal();
    world.user = Some(USER);

    let (app, origin) = open(&mut world, FEED);
    push(&mut world, origin, "new\n");

    assert_eq!(read(&mut world, app), "new\n");
    assert!(world.registry.offers().is_empty());
}

#[test]
fn what_is_too_old_is_not_given() {
    let mut world = world();
    lose(&mut world, FEED, &lines(0..10));
    world.pass(SERVER_EXTRA * 2);
    assert_eq!(world.registry.offers().len(), 1);

    world.pass(RETAIN);
    assert!(world.registry.offers().is_empty());
    assert_eq!(world.client.takes.kept(), 0);
    world.heal();

    let (app, origin) = open(&mut world, FEED);
    push(&mut world, origin, "new\n");
    assert_eq!(read(&mut world, app), "new\n");
}

#[test]
fn who_disconnects_gets_nothing_of_what_was_held() {
    // In an outage, when the server does not hear of it.
    let mut world = world();
    lose(&mut world, FEED, &lines(0..10));
    world.client.disconnect(world.now);
    world.run();
    world.heal();
    let (app, origin) = open(&mut world, FEED);
    push(&mut world, origin, "new\n");
    assert_eq!(read(&mut world, app), "new\n");
    assert!(
        world.registry.offers().is_empty(),
        "it has heard of it since"
    );

    // And when it does.
    lose(&mut world, FEED, &lines(0..10));
    world.heal();
    let (other, _) = world.open();
    assert!(!world.registry.offers().is_empty());
    world.client.disconnect(world.now);
    world.run();
    assert_eq!(world.state(other), tcp::State::Closed);

    assert!(world.registry.offers().is_empty());
    assert_eq!(world.client.takes.kept(), 0);
    let (app, origin) = open(&mut world, FEED);
    push(&mut world, origin, "new\n");
    assert_eq!(read(&mut world, app), "new\n");
}

#[test]
fn a_disconnected_session_leaves_nothing() {
    let mut world = world();
    let (_, origin) = open(&mut world, FEED);
    world.fail();
    push(&mut world, origin, &lines(0..10));

    world.client.disconnect(world.now);
    world.run();
    world.heal();
    let (app, origin) = open(&mut world, FEED);
    push(&mut world, origin, "new\n");

    assert_eq!(read(&mut world, app), "new\n");
    assert!(world.registry.offers().is_empty());
}

#[test]
fn what_expires_again_and_again_is_handed_on_again() {
    let mut world = world();
    lose(&mut world, FEED, &lines(0..5));
    let mut expected = lines(0..5);
    for round in 1..4_u32 {
        world.heal();
        let (app, origin) = open(&mut world, FEED);
        world.fail();
        let more = lines(round * 10..round * 10 + 5);
        push(&mut world, origin, &more);
        expected += &more;
        world.pass(GRACE + SERVER_EXTRA + SECOND);
        assert_eq!(world.state(app), tcp::State::Closed);
        // What this one had already is not for the next.
        let got = String::from_utf8(world.read_silently(app, usize::MAX)).unwrap();
        assert!(expected.starts_with(&got));
        expected = expected[got.len()..].to_owned();
    }
    world.heal();

    let (app, _) = open(&mut world, FEED);

    assert_eq!(read(&mut world, app), expected);
    assert!(!expected.is_empty());
}

#[test]
fn several_connections_leave_theirs_in_the_order_in_which_they_were_lost() {
    let mut world = world();
    let (_, one) = open(&mut world, FEED);
    let (_, other) = open(&mut world, FEED);
    world.fail();
    push(&mut world, one, "a1\na2\nunfini");
    push(&mut world, other, "b1\n");
    world.pass(GRACE + SECOND);
    world.heal();

    let (app, _) = open(&mut world, FEED);

    assert_eq!(read(&mut world, app), "a1\na2\nb1\n");
    let tally = world.registry.offers().tally();
    assert_eq!((tally.handed_on, tally.lost), (9, 6));
}

#[test]
fn what_the_socket_still_had_to_read_comes_behind_it_up_to_one_buffer() {
    let mut world = world();
    let (_, origin) = open(&mut world, FEED);
    world.fail();
    let text = "x".repeat(999) + "\n";
    let all = text.repeat(1_500) + "end";
    push(&mut world, origin, &all);
    world.origin(origin).then = Some(End::Fin);
    world.run();
    // The session's buffer is full.
    assert!(world.origin(origin).to_send.len() > 500_000);
    world.pass(GRACE + SECOND);
    world.heal();

    let (app, _) = open(&mut world, FEED);

    // No more than one buffer is held, and then there is no end.
    let mut got = String::new();
    for _ in 0..10 {
        got += &read(&mut world, app);
    }
    assert!(all.starts_with(&got) && got.ends_with('\n'));
    assert_eq!(got.len(), 1_048_000);
    assert!(world.registry.offers().is_empty());
}

#[test]
fn a_message_that_the_origin_did_not_finish_is_not_glued_to_the_next() {
    for end in [End::Fin, End::Reset] {
        let mut world = world();
        let (_, origin) = open(&mut world, FEED);
        world.fail();
        push(&mut world, origin, "one\ntw");
        world.origin(origin).then = Some(end);
        world.run();
        world.pass(GRACE + SERVER_EXTRA + SECOND);
        world.heal();

        let (app, origin) = open(&mut world, FEED);
        push(&mut world, origin, "new\n");

        assert_eq!(read(&mut world, app), "one\nnew\n");
        let tally = world.registry.offers().tally();
        assert_eq!((tally.handed_on, tally.lost), (4, 2));
    }
}

#[test]
fn an_open_that_is_refused_leaves_what_is_held_for_the_next() {
    let mut world = world();
    lose(&mut world, FEED, &lines(0..10));
    world.heal();
    world.answers.insert(FEED, OpenError::Refused);
    let refused = world.connect(FEED);
    world.pass(SECOND);
    assert_eq!(world.state(refused), tcp::State::Closed);
    world.answers.clear();

    let (app, _) = open(&mut world, FEED);

    assert_eq!(read(&mut world, app), lines(0..10));
}

#[test]
fn connections_that_were_given_up_do_not_have_forgotten_what_an_idle_one_left() {
    let mut world = world();
    // It has got nothing before the outage.
    let (idle, origin) = open(&mut world, FEED);
    world.fail();
    push(&mut world, origin, &lines(0..1_000));
    world.pass(GRACE + SECOND);
    assert_eq!(world.state(idle), tcp::State::Closed);
    world.heal();
    world.open();
    world.quiet_ports.insert(FEED);
    for _ in 0..20 {
        let app = world.connect(FEED);
        assert_eq!(world.state(app), tcp::State::SynSent);
        world.kernel.sockets.remove(app);
        world.pass(SECOND * 4);
    }
    world.quiet_ports.clear();

    let (app, _) = open(&mut world, FEED);

    assert_eq!(read(&mut world, app), lines(0..1_000));
}

#[test]
fn a_connection_that_is_lost_as_it_is_opened_leaves_what_it_was_given() {
    let mut world = world();
    lose(&mut world, FEED, &lines(0..10));
    world.heal();
    world.open();
    // The server is asked, and its answer does not come through.
    world.quiet_ports.insert(FEED);
    let app = world.connect(FEED);
    assert_eq!(world.state(app), tcp::State::SynSent);
    let origin = accept_unheard(&mut world);
    assert_eq!(
        world.registry.offers().tally().handed_on,
        lines(0..10).len() as u64
    );
    world.pass(GRACE + SECOND);
    world.quiet_ports.clear();
    world.heal();
    world.pass(SECOND * 70);

    let (next, _) = if world.state(app) == tcp::State::Established {
        (app, origin)
    } else {
        open(&mut world, FEED)
    };

    assert_eq!(read(&mut world, next), lines(0..10));
}

#[test]
fn what_was_given_to_a_connection_without_memory_is_for_the_next() {
    let config = ClientConfig {
        policies: Policies::new(RULES, vec![policy(FEED)]),
        ..client_config()
    };
    let mut world = World::with_rings(config, registry_config(200), 65_536, 1);
    lose(&mut world, FEED, &lines(0..10));
    world.heal();
    let (other, _) = world.open();
    let app = world.connect(FEED);
    assert_eq!(world.state(app), tcp::State::SynSent);
    assert_eq!(world.registry.offers().tally().handed_on, 0);
    assert_eq!(world.registry.offers().len(), 1, "it is held again");
    world.kernel.sockets.remove(app);
    world.kernel.socket(other).abort();
    world.pass(SECOND * 5);

    let (app, _) = open(&mut world, FEED);

    assert_eq!(read(&mut world, app), lines(0..10));
}

#[test]
fn stored_and_handed_on_go_together() {
    let mut world = world();
    let (app, origin) = open(&mut world, BOTH);
    world.fail();
    push(&mut world, origin, &lines(0..10));
    world.write(app, b"up\n");
    world.pass(GRACE + SECOND);
    world.heal();
    world.pass(SECOND * 5);
    assert_eq!(world.delivered_to(BOTH), "up\n");

    let (app, _) = open(&mut world, BOTH);

    assert_eq!(read(&mut world, app), lines(0..10));
}

#[test]
fn an_application_that_ends_its_connection_leaves_nothing() {
    let mut world = world();
    let (app, origin) = open(&mut world, FEED);
    world.fail();
    push(&mut world, origin, &lines(0..10));
    world.kernel.socket(app).abort();
    world.run();
    world.pass(GRACE + SECOND);
    world.heal();

    let (app, origin) = open(&mut world, FEED);
    push(&mut world, origin, "new\n");

    assert_eq!(read(&mut world, app), "new\n");
}

/// The origin that was asked last accepts, and no word of it comes through.
fn accept_unheard(world: &mut World) -> OriginId {
    let origin = world.opened.last().expect("it was asked").0;
    world.fail();
    world.accept(origin);
    world.run();
    assert!(world.registry.offers().tally().handed_on > 0);
    origin
}

/// With `during_outage = "accept"`.
fn early_world() -> World {
    let early = Policy {
        during_outage: Some(DuringOutage::Accept),
        ..policy(FEED)
    };
    let config = ClientConfig {
        policies: Policies::new(RULES, vec![early]),
        ..client_config()
    };
    World::with(config, registry_config(200))
}

#[test]
fn what_an_early_connection_was_given_that_is_reset_before_its_answer_is_for_the_next() {
    let mut world = early_world();
    lose(&mut world, FEED, &lines(0..10));
    let app = world.connect(FEED);
    assert_eq!(world.state(app), tcp::State::Established);
    world.quiet_ports.insert(FEED);
    world.heal();
    world.pass(SECOND);
    accept_unheard(&mut world);

    world.kernel.socket(app).abort();
    world.run();
    world.quiet_ports.clear();
    world.heal();
    world.pass(SECOND * 2);
    let (app, _) = open(&mut world, FEED);

    assert_eq!(read(&mut world, app), lines(0..10));
}

#[test]
fn what_one_was_given_as_it_was_given_up_outlives_those_that_got_no_answer() {
    let mut world = world();
    lose(&mut world, FEED, &lines(0..1_000));
    world.heal();
    world.open();
    world.quiet_ports.insert(FEED);
    let app = world.connect(FEED);
    accept_unheard(&mut world);
    // The answer is on its way when it is given up.
    world.kernel.sockets.remove(app);
    world.pass(SECOND * 4);
    world.heal();
    world.pass(SECOND * 4);
    for _ in 0..20 {
        let app = world.connect(FEED);
        world.kernel.sockets.remove(app);
        world.pass(SECOND * 4);
    }
    world.quiet_ports.clear();

    let (app, _) = open(&mut world, FEED);

    assert_eq!(read(&mut world, app), lines(0..1_000));
}

#[test]
fn with_accept_it_comes_before_what_the_origin_says_too() {
    let mut world = early_world();
    lose(&mut world, FEED, &lines(0..10));
    let app = world.connect(FEED);
    assert_eq!(world.state(app), tcp::State::Established);
    world.write(app, b"hello\n");
    world.heal();
    world.pass(SECOND * 2);
    let origin = world.opened.last().expect("an origin").0;
    assert_eq!(world.origin(origin).received, b"hello\n");
    push(&mut world, origin, "new\n");

    assert_eq!(read(&mut world, app), lines(0..10) + "new\n");
}
