//! What is left behind grace is stored, and delivered once there is a network again.

use super::world::{GRACE, RULES, SECOND, USER, World, client_config, registry_config};
use crate::account::HowEnded;
use crate::client::{ClientConfig, ClientEvent, NotStored};
use crate::netstack::tests::world::ORIGIN_V4;
use crate::policy::{DuringOutage, Policies, Policy, Store};
use crate::spool::{Dead, FileId, Found, Head};
use smoltcp::socket::tcp;
use std::time::Duration;
use tund_session::wire::frame::Framing;

/// Stored, line by line.
pub(super) const LOG: u16 = 514;
/// The same, and accepted during an outage.
pub(super) const EARLY: u16 = 601;
pub(super) const RETAIN: Duration = Duration::from_secs(3 * 3600);

pub(super) fn policy(port: u16, during_outage: Option<DuringOutage>) -> Policy {
    Policy {
        network: ORIGIN_V4.into(),
        port: Some(port),
        grace: None,
        during_outage,
        store: Some(Store {
            framing: Framing::Line,
            retain: RETAIN,
        }),
        hand_off: None,
    }
}

pub(super) fn config() -> ClientConfig {
    let early = Some(DuringOutage::Accept);
    let some = vec![policy(LOG, None), policy(EARLY, early)];
    ClientConfig {
        policies: Policies::new(RULES, some),
        ..client_config()
    }
}

pub(super) fn world() -> World {
    World::with(config(), registry_config(200))
}

/// What became of what policies wanted stored: bytes stored, bytes lost, why.
pub(super) fn stored(world: &World) -> Vec<(u64, u64, Option<NotStored>)> {
    let events = world.events.iter().filter_map(|(_, event)| {
        let ClientEvent::Stored {
            stored_bytes,
            lost_bytes,
            why,
            ..
        } = event
        else {
            return None;
        };
        Some((*stored_bytes, *lost_bytes, *why))
    });
    events.collect()
}

/// The network is away for longer than grace; then it is back.
pub(super) fn outlast(world: &mut World) {
    world.fail();
    world.pass(GRACE + SECOND);
}

#[test]
fn lines_that_are_left_behind_grace_are_stored_and_then_delivered_in_order() {
    let mut world = world();
    let app = world.connect(LOG);
    world.write(app, b"before\n");
    world.fail();
    world.write(app, b"one\ntwo\n");
    world.write(app, b"three\nunfini");

    world.pass(GRACE + SECOND);

    assert_eq!(world.state(app), tcp::State::Closed);
    assert_eq!(world.disk.texts(), ["one\ntwo\nthree\n"]);
    assert_eq!(stored(&world), [(14, 6, None)]);
    let (head, _) = &world.disk.files[&FileId(1)];
    assert_eq!((head.user, head.framing), (USER, Framing::Line));

    world.heal();
    world.pass(SECOND * 5);

    assert_eq!(world.delivered_to(LOG), "one\ntwo\nthree\n");
    assert!(world.disk.files.is_empty());
    assert_eq!(world.client.spool_totals(), (0, 0, 0));
}

#[test]
fn the_account_of_a_stored_flow_says_what_was_stored_and_what_was_lost() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    world.write(app, b"one\nunfini");

    world.pass(GRACE + SECOND);

    let account = world.client.flows().ended().last().expect("an account");
    assert_eq!(account.how, HowEnded::Expired);
    assert_eq!(
        (account.up_bytes, account.stored_bytes, account.lost.up),
        (10, 4, 6)
    );
}

#[test]
fn the_application_is_reset_only_when_its_bytes_are_on_the_disk() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    world.write(app, b"one\n");
    world.disk.is_slow = true;

    world.pass(GRACE + SECOND);
    assert_eq!(world.state(app), tcp::State::Established);
    // What comes meanwhile is stored behind it.
    world.write(app, b"two\n");
    world.finish_writing();

    assert_eq!(world.state(app), tcp::State::Closed);
    let account = world.client.flows().ended().last().expect("an account");
    assert_eq!((account.up_bytes, account.stored_bytes), (8, 8));
    assert_eq!(world.disk.texts(), ["one\n", "two\n"]);
    assert_eq!(stored(&world), [(8, 0, None)]);
    let heads: Vec<_> = world.disk.files.values().map(|(head, _)| *head).collect();
    assert_eq!(heads[0].flow, heads[1].flow);
    assert_eq!(heads[0].end, heads[1].start);
}

#[test]
fn fin_ends_the_last_line() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    world.write(app, b"one\nlast");
    world.kernel.socket(app).close();
    world.run();

    world.pass(GRACE + SECOND);

    assert_eq!(world.disk.texts(), ["one\nlast"]);
    let last = world.disk.files[&FileId(1)].1.last();
    assert!(last.is_some_and(|record| record.fin));
    assert_eq!(stored(&world), [(8, 0, None)]);
}

#[test]
fn what_an_application_sent_before_it_reset_its_connection_is_stored() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    world.write(app, b"one\nunfini");
    world.kernel.socket(app).abort();
    world.run();

    world.pass(GRACE + SECOND);

    assert_eq!(world.disk.texts(), ["one\n"]);
    assert_eq!(stored(&world), [(4, 6, None)]);
}

#[test]
fn a_disk_that_takes_nothing_degrades_to_reset() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    world.write(app, b"one\n");
    world.disk.is_full = true;

    world.pass(GRACE + SECOND);

    assert_eq!(world.state(app), tcp::State::Closed);
    assert_eq!(stored(&world), [(0, 4, Some(NotStored::Failed))]);
    assert_eq!(world.client.spool_totals(), (0, 0, 0));
}

#[test]
fn a_user_has_a_quarter_of_the_spool() {
    let mut config = config();
    // The head of a file, that of a record, the seal, a line, a checksum.
    let one = 108 + 21 + 48 + 4 + 4;
    config.spool_bytes = 4 * one;
    let mut world = World::with(config, registry_config(200));
    let apps = [world.connect(LOG), world.connect(LOG)];
    world.fail();
    for app in apps {
        world.write(app, b"one\n");
    }

    world.pass(GRACE + SECOND);

    let mut all = stored(&world);
    all.sort_by_key(|(bytes, ..)| *bytes);
    assert_eq!(all, [(0, 4, Some(NotStored::Full)), (4, 0, None)]);
}

#[test]
fn a_conversation_is_never_stored() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    world.write(app, b"SSH-2.0-x\nmore\n");

    world.pass(GRACE + SECOND);

    assert_eq!(world.state(app), tcp::State::Closed);
    assert!(world.disk.files.is_empty());
}

#[test]
fn what_proves_to_be_no_run_of_messages_only_in_the_ring_is_lost_and_counted() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    let line = [&b"x".repeat(20_000)[..], b"\n"].concat();
    world.write(app, &[line, b"y".repeat(30_000)].concat());
    world.disk.is_slow = true;
    world.pass(GRACE + SECOND);
    world.write(app, &b"y".repeat(70_000));
    world.finish_writing();

    assert_eq!(world.state(app), tcp::State::Closed);
    let [(20_001, lost, Some(NotStored::Opaque))] = stored(&world)[..] else {
        panic!("{:?}", stored(&world));
    };
    assert!(lost > 65_536, "{lost}");
}

#[test]
fn nothing_is_stored_when_the_user_disconnects() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    world.write(app, b"one\n");

    world.client.disconnect(world.now);
    world.run();

    assert_eq!(world.state(app), tcp::State::Closed);
    assert!(world.disk.files.is_empty());
    assert_eq!(
        world.ended().map(|(_, flows, lost)| (flows, lost)),
        Some((1, 4))
    );
}

#[test]
fn a_restarted_server_has_what_is_left_stored_and_delivered() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    world.write(app, b"one\n");
    world.pass(SECOND);

    world.registry = tund_server_core::registry::Registry::new(registry_config(201));
    world.heal();
    world.pass(SECOND * 5);

    assert_eq!(world.state(app), tcp::State::Closed);
    assert_eq!(world.delivered_to(LOG), "one\n");
    assert!(world.disk.files.is_empty());
}

#[test]
fn the_small_files_of_one_user_leave_room_for_those_of_others() {
    let mut first = world();
    let app = first.connect(LOG);
    first.fail();
    first.write(app, b"one\n");
    first.pass(GRACE + SECOND);
    let (head, _) = first.disk.files[&FileId(1)].clone();
    let of = |user, name| Found {
        file: FileId(name),
        head: Head { user, ..head },
        dead: Some(Dead::Denied),
        age: Duration::ZERO,
        keep_for: RETAIN,
    };
    for (user, texts) in [(USER + 1, &["mine\n"][..]), (USER, &[])] {
        let mut world = world();
        let found: Vec<_> = (1..=2_500).map(|name| of(user, name)).collect();
        world.client.load_spool(&found, world.now);
        let app = world.connect(LOG);
        world.fail();
        world.write(app, b"mine\n");

        world.pass(GRACE + SECOND);

        assert_eq!(world.disk.texts(), texts);
    }
}

#[test]
fn what_the_disk_has_not_taken_by_the_end_of_the_daemon_is_reset_and_counted() {
    let mut world = world();
    let app = world.connect(LOG);
    world.fail();
    world.write(app, b"one\n");
    world.disk.is_slow = true;
    world.pass(GRACE + SECOND);
    assert_eq!(world.state(app), tcp::State::Established);

    world.client.give_up_storing();
    world.run();

    assert_eq!(world.state(app), tcp::State::Closed);
    assert_eq!(stored(&world), [(0, 4, Some(NotStored::Failed))]);
}
