//! Frames to bytes.

use super::code::Code;
use super::frame::{
    Ack, Control, DatagramError, DatagramHead, Deliver, Frame, HandOff, Hello, Limits, Open,
    Resume, ResumeReject, Welcome,
};
use super::kind::{
    FLAGS, HEADER, Kind, MAX_ACKS, MAX_DATA_HEADER, MAX_PAYLOAD, MAX_RELEASED, MAX_TAKES,
};
use crate::id::{FlowId, MAX_VARINT, Offset};

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Bit 0 of DATA's flags.
pub(super) const FIN: u8 = 1;

/// Appends one frame, payload included.
///
/// Numbers above [`MAX_VARINT`] and lists beyond their limit are mistakes of the caller: asserted
/// in tests, cut to the limit otherwise.
pub fn encode(frame: &Frame, out: &mut Vec<u8>) {
    match frame {
        Frame::Hello(hello) => encode_hello(hello, out),
        Frame::Welcome(welcome) => encode_welcome(welcome, out),
        Frame::KeyInUse => Body::new(Kind::KeyInUse, out).end(),
        Frame::Resume(resume) => encode_resume(resume, out),
        Frame::ResumeOk(ok) => Body::new(Kind::ResumeOk, out).number(ok.number.0).end(),
        Frame::ResumeReject(reject) => encode_reject(reject, out),
        Frame::Control { number, message } => encode_control(*number, message, out),
        Frame::ControlAck { number } => Body::new(Kind::ControlAck, out).number(*number).end(),
        Frame::Data(data) => {
            encode_data_header(data.flow, data.offset, data.fin, data.payload.len(), out);
            out.extend_from_slice(&data.payload);
        }
        Frame::Ack(ack) => Body::new(Kind::Ack, out).ack(ack).end(),
        Frame::FlowState(acks) => {
            debug_assert!(acks.len() <= MAX_ACKS, "FLOW_STATE goes in pieces");
            acks.iter()
                .take(MAX_ACKS)
                .fold(Body::new(Kind::FlowState, out), Body::ack)
                .end();
        }
        Frame::Ping { nonce } => Body::new(Kind::Ping, out).number(*nonce).end(),
        Frame::Pong { nonce } => Body::new(Kind::Pong, out).number(*nonce).end(),
        Frame::LinkClose { reason } => Body::new(Kind::LinkClose, out).code(*reason).end(),
        Frame::Datagram(datagram) => {
            encode_datagram_header(&datagram.head, None, datagram.payload.len(), out);
            out.extend_from_slice(&datagram.payload);
        }
        Frame::DatagramPiece(piece) => {
            let place = Some((piece.offset, piece.whole));
            encode_datagram_header(&piece.head, place, piece.payload.len(), out);
            out.extend_from_slice(&piece.payload);
        }
        Frame::DatagramError(error) => encode_datagram_error(error, out),
    }
}

/// Appends DATA up to its payload, which the caller sends behind it without copying it.
///
/// At most [`MAX_DATA_HEADER`] bytes are appended.
pub fn encode_data_header(
    flow: FlowId,
    offset: Offset,
    fin: bool,
    payload_len: usize,
    out: &mut Vec<u8>,
) {
    debug_assert!(payload_len <= MAX_PAYLOAD, "DATA goes in pieces");
    debug_assert!(payload_len > 0 || fin, "DATA carries something");
    out.reserve(MAX_DATA_HEADER);
    let before = out.len();
    Body::new(Kind::Data, out)
        .number(flow.0)
        .number(offset.0)
        .byte(if fin { FIN } else { 0 })
        .end_before(payload_len);
    debug_assert_eq!(
        out.len(),
        before.saturating_add(data_header_bytes(flow, offset))
    );
}

/// How many bytes [`encode_data_header`] appends.
pub fn data_header_bytes(flow: FlowId, offset: Offset) -> usize {
    let numbers = number_bytes(flow.0).saturating_add(number_bytes(offset.0));
    numbers.saturating_add(const { HEADER + FLAGS })
}

/// The length of an integer (RFC 9000 §16).
const fn number_bytes(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        0x4000_0000.. => 8,
    }
}

fn encode_hello(hello: &Hello, out: &mut Vec<u8>) {
    Body::new(Kind::Hello, out)
        .versions(hello.versions)
        .number(hello.capabilities)
        .bytes(&hello.instance.0)
        .limits(&hello.limits)
        .end();
}

fn encode_welcome(welcome: &Welcome, out: &mut Vec<u8>) {
    Body::new(Kind::Welcome, out)
        .number(welcome.version)
        .number(welcome.capabilities)
        .bytes(&welcome.session.0)
        .bytes(&welcome.instance.0)
        .limits(&welcome.limits)
        .end();
}

fn encode_resume(resume: &Resume, out: &mut Vec<u8>) {
    Body::new(Kind::Resume, out)
        .versions(resume.versions)
        .bytes(&resume.session.0)
        .bytes(&resume.instance.0)
        .number(resume.proved.0)
        .bytes(&resume.proof)
        .end();
}

fn encode_reject(reject: &ResumeReject, out: &mut Vec<u8>) {
    debug_assert!(
        reject.released.len() <= MAX_RELEASED,
        "RESUME_REJECT goes in pieces"
    );
    let body = Body::new(Kind::ResumeReject, out)
        .code(reject.reason)
        .millis(reject.retry_after);
    reject
        .released
        .iter()
        .take(MAX_RELEASED)
        .fold(body, |body, (flow, released)| {
            body.number(flow.0).number(released.0)
        })
        .end();
}

fn encode_control(number: u64, message: &Control, out: &mut Vec<u8>) {
    let body = Body::new(control_kind(message), out).number(number);
    match message {
        Control::Open(open) => encode_open(body, open),
        Control::OpenOk { flow, limit, grace } => {
            body.number(flow.0).number(limit.0).millis(*grace).end();
        }
        Control::OpenErr { flow, error } => {
            let (code, errno) = error.to_wire();
            body.number(flow.0)
                .number(code)
                .number(u64::from(errno))
                .end();
        }
        Control::Reset { flow, end, code } => body.number(flow.0).number(end.0).code(*code).end(),
        Control::Stop { flow, code } => body.number(flow.0).code(*code).end(),
        Control::Done { flow, released } => body.number(flow.0).number(released.0).end(),
        Control::Retire { older_than } => body.number(older_than.0).end(),
        Control::Forget => body.end(),
        Control::LinkDown { link } => body.number(link.0).end(),
        Control::SessionClose { code } => body.code(*code).end(),
        Control::Deliver(deliver) => encode_deliver(body, deliver),
    }
}

const fn control_kind(message: &Control) -> Kind {
    match message {
        Control::Open(Open { hand_off: None, .. }) => Kind::Open,
        Control::Open(_) => Kind::OpenHandOff,
        Control::OpenOk { .. } => Kind::OpenOk,
        Control::OpenErr { .. } => Kind::OpenErr,
        Control::Reset { .. } => Kind::Reset,
        Control::Stop { .. } => Kind::Stop,
        Control::Done { .. } => Kind::Done,
        Control::Retire { .. } => Kind::Retire,
        Control::Forget => Kind::Forget,
        Control::LinkDown { .. } => Kind::LinkDown,
        Control::SessionClose { .. } => Kind::SessionClose,
        Control::Deliver(_) => Kind::Deliver,
    }
}

fn encode_open(body: Body<'_>, open: &Open) {
    let body = body
        .number(open.flow.0)
        .code(open.protocol)
        .address(open.source)
        .address(open.destination)
        .number(open.limit.0)
        .millis(open.grace)
        .code(open.on_expiry);
    match &open.hand_off {
        None => body.end(),
        Some(hand_off) => encode_hand_off(body, hand_off),
    }
}

fn encode_hand_off(body: Body<'_>, hand_off: &HandOff) {
    debug_assert!(
        hand_off.takes.len() <= MAX_TAKES,
        "who opens a flow takes no more"
    );
    let body = body
        .number(u64::from(hand_off.user))
        .code(hand_off.framing)
        .millis(hand_off.retain);
    hand_off
        .takes
        .iter()
        .take(MAX_TAKES)
        .fold(body, |body, take| {
            body.bytes(&take.session.0)
                .number(take.flow.0)
                .number(take.delivered.0)
        })
        .end();
}

fn encode_deliver(body: Body<'_>, deliver: &Deliver) {
    body.number(deliver.flow.0)
        .bytes(&deliver.session.0)
        .number(deliver.origin_flow.0)
        .number(u64::from(deliver.user))
        .address(deliver.destination)
        .code(deliver.framing)
        .number(deliver.limit.0)
        .millis(deliver.grace)
        .end();
}

/// Appends DATAGRAM, or with a `place` (offset, whole) DATAGRAM_PIECE, up to its payload, which the
/// caller sends behind it without copying it.
pub fn encode_datagram_header(
    head: &DatagramHead,
    place: Option<(u32, u32)>,
    payload_len: usize,
    out: &mut Vec<u8>,
) {
    debug_assert!(payload_len <= MAX_PAYLOAD, "large datagrams go in pieces");
    let micros = u64::try_from(head.age.as_micros()).unwrap_or(MAX_VARINT);
    let kind = match place {
        None => Kind::Datagram,
        Some(_) => Kind::DatagramPiece,
    };
    let body = Body::new(kind, out)
        .number(head.flow.0)
        .address(head.remote)
        .number(micros.min(MAX_VARINT));
    let body = match place {
        None => body,
        Some((offset, whole)) => body.number(u64::from(offset)).number(u64::from(whole)),
    };
    body.end_before(payload_len);
}

fn encode_datagram_error(error: &DatagramError, out: &mut Vec<u8>) {
    Body::new(Kind::DatagramError, out)
        .number(error.flow.0)
        .address(error.remote)
        .number(u64::from(error.errno))
        .number(u64::from(error.info))
        .end();
}

/// A body under way; the header before it gets its length at the end.
struct Body<'a> {
    out: &'a mut Vec<u8>,
    /// Where the header begins.
    start: usize,
}

impl<'a> Body<'a> {
    fn new(kind: Kind, out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend_from_slice(&[kind.to_wire(), 0, 0, 0]);
        Self { out, start }
    }

    fn end(self) {
        self.end_before(0);
    }

    /// Ends the fields; `payload_len` bytes of body follow that are not in `out`.
    fn end_before(self, payload_len: usize) {
        let fields = self
            .out
            .len()
            .saturating_sub(self.start)
            .saturating_sub(HEADER);
        let length = u32::try_from(fields.saturating_add(payload_len)).unwrap_or(u32::MAX);
        let [_, high, middle, low] = length.to_be_bytes();
        if let Some([_, a, b, c, ..]) = self.out.get_mut(self.start..) {
            (*a, *b, *c) = (high, middle, low);
        }
    }

    fn byte(self, value: u8) -> Self {
        self.out.push(value);
        self
    }

    fn bytes(self, value: &[u8]) -> Self {
        self.out.extend_from_slice(value);
        self
    }

    /// A QUIC variable-length integer in its shortest form.
    #[inline]
    fn number(self, value: u64) -> Self {
        debug_assert!(value <= MAX_VARINT, "numbers have 62 bits");
        let [a, b, c, d, e, f, g, h] = value.min(MAX_VARINT).to_be_bytes();
        match value {
            0..=0x3f => self.byte(h),
            0x40..=0x3fff => self.bytes(&[g | 0x40, h]),
            0x4000..=0x3fff_ffff => self.bytes(&[e | 0x80, f, g, h]),
            0x4000_0000.. => self.bytes(&[a | 0xc0, b, c, d, e, f, g, h]),
        }
    }

    fn code(self, value: impl Code) -> Self {
        self.number(value.to_wire())
    }

    /// Whole milliseconds; what is below is cut off.
    fn millis(self, value: Duration) -> Self {
        self.number(
            u64::try_from(value.as_millis())
                .unwrap_or(MAX_VARINT)
                .min(MAX_VARINT),
        )
    }

    /// Family, address, port; flow label and scope of IPv6 stay here.
    fn address(self, value: SocketAddr) -> Self {
        let body = match value.ip() {
            IpAddr::V4(ip) => self.byte(4).bytes(&ip.octets()),
            IpAddr::V6(ip) => self.byte(6).bytes(&ip.octets()),
        };
        body.bytes(&value.port().to_be_bytes())
    }

    fn versions(self, (lowest, highest): (u64, u64)) -> Self {
        self.number(lowest).number(highest)
    }

    fn limits(self, limits: &Limits) -> Self {
        self.number(limits.max_flows)
            .number(limits.buffer_bytes)
            .number(limits.floor_bytes)
    }

    fn ack(self, ack: &Ack) -> Self {
        self.number(ack.flow.0)
            .number(ack.accepted.0)
            .number(ack.released.0)
            .number(ack.limit.0)
    }
}
