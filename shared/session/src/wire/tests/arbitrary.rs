//! Frames of every kind with any value that the protocol allows.

use crate::id::{FlowId, Instance, LinkNumber, MAX_VARINT, Offset, SessionId};
use crate::wire::codec::{MAX_ACKS, MAX_PAYLOAD, MAX_RELEASED, MAX_TAKES};
use crate::wire::frame::{
    Ack, CloseCode, Control, Data, Datagram, DatagramError, DatagramHead, DatagramPiece, Deliver,
    DeniedBy, FlowCode, Frame, Framing, HandOff, Hello, Limits, LinkCloseReason, OnExpiry, Open,
    OpenError, Protocol, RejectReason, Resume, ResumeOk, ResumeReject, Take, Welcome,
};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use std::net::SocketAddr;
use std::time::Duration;

/// Any frame.
pub(super) fn frame() -> BoxedStrategy<Frame> {
    prop_oneof![
        3 => attach_frame(),
        6 => (counted(), control()).prop_map(|(number, message)| Frame::Control { number, message }),
        6 => data().prop_map(Frame::Data),
        4 => link_frame(),
        2 => datagram_frame(),
    ]
    .boxed()
}

/// Numbers of every length, often one of the two where the length changes.
fn number() -> impl Strategy<Value = u64> {
    (0..=62_u32, any::<u64>(), 0..4_u8).prop_map(|(bits, value, edge)| {
        let above = 1_u64 << bits;
        match edge {
            0 => above - 1,
            1 => above.min(MAX_VARINT),
            _ => value & (above - 1),
        }
    })
}

fn counted() -> impl Strategy<Value = u64> {
    number().prop_map(|number| number.max(1))
}

fn flow() -> impl Strategy<Value = FlowId> {
    number().prop_map(FlowId)
}

fn offset() -> impl Strategy<Value = Offset> {
    number().prop_map(Offset)
}

fn link() -> impl Strategy<Value = LinkNumber> {
    counted().prop_map(LinkNumber)
}

fn millis() -> impl Strategy<Value = Duration> {
    number().prop_map(Duration::from_millis)
}

fn address() -> BoxedStrategy<SocketAddr> {
    prop_oneof![
        any::<([u8; 4], u16)>().prop_map(SocketAddr::from),
        any::<([u8; 16], u16)>().prop_map(SocketAddr::from),
    ]
    .boxed()
}

fn versions() -> impl Strategy<Value = (u64, u64)> {
    (number(), number()).prop_map(|(a, b)| (a.min(b), a.max(b)))
}

fn limits() -> impl Strategy<Value = Limits> {
    (number(), number(), counted()).prop_map(|(max_flows, buffer_bytes, floor_bytes)| Limits {
        max_flows,
        buffer_bytes,
        floor_bytes,
    })
}

fn ack() -> impl Strategy<Value = Ack> {
    (flow(), number(), number(), offset()).prop_map(|(flow, a, b, limit)| Ack {
        flow,
        accepted: Offset(a.max(b)),
        released: Offset(a.min(b)),
        limit,
    })
}

fn data() -> BoxedStrategy<Data> {
    let payload = prop_oneof![
        8 => vec(any::<u8>(), 0..64),
        1 => vec(any::<u8>(), MAX_PAYLOAD - 1..=MAX_PAYLOAD),
    ];
    (flow(), number(), any::<bool>(), payload)
        .prop_map(|(flow, offset, fin, payload)| {
            let taken = u64::try_from(payload.len()).expect("16 KiB") + 1;
            Data {
                flow,
                offset: Offset(offset.min(MAX_VARINT - taken)),
                fin: fin || payload.is_empty(),
                payload: Bytes::from(payload),
            }
        })
        .boxed()
}

fn attach_frame() -> BoxedStrategy<Frame> {
    let hello = (versions(), number(), any::<[u8; 16]>(), limits());
    let welcome = (
        number(),
        number(),
        any::<[u8; 16]>(),
        any::<[u8; 16]>(),
        limits(),
    );
    let resume = (
        versions(),
        any::<[u8; 16]>(),
        any::<[u8; 16]>(),
        link(),
        any::<[u8; 32]>(),
    );
    prop_oneof![
        hello.prop_map(
            |(versions, capabilities, instance, limits)| Frame::Hello(Hello {
                versions,
                capabilities,
                instance: Instance(instance),
                limits,
            })
        ),
        welcome.prop_map(|(version, capabilities, session, instance, limits)| {
            let (session, instance) = (SessionId(session), Instance(instance));
            Frame::Welcome(Welcome {
                version,
                capabilities,
                session,
                instance,
                limits,
            })
        }),
        Just(Frame::KeyInUse),
        resume.prop_map(|(versions, session, instance, proved, proof)| {
            let (session, instance) = (SessionId(session), Instance(instance));
            Frame::Resume(Resume {
                versions,
                session,
                instance,
                proved,
                proof,
            })
        }),
        link().prop_map(|number| Frame::ResumeOk(ResumeOk { number })),
        reject().prop_map(Frame::ResumeReject),
    ]
    .boxed()
}

fn reject() -> BoxedStrategy<ResumeReject> {
    let other = select(vec![
        RejectReason::Proof,
        RejectReason::Restarted,
        RejectReason::Superseded,
        RejectReason::Ended,
        RejectReason::Version,
        RejectReason::Busy,
    ]);
    let released = prop_oneof![
        8 => vec((flow(), offset()), 0..8),
        1 => vec((flow(), offset()), MAX_RELEASED),
    ];
    prop_oneof![
        (other, millis()).prop_map(|(reason, retry_after)| ResumeReject {
            reason,
            released: Vec::new(),
            retry_after,
        }),
        (released, millis()).prop_map(|(released, retry_after)| ResumeReject {
            reason: RejectReason::Expired,
            released,
            retry_after,
        }),
    ]
    .boxed()
}

fn link_frame() -> BoxedStrategy<Frame> {
    let reason = select(vec![
        LinkCloseReason::Unneeded,
        LinkCloseReason::Stopping,
        LinkCloseReason::Violation,
        LinkCloseReason::KeysOld,
    ]);
    prop_oneof![
        ack().prop_map(Frame::Ack),
        vec(ack(), 0..8).prop_map(Frame::FlowState),
        vec(ack(), MAX_ACKS).prop_map(Frame::FlowState),
        number().prop_map(|number| Frame::ControlAck { number }),
        number().prop_map(|nonce| Frame::Ping { nonce }),
        number().prop_map(|nonce| Frame::Pong { nonce }),
        reason.prop_map(|reason| Frame::LinkClose { reason }),
    ]
    .boxed()
}

fn datagram_frame() -> BoxedStrategy<Frame> {
    let payload = prop_oneof![
        4 => vec(any::<u8>(), 0..64),
        1 => vec(any::<u8>(), MAX_PAYLOAD),
    ];
    prop_oneof![
        (datagram_head(), payload).prop_map(|(head, payload)| {
            let payload = Bytes::from(payload);
            Frame::Datagram(Datagram { head, payload })
        }),
        (datagram_head(), 0..49_000_u32, 1..100_usize, 0..2_u32).prop_map(
            |(head, offset, bytes, more)| {
                let end = offset + u32::try_from(bytes).unwrap();
                Frame::DatagramPiece(DatagramPiece {
                    head,
                    offset,
                    whole: end + more * 16_384,
                    payload: Bytes::from(vec![7; bytes]),
                })
            }
        ),
        (flow(), address(), any::<u32>(), any::<u32>()).prop_map(|(flow, remote, errno, info)| {
            Frame::DatagramError(DatagramError {
                flow,
                remote,
                errno,
                info,
            })
        }),
    ]
    .boxed()
}

fn datagram_head() -> impl Strategy<Value = DatagramHead> {
    (flow(), address(), number()).prop_map(|(flow, remote, micros)| DatagramHead {
        flow,
        remote,
        age: Duration::from_micros(micros),
    })
}

fn control() -> BoxedStrategy<Control> {
    let close = select(vec![
        CloseCode::Asked,
        CloseCode::Idle,
        CloseCode::KeyRemoved,
        CloseCode::Superseded,
        CloseCode::Violation,
        CloseCode::Internal,
    ]);
    prop_oneof![
        open().prop_map(Control::Open),
        (flow(), offset(), millis()).prop_map(|(flow, limit, grace)| Control::OpenOk {
            flow,
            limit,
            grace
        }),
        (flow(), open_error()).prop_map(|(flow, error)| Control::OpenErr { flow, error }),
        (flow(), offset(), flow_code()).prop_map(|(flow, end, code)| Control::Reset {
            flow,
            end,
            code
        }),
        (flow(), flow_code()).prop_map(|(flow, code)| Control::Stop { flow, code }),
        (flow(), offset()).prop_map(|(flow, released)| Control::Done { flow, released }),
        link().prop_map(|older_than| Control::Retire { older_than }),
        Just(Control::Forget),
        link().prop_map(|link| Control::LinkDown { link }),
        close.prop_map(|code| Control::SessionClose { code }),
        deliver().prop_map(Control::Deliver),
    ]
    .boxed()
}

fn open() -> BoxedStrategy<Open> {
    let protocol = select(vec![
        Protocol::Tcp,
        Protocol::Udp,
        Protocol::Icmp,
        Protocol::UdpAny,
    ]);
    let on_expiry = prop_oneof![Just(OnExpiry::Reset), framing().prop_map(OnExpiry::Store),];
    let ends = (address(), address());
    let rest = (offset(), millis(), on_expiry, hand_off());
    (flow(), protocol, ends, rest)
        .prop_map(
            |(flow, protocol, (source, destination), (limit, grace, on_expiry, hand_off))| Open {
                flow,
                protocol,
                source,
                destination,
                limit,
                grace,
                on_expiry,
                hand_off,
            },
        )
        .boxed()
}

fn hand_off() -> BoxedStrategy<Option<Box<HandOff>>> {
    let take = (any::<[u8; 16]>(), flow(), offset());
    let take = take.prop_map(|(session, flow, delivered)| Take {
        session: SessionId(session),
        flow,
        delivered,
    });
    let within = select(vec![Framing::Line, Framing::OctetCount]);
    let some = (any::<u32>(), within, millis(), vec(take, 0..=MAX_TAKES));
    let some = some.prop_map(|(user, framing, retain, takes)| {
        Some(Box::new(HandOff {
            user,
            framing,
            retain,
            takes,
        }))
    });
    prop_oneof![Just(None), some].boxed()
}

fn framing() -> impl Strategy<Value = Framing> {
    select(vec![Framing::Whole, Framing::Line, Framing::OctetCount])
}

fn deliver() -> BoxedStrategy<Deliver> {
    let whose = (any::<[u8; 16]>(), flow(), any::<u32>());
    (flow(), whose, address(), framing(), offset(), millis())
        .prop_map(
            |(flow, (session, origin_flow, user), destination, framing, limit, grace)| Deliver {
                flow,
                session: SessionId(session),
                origin_flow,
                user,
                destination,
                framing,
                limit,
                grace,
            },
        )
        .boxed()
}

fn open_error() -> BoxedStrategy<OpenError> {
    prop_oneof![
        select(vec![
            OpenError::Refused,
            OpenError::NetworkUnreachable,
            OpenError::HostUnreachable,
            OpenError::TimedOut,
            OpenError::Denied(DeniedBy::Never),
            OpenError::Denied(DeniedBy::Default),
            OpenError::Denied(DeniedBy::Deny),
            OpenError::Exhausted,
            OpenError::TooManyFlows,
            OpenError::Cancelled,
        ]),
        any::<u32>().prop_map(OpenError::Other),
    ]
    .boxed()
}

fn flow_code() -> impl Strategy<Value = FlowCode> {
    select(vec![
        FlowCode::PeerReset,
        FlowCode::SocketError,
        FlowCode::Expired,
        FlowCode::Cancelled,
        FlowCode::Asked,
        FlowCode::Unsealable,
        FlowCode::Idle,
    ])
}
