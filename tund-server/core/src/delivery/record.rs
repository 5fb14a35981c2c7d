//! The header of a record (PROTOCOL.md §5.8).

use super::StoredFlow;
use bytes::Bytes;
use std::net::SocketAddr;
use tund_session::Offset;
use tund_session::limits::RECORD_EXTRA;
use tund_session::wire::frame::Framing;

/// Start, end, flags, length.
pub const HEADER_BYTES: usize = 8 + 8 + 1 + 4;
/// Bit 0 of the flags.
const FIN: u8 = 1;

/// What a record must have been sealed as (PROTOCOL.md §5.8): it opens as nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Whose stream, and which.
    pub of: StoredFlow,
    /// The user whose application sent it.
    pub user: u32,
    /// Where it shall go.
    pub destination: SocketAddr,
    /// How the stream is cut into messages.
    pub framing: Framing,
    /// Its place in the stream.
    pub record: Record,
}

/// What a record says before its sealed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The place of its first byte in the stored stream.
    pub start: Offset,
    /// The place behind its last byte.
    pub end: Offset,
    /// FIN stands behind the last byte.
    pub has_fin: bool,
    sealed: usize,
}

impl Record {
    /// Reads a header, and checks what it says by itself.
    pub(super) fn parse(header: &[u8]) -> Result<Self, &'static str> {
        let (start, rest) = number(header)?;
        let (end, rest) = number(rest)?;
        let (&[flags, a, b, c, d], []) = rest.split_first_chunk().ok_or(SHORT)? else {
            return Err(SHORT);
        };
        let length = u32::from_be_bytes([a, b, c, d]);
        let has_fin = flags & FIN != 0;
        if flags & !FIN != 0 {
            return Err("a record with unknown flags");
        }
        if end < start || (end == start && !has_fin) {
            return Err("a record that carries nothing");
        }
        if u64::from(length) > (end - start).saturating_add(RECORD_EXTRA) {
            return Err("a record longer than its text can make it");
        }
        Ok(Self {
            start: Offset(start),
            end: Offset(end),
            has_fin,
            sealed: usize::try_from(length).map_err(|_| SHORT)?,
        })
    }

    /// Sealed bytes that follow.
    pub fn sealed_len(&self) -> usize {
        self.sealed
    }

    /// The flags as they came, for what the record is bound to.
    pub fn flags(&self) -> u8 {
        u8::from(self.has_fin)
    }

    /// The place behind its FIN, where it has one, else behind its last byte.
    pub(super) fn end_with_fin(&self) -> Offset {
        self.end.plus(u64::from(self.has_fin))
    }
}

const SHORT: &str = "a header of another length";

fn number(bytes: &[u8]) -> Result<(u64, &[u8]), &'static str> {
    let (first, rest) = bytes.split_first_chunk::<8>().ok_or(SHORT)?;
    Ok((u64::from_be_bytes(*first), rest))
}

/// `count` bytes of `pieces` from `skip` on, in one piece, once all are there.
pub(super) fn gather<'a>(
    pieces: impl Iterator<Item = &'a Bytes> + Clone,
    skip: usize,
    count: usize,
) -> Option<Vec<u8>> {
    let wanted = skip.saturating_add(count);
    let mut there = 0_usize;
    for piece in pieces.clone() {
        there = there.saturating_add(piece.len());
        if there >= wanted {
            break;
        }
    }
    if there < wanted {
        return None;
    }
    let mut out = Vec::with_capacity(count);
    let mut at = 0;
    for piece in pieces {
        let from = skip.saturating_sub(at).min(piece.len());
        let to = wanted.saturating_sub(at).min(piece.len());
        out.extend_from_slice(piece.get(from..to).unwrap_or_default());
        at = at.saturating_add(piece.len());
        if at >= wanted {
            break;
        }
    }
    Some(out)
}
