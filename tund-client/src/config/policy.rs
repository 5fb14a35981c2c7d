//! `[[policy]]`: what differs from `[session]` for some destinations.

use std::time::Duration;

use tund_daemon::config::{Destination, Section, value};

use super::{HOUR, LONGEST, MINUTE, Session, unbuilt};

/// What happens to a new connection during an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectDuringOutage {
    /// It is accepted at once, and its bytes are kept.
    Accept,
    /// It waits for the end of the outage, or for the application's patience.
    Hold,
    /// It is refused at once.
    Refuse,
}

/// The protocol a policy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// ICMP echo.
    Icmp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What becomes of undelivered bytes when the grace has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnExpiry {
    /// They are lost, and the application is told by a reset.
    Reset,
    /// They are stored and delivered later.
    Store,
}

/// How an application's bytes fall into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// A message ends with its line.
    Line,
    /// A message begins with its length (RFC 6587 §3.4.1).
    OctetCount,
    /// All up to FIN is one message.
    Whole,
}

/// What becomes of an origin's bytes when the application has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Downstream {
    /// They are dropped.
    Discard,
    /// The application's next connection there gets them.
    Handoff,
}

/// One `[[policy]]`; what it does not say is taken from `[session]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Which destinations it is for.
    pub(crate) destination: Destination,
    /// Which protocol; none: all.
    pub(crate) protocol: Option<Protocol>,
    /// How long an outage may last.
    pub(crate) grace: Duration,
    /// What happens to new connections meanwhile.
    pub(crate) connect_during_outage: ConnectDuringOutage,
    /// [`OnExpiry::Reset`] by default.
    pub(crate) on_expiry: OnExpiry,
    /// Always there with [`OnExpiry::Store`].
    pub(crate) framing: Option<Framing>,
    /// How long stored bytes are kept.
    pub(crate) retain: Duration,
    /// [`Downstream::Discard`] by default.
    pub(crate) downstream: Downstream,
}

pub(super) fn policy(section: &mut Section<'_>, session: &Session) -> Option<Policy> {
    let protocols = [
        ("tcp", Protocol::Tcp),
        ("udp", Protocol::Udp),
        ("icmp", Protocol::Icmp),
    ];
    let connects = [
        ("hold", ConnectDuringOutage::Hold),
        ("refuse", ConnectDuringOutage::Refuse),
        ("accept", ConnectDuringOutage::Accept),
    ];
    let framings = [
        ("line", Framing::Line),
        ("octet-count", Framing::OctetCount),
        ("whole", Framing::Whole),
    ];
    let destination = section.required(
        "destination",
        "add destination = \"ADDRESS, CIDR, or either with a port\" to this [[policy]]",
        value::from_text::<Destination>("a destination"),
    );
    let policy = Policy {
        protocol: section.optional("protocol", value::choice(&protocols)),
        grace: section.or(
            "grace",
            session.grace,
            value::duration(Duration::ZERO..=LONGEST),
        ),
        connect_during_outage: section.or(
            "connect_during_outage",
            session.connect_during_outage,
            value::choice(&connects),
        ),
        on_expiry: section.or(
            "on_expiry",
            OnExpiry::Reset,
            value::choice(&[("reset", OnExpiry::Reset), ("store", OnExpiry::Store)]),
        ),
        framing: section.optional("framing", value::choice(&framings)),
        retain: section.or("retain", 72 * HOUR, value::duration(MINUTE..=LONGEST)),
        downstream: section.or(
            "downstream",
            Downstream::Discard,
            value::choice(&[
                ("discard", Downstream::Discard),
                ("handoff", Downstream::Handoff),
            ]),
        ),
        destination: destination?,
    };
    check(section, &policy);
    unbuilt::policy(section, &policy);
    Some(policy)
}

/// What one key says about another.
fn check(section: &mut Section<'_>, policy: &Policy) {
    let stores = policy.on_expiry == OnExpiry::Store;
    if stores && !section.has("framing") {
        section.reject(
            "framing",
            "is required with on_expiry = \"store\" and missing",
            "add framing = \"line\", \"octet-count\" or \"whole\"",
        );
    }
    if stores && policy.protocol != Some(Protocol::Tcp) {
        section.reject(
            "protocol",
            "only TCP bytes can be stored",
            "add protocol = \"tcp\" to this [[policy]]",
        );
    }
    for key in ["framing", "retain", "downstream"] {
        if !stores && section.has(key) {
            section.warn(
                key,
                "has no effect without on_expiry = \"store\"",
                format!("remove {key}, or add on_expiry = \"store\""),
            );
        }
    }
}
