//! What a listed client that means harm can make a session hold, or do again and again.

use super::pair::{CLIENT, Pair, SERVER, open};
use super::*;
use crate::wire::frame::{Data, Framing};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn piece(flow: FlowId, offset: u64, len: usize) -> Frame {
    Frame::Data(Data {
        flow,
        offset: Offset(offset),
        fin: false,
        payload: Bytes::from(vec![5; len]),
    })
}

/// One byte and one hole in turns: each piece costs some hundred bytes, and credit counts one. The
/// bound is that of the session; with one of each flow it was worth nothing.
#[test]
fn short_pieces_of_all_flows_together_have_a_bound() {
    let mut pair = Pair::new();
    let flows: Vec<FlowId> = (0..16).map(|_| pair.open_accepted()).collect();
    let mut held = 0;

    for flow in flows {
        for place in 0..6000 {
            if pair.ends[SERVER].is_ended() {
                break;
            }
            pair.say(&piece(flow, place * 2 + 1, 1));
            held += 1;
        }
    }

    assert!(pair.ends[SERVER].is_ended());
    assert_eq!(held, limits::PIECES_OUT_OF_ORDER + 1);
}

#[test]
fn pieces_of_flows_that_are_over_count_no_more() {
    let mut pair = Pair::new();
    for _ in 0..20 {
        let flow = pair.open_accepted();
        for place in 0..6000 {
            pair.say(&piece(flow, place * 2 + 1, 1));
        }
        pair.ends[CLIENT].abort(flow, FlowCode::Asked, pair.now);
        pair.run();
    }

    assert!(!pair.ends[SERVER].is_ended());
    assert_eq!(pair.ends.each_ref().map(Session::flow_count), [0, 0]);
}

/// Small writes behind a hole are what an honest client has under way when its link has died.
#[test]
fn short_pieces_that_touch_count_as_one() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    for place in 1..8000 {
        pair.say(&piece(flow, place, 1));
    }

    assert!(pair.ends[SERVER].kept(flow).short_pieces <= 2);
    pair.say(&piece(flow, 0, 1));

    assert_eq!(pair.read(SERVER, flow), 8000);
    assert_eq!(pair.ends[SERVER].kept(flow).short_pieces, 0);
}

/// A payload is a part of what its link was read into, and keeps all of it: with junk between the
/// pieces 32 times its own length. While the reader keeps up nothing is copied.
#[test]
fn a_session_keeps_few_of_the_buffers_that_links_were_read_into() {
    let mut pair = Pair::new();
    let flows = [pair.open_accepted(), pair.open_accepted()];
    let len = limits::COPY_BELOW;
    let most = usize::try_from(limits::SLICES).unwrap();
    let place = |n: usize| u64::try_from(n * len).unwrap();
    for flow in flows {
        for n in 0..most * 2 {
            pair.say(&piece(flow, place(n), len));
            assert_eq!(pair.ends[SERVER].kept(FlowId(1)).slices, 1);
            assert_eq!(pair.read(SERVER, flow), len);
            assert_eq!(pair.ends[SERVER].kept(FlowId(1)).slices, 0);
        }
    }

    // Early ones count as those in order do.
    let begin = most * 2;
    for flow in flows {
        for n in (0..most / 2).rev() {
            pair.say(&piece(flow, place(begin + n), len));
        }
    }
    assert_eq!(pair.ends[SERVER].kept(FlowId(1)).slices, most);
    for flow in flows {
        for n in 0..5 {
            let at = place(begin + most / 2 + n);
            pair.say(&piece(flow, at, len));
        }
    }

    assert_eq!(pair.ends[SERVER].kept(FlowId(1)).slices, most);
    for flow in flows {
        assert_eq!(pair.read(SERVER, flow), (most / 2 + 5) * len);
    }
    assert_eq!(pair.ends[SERVER].kept(FlowId(1)).slices, 0);
}

#[test]
fn slices_of_flows_that_are_over_count_no_more() {
    let mut pair = Pair::new();
    for _ in 0..3 {
        let flow = pair.open_accepted();
        pair.say(&piece(flow, 0, limits::COPY_BELOW));
        assert_eq!(pair.ends[SERVER].kept(FlowId(1)).slices, 1);
        pair.ends[CLIENT].abort(flow, FlowCode::Asked, pair.now);
        pair.run();
        assert_eq!(pair.ends[SERVER].kept(FlowId(1)).slices, 0);
    }
}

/// What covers small pieces takes their place, so that saying it again costs nothing.
#[test]
fn a_long_piece_takes_the_place_of_short_ones() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    for place in 0..3000 {
        pair.say(&piece(flow, place * 2 + 1, 1));
    }

    pair.say(&piece(flow, 1, 7000));

    assert_eq!(pair.ends[SERVER].kept(flow).short_pieces, 0);
    assert_eq!(pair.ends[SERVER].buffered().1, 7000);
    pair.say(&piece(flow, 0, 1));
    assert_eq!(pair.read(SERVER, flow), 7001);
}

/// A RESET whose bytes never come is no deadline; an index of all of them was walked at each input,
/// and one session with all its flows in that state took the server from all others.
#[test]
fn resets_whose_bytes_are_not_here_are_not_looked_at() {
    let mut pair = Pair::new();
    for id in 1..=50 {
        let flow = FlowId(id);
        let open = open(flow, OnExpiry::Reset);
        let reset = Control::Reset {
            flow,
            end: Offset(10),
            code: FlowCode::PeerReset,
        };
        for (number, message) in [(id * 2 - 1, open), (id * 2, reset)] {
            pair.say(&Frame::Control { number, message });
            pair.ends[SERVER].accept_flow(flow, pair.now);
        }
    }
    assert_eq!(pair.ends[SERVER].flow_count(), 50);
    assert_eq!(pair.ends[SERVER].kept(FlowId(1)).stalls, 0);

    pair.say(&piece(FlowId(7), 0, 10));

    assert_eq!(pair.ends[SERVER].kept(FlowId(1)).stalls, 1);
    pair.now = pair.now + limits::RESET_STALL;
    pair.ends[SERVER].handle_timeout(pair.now);
    assert_eq!(pair.ends[SERVER].kept(FlowId(1)).stalls, 0);
    assert_eq!(pair.ends[SERVER].delivery(FlowId(7)), Delivery::Ended);
}

/// A client that says `Store` without having agreed to deliver: PROTOCOL.md §11. The server listed the
/// offsets of all its flows, a megabyte of them for each session that expired.
#[test]
fn who_has_not_agreed_to_deliver_has_nothing_stored() {
    let mut pair = Pair::new();
    let flow = FlowId(1);
    let message = open(flow, OnExpiry::Store(Framing::Line));
    pair.say(&Frame::Control { number: 1, message });
    pair.ends[SERVER].accept_flow(flow, pair.now);
    assert_eq!(pair.ends[SERVER].flow_count(), 1);

    pair.lose_link();
    pair.seconds(91);

    assert_eq!(pair.ends[SERVER].end_reason(), Some(EndReason::Expired));
    assert_eq!(pair.ends[SERVER].released_at_end(), []);
}

/// An origin that sends byte by byte: a chunk costs some 70 bytes beside its own.
#[test]
fn small_writes_share_chunks() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    pair.lose_link();
    for byte in 0..10_000_u32 {
        let byte = byte.to_le_bytes()[0];
        pair.ends[SERVER].write(flow, Bytes::copy_from_slice(&[byte]), pair.now);
    }

    assert!(pair.ends[SERVER].kept(flow).chunks <= 3);
    pair.resume();

    let got: Vec<u8> = pair.ends[CLIENT]
        .readable(flow)
        .flatten()
        .copied()
        .collect();
    let wanted = (0..10_000_u32).map(|byte| byte.to_le_bytes()[0]);
    assert!(got.iter().copied().eq(wanted));
}

/// Memory that tells when it is let go of.
struct Buffer {
    bytes: Vec<u8>,
    held: Arc<AtomicUsize>,
}

impl Buffer {
    fn of(len: usize, held: &Arc<AtomicUsize>) -> Bytes {
        held.fetch_add(len, Ordering::Relaxed);
        Bytes::from_owner(Self {
            bytes: vec![5; len],
            held: Arc::clone(held),
        })
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// The peer has released all but the last byte: the share of the flow is one byte, and the read
/// buffer that it lies in was kept, 65,536 times what is counted.
#[test]
fn what_is_not_released_keeps_no_more_than_four_times_its_length() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    pair.gain_credit(flow);
    pair.lose_link();
    let held = Arc::new(AtomicUsize::new(0));
    let lens = [65_536, 50_000, 65_536];
    for len in lens {
        pair.ends[SERVER].write(flow, Buffer::of(len, &held), pair.now);
    }
    pair.resume();
    let mut left: usize = lens.iter().sum();
    assert_eq!(held.load(Ordering::Relaxed), left);
    let mut got = 0;

    while left > 1 {
        let there: usize = pair.ends[CLIENT].readable(flow).map(Bytes::len).sum();
        let count = there.min((left - 1).min(1 + left / 7));
        assert!(count > 0, "stuck with {left} unread");
        pair.ends[CLIENT].release(flow, count, pair.now);
        pair.ends[CLIENT].drained(flow, u64::try_from(count).unwrap(), pair.now);
        pair.run();
        got += count;
        left -= count;

        let kept = held.load(Ordering::Relaxed);
        let retained = usize::try_from(pair.ends[SERVER].buffered().0).unwrap();
        assert!(kept <= retained * 4, "{kept} for {retained}, {left} unread");
    }

    assert_eq!(held.load(Ordering::Relaxed), 0);
    assert_eq!(pair.ends[SERVER].buffered().0, 1);
    assert_eq!(pair.read(CLIENT, flow) + got, lens.iter().sum());
}

/// Each flow may have a grace of its own, and at the end of each all flows were walked over.
#[test]
fn graces_are_looked_at_when_they_are_over() {
    let mut pair = Pair::new();
    let flows: Vec<FlowId> = (0..10).map(|_| pair.open_accepted()).collect();
    assert_eq!(pair.ends[SERVER].kept(flows[0]).expiries, 0);
    pair.lose_link();
    assert_eq!(pair.ends[SERVER].kept(flows[0]).expiries, 10);

    for flow in &flows[..3] {
        pair.ends[SERVER].abort(*flow, FlowCode::Asked, pair.now);
    }
    assert_eq!(pair.ends[SERVER].kept(flows[0]).expiries, 7);
    pair.resume();
    assert_eq!(pair.ends[SERVER].kept(flows[0]).expiries, 0);

    // Those of an outage that is over mean nothing in the next one.
    pair.seconds(30);
    pair.lose_link();
    pair.seconds(89);
    assert!(!pair.ends[SERVER].is_ended());
    pair.seconds(2);
    assert!(pair.ends[SERVER].is_ended());
    assert_eq!(pair.ends[SERVER].kept(flows[0]).expiries, 0);
}

/// Link after link joins beside one that works, and dies, and nothing is acknowledged.
#[test]
fn words_about_dead_links_do_not_pile_up() {
    let mut pair = Pair::new();
    let flow = pair.open_accepted();
    let most = u64::try_from(limits::LINKS_DOWN).unwrap();
    for n in 0..most * 2 {
        let link = LinkId(1000 + n);
        pair.ends[CLIENT].handle_link_up(link, secret(9), pair.now);
        let mut out = Outbox::new();
        pair.ends[CLIENT].poll_transmit(link, 10_000, &mut out, pair.now);
        let Ok(Some(Frame::Resume(resume))) = wire::codec::decode(&mut Bytes::from(out.to_vec()))
        else {
            panic!("no RESUME");
        };
        let server = &mut pair.ends[SERVER];
        server
            .handle_resume(link, &resume, secret(9), pair.now)
            .unwrap();
        server.handle_link_down(link, pair.now);
        pair.ends[CLIENT].handle_link_down(link, pair.now);
        assert_eq!(pair.ends[SERVER].kept(flow).messages, most.min(n + 1));
    }

    // The last are those that are kept.
    let mut out = Outbox::new();
    pair.ends[SERVER].poll_transmit(LinkId(1), 60_000, &mut out, pair.now);
    let mut bytes = Bytes::from(out.to_vec());
    let frames = std::iter::from_fn(|| wire::codec::decode(&mut bytes).unwrap());
    let named = frames.filter_map(|frame| {
        let Frame::Control { message, .. } = frame else {
            return None;
        };
        let Control::LinkDown { link } = message else {
            return None;
        };
        Some(link.0)
    });
    assert!(named.eq(most + 2..most * 2 + 2));
}

#[test]
fn who_opens_and_never_acknowledges_breaks_the_protocol() {
    let mut pair = Pair::new();
    let most = 64 * 4 + limits::CONTROL_WINDOW * 2;
    let mut opened = 0;

    while !pair.ends[SERVER].is_ended() {
        opened += 1;
        assert!(opened <= most + 2, "{opened} OPENs");
        let flow = FlowId(opened);
        pair.say(&Frame::Control {
            number: opened,
            message: open(flow, OnExpiry::Reset),
        });
        pair.ends[SERVER].refuse_flow(flow, OpenError::Refused, pair.now);
    }

    assert!(opened > most, "{opened} OPENs");
}
