//! What daemons answer: the fields of `status --json`, `flows --json` and `sessions --json`.
//!
//! Names and their order are part of the public interface.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The state of the client daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientState {
    /// A session with a working link.
    Attached,
    /// Dialling, without a session.
    Connecting,
    /// A session without a working link.
    Detached,
    /// No session and no need for one.
    Ready,
    /// A final error that needs a person.
    Refused,
}

/// The answer to the client's `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientStatus {
    /// What the daemon is doing.
    pub state: ClientState,
    /// 32 hexadecimal digits; none without a session.
    pub session_id: Option<String>,
    /// The link that carries most; none while there is none.
    pub link: Option<LinkReport>,
    /// Every live link.
    pub links: Vec<LinkReport>,
    /// Live flows.
    pub flows: FlowCounts,
    /// Bytes of applications, since the daemon's start.
    pub bytes: ByteCounts,
    /// Bytes taken from applications, or waiting for them, that the other side has not released.
    pub buffered_bytes: ByteCounts,
    /// What was survived, since the daemon's start.
    pub outages: OutageReport,
    /// What became of UDP datagrams, since the daemon's start.
    pub datagrams: DatagramReport,
    /// What waits for delivery.
    pub spool: SpoolCounts,
    /// What is wrong; none when all is well.
    pub error: Option<ErrorReport>,
    /// The daemon's version.
    pub version: String,
}

/// One live link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkReport {
    /// `tls` or `quic`.
    pub transport: String,
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// The interface it is bound to, where that is known.
    pub interface: Option<String>,
    /// The smoothed round-trip time; none before the first sample.
    pub rtt_us: Option<u64>,
    /// How long it has been up.
    pub up_ms: u64,
    /// What the kernel uses there, where it tells.
    pub congestion_control: Option<String>,
}

/// Flows by protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCounts {
    /// TCP connections.
    pub tcp: u64,
    /// UDP mappings.
    pub udp: u64,
    /// ICMP exchanges.
    pub icmp: u64,
}

/// Bytes by direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteCounts {
    /// From applications to origins.
    pub up: u64,
    /// From origins to applications.
    pub down: u64,
}

/// Outages since the daemon's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutageReport {
    /// How many.
    pub count: u64,
    /// Of the last one: from the last byte of the lost link to the first of its successor.
    pub last_gap_ms: Option<u64>,
    /// Of the last one: from the successful dial's first packet to attached.
    pub last_resume_ms: Option<u64>,
}

/// UDP datagrams, as the client counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatagramReport {
    /// Sent to the server.
    pub up: u64,
    /// Given to applications.
    pub down: u64,
    /// Dropped because they had waited for longer than `[udp] max_age`.
    pub stale: u64,
    /// Dropped because too many waited, because their mapping ended, or because they came from where
    /// nobody had been asked.
    pub dropped: u64,
}

/// What was stored after an outage that outlasted its grace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolCounts {
    /// Files that wait or are being delivered.
    pub waiting: u64,
    /// Files that are kept for a person.
    pub dead: u64,
    /// Bytes of all on the disk.
    pub bytes: u64,
}

/// An error, for programs and for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReport {
    /// A word that programs may compare, like `server_key_mismatch`.
    pub code: String,
    /// What was tried, what was found, what to do.
    pub message: String,
}

/// Some rows of a longer list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<Row, Id> {
    /// The rows, in the order of their ids.
    pub rows: Vec<Row>,
    /// What to ask after for the following ones; none if these were the last.
    pub next: Option<Id>,
}

/// One row of `flows --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRow {
    /// Never used again within a session.
    pub id: u64,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// The application's end.
    pub source: SocketAddr,
    /// The origin; none for a UDP mapping, which has many.
    pub destination: Option<SocketAddr>,
    /// What it is doing, in one word: `opening`, `open`, `half-closed`, `closing`.
    pub state: String,
    /// Bytes each way.
    pub bytes: ByteCounts,
    /// Bytes held each way.
    pub buffered_bytes: ByteCounts,
    /// Since it was opened.
    pub age_ms: u64,
    /// How many outages it has lived through.
    pub outages: u64,
    /// The longest time in which no byte of it moved.
    pub longest_silence_ms: u64,
}

/// One row of `flows --ended --json`: the account of a flow that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedFlowRow {
    /// Its id within its session.
    pub id: u64,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// The application's end.
    pub source: SocketAddr,
    /// The origin; of a UDP mapping, the first it sent to.
    pub destination: SocketAddr,
    /// Who ended it: `application`, `origin`, `client`, `server` or `user`.
    pub ended_by: String,
    /// How: `closed`, `reset`, `refused`, `cancelled`, `expired`, `idle`, `disconnected`,
    /// `restarted` or `failed`.
    pub how: String,
    /// Bytes each way that passed between application and client.
    pub bytes: ByteCounts,
    /// Bytes that were taken and did not arrive, as far as the client knows.
    pub lost_bytes: ByteCounts,
    /// Bytes of the application that were stored when it ended, for delivery later.
    #[serde(default)]
    pub stored_bytes: u64,
    /// Bytes that had come for the application and that the server holds for its next connection.
    #[serde(default)]
    pub held_bytes: u64,
    /// From its opening to its end.
    pub age_ms: u64,
    /// How many outages it lived through.
    pub outages: u64,
    /// The longest time in which no byte of it moved.
    pub longest_silence_ms: u64,
}

/// One row of `spool ls --json`: what is left of a flow, and waits for delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolRow {
    /// By which it is tried again or dropped.
    pub id: u64,
    /// The origin.
    pub destination: SocketAddr,
    /// Whose application sent it; 65534 if that is not known.
    pub user: u32,
    /// `storing`, `waiting`, `delivering`, or `dead`: not tried any more unless a person wants it.
    pub state: String,
    /// Why it is dead: `damaged`, `denied`, `overdue`, `unsealable`.
    pub reason: Option<String>,
    /// `line`, `octet-count` or `whole`.
    pub framing: String,
    /// Bytes of the application.
    pub bytes: u64,
    /// Bytes on the disk.
    pub file_bytes: u64,
    /// Sealed pieces, each of one or more messages.
    pub records: u32,
    /// The session in which they were taken: 32 hexadecimal digits.
    pub session_id: String,
    /// Since it was stored, in seconds.
    pub age_s: u64,
    /// For how many seconds more it is tried.
    pub keep_s: u64,
    /// When its destination is tried again, if that failed.
    pub retry_ms: Option<u64>,
}

/// The state of the server daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    /// Serves, and takes no new sessions.
    Draining,
    /// Serves.
    Ready,
}

/// The answer to the server's `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// What the daemon is doing.
    pub state: ServerState,
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// How many sessions there are.
    pub sessions: SessionCounts,
    /// How much memory sessions use, and what is held beside them.
    pub memory: MemoryReport,
    /// What is held for applications' next connections.
    #[serde(default)]
    pub held: HeldReport,
    /// The daemon's version.
    pub version: String,
}

/// What applications did not get of flows that expired, and what became of it since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldReport {
    /// Flows of which something is held.
    pub flows: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes that later connections were given.
    pub handed_on_bytes: u64,
    /// Bytes that were forgotten, or were no whole message.
    pub lost_bytes: u64,
}

/// Sessions by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCounts {
    /// With a working link.
    pub attached: u64,
    /// Without one.
    pub detached: u64,
}

/// Memory that counts against `[limits] memory`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// In use.
    pub used_bytes: u64,
    /// The limit.
    pub limit_bytes: u64,
}

/// The state of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// It has a working link.
    Attached,
    /// It has none.
    Detached,
}

/// One row of `sessions --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// 32 hexadecimal digits.
    pub session_id: String,
    /// The client's name in the configuration.
    pub client: String,
    /// Whether it has a link.
    pub state: SessionState,
    /// Every live link.
    pub links: Vec<LinkReport>,
    /// Live flows.
    pub flows: FlowCounts,
    /// Bytes of its flows.
    pub bytes: ByteCounts,
    /// Bytes that the other side has not released.
    pub buffered_bytes: ByteCounts,
    /// Since it was made.
    pub age_ms: u64,
}
