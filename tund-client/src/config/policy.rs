//! `[[policy]]` and `[spool]`: other rules for some destinations, and where stored bytes wait.

use std::path::PathBuf;
use std::time::Duration;

use tund_daemon::config::{Destination, Section, value};

use super::{ConnectDuringOutage, HOUR, LONGEST, MINUTE};

/// One `[[policy]]`; none where it says nothing and `[session]` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    /// For whom.
    pub(crate) destination: Destination,
    /// For which protocol; none: for each.
    pub(crate) protocol: Option<Protocol>,
    /// How long an outage may last.
    pub(crate) grace: Option<Duration>,
    /// What happens to a new connection during an outage.
    pub(crate) connect_during_outage: Option<ConnectDuringOutage>,
    /// How bytes are kept that are left when grace is over; none: they are not.
    pub(crate) store: Option<Kept>,
    /// How bytes are held that the application does not get before; none: they are not.
    pub(crate) hand_off: Option<Kept>,
}

/// What a policy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Echo requests.
    Icmp,
    /// Connections.
    Tcp,
    /// Mappings.
    Udp,
}

/// How bytes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Where messages end.
    pub(crate) framing: Framing,
    /// How long they are kept.
    pub(crate) retain: Duration,
}

/// Where messages end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Behind each line feed.
    Line,
    /// Each begins with its length (RFC 6587 §3.4.1).
    OctetCount,
    /// At FIN only.
    Whole,
}

/// `[spool]`.
pub(crate) struct Spool {
    /// Where stored bytes wait.
    pub(crate) directory: PathBuf,
    /// All of them together.
    pub(crate) max_bytes: u64,
}

/// All `[[policy]]`, in the order of the file.
pub(super) fn policies(root: &mut Section<'_>) -> Vec<Policy> {
    root.tables("policy", policy)
}

fn policy(section: &mut Section<'_>) -> Option<Policy> {
    let destination = section.required(
        "destination",
        "add destination = \"ADDRESS, CIDR, or either with a port\" to this [[policy]]",
        value::from_text::<Destination>("a destination"),
    );
    let protocols = [
        ("tcp", Protocol::Tcp),
        ("udp", Protocol::Udp),
        ("icmp", Protocol::Icmp),
    ];
    let protocol = section.optional("protocol", value::choice(&protocols));
    if matches!(protocol, Some(Protocol::Icmp | Protocol::Udp)) {
        section.warn(
            "protocol",
            "has no effect: in this version policies hold for TCP only",
            "remove this [[policy]], or write protocol = \"tcp\"",
        );
    }
    let grace = section.optional("grace", value::duration(Duration::ZERO..=LONGEST));
    let connects = [
        ("hold", ConnectDuringOutage::Hold),
        ("refuse", ConnectDuringOutage::Refuse),
        ("accept", ConnectDuringOutage::Accept),
    ];
    let connect_during_outage = section.optional("connect_during_outage", value::choice(&connects));
    let (store, hand_off) = kept(section, protocol);
    Some(Policy {
        destination: destination?,
        protocol,
        grace,
        connect_during_outage,
        store,
        hand_off,
    })
}

/// What the policy says of bytes that are left: for the origin, and for the application.
fn kept(section: &mut Section<'_>, protocol: Option<Protocol>) -> (Option<Kept>, Option<Kept>) {
    let expiries = [("reset", false), ("store", true)];
    let is_stored = section.or("on_expiry", false, value::choice(&expiries));
    let framings = [
        ("line", Framing::Line),
        ("octet-count", Framing::OctetCount),
        ("whole", Framing::Whole),
    ];
    let framing = section.optional("framing", value::choice(&framings));
    let retain = section.or("retain", 72 * HOUR, value::duration(MINUTE..=LONGEST));
    let downstream = value::choice(&[("discard", false), ("handoff", true)]);
    let is_held = section.or("downstream", false, downstream);
    let is_kept = is_stored || is_held;
    let why = if is_stored {
        "on_expiry = \"store\""
    } else {
        "downstream = \"handoff\""
    };
    if is_kept && !section.has("framing") {
        section.reject(
            "framing",
            format!("is required with {why} and missing"),
            "add framing = \"line\", \"octet-count\" or \"whole\"",
        );
    }
    if is_held && framing == Some(Framing::Whole) {
        section.reject(
            "framing",
            "\"whole\" cannot be handed on: a next connection could not tell where it ends",
            "write framing = \"line\" or \"octet-count\", or remove downstream",
        );
    }
    if is_kept && protocol != Some(Protocol::Tcp) {
        section.reject(
            "protocol",
            format!("only TCP bytes can be kept, and {why} says so"),
            "add protocol = \"tcp\" to this [[policy]]",
        );
    }
    for key in ["framing", "retain"] {
        if !is_kept && section.has(key) {
            section.reject(
                key,
                "has no effect without on_expiry = \"store\" or downstream = \"handoff\"",
                format!("remove {key}, or add one of them"),
            );
        }
    }
    let kept = framing.map(|framing| Kept { framing, retain });
    (kept.filter(|_| is_stored), kept.filter(|_| is_held))
}

/// `[spool]`.
pub(super) fn spool(section: &mut Section<'_>) -> Spool {
    Spool {
        directory: section.or("directory", "/var/lib/tund/spool".into(), value::path),
        max_bytes: section.or("max_bytes", 256 << 20, value::size(1 << 20..=1 << 50)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::stage;
    use super::*;

    /// A policy with more lines than its destination.
    fn written(lines: &str) -> String {
        format!("[[policy]]\ndestination = \"10.0.0.9:514\"\n{lines}")
    }

    #[test]
    fn policies_are_kept_in_their_order_with_what_they_leave_open() {
        let stage = stage();
        let text = stage.minimum()
            + "[[policy]]\ndestination = \"10.0.0.9:514\"\nprotocol = \"tcp\"\ngrace = \"1h\"\n\
               connect_during_outage = \"accept\"\non_expiry = \"store\"\nframing = \"octet-count\"\n\
               retain = \"24h\"\ndownstream = \"handoff\"\n\
               [[policy]]\ndestination = \"fd00::/8\"\nconnect_during_outage = \"refuse\"\n\
               [spool]\ndirectory = \"/srv/spool\"\nmax_bytes = \"1GiB\"\n";

        let config = stage.config(&text);

        let destination = |text: &str| text.parse().expect("a destination");
        let kept = Kept {
            framing: Framing::OctetCount,
            retain: 24 * HOUR,
        };
        let one = Policy {
            destination: destination("10.0.0.9:514"),
            protocol: Some(Protocol::Tcp),
            grace: Some(HOUR),
            connect_during_outage: Some(ConnectDuringOutage::Accept),
            store: Some(kept),
            hand_off: Some(kept),
        };
        let other = Policy {
            destination: destination("fd00::/8"),
            protocol: None,
            grace: None,
            connect_during_outage: Some(ConnectDuringOutage::Refuse),
            store: None,
            hand_off: None,
        };
        assert_eq!(config.policies, [one, other]);
        assert_eq!(config.spool.directory, PathBuf::from("/srv/spool"));
        assert_eq!(config.spool.max_bytes, 1 << 30);
    }

    #[test]
    fn what_is_not_written_has_the_defaults_of_the_interface() {
        let stage = stage();
        let lines = "protocol = \"tcp\"\non_expiry = \"store\"\nframing = \"line\"\n";

        let config = stage.config(&(stage.minimum() + &written(lines)));

        let kept = Kept {
            framing: Framing::Line,
            retain: 72 * HOUR,
        };
        assert_eq!(config.policies[0].store, Some(kept));
        assert_eq!(config.policies[0].hand_off, None);
        assert_eq!(config.spool.directory, PathBuf::from("/var/lib/tund/spool"));
        assert_eq!(config.spool.max_bytes, 256 << 20);
    }

    #[test]
    fn what_does_not_go_together_is_a_mistake() {
        let stage = stage();
        let store = "protocol = \"tcp\"\non_expiry = \"store\"\n";
        for (lines, line, key, words) in [
            (store.to_owned(), 6, "policy.framing", "is required with"),
            (
                "on_expiry = \"store\"\nframing = \"line\"\n".to_owned(),
                6,
                "policy.protocol",
                "only TCP bytes can be kept",
            ),
            (
                "retain = \"1h\"\n".to_owned(),
                8,
                "policy.retain",
                "has no effect without",
            ),
            (
                "protocol = \"tcp\"\ndownstream = \"handoff\"\n".to_owned(),
                6,
                "policy.framing",
                "is required with downstream",
            ),
            (
                "protocol = \"tcp\"\nframing = \"whole\"\ndownstream = \"handoff\"\n".to_owned(),
                9,
                "policy.framing",
                "cannot be handed on",
            ),
            (
                store.to_owned() + "framing = \"csv\"\n",
                10,
                "policy.framing",
                "\"csv\"",
            ),
            (
                "grace = \"31d\"\n".to_owned(),
                8,
                "policy.grace",
                "not in range",
            ),
        ] {
            stage.one(&written(&lines), line, key, &[words]);
        }
        stage.one("[[policy]]\n", 6, "policy.destination", &["is required"]);
        stage.one(
            "[spool]\nmax_bytes = \"1KiB\"\n",
            7,
            "spool.max_bytes",
            &["1KiB"],
        );
    }

    #[test]
    fn a_policy_for_what_is_not_carried_is_a_warning() {
        let warnings = stage().warnings(&written("protocol = \"udp\"\n"));

        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0].starts_with("client.toml:8: policy.protocol: has no effect"),
            "{warnings:?}"
        );
    }
}
