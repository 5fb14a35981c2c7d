//! Which of two links the client has flows on.

use super::pair::{CLIENT, Pair, SERVER, START, config};
use super::*;

/// Behind a full uplink the first link's PINGs are answered late, and those of the second at once:
/// flows moved from the better network to the worse one.
#[test]
fn the_first_link_is_not_left_for_one_that_answers_sooner() {
    let client = Session::new_client(&config(Role::Client), START);
    let mut pair = Pair::greeted(client, &config(Role::Server));
    let first = pair.links[0];
    // WELCOME, a PING and its PONG; the next PING waits.
    let mut out = Outbox::new();
    for (from, to) in [(SERVER, CLIENT), (CLIENT, SERVER), (SERVER, CLIENT)] {
        out.clear();
        pair.ends[from].poll_transmit(first, 60_000, &mut out, pair.now);
        pair.ends[to].handle_bytes(first, out.to_vec().into(), pair.now);
    }
    out.clear();
    pair.ends[CLIENT].poll_transmit(first, 60_000, &mut out, pair.now);

    pair.links.clear();
    pair.resume();
    let second = pair.links[0];
    for (link, preference) in [(first, 0), (second, 1)] {
        pair.ends[CLIENT].prefer(link, preference, pair.now);
        pair.ends[CLIENT].keep(link, true, pair.now);
    }
    pair.run();

    assert_eq!(pair.ends[CLIENT].carrier(), Some(first));

    pair.ends[SERVER].handle_bytes(first, out.to_vec().into(), pair.now);
    pair.links.push(first);
    pair.run();
    assert_eq!(pair.ends[CLIENT].carrier(), Some(first));
}
