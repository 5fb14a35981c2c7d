//! Bytes sent or to be sent and not yet released by the peer; freed by release only (INV-3).

use crate::framer::Framer;
use crate::id::{LinkId, Offset};
use crate::limits::COPY_BELOW;
use crate::wire::codec::MAX_PAYLOAD;
use bytes::{BufMut, Bytes};
use std::collections::VecDeque;

/// A chunk keeps its memory whole, so what is left of the first one may be this many times smaller
/// and no more: then it is copied. Chosen: who reads a byte less than was sent must not keep a
/// buffer, and a bulk transfer, whose chunks mostly go at once, must not copy.
const PINNED: usize = 4;

/// A stretch of offsets that is under way on one link.
#[derive(Clone, Copy, Debug)]
struct Sent {
    start: Offset,
    end: Offset,
    link: LinkId,
}

/// One direction of a flow at its sender.
///
/// `base ≤ released ≤ accepted ≤ high ≤ send_end`, and `accepted`, `high` never exceed the peer's
/// `limit`.
#[derive(Debug, Default)]
pub(crate) struct SendBuffer {
    /// Everything before it is freed: `released`, or where messages are kept whole, the last
    /// boundary before that.
    base: Offset,
    /// Released by the peer.
    released: Offset,
    /// Finds boundaries in what is released, where messages are kept whole; else none.
    framer: Option<Box<Framer>>,
    /// The peer has everything before it.
    accepted: Offset,
    /// The highest offset ever sent; marking unsent does not lower it (rule 2).
    high: Offset,
    /// Behind the last byte taken.
    end: Offset,
    /// FIN stands at `end` and takes one offset.
    fin: bool,
    /// The peer's credit.
    limit: Offset,
    /// Each chunk with the offset of its first byte, from `base` on.
    chunks: VecDeque<(Offset, Bytes)>,
    /// What is under way and not accepted; sorted, disjoint.
    sent: VecDeque<Sent>,
}

/// What the next DATA frame carries.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) offset: Offset,
    pub(crate) payload: Bytes,
    pub(crate) fin: bool,
}

impl SendBuffer {
    pub(crate) fn base(&self) -> Offset {
        self.base
    }

    pub(crate) fn released(&self) -> Offset {
        self.released
    }

    pub(crate) fn end(&self) -> Offset {
        self.end
    }

    /// Keeps messages whole from here on, or no longer.
    pub(crate) fn keep_messages(&mut self, framer: Option<Framer>) {
        self.framer = framer.map(Box::new);
    }

    /// Messages are kept whole, and this is still a stream of messages.
    pub(crate) fn keeps_messages(&self) -> bool {
        self.framer.as_ref().is_some_and(|f| !f.is_opaque())
    }

    /// Behind the FIN where there is one, else behind the last byte.
    pub(crate) fn send_end(&self) -> Offset {
        self.end.plus(u64::from(self.fin))
    }

    pub(crate) fn has_fin(&self) -> bool {
        self.fin
    }

    /// Bytes held in memory.
    pub(crate) fn retained(&self) -> u64 {
        self.end.since(self.base)
    }

    /// Bytes taken that the peer has not released.
    pub(crate) fn unreleased(&self) -> u64 {
        self.end.since(self.released)
    }

    /// Everything that is held, in order from `base` on.
    pub(crate) fn held(&self) -> Vec<Bytes> {
        let from_base = |(at, chunk): &(Offset, Bytes)| {
            let skip = usize::try_from(self.base.since(*at)).unwrap_or(usize::MAX);
            chunk.slice(skip.min(chunk.len())..)
        };
        self.chunks.iter().map(from_base).collect()
    }

    /// Everything, FIN included, was released by the peer.
    pub(crate) fn is_settled(&self) -> bool {
        self.released >= self.send_end()
    }

    pub(crate) fn push(&mut self, bytes: Bytes) {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if let Some(bytes) = self.append(bytes) {
            self.chunks.push_back((self.end, bytes));
        }
        self.end = self.end.plus(len);
    }

    /// Lets a short chunk grow, so that a socket which yields few bytes at a time does not cost many
    /// times what the budget counts. Gives back what begins a chunk of its own.
    fn append(&mut self, bytes: Bytes) -> Option<Bytes> {
        let Some((_, last)) = self.chunks.back_mut() else {
            return Some(bytes);
        };
        if last.len() >= COPY_BELOW || bytes.len() >= COPY_BELOW {
            return Some(bytes);
        }
        // While an outbox still refers to it, it stays as it is.
        match std::mem::take(last).try_into_mut() {
            Ok(mut block) => {
                block.put_slice(&bytes);
                *last = block.freeze();
                None
            }
            Err(shared) => {
                *last = shared;
                Some(bytes)
            }
        }
    }

    pub(crate) fn finish(&mut self) {
        self.fin = true;
    }

    /// RESET takes the place of a FIN that was never sent: waiting for credit it would hold the
    /// reset behind a reader that stands still.
    pub(crate) fn withdraw_unsent_fin(&mut self) {
        self.fin &= self.high > self.end;
    }

    pub(crate) fn raise_limit(&mut self, limit: Offset) {
        self.limit = self.limit.max(limit);
    }

    /// The first offset that is not accepted and not under way, and where that gap ends.
    fn gap(&self) -> (Offset, Offset) {
        let mut start = self.accepted;
        for sent in &self.sent {
            if sent.start > start {
                return (start, sent.start);
            }
            start = start.max(sent.end);
        }
        (start, Offset(u64::MAX))
    }

    /// Something could be sent at once.
    pub(crate) fn is_ready(&self) -> bool {
        let start = self.gap().0;
        start < self.send_end() && start < self.limit
    }

    /// Takes the next piece to be sent on `link`, at most one frame and as many bytes as there is
    /// room for, which depends on where the piece begins.
    pub(crate) fn take(
        &mut self,
        link: LinkId,
        room: impl FnOnce(Offset) -> usize,
    ) -> Option<Piece> {
        let (start, gap_end) = self.gap();
        let stop = gap_end.min(self.send_end()).min(self.limit);
        if start >= stop {
            return None;
        }
        let payload = self.bytes_at(start, stop, room(start));
        let len = u64::try_from(payload.len()).unwrap_or(u64::MAX);
        let after = start.plus(len);
        let fin = self.fin && after == self.end && after < stop;
        let end = after.plus(u64::from(fin));
        self.mark_sent(start, end, link);
        self.high = self.high.max(end);
        Some(Piece {
            offset: start,
            payload,
            fin,
        })
    }

    /// One chunk's bytes from `start`, at most up to `stop`, `most` and one frame; empty at FIN.
    fn bytes_at(&self, start: Offset, stop: Offset, most: usize) -> Bytes {
        let index = self.chunks.partition_point(|(at, _)| *at <= start);
        let Some((at, chunk)) = index.checked_sub(1).and_then(|i| self.chunks.get(i)) else {
            return Bytes::new();
        };
        let skip = usize::try_from(start.since(*at))
            .unwrap_or(usize::MAX)
            .min(chunk.len());
        let want = usize::try_from(stop.since(start))
            .unwrap_or(usize::MAX)
            .min(MAX_PAYLOAD)
            .min(most);
        chunk.slice(skip..chunk.len().min(skip.saturating_add(want)))
    }

    fn mark_sent(&mut self, start: Offset, end: Offset, link: LinkId) {
        let index = self.sent.partition_point(|s| s.start < start);
        if let Some(before) = index.checked_sub(1).and_then(|i| self.sent.get_mut(i))
            && before.end == start
            && before.link == link
        {
            before.end = end;
            return;
        }
        self.sent.insert(index, Sent { start, end, link });
    }

    /// The peer says what it has; all three only ever grow (rule 3).
    ///
    /// # Errors
    ///
    /// A claim that was never possible is a violation: the text says which.
    pub(crate) fn acknowledge(
        &mut self,
        accepted: Offset,
        released: Offset,
    ) -> Result<(), &'static str> {
        if accepted > self.high {
            return Err("accepted is beyond what was ever sent");
        }
        if released > accepted {
            return Err("released is beyond accepted");
        }
        self.accepted = self.accepted.max(accepted);
        while let Some(first) = self.sent.front_mut() {
            if first.end <= self.accepted {
                self.sent.pop_front();
            } else {
                first.start = first.start.max(self.accepted);
                break;
            }
        }
        self.free(released);
        Ok(())
    }

    fn free(&mut self, released: Offset) {
        if released <= self.released {
            return;
        }
        self.released = released;
        self.base = self.find_boundary().unwrap_or(released);
        while let Some((at, chunk)) = self.chunks.front_mut() {
            let len = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            if at.plus(len) <= self.base {
                self.chunks.pop_front();
                continue;
            }
            let skip = usize::try_from(self.base.since(*at)).unwrap_or(0);
            let rest = chunk.get(skip..).unwrap_or_default();
            if rest.len() <= chunk.len() / PINNED {
                *chunk = Bytes::copy_from_slice(rest);
                *at = self.base;
            }
            break;
        }
    }

    /// The last boundary in what is released, where messages are kept whole. Each byte is looked
    /// at once.
    fn find_boundary(&mut self) -> Option<Offset> {
        let framer = self.framer.as_mut()?;
        let bytes_end = self.released.min(self.end);
        let index = self
            .chunks
            .partition_point(|(at, _)| *at <= framer.position());
        for (at, chunk) in self.chunks.range(index.saturating_sub(1)..) {
            let from = usize::try_from(framer.position().since(*at)).unwrap_or(usize::MAX);
            let to = usize::try_from(bytes_end.since(*at)).unwrap_or(usize::MAX);
            let Some(bytes) = chunk.get(from..to.min(chunk.len())) else {
                break;
            };
            framer.feed(bytes);
        }
        if self.released > self.end {
            framer.finish();
            return Some(self.released);
        }
        Some(framer.boundary())
    }

    /// Everything before `released` is known to have been released: from another source than an
    /// ACK, so that what was never possible counts as nothing.
    pub(crate) fn release_at_most(&mut self, released: Offset) {
        self.free(released.min(self.high));
    }

    /// What was under way on a dead link is unsent again (rule 2).
    pub(crate) fn forget_link(&mut self, link: LinkId) -> bool {
        let before = self.sent.len();
        self.sent.retain(|s| s.link != link);
        self.sent.len() != before
    }

    /// Whether bytes that were sent on that link are not acknowledged.
    pub(crate) fn is_under_way_on(&self, link: LinkId) -> bool {
        self.sent.iter().any(|s| s.link == link)
    }

    /// Lets go of all bytes: nothing more is sent in this direction.
    pub(crate) fn abandon(&mut self) {
        self.chunks.clear();
        self.sent.clear();
        self.base = self.send_end();
        self.accepted = self.base;
        self.high = self.high.max(self.base);
    }

    #[cfg(test)]
    pub(crate) fn chunk_count(&self) -> usize {
        self.chunks.len()
    }
}
