//! What one link shall send: encoded headers and references to payloads, in order.

use crate::wire::codec;
use crate::wire::frame::Frame;
use bytes::Bytes;

/// Bytes for one link; cleared and refilled, so that nothing is allocated per frame.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Headers and whole small frames, one after the other.
    heads: Vec<u8>,
    /// A payload, and where in `heads` it comes in.
    payloads: Vec<(usize, Bytes)>,
    len: usize,
    frames: u64,
}

impl Outbox {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the content and keeps the memory.
    pub fn clear(&mut self) {
        self.heads.clear();
        self.payloads.clear();
        self.len = 0;
        self.frames = 0;
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Frames held.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// The bytes in the order of the wire.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let mut at = 0;
        let pairs = self.payloads.iter().flat_map(move |(position, payload)| {
            let head = self.heads.get(at..*position).unwrap_or_default();
            at = *position;
            [head, payload.as_ref()]
        });
        let last = self.payloads.last().map_or(0, |(position, _)| *position);
        pairs
            .chain(std::iter::once(self.heads.get(last..).unwrap_or_default()))
            .filter(|slice| !slice.is_empty())
    }

    /// The bytes in one piece, for tests and tools.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len);
        self.slices()
            .for_each(|slice| bytes.extend_from_slice(slice));
        bytes
    }

    /// Appends a frame; for answers given without a session.
    pub fn push(&mut self, frame: &Frame) {
        let before = self.heads.len();
        codec::encode(frame, &mut self.heads);
        self.len += self.heads.len() - before;
        self.frames += 1;
    }

    pub(crate) fn push_datagram(
        &mut self,
        head: &crate::wire::frame::DatagramHead,
        place: Option<(u32, u32)>,
        payload: Bytes,
    ) {
        let before = self.heads.len();
        codec::encode_datagram_header(head, place, payload.len(), &mut self.heads);
        self.len += self.heads.len() - before + payload.len();
        self.frames += 1;
        if !payload.is_empty() {
            self.payloads.push((self.heads.len(), payload));
        }
    }

    pub(crate) fn push_data(&mut self, flow: crate::FlowId, piece: crate::send_buffer::Piece) {
        let before = self.heads.len();
        let size = piece.payload.len();
        codec::encode_data_header(flow, piece.offset, piece.fin, size, &mut self.heads);
        self.len += self.heads.len() - before + size;
        self.frames += 1;
        if size > 0 {
            self.payloads.push((self.heads.len(), piece.payload));
        }
    }
}
