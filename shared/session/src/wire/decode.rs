//! Bytes to frames: every length and value is checked, nothing panics, nothing is copied.

use super::code::Code;
use super::codec::WireError;
use super::encode::FIN;
use super::frame::{
    Ack, CloseCode, Control, Data, Datagram, DatagramError, DatagramHead, DatagramPiece, Deliver,
    FlowCode, Frame, Framing, HandOff, Hello, Limits, LinkCloseReason, Open, OpenError,
    RejectReason, Resume, ResumeOk, ResumeReject, Take, Welcome,
};
use super::kind::{HEADER, Kind, MAX_ACKS, MAX_DATAGRAM, MAX_PAYLOAD, MAX_RELEASED, MAX_TAKES};
use crate::id::{FlowId, Instance, LinkNumber, MAX_VARINT, Offset, SessionId};

use bytes::{Buf, Bytes};

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

type Result<T> = std::result::Result<T, WireError>;

/// Takes one whole frame off the front; `None`, and `input` as it was, if that needs more bytes.
///
/// A payload is a slice of `input`: it keeps the memory behind `input` alive.
///
/// # Errors
/// If no continuation of `input` can be a frame, as soon as that is known; `input` is as it was.
pub fn decode(input: &mut Bytes) -> Result<Option<Frame>> {
    let Some((kind, length)) = header(input)? else {
        return Ok(None);
    };
    let parse: fn(&mut Fields<'_>) -> Result<Frame> = match kind {
        Kind::Data => return decode_data(input, length),
        Kind::Datagram => return decode_datagram(input, length),
        Kind::DatagramPiece => return decode_datagram_piece(input, length),
        Kind::Hello => |fields| fields.hello().map(Frame::Hello),
        Kind::Welcome => |fields| fields.welcome().map(Frame::Welcome),
        Kind::KeyInUse => |_| Ok(Frame::KeyInUse),
        Kind::Resume => |fields| fields.resume().map(Frame::Resume),
        Kind::ResumeOk => |fields| fields.resume_ok().map(Frame::ResumeOk),
        Kind::ResumeReject => |fields| fields.reject().map(Frame::ResumeReject),
        Kind::Ping => |fields| fields.number().map(|nonce| Frame::Ping { nonce }),
        Kind::Pong => |fields| fields.number().map(|nonce| Frame::Pong { nonce }),
        Kind::LinkClose => |fields| fields.link_close(),
        Kind::Ack => |fields| fields.ack().map(Frame::Ack),
        Kind::FlowState => |fields| fields.acks().map(Frame::FlowState),
        Kind::DatagramError => |fields| fields.datagram_error().map(Frame::DatagramError),
        Kind::ControlAck => |fields| fields.number().map(|number| Frame::ControlAck { number }),
        Kind::Open => |fields| fields.control(Fields::open),
        Kind::OpenOk => |fields| fields.control(Fields::open_ok),
        Kind::OpenErr => |fields| fields.control(Fields::open_err),
        Kind::Reset => |fields| fields.control(Fields::reset),
        Kind::Stop => |fields| fields.control(Fields::stop),
        Kind::Done => |fields| fields.control(Fields::done),
        Kind::Retire => |fields| fields.control(Fields::retire),
        Kind::LinkDown => |fields| fields.control(Fields::link_down),
        Kind::SessionClose => |fields| fields.control(Fields::session_close),
        Kind::Deliver => |fields| fields.control(Fields::deliver),
        Kind::OpenHandOff => |fields| fields.control(Fields::open_hand_off),
        Kind::Forget => |fields| fields.control(|_| Ok(Control::Forget)),
    };
    let Some(mut fields) = Fields::of(input, length) else {
        return Ok(None);
    };
    let frame = parse(&mut fields)?;
    fields.end()?;
    input.advance(HEADER.saturating_add(length));
    Ok(Some(frame))
}

/// How many bytes the frame at the front of `input` has, header included, once that can be told.
///
/// For an end that puts a frame together from pieces and copies no more than that frame.
///
/// # Errors
/// As [`decode`], from the header alone.
pub fn frame_len(input: &[u8]) -> Result<Option<usize>> {
    Ok(header(input)?.map(|(_, length)| HEADER.saturating_add(length)))
}

/// Type and length of body, once they are there.
#[inline]
fn header(input: &[u8]) -> Result<Option<(Kind, usize)>> {
    let Some(&number) = input.first() else {
        return Ok(None);
    };
    let kind = Kind::from_wire(number).ok_or(WireError::UnknownType(number))?;
    let Some(&[_, high, middle, low]) = input.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let announced = u32::from_be_bytes([0, high, middle, low]);
    match usize::try_from(announced) {
        Ok(length) if length <= kind.max_body() => Ok(Some((kind, length))),
        Ok(_) | Err(_) => Err(WireError::BodyTooLong {
            kind: number,
            length: announced,
        }),
    }
}

fn decode_data(input: &mut Bytes, length: usize) -> Result<Option<Frame>> {
    let Some(mut fields) = Fields::of(input, length) else {
        return Ok(None);
    };
    let flow = fields.flow()?;
    let offset = fields.offset()?;
    let flags = fields.byte()?;
    let payload_len = fields.payload_len()?;
    if flags & !FIN != 0 {
        return Err(WireError::BadValue("DATA has unknown flags"));
    }
    let fin = flags & FIN != 0;
    if payload_len == 0 && !fin {
        return Err(WireError::BadValue("DATA carries nothing"));
    }
    let end = u64::try_from(payload_len).map_or(u64::MAX, |bytes| {
        offset
            .0
            .saturating_add(bytes)
            .saturating_add(u64::from(fin))
    });
    if end > MAX_VARINT {
        return Err(WireError::BadValue("DATA ends beyond the last offset"));
    }
    let payload = take_payload(input, length, payload_len);
    Ok(Some(Frame::Data(Data {
        flow,
        offset,
        fin,
        payload,
    })))
}

fn decode_datagram(input: &mut Bytes, length: usize) -> Result<Option<Frame>> {
    let Some(mut fields) = Fields::of(input, length) else {
        return Ok(None);
    };
    let head = fields.datagram_head()?;
    let payload_len = fields.payload_len()?;
    let payload = take_payload(input, length, payload_len);
    Ok(Some(Frame::Datagram(Datagram { head, payload })))
}

fn decode_datagram_piece(input: &mut Bytes, length: usize) -> Result<Option<Frame>> {
    let Some(mut fields) = Fields::of(input, length) else {
        return Ok(None);
    };
    let head = fields.datagram_head()?;
    let offset = fields.small("offset of DATAGRAM_PIECE has over 32 bits")?;
    let whole = fields.small("length in DATAGRAM_PIECE has over 32 bits")?;
    let payload_len = fields.payload_len()?;
    let end = u32::try_from(payload_len).map_or(u32::MAX, |bytes| offset.saturating_add(bytes));
    let longest = usize::try_from(whole).is_ok_and(|whole| whole <= MAX_DATAGRAM);
    if payload_len == 0 || end > whole || !longest {
        return Err(WireError::BadValue(
            "DATAGRAM_PIECE is no part of a datagram",
        ));
    }
    let payload = take_payload(input, length, payload_len);
    Ok(Some(Frame::DatagramPiece(DatagramPiece {
        head,
        offset,
        whole,
        payload,
    })))
}

/// Takes the frame at the front, whose body of `length` bytes ends with the payload.
#[inline]
fn take_payload(input: &mut Bytes, length: usize, payload_len: usize) -> Bytes {
    input.advance(HEADER.saturating_add(length).saturating_sub(payload_len));
    input.split_to(payload_len)
}

/// The fields of a body not yet read.
struct Fields<'a>(&'a [u8]);

/// Fields of any frame.
impl<'a> Fields<'a> {
    /// Those of the frame at the front, once its body of `length` bytes is there.
    #[inline]
    fn of(input: &'a [u8], length: usize) -> Option<Self> {
        input.get(HEADER..)?.get(..length).map(Self)
    }

    fn end(&self) -> Result<()> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(WireError::TrailingBytes)
        }
    }

    fn payload_len(&self) -> Result<usize> {
        match self.0.len() {
            length if length <= MAX_PAYLOAD => Ok(length),
            _ => Err(WireError::BadValue("payload is longer than 16 KiB")),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.chunk().ok_or(WireError::BodyTooShort)
    }

    fn byte(&mut self) -> Result<u8> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    #[inline]
    fn number(&mut self) -> Result<u64> {
        self.varint().ok_or(WireError::BodyTooShort)
    }

    /// A QUIC variable-length integer, not necessarily in its shortest form.
    #[inline]
    fn varint(&mut self) -> Option<u64> {
        let first = *self.0.first()?;
        Some(match first >> 6 {
            0 => u64::from(u8::from_be_bytes(self.chunk()?)),
            1 => u64::from(u16::from_be_bytes(self.chunk()?) & 0x3fff),
            2 => u64::from(u32::from_be_bytes(self.chunk()?) & 0x3fff_ffff),
            _ => u64::from_be_bytes(self.chunk()?) & MAX_VARINT,
        })
    }

    #[inline]
    fn chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*chunk)
    }

    fn small(&mut self, what: &'static str) -> Result<u32> {
        u32::try_from(self.number()?).map_err(|_| WireError::BadValue(what))
    }

    /// A number of which none is zero.
    fn counted(&mut self, what: &'static str) -> Result<u64> {
        match self.number()? {
            0 => Err(WireError::BadValue(what)),
            number => Ok(number),
        }
    }

    #[inline]
    fn flow(&mut self) -> Result<FlowId> {
        self.number().map(FlowId)
    }

    #[inline]
    fn offset(&mut self) -> Result<Offset> {
        self.number().map(Offset)
    }

    fn link(&mut self) -> Result<LinkNumber> {
        self.counted("link number is zero").map(LinkNumber)
    }

    fn millis(&mut self) -> Result<Duration> {
        self.number().map(Duration::from_millis)
    }

    /// A code without which the frame cannot be understood.
    fn code<C: Code>(&mut self, what: &'static str) -> Result<C> {
        C::from_wire(self.number()?).ok_or(WireError::UnknownCode(what))
    }

    /// A code that says no more than why: an unknown one is taken for `fallback`.
    fn code_or<C: Code>(&mut self, fallback: C) -> Result<C> {
        Ok(C::from_wire(self.number()?).unwrap_or(fallback))
    }

    fn address(&mut self) -> Result<SocketAddr> {
        match self.byte()? {
            4 => {
                let ip = Ipv4Addr::from(self.array::<4>()?);
                Ok((ip, u16::from_be_bytes(self.array()?)).into())
            }
            6 => {
                let ip = Ipv6Addr::from(self.array::<16>()?);
                Ok((ip, u16::from_be_bytes(self.array()?)).into())
            }
            _ => Err(WireError::UnknownCode("address of an unknown family")),
        }
    }

    fn versions(&mut self) -> Result<(u64, u64)> {
        let (lowest, highest) = (self.number()?, self.number()?);
        if lowest > highest {
            return Err(WireError::BadValue("lowest version is above the highest"));
        }
        Ok((lowest, highest))
    }

    fn limits(&mut self) -> Result<Limits> {
        Ok(Limits {
            max_flows: self.number()?,
            buffer_bytes: self.number()?,
            floor_bytes: self.counted("floor is zero")?,
        })
    }
}

/// Fields of one frame each.
impl Fields<'_> {
    fn hello(&mut self) -> Result<Hello> {
        Ok(Hello {
            versions: self.versions()?,
            capabilities: self.number()?,
            instance: Instance(self.array()?),
            limits: self.limits()?,
        })
    }

    fn welcome(&mut self) -> Result<Welcome> {
        Ok(Welcome {
            version: self.number()?,
            capabilities: self.number()?,
            session: SessionId(self.array()?),
            instance: Instance(self.array()?),
            limits: self.limits()?,
        })
    }

    fn resume(&mut self) -> Result<Resume> {
        Ok(Resume {
            versions: self.versions()?,
            session: SessionId(self.array()?),
            instance: Instance(self.array()?),
            proved: self.link()?,
            proof: self.array()?,
        })
    }

    fn resume_ok(&mut self) -> Result<ResumeOk> {
        let number = self.link()?;
        Ok(ResumeOk { number })
    }

    fn reject(&mut self) -> Result<ResumeReject> {
        let known = RejectReason::from_wire(self.number()?);
        let retry_after = self.millis()?;
        let mut released = Vec::new();
        while !self.0.is_empty() {
            if released.len() >= MAX_RELEASED {
                return Err(WireError::BadValue("RESUME_REJECT lists too many flows"));
            }
            released.push((self.flow()?, self.offset()?));
        }
        match known {
            Some(RejectReason::Expired) => {}
            Some(_) if released.is_empty() => {}
            Some(_) => {
                return Err(WireError::BadValue(
                    "RESUME_REJECT lists flows, not expired",
                ));
            }
            None => released.clear(),
        }
        Ok(ResumeReject {
            reason: known.unwrap_or(RejectReason::Busy),
            released,
            retry_after,
        })
    }

    fn link_close(&mut self) -> Result<Frame> {
        let reason = self.code_or(LinkCloseReason::Unneeded)?;
        Ok(Frame::LinkClose { reason })
    }

    #[inline]
    fn ack(&mut self) -> Result<Ack> {
        let ack = Ack {
            flow: self.flow()?,
            accepted: self.offset()?,
            released: self.offset()?,
            limit: self.offset()?,
        };
        if ack.released > ack.accepted {
            return Err(WireError::BadValue("ACK releases more than it accepts"));
        }
        Ok(ack)
    }

    fn acks(&mut self) -> Result<Vec<Ack>> {
        let mut acks = Vec::new();
        while !self.0.is_empty() {
            if acks.len() >= MAX_ACKS {
                return Err(WireError::BadValue("FLOW_STATE lists too many flows"));
            }
            acks.push(self.ack()?);
        }
        Ok(acks)
    }

    fn datagram_head(&mut self) -> Result<DatagramHead> {
        Ok(DatagramHead {
            flow: self.flow()?,
            remote: self.address()?,
            age: Duration::from_micros(self.number()?),
        })
    }

    fn datagram_error(&mut self) -> Result<DatagramError> {
        Ok(DatagramError {
            flow: self.flow()?,
            remote: self.address()?,
            errno: self.small("errno of DATAGRAM_ERROR has over 32 bits")?,
            info: self.small("MTU of DATAGRAM_ERROR has over 32 bits")?,
        })
    }

    /// Number, then message.
    fn control(&mut self, message: fn(&mut Self) -> Result<Control>) -> Result<Frame> {
        let number = self.counted("control message has number zero")?;
        Ok(Frame::Control {
            number,
            message: message(self)?,
        })
    }

    fn open(&mut self) -> Result<Control> {
        self.plain_open().map(Control::Open)
    }

    fn plain_open(&mut self) -> Result<Open> {
        Ok(Open {
            flow: self.flow()?,
            protocol: self.code("OPEN of an unknown protocol")?,
            source: self.address()?,
            destination: self.address()?,
            limit: self.offset()?,
            grace: self.millis()?,
            on_expiry: self.code("OPEN with an unknown expiry policy")?,
            hand_off: None,
        })
    }

    fn open_hand_off(&mut self) -> Result<Control> {
        let mut open = self.plain_open()?;
        let mut hand_off = HandOff {
            user: self.small("user of OPEN_HAND_OFF has over 32 bits")?,
            framing: self.framing_within()?,
            retain: self.millis()?,
            takes: Vec::new(),
        };
        while !self.0.is_empty() {
            if hand_off.takes.len() >= MAX_TAKES {
                return Err(WireError::BadValue("OPEN_HAND_OFF lists too many flows"));
            }
            hand_off.takes.push(Take {
                session: SessionId(self.array()?),
                flow: self.flow()?,
                delivered: self.offset()?,
            });
        }
        open.hand_off = Some(Box::new(hand_off));
        Ok(Control::Open(open))
    }

    /// A framing whose messages end before FIN does.
    fn framing_within(&mut self) -> Result<Framing> {
        match self.code("OPEN_HAND_OFF with an unknown framing")? {
            Framing::Whole => Err(WireError::BadValue(
                "OPEN_HAND_OFF of one message up to FIN",
            )),
            framing @ (Framing::Line | Framing::OctetCount) => Ok(framing),
        }
    }

    fn deliver(&mut self) -> Result<Control> {
        Ok(Control::Deliver(Deliver {
            flow: self.flow()?,
            session: SessionId(self.array()?),
            origin_flow: self.flow()?,
            user: self.small("user of DELIVER has over 32 bits")?,
            destination: self.address()?,
            framing: self.code("DELIVER with an unknown framing")?,
            limit: self.offset()?,
            grace: self.millis()?,
        }))
    }

    fn open_ok(&mut self) -> Result<Control> {
        Ok(Control::OpenOk {
            flow: self.flow()?,
            limit: self.offset()?,
            grace: self.millis()?,
        })
    }

    fn open_err(&mut self) -> Result<Control> {
        let flow = self.flow()?;
        let number = self.number()?;
        let errno = self.small("errno of OPEN_ERR has over 32 bits")?;
        Ok(Control::OpenErr {
            flow,
            error: OpenError::from_wire(number, errno),
        })
    }

    fn reset(&mut self) -> Result<Control> {
        Ok(Control::Reset {
            flow: self.flow()?,
            end: self.offset()?,
            code: self.code_or(FlowCode::SocketError)?,
        })
    }

    fn stop(&mut self) -> Result<Control> {
        Ok(Control::Stop {
            flow: self.flow()?,
            code: self.code_or(FlowCode::SocketError)?,
        })
    }

    fn done(&mut self) -> Result<Control> {
        Ok(Control::Done {
            flow: self.flow()?,
            released: self.offset()?,
        })
    }

    fn retire(&mut self) -> Result<Control> {
        let older_than = self.link()?;
        Ok(Control::Retire { older_than })
    }

    fn link_down(&mut self) -> Result<Control> {
        let link = self.link()?;
        Ok(Control::LinkDown { link })
    }

    fn session_close(&mut self) -> Result<Control> {
        let code = self.code_or(CloseCode::Internal)?;
        Ok(Control::SessionClose { code })
    }
}
