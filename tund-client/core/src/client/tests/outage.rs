//! What applications notice of an outage, and how the client gets out of it.

use super::server::End;
use super::world::{
    BUFFER, GRACE, MILLISECOND, Network, RULES, SECOND, WIFI, World, client_config, registry_config,
};
use crate::client::{ClientConfig, ClientEvent, State};
use crate::dialer::PathId;
use crate::netstack::tests::world::pattern;
use crate::policy::{DuringOutage, Policies, Rules};
use smoltcp::socket::tcp;
use std::time::Duration;
use tund_server_core::registry::{BUSY_HINT, Registry, RegistryConfig};
use tund_session::EndReason;
use tund_session::wire::frame::RejectReason;

/// Refuse during an outage.
const REFUSING: Rules = Rules {
    during_outage: DuringOutage::Refuse,
    ..RULES
};

fn dialled(world: &World, from: usize) -> usize {
    world.dials.len() - from
}

#[test]
fn bytes_of_both_sides_wait_for_the_network_and_arrive_once_and_in_order() {
    let mut world = World::new();
    let (app, id) = world.open();
    let (up, down) = (pattern(200_000, 1), pattern(300_000, 2));
    world.write(app, b"before");
    world.fail();
    assert_eq!(world.client.state(), State::Detached);

    assert_eq!(world.write(app, &up), up.len());
    world.kernel.socket(app).close();
    world.origin(id).to_send = down.clone();
    world.origin(id).then = Some(End::Fin);
    world.pass(SECOND * 30);
    assert_eq!(world.origin(id).received, b"before");
    world.heal();
    let took = world.until("attached", |w| w.client.state() == State::Attached);
    world.run();

    assert!(took <= MILLISECOND * 500, "{took:?}");
    assert_eq!(world.origin(id).received, [b"before", &up[..]].concat());
    assert!(world.origin(id).has_fin);
    assert_eq!(world.read(app), down);
    assert_eq!(world.client.flows().kept(), 0);
}

#[test]
fn a_worn_link_is_replaced_without_an_outage() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.write(app, b"one");
    let old = world.client.links().next().unwrap();

    world.client.handle_worn(old);
    world.pass(SECOND);
    world.write(app, b"two");
    world.run();

    let links: Vec<_> = world.client.links().collect();
    assert!(links.len() == 1 && links[0] != old, "{links:?}");
    assert_eq!(world.client.outages().count, 0);
    assert_eq!(world.origin(id).received, b"onetwo");
    let from = world.dials.len();
    world.pass(SECOND * 10);
    assert_eq!(dialled(&world, from), 0);
}

#[test]
fn an_outage_is_counted_and_measured() {
    let mut world = World::new();
    let (app, _) = world.open();
    world.pass(SECOND);
    world.write(app, b"x");
    world.fail();
    world.pass(SECOND * 7);
    world.network = Network::Mute;
    world.until("an attempt", |w| w.dials.last().unwrap().0 == w.now);
    let (_, link, _) = *world.dials.last().unwrap();
    world.pass(MILLISECOND * 40);
    let before = world.client.outages();
    world.establish(link);
    world.run();

    let outages = world.client.outages();
    assert_eq!((before.count, outages.count), (0, 1));
    assert_eq!(outages.last_resume, Some(MILLISECOND * 40));
    let gap = outages.last_gap.unwrap();
    assert!(gap >= SECOND * 7 && gap < SECOND * 8, "{gap:?}");
    let (_, flow) = world.client.flows().iter().next().unwrap();
    assert_eq!(flow.outages, 1);
}

#[test]
fn a_writer_is_stopped_when_the_buffer_is_full_and_not_before() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.fail();

    let mut written = 0;
    while let count @ 1.. = world.write(app, &pattern(50_000, 3)) {
        written += count;
        assert!(written < 4 << 20, "nothing stops it");
    }

    // What its own kernel took stays there.
    let in_kernel = world.kernel.socket(app).send_queue();
    let taken = u64::try_from(written - in_kernel).unwrap();
    assert!(taken > BUFFER * 9 / 10 && taken <= BUFFER, "{taken}");
    assert_eq!(world.client.buffered().0, taken);
    world.heal();
    world.pass(SECOND * 20);
    assert_eq!(world.origin(id).received.len(), written);
    assert_eq!(world.client.buffered(), (0, 0));
}

#[test]
fn a_silent_cut_is_noticed_while_an_application_sends() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.pass(SECOND * 3);
    world.cut();
    world.write(app, b"into the void");

    let took = world.until("noticed", |w| w.client.state() == State::Detached);
    assert!(took <= SECOND * 2, "{took:?}");
    world.heal();
    let back = world.until("attached", |w| w.client.state() == State::Attached);
    world.run();

    assert!(back <= MILLISECOND * 500, "{back:?}");
    assert_eq!(world.origin(id).received, b"into the void");
    assert_eq!(world.client.outages().count, 1);
}

#[test]
fn attempts_overlap_every_half_second_and_all_but_one_are_given_up() {
    let mut world = World::new();
    world.open();
    let before = world.dials.len();
    world.fail();

    world.pass(SECOND * 10 - MILLISECOND);
    assert_eq!(dialled(&world, before), 20);
    assert!(world.link_count() <= 7, "{}", world.link_count());
    world.heal();
    world.pass(SECOND);

    assert_eq!(world.client.state(), State::Attached);
    assert_eq!(world.link_count(), 1);
    assert_eq!(world.client.links().count(), 1);
    assert_eq!(world.client.dialer.poll_timeout(), None);
}

#[test]
fn a_path_that_answers_and_says_no_more_is_asked_four_times_in_15_s() {
    let mut world = World::new();
    world.open();
    let before = world.dials.len();
    world.network = Network::Mute;
    world.lose();

    world.pass(SECOND * 14);
    assert_eq!(dialled(&world, before), 4);
    world.pass(SECOND * 14);

    assert_eq!(dialled(&world, before), 8);
}

#[test]
fn an_old_outage_is_tried_at_once_when_an_application_sends() {
    let rules = Rules {
        grace: SECOND * 3600,
        ..RULES
    };
    let config = ClientConfig {
        policies: Policies::new(rules, Vec::new()),
        ..client_config()
    };
    let mut world = World::with(config, registry_config(200));
    let (app, _) = world.open();
    world.fail();
    world.pass(SECOND * 1000);
    let before = world.dials.len();
    world.pass(SECOND * 60);
    let in_a_minute = dialled(&world, before);
    assert!((6..40).contains(&in_a_minute), "{in_a_minute}");
    let last = world.dials.last().unwrap().0;
    world.until("the last attempt is old", |w| {
        w.now >= last + SECOND || w.dials.last().unwrap().0 != last
    });
    world.heal();

    world.write(app, b"now");
    let took = world.until("attached", |w| w.client.state() == State::Attached);

    assert!(took <= MILLISECOND * 500, "{took:?}");
}

#[test]
fn without_a_path_nothing_is_dialled_and_nobody_spins() {
    let mut world = World::new();
    let (app, _) = world.open();
    world.fail();
    world.network = Network::NoPath;
    let (dials, events) = (world.dials.len(), world.events.len());

    for _ in 0..100 {
        world.write(app, b"a little");
        world.pass(MILLISECOND * 50);
    }

    assert_eq!(dialled(&world, dials), 0);
    let looks = world.events[events..].iter();
    let looks = looks.filter(|(_, event)| *event == ClientEvent::FindPaths);
    assert!(looks.count() <= 12);
}

#[test]
fn paths_told_twice_are_dialled_once() {
    let mut world = World::new();
    world.open();
    world.fail();
    let before = world.dials.len();

    for _ in 0..50 {
        let paths = world.usable_paths();
        world.client.handle_paths(&paths, world.now);
        world.run();
        world.pass(MILLISECOND * 10);
    }

    assert!(dialled(&world, before) <= 2, "{}", dialled(&world, before));
}

#[test]
fn an_application_that_asks_during_an_outage_waits_for_its_end() {
    let mut world = World::new();
    world.open();
    world.fail();
    world.pass(SECOND);
    let app = world.connect(80);
    world.pass(SECOND * 5);
    assert_eq!(world.state(app), tcp::State::SynSent);

    world.heal();
    world.pass(SECOND);

    assert_eq!(world.state(app), tcp::State::Established);
    assert!(world.icmp.is_empty());
}

#[test]
fn with_refuse_an_application_is_told_of_an_outage_at_once() {
    let config = ClientConfig {
        policies: Policies::new(REFUSING, Vec::new()),
        ..client_config()
    };
    let mut world = World::with(config, registry_config(200));
    let (_, _) = world.open();
    world.fail();
    world.pass(SECOND * 2);

    world.connect(80);

    assert_eq!(world.icmp, [(3, 1)]);
}

#[test]
fn with_refuse_an_idle_session_that_lost_its_link_still_takes_the_next_application() {
    let config = ClientConfig {
        policies: Policies::new(REFUSING, Vec::new()),
        ..client_config()
    };
    let mut world = World::with(config, registry_config(200));
    let (app, id) = world.open();
    world.kernel.socket(app).close();
    world.origin(id).then = Some(End::Fin);
    world.run();
    world.lose();
    world.pass(SECOND * 10);
    assert_eq!(world.client.state(), State::Detached);
    assert_eq!(world.link_count(), 0, "nothing needs a link");

    let apps = [world.connect(80), world.connect(80)];

    assert!(
        apps.iter()
            .all(|app| world.state(*app) == tcp::State::Established)
    );
    assert!(world.icmp.is_empty());
    assert_eq!(world.client.session_id(), Some(id.0));
}

#[test]
fn when_grace_is_over_the_application_is_reset_and_the_loss_is_told() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.fail();
    world.write(app, &pattern(1000, 4));

    world.pass(GRACE - MILLISECOND);
    assert_eq!(world.state(app), tcp::State::Established);
    world.pass(MILLISECOND);

    assert_eq!(world.state(app), tcp::State::Closed);
    assert_eq!(world.ended(), Some((EndReason::Expired, 1, 1000)));
    assert_eq!(world.client.state(), State::Ready);
    assert_eq!(world.client.flows().kept(), 0);
    world.pass(SECOND * 31);
    assert!(world.origin(id).reset);
    world.heal();
    assert_ne!(world.open().1.0, id.0);
}

#[test]
fn a_restarted_server_resets_what_was_open_and_serves_who_still_waits() {
    let mut world = World::new();
    let (app, _) = world.open();
    world.fail();
    let waiting = world.connect(80);
    world.pass(SECOND * 2);

    world.restart_server();
    world.heal();
    world.pass(SECOND);

    assert_eq!(world.state(app), tcp::State::Closed);
    assert_eq!(world.state(waiting), tcp::State::Established);
    assert_eq!(world.client.state(), State::Attached);
    let restarted = EndReason::Rejected(RejectReason::Restarted);
    assert_eq!(world.ended(), Some((restarted, 1, 0)));
}

#[test]
fn another_machine_at_another_address_does_not_end_the_session() {
    let mut world = World::new();
    let other = PathId { address: 1, ..WIFI };
    world.paths = vec![WIFI, other];
    let machine = Registry::new(registry_config(99));
    world.elsewhere.insert(1, machine);
    let (app, id) = world.open();
    world.write(app, b"one ");
    assert_eq!(world.dials[0].2, WIFI, "made at the first address");

    // Only the other machine can be reached: it knows nothing of the session.
    world.paths = vec![other];
    world.lose();
    world.write(app, b"two");
    world.pass(SECOND * 10);
    assert_eq!(world.state(app), tcp::State::Established);
    assert_eq!(world.client.session_id(), Some(id.0));
    world.paths = vec![other, WIFI];
    world.pass(SECOND);

    assert_eq!(world.client.state(), State::Attached);
    assert_eq!(world.origin(id).received, b"one two");
    // The same word from the first address counts.
    world.restart_server();
    world.pass(SECOND);
    assert_eq!(world.state(app), tcp::State::Closed);
}

#[test]
fn a_server_without_room_is_left_alone_for_as_long_as_it_asks() {
    let full = RegistryConfig {
        max_sessions: 0,
        ..registry_config(200)
    };
    let mut world = World::with(client_config(), full);
    let app = world.connect(80);
    let at = world.now;
    let before = world.dials.len();

    world.pass(BUSY_HINT - MILLISECOND);
    // Not even when a name is resolved meanwhile.
    let paths = world.usable_paths();
    world.client.handle_paths(&paths, world.now);
    world.run();
    assert_eq!(dialled(&world, before), 0);
    assert_eq!(world.client.state(), State::Connecting);
    world.until("asked again", |w| w.dials.len() > before);

    let waited = world.now.saturating_duration_since(at);
    assert!(waited <= BUSY_HINT * 3 / 2, "{waited:?}");
    assert_eq!(world.state(app), tcp::State::SynSent);
}

#[test]
fn what_a_server_without_room_asked_for_is_over_once_another_has_room() {
    let mut world = World::new();
    let other = PathId { address: 1, ..WIFI };
    world.paths = vec![other, WIFI];
    let full = RegistryConfig {
        max_sessions: 0,
        ..registry_config(99)
    };
    world.elsewhere.insert(1, Registry::new(full));
    world.open();
    world.pass(SECOND);
    let before = world.dials.len();
    assert_eq!(before, 2);

    world.lose();
    world.pass(MILLISECOND * 500);

    assert_eq!(world.client.state(), State::Attached);
}

#[test]
fn reconnect_drops_the_link_and_dials_at_once() {
    let mut world = World::new();
    let (app, id) = world.open();
    world.pass(SECOND * 10);
    let old: Vec<_> = world.client.links().collect();

    world.client.reconnect(world.now);
    world.run();

    assert_eq!(world.client.state(), State::Attached);
    assert_ne!(world.client.links().collect::<Vec<_>>(), old);
    assert_eq!(world.client.session_id(), Some(id.0));
    assert_eq!(world.write(app, b"on it goes"), 10);
    assert_eq!(world.origin(id).received, b"on it goes");
}

#[test]
fn a_server_that_closes_each_link_at_once_is_not_flooded() {
    let mut world = World::new();
    world.open();
    let before = world.dials.len();

    for _ in 0..200 {
        world.pass(MILLISECOND * 10);
        world.lose();
    }

    assert!(dialled(&world, before) <= 8, "{}", dialled(&world, before));
}

#[test]
fn a_session_that_never_attached_and_nobody_wants_is_given_up() {
    let mut world = World::new();
    world.network = Network::Silent;
    let app = world.connect(80);
    world.pass(SECOND * 5);
    assert_eq!(world.client.state(), State::Connecting);
    world.kernel.sockets.remove(app);
    // The SYN is forgotten when its next repetition does not come.
    world.until("forgotten", |w| w.client.flows().is_empty());
    let session = world.client.session.as_ref().unwrap();
    assert_eq!(session.flow_count(), 0, "the server never heard of it");

    let before = world.dials.len();
    world.pass(SECOND * 29);
    assert_eq!(world.client.state(), State::Connecting);
    assert!(
        dialled(&world, before) >= 50,
        "who asks again finds it dialling"
    );
    world.pass(SECOND * 2);

    assert_eq!(world.client.state(), State::Ready);
    assert_eq!(world.link_count(), 0);
    let before = world.dials.len();
    world.pass(Duration::from_secs(600));
    assert_eq!(dialled(&world, before), 0);
}

#[test]
fn the_session_stays_at_home_where_it_was_made() {
    let mut world = World::new();
    let other = PathId { address: 1, ..WIFI };
    let (app, id) = world.open();
    // Another address of the same machine.
    world.paths = vec![other];
    world.lose();
    assert_eq!(world.client.state(), State::Attached);
    assert_eq!(world.client.session_id(), Some(id.0));

    world.restart_server();
    world.pass(SECOND * 5);
    assert_eq!(
        world.state(app),
        tcp::State::Established,
        "it may be another one"
    );
    world.paths = vec![WIFI];
    world.pass(SECOND);

    assert_eq!(world.state(app), tcp::State::Closed);
}

#[test]
fn applications_that_come_and_go_in_an_outage_leave_nothing() {
    let mut world = World::new();
    world.open();
    world.fail();
    for _ in 0..100 {
        let app = world.connect(80);
        world.kernel.sockets.remove(app);
        world.pass(MILLISECOND * 200);
    }
    world.pass(SECOND * 5);

    assert_eq!(world.client.flows().kept(), 1);
    assert_eq!(world.client.session.as_ref().unwrap().flow_count(), 1);
    world.heal();
    world.pass(SECOND);
    assert_eq!(
        world.opened.len(),
        1,
        "the server is not asked for any of them"
    );
}
