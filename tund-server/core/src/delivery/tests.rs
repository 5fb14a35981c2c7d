//! Records in any pieces, what was delivered before, and what may be released when.

use super::delivered::EARLIEST;
use super::*;
use proptest::collection::vec;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use proptest::sample::select;
use proptest::strategy::Strategy;
use tund_session::wire::frame::Framing;

const CLIENT: ClientKey = ClientKey([1; 32]);
const STREAM: StoredFlow = StoredFlow {
    client: CLIENT,
    session: SessionId([2; 16]),
    flow: FlowId(3),
};

fn deliver(framing: Framing) -> Deliver {
    Deliver {
        flow: FlowId(7),
        session: STREAM.session,
        origin_flow: STREAM.flow,
        user: 0,
        destination: "192.0.2.1:514".parse().unwrap(),
        framing,
        limit: Offset(0),
        grace: std::time::Duration::ZERO,
    }
}

fn delivery() -> Delivery {
    Delivery::new(STREAM, deliver(Framing::Line))
}

/// A record "sealed" by turning its bytes around, with a tag behind.
fn record(start: u64, text: &[u8], has_fin: bool) -> Vec<u8> {
    let mut sealed: Vec<u8> = text.iter().map(|byte| !byte).collect();
    sealed.extend([9; 16]);
    let end = start + wide(text.len());
    let length = u32::try_from(sealed.len()).unwrap();
    let head = [
        &start.to_be_bytes()[..],
        &end.to_be_bytes(),
        &[u8::from(has_fin)],
        &length.to_be_bytes(),
    ];
    [head.concat(), sealed].concat()
}

fn unseal(_: &Binding, sealed: &[u8]) -> Option<Vec<u8>> {
    let (text, tag) = sealed.split_last_chunk::<16>()?;
    (tag == &[9; 16]).then(|| text.iter().map(|byte| !byte).collect())
}

fn pieces(bytes: &[u8], size: usize) -> Vec<Bytes> {
    bytes.chunks(size).map(Bytes::copy_from_slice).collect()
}

/// Runs a delivery of `stream` until it waits; what is written to the origin and taken.
fn run(delivery: &mut Delivery, stream: &[u8], delivered: u64) -> (Vec<u8>, usize, Step) {
    let (mut written, mut taken) = (Vec::new(), 0);
    let mut turn = Turn::default();
    loop {
        let arrived = pieces(&stream[taken..], 5);
        match delivery.step(
            (arrived.iter(), false),
            Offset(delivered),
            &mut turn,
            unseal,
        ) {
            Step::Write => {
                let text = delivery.text().unwrap().clone();
                let some = text.len().min(3);
                written.extend_from_slice(&text[..some]);
                delivery.wrote(some);
            }
            Step::Take(count) => taken += count,
            Step::Yield => turn = Turn::default(),
            end @ (Step::Wait | Step::Broken(_)) => return (written, taken, end),
        }
    }
}

#[test]
fn records_are_written_in_order_and_taken_when_written() {
    let stream = [
        record(0, b"one\ntwo\n", false),
        record(8, b"three\n", false),
    ]
    .concat();
    let mut delivery = delivery();

    let (written, taken, step) = run(&mut delivery, &stream, 0);

    assert_eq!(written, b"one\ntwo\nthree\n");
    assert_eq!((taken, step), (stream.len(), Step::Wait));
}

#[test]
fn a_part_of_a_record_is_waited_for() {
    let stream = record(0, b"one\n", false);
    for len in 0..stream.len() {
        let (written, taken, step) = run(&mut delivery(), &stream[..len], 0);

        assert_eq!((written.len(), taken, step), (0, 0, Step::Wait));
    }
}

#[test]
fn a_record_that_is_cut_off_is_found_out() {
    let stream = record(0, b"one\n", false);
    let step = |len: usize| {
        let arrived = pieces(&stream[..len], 7);
        let turn = &mut Turn::default();
        delivery().step((arrived.iter(), true), Offset(0), turn, unseal)
    };

    assert_eq!(step(0), Step::Wait);
    for len in 1..stream.len() {
        assert_eq!(step(len), Step::Broken("a record that is cut off"), "{len}");
    }
    assert_eq!(step(stream.len()), Step::Write);
}

#[test]
fn what_was_delivered_is_neither_opened_nor_written() {
    let stream = [record(0, b"one\n", false), record(4, b"two\n", false)].concat();
    let mut delivery = delivery();
    let mut opened = 0;
    let arrived = pieces(&stream, 100);

    let turn = &mut Turn::default();
    let step = delivery.step((arrived.iter(), false), Offset(4), turn, |_, _| {
        opened += 1;
        None
    });

    assert_eq!(
        (step, opened),
        (Step::Take(record(0, b"one\n", false).len()), 0)
    );
    assert_eq!(
        run(
            &mut Delivery::new(STREAM, deliver(Framing::Line)),
            &stream,
            4
        )
        .0,
        b"two\n"
    );
}

#[test]
fn a_message_acknowledged_in_part_is_written_whole() {
    let stream = record(10, b"one\ntwo\nthree\n", false);
    for (delivered, expected) in [
        (0, &b"one\ntwo\nthree\n"[..]),
        (13, b"one\ntwo\nthree\n"),
        (14, b"two\nthree\n"),
        (19, b"three\n"),
        (23, b"three\n"),
        (24, b""),
    ] {
        assert_eq!(
            run(&mut delivery(), &stream, delivered).0,
            expected,
            "{delivered}"
        );
    }
}

#[test]
fn a_message_that_fin_ends_is_delivered_with_its_fin_only() {
    let stream = record(0, b"one\ntw", true);

    assert_eq!(run(&mut delivery(), &stream, 6).0, b"tw");
    assert_eq!(run(&mut delivery(), &stream, 7).0, b"");
}

#[test]
fn a_record_is_released_when_it_is_recorded() {
    let (first, second) = (record(0, b"one\ntwo\n", false), record(8, b"three\n", true));
    let stream = [first.clone(), second].concat();
    let mut delivery = delivery();
    run(&mut delivery, &stream, 0);

    assert_eq!(delivery.acknowledged(14, false), None);
    assert_eq!(delivery.acknowledged(9, false), Some(Offset(5)));
    assert_eq!(delivery.recorded(Offset(5), false), None);
    assert_eq!(delivery.acknowledged(0, false), Some(Offset(14)));
    assert_eq!(
        delivery.recorded(Offset(8), false),
        Some(Offset(wide(first.len())))
    );
    assert_eq!(delivery.recorded(Offset(14), false), None);
    assert_eq!(delivery.acknowledged(1, true), Some(Offset(14)));
    assert_eq!(delivery.acknowledged(0, true), Some(Offset(15)));
    assert_eq!(
        delivery.recorded(Offset(15), false),
        Some(Offset(wide(stream.len())))
    );
    assert_eq!(
        delivery.recorded(Offset(15), true),
        Some(Offset(wide(stream.len()) + 1))
    );
}

#[test]
fn no_more_is_written_than_a_crash_may_repeat() {
    let line = |len: usize| [vec![b'x'; len - 1], vec![b'\n']].concat();
    for (first, is_held) in [(UNRECORDED_BYTES - 1, false), (UNRECORDED_BYTES, true)] {
        let all = line(usize::try_from(first).unwrap());
        let stream = [record(0, &all, false), record(first, b"next\n", false)].concat();
        let mut delivery = delivery();

        let (written, taken, step) = run(&mut delivery, &stream, 0);

        assert_eq!(
            (wide(written.len()), step),
            (first + if is_held { 0 } else { 5 }, Step::Wait)
        );
        delivery.recorded(Offset(first), false);
        let (rest, _, _) = run(&mut delivery, &stream[taken..], 0);
        assert_eq!(written.len() + rest.len(), all.len() + 5);
    }
}

#[test]
fn records_that_are_left_out_take_no_memory_each() {
    let mut delivery = delivery();
    let mut taken = 0;
    for n in 0..10_000 {
        let skipped = record(n, b"", true);
        // A record without FIN, sealed to nothing: its header alone counts.
        let mut skipped = skipped[..HEADER_BYTES].to_vec();
        skipped[8..16].copy_from_slice(&(n + 1).to_be_bytes());
        skipped[16..].fill(0);
        let (written, count, step) = run(&mut delivery, &skipped, 1 << 61);
        assert_eq!((written.len(), step), (0, Step::Wait));
        taken += count;
    }

    assert_eq!(taken, 10_000 * HEADER_BYTES);
    assert!(delivery.unreleased.len() < 10);
    assert_eq!(
        delivery.recorded(Offset(1 << 61), false),
        Some(Offset(wide(taken)))
    );
}

#[test]
fn many_short_records_wait_until_some_are_recorded() {
    let count = wide(UNRECORDED_RECORDS) + 1;
    let stream: Vec<u8> = (0..count).flat_map(|n| record(n, b"\n", false)).collect();
    let mut delivery = delivery();

    let (written, taken, step) = run(&mut delivery, &stream, 0);
    assert_eq!((written.len(), step), (UNRECORDED_RECORDS, Step::Wait));

    delivery.recorded(Offset(1), false);
    let (written, _, _) = run(&mut delivery, &stream[taken..], 0);
    assert_eq!(written.len(), 1);
}

#[test]
fn what_was_left_out_is_released_with_what_is_recorded_already() {
    let stream = [record(0, b"one\n", false), record(4, b"two\n", false)].concat();
    let mut delivery = delivery();
    run(&mut delivery, &stream, 6);

    assert_eq!(delivery.acknowledged(4, false), None);
    assert_eq!(
        delivery.recorded(Offset(6), false),
        Some(Offset(wide(stream.len()) / 2))
    );
    assert_eq!(delivery.acknowledged(1, false), Some(Offset(7)));
    assert_eq!(delivery.acknowledged(0, false), Some(Offset(8)));
}

#[test]
fn what_is_no_record_is_found_out() {
    let mut bad_tag = record(0, b"one\n", false);
    *bad_tag.last_mut().unwrap() = 0;
    let mut flags = record(0, b"one\n", false);
    flags[16] = 2;
    let mut long = record(0, b"one\n", false);
    long[17..21].copy_from_slice(&261_u32.to_be_bytes());
    let mut huge = record(0, b"one\n", false);
    huge[8..16].copy_from_slice(&65_537_u64.to_be_bytes());
    let mut other_length = record(0, b"one\n", false);
    other_length[15] = 3;
    let backwards = [record(4, b"two\n", false), record(3, b"x\n", false)].concat();
    let behind = [record(0, b"two\n", true), record(4, b"x\n", false)].concat();
    for (stream, what) in [
        (bad_tag, "a record does not open"),
        (flags, "a record with unknown flags"),
        (long, "a record longer than its text can make it"),
        (huge, "a record with more than a message may have"),
        (other_length, "a record that opens to another length"),
        (record(0, b"", false), "a record that carries nothing"),
        (
            record(0, b"one\ntw", false),
            "a record that ends within a message",
        ),
        (
            record(0, b"SSH-2.0\n", false),
            "a record that is no run of messages",
        ),
        (
            backwards,
            "a record that begins before the end of the one before",
        ),
        (behind, "a record behind the last one"),
    ] {
        assert_eq!(run(&mut delivery(), &stream, 0).2, Step::Broken(what));
    }
    assert_eq!(run(&mut delivery(), &record(0, b"", true), 0).2, Step::Wait);
}

/// How many records of one message each two deliveries take up together in one turn.
fn taken_up_in_one_turn(delivered: Offset) -> usize {
    let stream: Vec<u8> = (0..100).flat_map(|n| record(n, b"\n", false)).collect();
    let mut turn = Turn::default();
    let mut records = 0;
    for mut delivery in [delivery(), delivery()] {
        let mut rest = Bytes::from(stream.clone());
        loop {
            let arrived = [rest.clone()];
            match delivery.step((arrived.iter(), true), delivered, &mut turn, unseal) {
                Step::Write => delivery.wrote(1),
                Step::Take(count) => {
                    rest.advance(count);
                    records += 1;
                }
                Step::Yield => break,
                end @ (Step::Wait | Step::Broken(_)) => panic!("{end:?}"),
            }
        }
    }
    records
}

#[test]
fn all_deliveries_together_take_up_a_few_records_in_a_turn() {
    for delivered in [Offset(0), Offset(1_000)] {
        assert_eq!(taken_up_in_one_turn(delivered), RECORDS_PER_TURN);
    }
}

#[test]
fn a_record_that_is_begun_goes_on_in_a_turn_that_is_over() {
    let stream = [record(0, b"one\n", false), record(4, b"two\n", false)].concat();
    let arrived = pieces(&stream, 1_000);
    let mut delivery = delivery();
    let mut turn = Turn { records: 1 };
    let mut step = |delivery: &mut Delivery| {
        delivery.step((arrived.iter(), true), Offset(0), &mut turn, unseal)
    };

    assert_eq!(step(&mut delivery), Step::Write);
    delivery.wrote(2);
    assert_eq!(step(&mut delivery), Step::Write);
    delivery.wrote(2);
    assert_eq!(step(&mut delivery), Step::Take(stream.len() / 2));
    assert_eq!(step(&mut delivery), Step::Yield);
}

#[test]
fn a_stream_is_delivered_by_one_flow_at_a_time() {
    let mut deliveries = Deliveries::default();
    let (here, there) = (SessionId([5; 16]), SessionId([6; 16]));
    let again = Deliver {
        flow: FlowId(8),
        ..deliver(Framing::Line)
    };

    assert!(deliveries.begin(here, CLIENT, deliver(Framing::Line)));
    assert!(!deliveries.begin(there, CLIENT, again));
    assert!(deliveries.begin(there, ClientKey([8; 32]), again));
    assert!(deliveries.end(here, FlowId(7)).is_some());
    assert!(deliveries.begin(here, CLIENT, again));
    deliveries.end(there, FlowId(8));
    deliveries.end(here, FlowId(8));
    assert!(deliveries.is_empty() && deliveries.streams.is_empty());
}

fn progress(session: u8, flow: u64, offset: u64, at: u64) -> Progress {
    let (session, flow) = (SessionId([session; 16]), FlowId(flow));
    Progress {
        of: StoredFlow {
            client: CLIENT,
            session,
            flow,
        },
        offset: Offset(offset),
        at,
    }
}

#[test]
fn progress_only_grows_and_is_forgotten_by_age() {
    let mut delivered = Delivered::default();

    assert!(delivered.note(&progress(1, 1, 10, 100)));
    assert!(!delivered.note(&progress(1, 1, 10, 200)));
    assert!(!delivered.note(&progress(1, 1, 9, 200)));
    assert!(delivered.note(&progress(1, 2, 5, 150)));
    assert!(delivered.note(&progress(1, 1, 11, 200)));
    assert!(!delivered.note(&progress(1, 3, 0, 200)));
    let all = |d: &Delivered| d.all().map(|p| (p.of.flow, p.offset)).collect::<Vec<_>>();
    assert_eq!(
        all(&delivered),
        [(FlowId(1), Offset(11)), (FlowId(2), Offset(5))]
    );
    delivered.forget_older(50, 200);
    assert_eq!(delivered.len(), 2);
    delivered.forget_older(49, 200);

    assert_eq!(all(&delivered), [(FlowId(1), Offset(11))]);
}

#[test]
fn a_clock_that_is_far_ahead_makes_nothing_be_forgotten() {
    let mut delivered = Delivered::default();
    delivered.note(&progress(1, 1, 10, 1_000));
    delivered.note(&progress(1, 2, 10, 1_060));

    delivered.forget_older(60, 1_000_000);

    assert_eq!(delivered.len(), 2);
    delivered.forget_older(59, 1_000_000);
    assert_eq!(delivered.len(), 1);
}

#[test]
fn what_a_wrong_clock_has_written_down_counts_as_of_today() {
    let today = EARLIEST + 1_000;
    for (at, expected) in [
        (0, today),
        (EARLIEST - 1, today),
        (EARLIEST, EARLIEST),
        (today, today),
        (today + 1, today),
    ] {
        let mut delivered = Delivered::default();
        delivered.restore(&progress(1, 1, 10, at), today);

        assert_eq!(
            delivered.all().map(|p| p.at).collect::<Vec<_>>(),
            [expected]
        );
    }
}

#[test]
fn with_a_clock_that_went_back_the_newest_is_not_forgotten() {
    let mut delivered = Delivered::default();
    for flow in 0..wide(FLOWS_PER_KEY) {
        delivered.note(&progress(1, flow, 1, 1_000 + flow));
    }

    assert!(delivered.note(&progress(2, 1, 7, 5)));

    assert_eq!(delivered.offset(&progress(2, 1, 0, 0).of), Offset(7));
    assert_eq!(delivered.offset(&progress(1, 0, 0, 0).of), Offset(0));
    assert_eq!(delivered.len(), FLOWS_PER_KEY);
}

#[test]
fn a_client_has_its_own_bound_of_streams() {
    let mut delivered = Delivered::default();
    let mut other = progress(9, 1, 5, 0);
    other.of.client = ClientKey([9; 32]);
    delivered.note(&other);
    for flow in 0..wide(FLOWS_PER_KEY) + 5 {
        delivered.note(&progress(1, flow, 1, flow));
    }

    assert_eq!(delivered.len(), FLOWS_PER_KEY + 1);
    assert_eq!(delivered.offset(&progress(1, 4, 0, 0).of), Offset(0));
    assert_eq!(delivered.offset(&progress(1, 5, 0, 0).of), Offset(1));
    assert_eq!(delivered.offset(&other.of), Offset(5));
}

/// Lines cut into records, each with its place.
fn records(lines: &[Vec<u8>], cuts: &[bool]) -> (Vec<u8>, Vec<u8>) {
    let (mut stream, mut sent) = (Vec::new(), Vec::new());
    let (mut open, mut start) = (Vec::new(), 0);
    for (line, cut) in lines.iter().zip(cuts.iter().cycle()) {
        open.extend_from_slice(line);
        sent.extend_from_slice(line);
        if *cut {
            stream.extend(record(start, &open, false));
            start += wide(open.len());
            open.clear();
        }
    }
    if !open.is_empty() {
        stream.extend(record(start, &open, false));
    }
    (stream, sent)
}

fn line() -> impl Strategy<Value = Vec<u8>> {
    vec(select(&b"abc"[..]), 0..12).prop_map(|mut line| {
        line.push(b'\n');
        line
    })
}

proptest! {
    /// Whatever was acknowledged before, and however often it is tried again: the origin gets each
    /// message, in order, and again only what was under way, and the message that it cut.
    #[test]
    fn interrupted_deliveries_add_up(
        lines in vec(line(), 1..30),
        cuts in vec(any::<bool>(), 1..6),
        stops in vec((any::<u16>(), any::<u16>()), 0..6),
    ) {
        let (stream, sent) = records(&lines, &cuts);
        let mut known = Delivered::default();
        let mut got = Vec::new();
        let mut may_be_doubled = 0_usize;
        for (at, stop) in stops.iter().map(Some).chain([None]).enumerate() {
            let offset = known.offset(&STREAM);
            let mut delivery = delivery();
            let (written, taken, step) = run(&mut delivery, &stream, offset.0);
            prop_assert_eq!((taken, step), (stream.len(), Step::Wait));
            let begin = sent.len() - written.len();
            let gap = begin.saturating_sub(got.len());
            prop_assert_eq!(gap, 0, "bytes {}..{} never came", got.len(), begin);
            // The origin has got so many bytes, and its TCP has told us of so many of them.
            let (arrived, told) = stop.map_or((written.len(), written.len()), |(a, b)| {
                let arrived = usize::from(*a) % (written.len() + 1);
                (arrived, usize::from(*b) % (arrived + 1))
            });
            let repeated = got.len().saturating_sub(begin);
            prop_assert!(repeated <= may_be_doubled, "{repeated} bytes twice, not {may_be_doubled}");
            got.truncate(begin);
            got.extend_from_slice(&written[..arrived]);
            let acknowledged = delivery.acknowledged(wide(written.len() - told), false);
            let news = acknowledged.unwrap_or(offset);
            known.note(&Progress { of: STREAM, offset: news, at: wide(at) });
            let cut = lines.iter().map(Vec::len).max().unwrap_or(0);
            may_be_doubled = arrived - told + cut;
        }
        prop_assert_eq!(&got, &sent);
        prop_assert_eq!(known.offset(&STREAM), Offset(wide(sent.len())));
        let mut last = delivery();
        run(&mut last, &stream, known.offset(&STREAM).0);
        prop_assert_eq!(last.recorded(known.offset(&STREAM), false), Some(Offset(wide(stream.len()))));
    }
}
