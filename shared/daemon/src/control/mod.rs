//! The control socket: one JSON line asked, one JSON line answered, between a command and a daemon.
//!
//! A request is a [`Command`] of the daemon, like `{"command":"status"}`. The answer is
//! `{"ok":…}` or `{"error":{"code":"…","message":"…"}}`. One connection carries one request.

mod ask;
mod command;
mod peer;
mod report;
mod server;
mod socket;

use std::time::Duration;

pub use ask::{AskError, ask};
pub use command::{
    ClientCommand, Command, FLOW_ROWS_MAX, SESSION_ROWS_MAX, SPOOL_ROWS_MAX, ServerCommand,
    SpoolFiles,
};
pub use peer::{Access, Caller};
pub use report::{
    ByteCounts, ClientState, ClientStatus, DatagramReport, EndedFlowRow, ErrorReport, FlowCounts,
    FlowRow, HeldReport, LinkReport, MemoryReport, OutageReport, Page, ServerState, ServerStatus,
    SessionCounts, SessionRow, SessionState, SpoolCounts, SpoolRow,
};
pub use server::{ControlServer, Request};
pub use socket::BindError;

/// Connections served at once; more wait in the kernel's queue (*push back*).
const CONNECTIONS_MAX: usize = 16;

/// Of these, how many may belong to callers who read totals only, so that an administrator always
/// gets in (*refuse*).
const READERS_MAX: usize = 12;

/// The longest request (*refuse*).
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// The longest answer (*refuse*): rows come in pages, so that no answer stalls the daemon's loop.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// How long a caller may take to ask, the daemon to answer, and the caller to read the answer
/// (*close*).
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
