//! A second link joins before the first one goes: nothing waits, and the first is retired.

use std::time::Duration;
use tund_session::LinkId;
use tund_tests::harness::coverage::Situation;
use tund_tests::harness::world::{CLIENT, Knobs, SERVER, Who, World};

#[test]
fn what_was_under_way_on_a_silent_link_goes_out_again_when_it_is_let_go_of() {
    let mut world = World::calm(Knobs::ROOMY);
    world.story = Some(Vec::new());
    world.connect();
    world.silence(LinkId(1));
    world.socket(0, SERVER).write(5000);
    world.socket(0, CLIENT).write(5000);
    world.work(false);

    world.attach();
    // Its last PING is unanswered, and nothing has moved since.
    world.work_for(Duration::from_millis(400));
    world.work(true);

    assert_eq!(world.socket(0, CLIENT).got, 5000);
    assert_eq!(world.socket(0, SERVER).got, 5000);
    for who in [Who::Client, world.server()] {
        let live: Vec<_> = world.session(who).unwrap().live_links().collect();
        assert_eq!(live.len(), 1, "{live:?}");
        assert_eq!(live[0].0, LinkId(2));
    }
}

#[test]
fn what_was_under_way_on_a_link_without_a_device_goes_out_again_at_once() {
    let mut world = World::calm(Knobs::ROOMY);
    world.story = Some(Vec::new());
    world.connect();
    world.silence(LinkId(1));
    world.socket(0, SERVER).write(5000);
    world.socket(0, CLIENT).write(5000);
    world.work(false);
    let before = world.now;
    world
        .with(Who::Client, |client| {
            client.handle_link_lost(LinkId(1), before);
        })
        .unwrap();
    assert!(!world.session(Who::Client).unwrap().is_attached());

    world.attach();
    world.work(true);

    assert_eq!(world.now, before, "no timeout was needed");
    assert_eq!(world.socket(0, CLIENT).got, 5000);
    assert_eq!(world.socket(0, SERVER).got, 5000);
}

#[test]
fn what_had_arrived_is_not_sent_again_though_the_server_takes_the_old_link_for_alive() {
    let mut world = World::calm(Knobs::ROOMY);
    world.story = Some(Vec::new());
    world.connect();
    world.socket(0, CLIENT).write(10_000);
    world.run_flows();
    world.transmit(LinkId(1), CLIENT, 60_000);
    world.deliver(LinkId(1), CLIENT, usize::MAX);
    // With the acknowledgement of all that.
    world.silence(LinkId(1));
    let now = world.now;
    world
        .with(Who::Client, |client| {
            client.handle_link_lost(LinkId(1), now);
        })
        .unwrap();

    world.attach();
    world.work(true);

    assert_eq!(world.socket(0, SERVER).got, 10_000);
    assert_eq!(world.coverage.count(Situation::DuplicateData), 0);
}

#[test]
fn the_old_link_stays_if_the_new_one_turns_out_dead() {
    let mut world = World::calm(Knobs::ROOMY);
    world.connect();
    let new = world.dial().unwrap();
    world.transmit(new, CLIENT, 1);
    world.deliver(new, CLIENT, usize::MAX);
    world.transmit(new, SERVER, 1);
    world.deliver(new, SERVER, usize::MAX);
    world.silence(new);

    world.socket(0, CLIENT).write(5000);
    world.socket(0, SERVER).write(5000);
    world.work_for(Duration::from_secs(90));
    world.work(true);

    assert_eq!(world.socket(0, SERVER).got, 5000);
    assert_eq!(world.socket(0, CLIENT).got, 5000);
    let live: Vec<_> = world.session(Who::Client).unwrap().live_links().collect();
    assert_eq!(live[0].0, LinkId(1));
}
