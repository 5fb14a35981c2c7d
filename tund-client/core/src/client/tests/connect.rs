//! From `connect` to bytes both ways, and what a refusal looks like.

use super::server::End;
use super::world::{KEY, Network, SECOND, World, client_config, registry_config, session_config};
use crate::client::{ClientConfig, State};
use crate::netstack::tests::world::pattern;
use crate::packet::Reason;
use smoltcp::socket::tcp;
use std::time::Duration;
use tund_server_core::registry::RegistryConfig;
use tund_session::Config;
use tund_session::wire::frame::{CloseCode, DeniedBy, FlowCode, OpenError};

#[test]
fn nothing_is_sent_before_an_application_asks() {
    let mut world = World::new();

    world.pass(SECOND * 1000);

    assert_eq!(world.client.state(), State::Ready);
    assert!(world.events.is_empty());
}

#[test]
fn an_application_connects_once_its_origin_has_answered() {
    let mut world = World::new();
    world.quiet_ports.insert(80);
    let app = world.connect(80);
    assert_eq!(world.client.state(), State::Attached);
    assert_eq!(world.state(app), tcp::State::SynSent);
    let (id, open) = world.opened[0].clone();
    assert_eq!(open.destination.port(), 80);

    world.accept(id);
    world.run();

    assert_eq!(world.state(app), tcp::State::Established);
    assert_eq!(world.client.flows().len(), 1);
}

#[test]
fn bytes_go_both_ways_and_each_side_closes_when_it_likes() {
    let mut world = World::new();
    let (app, id) = world.open();
    let (up, down) = (pattern(300_000, 1), pattern(700_000, 2));
    world.origin(id).to_send = down.clone();
    world.origin(id).then = Some(End::Fin);

    world.write(app, &up);
    let mut got = Vec::new();
    while got.len() < down.len() {
        let piece = world.read(app);
        assert!(!piece.is_empty(), "stuck at {}", got.len());
        got.extend(piece);
    }
    assert_eq!(world.state(app), tcp::State::CloseWait);
    // The other direction goes on after the origin has closed its own.
    world.write(app, &up);
    world.kernel.socket(app).close();
    world.run();

    assert_eq!(got, down);
    assert_eq!(world.origin(id).received, [&up[..], &up[..]].concat());
    assert!(world.origin(id).has_fin);
    assert_eq!(world.client.flows().len(), 0);
    assert_eq!(world.client.flows().kept(), 0);
    let traffic = world.client.traffic();
    assert_eq!((traffic.taken, traffic.released), (600_000, 700_000));
}

#[test]
fn a_request_after_half_close_is_answered() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.write(app, b"request");
    world.kernel.socket(app).close();
    world.run();
    assert!(world.origin(id).has_fin);

    world.origin(id).to_send = b"answer".to_vec();
    world.origin(id).then = Some(End::Fin);
    world.run();

    assert_eq!(world.read(app), b"answer");
    assert_eq!(world.client.flows().kept(), 0);
}

/// What a connect to a port sees that is answered with `error`.
fn refused(error: OpenError) -> (Option<(u8, u8)>, tcp::State) {
    let mut world = World::new();
    world.answers.insert(81, error);
    let app = world.connect(81);
    assert_eq!(world.client.flows().kept(), 0);
    (world.icmp.first().copied(), world.state(app))
}

#[test]
fn each_refusal_looks_as_the_origins_would() {
    const NET: Option<(u8, u8)> = Some((3, 0));
    const HOST: Option<(u8, u8)> = Some((3, 1));
    const PROHIBITED: Option<(u8, u8)> = Some((3, 13));
    use tcp::State::{Closed, SynSent};
    let table = [
        (OpenError::Refused, None, Closed),
        (OpenError::NetworkUnreachable, NET, SynSent),
        (OpenError::HostUnreachable, HOST, SynSent),
        (OpenError::Other(5), HOST, SynSent),
        (OpenError::Denied(DeniedBy::Never), PROHIBITED, SynSent),
        (OpenError::Denied(DeniedBy::Default), PROHIBITED, SynSent),
        (OpenError::Denied(DeniedBy::Deny), PROHIBITED, SynSent),
        (OpenError::TimedOut, None, SynSent),
        (OpenError::Cancelled, None, SynSent),
    ];
    for (error, icmp, state) in table {
        assert_eq!(refused(error), (icmp, state), "{error:?}");
    }
}

#[test]
fn a_black_hole_is_asked_once_and_stays_silent_until_the_application_gives_up() {
    let mut world = World::new();
    world.answers.insert(81, OpenError::TimedOut);
    let app = world.connect(81);

    // The application's kernel asks again and again.
    world.pass(SECOND * 20);
    assert_eq!(world.opened.len(), 1);
    assert_eq!(world.state(app), tcp::State::SynSent);
    world.kernel.sockets.remove(app);
    world.pass(SECOND * 60);

    assert_eq!(world.client.netstack().connections(), 0);
    assert_eq!(world.client.flows().kept(), 0);
}

#[test]
fn a_server_without_room_is_asked_again_while_the_application_waits() {
    let mut world = World::new();
    world.answers.insert(81, OpenError::Exhausted);
    let app = world.connect(81);
    world.pass(SECOND * 3);
    assert_eq!(world.state(app), tcp::State::SynSent);
    assert!(
        (3..=5).contains(&world.opened.len()),
        "{}",
        world.opened.len()
    );

    world.answers.clear();
    world.pass(SECOND * 2);

    assert_eq!(world.state(app), tcp::State::Established);
    assert!(world.client.asking.is_empty());
}

#[test]
fn an_application_that_gives_up_is_told_to_the_server() {
    let mut world = World::new();
    world.quiet_ports.insert(80);
    let app = world.connect(80);
    let (session, flow) = world.opened[0].0;

    world.kernel.sockets.remove(app);
    world.pass(SECOND * 4);

    assert_eq!(world.client.flows().kept(), 0);
    assert_eq!(world.registry.session(session).unwrap().flow_count(), 0);
    // Too late: nobody is there any more.
    world.accept((session, flow));
    world.run();
    assert_eq!(world.client.netstack().connections(), 0);
}

#[test]
fn beyond_max_flows_applications_wait_for_their_turn() {
    let config = ClientConfig {
        session: Config {
            max_flows: 3,
            ..session_config(1)
        },
        ..client_config()
    };
    let mut world = World::with(config, registry_config(200));
    let open: Vec<_> = (0..3).map(|_| world.open()).collect();
    let waiting: Vec<_> = (0..3).map(|_| world.connect(80)).collect();
    let gone = waiting[1];
    assert!(
        waiting
            .iter()
            .all(|app| world.state(*app) == tcp::State::SynSent)
    );

    // One of them gives up, and one flow ends.
    world.kernel.sockets.remove(gone);
    world.pass(SECOND * 8);
    assert_eq!(world.client.asking.kept(), 2);
    let (app, id) = open[0];
    world.kernel.socket(app).close();
    world.origin(id).then = Some(End::Fin);
    world.run();

    assert_eq!(
        world.state(waiting[0]),
        tcp::State::Established,
        "the first in line"
    );
    assert_eq!(world.state(waiting[2]), tcp::State::SynSent);
    assert_eq!(world.client.asking.kept(), 1);
    world.client.disconnect(world.now);
    world.run();
    assert_eq!(world.state(waiting[2]), tcp::State::Closed);
    assert!(world.client.asking.is_empty());
}

#[test]
fn an_arena_that_is_full_leaves_nothing_behind() {
    let mut world = World::with_rings(client_config(), registry_config(200), 65_536, 1);
    world.open();
    let second = world.connect(80);

    assert_eq!(world.state(second), tcp::State::SynSent);
    let (session, flow) = world.opened[1].0;
    assert!(world.origins[&(session, flow)].reset);
    assert_eq!(world.client.flows().kept(), 1);
}

#[test]
fn the_idle_session_ends_after_linger_and_the_next_flow_makes_another() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.kernel.socket(app).close();
    world.origin(id).then = Some(End::Fin);
    world.run();

    world.pass(SECOND * 299);
    assert_eq!(world.client.state(), State::Attached);
    world.pass(SECOND);

    assert_eq!(world.client.state(), State::Ready);
    assert_eq!(world.link_count(), 0);
    assert_eq!(world.registry.sessions().count(), 0);
    let (_, again) = world.open();
    assert_ne!(again.0, id.0);
}

#[test]
fn connect_always_dials_at_once_and_again_after_an_end() {
    let config = ClientConfig {
        linger: None,
        ..client_config()
    };
    let mut world = World::with(config, registry_config(200));
    world.run();
    assert_eq!(world.client.state(), State::Attached);
    let first = world.client.session_id().unwrap();
    world.pass(SECOND * 3600);
    assert_eq!(world.client.session_id(), Some(first));

    world.registry.close(first, CloseCode::Asked, world.now);
    world.run();

    assert_eq!(world.client.state(), State::Attached);
    assert_ne!(world.client.session_id(), Some(first));
}

#[test]
fn with_connect_always_a_disconnect_lasts_until_the_next_application() {
    let config = ClientConfig {
        linger: None,
        ..client_config()
    };
    let mut world = World::with(config, registry_config(200));
    world.run();
    world.client.disconnect(world.now);

    world.pass(SECOND * 60);
    assert_eq!(world.client.state(), State::Ready);
    assert_eq!(world.link_count(), 0);

    let (app, id) = world.open();
    assert_eq!(world.client.state(), State::Attached);
    // From then on it is as before.
    world.kernel.socket(app).close();
    world.origin(id).then = Some(End::Fin);
    world.run();
    world.lose();
    world.pass(SECOND);
    assert_eq!(world.client.flows().len(), 0);
    assert_eq!(world.client.state(), State::Attached);
}

#[test]
fn what_comes_ahead_of_the_answer_waits_for_it() {
    use tund_session::wire::codec;
    use tund_session::wire::frame::{Control, Data, Frame, Limits, Welcome};
    let mut world = World::new();
    world.network = Network::Mute;
    let app = world.connect(80);
    let (_, link, _) = world.dials[0];
    world
        .client
        .handle_link_up(link, super::world::secret(link), world.now);
    let say = |world: &mut World, frame: Frame| {
        let mut bytes = Vec::new();
        codec::encode(&frame, &mut bytes);
        world.client.handle_bytes(link, bytes.into(), world.now);
        world.run();
    };
    let limits = Limits {
        max_flows: 9,
        buffer_bytes: 1 << 20,
        floor_bytes: 1,
    };
    say(
        &mut world,
        Frame::Welcome(Welcome {
            version: 1,
            capabilities: 0,
            session: tund_session::SessionId([5; 16]),
            instance: tund_session::Instance([6; 16]),
            limits,
        }),
    );
    let flow = tund_session::FlowId(1);
    let at = tund_session::Offset;
    say(
        &mut world,
        Frame::Data(Data {
            flow,
            offset: at(0),
            fin: true,
            payload: bytes::Bytes::new(),
        }),
    );
    assert_eq!(world.state(app), tcp::State::SynSent);

    let message = Control::OpenOk {
        flow,
        limit: at(9999),
        grace: Duration::from_secs(60),
    };
    say(&mut world, Frame::Control { number: 1, message });

    assert_eq!(world.state(app), tcp::State::CloseWait, "the FIN was kept");
}

#[test]
fn two_clients_of_one_server_do_not_hear_of_each_other() {
    let mut world = World::with(
        client_config(),
        RegistryConfig {
            max_sessions: 1,
            ..registry_config(200)
        },
    );
    let (app, _) = world.open();
    assert_eq!(
        world.registry.key(world.client.session_id().unwrap()),
        Some(KEY)
    );
    // A link of somebody else.
    let other = tund_session::LinkId(9999);
    world
        .client
        .handle_bytes(other, vec![0xff; 100].into(), world.now);
    world.client.handle_link_down(other, false, world.now);
    world
        .client
        .handle_link_up(other, super::world::secret(other), world.now);
    world.run();
    assert_eq!(world.state(app), tcp::State::Established);
}

#[test]
fn stop_from_the_server_resets_the_application_at_once() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.write(app, b"something");
    let now = world.now;

    world
        .registry
        .with(id.0, now, |s| s.abort(id.1, FlowCode::SocketError, now));
    world.run();

    assert_eq!(world.state(app), tcp::State::Closed);
    assert_eq!(world.client.flows().kept(), 0);
    assert_eq!(world.client.netstack().stats().untaken(Reason::Stray), 0);
    assert_eq!(world.ended(), None, "the session goes on");
}
