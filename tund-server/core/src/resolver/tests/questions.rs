//! What may be asked.

use super::*;

/// The code of an answer that is given without asking anybody.
fn refused(message: &[u8]) -> RCODE {
    let Verdict::Answer(answer) = judge(message) else {
        panic!("{:?}", judge(message));
    };
    let packet = Packet::parse(&answer).unwrap();
    assert!(packet.has_flags(PacketFlag::RESPONSE | PacketFlag::RECURSION_AVAILABLE));
    assert_eq!(answer[..2], message[..2]);
    assert!(packet.answers.is_empty());
    packet.rcode()
}

#[test]
fn public_names_are_asked_for_and_local_ones_are_not() {
    for name in [
        "example.org",
        "locals.org",
        "local.example",
        "lan.example",
        "x.in-addr.arpa",
        "8.8.8.8.in-addr.arpa",
    ] {
        asked(&query(name, TYPE::A));
    }
    let local = [
        "localhost",
        "a.localhost",
        "printer.local",
        "LOCAL",
        "db.internal",
        "x.home.arpa",
        "nas.lan",
        "a.home",
        "a.corp",
        "a.private",
        "A.Intranet",
        "a.test",
        "b.invalid",
        "c.onion",
        "1.0.0.127.in-addr.arpa",
        "1.1.168.192.in-addr.arpa",
        "168.192.in-addr.arpa",
        "9.9.9.10.in-addr.arpa",
        "1.0.20.172.in-addr.arpa",
        "1.0.64.100.in-addr.arpa",
        "1.1.254.169.in-addr.arpa",
        "1.0.d.f.ip6.arpa",
        "0.8.e.f.ip6.arpa",
    ];
    for name in local {
        assert_eq!(refused(&query(name, TYPE::A)), RCODE::NameError, "{name}");
    }
    for name in [
        "1.0.32.172.in-addr.arpa",
        "1.0.63.100.in-addr.arpa",
        "1.0.169.192.in-addr.arpa",
        "0.c.e.f.ip6.arpa",
        "1.0.0.2.ip6.arpa",
    ] {
        asked(&query(name, TYPE::PTR));
    }
    let loopback = format!("1.{}ip6.arpa", "0.".repeat(31));
    assert_eq!(refused(&query(&loopback, TYPE::PTR)), RCODE::NameError);
}

#[test]
fn a_single_label_has_no_host_but_records_of_its_own() {
    for kind in [TYPE::A, TYPE::AAAA, TYPE::HTTPS, TYPE::SVCB] {
        assert_eq!(refused(&query("router", kind)), RCODE::NoError, "{kind:?}");
        assert_eq!(refused(&query("lan", kind)), RCODE::NameError, "{kind:?}");
    }
    assert_eq!(refused(&query_of("router", 255)), RCODE::NoError);
    asked(&query("org", TYPE::NS));
    asked(&query_of("org", 43));
    asked(&query("", TYPE::NS));
    asked(&query("", TYPE::A));
}

#[test]
fn types_that_nobody_here_knows_are_asked_for() {
    for kind in [33, 39, 44, 52, 59, 256, 257, 65_280] {
        let question = asked(&query_of("_443._tcp.example.org", kind));
        let mut answer = query_of("_443._tcp.example.org", kind);
        answer[2] |= 0x80;
        answer[7] = 1;
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 60, 0, 5, 3, 1, 1, 0xff, 0]);
        assert!(question.is_answered_by(&answer, [0x12, 0x34]), "{kind}");
        assert_eq!(question.answer(&answer, |_| false), answer, "{kind}");
    }
}

#[test]
fn what_is_no_plain_question_is_refused_as_what_it_is() {
    let good = query("example.org", TYPE::A);
    assert_eq!(judge(&good[..11]), Verdict::Drop);
    let mut answer = good.clone();
    answer[2] |= 0x80;
    assert_eq!(judge(&answer), Verdict::Drop);

    let changed = |at: usize, to: u8| {
        let mut message = good.clone();
        message[at] = to;
        message
    };
    assert_eq!(refused(&good[..20]), RCODE::FormatError);
    assert_eq!(refused(&changed(2, 4 << 3)), RCODE::NotImplemented);
    // No question and two, an answer, a record about a name server, three more.
    for (at, to) in [(5, 0), (5, 2), (4, 1), (7, 1), (9, 1), (11, 3), (10, 1)] {
        assert_eq!(refused(&changed(at, to)), RCODE::FormatError, "{at}");
    }
    assert_eq!(refused(&changed(11, 1)), RCODE::FormatError, "cut");
    for at in [7, 9] {
        let mut bearing = changed(at, 1);
        bearing.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        assert_eq!(refused(&bearing), RCODE::FormatError, "{at}");
    }
    // A name that refers to elsewhere, and one that is too long.
    assert_eq!(refused(&changed(12, 0xc0)), RCODE::FormatError);
    let mut endless = good[..12].to_vec();
    for _ in 0..130 {
        endless.extend([1, b'a']);
    }
    endless.extend([0, 0, 1, 0, 1]);
    assert_eq!(refused(&endless), RCODE::FormatError);

    let last = good.len() - 1;
    assert_eq!(refused(&changed(last, 3)), RCODE::Refused);
    for transfer in [251, 252] {
        assert_eq!(refused(&changed(last - 2, transfer)), RCODE::Refused);
    }
}

#[test]
fn a_question_is_no_longer_than_a_question_gets() {
    let mut padded = with_edns(&query("example.org", TYPE::A), false);
    padded.resize(QUESTION_BYTES, 0);
    asked(&padded);
    padded.push(0);
    assert_eq!(refused(&padded), RCODE::FormatError);
}

#[test]
fn who_speaks_edns_is_answered_in_it() {
    let plain = query("localhost", TYPE::A);
    let refusal = |message: &[u8]| match judge(message) {
        Verdict::Answer(answer) => answer,
        other @ (Verdict::Drop | Verdict::Ask(_)) => panic!("{other:?}"),
    };
    // The header, the question as it was, no more.
    let mut wanted = plain.clone();
    wanted[2..4].copy_from_slice(&[0x81, 0x83]);
    assert_eq!(refusal(&plain), wanted);
    // Checking is disabled, recursion is not desired.
    let mut checked = plain.clone();
    checked[2..4].copy_from_slice(&[0, 0x10]);
    wanted[2..4].copy_from_slice(&[0x80, 0x93]);
    assert_eq!(refusal(&checked), wanted);
    wanted[2..4].copy_from_slice(&[0x81, 0x83]);
    for wants_dnssec in [false, true] {
        let message = with_edns(&plain, wants_dnssec);
        let mut wanted = wanted.clone();
        wanted[11] = 1;
        wanted.extend([0, 0, 41, 4, 208, 0, 0]);
        wanted.extend([u8::from(wants_dnssec) << 7, 0, 0, 0]);
        assert_eq!(refusal(&message), wanted);
        let mut public = query("example.org", TYPE::A);
        public = with_edns(&public, wants_dnssec);
        let failed = asked(&public).unanswered();
        let failed = Packet::parse(&failed).unwrap();
        assert_eq!(failed.rcode(), RCODE::ServerFailure);
        assert_eq!(failed.opt().map(|opt| opt.udp_packet_size), Some(1232));
    }
}
