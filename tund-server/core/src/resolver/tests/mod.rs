//! Questions and answers by table, and by chance.

mod answers;
mod questions;

use super::*;
use crate::admission::Admission;
use simple_dns::rdata::{A, AAAA, MX, OPT, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question as Asked, RCODE, ResourceRecord, TYPE};
use std::net::IpAddr;

fn query(name: &str, kind: TYPE) -> Vec<u8> {
    let mut packet = Packet::new_query(0x1234);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name).unwrap();
    packet
        .questions
        .push(Asked::new(name, kind.into(), CLASS::IN.into(), false));
    packet.build_bytes_vec().unwrap()
}

/// The same for a type that the library cannot ask for.
fn query_of(name: &str, kind: u16) -> Vec<u8> {
    let mut message = query(name, TYPE::A);
    let at = message.len() - 4;
    message[at..at + 2].copy_from_slice(&kind.to_be_bytes());
    message
}

/// With EDNS, for records of DNSSEC if wanted.
fn with_edns(message: &[u8], wants_dnssec: bool) -> Vec<u8> {
    let mut message = message.to_vec();
    message[11] += 1;
    message.extend([0, 0, 41, 0x10, 0, 0, 0, u8::from(wants_dnssec) << 7, 0]);
    // A cookie.
    message.extend([0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    message
}

fn asked(message: &[u8]) -> Question {
    let verdict = judge(message);
    let Verdict::Ask(question) = verdict else {
        panic!("{verdict:?}");
    };
    question
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An answer with these addresses in its sections, to that question.
fn answer_to(message: &[u8], in_answer: &[IpAddr], in_additional: &[IpAddr]) -> Vec<u8> {
    let query = Packet::parse(message).unwrap();
    let mut answer = Packet::new_reply(0xabcd);
    answer.questions.clone_from(&query.questions);
    let record = |ip: &IpAddr| {
        let rdata = match ip {
            IpAddr::V4(ip) => RData::A(A {
                address: (*ip).into(),
            }),
            IpAddr::V6(ip) => RData::AAAA(AAAA {
                address: (*ip).into(),
            }),
        };
        record_of("host.example.org", rdata)
    };
    answer.answers.extend(in_answer.iter().map(record));
    answer
        .additional_records
        .extend(in_additional.iter().map(record));
    let exchange = Name::new_unchecked("host.example.org");
    let mx = RData::MX(MX {
        preference: 1,
        exchange,
    });
    answer.answers.push(record_of("example.org", mx));
    answer.build_bytes_vec_compressed().unwrap()
}

fn record_of<'a>(owner: &'a str, rdata: RData<'a>) -> ResourceRecord<'a> {
    ResourceRecord::new(Name::new_unchecked(owner), CLASS::IN, 60, rdata)
}
