//! Questions: which of them go on to a name server, and what answers the others.

use super::answers::{self, Finding};
use super::message::{self, HEADER_BYTES, Header, TYPE_AND_CLASS_BYTES, code, kind};
use super::names;
use std::net::IpAddr;

/// The longest message that can be a plain question: a name has 255 bytes, and options of EDNS come
/// with it.
pub const QUESTION_BYTES: usize = 4096;
/// What answers of our own say that we take (RFC 9715: no fragments).
const DATAGRAM_BYTES: u16 = 1232;
/// OPT, and TSIG or SIG(0).
const ADDITIONAL_RECORDS: u16 = 2;
const CLASS_IN: u16 = 1;

/// What becomes of a message that a client has sent to the resolver.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is no question, and nobody waits for an answer.
    Drop,
    /// This is the answer; nobody is asked.
    Answer(Vec<u8>),
    /// A name server is asked.
    Ask(Question),
}

/// A question on its way to a name server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// By which the client knows its answer.
    id: [u8; 2],
    flags: [u8; 2],
    /// Name, type and class as the client has written them.
    section: Vec<u8>,
    /// Where the client speaks EDNS, whether it wants records of DNSSEC (RFC 3225).
    edns: Option<bool>,
}

/// A message of a client.
pub fn judge(message: &[u8]) -> Verdict {
    let Some(header) = Header::of(message).filter(|header| !header.is_response()) else {
        return Verdict::Drop;
    };
    let mut question = Question {
        id: header.id,
        flags: header.flags,
        section: Vec::new(),
        edns: None,
    };
    if header.opcode() != 0 {
        return question.refused(code::NOT_IMPLEMENTED);
    }
    let is_plain = matches!(header.counts, [1, 0, 0, ..=ADDITIONAL_RECORDS]);
    if !is_plain || message.len() > QUESTION_BYTES {
        return question.refused(code::FORMAT_ERROR);
    }
    let Some(section) = message::section(message) else {
        return question.refused(code::FORMAT_ERROR);
    };
    question.section = section.to_vec();
    for record in message::records(message) {
        let Some(record) = record else {
            return question.refused(code::FORMAT_ERROR);
        };
        if record.kind == kind::OPT {
            let flags = message::number(message, record.ttl.start + 2).unwrap_or(0);
            question.edns = Some(flags & 0x8000 != 0);
        }
    }
    match question.judge_section() {
        Ok(()) => Verdict::Ask(question),
        Err(code) => question.refused(code),
    }
}

/// What a name is asked for to connect somewhere; other types of a top-level domain are its own.
const fn leads_to_hosts(asked: u16) -> bool {
    use kind::{A, AAAA, ANY, HTTPS, SVCB};
    matches!(asked, A | AAAA | SVCB | HTTPS | ANY)
}

impl Question {
    /// Whether a name server is asked; by which code that is refused otherwise.
    fn judge_section(&self) -> Result<(), u8> {
        let at = self.section.len() - TYPE_AND_CLASS_BYTES;
        let asked = message::number(&self.section, at).unwrap_or(0);
        // Other classes tell of the name server itself; whole zones are no business of an application.
        if message::number(&self.section, at + 2) != Some(CLASS_IN)
            || matches!(asked, kind::AXFR | kind::IXFR)
        {
            return Err(code::REFUSED);
        }
        let mut steps = QUESTION_BYTES;
        let labels = message::name(&self.section, 0, &mut steps).ok_or(code::FORMAT_ERROR)?;
        if names::is_local(&labels) {
            return Err(code::NAME_ERROR);
        }
        // A host of the server's network, perhaps; it is not said that nothing lies below (RFC 8020).
        if labels.len() == 1 && leads_to_hosts(asked) {
            return Err(code::NO_ERROR);
        }
        Ok(())
    }

    fn refused(&self, code: u8) -> Verdict {
        Verdict::Answer(self.answer_with(code))
    }

    /// An answer without records.
    fn answer_with(&self, code: u8) -> Vec<u8> {
        let has_question = u8::from(!self.section.is_empty());
        let has_edns = u8::from(self.edns.is_some());
        // A response to the same, where recursion is available; what was desired stands there again.
        let [first, second] = [
            0x80 | self.flags[0] & 0x79,
            0x80 | self.flags[1] & 0x10 | code,
        ];
        let mut bytes = self.id.to_vec();
        bytes.extend([first, second, 0, has_question, 0, 0, 0, 0, 0, has_edns]);
        bytes.extend_from_slice(&self.section);
        if let Some(wants_dnssec) = self.edns {
            let [kind, size] = [kind::OPT, DATAGRAM_BYTES].map(u16::to_be_bytes);
            bytes.extend([0, kind[0], kind[1], size[0], size[1]]);
            bytes.extend([0, 0, u8::from(wants_dnssec) << 7, 0, 0, 0]);
        }
        bytes
    }

    /// The message of a client as it goes to a name server, by an identifier that nobody can guess.
    pub fn send_as(message: &mut [u8], id: [u8; 2]) {
        if let Some(place) = message.first_chunk_mut() {
            *place = id;
        }
    }

    /// Whether this is an answer to the question that was sent with that identifier.
    pub fn is_answered_by(&self, answer: &[u8], id: [u8; 2]) -> bool {
        let Some(header) = Header::of(answer) else {
            return false;
        };
        // A name server that understands nothing may leave the question out.
        let is_ours = match header.counts[0] {
            0 => header.code() != code::NO_ERROR,
            1 => message::section(answer).is_some_and(|s| s.eq_ignore_ascii_case(&self.section)),
            _ => false,
        };
        header.is_response() && header.id == id && is_ours
    }

    /// An answer as the client gets it: without addresses that it `may_learn` nothing of, and none
    /// that leads to a local name.
    pub fn answer(&self, answer: &[u8], may_learn: impl Fn(IpAddr) -> bool) -> Vec<u8> {
        let mut bytes = match answers::look(answer, &may_learn) {
            Some(Finding::Open) => answer.to_vec(),
            Some(Finding::Local) => return self.answer_with(code::NAME_ERROR),
            Some(Finding::Closed) => match answers::strip(answer, &may_learn) {
                Some(stripped) => stripped,
                None => return self.unanswered(),
            },
            None => return self.unanswered(),
        };
        Self::send_as(&mut bytes, self.id);
        bytes
    }

    /// What the client gets if no name server answers: SERVFAIL.
    pub fn unanswered(&self) -> Vec<u8> {
        self.answer_with(code::SERVER_FAILURE)
    }
}

const _: () = assert!(HEADER_BYTES + 255 + TYPE_AND_CLASS_BYTES < QUESTION_BYTES);
