//! One bound on the memory of all sessions, shared fairly.

use super::hand_off::{leave_lines, open};
use super::world::{GRACE, World, config, key};
use crate::registry::RegistryConfig;
use bytes::Bytes;
use std::time::Duration;
use tund_session::wire::frame::{CloseCode, OnExpiry, Protocol};
use tund_session::{Config, FlowId, Session, SessionId, Target};

const MEBIBYTE: u64 = 1 << 20;
const MEMORY: u64 = MEBIBYTE;

fn world() -> World {
    let base = config();
    World::new(RegistryConfig {
        session: Config {
            buffer_bytes: 2 * MEBIBYTE,
            ..base.session
        },
        memory_bytes: MEMORY,
        ..base
    })
}

/// An origin that sends whatever is taken; how much that was.
fn pour(world: &mut World, session: SessionId, flow: FlowId) -> u64 {
    let mut poured = 0;
    loop {
        let now = world.now;
        let mut taken = 0;
        world.registry.with(session, now, |s| {
            taken = s.intake(flow).min(100_000);
            let bytes = vec![7; usize::try_from(taken).unwrap()];
            s.write(flow, Bytes::from(bytes), now);
        });
        assert!(world.registry.lent() <= MEMORY);
        poured += taken;
        if taken == 0 {
            return poured;
        }
    }
}

/// A detached session whose origin fills it.
fn greedy(world: &mut World, n: u8) -> (usize, SessionId, u64) {
    let (client, id) = world.attached(1, key(n));
    let flow = world.open(client);
    world.lose(client);
    let poured = pour(world, id, flow);
    (client, id, poured)
}

#[test]
fn a_greedy_session_leaves_room_and_later_ones_get_a_fair_share() {
    let mut world = world();

    let poured: Vec<u64> = (1..=6).map(|n| greedy(&mut world, n).2).collect();

    assert!(
        poured[0] >= MEMORY / 5 && poured[0] <= MEMORY / 2,
        "{poured:?}"
    );
    assert!(
        poured.iter().all(|bytes| *bytes >= MEMORY / 50),
        "{poured:?}"
    );
    let held: u64 = poured.iter().sum();
    assert!(
        world.registry.lent() <= MEMORY && held > MEMORY * 3 / 5,
        "{poured:?}"
    );
    world.expect_nothing_kept();
}

#[test]
fn what_a_session_gives_back_others_may_have() {
    let mut world = world();
    let (_, hog, first) = greedy(&mut world, 1);
    let (client, id) = world.attached(1, key(2));
    let flow = world.open(client);
    world.lose(client);
    let before = pour(&mut world, id, flow);
    let now = world.now;
    world.registry.close(hog, CloseCode::Asked, now);
    world.run();
    assert_eq!(world.registry.session(hog).map(Session::lent), None);

    let (.., third) = greedy(&mut world, 3);
    assert!(third >= before, "{first} {before} {third}");
    // The one that found nothing left goes on with the next word of its client.
    world.dial(client, key(2));
    let mut after = 0;
    for _ in 0..100 {
        let held = world.clients[client].readable(flow).map(Bytes::len).sum();
        world.clients[client].release(flow, held, now);
        world.clients[client].drained(flow, u64::try_from(held).unwrap(), now);
        world.run();
        after += pour(&mut world, id, flow);
        world.run();
    }
    assert!(after > first, "{first} {before} {after}");
    world.expect_nothing_kept();
}

#[test]
fn with_no_memory_left_every_flow_still_moves_by_its_floor() {
    let base = config();
    let mut world = World::new(RegistryConfig {
        memory_bytes: 0,
        ..base
    });
    let (client, id) = world.attached(1, key(1));
    let flow = world.open(client);
    let mut arrived = 0;

    for _ in 0..50 {
        let now = world.now;
        world.registry.with(id, now, |s| {
            let bytes = vec![7; usize::try_from(s.intake(flow)).unwrap()];
            s.write(flow, Bytes::from(bytes), now);
        });
        world.run();
        let held = world.clients[client].readable(flow).map(Bytes::len).sum();
        world.clients[client].release(flow, held, now);
        world.clients[client].drained(flow, u64::try_from(held).unwrap(), now);
        world.run();
        arrived += held;
    }

    assert_eq!(world.registry.lent(), 0);
    assert!(arrived >= 50, "{arrived}");
    world.expect_nothing_kept();
}

#[test]
fn an_upload_is_granted_no_more_than_the_memory() {
    let mut world = world();
    let mut flows = Vec::new();
    for n in 1..=4 {
        let (client, id) = world.attached(1, key(n));
        flows.push((client, id, world.open(client)));
    }
    let mut sent = vec![0; flows.len()];

    // Origins that read at first, so that credit grows, and then stall.
    for round in 0..60 {
        for (n, (client, id, flow)) in flows.iter().enumerate() {
            let now = world.now;
            let intake = world.clients[*client].intake(*flow);
            let bytes = vec![1; usize::try_from(intake).unwrap()];
            world.clients[*client].write(*flow, Bytes::from(bytes), now);
            sent[n] += intake;
            world.run();
            if round < 30 {
                world.registry.with(*id, now, |s| {
                    let held = s.readable(*flow).map(Bytes::len).sum();
                    s.release(*flow, held, now);
                });
                world.run();
            }
            assert!(world.registry.lent() <= MEMORY);
        }
    }

    let held: u64 = flows
        .iter()
        .map(|(_, id, _)| world.registry.session(*id).unwrap().buffered().1)
        .sum();
    assert!(held > 0 && held <= MEMORY, "{held}");
    assert!(sent.iter().all(|bytes| *bytes > MEMORY / 8), "{sent:?}");
    world.expect_nothing_kept();
}

/// A mapping that the server has a socket for.
fn mapping(world: &mut World, client: usize) -> FlowId {
    let target = Target {
        protocol: Protocol::Udp,
        source: "10.0.0.1:1000".parse().unwrap(),
        destination: "192.0.2.1:53".parse().unwrap(),
        grace: GRACE,
        on_expiry: OnExpiry::Reset,
        accept_early: false,
    };
    let now = world.now;
    let flow = world.clients[client].open_flow(&target, now).unwrap();
    world.accept(client, flow);
    flow
}

#[test]
fn datagrams_that_wait_borrow_of_the_same_memory() {
    const FLOOR: u64 = 128 * 1024;
    let base = config();
    let mut world = World::new(RegistryConfig {
        session: Config {
            buffer_bytes: 32 * MEBIBYTE,
            ..base.session
        },
        memory_bytes: 2 * MEMORY,
        ..base
    });
    let mut held = Vec::new();
    for n in 1..=8 {
        let (client, id) = world.attached(n, key(n));
        let flows = [(); 3].map(|()| mapping(&mut world, client));
        world.lose(client);
        let now = world.now;
        for flow in flows.iter().cycle().take(1500) {
            let payload = Bytes::from_static(&[7; 1000]);
            let remote = "192.0.2.1:53".parse().unwrap();
            world.registry.with(id, now, |s| {
                s.send_datagram(*flow, remote, payload, now);
            });
        }
        let session = world.registry.session(id).unwrap();
        held.push((session.lent(), session.buffered().0));
    }

    let lent: u64 = held.iter().map(|(lent, _)| lent).sum();
    assert_eq!(world.registry.lent(), lent);
    let (first, _) = held[0];
    assert!(first > FLOOR / 2 && first <= 2 * MEMORY / 16, "{held:?}");
    assert!(held.iter().all(|(_, bytes)| *bytes > FLOOR / 2), "{held:?}");
    assert!(held.is_sorted_by(|a, b| a.0 >= b.0), "{held:?}");
    // What has gone stale is given back.
    world.pass(Duration::from_secs(5));
    assert_eq!(world.registry.lent(), 0);
    world.expect_nothing_kept();
}

#[test]
fn what_is_held_takes_nothing_from_sessions_and_gives_way_to_them() {
    let poured = |world: &mut World| {
        let poured = (1..=8).map(|n| {
            let poured = greedy(world, n).2;
            let held = world.registry.offers().bytes();
            assert!(world.registry.lent() + held <= MEMORY, "{held}");
            poured
        });
        poured.collect::<Vec<_>>()
    };
    let mut empty = world();
    let mut holding = world();
    leave_lines(&mut holding, 9, 2_500);
    assert_eq!(holding.registry.offers().bytes(), 250_000);

    assert_eq!(poured(&mut holding), poured(&mut empty));

    assert!(holding.registry.offers().is_empty());
    assert_eq!(holding.registry.offers().tally().lost, 250_000);
    holding.expect_nothing_kept();
}

#[test]
fn however_little_memory_there_is_the_next_connection_finds_room_to_take_what_is_held() {
    let mut world = World::new(RegistryConfig {
        memory_bytes: 150_000,
        ..config()
    });
    let name = leave_lines(&mut world, 1, 600);
    let held = world.registry.offers().bytes();
    assert_eq!(held, 150_000 / 4);
    let (client, _) = world.attached(11, key(1));

    let flow = open(&mut world, client, &[name]);

    assert_eq!(world.registry.offers().tally().handed_on, held);
    assert!(world.clients[client].readable(flow).next().is_some());
}
