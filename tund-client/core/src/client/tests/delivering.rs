//! What was stored is delivered, in order.

use super::storing::{EARLY, LOG, RETAIN, config, outlast, world};
use super::world::{GRACE, Network, SECOND, World, registry_config};
use crate::client::{ClientEvent, State};
use crate::spool::{Dead, FileId, FileState, Found};
use smoltcp::socket::tcp;
use std::time::Duration;
use tund_session::wire::frame::{DeniedBy, OpenError};

#[test]
fn an_outage_within_a_delivery_doubles_nothing() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    let line = [b"x".repeat(999), b"\n".to_vec()].concat();
    for _ in 0..200 {
        world.write(app, &line);
    }
    world.pass(GRACE + SECOND);
    world.stall_new_origins = true;
    world.heal();
    world.pass(SECOND * 2);
    assert_eq!(
        world.client.spool_rows(None, 9, world.now)[0].state,
        FileState::Delivering
    );

    world.stall_new_origins = false;
    outlast(&mut world);
    assert_eq!(
        world.client.spool_rows(None, 9, world.now)[0].state,
        FileState::Waiting
    );
    world.heal();
    world.pass(SECOND * 40);

    assert_eq!(
        world.delivered_to(LOG),
        String::from_utf8(line.repeat(200)).unwrap()
    );
    assert!(world.disk.files.is_empty());
}

#[test]
fn files_for_one_destination_go_one_after_the_other_the_oldest_first() {
    let mut world = world();
    let apps = [world.connect(LOG), world.connect(LOG)];
    world.fail();
    for (app, text) in apps.into_iter().zip(["one\n", "two\n"]) {
        world.write(app, text.as_bytes());
    }
    world.pass(GRACE + SECOND);
    assert_eq!(world.disk.texts(), ["one\n", "two\n"]);
    world.stall_new_origins = true;
    world.heal();
    world.pass(SECOND);
    assert_eq!(world.half_records.len(), 1, "one at a time");

    world.stall_new_origins = false;
    let half: Vec<_> = world.half_records.keys().copied().collect();
    world.woken.extend(half);
    world.pass(SECOND);

    assert_eq!(world.delivered_to(LOG), "one\ntwo\n");
}

#[test]
fn a_destination_that_refuses_is_tried_again_ever_more_rarely() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    world.write(app, b"one\n");
    world.pass(GRACE + SECOND);
    world.answers.insert(LOG, OpenError::Refused);
    world.heal();
    world.pass(SECOND * 5);
    assert_eq!(
        world.client.spool_rows(None, 9, world.now)[0].state,
        FileState::Waiting
    );

    let mut pauses = Vec::new();
    for _ in 0..6 {
        let next = world.client.spool_rows(None, 9, world.now)[0]
            .retry_at
            .expect("a pause");
        pauses.push(
            next.saturating_duration_since(world.now)
                .as_secs()
                .div_ceil(60),
        );
        world.pass(next.saturating_duration_since(world.now) + SECOND * 5);
    }
    assert_eq!(pauses, [5, 10, 20, 40, 60, 60]);

    world.answers.clear();
    assert!(world.client.retry_file(FileId(1), world.now));
    world.pass(SECOND * 5);
    assert_eq!(world.delivered_to(LOG), "one\n");
}

#[test]
fn what_the_server_denies_is_kept_for_a_person() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    world.write(app, b"one\n");
    world.pass(GRACE + SECOND);
    let denied = OpenError::Denied(DeniedBy::Deny);
    world.answers.insert(LOG, denied);
    world.heal();
    world.pass(SECOND * 5);

    assert_eq!(world.disk.dead.get(&FileId(1)), Some(&Dead::Denied));
    assert_eq!(world.client.spool_totals().1, 1);

    world.answers.clear();
    world.pass(SECOND * 7200);
    assert!(world.delivered.is_empty(), "nobody asked for it");
    assert!(world.client.retry_file(FileId(1), world.now));
    world.pass(SECOND * 5);
    assert_eq!(world.delivered_to(LOG), "one\n");
    assert!(world.disk.dead.is_empty());
}

#[test]
fn what_nobody_could_deliver_in_time_is_kept_for_a_person_and_can_be_dropped() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    world.write(app, b"one\n");
    world.pass(GRACE + RETAIN - SECOND * 5);
    assert!(world.disk.dead.is_empty());

    world.pass(SECOND * 10);

    assert_eq!(world.disk.dead.get(&FileId(1)), Some(&Dead::Overdue));
    assert!(world.client.drop_file(FileId(1), world.now));
    assert!(!world.client.drop_file(FileId(1), world.now));
    world.run();
    assert!(world.disk.files.is_empty());
}

#[test]
fn a_file_whose_time_ends_while_it_is_delivered_is_kept_for_a_person_if_that_fails() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    world.write(app, b"one\n");
    world.pass(GRACE + RETAIN - SECOND * 30);
    world.stall_new_origins = true;
    world.heal();
    world.pass(SECOND * 60);
    assert_eq!(
        world.client.spool_rows(None, 9, world.now)[0].state,
        FileState::Delivering
    );

    outlast(&mut world);

    assert_eq!(world.disk.dead.get(&FileId(1)), Some(&Dead::Overdue));
}

#[test]
fn a_damaged_file_is_delivered_as_far_as_it_goes() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    let line = [b"x".repeat(9_999), b"\n".to_vec()].concat();
    for _ in 0..3 {
        world.write(app, &line);
    }
    world.pass(GRACE + SECOND);
    world.disk.damaged_from = Some(1);

    world.heal();
    world.pass(SECOND * 5);

    assert_eq!(world.delivered_to(LOG).len(), 10_000);
    assert_eq!(world.disk.dead.get(&FileId(1)), Some(&Dead::Damaged));
}

#[test]
fn with_accept_an_application_connects_and_sends_during_an_outage() {
    let mut world = world();
    world.open();
    world.fail();
    world.pass(SECOND * 2);

    let app = world.connect(EARLY);
    assert_eq!(world.state(app), tcp::State::Established);
    world.write(app, b"one\n");
    world.heal();
    world.pass(SECOND * 2);

    let origin = world.opened.last().unwrap().0;
    assert_eq!(world.origins[&origin].received, b"one\n");
    world.origin(origin).to_send = b"answer".to_vec();
    world.run();
    assert_eq!(world.read(app), b"answer");
}

#[test]
fn with_accept_and_without_any_session_what_was_sent_is_stored_after_grace() {
    let mut world = world();
    world.network = Network::Silent;
    let app = world.connect(EARLY);
    assert_eq!(world.state(app), tcp::State::Established);
    world.write(app, b"one\n");

    world.pass(GRACE + SECOND);
    assert_eq!(world.state(app), tcp::State::Closed);
    assert_eq!(world.disk.texts(), ["one\n"]);
    world.heal();
    world.pass(SECOND * 15);

    assert_eq!(world.delivered_to(EARLY), "one\n");
}

#[test]
fn what_was_accepted_and_is_then_refused_is_stored() {
    let mut world = world();
    world.open();
    world.fail();
    world.pass(SECOND * 2);
    let app = world.connect(EARLY);
    world.write(app, b"one\n");
    world.answers.insert(EARLY, OpenError::Refused);

    world.heal();
    world.pass(SECOND * 2);

    assert_eq!(world.state(app), tcp::State::Closed);
    assert_eq!(world.disk.texts(), ["one\n"]);
}

#[test]
fn what_was_found_at_the_start_is_delivered_without_being_asked_for() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    world.write(app, b"one\n");
    world.pass(GRACE + SECOND);
    let (head, records) = world.disk.files[&FileId(1)].clone();

    let mut next = self::world();
    next.disk.files.insert(FileId(1), (head, records));
    let found = Found {
        file: FileId(1),
        head,
        dead: None,
        age: Duration::ZERO,
        keep_for: SECOND * 60,
    };
    next.client.load_spool(&[found], next.now);
    next.pass(SECOND * 2);

    assert_eq!(next.delivered_to(LOG), "one\n");
    assert_eq!(next.client.state(), State::Attached);
}

#[test]
fn a_server_that_does_not_deliver_is_told_of_and_not_asked_again_and_again() {
    let mut server = registry_config(200);
    server.session.capabilities = 0;
    let mut world = World::with(config(), server);
    world.network = Network::Silent;
    let app = world.connect(EARLY);
    world.write(app, b"one\n");
    world.pass(GRACE + SECOND);
    world.heal();
    world.pass(SECOND * 15);

    let told = world.events.iter();
    let told = told.filter(|(_, event)| *event == ClientEvent::Undeliverable);
    assert_eq!(told.count(), 1);
    let dials = world.dials.len();
    world.pass(SECOND * 7200);
    assert!(
        world.dials.len() < dials + 3,
        "{}",
        world.dials.len() - dials
    );
    assert_eq!(world.client.state(), State::Ready);
    // And nobody waits behind it.
    world.connect(EARLY);
    assert_eq!(world.opened.len(), 1);
    assert_eq!(world.disk.files.len(), 1);
}

#[test]
fn an_origin_that_resets_is_tried_again_later() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    world.write(app, b"one\n");
    world.pass(GRACE + SECOND);
    world.stall_new_origins = true;
    world.heal();
    world.pass(SECOND);

    let (session, flow) = *world.half_records.keys().next().unwrap();
    let now = world.now;
    world.registry.with(session, now, |s| {
        s.reset(flow, tund_session::wire::frame::FlowCode::PeerReset, now);
    });
    world.half_records.clear();
    world.run();
    let row = world.client.spool_rows(None, 9, world.now)[0];
    assert_eq!(row.state, FileState::Waiting);
    assert!(row.retry_at.is_some());
    world.stall_new_origins = false;
    world.pass(SECOND * 301);

    assert_eq!(world.delivered_to(LOG), "one\n");
}

#[test]
fn a_file_that_cannot_be_read_at_present_is_tried_again() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    world.write(app, b"one\n");
    world.pass(GRACE + SECOND);
    world.disk.is_unreadable = true;
    world.heal();
    world.pass(SECOND);
    let row = world.client.spool_rows(None, 9, world.now)[0];
    assert_eq!(row.state, FileState::Waiting);
    world.disk.is_unreadable = false;

    world.pass(SECOND * 300);

    assert_eq!(world.delivered_to(LOG), "one\n");
}
