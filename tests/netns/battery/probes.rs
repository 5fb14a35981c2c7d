//! Probes of a path: what is lost while nothing can pass is right to be lost, and all else comes back.

use super::check::{Check, Middle};
use super::stage::run;

/// Twelve times the way to the origin, each of which gets there, by as few hops as it likes.
const ARRIVES: &str = r#"test "$(grep -cE "^ *[0-9]+  +(.* )?$TO  " out)" = 12"#;

/// The origin is among the hops, and answered; where nothing has happened, every time.
const REPORTED: &str = r#"
    lost=$(sed -nE "s/.*-- $TO +([0-9]+)\.[0-9]%.*/\1/p" out)
    case $WAY in direct | tund) test "$lost" -eq 0 ;; *) test "$lost" -lt 90 ;; esac
"#;

/// As many answers as were asked for, but for those that an outage took; none of them twice or
/// with another payload.
const ANSWERED: &str = r#"
    if grep -E 'DUP|wrong|truncated|corrupt' out; then exit 1; fi
    sent=$((20 * LASTS))
    got=$(sed -nE 's/.* ([0-9]+) received.*/\1/p' out)
    case $WAY in direct | tund) test "$got" -eq "$sent" ;; *) test "$got" -ge 20 ;; esac
"#;

const TRACES: [Check; 4] = [
    Check {
        title: "traceroute by UDP, 12 times",
        run: r#"for n in $(seq 12); do traceroute -n -N 1 -q 1 -w 1 "$TO"; sleep 0.1; done"#,
        ends: 0,
        shows: ARRIVES,
        middle: Middle::Bytes(500),
    },
    Check {
        title: "traceroute -T by TCP, 12 times",
        run: r#"for n in $(seq 12); do traceroute -T -p 1 -n -N 1 -q 1 -w 1 "$TO"; sleep 0.1; done"#,
        ends: 0,
        shows: ARRIVES,
        middle: Middle::Bytes(500),
    },
    Check {
        title: "mtr --udp",
        run: r#"mtr -n -r -w -G 1 -u -c "$((LASTS * 5))" -i 0.2 "$TO""#,
        ends: 0,
        shows: REPORTED,
        middle: Middle::Bytes(500),
    },
    Check {
        title: "mtr --tcp",
        run: r#"mtr -n -r -w -G 1 -T -P 1 -c "$((LASTS * 5))" -i 0.2 "$TO""#,
        ends: 0,
        shows: REPORTED,
        middle: Middle::Bytes(500),
    },
];

const ECHOES: [Check; 6] = [
    Check {
        title: "ping, 56 bytes",
        run: r#"ping -n -i 0.05 -c "$((20 * LASTS))" "$TO""#,
        ends: 0,
        shows: ANSWERED,
        middle: Middle::Bytes(1500),
    },
    Check {
        title: "ping, 1,472 bytes, which may not be split",
        run: r#"ping -n -i 0.05 -c "$((20 * LASTS))" -s 1472 -M do "$TO""#,
        ends: 0,
        shows: ANSWERED,
        middle: Middle::Bytes(20_000),
    },
    Check {
        title: "ping, 9,000 bytes",
        run: r#"ping -n -i 0.05 -c "$((20 * LASTS))" -s 9000 "$TO""#,
        ends: 0,
        shows: ANSWERED,
        middle: Middle::Bytes(100_000),
    },
    Check {
        title: "ping over IPv6, no bytes",
        run: r#"ping -6 -n -i 0.05 -c "$((20 * LASTS))" -s 0 "$TO6""#,
        ends: 0,
        shows: ANSWERED,
        middle: Middle::Bytes(1000),
    },
    Check {
        title: "traceroute -I by ICMP, 12 times",
        run: r#"for n in $(seq 12); do traceroute -I -n -N 1 -q 1 -w 1 "$TO"; sleep 0.1; done"#,
        ends: 0,
        shows: ARRIVES,
        middle: Middle::Bytes(500),
    },
    Check {
        title: "mtr",
        run: r#"mtr -n -r -w -G 1 -c "$((LASTS * 5))" -i 0.2 "$TO""#,
        ends: 0,
        shows: REPORTED,
        middle: Middle::Bytes(500),
    },
];

#[test]
#[ignore = "needs programs that scripts/test battery installs"]
fn traceroute_and_mtr_by_udp_and_tcp_reach_the_origin() {
    run("paths", &[], &TRACES);
}

#[test]
#[ignore = "needs programs that scripts/test battery installs"]
fn ping_traceroute_and_mtr_by_icmp_reach_the_origin() {
    run("ICMP", &[], &ECHOES);
}
