//! What the client makes of news of the network: lost links, better paths, a second link, sleep.

use super::world::{MILLISECOND, Network, SECOND, WIFI, World, client_config, registry_config};
use crate::client::{self, ClientConfig, ClientEvent, State};
use crate::dialer::PathId;
use smoltcp::iface::SocketHandle;
use std::collections::BTreeSet;

const WIFI_CARD: u32 = WIFI.interface;
const MOBILE: u32 = 3;
const MOBILE_PATH: PathId = PathId {
    interface: MOBILE,
    address: 0,
};

/// A world with an open flow by those interfaces, the first of which carries it.
fn with_interfaces(interfaces: &[u32]) -> (World, SocketHandle) {
    let mut world = World::new();
    world.offer(interfaces);
    let (app, _) = world.open();
    assert_eq!(world.interfaces()[0], interfaces[0]);
    (world, app)
}

/// Bytes move for some seconds, as an application makes them.
fn be_busy(world: &mut World, app: SocketHandle, seconds: u64) {
    for _ in 0..seconds {
        world.write(app, b"busy");
        world.pass(SECOND);
    }
}

/// Both interfaces, and a link on each of them.
fn with_standby() -> (World, SocketHandle) {
    let (mut world, app) = with_interfaces(&[WIFI_CARD, MOBILE]);
    be_busy(&mut world, app, 4);
    assert_eq!(world.interfaces(), [WIFI_CARD, MOBILE]);
    (world, app)
}

/// How often the paths were looked up.
fn looks(world: &World) -> usize {
    let events = world.events.iter();
    events
        .filter(|(_, event)| *event == ClientEvent::FindPaths)
        .count()
}

fn assert_written_at_once(world: &mut World, app: SocketHandle) {
    let id = world.opened.last().unwrap().0;
    let (now, before) = (world.now, world.origin(id).received.len());
    world.write(app, b"0123456789");
    world.run();
    assert_eq!(world.origin(id).received.len(), before + 10);
    assert_eq!(world.now, now);
}

#[test]
fn a_lost_carrier_is_an_outage_at_once_and_its_return_a_link_at_once() {
    let (mut world, app) = with_interfaces(&[WIFI_CARD]);
    be_busy(&mut world, app, 3);
    world.cut();

    world.offer(&[]);
    assert_eq!(world.client.state(), State::Detached);
    let dials = world.dials.len();
    world.pass(SECOND * 5 + MILLISECOND * 123);
    assert_eq!(world.dials.len(), dials, "there is no path");
    world.heal();
    world.offer(&[WIFI_CARD]);

    assert_eq!(world.client.state(), State::Attached);
    assert_written_at_once(&mut world, app);
}

#[test]
fn an_address_that_is_gone_is_an_outage_at_once_and_another_interface_ends_it_at_once() {
    let (mut world, app) = with_interfaces(&[WIFI_CARD]);
    be_busy(&mut world, app, 3);
    world.cut();
    let network = client::Network {
        running: [WIFI_CARD, MOBILE].into(),
        addresses: [crate::netstack::tests::world::APP_V4].into(),
        networks: BTreeSet::new(),
    };

    world.network = Network::NoPath;
    world.client.handle_network(network, false, world.now);
    world.run();
    assert_eq!(world.client.state(), State::Detached);
    world.pass(SECOND * 50 + MILLISECOND * 77);
    world.heal();
    world.offer(&[MOBILE]);

    assert_eq!(world.interfaces(), [MOBILE]);
    assert_written_at_once(&mut world, app);
}

#[test]
fn an_attempt_from_an_address_that_is_gone_makes_room_at_once() {
    let (mut world, _) = with_interfaces(&[WIFI_CARD]);
    world.fail();
    world.pass(MILLISECOND * 100);
    let under_way = world.links.len();
    assert!(under_way > 0);

    world.offer(&[]);
    assert_eq!(world.links.len(), 0);
    world.heal();
    world.pass(MILLISECOND * 60);
    world.offer(&[WIFI_CARD]);

    assert_eq!(world.client.state(), State::Attached);
}

#[test]
fn news_that_change_nothing_are_not_looked_into() {
    let (mut world, _) = with_interfaces(&[WIFI_CARD]);
    world.pass(SECOND * 2);
    let before = looks(&world);
    let network = client::Network {
        running: [WIFI_CARD].into(),
        addresses: [
            super::world::source(WIFI_CARD),
            crate::netstack::tests::world::APP_V4,
        ]
        .into(),
        networks: BTreeSet::new(),
    };

    world
        .client
        .handle_network(network.clone(), false, world.now);
    world.pass(SECOND * 2);
    assert_eq!(looks(&world), before);
    world.client.handle_network(network, true, world.now);
    world.pass(SECOND - MILLISECOND);
    assert_eq!(looks(&world), before, "not at once while a link works");
    world.pass(MILLISECOND);

    assert_eq!(looks(&world), before + 1);
}

#[test]
fn a_better_path_is_moved_to_without_an_outage() {
    for standby in [false, true] {
        let config = ClientConfig {
            standby,
            ..client_config()
        };
        let mut world = World::with(config, registry_config(200));
        world.offer(&[MOBILE]);
        let (app, _) = world.open();
        be_busy(&mut world, app, 3);

        world.offer(&[WIFI_CARD, MOBILE]);
        assert_eq!(world.interfaces(), [MOBILE], "not at once");
        be_busy(&mut world, app, 2);

        let expected: &[u32] = if standby {
            &[WIFI_CARD, MOBILE]
        } else {
            &[WIFI_CARD]
        };
        assert_eq!(world.interfaces(), expected);
        assert_eq!(world.client.outages().count, 0);
        assert_written_at_once(&mut world, app);
    }
}

#[test]
fn the_link_that_was_moved_from_stands_by_from_the_first_byte() {
    let mut world = World::new();
    world.offer(&[MOBILE]);
    let (app, _) = world.open();
    world.write(app, b"x");
    world.offer(&[WIFI_CARD, MOBILE]);
    let dials = world.dials.len();

    be_busy(&mut world, app, 10);

    assert_eq!(world.interfaces(), [WIFI_CARD, MOBILE]);
    assert_eq!(world.dials.len(), dials + 1, "one to the better path alone");
}

#[test]
fn a_better_path_that_does_not_answer_is_tried_ever_less_often() {
    let (mut world, app) = with_interfaces(&[MOBILE]);
    world.silent.insert(WIFI_CARD);
    world.offer(&[WIFI_CARD, MOBILE]);
    let dials = world.dials.len();
    be_busy(&mut world, app, 240);

    assert_eq!(world.interfaces(), [MOBILE]);
    let tried = world.dials.len() - dials;
    assert!((6..=10).contains(&tried), "{tried}");
    assert_written_at_once(&mut world, app);
}

#[test]
fn a_second_link_stands_by_while_flows_are_active_and_carries_nothing() {
    let (mut world, app) = with_standby();

    world.pass(SECOND * 58);
    assert_eq!(world.interfaces(), [WIFI_CARD, MOBILE]);
    world.pass(SECOND * 3);
    assert_eq!(world.interfaces(), [WIFI_CARD], "nothing moves any more");
    be_busy(&mut world, app, 4);

    assert_eq!(world.interfaces(), [WIFI_CARD, MOBILE]);
}

#[test]
fn where_bytes_cost_nothing_stands_by() {
    let mut world = World::new();
    world.metered.insert(MOBILE);
    world.offer(&[WIFI_CARD, MOBILE]);
    let (app, _) = world.open();
    be_busy(&mut world, app, 10);

    assert_eq!(world.interfaces(), [WIFI_CARD]);
}

#[test]
fn with_a_second_link_a_lost_carrier_is_no_outage() {
    let (mut world, app) = with_standby();
    world.silence(WIFI_CARD);
    let id = world.opened.last().unwrap().0;
    world.origin(id).to_send = vec![7; 1000];
    world.run();

    world.offer(&[MOBILE]);

    assert_eq!(world.interfaces(), [MOBILE]);
    assert_eq!(world.read(app).len(), 1000);
    assert_written_at_once(&mut world, app);
    assert_eq!(world.client.outages().count, 0);
}

#[test]
fn with_a_second_link_silence_of_the_first_is_over_within_a_second() {
    let (mut world, app) = with_standby();
    world.silence(WIFI_CARD);
    let id = world.opened.last().unwrap().0;
    let before = world.origin(id).received.len();
    world.write(app, b"into the void");

    let took = world.until("arrived", |w| w.origin(id).received.len() > before);

    assert!(took <= MILLISECOND * 660, "{took:?}");
    assert_eq!(world.interfaces(), [MOBILE]);
    assert_eq!(world.client.outages().count, 0);
}

#[test]
fn an_interface_that_fell_silent_rests_before_it_is_preferred_again() {
    let (mut world, app) = with_standby();
    world.silence(WIFI_CARD);
    world.write(app, b"x");
    world.until("moved", |w| w.interfaces() == [MOBILE]);
    let (dials, from) = (world.dials.len(), world.now);

    world.silent.clear();
    world.until("back", |w| w.interfaces() == [WIFI_CARD, MOBILE]);
    let first = world.now.saturating_duration_since(from);
    be_busy(&mut world, app, 3);
    world.silence(WIFI_CARD);
    world.write(app, b"x");
    world.until("moved again", |w| w.interfaces() == [MOBILE]);
    let from = world.now;
    world.silent.clear();
    world.until("back again", |w| w.interfaces() == [WIFI_CARD, MOBILE]);
    let second = world.now.saturating_duration_since(from);

    assert!(first >= SECOND * 2 && first < SECOND * 3, "{first:?}");
    assert!(second >= SECOND * 4 && second < SECOND * 5, "{second:?}");
    assert!(world.dials.len() <= dials + 3);
    assert!(
        world
            .dials
            .iter()
            .all(|(_, _, path)| *path == WIFI || *path == MOBILE_PATH)
    );
}

#[test]
fn after_a_sleep_links_are_asked_and_another_is_dialled_at_once() {
    let (mut world, app) = with_interfaces(&[WIFI_CARD]);
    be_busy(&mut world, app, 3);
    world.cut();
    world.now = world.now + SECOND * 5;
    let dials = world.dials.len();

    world.client.handle_woken(world.now);
    world.run();
    assert_eq!(world.dials.len(), dials + 1);
    world.heal();
    let (_, link, _) = *world.dials.last().unwrap();
    world.establish(link);
    world.run();

    assert_written_at_once(&mut world, app);
}

#[test]
fn after_a_sleep_that_did_no_harm_nothing_is_dialled_for_long() {
    let (mut world, app) = with_interfaces(&[WIFI_CARD]);
    be_busy(&mut world, app, 3);
    world.network = Network::Silent;
    let dials = world.dials.len();

    world.client.handle_woken(world.now);
    world.pass(SECOND * 10);

    assert!(world.dials.len() <= dials + 1);
    assert_eq!(world.links.len(), 1);
    assert_written_at_once(&mut world, app);
}

#[test]
fn an_idle_client_is_woken_five_times_a_minute_at_most() {
    let (mut world, _) = with_interfaces(&[WIFI_CARD, MOBILE]);
    world.pass(SECOND * 180);
    let before = world.wakes;

    world.pass(SECOND * 600);

    let wakes = world.wakes - before;
    assert!((1..=50).contains(&wakes), "{wakes} in ten minutes");
}

#[test]
fn a_client_without_network_is_woken_once_a_minute_at_most() {
    let config = ClientConfig {
        linger: None,
        ..client_config()
    };
    let mut world = World::with(config, registry_config(200));
    world.network = Network::NoPath;
    world.run();
    let before = world.wakes;

    world.pass(SECOND * 600);

    let wakes = world.wakes - before;
    assert!((1..=11).contains(&wakes), "{wakes} in ten minutes");
}
