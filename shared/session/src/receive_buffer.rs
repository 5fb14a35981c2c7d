//! Received bytes on their way to the local socket: in order, once, within the credit granted.

use crate::framer::Framer;
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

/// When what the local socket has taken counts as released.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Releases {
    /// At once.
    #[default]
    Taken,
    /// When it has left the local ring.
    Drained,
    /// When the owner says so.
    Told,
}

/// Where bytes that arrive lie.
#[derive(Clone, Copy)]
enum Memory {
    /// In a buffer that a link was read into, where they may stay.
    Shared,
    /// In one where they may not stay.
    Lent,
    /// In memory of our own.
    Own,
}

impl Memory {
    fn of(may_share: bool) -> Self {
        if may_share { Self::Shared } else { Self::Lent }
    }

    fn kept(is_slice: bool) -> Self {
        if is_slice { Self::Shared } else { Self::Own }
    }
}

/// One direction of a flow at its receiver.
///
/// `drained, released ≤ taken ≤ accepted ≤ limit`; what lies between `taken` and `accepted` is in
/// `queue` and behind that in `tail`, what lies beyond `accepted` in `early`.
#[derive(Debug, Default)]
pub(crate) struct ReceiveBuffer {
    /// Everything before it has arrived.
    accepted: Offset,
    /// Everything before it was taken by the local socket.
    taken: Offset,
    /// Everything before it may be forgotten by the peer: what was taken, unless the owner says
    /// when.
    released: Offset,
    /// When what was taken is released.
    releases: Releases,
    /// Everything before it has left the local ring too; credit counts from here.
    drained: Offset,
    /// The highest offset the peer may send; Σ(limit − drained) ≤ buffer (INV-5, rule 5).
    limit: Offset,
    /// In order, from `taken` on.
    queue: VecDeque<Piece>,
    /// In order, behind `queue`: the beginning of a message that is not complete.
    tail: VecDeque<Piece>,
    /// Finds where messages end, where only whole ones are handed on; else none.
    framer: Option<Box<Framer>>,
    /// Finds the same in what is released as it drains: the peer may hold it for later.
    watched: Option<Box<Framer>>,
    /// RESET ends the half here, and with it the last message.
    cut_at: Option<Offset>,
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

    pub(crate) fn taken(&self) -> Offset {
        self.taken
    }

    /// From here on the owner says what is released, and with a framer only whole messages are
    /// handed on.
    pub(crate) fn be_told(&mut self, framer: Option<Framer>) {
        self.releases = Releases::Told;
        self.framer = framer.map(Box::new);
    }

    /// What is taken is released when it has left the local ring, where that is a run of messages
    /// which the peer may hold; else at once.
    pub(crate) fn release_what_drains(&mut self, messages: Option<Framer>) {
        self.releases = if messages.is_some() {
            Releases::Drained
        } else {
            Releases::Taken
        };
        self.watched = messages.map(Box::new);
        self.release_taken();
    }

    /// Those messages, as far as they have come.
    pub(crate) fn watched(&self) -> Option<&Framer> {
        self.watched.as_deref()
    }

    /// Something was taken by the local socket and is not released.
    pub(crate) fn is_unreleased(&self) -> bool {
        self.released < self.taken
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

    pub(crate) fn queue(&self) -> impl Iterator<Item = &Bytes> + Clone {
        self.queue.iter().map(|piece| &piece.bytes)
    }

    /// Bytes held: in order and early.
    pub(crate) fn held(&self) -> u64 {
        let early: usize = self.early.values().map(|piece| piece.bytes.len()).sum();
        let fin_taken = u64::from(self.fin.is_some_and(|fin| self.accepted > fin));
        self.accepted.since(self.taken).saturating_sub(fin_taken)
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
        self.fin == Some(self.taken) && self.accepted > self.taken
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
            self.end_message();
        } else if self.cut_at.is_some_and(|end| self.accepted >= end) {
            self.end_message();
        }
        Ok(self.accepted > before)
    }

    /// RESET ends the half at `end`; true if more may be handed on because of that.
    pub(crate) fn cut(&mut self, end: Offset) -> bool {
        self.cut_at = Some(end);
        let is_news = self.accepted >= end && !self.tail.is_empty();
        if is_news {
            self.end_message();
        }
        is_news
    }

    /// What has arrived of the last message is all of it.
    fn end_message(&mut self) {
        if let Some(framer) = &mut self.framer {
            framer.finish();
            self.queue.append(&mut self.tail);
        }
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
            self.arrive(payload, Memory::of(may_share));
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
                self.arrive(piece.bytes, Memory::kept(piece.is_slice));
            }
        }
    }

    /// The next bytes in order are here.
    fn arrive(&mut self, mut payload: Bytes, memory: Memory) {
        if let Some(watched) = &mut self.watched {
            watched.feed(&payload);
        }
        let Some(framer) = &mut self.framer else {
            self.slices += append(&mut self.queue, payload, memory);
            return;
        };
        let start = framer.position();
        framer.feed(&payload);
        let whole = usize::try_from(framer.boundary().since(start)).unwrap_or(usize::MAX);
        if whole > 0 {
            self.queue.append(&mut self.tail);
            let whole = payload.split_to(whole.min(payload.len()));
            self.slices += append(&mut self.queue, whole, memory);
        }
        if !payload.is_empty() {
            self.slices += append(&mut self.tail, payload, memory);
        }
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
        self.taken = self.taken.plus(taken);
        self.release_taken();
        taken
    }

    fn release_taken(&mut self) {
        match self.releases {
            Releases::Taken => self.released = self.taken,
            Releases::Drained => self.released = self.released.max(self.drained),
            Releases::Told => {}
        }
    }

    /// The owner says that everything before `offset` is released; true if that is news.
    pub(crate) fn settle_to(&mut self, offset: Offset) -> bool {
        let before = self.released;
        self.released = self.released.max(offset.min(self.taken));
        self.released > before
    }

    /// `count` more released bytes have left the local ring.
    pub(crate) fn drain(&mut self, count: u64) {
        self.drained = self.drained.plus(count).min(self.taken);
        self.release_taken();
    }

    /// FIN was carried out on the local socket.
    pub(crate) fn release_fin(&mut self) {
        if self.is_at_fin() {
            self.taken = self.taken.plus(1);
            self.drained = self.drained.plus(1);
            if self.releases == Releases::Drained {
                // Whoever says so has seen the ring run empty.
                self.drained = self.taken;
            }
            self.release_taken();
        }
    }

    /// Everything before `offset` was taken by the local socket.
    pub(crate) fn is_taken_to(&self, offset: Offset) -> bool {
        self.taken >= offset
    }

    /// Everything has arrived: FIN and all before it, or all before the end that RESET names.
    pub(crate) fn has_all(&self) -> bool {
        self.fin.is_some_and(|fin| self.accepted > fin)
            || self.cut_at.is_some_and(|end| self.accepted >= end)
    }

    /// FIN was taken by the local socket, and is released.
    pub(crate) fn is_fin_released(&self) -> bool {
        self.fin.is_some_and(|fin| self.released > fin)
    }

    /// Lets go of all bytes: nothing more is delivered. Returns how many there were.
    pub(crate) fn abandon(&mut self) -> u64 {
        let pieces = self.queue.iter().chain(self.early.values());
        let held = pieces.map(|piece| len_of(&piece.bytes)).sum();
        self.queue.clear();
        self.tail.clear();
        self.early.clear();
        self.short_pieces = 0;
        self.slices = 0;
        held
    }
}

fn len_of(bytes: &Bytes) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Appends to a queue; short pieces share one block of their own. How many slices came with it.
fn append(queue: &mut VecDeque<Piece>, payload: Bytes, memory: Memory) -> usize {
    if payload.len() < COPY_BELOW && lengthen_last(queue, &payload) {
        return 0;
    }
    let piece = match memory {
        Memory::Own if payload.len() >= COPY_BELOW => Piece {
            bytes: payload,
            is_slice: false,
        },
        Memory::Own | Memory::Lent => Piece::new(payload, false),
        Memory::Shared => Piece::new(payload, true),
    };
    let slices = usize::from(piece.is_slice);
    queue.push_back(piece);
    slices
}

/// False if the last piece is long, no memory of our own, or in use elsewhere.
fn lengthen_last(queue: &mut VecDeque<Piece>, payload: &[u8]) -> bool {
    let Some(last) = queue.back_mut() else {
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
