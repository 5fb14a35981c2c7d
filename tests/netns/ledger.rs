//! Rows of the client's account of ended flows, held against what was seen on the wires.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Deserialize;
use tund_tests::lab::BothWays;

use crate::account::{SINGLY, Script, Way};
use crate::capture::Wire;
use crate::support::Scene;

/// A row of `flows --ended --json`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Row {
    pub(crate) id: u64,
    pub(crate) destination: SocketAddr,
    ended_by: String,
    how: String,
    bytes: BothWays,
    pub(crate) lost_bytes: BothWays,
    outages: u64,
}

/// By whom and how a flow was ended, if the first flag on either side is the application's or the
/// origin's; none where a daemon was first, or nobody said anything.
fn seen(a: &Wire, c: &Wire) -> Option<(&'static str, &'static str)> {
    let of_origin = if c.is_open() { "reset" } else { "refused" };
    let flags = [
        (a.up.fin, Some(("application", "closed"))),
        (a.up.reset, Some(("application", "reset"))),
        (a.down.reset, None),
        (c.down.fin, Some(("origin", "closed"))),
        (c.down.reset, Some(("origin", of_origin))),
    ];
    let flags = flags.into_iter().filter_map(|(at, told)| Some((at?, told)));
    flags.min().and_then(|(_, told)| told)
}

/// What an account says that is not what was seen.
pub(crate) fn differences(
    script: &Script,
    row: &Row,
    a: Option<&Wire>,
    c: Option<&Wire>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |is_right: bool, what: &str| {
        if !is_right {
            wrong.push(what.to_owned());
        }
    };
    let told = (row.ended_by.as_str(), row.how.as_str());
    check(told == script.way.told(), "the end that the test made");
    let is_of_ends = SINGLY[..5].contains(&script.way);
    let expected = is_of_ends.then(|| script.way.told());
    let a = a.copied().unwrap_or_default();
    let c = c.copied().unwrap_or_default();
    check(seen(&a, &c) == expected, "flags");
    // Who gives up may have done so while the outage lasted.
    let fewest = match script.way == Way::Cancelled {
        true => 0,
        false => script.outages,
    };
    check((fewest..=script.outages).contains(&row.outages), "outages");
    let Row {
        bytes, lost_bytes, ..
    } = row;
    check(
        (a.up.acknowledged..=a.up.sent).contains(&bytes.up),
        "bytes up at A",
    );
    // RST may overtake the last acknowledgement.
    let most = match script.way == Way::ResetByApplication {
        true => a.down.sent,
        false => a.down.acknowledged,
    };
    check(
        (a.down.acknowledged..=most).contains(&bytes.down),
        "bytes down at A",
    );
    let arrived = (bytes.up - lost_bytes.up, bytes.down + lost_bytes.down);
    let [near_is_stuck, far_is_stuck] = script.stuck;
    if far_is_stuck {
        // What is in the server's kernel then nobody knows.
        check(arrived.0 >= c.up.acknowledged, "lost bytes up");
    } else if script.way == Way::ResetByOrigin {
        let seen = c.up.acknowledged..=c.up.sent;
        check(seen.contains(&arrived.0), "lost bytes up");
    } else {
        check(arrived.0 == c.up.acknowledged, "lost bytes up");
    }
    if near_is_stuck {
        // What is at the server the client does not know.
        check(arrived.1 <= c.down.acknowledged, "lost bytes down");
        check(lost_bytes.down > 0, "lost bytes down");
    } else if script.way == Way::ResetByOrigin {
        let seen = c.down.acknowledged..=c.down.sent;
        check(seen.contains(&arrived.1), "lost bytes down");
    } else if script.way != Way::ResetByApplication {
        check(arrived.1 == c.down.acknowledged, "lost bytes down");
    }
    wrong
}

/// One line of the log for each account, with the same figures and without addresses.
pub(crate) fn check_log(scene: &Scene, rows: &[Row]) {
    let lines = scene.tund.client.process.log_lines(&["flow ended"]);
    assert_eq!(lines.len(), rows.len());
    for (line, row) in lines.iter().zip(rows) {
        let words: BTreeMap<_, _> = line
            .text
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
            .map(|(key, value)| (key, value.trim_matches('"')))
            .collect();
        let figures = [
            ("flow", row.id.to_string()),
            ("by", row.ended_by.clone()),
            ("how", row.how.clone()),
            ("outages", row.outages.to_string()),
            ("up_bytes", row.bytes.up.to_string()),
            ("down_bytes", row.bytes.down.to_string()),
            ("lost_up_bytes", row.lost_bytes.up.to_string()),
            ("lost_down_bytes", row.lost_bytes.down.to_string()),
        ];
        for (key, value) in figures {
            assert_eq!(words.get(key), Some(&value.as_str()), "{}", line.text);
        }
        let port = row.destination.port().to_string();
        assert!(!line.text.contains(&port), "an address: {}", line.text);
    }
}
