//! Datagrams that are refused, dropped or a violation.

use super::super::pair::{self, CLIENT, Pair, SERVER, config};
use super::{able, mapping, pair, remote, welcome};
use crate::wire::frame::{
    Control, Data, Datagram, DatagramHead, DatagramPiece, Frame, OpenError, Protocol,
};
use crate::*;
use bytes::Bytes;
use std::time::Duration;

fn datagram(flow: FlowId) -> Frame {
    let head = DatagramHead {
        flow,
        remote: remote(),
        age: Duration::ZERO,
    };
    Frame::Datagram(Datagram {
        head,
        payload: Bytes::from_static(b"x"),
    })
}

fn violation(pair: &mut Pair, frame: &Frame) -> Option<EndReason> {
    pair.say(frame);
    pair.ends[SERVER].end_reason()
}

#[test]
fn a_server_that_carries_no_datagrams_refuses_those_asked_for_before_it_was_known() {
    let now = pair::START;
    let mut client = Session::new_client(&able(Role::Client), now);
    let flow = client.open_flow(&mapping(), now).unwrap();
    client.send_datagram(flow, remote(), Bytes::from_static(b"x"), now);
    client.handle_link_up(LinkId(1), pair::secret(1), now);
    client.poll_transmit(LinkId(1), 1000, &mut Outbox::new(), now);

    client.handle_bytes(LinkId(1), welcome(0), now);

    let refused = Event::FlowRefused {
        flow,
        error: OpenError::Other(93),
        remainder: None,
    };
    assert_eq!(client.poll_event(), Some(refused));
    assert_eq!((client.flow_count(), client.buffered()), (0, (0, 0)));
    let again = client.open_flow(&mapping(), now);
    assert_eq!(again, Err(OpenRefused::NotAgreed));
}

#[test]
fn what_belongs_to_the_other_kind_of_flow_is_a_violation() {
    let mut pair = pair();
    let (stream, flow) = (pair.open_accepted(), pair.mapped());
    let what = "a datagram of a stream";
    assert_eq!(
        violation(&mut pair, &datagram(stream)),
        Some(EndReason::Violation { what })
    );

    let mut pair = self::pair();
    let stream = pair.mapped();
    assert_eq!(stream, FlowId(1));
    let data = Data {
        flow: stream,
        offset: Offset(0),
        fin: true,
        payload: Bytes::new(),
    };
    let what = "DATA of a mapping";
    let seen = violation(&mut pair, &Frame::Data(data));
    assert_eq!(seen, Some(EndReason::Violation { what }));
    let _ = flow;

    let mut pair = Pair::new();
    let stream = pair.open_accepted();
    let what = "a frame of a capability that was not agreed";
    assert_eq!(
        violation(&mut pair, &datagram(stream)),
        Some(EndReason::Violation { what })
    );
}

#[test]
fn a_datagram_ahead_of_its_open_is_dropped_and_harms_nobody() {
    let mut pair = pair();
    assert_eq!(violation(&mut pair, &datagram(FlowId(9))), None);
    let flow = pair.mapped();
    pair.throw(CLIENT, flow, b"now");
    pair.run();
    assert_eq!(pair.caught(SERVER, flow), [b"now"]);
}

#[test]
fn pieces_that_continue_nothing_are_dropped() {
    let mut pair = pair();
    let flow = pair.mapped();
    let piece = |offset, whole| {
        let head = DatagramHead {
            flow,
            remote: remote(),
            age: Duration::ZERO,
        };
        Frame::DatagramPiece(DatagramPiece {
            head,
            offset,
            whole,
            payload: Bytes::from(vec![1; 100]),
        })
    };
    for frame in [
        piece(100, 200),
        piece(0, 300),
        piece(200, 300),
        piece(0, 300),
        piece(100, 200),
    ] {
        assert_eq!(violation(&mut pair, &frame), None);
    }
    assert_eq!(pair.caught(SERVER, flow), [b""; 0]);
    for frame in [piece(100, 300), piece(200, 300)] {
        assert_eq!(violation(&mut pair, &frame), None);
    }
    assert_eq!(pair.caught(SERVER, flow), [[1; 300]]);
}

#[test]
fn an_open_without_the_capability_is_refused() {
    let mut pair = Pair::with(&config(Role::Client), &config(Role::Server));
    let open = Control::Open(wire::frame::Open {
        flow: FlowId(1),
        protocol: Protocol::Udp,
        source: remote(),
        destination: remote(),
        limit: Offset(0),
        grace: Duration::from_secs(1),
        on_expiry: wire::frame::OnExpiry::Reset,
        hand_off: None,
    });
    let number = 1;
    assert_eq!(
        violation(
            &mut pair,
            &Frame::Control {
                number,
                message: open
            }
        ),
        None
    );
    pair.run();
    assert_eq!(pair.ends[SERVER].flow_count(), 0);
    assert!(
        !pair.events[SERVER]
            .iter()
            .any(|e| matches!(e, Event::FlowOpened { .. }))
    );
}
