//! Messages of DNS as bytes (RFC 1035 §4.1), read as far as the resolver must: what is of no concern
//! to it passes, and no message takes longer than its length says.

use std::ops::Range;

/// Of a message.
pub(super) const HEADER_BYTES: usize = 12;
/// Of a name, the length bytes of its labels included (RFC 1035 §2.3.4).
const NAME_BYTES: usize = 255;
/// Type and class of a question.
pub(super) const TYPE_AND_CLASS_BYTES: usize = 4;

/// Numbers of record types, and of question types (IANA's registry).
pub(super) mod kind {
    pub(in super::super) const A: u16 = 1;
    pub(in super::super) const CNAME: u16 = 5;
    pub(in super::super) const AAAA: u16 = 28;
    pub(in super::super) const DNAME: u16 = 39;
    pub(in super::super) const OPT: u16 = 41;
    pub(in super::super) const SVCB: u16 = 64;
    pub(in super::super) const HTTPS: u16 = 65;
    pub(in super::super) const IXFR: u16 = 251;
    pub(in super::super) const AXFR: u16 = 252;
    pub(in super::super) const ANY: u16 = 255;
}

/// Numbers of response codes.
pub(super) mod code {
    pub(in super::super) const NO_ERROR: u8 = 0;
    pub(in super::super) const FORMAT_ERROR: u8 = 1;
    pub(in super::super) const SERVER_FAILURE: u8 = 2;
    pub(in super::super) const NAME_ERROR: u8 = 3;
    pub(in super::super) const NOT_IMPLEMENTED: u8 = 4;
    pub(in super::super) const REFUSED: u8 = 5;
}

/// What stands before all else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: [u8; 2],
    pub(super) flags: [u8; 2],
    /// Questions, answers, records about name servers, additional records.
    pub(super) counts: [u16; 4],
}

impl Header {
    pub(super) fn of(message: &[u8]) -> Option<Self> {
        let bytes = message.first_chunk::<HEADER_BYTES>()?;
        let [a, b, c, d, counts @ ..] = *bytes;
        let [q, r, s, t, u, v, w, x] = counts;
        let counts = [[q, r], [s, t], [u, v], [w, x]].map(u16::from_be_bytes);
        Some(Self {
            id: [a, b],
            flags: [c, d],
            counts,
        })
    }

    pub(super) const fn is_response(self) -> bool {
        self.flags[0] & 0x80 != 0
    }

    /// 0 for a plain question.
    pub(super) const fn opcode(self) -> u8 {
        (self.flags[0] >> 3) & 0xf
    }

    pub(super) const fn code(self) -> u8 {
        self.flags[1] & 0xf
    }
}

/// The question of a message with a single one, whose name is written out: name, type and class.
pub(super) fn section(message: &[u8]) -> Option<&[u8]> {
    let mut at = HEADER_BYTES;
    loop {
        let len = usize::from(*message.get(at)?);
        at += 1 + len;
        // A reference to elsewhere would be longer than any label.
        if len > 63 || at - HEADER_BYTES > NAME_BYTES {
            return None;
        }
        if len == 0 {
            return message.get(HEADER_BYTES..at + TYPE_AND_CLASS_BYTES);
        }
    }
}

pub(super) fn number(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes))
}

/// Behind the name that stands there: its references are not followed.
fn behind_name(message: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        let len = *message.get(at)?;
        match len {
            0 => return Some(at + 1),
            1..64 => at += 1 + usize::from(len),
            192.. => return Some(at + 2),
            64..192 => return None,
        }
        if at - from > NAME_BYTES {
            return None;
        }
    }
}

/// The labels of the name that stands there, in lower case. Each label and each reference to
/// elsewhere takes one of `steps`, so that no message of references costs more.
pub(super) fn name(message: &[u8], mut at: usize, steps: &mut usize) -> Option<Vec<Vec<u8>>> {
    let mut labels = Vec::new();
    let mut bytes = 1;
    loop {
        *steps = steps.checked_sub(1)?;
        let len = *message.get(at)?;
        match len {
            0 => return Some(labels),
            1..64 => {
                let len = usize::from(len);
                let label = message.get(at + 1..at + 1 + len)?;
                labels.push(label.to_ascii_lowercase());
                at += 1 + len;
                bytes += 1 + len;
            }
            192.. => at = usize::from(number(message, at)? & 0x3fff),
            64..192 => return None,
        }
        if bytes > NAME_BYTES {
            return None;
        }
    }
}

/// A record, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// It answers the question; otherwise it is about name servers, or additional.
    pub(super) is_answer: bool,
    pub(super) owner: usize,
    pub(super) kind: u16,
    pub(super) ttl: Range<usize>,
    pub(super) data: Range<usize>,
}

/// The records of a message, one after the other; none where it is cut or makes no sense.
pub(super) fn records(message: &[u8]) -> impl Iterator<Item = Option<Record>> {
    let header = Header::of(message);
    let [questions, rest @ ..] = header.map_or([0; 4], |header| header.counts);
    let mut at = match questions {
        0 => Some(HEADER_BYTES),
        1 => section(message).map(|section| HEADER_BYTES + section.len()),
        _ => None,
    };
    let count: usize = rest.iter().map(|count| usize::from(*count)).sum();
    let mut is_over = false;
    (0..count).map_while(move |number| {
        let is_answer = number < usize::from(rest[0]);
        let record = at.and_then(|at| record(message, at, is_answer));
        at = record.as_ref().map(|record| record.data.end);
        (!std::mem::replace(&mut is_over, record.is_none())).then_some(record)
    })
}

fn record(message: &[u8], owner: usize, is_answer: bool) -> Option<Record> {
    let kind = behind_name(message, owner)?;
    let ttl = kind + TYPE_AND_CLASS_BYTES;
    let data = ttl + 6;
    let len = usize::from(number(message, ttl + 4)?);
    message.get(data..data + len)?;
    Some(Record {
        is_answer,
        owner,
        kind: number(message, kind)?,
        ttl: ttl..ttl + 4,
        data: data..data + len,
    })
}

/// The parameters of a record of type SVCB or HTTPS (RFC 9460 §2.2), each by its key.
pub(super) fn parameters(data: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    const PRIORITY_BYTES: usize = 2;
    let mut at = behind_name(data, PRIORITY_BYTES)?;
    let mut all = Vec::new();
    while at < data.len() {
        let len = usize::from(number(data, at + 2)?);
        let value = at + 4..at + 4 + len;
        let end = value.end;
        all.push((number(data, at)?, data.get(value)?));
        at = end;
    }
    Some(all)
}
