//! What people read: the server's status and its sessions as text.

use tund_daemon::cli::{both_ways, columns, elapsed, flow_counts, link_line, state_name};
use tund_daemon::config::format_size;
use tund_daemon::control::{HeldReport, ServerStatus, SessionRow};

/// The status, one fact per line.
pub(crate) fn text(status: &ServerStatus) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut fact = |name: &str, value: String| rows.push(vec![format!("{name}:"), value]);

    fact("state", state_name(status.state));
    for address in &status.listen {
        fact("listen", address.to_string());
    }
    let sessions = status.sessions;
    fact(
        "sessions",
        format!(
            "{} attached, {} detached",
            sessions.attached, sessions.detached
        ),
    );
    let (used, limit) = (status.memory.used_bytes, status.memory.limit_bytes);
    fact(
        "memory",
        format!("{} of {}", format_size(used), format_size(limit)),
    );
    if status.held != HeldReport::default() {
        fact("held", held(status.held));
    }
    fact("version", status.version.clone());
    columns(&rows)
}

/// What is held for next connections, and what became of it.
fn held(held: HeldReport) -> String {
    format!(
        "{} of {} flows; {} handed on, {} lost",
        format_size(held.bytes),
        held.flows,
        format_size(held.handed_on_bytes),
        format_size(held.lost_bytes)
    )
}

/// The sessions, one row each, under a heading; a sentence if there are none.
pub(crate) fn session_table(sessions: &[SessionRow]) -> String {
    if sessions.is_empty() {
        return "no sessions\n".to_owned();
    }
    let heading = [
        "SESSION",
        "CLIENT",
        "STATE",
        "LINK",
        "FLOWS",
        "TRANSFERRED",
        "BUFFERED",
        "AGE",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(sessions.iter().map(|session| {
        let link = match session.links.as_slice() {
            [] => "none".to_owned(),
            [first] => link_line(first),
            [first, others @ ..] => format!("{} and {} more", link_line(first), others.len()),
        };
        vec![
            session.session_id.clone(),
            session.client.clone(),
            state_name(session.state),
            link,
            flow_counts(session.flows),
            both_ways(session.bytes),
            both_ways(session.buffered_bytes),
            elapsed(session.age_ms),
        ]
    }));
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use tund_daemon::control::{
        ByteCounts, FlowCounts, LinkReport, MemoryReport, ServerState, SessionCounts, SessionState,
    };

    use super::*;

    fn status() -> ServerStatus {
        ServerStatus {
            state: ServerState::Ready,
            listen: vec!["[::]:443".parse().expect("an address")],
            sessions: SessionCounts {
                attached: 2,
                detached: 1,
            },
            memory: MemoryReport {
                used_bytes: 3 << 20,
                limit_bytes: 6 << 30,
            },
            held: HeldReport::default(),
            version: "0.1.0".to_owned(),
        }
    }

    fn session() -> SessionRow {
        SessionRow {
            session_id: "0123456789abcdef0123456789abcdef".to_owned(),
            client: "phone".to_owned(),
            state: SessionState::Attached,
            links: vec![LinkReport {
                transport: "tls".to_owned(),
                local: "203.0.113.7:443".parse().expect("an address"),
                remote: "192.0.2.2:41234".parse().expect("an address"),
                interface: None,
                rtt_us: None,
                up_ms: 2_000,
                congestion_control: None,
            }],
            flows: FlowCounts {
                tcp: 1,
                udp: 0,
                icmp: 0,
            },
            bytes: ByteCounts { up: 1, down: 2 },
            buffered_bytes: ByteCounts { up: 3, down: 4 },
            age_ms: 61_000,
        }
    }

    #[test]
    fn the_json_has_the_fields_of_the_interface_in_their_order() {
        assert_eq!(
            serde_json::to_string(&status()).expect("written"),
            r#"{"state":"ready","listen":["[::]:443"],"sessions":{"attached":2,"detached":1},"#
                .to_owned()
                + r#""memory":{"used_bytes":3145728,"limit_bytes":6442450944},"#
                + r#""held":{"flows":0,"bytes":0,"handed_on_bytes":0,"lost_bytes":0},"#
                + r#""version":"0.1.0"}"#
        );
        assert_eq!(
            serde_json::to_string(&session()).expect("written"),
            r#"{"session_id":"0123456789abcdef0123456789abcdef","client":"phone","#.to_owned()
                + r#""state":"attached","links":[{"transport":"tls","local":"203.0.113.7:443","#
                + r#""remote":"192.0.2.2:41234","interface":null,"rtt_us":null,"up_ms":2000,"#
                + r#""congestion_control":null}],"flows":{"tcp":1,"udp":0,"icmp":0},"#
                + r#""bytes":{"up":1,"down":2},"buffered_bytes":{"up":3,"down":4},"age_ms":61000}"#
        );
    }

    #[test]
    fn people_see_the_same_facts() {
        assert_eq!(
            text(&status()),
            "state:     ready\n\
             listen:    [::]:443\n\
             sessions:  2 attached, 1 detached\n\
             memory:    3MiB of 6GiB\n\
             version:   0.1.0\n"
        );
        let held = HeldReport {
            flows: 2,
            bytes: 4096,
            handed_on_bytes: 1 << 20,
            lost_bytes: 7,
        };
        let more = text(&ServerStatus { held, ..status() });
        let line = "held:      4KiB of 2 flows; 1MiB handed on, 7B lost\n";
        assert!(more.contains(line), "{more}");
    }

    #[test]
    fn sessions_are_a_table() {
        let lost = SessionRow {
            state: SessionState::Detached,
            links: Vec::new(),
            ..session()
        };

        let table = session_table(&[session(), lost]);

        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("SESSION                           CLIENT  STATE     LINK"));
        assert!(
            lines[1].contains("attached  tls 203.0.113.7:443 -> 192.0.2.2:41234, up 2.0s  1 tcp")
        );
        assert!(lines[2].contains("detached  none  "), "{table}");
        assert_eq!(session_table(&[]), "no sessions\n");
    }
}
