//! Ends of sessions: what is remembered of them, for whom, how long, and over restarts.

use super::attach::{false_resume, rejected_by_hand};
use super::world::{GRACE, NANOSECOND, SECOND, START, World, config, key, session_config};
use crate::registry::{
    ClientKey, End, OFFSETS, OFFSETS_OF_ONE, REMEMBERED_FOR, Registry, RegistryConfig, TOMBSTONES,
    TOMBSTONES_PER_KEY, Tombstone,
};
use std::time::Duration;
use tund_session::wire::codec::{self, MAX_RELEASED};
use tund_session::wire::frame::{CloseCode, Frame, RejectReason};
use tund_session::{EndReason, FlowId, Offset, Outbox, SessionId};

fn id(n: usize) -> SessionId {
    let n = u64::try_from(n).unwrap();
    SessionId(std::array::from_fn(|i| n.to_be_bytes()[i % 8]))
}

fn tombstone(n: usize, of: ClientKey) -> Tombstone {
    Tombstone {
        session: id(n),
        key: of,
        end: End::Expired,
        released: Vec::new(),
    }
}

/// One that lists so many flows.
fn long(n: usize, of: ClientKey, count: usize) -> Tombstone {
    let flows = 1..=u64::try_from(count).unwrap();
    Tombstone {
        released: flows.map(|n| (FlowId(n), Offset(n * 10))).collect(),
        ..tombstone(n, of)
    }
}

fn numbered(n: usize) -> ClientKey {
    ClientKey(std::array::from_fn(|i| n.to_be_bytes()[i % 8]))
}

/// What the driver would have on disk.
fn written(registry: &mut Registry, world: &World) -> Vec<(Tombstone, Duration)> {
    let mut all = Vec::new();
    while let Some((tombstone, age)) = registry.poll_tombstone(world.now) {
        all.push((tombstone.clone(), age));
    }
    all
}

/// The server is killed, and started again with what was written down, `later`.
fn restart(world: &mut World, later: Duration) {
    let mut old = std::mem::replace(
        &mut world.registry,
        Registry::new(RegistryConfig {
            session: session_config(201),
            ..config()
        }),
    );
    let records = written(&mut old, world);
    for (tombstone, age) in records {
        world.registry.restore(tombstone, age + later, START);
    }
}

/// A session whose one flow came 600 bytes far, and then expired.
fn expired(world: &mut World) -> (SessionId, FlowId) {
    let (session, flow) = (id(1), FlowId(1));
    let (now, released) = (world.now, [(flow, Offset(600))]);
    let tombstones = &mut world.registry.tombstones;
    tombstones.add((session, key(1)), EndReason::Expired, &released, now);
    (session, flow)
}

#[test]
fn an_expired_session_is_told_how_far_its_bytes_came_also_after_a_restart() {
    let mut world = World::new(config());
    let (session, flow) = expired(&mut world);
    let expected = (RejectReason::Expired, vec![(flow, Offset(600))]);
    assert_eq!(rejected_by_hand(&mut world, 1, session, 200), expected);

    restart(&mut world, Duration::from_secs(3600));

    assert_eq!(rejected_by_hand(&mut world, 1, session, 200), expected);
    let other = rejected_by_hand(&mut world, 2, session, 200);
    assert_eq!(
        other,
        (RejectReason::Restarted, Vec::new()),
        "not to another key"
    );
}

#[test]
fn a_session_that_lived_at_the_restart_is_told_that() {
    let mut world = World::new(config());
    let (client, session) = world.attached(1, key(1));
    world.open(client);

    restart(&mut world, Duration::ZERO);

    let (reason, _) = rejected_by_hand(&mut world, 1, session, 200);
    assert_eq!(reason, RejectReason::Restarted);
}

#[test]
fn other_ends_read_the_same_after_a_restart() {
    let mut world = World::new(config());
    let mut ended = Vec::new();
    for (code, told) in [
        (CloseCode::Asked, RejectReason::Ended),
        (CloseCode::Superseded, RejectReason::Superseded),
        (CloseCode::KeyRemoved, RejectReason::Ended),
    ] {
        let (client, session) = world.attached(1, key(1));
        world.open(client);
        let now = world.now;
        world.registry.close(session, code, now);
        world.run();
        ended.push((session, told));
    }

    restart(&mut world, Duration::ZERO);

    for (session, told) in ended {
        let (reason, released) = rejected_by_hand(&mut world, 1, session, 200);
        assert_eq!((reason, released), (told, Vec::new()));
    }
}

#[test]
fn a_session_that_its_client_ended_leaves_nothing() {
    let mut world = World::new(config());
    let (client, _) = world.attached(1, key(1));
    world.clients[client].close(CloseCode::Asked, world.now);
    world.run();

    assert_eq!(world.registry.tombstone_count(), 0);
    assert_eq!(world.registry.poll_tombstone(world.now), None);
}

#[test]
fn flows_that_are_not_stored_are_not_listed() {
    let mut world = World::new(config());
    let (client, session) = world.attached(1, key(1));
    world.open(client);
    world.lose_all();
    world.pass(GRACE + SECOND * 31);

    let told = rejected_by_hand(&mut world, 1, session, 200);
    assert_eq!(told, (RejectReason::Expired, Vec::new()));
}

#[test]
fn a_list_longer_than_a_frame_comes_in_several() {
    for count in [1026, 1027, 1028, 3000] {
        let mut world = World::new(config());
        let long = long(1, key(1), count);
        world.registry.restore(long.clone(), Duration::ZERO, START);

        let (reason, released) = rejected_by_hand(&mut world, 1, id(1), 200);

        assert_eq!(reason, RejectReason::Expired);
        assert_eq!(released, long.released);
    }
}

#[test]
fn an_end_is_remembered_for_a_month_and_no_nanosecond_longer() {
    let mut registry = Registry::new(config());
    let age = Duration::from_secs(24 * 3600);
    registry.restore(tombstone(0, key(1)), REMEMBERED_FOR, START);
    assert_eq!(registry.tombstone_count(), 0, "it is too old already");
    registry.restore(tombstone(1, key(1)), age, START);
    let last = START + (REMEMBERED_FOR - age - NANOSECOND);

    registry.restore(tombstone(2, key(1)), Duration::ZERO, last);
    assert_eq!(registry.tombstone_count(), 2);

    registry.restore(tombstone(3, key(1)), Duration::ZERO, last + NANOSECOND);
    let left: Vec<_> = registry
        .tombstones(last + NANOSECOND)
        .map(|(tombstone, age)| (tombstone.session, age))
        .collect();
    assert_eq!(left, [(id(2), NANOSECOND), (id(3), Duration::ZERO)]);
}

#[test]
fn ends_are_bounded_and_the_oldest_goes_first() {
    let mut registry = Registry::new(config());
    for n in 0..TOMBSTONES + 5 {
        registry.restore(tombstone(n, numbered(n)), Duration::ZERO, START);
    }

    assert_eq!(registry.tombstone_count(), TOMBSTONES);
    let oldest = registry.tombstones(START).next().map(|(t, _)| t.session);
    assert_eq!(oldest, Some(id(5)));
}

#[test]
fn one_client_makes_only_its_own_ends_be_forgotten() {
    let mut registry = Registry::new(config());
    registry.restore(tombstone(0, key(9)), Duration::ZERO, START);
    for n in 1..=TOMBSTONES_PER_KEY + 3 {
        registry.restore(tombstone(n, key(1)), Duration::ZERO, START);
    }

    let left: Vec<_> = registry.tombstones(START).map(|(t, _)| t.session).collect();
    assert_eq!(left.len(), 1 + TOMBSTONES_PER_KEY);
    assert_eq!(left[..2], [id(0), id(4)]);
}

#[test]
fn offsets_of_all_ends_are_bounded_together() {
    let mut registry = Registry::new(config());
    let full = OFFSETS / OFFSETS_OF_ONE;
    for n in 0..=full {
        let long = long(n, key(1), OFFSETS_OF_ONE);
        registry.restore(long, Duration::ZERO, START);
        assert_eq!(registry.tombstone_count(), (n + 1).min(full));
    }

    let oldest = registry.tombstones(START).next().map(|(t, _)| t.session);
    assert_eq!(oldest, Some(id(1)));
}

/// One client fills what all may list; the ends of others, which came before it, were forgotten for it.
#[test]
fn who_lists_the_most_makes_only_its_own_ends_be_forgotten() {
    let mut registry = Registry::new(config());
    registry.restore(long(100, key(8), 1000), Duration::ZERO, START);
    registry.restore(tombstone(101, key(9)), Duration::ZERO, START);
    registry.restore(tombstone(0, key(1)), Duration::ZERO, START);
    for n in 1..60 {
        let long = long(n, key(1), OFFSETS_OF_ONE);
        registry.restore(long, Duration::ZERO, START);
    }
    // Room for another's is made by the same.
    registry.restore(long(102, key(9), 1000), Duration::ZERO, START);

    let left: Vec<_> = registry.tombstones(START).map(|(t, _)| t.session).collect();
    assert_eq!(
        left[..3],
        [id(100), id(101), id(0)],
        "without a list it is in no way"
    );
    assert_eq!(left[3], id(60 - (OFFSETS / OFFSETS_OF_ONE - 1)));
    assert_eq!(left.last(), Some(&id(102)));
}

#[test]
fn one_end_lists_no_more_flows_than_a_record_of_the_journal_takes() {
    for count in [OFFSETS_OF_ONE, OFFSETS_OF_ONE + 1] {
        let mut registry = Registry::new(config());
        let long = long(1, key(1), count);
        registry.restore(long.clone(), Duration::ZERO, START);

        let (kept, _) = registry.tombstones(START).next().unwrap();
        assert_eq!(kept.released, long.released[..OFFSETS_OF_ONE]);
        assert_eq!(kept.encode(Duration::ZERO).len(), Tombstone::MAX_BYTES);
    }
}

/// Each link that was told held a copy of the list, a megabyte, until it was closed. Without one, a
/// list that is forgotten while it is told ends there, as a list ends.
#[test]
fn a_link_that_is_told_of_an_end_holds_no_copy_of_its_list() {
    let mut world = World::new(config());
    let long = long(1, key(1), 3000);
    world.registry.restore(long.clone(), Duration::ZERO, START);
    let link = world.raw(key(1));
    world.say(link, false_resume(id(1), 200));
    let mut out = Outbox::new();
    assert!(world.registry.poll_transmit(link, 1, &mut out, world.now));

    for n in 2..=1 + TOMBSTONES_PER_KEY {
        let other = tombstone(n, key(1));
        world.registry.restore(other, Duration::ZERO, START);
    }
    while world.registry.poll_transmit(link, 1, &mut out, world.now) {}

    let mut bytes = out.to_vec().into();
    let frames = std::iter::from_fn(|| codec::decode(&mut bytes).unwrap());
    let lists: Vec<_> = frames
        .filter_map(|frame| {
            let Frame::ResumeReject(reject) = frame else {
                return None;
            };
            Some(reject.released)
        })
        .collect();
    assert_eq!(lists, [long.released[..MAX_RELEASED].to_vec(), Vec::new()]);
}

#[test]
fn what_is_restored_is_not_written_down_again() {
    let mut world = World::new(config());
    expired(&mut world);
    restart(&mut world, Duration::ZERO);

    assert_eq!(world.registry.tombstone_count(), 1);
    assert_eq!(world.registry.poll_tombstone(world.now), None);
}
