//! What dies with a link is said again elsewhere: acknowledgements, deaths, and the end of it all.

use std::time::Duration;
use tund_session::{LinkId, Session};
use tund_tests::harness::world::{CLIENT, Knobs, SERVER, Who, World};

const OLD: LinkId = LinkId(1);

/// A second link that both ends know, while the first still lives.
fn joined(world: &mut World) -> LinkId {
    let new = world.dial().unwrap();
    for side in [CLIENT, SERVER] {
        world.transmit(new, side, 1);
        world.deliver(new, side, usize::MAX);
    }
    new
}

#[test]
fn a_control_ack_that_died_with_its_link_is_repeated() {
    let mut world = World::calm(Knobs::ROOMY);
    world.open(Duration::from_secs(60)).unwrap();
    world.dial();
    world.run_links();
    let server = world.server();
    let Who::Server(id) = server else {
        unreachable!()
    };
    let flow = world.flows(server)[0];
    let new = joined(&mut world);
    world.answer(id, flow, true);
    world.transmit(OLD, SERVER, 1000);
    world.deliver(OLD, SERVER, usize::MAX);
    world.transmit(new, CLIENT, 1000);

    world.cut(new, &[CLIENT, SERVER], &[CLIENT]);
    world.work_for(Duration::from_secs(5));

    assert_eq!(world.session(server).map(Session::wants_link), Some(false));
}

#[test]
fn what_went_out_on_a_link_that_only_the_other_end_holds_dead_goes_out_again() {
    let mut world = World::calm(Knobs::ROOMY);
    world.connect();
    let new = joined(&mut world);
    world.transmit(new, CLIENT, 1000);
    world.deliver(new, CLIENT, usize::MAX);
    world.socket(0, SERVER).write(5000);
    let server = world.server();
    let flow = world.flows(server)[0];
    world.pump(server, flow, 5000);
    world.cut(new, &[CLIENT, SERVER], &[]);
    world.transmit(new, SERVER, 60_000);

    world.cut(new, &[], &[CLIENT]);
    world.work_for(Duration::from_secs(1));
    world.work(true);

    assert_eq!(world.socket(0, CLIENT).got, 5000);
}

#[test]
fn a_client_that_vanishes_in_a_quiet_time_is_given_up_with_its_origins() {
    let mut world = World::calm(Knobs::ROOMY);
    world.connect();
    world.work_for(Duration::from_secs(200));
    world.silence(OLD);
    world.restart_client();

    world.work_for(Duration::from_secs(60 + 300 + 30 - 26));
    assert_eq!(world.books.len(), 1, "grace has not passed");
    world.work_for(Duration::from_secs(30));

    assert_eq!(world.books.len(), 0);
    assert!(world.socket(0, SERVER).is_reset());
}
