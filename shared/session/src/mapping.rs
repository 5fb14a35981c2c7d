//! What one end holds of a mapping: datagrams that wait each way, those in pieces, and errors.

use crate::datagram_queue::{Drop, Dropped, Queue, Room, Waiting};
use crate::id::{FlowId, LinkId};
use crate::limits;
use crate::time::Instant;
use crate::wire::codec::MAX_PAYLOAD;
use crate::wire::frame::DatagramPiece;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

/// An ICMP error that a datagram met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingError {
    /// Where the datagram was to go.
    pub remote: SocketAddr,
    /// As in `IP_RECVERR`.
    pub errno: u32,
    /// With EMSGSIZE the path's MTU; with EACCES the number of a
    /// [`DeniedBy`](crate::wire::frame::DeniedBy); with EHOSTUNREACH [`Self::HOPS`] or 0; else 0.
    pub info: u32,
}

impl MappingError {
    /// The host was not reached because the path has too many hops.
    pub const HOPS: u32 = 1;
}

/// A datagram that goes out in pieces.
#[derive(Debug)]
struct Going {
    datagram: Waiting,
    /// So much of it is on that link.
    offset: usize,
    link: LinkId,
}

/// A datagram of which pieces have come.
#[derive(Debug)]
struct Coming {
    remote: SocketAddr,
    bytes: BytesMut,
    whole: usize,
    link: LinkId,
    at: Instant,
}

/// What goes out next of a mapping.
#[derive(Debug)]
pub(crate) enum Out {
    Error(MappingError),
    Datagram {
        remote: SocketAddr,
        age: Duration,
        /// Offset and length of the whole, if this is but a piece.
        place: Option<(u32, u32)>,
        payload: Bytes,
    },
}

/// One end's view of a mapping.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// Its datagrams are echo requests and their answers.
    pub(crate) is_echo: bool,
    /// From the local socket.
    pub(crate) tx: Queue,
    /// For the local socket.
    pub(crate) rx: Queue,
    tx_errors: VecDeque<MappingError>,
    rx_errors: VecDeque<MappingError>,
    going: Option<Going>,
    coming: Option<Coming>,
}

impl Mapping {
    pub(crate) fn new(flow: FlowId, is_echo: bool) -> Self {
        Self {
            is_echo,
            tx: Queue::new(flow),
            rx: Queue::new(flow),
            tx_errors: VecDeque::new(),
            rx_errors: VecDeque::new(),
            going: None,
            coming: None,
        }
    }

    /// Something could be sent at once.
    pub(crate) fn is_ready(&self) -> bool {
        self.going.is_some() || !self.tx.is_empty() || !self.tx_errors.is_empty()
    }

    /// There is a link for the first time: what waits to be sent was not kept waiting by anything
    /// that has failed.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.tx.begin(now);
    }

    /// Keeps an error for the peer; of too many the later ones are dropped, as they are hints.
    pub(crate) fn say_error(&mut self, error: MappingError) {
        push_bounded(&mut self.tx_errors, error);
    }

    /// Keeps an error of the peer's.
    pub(crate) fn hear_error(&mut self, error: MappingError) {
        push_bounded(&mut self.rx_errors, error);
    }

    pub(crate) fn take_error(&mut self) -> Option<MappingError> {
        self.rx_errors.pop_front()
    }

    /// What goes out on `link` next. Pieces of one datagram stay on one link: on another it begins
    /// anew.
    pub(crate) fn take(
        &mut self,
        link: LinkId,
        (most, now): (Duration, Instant),
        room: &mut Room,
        dropped: &mut Dropped,
    ) -> Option<Out> {
        if let Some(error) = self.tx_errors.pop_front() {
            return Some(Out::Error(error));
        }
        if self.going.is_none() {
            self.tx.drop_stale((most, now), room, dropped);
            let datagram = self.tx.pop(room)?;
            if datagram.payload.len() <= MAX_PAYLOAD {
                return Some(Out::Datagram {
                    remote: datagram.remote,
                    age: datagram.age(now),
                    place: None,
                    payload: datagram.payload,
                });
            }
            self.tx.set_pieces(Some(datagram.payload.len()), room);
            self.going = Some(Going {
                datagram,
                offset: 0,
                link,
            });
        }
        self.take_piece(link, now, room)
    }

    fn take_piece(&mut self, link: LinkId, now: Instant, room: &mut Room) -> Option<Out> {
        let going = self.going.as_mut()?;
        if going.link != link {
            (going.link, going.offset) = (link, 0);
        }
        let payload = &going.datagram.payload;
        let end = (going.offset + MAX_PAYLOAD).min(payload.len());
        let out = Out::Datagram {
            remote: going.datagram.remote,
            age: going.datagram.age(now),
            place: u32::try_from(going.offset)
                .ok()
                .zip(u32::try_from(payload.len()).ok()),
            payload: payload.slice(going.offset..end),
        };
        going.offset = end;
        if end == payload.len() {
            self.tx.set_pieces(None, room);
            self.going = None;
        }
        Some(out)
    }

    /// Puts a piece to those before it; the whole datagram once it is complete. Pieces that continue
    /// nothing belong to one that began anew elsewhere, and are dropped.
    pub(crate) fn join(
        &mut self,
        piece: &DatagramPiece,
        (link, now): (LinkId, Instant),
        room: &mut Room,
        dropped: &mut Dropped,
    ) -> Option<Bytes> {
        let (Ok(offset), Ok(whole)) = (usize::try_from(piece.offset), usize::try_from(piece.whole))
        else {
            return None;
        };
        if offset == 0 {
            self.drop_coming(Drop::Abandoned, room, dropped);
            if !room.has(whole) {
                dropped.add(whole, Drop::CrowdedOut);
                return None;
            }
            self.rx.set_pieces(Some(whole), room);
            self.coming = Some(Coming {
                remote: piece.head.remote,
                bytes: BytesMut::with_capacity(whole),
                whole,
                link,
                at: now,
            });
        }
        let coming = self.coming.as_mut()?;
        let continues = coming.link == link
            && coming.remote == piece.head.remote
            && coming.whole == whole
            && coming.bytes.len() == offset;
        if !continues {
            return None;
        }
        coming.bytes.extend_from_slice(&piece.payload);
        if coming.bytes.len() < whole {
            return None;
        }
        self.rx.set_pieces(None, room);
        self.coming.take().map(|coming| coming.bytes.freeze())
    }

    fn drop_coming(&mut self, why: Drop, room: &mut Room, dropped: &mut Dropped) {
        if let Some(coming) = self.coming.take() {
            self.rx.set_pieces(None, room);
            dropped.add(coming.whole, why);
        }
    }

    fn drop_going(&mut self, why: Drop, room: &mut Room, dropped: &mut Dropped) {
        if let Some(going) = self.going.take() {
            self.tx.set_pieces(None, room);
            dropped.add(going.datagram.payload.len(), why);
        }
    }

    /// The oldest for the peer goes, for others; that which is under way is the last.
    pub(crate) fn shed_out(&mut self, room: &mut Room, dropped: &mut Dropped) {
        if self.tx.is_empty() {
            self.drop_going(Drop::CrowdedOut, room, dropped);
        } else {
            self.tx.drop_oldest(room, dropped);
        }
    }

    /// The same for the local socket.
    pub(crate) fn shed_in(&mut self, room: &mut Room, dropped: &mut Dropped) {
        if self.rx.is_empty() {
            self.drop_coming(Drop::CrowdedOut, room, dropped);
        } else {
            self.rx.drop_oldest(room, dropped);
        }
    }

    /// What has waited for too long goes, in both directions: what waits to be sent, and what
    /// waits for the local socket.
    pub(crate) fn sweep(
        &mut self,
        (most, now): (Duration, Instant),
        (tx, rx): (&mut Room, &mut Room),
    ) -> (Dropped, Dropped) {
        let (mut up, mut down) = (Dropped::default(), Dropped::default());
        self.tx.drop_stale((most, now), tx, &mut up);
        self.rx.drop_stale((most, now), rx, &mut down);
        let is_old = |coming: &Coming| now.saturating_duration_since(coming.at) > most;
        if self.coming.as_ref().is_some_and(is_old) {
            self.drop_coming(Drop::Abandoned, rx, &mut down);
        }
        let is_stale = |going: &Going| going.datagram.age(now) > most;
        if self.going.as_ref().is_some_and(is_stale) {
            self.drop_going(Drop::Stale, tx, &mut up);
        }
        (up, down)
    }

    /// The mapping has ended.
    pub(crate) fn abandon(&mut self, tx: &mut Room, rx: &mut Room) -> (Dropped, Dropped) {
        let (mut up, mut down) = (Dropped::default(), Dropped::default());
        self.tx.clear(tx, &mut up);
        self.rx.clear(rx, &mut down);
        self.drop_coming(Drop::Abandoned, rx, &mut down);
        self.drop_going(Drop::Abandoned, tx, &mut up);
        self.tx_errors.clear();
        self.rx_errors.clear();
        (up, down)
    }
}

fn push_bounded(errors: &mut VecDeque<MappingError>, error: MappingError) {
    if errors.len() < limits::MAPPING_ERRORS {
        errors.push_back(error);
    }
}
