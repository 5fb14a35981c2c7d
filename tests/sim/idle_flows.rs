//! A thousand idle flows cost next to nothing when a link comes.

use std::time::Duration;
use tund_tests::harness::world::{CLIENT, Knobs, SERVER, World};

fn flow_state_entries(world: &World) -> usize {
    let lines = world.story.as_deref().unwrap_or_default();
    let frames = lines
        .iter()
        .filter(|line| line.contains(" sends ") && line.contains("FlowState"));
    frames.map(|line| line.matches("accepted").count()).sum()
}

#[test]
fn idle_flows_resume_without_telling_their_state_twice() {
    const FLOWS: usize = 1000;
    let mut world = World::calm(Knobs {
        buffer: [64 << 20, 64 << 20],
        max_flows: [2000, 2000],
        send_queue: 1 << 24,
        ..Knobs::ROOMY
    });
    world.connect();
    for _ in 1..FLOWS {
        world.open(Duration::from_secs(300)).unwrap();
    }
    world.work(false);
    for unit in 0..FLOWS {
        world.socket(unit, CLIENT).write(10);
        world.socket(unit, SERVER).write(10);
    }
    world.work(true);
    // A PONG that comes after them proves that the last ACKs have arrived.
    world.work_for(Duration::from_secs(10));
    world.work(true);

    world.story = Some(Vec::new());
    for _ in 0..2 {
        let link = *world.pipes.keys().next_back().unwrap();
        world.lose(link);
        world.attach();
    }
    assert_eq!(
        flow_state_entries(&world),
        0,
        "all was settled before the outage"
    );

    world.socket(3, CLIENT).write(1);
    let link = *world.pipes.keys().next_back().unwrap();
    world.work(true);
    world.lose(link);
    world.attach();
    let entries = flow_state_entries(&world);
    assert!(
        (1..=2).contains(&entries),
        "{entries} entries for one flow in use"
    );
    assert_eq!(world.socket(3, SERVER).got, 11);
}
