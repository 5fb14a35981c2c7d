//! New connections wait behind what is stored for their destination, as long as it moves.

use super::storing::{EARLY, LOG, world};
use super::world::{GRACE, Network, SECOND, World};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use tund_session::wire::frame::OpenError;

/// A line is stored, and the network still away.
fn with_old() -> World {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    world.write(app, b"old\n");
    world.pass(GRACE + SECOND);
    world
}

/// A line is stored, and somebody was accepted behind it; there has been no network yet.
fn accepted_behind() -> (World, SocketHandle) {
    let mut world = world();
    world.network = Network::Silent;
    let first = world.connect(EARLY);
    world.write(first, b"one\n");
    world.pass(GRACE + SECOND);
    let second = world.connect(EARLY);
    assert_eq!(world.state(second), tcp::State::Established);
    (world, second)
}

#[test]
fn a_new_connection_waits_behind_what_is_stored_for_its_destination() {
    let mut world = with_old();
    world.stall_new_origins = true;
    world.heal();
    world.pass(SECOND);

    let (next, other) = (world.connect(LOG), world.connect(80));
    assert_eq!(world.state(next), tcp::State::SynSent);
    assert_eq!(world.state(other), tcp::State::Established);
    world.stall_new_origins = false;
    let half: Vec<_> = world.half_records.keys().copied().collect();
    world.woken.extend(half);
    world.run();

    assert_eq!(world.delivered_to(LOG), "old\n");
    assert_eq!(world.state(next), tcp::State::Established);
    assert_eq!(world.client.behind.kept(), 0);
}

#[test]
fn a_new_connection_does_not_wait_for_a_destination_that_has_failed() {
    let mut world = with_old();
    world.answers.insert(LOG, OpenError::TimedOut);
    world.heal();
    world.pass(SECOND * 5);
    world.answers.clear();

    let next = world.connect(LOG);

    assert_eq!(world.state(next), tcp::State::Established);
    // And it shows that the origin is there again.
    world.pass(SECOND);
    assert_eq!(world.delivered_to(LOG), "old\n");
}

#[test]
fn a_new_connection_waits_while_the_server_has_no_room_but_not_for_ever() {
    let mut world = with_old();
    world.answers.insert(LOG, OpenError::Exhausted);
    world.heal();
    world.pass(SECOND * 2);

    let next = world.connect(LOG);
    world.pass(SECOND * 250);
    assert_eq!(world.state(next), tcp::State::SynSent);
    world.pass(SECOND * 100);
    world.answers.clear();
    world.pass(SECOND * 10);

    assert_eq!(world.state(next), tcp::State::Established);
}

#[test]
fn a_delivery_that_does_not_move_holds_nobody_for_more_than_five_minutes() {
    let mut world = with_old();
    world.stall_new_origins = true;
    world.heal();
    world.pass(SECOND * 5);
    // An outage is no time.
    world.fail();
    world.pass(GRACE / 2);
    world.heal();
    let next = world.connect(LOG);

    world.pass(SECOND * 250);
    assert_eq!(world.state(next), tcp::State::SynSent);
    world.pass(SECOND * 100);

    assert_eq!(world.state(next), tcp::State::Established);
    assert_eq!(world.delivered_to(LOG), "");
    // That the origin took a connection proves nothing: the next one does not wait.
    let later = world.connect(LOG);
    assert_eq!(world.state(later), tcp::State::Established);
    world.stall_new_origins = false;
    world.pass(SECOND * 320);
    assert_eq!(world.delivered_to(LOG), "old\n");
}

/// Nobody has read anything, so that FIN is told at once, while there is no flow.
#[test]
fn an_application_that_ends_behind_stored_files_without_a_byte_ends_at_the_origin_too() {
    let (mut world, second) = accepted_behind();
    world.kernel.socket(second).close();
    world.run();

    world.heal();
    world.pass(SECOND * 15);

    assert_eq!(world.delivered_to(EARLY), "one\n");
    let origin = world.opened.last().unwrap().0;
    assert!(world.origins[&origin].has_fin);
}

#[test]
fn what_is_accepted_behind_stored_files_comes_after_them() {
    let (mut world, second) = accepted_behind();
    world.write(second, b"two\n");
    world.heal();
    world.pass(SECOND * 15);

    assert_eq!(world.delivered_to(EARLY), "one\n");
    let origin = world.opened.last().unwrap().0;
    assert_eq!(world.origins[&origin].received, b"two\n");
    assert_eq!(world.state(second), tcp::State::Established);
}

#[test]
fn what_waits_behind_stored_files_is_stored_itself_after_grace() {
    let mut world = world();
    world.network = Network::Silent;
    for text in [&b"one\n"[..], b"two\n", b"three\n"] {
        let app = world.connect(EARLY);
        world.write(app, text);
        world.pass(GRACE + SECOND);
        assert_eq!(world.state(app), tcp::State::Closed);
    }

    assert_eq!(world.disk.texts(), ["one\n", "two\n", "three\n"]);
    assert_eq!(world.client.behind.kept(), 0);
    world.heal();
    world.pass(SECOND * 15);
    assert_eq!(world.delivered_to(EARLY), "one\ntwo\nthree\n");
}
