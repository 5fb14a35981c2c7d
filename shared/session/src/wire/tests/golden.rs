//! The bytes of one frame of every kind, written down.

use super::{decoded, encoded, hex};
use crate::id::{FlowId, Instance, LinkNumber, Offset, SessionId};
use crate::wire::frame::{
    Ack, CloseCode, Control, Data, Datagram, DatagramError, DatagramHead, DatagramPiece, Deliver,
    DeniedBy, FlowCode, Frame, Framing, HandOff, Hello, Limits, LinkCloseReason, OnExpiry, Open,
    OpenError, Protocol, RejectReason, Resume, ResumeOk, ResumeReject, Take, Welcome, capability,
};
use crate::wire::kind::Kind;
use bytes::Bytes;
use std::time::Duration;

const LIMITS: Limits = Limits {
    max_flows: 65_536,
    buffer_bytes: 64 * 1024 * 1024,
    floor_bytes: 1024,
};
const FLOW: FlowId = FlowId(2);
const ACK: Ack = Ack {
    flow: FLOW,
    accepted: Offset(1000),
    released: Offset(900),
    limit: Offset(66_436),
};

#[test]
fn each_frame_has_the_bytes_written_here() {
    for (frame, digits) in attach().into_iter().chain(lane()).chain(traffic()) {
        let bytes = hex(digits);

        assert_eq!(encoded(&frame), bytes, "{frame:?}");
        assert_eq!(decoded(&bytes), Ok(Some((frame, bytes.len()))));
    }
}

#[test]
fn every_kind_is_written_here() {
    let written: Vec<u8> = attach()
        .into_iter()
        .chain(lane())
        .chain(traffic())
        .map(|(_, digits)| hex(digits)[0])
        .collect();

    for kind in Kind::ALL {
        assert!(
            written.contains(&kind.to_wire()),
            "{} is missing",
            kind.name()
        );
    }
}

fn attach() -> Vec<(Frame, &'static str)> {
    let hello = Hello {
        versions: (1, 1),
        capabilities: capability::DELIVERY | capability::DATAGRAM,
        instance: Instance([0x11; 16]),
        limits: LIMITS,
    };
    let welcome = Welcome {
        version: 1,
        capabilities: 0,
        session: SessionId([0x22; 16]),
        instance: Instance([0x33; 16]),
        limits: LIMITS,
    };
    let resume = Resume {
        versions: (1, 1),
        session: SessionId([0x22; 16]),
        instance: Instance([0x33; 16]),
        proved: LinkNumber(2),
        proof: [0x44; 32],
    };
    let reject = ResumeReject {
        reason: RejectReason::Expired,
        released: vec![(FlowId(1), Offset(5)), (FlowId(64), Offset(16_384))],
        retry_after: Duration::from_millis(1500),
    };
    vec![
        (
            Frame::Hello(hello),
            "01 00001d 01 01 09 11111111111111111111111111111111 80010000 84000000 4400",
        ),
        (
            Frame::Welcome(welcome),
            "02 00002c 01 00 22222222222222222222222222222222
             33333333333333333333333333333333 80010000 84000000 4400",
        ),
        (Frame::KeyInUse, "03 000000"),
        (
            Frame::Resume(resume),
            "04 000043 01 01 22222222222222222222222222222222
             33333333333333333333333333333333 02
             4444444444444444444444444444444444444444444444444444444444444444",
        ),
        (
            Frame::ResumeOk(ResumeOk {
                number: LinkNumber(3),
            }),
            "05 000001 03",
        ),
        (
            Frame::ResumeReject(reject),
            "06 00000b 03 45dc 01 05 4040 80004000",
        ),
    ]
}

fn lane() -> Vec<(Frame, &'static str)> {
    let flow = FLOW;
    let (limit, grace) = (Offset(65_536), Duration::from_secs(600));
    let (end, code) = (Offset(1000), FlowCode::PeerReset);
    let open_err = |error| Control::OpenErr { flow, error };
    let denied = OpenError::Denied(DeniedBy::Default);
    let (older_than, link) = (LinkNumber(2), LinkNumber(1));
    let released = Offset(1001);
    let expired = FlowCode::Expired;
    let asked = CloseCode::Asked;
    let messages = [
        (
            Control::Open(open()),
            "31 000026 01 02 01 04 0a6f0002 9c40 06 20010db8000000000000000000000001 01bb
             80010000 800927c0 02",
        ),
        (
            Control::OpenOk { flow, limit, grace },
            "32 00000a 02 02 80010000 800927c0",
        ),
        (open_err(OpenError::Refused), "33 000005 03 02 01 406f"),
        (open_err(denied), "33 000004 04 02 06 0d"),
        (open_err(OpenError::Other(5)), "33 000004 05 02 00 05"),
        (
            Control::Reset { flow, end, code },
            "34 000005 06 02 43e8 01",
        ),
        (
            Control::Stop {
                flow,
                code: expired,
            },
            "35 000003 07 02 03",
        ),
        (Control::Done { flow, released }, "36 000004 08 02 43e9"),
        (Control::Retire { older_than }, "37 000002 09 02"),
        (Control::LinkDown { link }, "38 000002 0a 01"),
        (Control::SessionClose { code: asked }, "39 000002 0b 01"),
        (
            Control::Deliver(deliver()),
            "40 00002e 0c 02 22222222222222222222222222222222 07 43e8
             06 20010db8000000000000000000000001 01bb 03 00 800927c0",
        ),
        (
            Control::Open(open_hand_off()),
            "50 000040 0d 02 01 04 0a6f0002 9c40 06 20010db8000000000000000000000001 01bb
             80010000 800927c0 02 43e8 02 8036ee80 22222222222222222222222222222222 07 43e8",
        ),
        (Control::Forget, "51 000001 0e"),
    ];
    (1..)
        .zip(messages)
        .map(|(number, (message, digits))| (Frame::Control { number, message }, digits))
        .collect()
}

fn deliver() -> Deliver {
    Deliver {
        flow: FLOW,
        session: SessionId([0x22; 16]),
        origin_flow: FlowId(7),
        user: 1000,
        destination: "[2001:db8::1]:443".parse().unwrap(),
        framing: Framing::OctetCount,
        limit: Offset(0),
        grace: Duration::from_secs(600),
    }
}

fn open() -> Open {
    Open {
        flow: FLOW,
        protocol: Protocol::Tcp,
        source: "10.111.0.2:40000".parse().unwrap(),
        destination: "[2001:db8::1]:443".parse().unwrap(),
        limit: Offset(65_536),
        grace: Duration::from_secs(600),
        on_expiry: OnExpiry::Store(Framing::Line),
        hand_off: None,
    }
}

fn open_hand_off() -> Open {
    let take = Take {
        session: SessionId([0x22; 16]),
        flow: FlowId(7),
        delivered: Offset(1000),
    };
    let hand_off = HandOff {
        user: 1000,
        framing: Framing::Line,
        retain: Duration::from_secs(3600),
        takes: vec![take],
    };
    Open {
        hand_off: Some(Box::new(hand_off)),
        ..open()
    }
}

fn traffic() -> Vec<(Frame, &'static str)> {
    let remote = "192.0.2.1:53".parse().unwrap();
    let data = Data {
        flow: FLOW,
        offset: Offset(1 << 30),
        fin: true,
        payload: Bytes::from_static(b"abc"),
    };
    let new = Ack {
        flow: FlowId(3),
        accepted: Offset(0),
        released: Offset(0),
        limit: Offset(1),
    };
    let head = DatagramHead {
        flow: FlowId(9),
        remote,
        age: Duration::from_micros(1500),
    };
    let datagram = Datagram {
        head,
        payload: Bytes::from_static(b"dns"),
    };
    let piece = DatagramPiece {
        head,
        offset: 16_384,
        whole: 16_387,
        payload: Bytes::from_static(b"end"),
    };
    let error = DatagramError {
        flow: FlowId(9),
        remote,
        errno: 90,
        info: 1400,
    };
    vec![
        (Frame::ControlAck { number: 8 }, "30 000001 08"),
        (Frame::Data(data), "20 00000d 02 c000000040000000 01 616263"),
        (Frame::Ack(ACK), "21 000009 02 43e8 4384 80010384"),
        (
            Frame::FlowState(vec![ACK, new]),
            "22 00000d 02 43e8 4384 80010384 03 00 00 01",
        ),
        (
            Frame::Ping {
                nonce: 0x0123_4567_89ab_cdef,
            },
            "10 000008 c123456789abcdef",
        ),
        (Frame::Pong { nonce: 63 }, "11 000001 3f"),
        (
            Frame::LinkClose {
                reason: LinkCloseReason::Stopping,
            },
            "12 000001 02",
        ),
        (
            Frame::Datagram(datagram),
            "28 00000d 09 04 c0000201 0035 45dc 646e73",
        ),
        (
            Frame::DatagramPiece(piece),
            "2a 000015 09 04 c0000201 0035 45dc 80004000 80004003 656e64",
        ),
        (
            Frame::DatagramError(error),
            "29 00000c 09 04 c0000201 0035 405a 4578",
        ),
    ]
}
