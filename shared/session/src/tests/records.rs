//! DATA is cut where the link's records end, so that the receiver finds frames whole.

use super::pair::{CLIENT, Pair, SERVER};
use super::*;
use crate::limits::{FIRST_BYTES, FIRST_RECORD, LEAST_PIECE, RECORD};
use crate::wire::codec;

/// Where each frame of what `end` sends on its link begins and ends, in one turn of `budget` bytes.
fn frames_of_a_turn(pair: &mut Pair, end: usize, budget: usize) -> Vec<(usize, usize)> {
    let mut out = Outbox::new();
    pair.ends[end].poll_transmit(pair.links[0], budget, &mut out, pair.now);
    let mut bytes = Bytes::from(out.to_vec());
    let (whole, mut frames, mut begin) = (bytes.len(), Vec::new(), 0);
    while codec::decode(&mut bytes).unwrap().is_some() {
        frames.push((begin, whole - bytes.len()));
        begin = whole - bytes.len();
    }
    assert_eq!(begin, whole, "frames only");
    frames
}

#[test]
fn frames_of_a_bulk_flow_end_with_records_whatever_pieces_it_comes_in() {
    for piece in [300, 5_000, 16_384, 65_536, 100_000] {
        let mut pair = Pair::new();
        let flow = pair.open_accepted();
        pair.gain_credit(flow);
        let mut written = 0;
        while written < 10 * RECORD {
            written += pair.write(SERVER, flow, piece);
        }

        let frames = frames_of_a_turn(&mut pair, SERVER, 8 * RECORD);

        // Where less is left of a record than a frame is worth, and nowhere else.
        let worth = LEAST_PIECE + codec::data_header_bytes(flow, Offset(1 << 40));
        let torn = |&&(begin, end): &&(usize, usize)| begin / RECORD != (end - 1) / RECORD;
        for (begin, end) in frames.iter().filter(torn) {
            let left = RECORD - begin % RECORD;
            assert!(
                left < worth,
                "{piece}: {begin} to {end} lies in two records"
            );
        }
        if piece >= 16_384 {
            assert_eq!(frames.iter().find(torn), None, "{piece}: {frames:?}");
        }
        let last = frames.last().unwrap().1;
        assert!(last > 7 * RECORD, "{piece}: the turn was filled, {last}");
    }
}

#[test]
fn what_shares_a_record_with_other_frames_is_cut_to_the_rest_of_it() {
    let mut pair = Pair::new();
    let (first, second) = (pair.open_accepted(), pair.open_accepted());
    pair.write(CLIENT, first, FIRST_BYTES);
    pair.run();
    pair.write(CLIENT, first, 10_000);
    pair.write(CLIENT, second, 100_000);

    let frames = frames_of_a_turn(&mut pair, CLIENT, 2 * RECORD);

    let ends: Vec<usize> = frames.iter().map(|(_, end)| *end).collect();
    assert_eq!(ends[1], RECORD, "{frames:?}");
}

#[test]
fn the_first_frames_of_a_link_come_in_a_segment_each() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    pair.gain_credit(flow);
    pair.lose_link();
    pair.resume();
    pair.write(SERVER, flow, 100_000);

    let frames = frames_of_a_turn(&mut pair, SERVER, 4 * RECORD);

    // The attach took less than one of them, and the turn begins another.
    let (first, later): (Vec<_>, Vec<_>) = frames.iter().partition(|(_, end)| *end <= FIRST_BYTES);
    let ends: Vec<usize> = first.iter().map(|(_, end)| *end).collect();
    let each: Vec<usize> = (1..=12).map(|place| place * FIRST_RECORD).collect();
    assert_eq!(ends, each, "{frames:?}");
    let long = later.first().map(|(begin, end)| end - begin);
    assert_eq!(long, Some(RECORD), "{frames:?}");
}
