//! How connections end: each end is told what happened, and nothing is left behind.

use super::server::{End, OriginId};
use super::world::{SECOND, World};
use crate::client::State;
use crate::netstack::tests::world::{Collector, pattern};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use std::time::Duration;
use tund_session::EndReason;
use tund_session::wire::frame::CloseCode;

#[test]
fn what_an_application_sent_before_its_reset_arrives_before_it() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.write(app, &pattern(300_000, 5));

    world.kernel.socket(app).abort();
    world.run();

    assert_eq!(world.origin(id).received, pattern(300_000, 5));
    assert!(world.origin(id).reset && !world.origin(id).has_fin);
    assert_eq!(world.client.flows().kept(), 0);
    assert_eq!(world.client.netstack().connections(), 0);
}

#[test]
fn what_an_application_sent_during_an_outage_arrives_before_its_reset() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.fail();
    world.write(app, &pattern(100_000, 6));
    world.kernel.socket(app).abort();
    world.pass(SECOND * 5);

    world.heal();
    world.pass(SECOND);

    assert_eq!(world.origin(id).received, pattern(100_000, 6));
    assert!(world.origin(id).reset);
}

/// An application whose origin sends much and then resets.
fn sent_and_reset(bytes: usize) -> (World, SocketHandle, OriginId) {
    let mut world = World::new();
    let app = world.connect_to(80, 4096);
    world.run();
    let id = world.opened[0].0;
    world.origin(id).to_send = pattern(bytes, 7);
    world.origin(id).then = Some(End::Reset);
    world.run();
    (world, app, id)
}

#[test]
fn a_slow_reader_gets_everything_and_then_the_reset() {
    let (mut world, app, _) = sent_and_reset(3_000_000);
    let mut got = Vec::new();

    for _ in 0..10_000 {
        let piece = world.read_silently(app, 9000);
        got.extend(piece);
        world.pass(Duration::from_millis(2));
        if got.len() == 3_000_000 {
            break;
        }
    }
    world.pass(SECOND);

    assert_eq!(got, pattern(3_000_000, 7));
    assert_eq!(world.state(app), tcp::State::Closed);
    assert_eq!(world.client.flows().kept(), 0);
}

#[test]
fn a_stuck_reader_does_not_hold_a_reset_for_ever() {
    // More than its kernel takes, no more than the credit it has: else the rest is waited for.
    let (mut world, app, _) = sent_and_reset(16_000);
    assert_eq!(world.state(app), tcp::State::Established);

    world.pass(SECOND * 3);
    assert_eq!(world.state(app), tcp::State::Established);
    world.pass(SECOND * 4);

    assert_eq!(world.state(app), tcp::State::Closed);
    assert_eq!(world.client.flows().kept(), 0);
    assert_eq!(world.registry.lent(), 0);
}

/// What the application had written waits at the server and in the client's session; nothing waits
/// in the ring of connection A, since its window promises only what the session takes.
#[test]
fn a_stuck_origin_does_not_hold_an_applications_reset_for_ever() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.origin(id).is_stalled = true;
    while world.write(app, &pattern(50_000, 3)) > 0 {
        world.run();
    }
    assert!(!world.origin(id).reset);

    world.kernel.socket(app).abort();
    world.pass(SECOND * 3);
    assert!(!world.origin(id).reset);
    world.pass(SECOND * 4);

    assert!(world.origin(id).reset);
    assert_eq!(world.client.flows().kept(), 0);
    assert_eq!(world.client.netstack().connections(), 0);
    assert_eq!(world.registry.lent(), 0);
}

#[test]
fn an_empty_connection_is_reset_as_soon_as_the_origin_does() {
    let (mut world, app, _) = sent_and_reset(0);
    assert_eq!(world.state(app), tcp::State::Closed);
    assert_eq!(world.client.flows().kept(), 0);
    assert_eq!(world.client.session.as_ref().unwrap().flow_count(), 0);
}

#[test]
fn a_reset_behind_the_fin_reaches_the_application_too() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.origin(id).to_send = b"end".to_vec();
    world.origin(id).then = Some(End::Fin);
    world.run();
    assert_eq!(world.state(app), tcp::State::CloseWait);

    world.origin(id).then = Some(End::Reset);
    world.run();

    assert_eq!(world.state(app), tcp::State::Closed);
    assert_eq!(world.client.flows().kept(), 0);
}

#[test]
fn disconnect_resets_every_application_and_tells_the_server() {
    let mut world = World::new();
    let apps = [world.open(), world.open(), world.open()];
    world.write(apps[0].0, &pattern(1000, 1));
    world.stall_new_origins = true;
    let (stalled, _) = world.open();
    world.write(stalled, &pattern(5000, 2));

    world.client.disconnect(world.now);
    world.run();

    for (app, id) in apps {
        assert_eq!(world.state(app), tcp::State::Closed);
        assert!(world.origin(id).reset);
    }
    assert_eq!(world.client.state(), State::Ready);
    assert_eq!(world.link_count(), 0);
    assert_eq!(world.registry.sessions().count(), 0);
    assert!(world.client.parting.is_empty());
    let asked = EndReason::Local(CloseCode::Asked);
    assert_eq!(
        world.ended(),
        Some((asked, 4, 5000)),
        "flows, and bytes the origin never took"
    );
    world.pass(SECOND * 10);
    assert_eq!(world.client.state(), State::Ready, "nobody asked again");
    world.open();
}

#[test]
fn disconnect_while_detached_ends_at_once_here() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.fail();

    world.client.disconnect(world.now);
    world.run();

    assert_eq!(world.state(app), tcp::State::Closed);
    assert_eq!(world.client.state(), State::Ready);
    assert_eq!(world.client.dialer.poll_timeout(), None);
    // The next session ends the old one at the server.
    world.heal();
    world.open();
    assert!(world.origin(id).reset);
}

#[test]
fn an_application_that_asks_in_the_very_turn_of_the_end_gets_the_next_session() {
    let mut world = World::new();
    let (_, id) = world.open();
    let app = world.connect_to(80, 65_536);

    world.client.disconnect(world.now);
    world.run();

    assert_eq!(world.state(app), tcp::State::Established);
    assert_ne!(world.client.session_id(), Some(id.0));
}

#[test]
fn a_session_ended_by_the_server_resets_applications() {
    let mut world = World::new();
    let (app, id) = world.open();
    let now = world.now;

    world.registry.close(id.0, CloseCode::Asked, now);
    world.run();

    assert_eq!(world.state(app), tcp::State::Closed);
    assert_eq!(world.client.state(), State::Ready);
    assert_eq!(world.link_count(), 0);
}

/// As when the server is restarted for an update: applications that still waited for their origin
/// were told ECONNREFUSED.
#[test]
fn a_server_that_ends_the_session_serves_who_still_waits_in_the_next() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.quiet_ports.insert(81);
    let waiting = world.connect(81);
    assert_eq!(world.opened.len(), 2, "its origin was asked");
    world.quiet_ports.clear();
    let now = world.now;

    world.registry.close(id.0, CloseCode::Asked, now);
    world.run();

    assert_eq!(world.state(app), tcp::State::Closed);
    assert_eq!(world.state(waiting), tcp::State::Established);
    assert_ne!(world.client.session_id(), Some(id.0));
}

/// Whoever took the key off the list wants nobody served.
#[test]
fn a_key_that_was_removed_resets_who_still_waits() {
    let mut world = World::new();
    let (_, id) = world.open();
    world.quiet_ports.insert(81);
    let waiting = world.connect(81);
    let now = world.now;

    world.registry.close(id.0, CloseCode::KeyRemoved, now);
    world.run();

    assert_eq!(world.state(waiting), tcp::State::Closed);
    assert_eq!(world.client.state(), State::Ready);
}

#[test]
fn the_last_words_of_two_sessions_in_a_row_are_both_heard() {
    let mut world = World::new();
    let mut sink = Collector::default();
    let mut links = Vec::new();
    for _ in 0..2 {
        world.open();
        let link = world.client.links().next().unwrap();
        world.hold(link, true);
        links.push(link);
        world.client.disconnect(world.now);
        world.client.flush(world.now, &mut sink);
        assert!(!world.client.parting.is_empty());
        // The driver waits for room on the link.
        while world.client.poll_event().is_some() {}
    }
    assert!(world.registry.sessions().count() > 0);

    links.iter().for_each(|link| world.hold(*link, false));
    world.run();

    assert_eq!(world.registry.sessions().count(), 0);
    assert!(world.client.parting.is_empty());
}
