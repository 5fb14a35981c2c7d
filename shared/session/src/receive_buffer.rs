//! Received bytes on their way to the local socket: in order, once, within the credit granted.

use crate::id::Offset;
use crate::limits::COPY_BELOW;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};

/// Bytes that wait for the local socket.
#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    /// A part of the buffer that a link was read into, all of which it keeps in memory.
    is_slice: bool,
}

impl Piece {
    /// A copy, unless it is long and `may_share`.
    fn new(bytes: Bytes, may_share: bool) -> Self {
        if may_share && bytes.len() >= COPY_BELOW {
            let is_slice = true;
            return Self { bytes, is_slice };
        }
        let mut own = BytesMut::with_capacity(bytes.len());
        own.put_slice(&bytes);
        Self {
            bytes: own.freeze(),
            is_slice: false,
        }
    }

    fn is_short(&self) -> bool {
        self.bytes.len() < COPY_BELOW
    }
}

/// One direction of a flow at its receiver.
///
/// `drained ≤ released ≤ accepted ≤ limit`; what lies between `released` and `accepted` is in
/// `queue`, what lies beyond `accepted` in `early`.
#[derive(Debug, Default)]
pub(crate) struct ReceiveBuffer {
    /// Everything before it has arrived.
    accepted: Offset,
    /// Everything before it was taken by the local socket.
    released: Offset,
    /// Everything before it has left the local ring too; credit counts from here.
    drained: Offset,
    /// The highest offset the peer may send; Σ(limit − drained) ≤ buffer (INV-5, rule 5).
    limit: Offset,
    /// In order, from `released` on.
    queue: VecDeque<Piece>,
    /// Out of order: disjoint pieces beyond `accepted`.
    early: BTreeMap<Offset, Piece>,
    /// How many of them are shorter than [`COPY_BELOW`].
    short_pieces: usize,
    /// How many pieces, early or in order, are slices of read buffers.
    slices: usize,
    /// Where FIN stands.
    fin: Option<Offset>,
}

impl ReceiveBuffer {
    pub(crate) fn accepted(&self) -> Offset {
        self.accepted
    }

    pub(crate) fn released(&self) -> Offset {
        self.released
    }

    pub(crate) fn drained(&self) -> Offset {
        self.drained
    }

    pub(crate) fn limit(&self) -> Offset {
        self.limit
    }

    pub(crate) fn raise_limit(&mut self, limit: Offset) {
        self.limit = self.limit.max(limit);
    }

    pub(crate) fn queue(&self) -> impl Iterator<Item = &Bytes> {
        self.queue.iter().map(|piece| &piece.bytes)
    }

    /// Bytes held: in order and early.
    pub(crate) fn held(&self) -> u64 {
        let early: usize = self.early.values().map(|piece| piece.bytes.len()).sum();
        let fin_taken = u64::from(self.fin.is_some_and(|fin| self.accepted > fin));
        self.accepted.since(self.released).saturating_sub(fin_taken)
            + u64::try_from(early).unwrap_or(u64::MAX)
    }

    /// Pieces held out of order that are shorter than [`COPY_BELOW`].
    pub(crate) fn short_pieces(&self) -> usize {
        self.short_pieces
    }

    /// Pieces that keep a whole read buffer each, at worst.
    pub(crate) fn slices(&self) -> usize {
        self.slices
    }

    /// All bytes before FIN were taken by the local socket; FIN is next.
    pub(crate) fn is_at_fin(&self) -> bool {
        self.fin == Some(self.released) && self.accepted > self.released
    }

    /// Takes DATA; true when something in order has arrived. It is copied unless it `may_share` the
    /// buffer that it was read into.
    ///
    /// # Errors
    ///
    /// DATA beyond the credit, or at odds with an earlier FIN, is a violation.
    pub(crate) fn insert(
        &mut self,
        offset: Offset,
        payload: Bytes,
        fin: bool,
        may_share: bool,
    ) -> Result<bool, &'static str> {
        let end = offset.plus(len_of(&payload));
        if end.plus(u64::from(fin)) > self.limit {
            return Err("DATA beyond the credit granted");
        }
        if fin && self.fin.is_some_and(|at| at != end) {
            return Err("FIN at two places");
        }
        let fin_at = if fin { Some(end) } else { self.fin };
        if fin_at.is_some_and(|at| end > at) || (fin && self.furthest() > end) {
            return Err("DATA behind FIN");
        }
        self.fin = fin_at;
        let before = self.accepted;
        self.place(offset, payload, may_share);
        self.take_early();
        if self.fin == Some(self.accepted) {
            self.accepted = self.accepted.plus(1);
        }
        Ok(self.accepted > before)
    }

    /// Behind the last byte that is here.
    fn furthest(&self) -> Offset {
        let early = self
            .early
            .last_key_value()
            .map(|(at, piece)| at.plus(len_of(&piece.bytes)));
        let fin_taken = u64::from(self.fin.is_some_and(|fin| self.accepted > fin));
        let in_order = Offset(self.accepted.0.saturating_sub(fin_taken));
        early.unwrap_or(in_order).max(in_order)
    }

    fn place(&mut self, mut offset: Offset, mut payload: Bytes, may_share: bool) {
        if offset < self.accepted {
            let known = usize::try_from(self.accepted.since(offset)).unwrap_or(usize::MAX);
            if known >= payload.len() {
                return;
            }
            payload = payload.slice(known..);
            offset = self.accepted;
        }
        if payload.is_empty() {
            return;
        }
        if offset == self.accepted {
            self.accepted = offset.plus(len_of(&payload));
            self.enqueue(payload, may_share);
            return;
        }
        self.place_early(offset, payload, may_share);
    }

    /// Keeps what is not yet here of a piece beyond `accepted`. What it covers whole it replaces, so
    /// that nobody makes us walk over the same small pieces again and again.
    fn place_early(&mut self, mut offset: Offset, mut payload: Bytes, may_share: bool) {
        if let Some((at, before)) = self.early.range(..offset).next_back() {
            let covered = at.plus(len_of(&before.bytes)).since(offset);
            let covered = usize::try_from(covered).unwrap_or(usize::MAX);
            if covered >= payload.len() {
                return;
            }
            payload = payload.slice(covered..);
            offset = offset.plus(u64::try_from(covered).unwrap_or(u64::MAX));
        }
        let end = offset.plus(len_of(&payload));
        while let Some((at, after)) = self.early.range(offset..end).next() {
            let at = *at;
            if at.plus(len_of(&after.bytes)) > end {
                payload.truncate(usize::try_from(at.since(offset)).unwrap_or(usize::MAX));
                break;
            }
            self.remove_early(at);
        }
        if !payload.is_empty() {
            self.keep_early(offset, Piece::new(payload, may_share));
        }
    }

    /// Keeps a piece; a short one grows together with a short one before it.
    fn keep_early(&mut self, offset: Offset, piece: Piece) {
        let before = self.early.range(..offset).next_back();
        let touched = before.filter(|(at, before)| {
            at.plus(len_of(&before.bytes)) == offset && before.is_short() && piece.is_short()
        });
        let touched = touched.map(|(at, _)| *at);
        let (at, piece) = match touched.and_then(|at| Some((at, self.remove_early(at)?))) {
            Some((at, before)) => {
                let mut block = BytesMut::from(before.bytes);
                block.put_slice(&piece.bytes);
                let bytes = block.freeze();
                let is_slice = false;
                (at, Piece { bytes, is_slice })
            }
            None => (offset, piece),
        };
        self.short_pieces += usize::from(piece.is_short());
        self.slices += usize::from(piece.is_slice);
        self.early.insert(at, piece);
    }

    fn remove_early(&mut self, at: Offset) -> Option<Piece> {
        let piece = self.early.remove(&at)?;
        self.short_pieces -= usize::from(piece.is_short());
        self.slices -= usize::from(piece.is_slice);
        Some(piece)
    }

    /// Moves what has become in order.
    fn take_early(&mut self) {
        while let Some((at, _)) = self.early.first_key_value()
            && *at <= self.accepted
        {
            let at = *at;
            let Some(mut piece) = self.remove_early(at) else {
                return;
            };
            let known = usize::try_from(self.accepted.since(at)).unwrap_or(usize::MAX);
            if known < piece.bytes.len() {
                piece.bytes.advance(known);
                self.accepted = self.accepted.plus(len_of(&piece.bytes));
                if piece.is_short() {
                    self.enqueue(piece.bytes, false);
                } else {
                    self.push(piece);
                }
            }
        }
    }

    /// Appends to the queue; short pieces share one block of their own.
    fn enqueue(&mut self, payload: Bytes, may_share: bool) {
        if payload.len() >= COPY_BELOW || !self.lengthen_last(&payload) {
            self.push(Piece::new(payload, may_share));
        }
    }

    /// False if the last piece is long, no memory of our own, or in use elsewhere.
    fn lengthen_last(&mut self, payload: &[u8]) -> bool {
        let Some(last) = self.queue.back_mut() else {
            return false;
        };
        if last.is_slice || !last.is_short() {
            return false;
        }
        match std::mem::take(&mut last.bytes).try_into_mut() {
            Ok(mut block) => {
                block.put_slice(payload);
                last.bytes = block.freeze();
                true
            }
            Err(used) => {
                last.bytes = used;
                false
            }
        }
    }

    fn push(&mut self, piece: Piece) {
        self.slices += usize::from(piece.is_slice);
        self.queue.push_back(piece);
    }

    /// The local socket has taken `count` bytes of the queue; at most what is there.
    pub(crate) fn release(&mut self, count: usize) -> u64 {
        let mut left = count;
        while left > 0 {
            let Some(first) = self.queue.front_mut() else {
                break;
            };
            if first.bytes.len() > left {
                first.bytes.advance(left);
                left = 0;
            } else {
                left = left.saturating_sub(first.bytes.len());
                self.slices -= usize::from(first.is_slice);
                self.queue.pop_front();
            }
        }
        let taken = u64::try_from(count.saturating_sub(left)).unwrap_or(0);
        self.released = self.released.plus(taken);
        taken
    }

    /// `count` more released bytes have left the local ring.
    pub(crate) fn drain(&mut self, count: u64) {
        self.drained = self.drained.plus(count).min(self.released);
    }

    /// FIN was carried out on the local socket.
    pub(crate) fn release_fin(&mut self) {
        if self.is_at_fin() {
            self.released = self.released.plus(1);
            self.drained = self.drained.plus(1);
        }
    }

    /// Everything before `offset` was taken by the local socket.
    pub(crate) fn is_released_to(&self, offset: Offset) -> bool {
        self.released >= offset
    }

    /// Lets go of all bytes: nothing more is delivered. Returns how many there were.
    pub(crate) fn abandon(&mut self) -> u64 {
        let pieces = self.queue.iter().chain(self.early.values());
        let held = pieces.map(|piece| len_of(&piece.bytes)).sum();
        self.queue.clear();
        self.early.clear();
        self.short_pieces = 0;
        self.slices = 0;
        held
    }
}

fn len_of(bytes: &Bytes) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
