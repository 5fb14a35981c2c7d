//! What of an answer is passed on.

use super::*;
use crate::resolver::message::{self, code, kind};
use proptest::collection::vec;
use proptest::prelude::*;
use simple_dns::rdata::{CNAME, HTTPS, SVCB};
use std::net::{Ipv4Addr, Ipv6Addr};

fn shown(bytes: &[u8]) -> Vec<IpAddr> {
    let packet = Packet::parse(bytes).unwrap();
    let records = packet.answers.iter().chain(&packet.additional_records);
    let address = |record: &ResourceRecord<'_>| {
        if let RData::A(a) = &record.rdata {
            Some(IpAddr::V4(Ipv4Addr::from(a.address)))
        } else if let RData::AAAA(aaaa) = &record.rdata {
            Some(IpAddr::V6(Ipv6Addr::from(aaaa.address)))
        } else {
            None
        }
    };
    records.filter_map(address).collect()
}

fn closed_to_all() -> Admission {
    Admission::new(Vec::new(), Vec::new(), [])
}

#[test]
fn private_addresses_are_shown_to_whom_they_are_open_only() {
    let message = query("example.org", TYPE::A);
    let question = asked(&message);
    let all = [
        "198.51.100.1",
        "10.1.2.3",
        "2001:db8::1",
        "fd00::7",
        "127.0.0.1",
    ]
    .map(ip);
    let raw = answer_to(&message, &all, &[ip("10.9.9.9"), ip("192.0.2.5")]);
    let admission = closed_to_all();
    let closed = question.answer(&raw, |ip| admission.shows(&[], ip));
    assert_eq!(
        shown(&closed),
        ["198.51.100.1", "2001:db8::1", "192.0.2.5"].map(ip)
    );
    assert_eq!(closed[..2], message[..2]);
    assert!(
        Packet::parse(&closed)
            .unwrap()
            .answers
            .iter()
            .any(|r| matches!(r.rdata, RData::MX(_)))
    );

    let allow = ["10.1.0.0/16:443", "fd00::/8"].map(|rule| rule.parse().unwrap());
    let opened = question.answer(&raw, |ip| admission.shows(&allow, ip));
    let wanted = [
        "198.51.100.1",
        "10.1.2.3",
        "2001:db8::1",
        "fd00::7",
        "192.0.2.5",
    ];
    assert_eq!(shown(&opened), wanted.map(ip));

    // Nothing to strip: the bytes pass as they are, but for the identifier.
    let public = answer_to(&message, &[ip("198.51.100.1")], &[]);
    let passed = question.answer(&public, |ip| admission.shows(&[], ip));
    assert_eq!((&passed[..2], &passed[2..]), (&message[..2], &public[2..]));
}

#[test]
fn what_is_written_anew_keeps_its_question_and_the_flags_of_edns() {
    let message = with_edns(&query_of("example.org", 52), true);
    let question = asked(&message);
    let section = message::section(&message).unwrap();
    let mut packet = Packet::new_reply(9);
    packet.set_flags(PacketFlag::AUTHENTIC_DATA);
    let known = query("example.org", TYPE::A);
    packet.questions = Packet::parse(&known).unwrap().questions;
    *packet.opt_mut() = Some(OPT {
        opt_codes: Vec::new(),
        udp_packet_size: 1400,
        version: 0,
    });
    for address in [0x0a00_0001, 0xc000_0201] {
        let rdata = RData::A(A { address });
        packet
            .additional_records
            .push(record_of("a.example", rdata));
    }
    let mut raw = packet.build_bytes_vec().unwrap();
    raw[12..12 + section.len()].copy_from_slice(section);
    let opt = message::records(&raw)
        .flatten()
        .find(|r| r.kind == kind::OPT);
    // An extended code, and records of DNSSEC.
    raw[opt.unwrap().ttl].copy_from_slice(&[1, 0, 0x80, 0]);

    let got = question.answer(&raw, |ip| closed_to_all().shows(&[], ip));
    assert_eq!(message::section(&got), Some(section));
    assert_eq!(got[3] & 0x20, 0, "it is no longer what was authentic");
    let records: Vec<_> = message::records(&got).map(Option::unwrap).collect();
    let kinds: Vec<_> = records.iter().map(|record| record.kind).collect();
    assert_eq!(kinds, [kind::OPT, kind::A]);
    assert_eq!(got[records[0].ttl.clone()], [1, 0, 0x80, 0]);
    assert_eq!(got[records[1].data.clone()], [192, 0, 2, 1]);
}

#[test]
fn hints_of_private_addresses_are_stripped_with_their_record() {
    let message = query("example.org", TYPE::HTTPS);
    let question = asked(&message);
    for (hint, is_shown) in [
        ("10.0.0.1", false),
        ("198.51.100.1", true),
        ("fd00::1", false),
        ("2001:db8::1", true),
    ] {
        let mut answer = Packet::new_reply(1);
        answer.questions = Packet::parse(&message).unwrap().questions;
        let mut svcb = SVCB::new(1, Name::new_unchecked("example.org"));
        svcb.set_alpn(&["h2".try_into().unwrap()]);
        match ip(hint) {
            IpAddr::V4(v4) => svcb.set_ipv4hint(&[0xc633_6401, v4.into()]),
            IpAddr::V6(v6) => svcb.set_ipv6hint(&[v6.into()]),
        }
        answer
            .answers
            .push(record_of("example.org", RData::HTTPS(HTTPS(svcb))));
        let raw = answer.build_bytes_vec().unwrap();
        let admission = closed_to_all();
        let got = question.answer(&raw, |ip| admission.shows(&[], ip));
        assert_eq!(
            Packet::parse(&got).unwrap().answers.len() == 1,
            is_shown,
            "{hint}"
        );
    }
}

#[test]
fn an_answer_that_leads_to_a_local_name_is_that_there_is_none() {
    let message = query("example.org", TYPE::A);
    let question = asked(&message);
    let answer = |records: &[(&str, RData<'static>)]| {
        let mut packet = Packet::new_reply(1);
        packet.questions = Packet::parse(&message).unwrap().questions;
        for (owner, rdata) in records {
            packet.answers.push(record_of(owner, rdata.clone()));
        }
        packet.build_bytes_vec_compressed().unwrap()
    };
    let alias = |to| RData::CNAME(CNAME(Name::new_unchecked(to)));
    let host = RData::A(A {
        address: 0xc000_0201,
    });
    let local: [&[(&str, RData<'_>)]; 3] = [
        &[("example.org", alias("Printer.LAN"))],
        &[
            ("example.org", alias("www.example.org")),
            ("www.example.org", alias("www.local")),
            ("www.local", host.clone()),
        ],
        &[("printer.lan", host.clone())],
    ];
    for records in local {
        let got = question.answer(&answer(records), |_| true);
        let packet = Packet::parse(&got).unwrap();
        assert_eq!(packet.rcode(), RCODE::NameError, "{records:?}");
        assert!(packet.answers.is_empty());
        assert_eq!(got[..2], message[..2]);
    }
    for (target, code) in [(&b"\x04Corp\0"[..], 3), (b"\x04corp\x03org\0", 0)] {
        let dname = [written(&TO_QUESTION, kind::DNAME, target)];
        let got = question.answer(&with_answers(&message, &dname), |_| true);
        assert_eq!(got[3] & 0xf, code, "{target:?}");
    }
    let public = answer(&[
        ("example.org", alias("www.lan.example")),
        ("www.lan.example", host),
    ]);
    let passed = question.answer(&public, |_| true);
    assert_eq!(passed[2..], public[2..]);
}

#[test]
fn an_answer_belongs_to_its_question_and_identifier() {
    let message = query("Example.org", TYPE::A);
    let question = asked(&message);
    let id = [0xab, 0xcd];
    let right = answer_to(&query("eXample.org", TYPE::A), &[ip("192.0.2.1")], &[]);
    assert!(question.is_answered_by(&right, id));
    assert!(!question.is_answered_by(&right, [0xab, 0xce]), "identifier");
    for other in [
        query("example.com", TYPE::A),
        query("example.org", TYPE::AAAA),
    ] {
        assert!(!question.is_answered_by(&answer_to(&other, &[], &[]), id));
    }
    let mut no_response = right.clone();
    no_response[2] &= 0x7f;
    assert!(!question.is_answered_by(&no_response, id));
    assert!(!question.is_answered_by(&right[..11], id));
    // Without a question, it says no more than that something failed.
    let mut bare = right[..12].to_vec();
    bare[4..12].fill(0);
    assert!(!question.is_answered_by(&bare, id));
    bare[3] |= code::FORMAT_ERROR;
    assert!(question.is_answered_by(&bare, id));
    // What cannot be read is no answer that is passed on.
    let garbled = question.answer(&right[..right.len() - 3], |_| true);
    assert_eq!(
        Packet::parse(&garbled).unwrap().rcode(),
        RCODE::ServerFailure
    );
    assert_eq!(garbled, question.unanswered());
}

/// A record, written out.
fn written(owner: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let len = u16::try_from(data.len()).unwrap();
    let head = [owner, &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 60]].concat();
    [&head[..], &len.to_be_bytes(), data].concat()
}

fn with_answers(message: &[u8], records: &[Vec<u8>]) -> Vec<u8> {
    let mut answer = message.to_vec();
    answer[2] |= 0x80;
    let count = u16::try_from(records.len()).unwrap();
    answer[6..8].copy_from_slice(&count.to_be_bytes());
    answer.extend(records.concat());
    answer
}

const TO_QUESTION: [u8; 2] = [0xc0, 12];

#[test]
fn names_that_refer_from_place_to_place_are_followed_so_far_only() {
    let message = query("example.org", TYPE::A);
    let question = asked(&message);
    // A long way, which ends at the question's name.
    let at = message.len() + 12;
    let mut chain = TO_QUESTION.to_vec();
    for step in 0..5000 {
        let to = u16::try_from(at + 2 * step).unwrap();
        chain.extend((0xc000 | to).to_be_bytes());
    }
    let end = 0xc000 | u16::try_from(at + chain.len() - 2).unwrap();
    let way = written(&TO_QUESTION, 16, &chain);
    let follower = |kind| written(&end.to_be_bytes(), kind, &[192, 0, 2, 1]);
    let other = written(&TO_QUESTION, kind::A, &[192, 0, 2, 1]);
    let short = [way.clone(), follower(kind::A)];
    let raw = with_answers(&message, &short);
    assert_eq!(question.answer(&raw, |_| true), raw, "once");
    let mut long = vec![way];
    for _ in 0..10 {
        long.extend([follower(kind::A), other.clone()]);
    }
    let raw = with_answers(&message, &long);
    assert_eq!(question.answer(&raw, |_| true), question.unanswered());
    // Names of other records are not followed at all.
    long.truncate(1);
    (0..10).for_each(|_| long.push(follower(16)));
    let raw = with_answers(&message, &long);
    assert_eq!(question.answer(&raw, |_| true), raw);

    // In a circle.
    let here = u16::try_from(message.len()).unwrap() | 0xc000;
    let circle = [written(&here.to_be_bytes(), kind::A, &[192, 0, 2, 1])];
    let raw = with_answers(&message, &circle);
    assert_eq!(question.answer(&raw, |_| true), question.unanswered());
}

#[test]
fn long_answers_pass_whole_or_not_at_all() {
    let message = query("example.org", TYPE::A);
    let question = asked(&message);
    let open = |n: u8| written(&TO_QUESTION, kind::A, &[192, 0, 2, n]);
    let closed = written(&TO_QUESTION, kind::A, &[10, 0, 0, 1]);
    let may_learn = |ip: IpAddr| closed_to_all().shows(&[], ip);
    let many: Vec<_> = (0..200).map(open).collect();
    let raw = with_answers(&message, &many);
    assert_eq!(question.answer(&raw, may_learn), raw);
    for (count, is_stripped) in [(63, true), (64, false)] {
        let mut records = many[..count].to_vec();
        records.push(closed.clone());
        let got = question.answer(&with_answers(&message, &records), may_learn);
        let left = if is_stripped { count } else { 0 };
        assert_eq!(shown(&got).len(), left);
        assert_eq!(got == question.unanswered(), !is_stripped);
    }
    let text = written(&TO_QUESTION, 16, &[&[255; 1][..], &[b'a'; 255]].concat());
    let long = with_answers(&message, &[vec![text; 16], vec![closed]].concat());
    assert!(long.len() > 4096);
    assert_eq!(question.answer(&long, may_learn), question.unanswered());
}

#[test]
fn addresses_of_another_length_are_no_answer() {
    let message = query("example.org", TYPE::A);
    let question = asked(&message);
    let hint = |key: u8, len: usize| {
        let head = [0, 1, 0, 0, key, 0, u8::try_from(len).unwrap()];
        [&head[..], &vec![7; len]].concat()
    };
    for (kind, data, is_whole) in [
        (kind::A, vec![7; 4], true),
        (kind::A, vec![7; 16], false),
        (kind::AAAA, vec![0x20; 16], true),
        (kind::AAAA, vec![0x20; 4], false),
        (kind::HTTPS, hint(4, 8), true),
        (kind::SVCB, hint(4, 6), false),
        (kind::SVCB, hint(6, 4), false),
        (kind::HTTPS, hint(4, 8)[..9].to_vec(), false),
        (16, vec![7; 3], true),
    ] {
        let raw = with_answers(&message, &[written(&TO_QUESTION, kind, &data)]);
        let got = question.answer(&raw, |_| true);
        assert_eq!(got == raw, is_whole, "{kind} {data:?}");
    }
}

/// Bytes that stand in closed addresses, and nowhere else in what is drawn.
const MARK: [u8; 2] = [10, 0xee];
const MARK_V6: [u8; 2] = [0xfd, 0xee];

fn v4() -> impl Strategy<Value = Vec<u8>> {
    let closed = any::<u8>().prop_map(|n| vec![MARK[0], MARK[1], n, 1]);
    let open = (0..200_u8).prop_map(|n| vec![198, 51, 100, n]);
    prop_oneof![closed, open]
}

fn v6() -> impl Strategy<Value = Vec<u8>> {
    (any::<bool>(), 0..200_u8).prop_map(|(is_closed, n)| {
        let head = if is_closed { MARK_V6 } else { [0x2a, 0] };
        [&head[..], &[0; 13], &[n]].concat()
    })
}

/// A record of any type; where it has addresses, open ones or closed ones.
fn any_record() -> impl Strategy<Value = Vec<u8>> {
    let hints = (vec(v4(), 0..3), vec(v6(), 0..3)).prop_map(|(v4, v6)| {
        let param = |key: u8, value: Vec<u8>| {
            let len = u8::try_from(value.len()).unwrap();
            [&[0, key, 0, len][..], &value].concat()
        };
        let alpn = param(1, b"\x02h2".to_vec());
        let mut data = [&[0, 1][..], b"\x03www\x03com\0", &alpn].concat();
        if !v4.is_empty() {
            data.extend(param(4, v4.concat()));
        }
        if !v6.is_empty() {
            data.extend(param(6, v6.concat()));
        }
        data
    });
    let data = prop_oneof![
        4 => v4().prop_map(|data| (kind::A, data)),
        4 => v6().prop_map(|data| (kind::AAAA, data)),
        2 => (hints, any::<bool>()).prop_map(|(data, is_https)| {
            (if is_https { kind::HTTPS } else { kind::SVCB }, data)
        }),
        1 => Just((kind::CNAME, b"\x03web\xc0\x0c".to_vec())),
        1 => Just((2, b"\x02ns\x07example\x03org\0".to_vec())),
        1 => Just((16, b"\x04text".to_vec())),
        1 => vec(b'a'..=b'z', 0..40).prop_map(|data| (52, data)),
        1 => Just((65_000, Vec::new())),
    ];
    let owner = prop_oneof![
        Just(TO_QUESTION.to_vec()),
        Just(b"\x03web\xc0\x0c".to_vec()),
        Just(b"\x04host\x07example\x03net\0".to_vec()),
        Just(vec![0]),
    ];
    (owner, data).prop_map(|(owner, (kind, data))| written(&owner, kind, &data))
}

fn occurs(mark: [u8; 2], bytes: &[u8]) -> bool {
    bytes.windows(2).any(|window| window == mark)
}

proptest! {
    #[test]
    fn no_closed_address_is_passed_on(
        records in vec(any_record(), 0..12),
        cuts in (0..12_usize, 0..12_usize),
        edns in any::<bool>(),
        kind in prop_oneof![Just(1_u16), Just(28), Just(65), Just(52), Just(255)],
    ) {
        let message = query_of("example.org", kind);
        let question = asked(&message);
        let mut raw = with_answers(&message, &records);
        let (first, second) = (cuts.0.min(cuts.1), cuts.0.max(cuts.1));
        let [first, second] = [first, second].map(|cut| cut.min(records.len()));
        let counts = [first, second - first, records.len() - second];
        for (at, count) in [7, 9, 11].into_iter().zip(counts) {
            raw[at] = u8::try_from(count).unwrap();
        }
        if edns {
            raw = with_edns(&raw, true);
        }
        let admission = closed_to_all();
        let got = question.answer(&raw, |ip| admission.shows(&[], ip));
        let is_closed = |bytes: &[u8]| occurs(MARK, bytes) || occurs(MARK_V6, bytes);
        prop_assert!(!is_closed(&got));
        if records.iter().any(|record| is_closed(record)) {
            let whole = records.iter().filter(|record| !is_closed(record)).count();
            let left = message::records(&got).map(Option::unwrap);
            prop_assert_eq!(left.count(), whole + usize::from(edns), "all others are left");
            prop_assert_eq!(got[3] & 0xf, code::NO_ERROR);
        } else {
            prop_assert_eq!(got, raw);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in vec(any::<u8>(), 0..300), at in 0..300_usize) {
        let good = query("example.org", TYPE::A);
        let question = asked(&good);
        judge(&bytes);
        question.is_answered_by(&bytes, [0, 0]);
        question.answer(&bytes, |_| false);
        // Some that look like messages.
        bytes.splice(0..bytes.len().min(at.min(good.len())), good[..at.min(good.len())].iter().copied());
        judge(&bytes);
        question.answer(&bytes, |_| false);
    }
}
