//! What goes with RESUME, and what it spares.

use super::pair::{CLIENT, Pair, SERVER};
use super::*;

/// The server's RESUME_OK and all it sends with it.
fn first_flight(pair: &mut Pair) -> Vec<Frame> {
    let mut out = Outbox::new();
    pair.ends[SERVER].poll_transmit(pair.links[0], 60_000, &mut out, pair.now);
    let mut bytes = Bytes::from(out.to_vec());
    std::iter::from_fn(|| wire::codec::decode(&mut bytes).unwrap()).collect()
}

#[test]
fn what_has_arrived_without_a_word_of_it_is_not_sent_again_after_an_attach() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    pair.gain_credit(flow);
    let unheard = pair.write(SERVER, flow, 50_000);
    assert!(unheard > 20_000, "{unheard}");
    let mut out = Outbox::new();
    let link = pair.links[0];
    pair.ends[SERVER].poll_transmit(link, 60_000, &mut out, pair.now);
    pair.ends[CLIENT].handle_bytes(link, out.to_vec().into(), pair.now);
    pair.lose_link();

    pair.join();

    let flight = first_flight(&mut pair);
    assert!(
        matches!(flight.first(), Some(Frame::ResumeOk(_))),
        "{flight:?}"
    );
    let is_data = |frame: &&Frame| matches!(frame, Frame::Data(_));
    assert_eq!(flight.iter().find(is_data), None);

    // RESUME_OK gets lost: the state that came with RESUME has confirmed nothing.
    pair.lose_link();
    pair.resume();
    pair.write(SERVER, flow, 10);
    pair.run();
    assert_eq!(pair.read(CLIENT, flow), unheard + 10);
}
