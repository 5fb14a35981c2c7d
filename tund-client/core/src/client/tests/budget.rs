//! What is held for applications stays within the buffer, rings included, and nobody is starved.

use super::server::{End, OriginId};
use super::world::{CrowdApp, MILLISECOND, SECOND, World, client_config, registry_config, take};
use crate::client::ClientConfig;
use crate::netstack::tests::world::pattern;
use smoltcp::socket::tcp;
use tund_server_core::registry::RegistryConfig;
use tund_session::Config;

const MANY: usize = 1000;
const BUFFER: u64 = 8 << 20;

/// 1,000 connections with rings that would hold eight times the buffer.
fn crowd(stalled_origins: bool) -> (World, Vec<(CrowdApp, OriginId)>) {
    let limits = |base: Config| Config {
        buffer_bytes: BUFFER,
        max_flows: 2000,
        ..base
    };
    let (client, server) = (client_config(), registry_config(200));
    let client = ClientConfig {
        session: limits(client.session),
        ..client
    };
    let server = RegistryConfig {
        session: limits(server.session),
        ..server
    };
    let mut world = World::with_rings(client, server, 65_536, MANY);
    world.stall_new_origins = stalled_origins;
    let apps: Vec<_> = (0..MANY)
        .map(|_| world.connect_in_crowd(80, 32_768))
        .collect();
    world.run();
    let ids: Vec<_> = world.opened.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids.len(), MANY);
    // The sources tell which is which.
    let pairs = apps.into_iter().zip(ids).collect();
    (world, pairs)
}

#[test]
fn a_thousand_stalled_uploads_stay_within_the_buffer() {
    let (mut world, flows) = crowd(true);
    for round in 0..2 {
        for (app, _) in &flows {
            let socket = world.crowd_socket(*app);
            assert_eq!(socket.state(), tcp::State::Established);
            socket.send_slice(&pattern(30_000, 1)).unwrap();
        }
        world.run();
        let held = world.client.buffered().0;
        assert!(held <= BUFFER, "{held} in round {round}");
        assert!(held >= BUFFER / 4, "{held} in round {round}");
    }

    world.fail();
    for _ in 0..2 {
        for (app, _) in &flows {
            world
                .crowd_socket(*app)
                .send_slice(&pattern(30_000, 1))
                .unwrap();
        }
        world.run();
    }
    let held = world.client.buffered().0;
    // Windows that were promised and not used are held too.
    assert!((BUFFER * 3 / 4..=BUFFER).contains(&held), "{held}");
    world.heal();
    for (_, id) in &flows {
        world.origin(*id).is_stalled = false;
    }
    for _ in 0..100 {
        world.pass(MILLISECOND * 100);
        if world.client.buffered().0 == 0 {
            break;
        }
    }

    assert_eq!(world.client.buffered().0, 0);
    for (app, id) in &flows {
        let left = world.crowd_socket(*app).send_queue();
        assert_eq!(left, 0, "it stalls");
        assert!(world.origin(*id).received.len() >= 30_000);
    }
}

#[test]
fn a_thousand_stalled_downloads_stay_within_the_buffer() {
    let (mut world, flows) = crowd(false);
    for (_, id) in &flows {
        world.origin(*id).to_send = pattern(40_000, 2);
        world.origin(*id).then = Some(End::Fin);
    }
    world.run();
    world.pass(SECOND * 5);
    let held = world.client.buffered().1;
    assert!(held <= BUFFER, "{held}");

    let mut got = vec![0; flows.len()];
    for _ in 0..1000 {
        for (n, (app, _)) in flows.iter().enumerate() {
            got[n] += take(world.crowd_socket(*app), usize::MAX).len();
        }
        world.pass(MILLISECOND * 10);
        assert!(world.client.buffered().1 <= BUFFER);
        if got.iter().sum::<usize>() == 40_000 * MANY {
            break;
        }
    }

    assert!(
        got.iter().all(|bytes| *bytes == 40_000),
        "a download stalls"
    );
    assert_eq!(world.client.buffered(), (0, 0));
}

/// What lies in a ring is held, whether or not the origin has finished behind it, and whether or
/// not the application has.
#[test]
fn a_thousand_finished_downloads_that_nobody_reads_stay_within_the_buffer() {
    let (mut world, flows) = crowd(false);
    // One after the other, so that each finds the pool as those before have left it.
    for (app, id) in &flows {
        world.origin(*id).to_send = pattern(60_000, 2);
        world.origin(*id).then = Some(End::Fin);
        world.crowd_socket(*app).close();
        world.run();
    }
    world.pass(SECOND);
    let rings = world.client.netstack().unsent_in_all();
    assert!(rings <= BUFFER, "{rings} bytes in rings");

    let mut got = vec![0; flows.len()];
    for _ in 0..3000 {
        for (n, (app, _)) in flows.iter().enumerate() {
            got[n] += take(world.crowd_socket(*app), usize::MAX).len();
        }
        world.pass(MILLISECOND * 10);
        assert!(world.client.netstack().unsent_in_all() <= BUFFER);
        if got.iter().sum::<usize>() == 60_000 * MANY {
            break;
        }
    }

    assert!(got.iter().all(|bytes| *bytes == 60_000), "one stalls");
    world.pass(SECOND);
    assert_eq!(world.client.flows().kept(), 0);
    assert_eq!(world.client.netstack().connections(), 0);
}

#[test]
fn a_stalled_reader_leaves_the_others_moving() {
    let mut world = World::new();
    let (_stalled, greedy) = world.open();
    world.origin(greedy).to_send = pattern(5_000_000, 3);
    world.run();
    let (app, id) = world.open();
    world.origin(id).to_send = pattern(1_000_000, 4);
    world.origin(id).then = Some(End::Fin);

    let mut got = Vec::new();
    for _ in 0..600 {
        got.extend(world.read(app));
    }

    assert_eq!(got.len(), 1_000_000);
}

#[test]
fn a_stalled_origin_leaves_the_others_moving() {
    let mut world = World::new();
    let (greedy, stalled) = world.open();
    world.origin(stalled).is_stalled = true;
    while world.write(greedy, &pattern(50_000, 5)) > 0 {}
    let (app, id) = world.open();

    let mut sent = 0;
    for _ in 0..600 {
        sent += world.write(app, &pattern(30_000, 6));
    }

    assert!(sent > 1_000_000, "{sent}");
    assert!(world.origin(id).received.len() >= sent - (1 << 20));
}

#[test]
fn credit_moves_as_the_ring_drains() {
    let mut world = World::new();
    let app = world.connect_to(80, 16_384);
    world.run();
    let id = world.opened[0].0;
    world.origin(id).to_send = pattern(2_000_000, 8);
    world.origin(id).then = Some(End::Fin);

    let mut got = Vec::new();
    for _ in 0..2_000_000 / 10_000 + 200 {
        got.extend(world.read_silently(app, 10_000));
        world.run();
    }

    assert_eq!(got.len(), 2_000_000);
    assert_eq!(got, pattern(2_000_000, 8));
}
