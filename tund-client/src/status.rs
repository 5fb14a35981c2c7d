//! What people read: the client's status and its flows as text.

use tund_daemon::cli::{both_ways, columns, elapsed, flow_counts, link_line, state_name};
use tund_daemon::config::format_size;
use tund_daemon::control::{
    ByteCounts, ClientState, ClientStatus, DatagramReport, EndedFlowRow, FlowRow, SpoolCounts,
};

/// The status, one fact per line; what carries most comes first among the links.
pub(crate) fn text(status: &ClientStatus) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut fact = |name: &str, value: String| rows.push(vec![format!("{name}:"), value]);

    fact("state", state_name(status.state));
    if let Some(error) = &status.error {
        fact("error", format!("{} ({})", error.message, error.code));
    }
    if let Some(session_id) = &status.session_id {
        fact("session", session_id.clone());
    }
    let others = status
        .links
        .iter()
        .filter(|link| Some(*link) != status.link.as_ref());
    for link in status.link.iter().chain(others) {
        fact("link", link_line(link));
    }
    fact("flows", flow_counts(status.flows));
    fact("transferred", both_ways(status.bytes));
    fact("buffered", both_ways(status.buffered_bytes));
    fact("outages", outages(status));
    if status.datagrams != DatagramReport::default() {
        fact("datagrams", datagrams(status.datagrams));
    }
    if status.spool != SpoolCounts::default() {
        fact("stored", stored(status.spool));
    }
    fact("version", status.version.clone());
    columns(&rows)
}

fn datagrams(counts: DatagramReport) -> String {
    let mut text = format!("{} up, {} down", counts.up, counts.down);
    if counts.stale + counts.dropped > 0 {
        let dropped = format!(
            "; {} stale and {} others dropped",
            counts.stale, counts.dropped
        );
        text.push_str(&dropped);
    }
    text
}

fn stored(spool: SpoolCounts) -> String {
    let mut text = format!(
        "{} in {} files",
        format_size(spool.bytes),
        spool.waiting + spool.dead
    );
    if spool.dead > 0 {
        text.push_str(&format!(", {} of them dead", spool.dead));
    }
    text
}

/// Those that are over, and the one that goes on.
fn outages(status: &ClientStatus) -> String {
    let outages = status.outages;
    let goes_on = status.state == ClientState::Detached;
    let mut text = match outages.count {
        0 if goes_on => return "the first goes on".to_owned(),
        0 => "none".to_owned(),
        count => count.to_string(),
    };
    if let Some(gap_ms) = outages.last_gap_ms {
        text.push_str(&format!(", the last one {}", elapsed(gap_ms)));
    }
    if let Some(resume_ms) = outages.last_resume_ms {
        text.push_str(&format!(", resumed in {}", elapsed(resume_ms)));
    }
    if goes_on {
        text.push_str("; another goes on");
    }
    text
}

/// The flows, one row each, under a heading; a sentence if there are none.
pub(crate) fn flow_table(flows: &[FlowRow]) -> String {
    if flows.is_empty() {
        return "no flows\n".to_owned();
    }
    let heading = [
        "ID",
        "PROTOCOL",
        "SOURCE",
        "DESTINATION",
        "STATE",
        "UP",
        "DOWN",
        "HELD UP",
        "HELD DOWN",
        "AGE",
        "OUTAGES",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(flows.iter().map(|flow| {
        vec![
            flow.id.to_string(),
            flow.protocol.clone(),
            flow.source.to_string(),
            flow.destination
                .map_or_else(|| "any".to_owned(), |origin| origin.to_string()),
            flow.state.clone(),
            format_size(flow.bytes.up),
            format_size(flow.bytes.down),
            format_size(flow.buffered_bytes.up),
            format_size(flow.buffered_bytes.down),
            elapsed(flow.age_ms),
            flow.outages.to_string(),
        ]
    }));
    columns(&rows)
}

/// The accounts of flows that are over, one row each; a sentence if there are none.
pub(crate) fn ended_table(flows: &[EndedFlowRow]) -> String {
    if flows.is_empty() {
        return "no flows have ended\n".to_owned();
    }
    let heading = [
        "ID",
        "PROTOCOL",
        "SOURCE",
        "DESTINATION",
        "ENDED",
        "UP",
        "DOWN",
        "LOST",
        "STORED",
        "AGE",
        "OUTAGES",
        "SILENCE",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(flows.iter().map(|flow| {
        vec![
            flow.id.to_string(),
            flow.protocol.clone(),
            flow.source.to_string(),
            flow.destination.to_string(),
            format!("{} by {}", flow.how, flow.ended_by),
            format_size(flow.bytes.up),
            format_size(flow.bytes.down),
            lost(flow.lost_bytes),
            format_size(flow.stored_bytes),
            elapsed(flow.age_ms),
            flow.outages.to_string(),
            elapsed(flow.longest_silence_ms),
        ]
    }));
    columns(&rows)
}

fn lost(bytes: ByteCounts) -> String {
    if bytes == ByteCounts::default() {
        "nothing".to_owned()
    } else {
        both_ways(bytes)
    }
}

#[cfg(test)]
mod tests {
    use tund_daemon::control::{ErrorReport, FlowCounts, LinkReport, OutageReport};

    use super::*;

    fn attached() -> ClientStatus {
        let link = LinkReport {
            transport: "tls".to_owned(),
            local: "192.0.2.2:41234".parse().expect("an address"),
            remote: "203.0.113.7:443".parse().expect("an address"),
            interface: Some("wlan0".to_owned()),
            rtt_us: Some(812),
            up_ms: 93_000,
            congestion_control: Some("bbr".to_owned()),
        };
        ClientStatus {
            state: ClientState::Attached,
            session_id: Some("0123456789abcdef0123456789abcdef".to_owned()),
            link: Some(link.clone()),
            links: vec![link],
            flows: FlowCounts {
                tcp: 3,
                udp: 1,
                icmp: 0,
            },
            bytes: ByteCounts { up: 123, down: 456 },
            buffered_bytes: ByteCounts { up: 0, down: 0 },
            outages: OutageReport {
                count: 2,
                last_gap_ms: Some(30_120),
                last_resume_ms: Some(41),
            },
            datagrams: DatagramReport {
                up: 7,
                down: 5,
                stale: 1,
                dropped: 0,
            },
            spool: SpoolCounts::default(),
            error: None,
            version: "0.1.0".to_owned(),
        }
    }

    fn ready() -> ClientStatus {
        ClientStatus {
            state: ClientState::Ready,
            session_id: None,
            link: None,
            links: Vec::new(),
            flows: FlowCounts::default(),
            bytes: ByteCounts::default(),
            buffered_bytes: ByteCounts::default(),
            outages: OutageReport::default(),
            datagrams: DatagramReport::default(),
            spool: SpoolCounts {
                waiting: 2,
                dead: 1,
                bytes: 4096,
            },
            error: Some(ErrorReport {
                code: "server_key_mismatch".to_owned(),
                message: "another key".to_owned(),
            }),
            version: "0.1.0".to_owned(),
        }
    }

    /// The example of the public interface, field by field in its order.
    const GOLDEN: &str = r#"{
  "state": "attached",
  "session_id": "0123456789abcdef0123456789abcdef",
  "link": {
    "transport": "tls",
    "local": "192.0.2.2:41234",
    "remote": "203.0.113.7:443",
    "interface": "wlan0",
    "rtt_us": 812,
    "up_ms": 93000,
    "congestion_control": "bbr"
  },
  "links": [
    {
      "transport": "tls",
      "local": "192.0.2.2:41234",
      "remote": "203.0.113.7:443",
      "interface": "wlan0",
      "rtt_us": 812,
      "up_ms": 93000,
      "congestion_control": "bbr"
    }
  ],
  "flows": {
    "tcp": 3,
    "udp": 1,
    "icmp": 0
  },
  "bytes": {
    "up": 123,
    "down": 456
  },
  "buffered_bytes": {
    "up": 0,
    "down": 0
  },
  "outages": {
    "count": 2,
    "last_gap_ms": 30120,
    "last_resume_ms": 41
  },
  "datagrams": {
    "up": 7,
    "down": 5,
    "stale": 1,
    "dropped": 0
  },
  "spool": {
    "waiting": 0,
    "dead": 0,
    "bytes": 0
  },
  "error": null,
  "version": "0.1.0"
}"#;

    #[test]
    fn the_json_of_an_attached_client_is_what_the_interface_shows() {
        assert_eq!(
            serde_json::to_string_pretty(&attached()).expect("written"),
            GOLDEN
        );
        let read: ClientStatus = serde_json::from_str(GOLDEN).expect("read");
        assert_eq!(read, attached());
    }

    #[test]
    fn what_is_not_there_is_null_and_not_missing() {
        let json = serde_json::to_value(ready()).expect("written");

        for pointer in [
            "/session_id",
            "/link",
            "/outages/last_gap_ms",
            "/outages/last_resume_ms",
        ] {
            assert_eq!(
                json.pointer(pointer),
                Some(&serde_json::Value::Null),
                "{pointer}"
            );
        }
        assert_eq!(json["links"], serde_json::json!([]));
        assert_eq!(json["error"]["code"], "server_key_mismatch");
    }

    #[test]
    fn every_state_has_the_name_of_the_interface() {
        for (state, name) in [
            (ClientState::Ready, "ready"),
            (ClientState::Connecting, "connecting"),
            (ClientState::Attached, "attached"),
            (ClientState::Detached, "detached"),
            (ClientState::Refused, "refused"),
        ] {
            assert_eq!(serde_json::to_value(state).expect("written"), name);
            assert_eq!(state_name(state), name);
        }
    }

    #[test]
    fn people_see_the_same_facts() {
        assert_eq!(
            text(&attached()),
            "state:        attached\n\
             session:      0123456789abcdef0123456789abcdef\n\
             link:         tls 192.0.2.2:41234 -> 203.0.113.7:443 on wlan0, up 1m33s, rtt 0.8 ms, \
             bbr\n\
             flows:        3 tcp, 1 udp\n\
             transferred:  123B up, 456B down\n\
             buffered:     0B up, 0B down\n\
             outages:      2, the last one 30.1s, resumed in 41ms\n\
             datagrams:    7 up, 5 down; 1 stale and 0 others dropped\n\
             version:      0.1.0\n"
        );
        assert!(text(&ready()).contains("stored:       4KiB in 3 files, 1 of them dead\n"));
        assert!(text(&ready()).contains("error:        another key (server_key_mismatch)\n"));
    }

    #[test]
    fn an_outage_that_goes_on_is_told_beside_those_that_are_over() {
        let third = ClientStatus {
            state: ClientState::Detached,
            ..attached()
        };
        let told = "outages:      2, the last one 30.1s, resumed in 41ms; another goes on\n";
        assert!(text(&third).contains(told), "{}", text(&third));
        let mut first = ClientStatus {
            state: ClientState::Detached,
            outages: OutageReport::default(),
            ..attached()
        };
        assert!(text(&first).contains("outages:      the first goes on\n"));
        first.state = ClientState::Attached;
        assert!(text(&first).contains("outages:      none\n"));
    }

    #[test]
    fn flows_are_a_table() {
        let flow = FlowRow {
            id: 7,
            protocol: "tcp".to_owned(),
            source: "10.111.0.2:50000".parse().expect("an address"),
            destination: Some("192.0.2.80:80".parse().expect("an address")),
            state: "open".to_owned(),
            bytes: ByteCounts {
                up: 100,
                down: 3 << 20,
            },
            buffered_bytes: ByteCounts::default(),
            age_ms: 5_000,
            outages: 1,
            longest_silence_ms: 0,
        };

        assert_eq!(
            flow_table(&[flow]),
            "ID  PROTOCOL  SOURCE            DESTINATION    STATE  UP    DOWN  HELD UP  HELD DOWN  \
             AGE   OUTAGES\n\
             7   tcp       10.111.0.2:50000  192.0.2.80:80  open   100B  3MiB  0B       0B         \
             5.0s  1\n"
        );
        assert_eq!(flow_table(&[]), "no flows\n");
    }

    #[test]
    fn accounts_are_a_table_that_says_what_was_lost() {
        let flow = EndedFlowRow {
            id: 7,
            protocol: "tcp".to_owned(),
            source: "10.111.0.2:50000".parse().expect("an address"),
            destination: "192.0.2.80:80".parse().expect("an address"),
            ended_by: "client".to_owned(),
            how: "expired".to_owned(),
            bytes: ByteCounts { up: 100, down: 0 },
            lost_bytes: ByteCounts { up: 40, down: 0 },
            stored_bytes: 60,
            held_bytes: 0,
            age_ms: 5_000,
            outages: 0,
            longest_silence_ms: 4_000,
        };
        let whole = EndedFlowRow {
            lost_bytes: ByteCounts::default(),
            stored_bytes: 0,
            ..flow.clone()
        };

        let table = ended_table(&[flow, whole]);

        let rows: Vec<_> = table.lines().collect();
        assert_eq!(rows.len(), 3);
        assert!(rows[1].contains("expired by client"), "{table}");
        assert!(rows[1].contains("40B up, 0B down  60B"), "{table}");
        assert!(rows[2].contains("nothing"), "{table}");
        assert_eq!(ended_table(&[]), "no flows have ended\n");
    }
}
