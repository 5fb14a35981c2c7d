//! What one link may take of its owner's time before others get their turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use super::super::up::{READ_TURN_BYTES, RECORD_COST_BYTES};
use super::*;

/// Small records of one turn.
const SMALL_PER_TURN: usize = READ_TURN_BYTES / RECORD_COST_BYTES;

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sizes of what one turn gives, and whether it woke its owner for the next one.
fn turn(link: &mut Link) -> (Vec<usize>, bool) {
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut sizes = Vec::new();
    while let Poll::Ready(data) = link.poll_recv(&mut Context::from_waker(&waker), usize::MAX) {
        sizes.push(data.unwrap().unwrap().len());
    }
    (sizes, wakes.0.load(Ordering::Relaxed) > 0)
}

#[tokio::test]
async fn the_smallest_records_make_no_longer_a_turn_than_large_ones() {
    // As in the daemons: tokio's own budget would end turns earlier.
    tokio::task::unconstrained(small_records()).await;
}

async fn small_records() {
    let world = World::new();
    let (mut near, mut far) = world.up().await;
    let all = 3 * SMALL_PER_TURN + 10;
    for _ in 0..all {
        near.send([b"x".as_slice()].into_iter()).unwrap();
    }
    flush(&mut near).await.unwrap();

    let (mut got, mut full) = (0, 0);
    while got < all {
        // The first of each turn finds the socket readable.
        got += recv(&mut far).await.unwrap().unwrap().len();
        let (sizes, was_woken) = turn(&mut far);
        got += sizes.iter().sum::<usize>();
        let count = 1 + sizes.len();
        assert!(count <= SMALL_PER_TURN, "{count}");
        if count == SMALL_PER_TURN {
            full += 1;
            assert!(was_woken, "what is left would wait for more to arrive");
        }
    }
    assert!(full >= 2, "{full} full turns");
}
