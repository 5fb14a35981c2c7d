//! Runs of stored messages as records, with something in the place of sealing.

use super::socket::wide;
use bytes::Bytes;
use std::net::SocketAddr;
use tund_server_core::delivery::Binding;
use tund_session::framer::Framer;
use tund_session::wire::frame::Framing;
use tund_session::{FlowId, Remainder, SessionId};

/// Whose bytes a run is, and where they go.
#[derive(Clone, Copy, Debug)]
pub struct Whose {
    /// The session in which they were taken.
    pub session: SessionId,
    /// Their flow in it.
    pub flow: FlowId,
    /// Who wrote them.
    pub user: u32,
    /// Where they go.
    pub destination: SocketAddr,
}

/// What stands in for sealing: it says what a record was sealed as.
type Tag = [u8; 51];

fn tag(whose: &Whose, (start, end, fin): (u64, u64, bool)) -> Tag {
    let SocketAddr::V4(destination) = whose.destination else {
        return [0; 51];
    };
    let parts = [
        &whose.session.0[..],
        &whose.flow.0.to_be_bytes(),
        &whose.user.to_be_bytes(),
        &destination.ip().octets(),
        &destination.port().to_be_bytes(),
        &start.to_be_bytes(),
        &end.to_be_bytes(),
        &[u8::from(fin)],
    ];
    parts.concat().try_into().unwrap_or([0; 51])
}

/// Opens a record; none if it was sealed as something else.
pub fn unseal(binding: &Binding, sealed: &[u8]) -> Option<Vec<u8>> {
    let whose = Whose {
        session: binding.of.session,
        flow: binding.of.flow,
        user: binding.user,
        destination: binding.destination,
    };
    let record = &binding.record;
    let place = (record.start.0, record.end.0, record.has_fin);
    let (text, is) = sealed.split_last_chunk()?;
    (*is == tag(&whose, place)).then(|| text.to_vec())
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
pub fn cut(remainder: &Remainder, least: usize, whose: &Whose) -> Kept {
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
            seal(&mut out, &mut start, &mut record, (whose, fin));
        }
    }
    Kept {
        records: out.into(),
        end,
        fin: remainder.fin,
    }
}

fn seal(out: &mut Vec<u8>, start: &mut u64, text: &mut Vec<u8>, (whose, fin): (&Whose, bool)) {
    let end = *start + wide(text.len());
    out.extend_from_slice(&start.to_be_bytes());
    out.extend_from_slice(&end.to_be_bytes());
    out.push(u8::from(fin));
    let tag = tag(whose, (*start, end, fin));
    let length = u32::try_from(text.len() + tag.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.append(text);
    out.extend_from_slice(&tag);
    *start = end;
}
