//! A second link that stands by: it carries nothing until it is needed, and then at once.

use std::time::Duration;
use tund_session::{LinkId, Session};
use tund_tests::harness::coverage::Situation;
use tund_tests::harness::world::{CLIENT, Knobs, SERVER, Who, World};

/// A world with a flow, link 1 that is preferred and carries it, and link 2 that is kept.
fn with_standby() -> World {
    let mut world = World::calm(Knobs::ROOMY);
    world.story = Some(Vec::new());
    world.connect();
    steer(&mut world, |client, world_now| {
        client.prefer(LinkId(1), 0, world_now);
    });
    let standby = world.dial().unwrap();
    steer(&mut world, |client, now| {
        client.prefer(standby, 1, now);
        client.keep(standby, true, now);
    });
    world.work(true);
    assert_eq!(carriers(&world), [Some(LinkId(1)); 2]);
    assert_eq!(links(&world), [2, 2]);
    world
}

fn steer(world: &mut World, order: impl FnOnce(&mut Session, tund_session::Instant)) {
    let now = world.now;
    world
        .with(Who::Client, |client| order(client, now))
        .unwrap();
}

fn ends(world: &World) -> [&Session; 2] {
    [Who::Client, world.server()].map(|who| world.session(who).unwrap())
}

fn carriers(world: &World) -> [Option<LinkId>; 2] {
    ends(world).map(Session::carrier)
}

fn links(world: &World) -> [usize; 2] {
    ends(world).map(|end| end.live_links().count())
}

/// Bytes go both ways without any time passing.
fn assert_passes_at_once(world: &mut World) {
    let before = (world.now, [0, 1].map(|side| world.socket(0, side).got));
    world.socket(0, CLIENT).write(5000);
    world.socket(0, SERVER).write(5000);
    world.work(true);
    assert_eq!(world.now, before.0);
    for side in [CLIENT, SERVER] {
        assert_eq!(world.socket(0, side).got, before.1[side] + 5000);
    }
}

/// What either end has to say on that link goes there and back once.
fn round_trip(world: &mut World, link: LinkId) {
    for side in [CLIENT, SERVER] {
        world.transmit(link, side, 60_000);
        world.deliver(link, side, usize::MAX);
    }
}

#[test]
fn the_newest_link_carries_nothing_when_the_client_prefers_another() {
    let mut world = with_standby();

    assert_passes_at_once(&mut world);
    world.work_for(Duration::from_secs(100));

    assert_eq!(carriers(&world), [Some(LinkId(1)); 2]);
    assert_eq!(links(&world), [2, 2], "both are still kept");
}

#[test]
fn a_carrier_without_a_device_is_replaced_without_a_pause() {
    let mut world = with_standby();
    world.socket(0, SERVER).write(5000);
    world.silence(LinkId(1));
    world.work(true);

    let before = world.now;
    steer(&mut world, |client, now| {
        client.handle_link_lost(LinkId(1), now);
    });
    world.work(true);
    assert_eq!(world.socket(0, CLIENT).got, 5000, "what was under way");
    assert_eq!(world.now, before);

    assert_passes_at_once(&mut world);
    assert_eq!(carriers(&world), [Some(LinkId(2)); 2]);
    assert_eq!(links(&world), [1, 1]);
}

#[test]
fn a_carrier_that_falls_silent_is_replaced_within_a_second() {
    for (up, down) in [(1, 0), (0, 1), (1, 1)] {
        let mut world = with_standby();
        world.work_for(Duration::from_secs(3));
        world.silence(LinkId(1));
        let from = world.now;
        world.socket(0, CLIENT).write(up * 5000);
        world.socket(0, SERVER).write(down * 5000);

        world.work_for(Duration::from_millis(660));
        world.work(true);

        assert_eq!(
            world.socket(0, SERVER).got,
            up * 5000,
            "up {up}, down {down}"
        );
        assert_eq!(
            world.socket(0, CLIENT).got,
            down * 5000,
            "up {up}, down {down}"
        );
        assert_eq!(carriers(&world), [Some(LinkId(2)); 2]);
        assert!(world.now.saturating_duration_since(from) < Duration::from_millis(700));
    }
}

#[test]
fn when_both_fall_silent_it_is_an_outage_and_the_next_link_ends_it() {
    let mut world = with_standby();
    world.socket(0, CLIENT).write(5000);
    world.silence(LinkId(1));
    world.silence(LinkId(2));
    world.socket(0, SERVER).write(5000);
    world.work_for(Duration::from_secs(5));
    assert!(!world.session(Who::Client).unwrap().is_attached());

    world.attach();
    world.work(true);

    assert_eq!(world.socket(0, SERVER).got, 5000);
    assert_eq!(world.socket(0, CLIENT).got, 5000);
    assert_eq!(carriers(&world), [Some(LinkId(3)); 2]);
}

#[test]
fn a_better_link_takes_over_and_nothing_is_sent_twice() {
    let mut world = World::calm(Knobs::ROOMY);
    world.story = Some(Vec::new());
    world.connect();
    steer(&mut world, |client, now| client.prefer(LinkId(1), 1, now));
    world.socket(0, CLIENT).write(50_000);
    world.socket(0, SERVER).write(50_000);
    for side in [CLIENT, SERVER] {
        world.run_flows();
        world.transmit(LinkId(1), side, 30_000);
    }

    world.dial().unwrap();
    world.work(true);

    assert_eq!(world.socket(0, SERVER).got, 50_000);
    assert_eq!(world.socket(0, CLIENT).got, 50_000);
    assert_eq!(carriers(&world), [Some(LinkId(2)); 2]);
    assert_eq!(links(&world), [1, 1], "the old one was let go of");
    assert_eq!(world.coverage.count(Situation::DuplicateData), 0);
}

#[test]
fn a_worse_link_that_is_not_kept_is_let_go_of() {
    let mut world = World::calm(Knobs::ROOMY);
    world.connect();
    let worse = world.dial().unwrap();
    steer(&mut world, |client, now| client.prefer(worse, 1, now));

    world.work(true);

    assert_eq!(carriers(&world), [Some(LinkId(1)); 2]);
    assert_eq!(links(&world), [1, 1]);
    assert_passes_at_once(&mut world);
}

#[test]
fn what_was_said_late_on_the_old_link_leads_the_server_nowhere() {
    let mut world = with_standby();
    // Under way on the old link: an OPEN and bytes.
    world.open(Duration::from_secs(300)).unwrap();
    world.socket(0, CLIENT).write(3000);
    world.run_flows();
    world.transmit(LinkId(1), CLIENT, 60_000);

    steer(&mut world, |client, now| client.prefer(LinkId(2), 0, now));
    world.transmit(LinkId(2), CLIENT, 60_000);
    world.deliver(LinkId(2), CLIENT, usize::MAX);
    assert_eq!(carriers(&world), [Some(LinkId(2)); 2]);
    world.deliver(LinkId(1), CLIENT, usize::MAX);

    assert_eq!(carriers(&world), [Some(LinkId(2)); 2]);
    world.work(true);
    assert_eq!(world.socket(0, SERVER).got, 3000);
}

#[test]
fn a_link_that_has_answered_once_carries_rather_than_one_that_has_not() {
    let mut world = World::calm(Knobs::ROOMY);
    world.connect();
    let old = world.dial().unwrap();
    // RESUME, and the first PING.
    round_trip(&mut world, old);
    round_trip(&mut world, old);
    world.lose(LinkId(1));
    let new = world.dial().unwrap();
    round_trip(&mut world, new);
    assert_eq!(links(&world)[CLIENT], 2);

    world.silence(new);

    assert_eq!(carriers(&world)[CLIENT], Some(old));
    world.work(true);
    assert_passes_at_once(&mut world);
}

/// What was sent last, with the end of the stream, comes first: the client has moved to another link
/// meanwhile, and the server after it.
#[test]
fn an_end_that_overtakes_bytes_on_another_link_waits_for_them() {
    for side in [CLIENT, SERVER] {
        let mut world = with_standby();
        // These wait for the reader, whose turn comes behind the end.
        world.socket(0, side).write(1000);
        world.work(false);
        world.socket(0, side).write(3000);
        world.run_flows();
        world.transmit(LinkId(1), side, 60_000);

        steer(&mut world, |client, now| client.prefer(LinkId(2), 0, now));
        world.transmit(LinkId(2), CLIENT, 60_000);
        world.deliver(LinkId(2), CLIENT, usize::MAX);
        world.socket(0, side).write(3000);
        world.socket(0, side).finish();
        world.run_flows();
        world.transmit(LinkId(2), side, 60_000);
        world.deliver(LinkId(2), side, usize::MAX);
        world.socket(0, 1 - side).read(u64::MAX);
        world.run_flows();
        world.check();
        world.demand();
        let reader = world.socket(0, 1 - side);
        assert!(reader.got == 1000 && !reader.has_fin(), "side {side}");

        world.deliver(LinkId(1), side, usize::MAX);
        world.work(true);

        let reader = world.socket(0, 1 - side);
        assert!(reader.got == 7000 && reader.has_fin(), "side {side}");
    }
}

#[test]
fn the_old_link_carries_until_the_new_one_has_answered() {
    let mut world = World::calm(Knobs::ROOMY);
    world.connect();
    let new = world.dial().unwrap();
    round_trip(&mut world, new);
    world.silence(new);

    assert_passes_at_once(&mut world);
    assert_eq!(carriers(&world), [Some(LinkId(1)); 2]);
    world.work_for(Duration::from_secs(5));

    assert_passes_at_once(&mut world);
    assert_eq!(links(&world), [1, 1]);
}

#[test]
fn a_better_link_carries_after_its_first_six_answers() {
    let mut world = World::calm(Knobs::ROOMY);
    world.connect();
    steer(&mut world, |client, now| client.prefer(LinkId(1), 1, now));
    let better = world.dial().unwrap();
    // RESUME, and five PINGs.
    for _ in 0..6 {
        round_trip(&mut world, better);
        assert_eq!(carriers(&world)[CLIENT], Some(LinkId(1)));
    }

    round_trip(&mut world, better);

    assert_eq!(carriers(&world)[CLIENT], Some(better));
}

#[test]
fn a_new_link_carries_at_once_when_the_old_one_is_lost() {
    let mut world = World::calm(Knobs::ROOMY);
    world.connect();
    let new = world.dial().unwrap();
    round_trip(&mut world, new);
    assert_eq!(carriers(&world)[CLIENT], Some(LinkId(1)));

    steer(&mut world, |client, now| {
        client.handle_link_lost(LinkId(1), now);
    });

    assert_eq!(carriers(&world)[CLIENT], Some(new));
}
