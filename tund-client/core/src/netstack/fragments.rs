//! Fragments of packets, put together: a kernel cuts what is larger than the device's MTU.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use etherparse::defrag::IpDefragBuf;
use etherparse::{Ipv4Header, Ipv6Header};
use tund_session::Instant;

use crate::packet::Fragment;

/// Packets of which a part has come; beyond that the oldest is dropped. A kernel sends all pieces of
/// one packet in a row, so a few are enough; each holds 64 KiB at most.
const UNDER_WAY: usize = 16;
/// How long a packet may be without its rest; chosen, as pieces follow each other at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// What all pieces of one packet have in common (RFC 791 §3.2, RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name {
    source: IpAddr,
    destination: IpAddr,
    id: u32,
    protocol: u8,
}

#[derive(Debug)]
struct Partial {
    name: Name,
    buf: IpDefragBuf,
    /// The header of the first piece, of whichever version.
    head: Option<Vec<u8>>,
    since: Instant,
}

impl Partial {
    /// Some of that piece is here already. No kernel sends such, and what two hosts make of it may
    /// differ (RFC 5722).
    fn has_some_of(&self, piece: &Fragment, len: usize) -> bool {
        let start = usize::from(piece.offset.byte_offset());
        let mut sections = self.buf.sections().iter();
        sections.any(|section| {
            start < usize::from(section.end) && usize::from(section.start) < start + len
        })
    }
}

/// Packets that are not complete.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    partial: VecDeque<Partial>,
    /// Packets given up, or pieces that fit nowhere.
    pub(super) dropped: u64,
}

impl Fragments {
    /// Takes a piece; the whole packet, with a header as if it had never been cut, once it is
    /// complete.
    pub(super) fn join(
        &mut self,
        packet: &[u8],
        piece: &Fragment,
        now: Instant,
    ) -> Option<Vec<u8>> {
        while self
            .partial
            .front()
            .is_some_and(|oldest| oldest.since + PATIENCE <= now)
        {
            self.partial.pop_front();
            self.dropped += 1;
        }
        let payload = packet.get(piece.payload_at..piece.packet_bytes)?;
        if piece.offset.value() == 0 && !piece.has_more {
            // All of it, whatever else has that name (RFC 6946 §4).
            return rebuild(packet.get(..piece.ip_header_bytes)?, piece, payload);
        }
        let name = Name {
            source: piece.source,
            destination: piece.destination,
            id: piece.id,
            protocol: piece.protocol.0,
        };
        let place = match self.partial.iter().position(|partial| partial.name == name) {
            Some(place) => place,
            None => self.begin(name, piece, now),
        };
        let partial = self.partial.get_mut(place)?;
        let is_doubled = piece.source.is_ipv6() && partial.has_some_of(piece, payload.len());
        let added = partial.buf.add(piece.offset, piece.has_more, payload);
        if is_doubled || added.is_err() {
            self.partial.remove(place);
            self.dropped += 1;
            return None;
        }
        if piece.offset.value() == 0 {
            partial.head = packet.get(..piece.ip_header_bytes).map(<[u8]>::to_vec);
        }
        if !partial.buf.is_complete() {
            return None;
        }
        let whole = self.partial.remove(place)?;
        let (payload, _) = whole.buf.take_bufs();
        let packet = rebuild(&whole.head?, piece, &payload);
        self.dropped += u64::from(packet.is_none());
        packet
    }

    fn begin(&mut self, name: Name, piece: &Fragment, now: Instant) -> usize {
        if self.partial.len() >= UNDER_WAY {
            self.partial.pop_front();
            self.dropped += 1;
        }
        self.partial.push_back(Partial {
            name,
            buf: IpDefragBuf::new(piece.protocol, Vec::new(), Vec::new()),
            head: None,
            since: now,
        });
        self.partial.len() - 1
    }
}

/// The packet as it was before it was cut; none if no packet can be so long.
fn rebuild(head: &[u8], piece: &Fragment, payload: &[u8]) -> Option<Vec<u8>> {
    let mut packet = Vec::with_capacity(head.len() + payload.len());
    if piece.source.is_ipv4() {
        let (mut header, _) = Ipv4Header::from_slice(head).ok()?;
        header.more_fragments = false;
        header.fragment_offset = etherparse::IpFragOffset::ZERO;
        header.set_payload_len(payload.len()).ok()?;
        header.header_checksum = header.calc_header_checksum();
        packet.extend_from_slice(&header.to_bytes());
    } else {
        let (mut header, _) = Ipv6Header::from_slice(head).ok()?;
        header.payload_length = u16::try_from(payload.len()).ok()?;
        header.next_header = piece.protocol;
        packet.extend_from_slice(&header.to_bytes());
    }
    packet.extend_from_slice(payload);
    Some(packet)
}
