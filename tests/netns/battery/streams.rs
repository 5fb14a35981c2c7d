//! Bare streams and datagrams: nc, socat, a WebSocket, iperf3, and questions of dig.

use super::check::{Check, Middle};
use super::servers::{CAT, DNSMASQ, IPERF, WEBSOCKET};
use super::stage::run;

const MB: u64 = 1_000_000;

/// To a server that answers when the end has come.
pub(super) const HALF_CLOSE: Check = Check {
    title: "nc -N, 10 MB and then its end, answered with a checksum",
    run: r#"nc -N "$TO" 9001 <"$DIR/data""#,
    ends: 0,
    shows: r#"sha256sum <"$DIR/data" | cmp - out"#,
    middle: Middle::Bytes(3 * MB),
};

const STREAMS: [Check; 2] = [
    Check {
        title: "socat, 8 MB there and back at once",
        run: r#"socat -t 60 - TCP:"$TO":9002 <"$DIR/data" >got"#,
        ends: 0,
        shows: r#"cmp got "$DIR/data""#,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "a WebSocket, 40 messages there and back",
        run: r#"/usr/bin/python3 "$DIR/talk.py" "ws://$TO:9003/""#,
        ends: 0,
        shows: "cat out",
        middle: Middle::Bytes(3 * MB),
    },
];

/// The sender and the receiver must have come to an end, with bytes at the receiver.
const MEASURED: &str = r#"
    grep 'iperf Done' out
    tail -n 4 out | grep receiver | grep -qE ' [1-9][0-9.]* [KMG]Bytes'
"#;

const IPERFS: [Check; 5] = [
    Check {
        title: "iperf3, up",
        run: r#"iperf3 -c "$TO" -t "$LASTS""#,
        ends: 0,
        shows: MEASURED,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "iperf3 -R, down",
        run: r#"iperf3 -c "$TO" -t "$LASTS" -R"#,
        ends: 0,
        shows: MEASURED,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "iperf3 -P 4, four streams",
        run: r#"iperf3 -c "$TO" -t "$LASTS" -P 4"#,
        ends: 0,
        shows: MEASURED,
        middle: Middle::Bytes(3 * MB),
    },
    Check {
        title: "iperf3 -u, datagrams up",
        run: r#"iperf3 -c "$TO" -t "$LASTS" -u -b 20M"#,
        ends: 0,
        shows: MEASURED,
        middle: Middle::Bytes(MB),
    },
    Check {
        title: "iperf3 -u -R, datagrams down",
        run: r#"iperf3 -c "$TO" -t "$LASTS" -u -b 20M -R"#,
        ends: 0,
        shows: MEASURED,
        middle: Middle::Bytes(MB),
    },
];

/// Questions to [`DNSMASQ`], one after the other, each from a port of its own.
pub(super) const QUESTIONS: Check = Check {
    title: "dig, 1,000 questions by UDP",
    run: r#"dig @"$TO" +short +tries=10 +timeout=1 -f "$DIR/some-names""#,
    ends: 0,
    shows: "grep -v '^;' out | uniq | wc -l; grep -v '^;' out | sha256sum",
    middle: Middle::Bytes(40_000),
};

const DIGS: [Check; 3] = [
    Check {
        title: "dig, 2,000 questions by UDP",
        run: r#"dig @"$TO" +short +tries=10 +timeout=1 -f "$DIR/names""#,
        ends: 0,
        shows: "grep -v '^;' out | uniq | wc -l; grep -v '^;' out | sha256sum",
        middle: Middle::Bytes(50_000),
    },
    Check {
        title: "dig, 400 answers that are too large for a datagram",
        run: r#"dig @"$TO" +bufsize=512 +short +tries=10 +timeout=1 -f "$DIR/larges""#,
        ends: 0,
        shows: "grep -v '^;' out | wc -l; grep -v '^;' out | sort | uniq -c | sha256sum",
        middle: Middle::Bytes(100_000),
    },
    Check {
        title: "dig +tcp, 500 questions",
        run: r#"dig @"$TO" +tcp +short +tries=10 +timeout=10 -f "$DIR/few-names""#,
        ends: 0,
        shows: "grep -v '^;' out | uniq | wc -l; grep -v '^;' out | sha256sum",
        middle: Middle::Bytes(100_000),
    },
];

#[test]
#[ignore = "needs programs that scripts/test battery installs"]
fn streams_end_as_they_do_directly() {
    run("streams", &[&CAT, &WEBSOCKET], &STREAMS);
}

#[test]
#[ignore = "needs programs that scripts/test battery installs"]
fn iperf3_ends_as_it_does_directly() {
    run("iperf3", &[&IPERF], &IPERFS);
}

#[test]
#[ignore = "needs programs that scripts/test battery installs"]
fn dig_ends_as_it_does_directly() {
    run("DNS", &[&DNSMASQ], &DIGS);
}
