//! What is held, for whom, how long, and how it is cut.

use super::*;
use proptest::collection::vec;
use proptest::prelude::{any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use tund_session::wire::frame::Framing;
use tund_session::{Offset, Remainder};

const KEY: ClientKey = ClientKey([7; 32]);
const OTHER_KEY: ClientKey = ClientKey([8; 32]);
const USER: u32 = 1000;
const START: Instant = Instant::from_nanos(1_000_000_000);
const HOUR: Duration = Duration::from_secs(3600);
const SESSION: SessionId = SessionId([3; 16]);
/// Of tests that do not get there.
const BOUND: Bound = Bound {
    of_key: 4 << 20,
    of_all: 4 << 20,
};

fn destination() -> SocketAddr {
    ([192, 0, 2, 1], 514).into()
}

fn wish(takes: &[(u64, u64)]) -> HandOff {
    HandOff {
        user: USER,
        framing: Framing::Line,
        retain: HOUR,
        takes: takes
            .iter()
            .map(|(flow, delivered)| Take {
                session: SESSION,
                flow: FlowId(*flow),
                delivered: Offset(*delivered),
            })
            .collect(),
    }
}

fn held(start: u64, text: &[u8], fin: bool) -> Held {
    Held {
        destination: destination(),
        hand_off: wish(&[]),
        remainder: Remainder {
            start: Offset(start),
            bytes: vec![Bytes::copy_from_slice(text)],
            fin,
        },
        given: Offset(0),
    }
}

/// One flow of `KEY` has left `text` from `start` on.
fn offers(start: u64, text: &str, fin: bool) -> Offers {
    let mut offers = Offers::default();
    hold(&mut offers, 1, held(start, text.as_bytes(), fin));
    offers
}

fn hold(offers: &mut Offers, flow: u64, held: Held) {
    offers.hold((SESSION, FlowId(flow)), KEY, held, BOUND, START);
}

fn take(offers: &mut Offers, takes: &[(u64, u64)]) -> String {
    let pieces = offers.take(KEY, &wish(takes), destination());
    String::from_utf8(pieces.concat()).unwrap()
}

#[test]
fn the_message_that_was_cut_is_said_again_whole() {
    for (delivered, text, lost) in [
        (4, "two\nthree\n", 2),
        (7, "two\nthree\n", 2),
        (8, "three\n", 2),
        (13, "three\n", 2),
        (14, "", 2),
        (15, "", 1),
        (16, "", 0),
        (99, "", 0),
        // Less than what the server knew already.
        (0, "two\nthree\n", 2),
    ] {
        let mut offers = offers(4, "two\nthree\nfo", false);

        assert_eq!(take(&mut offers, &[(1, delivered)]), text, "{delivered}");
        assert_eq!(offers.tally().lost, lost, "{delivered}");
        assert_eq!(offers.kept(), [0; 5]);
    }
}

#[test]
fn an_end_does_not_make_a_message_whole() {
    let mut ended = offers(0, "one\ntwo", true);
    assert_eq!(take(&mut ended, &[(1, 0)]), "one\n");
    assert_eq!(ended.tally().lost, 3);

    let mut later = offers(0, "one\ntw", false);
    later.append((SESSION, FlowId(1)), b"o\nth", BOUND);
    later.finish((SESSION, FlowId(1)));
    assert_eq!(later.room((SESSION, FlowId(1)), BOUND), None);
    assert_eq!(take(&mut later, &[(1, 0)]), "one\ntwo\n");
    assert_eq!(later.tally().lost, 2);
}

#[test]
fn what_comes_behind_an_unfinished_message_is_cut_as_if_there_were_none() {
    let mut offers = Offers::default();
    for (flow, text) in [(1, "3 one100 tw"), (2, "3 two"), (3, "")] {
        let mut held = held(0, text.as_bytes(), true);
        held.hand_off.framing = Framing::OctetCount;
        hold(&mut offers, flow, held);
    }

    assert_eq!(take(&mut offers, &[(1, 0), (2, 0), (3, 0)]), "3 one3 two");
    assert_eq!(
        offers.tally(),
        Tally {
            handed_on: 10,
            lost: 6
        }
    );
}

#[test]
fn what_is_no_run_of_messages_is_lost() {
    let mut offers = offers(0, "SSH-2.0-some\nmore\n", false);

    assert_eq!(take(&mut offers, &[(1, 0)]), "");
    assert_eq!(
        offers.tally(),
        Tally {
            handed_on: 0,
            lost: 18
        }
    );
}

#[test]
fn each_offer_is_given_once() {
    let mut offers = offers(0, "one\n", false);

    assert_eq!(take(&mut offers, &[(1, 0), (1, 0)]), "one\n");
    assert_eq!(take(&mut offers, &[(1, 0)]), "");
    assert_eq!(
        offers.tally(),
        Tally {
            handed_on: 4,
            lost: 0
        }
    );
}

#[test]
fn several_are_given_in_the_order_in_which_they_are_asked_for() {
    let mut offers = Offers::default();
    for (flow, text) in [(5, "c\n"), (2, "a\n"), (9, "b\n")] {
        hold(&mut offers, flow, held(0, text.as_bytes(), false));
    }

    assert_eq!(
        take(&mut offers, &[(2, 0), (7, 0), (9, 0), (5, 0)]),
        "a\nb\nc\n"
    );
}

#[test]
fn nobody_else_gets_it() {
    let mut offers = offers(0, "one\n", false);
    let mine = wish(&[(1, 0)]);
    let another_user = HandOff {
        user: USER + 1,
        ..mine.clone()
    };
    let another_session = HandOff {
        takes: vec![Take {
            session: SessionId([4; 16]),
            ..mine.takes[0]
        }],
        ..mine.clone()
    };
    let nothing = Vec::<Bytes>::new();

    assert_eq!(offers.take(OTHER_KEY, &mine, destination()), nothing);
    assert_eq!(offers.take(KEY, &another_user, destination()), nothing);
    assert_eq!(offers.take(KEY, &another_session, destination()), nothing);
    assert_eq!(
        offers.take(KEY, &mine, ([192, 0, 2, 1], 515).into()),
        nothing
    );
    assert_eq!(take(&mut offers, &[(1, 0)]), "one\n");
}

#[test]
fn what_is_too_old_is_forgotten_and_not_before() {
    let mut offers = Offers::default();
    hold(&mut offers, 1, held(0, b"one\n", false));
    let mut long = held(0, b"other\n", false);
    long.hand_off.retain = 30 * HELD_FOR;
    hold(&mut offers, 2, long);

    assert_eq!(offers.poll_timeout(), Some(START + HOUR));
    offers.handle_timeout(START + (HOUR - Duration::from_nanos(1)));
    assert_eq!(offers.len(), 2);
    offers.handle_timeout(START + HOUR);
    assert_eq!(take(&mut offers, &[(1, 0)]), "");
    assert_eq!(offers.poll_timeout(), Some(START + HELD_FOR));
    offers.handle_timeout(START + HELD_FOR);
    assert_eq!((offers.kept(), offers.bytes()), ([0; 5], 0));
    assert_eq!(offers.tally().lost, 10);
}

#[test]
fn a_key_that_is_removed_loses_all_that_is_held_and_no_other() {
    let mut offers = offers(0, "one\n", false);
    offers.hold(
        (SESSION, FlowId(2)),
        OTHER_KEY,
        held(0, b"two\n", false),
        BOUND,
        START,
    );

    offers.retain_keys(|key| *key == OTHER_KEY);
    assert_eq!(take(&mut offers, &[(1, 0)]), "");
    assert_eq!(offers.len(), 1);
    offers.erase_key(OTHER_KEY);

    assert_eq!((offers.kept(), offers.bytes()), ([0; 5], 0));
    assert_eq!(
        offers.tally(),
        Tally {
            handed_on: 0,
            lost: 8
        }
    );
}

#[test]
fn at_a_keys_bound_its_oldest_goes_and_then_the_end() {
    let mut offers = Offers::default();
    let bound = Bound {
        of_key: 10,
        ..BOUND
    };
    let hold = |offers: &mut Offers, flow, held| {
        offers.hold((SESSION, FlowId(flow)), KEY, held, bound, START);
    };
    hold(&mut offers, 1, held(0, b"12345\n", false));
    hold(&mut offers, 2, held(0, b"789\n", false));
    assert_eq!((offers.len(), offers.bytes()), (2, 10));

    hold(&mut offers, 3, held(0, b"\n", false));
    assert_eq!(offers.bytes(), 5);
    assert_eq!(take(&mut offers, &[(1, 0), (2, 0), (3, 0)]), "789\n\n");
    hold(&mut offers, 4, held(0, b"12\n45\n78\nab\n", true));

    assert_eq!((offers.len(), offers.bytes()), (1, 10));
    assert_eq!(offers.room((SESSION, FlowId(4)), bound), None);
    assert_eq!(take(&mut offers, &[(4, 0)]), "12\n45\n78\n");
}

#[test]
fn what_a_socket_still_had_makes_nothing_be_forgotten_that_came_before() {
    let mut offers = Offers::default();
    let bound = Bound {
        of_key: 10,
        of_all: 12,
    };
    let name = |flow| (SESSION, FlowId(flow));
    offers.hold(name(1), KEY, held(0, b"12\n", false), bound, START);
    offers.hold(name(2), OTHER_KEY, held(0, b"1\n", false), bound, START);
    offers.hold(name(3), KEY, held(0, b"45\n", false), bound, START);

    assert_eq!(offers.room(name(3), bound), Some(4));
    assert_eq!(offers.room(name(2), bound), Some(4));
    offers.append(name(3), b"7\n9\nb\n", bound);

    assert_eq!(offers.room(name(3), bound), None);
    assert_eq!(take(&mut offers, &[(1, 0), (3, 0)]), "12\n45\n7\n9\n");
    assert_eq!((offers.len(), offers.tally().lost), (1, 2));
}

#[test]
fn at_the_bound_of_all_the_key_that_holds_the_most_gives_way() {
    let mut offers = Offers::default();
    let bound = Bound {
        of_all: 10,
        ..BOUND
    };
    let other = |offers: &mut Offers, flow, text: &[u8]| {
        offers.hold(
            (SESSION, FlowId(flow)),
            OTHER_KEY,
            held(0, text, false),
            bound,
            START,
        );
    };
    offers.hold(
        (SESSION, FlowId(1)),
        KEY,
        held(0, b"1\n", false),
        bound,
        START,
    );
    other(&mut offers, 2, b"123\n");
    other(&mut offers, 3, b"123\n");

    other(&mut offers, 4, b"1\n");

    assert_eq!(offers.bytes(), 8);
    assert_eq!(take(&mut offers, &[(1, 0)]), "1\n");
}

#[test]
fn one_great_offer_makes_nobody_elses_be_forgotten_and_gives_way_to_a_small_one() {
    let mut offers = Offers::default();
    let bound = Bound {
        of_all: 12,
        ..BOUND
    };
    let of = |offers: &mut Offers, key, flow, text: &[u8]| {
        let held = held(0, text, false);
        offers.hold((SESSION, FlowId(flow)), key, held, bound, START);
    };
    of(&mut offers, KEY, 1, b"one\n");
    of(&mut offers, OTHER_KEY, 2, b"12\n45\n78\nab\n");

    // It got what was left, and its end was lost.
    assert_eq!((offers.len(), offers.bytes()), (2, 12));
    assert_eq!(offers.tally().lost, 4);

    of(&mut offers, KEY, 3, b"2\n");

    assert_eq!((offers.len(), offers.bytes()), (2, 6));
    assert_eq!(take(&mut offers, &[(1, 0), (3, 0)]), "one\n2\n");
}

#[test]
fn a_key_that_leaves_nothing_but_names_makes_nobody_elses_be_forgotten() {
    let mut offers = Offers::default();
    offers.hold(
        (SESSION, FlowId(1)),
        KEY,
        held(0, b"one\n", false),
        BOUND,
        START,
    );
    for flow in 2..20_000 {
        let name = (SESSION, FlowId(flow));
        offers.hold(name, OTHER_KEY, held(0, b"", false), BOUND, START);
    }

    assert_eq!(offers.len(), 1 + OFFERS_PER_KEY);
    assert_eq!(take(&mut offers, &[(1, 0)]), "one\n");
}

#[test]
fn at_the_bound_of_offers_the_key_that_has_most_of_them_gives_way() {
    let mut offers = Offers::default();
    offers.hold(
        (SESSION, FlowId(1)),
        KEY,
        held(0, b"one\n", false),
        BOUND,
        START,
    );
    for flow in 2..10_200_u64 {
        let [low, high, ..] = flow.to_le_bytes();
        let key = ClientKey([(low ^ high) % 20 + 100; 32]);
        let name = (SESSION, FlowId(flow));
        offers.hold(name, key, held(0, b"", false), BOUND, START);
    }

    assert_eq!(offers.len(), OFFERS);
    assert_eq!(take(&mut offers, &[(1, 0)]), "one\n");
}

#[test]
fn blocks_hold_no_more_than_what_is_held() {
    let mut offers = Offers::default();
    hold(&mut offers, 1, held(0, b"", false));
    let name = (SESSION, FlowId(1));
    for _ in 0..100_000 {
        offers.append(name, b"x\n", BOUND);
    }

    let offer = offers.offers.values().next().unwrap();
    assert_eq!((offer.bytes, offer.blocks.len()), (200_000, 4));
    assert_eq!(take(&mut offers, &[(1, 100_001)]).len(), 100_000);
}

/// Of a connection that was given so much of others.
fn given_again(pieces: Vec<Bytes>, given: u64) -> Held {
    let mut held = held(0, b"", false);
    held.remainder.bytes = pieces;
    held.given = Offset(given);
    held
}

#[test]
fn what_comes_back_is_neither_looked_at_nor_copied_again() {
    let mut offers = offers(0, "", false);
    let name = (SESSION, FlowId(1));
    offers.append(name, &b"1234567\n".repeat(25_000), BOUND);
    let pieces = offers.take(KEY, &wish(&[(1, 0)]), destination());
    assert_eq!(pieces.concat().len(), 200_000);
    let places = pieces.iter().map(|piece| piece.as_ptr());
    let places = places.collect::<Vec<_>>();

    hold(&mut offers, 2, given_again(pieces, 200_000));
    offers.append((SESSION, FlowId(2)), b"more\nla", BOUND);
    let again = offers.take(KEY, &wish(&[(2, 0)]), destination());

    let same = again.iter().zip(&places[..3]);
    assert_eq!(same.filter(|(a, b)| a.as_ptr() == **b).count(), 3);
    assert!(again.concat().ends_with(b"1234567\nmore\n"));
    assert_eq!(offers.tally().lost, 2);

    // It takes the connection's word for where messages end, and finds out where that is cut.
    let text = || vec![Bytes::from_static(b"one\ntwo")];
    hold(&mut offers, 3, given_again(text(), 7));
    assert_eq!(take(&mut offers, &[(3, 0)]), "one\ntwo");
    let few = Bound { of_key: 6, ..BOUND };
    offers.hold(
        (SESSION, FlowId(4)),
        KEY,
        given_again(text(), 7),
        few,
        START,
    );
    assert_eq!(take(&mut offers, &[(4, 0)]), "one\n");
}

#[test]
fn a_short_piece_of_a_block_keeps_no_block() {
    let mut offers = offers(0, "", false);
    offers.append((SESSION, FlowId(1)), &b"1234567\n".repeat(8_192), BOUND);
    let block = offers.offers.values().next().unwrap().blocks[0].as_ptr_range();

    let pieces = offers.take(KEY, &wish(&[(1, 60_000)]), destination());

    assert_eq!(pieces.concat().len(), 65_536 - 60_000);
    assert!(!block.contains(&pieces[0].as_ptr()));
}

#[test]
fn what_comes_back_counts_as_handed_on_once() {
    let mut offers = offers(0, "one\ntwo\n", false);
    for flow in 2..5 {
        let pieces = offers.take(KEY, &wish(&[(flow - 1, 0)]), destination());
        assert_eq!(offers.tally().handed_on, 8);
        hold(&mut offers, flow, given_again(pieces, 8));
        assert_eq!(offers.tally().handed_on, 0);
    }
    // It has had the first, and something of its origin.
    let mut rest = given_again(vec![Bytes::from_static(b"two\nnew\n")], 8);
    rest.remainder.start = Offset(4);
    let pieces = offers.take(KEY, &wish(&[(4, 0)]), destination());
    assert_eq!(pieces.concat(), b"one\ntwo\n");

    hold(&mut offers, 5, rest);

    assert_eq!(offers.tally().handed_on, 4);
    assert_eq!(take(&mut offers, &[(5, 4)]), "two\nnew\n");
    let all = Tally {
        handed_on: 12,
        lost: 0,
    };
    assert_eq!(offers.tally(), all);
}

#[test]
fn what_begins_with_others_messages_has_no_head() {
    let mut held = held(0, b"SSH-2.0 scan\ntwo\n", false);
    held.hand_off = wish(&[(9, 0)]);
    let mut offers = Offers::default();
    hold(&mut offers, 1, held);

    assert_eq!(take(&mut offers, &[(1, 0)]), "SSH-2.0 scan\ntwo\n");
}

proptest! {
    /// Messages seen by the old connection and the new one are those that were sent, once and in
    /// order, wherever the old one was cut.
    #[test]
    fn old_and_new_connection_together_get_each_message_once(
        lengths in vec(prop_oneof![20 => 0..40_usize, 1 => 10_000..50_000_usize], 1..60),
        (known, delivered, sent) in any::<(u16, u16, u16)>(),
        sizes in vec(1..5_000_usize, 1..30),
        fin in any::<bool>(),
    ) {
        let mut all = Vec::new();
        let mut ends = vec![0];
        for (index, length) in lengths.iter().enumerate() {
            all.extend_from_slice(format!("{index}.").as_bytes());
            all.resize(all.len() + length, b'x');
            all.push(b'\n');
            ends.push(all.len());
        }
        let part = |part: u16, of: usize| of * usize::from(part) / usize::from(u16::MAX);
        // The server has read so much, the application has so much of it, and told of less.
        let sent = part(sent, all.len());
        let delivered = part(delivered, sent);
        let known = part(known, delivered);
        let before = |place: usize| ends.iter().copied().filter(|end| *end <= place).max().unwrap();
        let start = before(known);
        let (mut bytes, mut rest) = (Vec::new(), &all[start..sent]);
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, behind) = rest.split_at((*size).min(rest.len()));
            bytes.push(Bytes::copy_from_slice(piece));
            rest = behind;
        }
        let mut held = held(u64::try_from(start).unwrap(), b"", fin);
        held.remainder.bytes = bytes;
        let mut offers = Offers::default();
        offers.hold((SESSION, FlowId(1)), KEY, held, BOUND, START);

        let new = take(&mut offers, &[(1, u64::try_from(delivered).unwrap())]);

        let mut got = all[..before(delivered)].to_vec();
        got.extend_from_slice(new.as_bytes());
        // FIN or not, what comes next must not be taken for the rest of a message.
        let whole = before(sent);
        prop_assert_eq!(&got[..], &all[..whole.max(before(delivered))]);
        prop_assert!(offers.is_empty());
        prop_assert_eq!(offers.bytes(), 0);
        let tally = offers.tally();
        prop_assert_eq!(tally.handed_on, u64::try_from(new.len()).unwrap());
        prop_assert_eq!(tally.lost, u64::try_from(sent - whole.max(delivered)).unwrap());
    }
}
