//! Runs of stored messages as records, with something in the place of sealing.

use super::socket::wide;
use bytes::Bytes;
use tund_server_core::delivery::Record;
use tund_session::Remainder;
use tund_session::framer::Framer;
use tund_session::wire::frame::Framing;

/// What stands in for sealing.
const TAG: [u8; 16] = [9; 16];

/// Opens a record; none if it was not made here.
pub fn unseal(_: &Record, sealed: &[u8]) -> Option<Vec<u8>> {
    let (text, tag) = sealed.split_last_chunk::<16>()?;
    (*tag == TAG).then(|| text.to_vec())
}

/// What is stored of a remainder.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The records in the order in which they go out.
    pub records: Bytes,
    /// The place behind the last message.
    pub end: u64,
    /// FIN stands there.
    pub fin: bool,
}

/// The whole lines of a remainder, at least `least` bytes of them in a record; what is left of the last
/// line counts as lost, unless FIN ends it.
pub fn cut(remainder: &Remainder, least: usize) -> Kept {
    let text = remainder.bytes.concat();
    let mut framer = Framer::resume(Framing::Line, remainder.start);
    framer.feed(&text);
    let boundary = framer.boundary().since(remainder.start);
    let whole = if framer.is_opaque() {
        0
    } else if remainder.fin {
        text.len()
    } else {
        super::socket::narrow(boundary)
    };
    let end = remainder.start.0 + wide(whole);
    let mut out = Vec::new();
    let mut start = remainder.start.0;
    let mut record = Vec::new();
    for line in text[..whole].split_inclusive(|byte| *byte == b'\n') {
        record.extend_from_slice(line);
        let is_last = start + wide(record.len()) == end;
        if record.len() >= least || is_last {
            let fin = is_last && remainder.fin;
            seal(&mut out, &mut start, &mut record, fin);
        }
    }
    Kept {
        records: out.into(),
        end,
        fin: remainder.fin,
    }
}

fn seal(out: &mut Vec<u8>, start: &mut u64, text: &mut Vec<u8>, fin: bool) {
    let end = *start + wide(text.len());
    out.extend_from_slice(&start.to_be_bytes());
    out.extend_from_slice(&end.to_be_bytes());
    out.push(u8::from(fin));
    let length = u32::try_from(text.len() + TAG.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.append(text);
    out.extend_from_slice(&TAG);
    *start = end;
}
