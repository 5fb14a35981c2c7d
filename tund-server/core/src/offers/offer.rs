//! What is held of one flow: its bytes, and where messages end in them.

use super::wide;
use crate::registry::ClientKey;
use bytes::{Bytes, BytesMut};
use std::net::SocketAddr;
use tund_session::{FlowId, Framer, Held, Instant, Offset, SessionId};

/// Memory comes in blocks of this size, none of which keeps anything else alive. Chosen.
const BLOCK_BYTES: usize = 64 * 1024;
/// A piece of a block goes to a connection as it is, and keeps the whole block, if it is longer than
/// this; it comes back as it is if it is so long as that. Else it is copied. Chosen: four times its
/// length at most, as in a session; and who takes, lets go and takes again costs the loop next to
/// nothing.
const PIECE_BYTES: usize = BLOCK_BYTES / 4;
pub(super) const WHOLE_BYTES: usize = BLOCK_BYTES / 4 * 3;

/// What is held of one flow.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) name: (SessionId, FlowId),
    pub(super) key: ClientKey,
    pub(super) user: u32,
    pub(super) destination: SocketAddr,
    /// The place of the first byte; a message begins there.
    pub(super) start: Offset,
    /// Has seen nothing of it.
    fresh: Framer,
    /// Has seen all of it: each byte is looked at as it comes, and no more once it was given to a
    /// connection as part of whole messages.
    framer: Framer,
    pub(super) blocks: Vec<Bytes>,
    pub(super) bytes: u64,
    /// The stream ends behind what was read. Its last message is whole only where its framing says
    /// so: something else comes behind it in the connection that is given it.
    pub(super) fin: bool,
    /// No more of it is kept: what came behind was lost.
    pub(super) is_cut: bool,
    pub(super) until: Instant,
}

impl Offer {
    /// Of what a flow of `key` has left, without its bytes.
    pub(super) fn new(
        name: (SessionId, FlowId),
        key: ClientKey,
        held: &Held,
        until: Instant,
    ) -> Self {
        let start = held.remainder.start;
        Self {
            name,
            key,
            user: held.hand_off.user,
            destination: held.destination,
            start,
            fresh: Framer::of_hand_off(&held.hand_off, start),
            framer: Framer::of_hand_off(&held.hand_off, start.max(held.given)),
            blocks: Vec::new(),
            bytes: 0,
            fin: held.remainder.fin,
            is_cut: false,
            until,
        }
    }

    pub(super) fn end(&self) -> Offset {
        self.start.plus(self.bytes)
    }

    /// The next bytes.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        self.look_at(bytes);
        while !bytes.is_empty() {
            let last = self.blocks.pop_if(|block| block.len() < BLOCK_BYTES);
            let mut block = match last.map(Bytes::try_into_mut) {
                Some(Ok(block)) => block,
                Some(Err(shared)) => BytesMut::from(&shared[..]),
                None => BytesMut::new(),
            };
            let room = BLOCK_BYTES - block.len();
            let (some, rest) = bytes.split_at(room.min(bytes.len()));
            block.extend_from_slice(some);
            self.blocks.push(block.freeze());
            bytes = rest;
        }
    }

    /// The same, most of a block.
    pub(super) fn keep(&mut self, piece: Bytes) {
        self.look_at(&piece);
        self.blocks.push(piece);
    }

    fn look_at(&mut self, bytes: &[u8]) {
        let known = self.framer.position().since(self.end());
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        self.framer.feed(bytes.get(known..).unwrap_or_default());
        self.bytes += wide(bytes.len());
    }

    /// Not all that was known to be whole messages is kept.
    pub(super) fn look_again_if_cut(&mut self) {
        if self.framer.position() > self.end() {
            self.framer = self.fresh.clone();
            self.blocks.iter().for_each(|block| self.framer.feed(block));
        }
    }

    /// Whole messages that an application which has everything before `delivered` does not have: the
    /// places before the first and behind the last of them.
    pub(super) fn messages(&self, delivered: Offset) -> (Offset, Offset) {
        let mut framer = self.fresh.clone();
        let mut rest = delivered.since(self.start);
        for block in &self.blocks {
            let some = usize::try_from(rest).unwrap_or(usize::MAX).min(block.len());
            framer.feed(block.get(..some).unwrap_or_default());
            rest -= wide(some);
            if rest == 0 {
                break;
            }
        }
        let from = framer.boundary();
        if self.framer.is_opaque() {
            return (from, from);
        }
        (from, self.framer.boundary().max(from))
    }

    pub(super) fn between(&self, from: Offset, to: Offset) -> impl Iterator<Item = Bytes> {
        let mut at = self.start;
        let pieces = self.blocks.iter().map(move |block| {
            let narrow = |place: Offset| {
                let within = usize::try_from(place.since(at)).unwrap_or(usize::MAX);
                within.min(block.len())
            };
            let piece = block.slice(narrow(from)..narrow(to));
            at = at.plus(wide(block.len()));
            if piece.len() > PIECE_BYTES {
                piece
            } else {
                Bytes::copy_from_slice(&piece)
            }
        });
        pieces.filter(|piece| !piece.is_empty())
    }
}
