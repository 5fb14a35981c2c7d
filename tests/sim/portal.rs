//! Links that never become links: nobody answers on them, or something else does.

use std::time::Duration;
use tund_session::{LinkId, Session};
use tund_tests::harness::world::{CLIENT, Knobs, SERVER, Who, World};

fn detached() -> World {
    let mut world = World::calm(Knobs::ROOMY);
    world.connect();
    world.lose(LinkId(1));
    for side in [CLIENT, SERVER] {
        world.socket(0, side).write(5000);
    }
    world
}

fn recovers(mut world: World) {
    assert_eq!(world.session(Who::Client).map(Session::flow_count), Some(1));
    world.attach();
    world.work(true);
    for side in [CLIENT, SERVER] {
        assert_eq!(world.socket(0, side).got, 5000);
    }
}

#[test]
fn twenty_seconds_without_an_answer_lose_nothing() {
    let mut world = detached();
    for _ in 0..3 {
        let link = world.dial().unwrap();
        world.silence(link);
        world.work_for(Duration::from_secs(7));
    }

    let attempts = world.client.as_ref().map(|client| client.books.links.len());

    assert_eq!(attempts, Some(2), "an attempt is given up after 15 s");
    recovers(world);
}

#[test]
fn an_answer_that_is_none_ends_that_attempt_only() {
    let mut world = detached();
    for garbage in [
        &b"HTTP/1.1 302 Found\r\n"[..],
        &[0xff; 64],
        &[0x02, 0, 0, 0],
        &[0x20; 70],
    ] {
        let link = world.dial().unwrap();
        world.transmit(link, CLIENT, 1);
        let now = world.now;
        if let Some(client) = &mut world.client {
            client
                .session
                .handle_bytes(link, garbage.to_vec().into(), now);
        }
        world.work(false);
        let open = world.client.as_ref().map(|client| client.books.links.len());
        assert_eq!(open, Some(0), "closed by {garbage:?}");
    }
    recovers(world);
}
