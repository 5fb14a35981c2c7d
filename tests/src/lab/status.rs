//! What `tund-client status --json` says.

use serde::Deserialize;

/// What `tund-client status --json` says; INTERFACE.md names the fields.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// ready, connecting, attached, detached or refused.
    pub state: String,
    /// 32 hex digits.
    pub session_id: Option<String>,
    /// The link that carries most.
    pub link: Option<Link>,
    /// Every live link.
    #[serde(default)]
    pub links: Vec<Link>,
    /// How many there are.
    #[serde(default)]
    pub flows: Flows,
    /// Of applications, so far.
    #[serde(default)]
    pub bytes: BothWays,
    /// Taken and not released by the other side.
    #[serde(default)]
    pub buffered_bytes: BothWays,
    /// What has been survived.
    #[serde(default)]
    pub outages: Outages,
    /// Why it is not well.
    pub error: Option<StatusError>,
}

/// A link in a [`Status`].
#[derive(Clone, Debug, Deserialize)]
pub struct Link {
    /// tls or quic.
    pub transport: String,
    /// Own address and port.
    pub local: String,
    /// The server's.
    pub remote: String,
    /// The device that its socket is bound to.
    pub interface: Option<String>,
    /// Round-trip time.
    #[serde(default)]
    pub rtt_us: Option<u64>,
    /// Of the kernel, by its name.
    pub congestion_control: Option<String>,
}

/// The flows in a [`Status`].
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Flows {
    /// TCP connections.
    pub tcp: u64,
    /// UDP mappings.
    pub udp: u64,
    /// Mappings of echo requests.
    pub icmp: u64,
}

/// A number for each direction.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct BothWays {
    /// From the application to the origin.
    pub up: u64,
    /// From the origin to the application.
    pub down: u64,
}

/// The outages in a [`Status`].
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Outages {
    /// How many there have been.
    pub count: u64,
    /// From the last byte of the lost link to the first of the next.
    #[serde(default)]
    pub last_gap_ms: Option<u64>,
    /// From the successful dial's first packet to attached.
    #[serde(default)]
    pub last_resume_ms: Option<u64>,
}

/// The error in a [`Status`].
#[derive(Clone, Debug, Deserialize)]
pub struct StatusError {
    /// A short name.
    pub code: String,
    /// What was tried, what was found, what to do.
    pub message: String,
}
