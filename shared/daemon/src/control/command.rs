//! What can be asked of a daemon, and who may ask it.

use std::fmt::Debug;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Access;

/// Flows in one answer: with 200 bytes each, within the bound of an answer many times over.
pub const FLOW_ROWS_MAX: usize = 256;

/// Stored files in one answer: with 400 bytes each, within the bound of an answer.
pub const SPOOL_ROWS_MAX: usize = 256;

/// Sessions in one answer: with eight links each they still fit.
pub const SESSION_ROWS_MAX: usize = 128;

/// The requests of one kind of daemon.
pub trait Command: Debug + Serialize + DeserializeOwned + Send + 'static {
    /// What the caller must be allowed.
    fn access(&self) -> Access;
}

/// Stored files that a command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpoolFiles {
    /// Every one.
    All,
    /// The one of this id.
    One(u64),
}

/// What `tund-client` is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum ClientCommand {
    /// The user asks to disconnect: every flow and the session end. Answer: null.
    Disconnect,
    /// The last 1,024 flows that are over, the oldest first. Answer: their rows, 400 bytes each.
    EndedFlows,
    /// Up to [`FLOW_ROWS_MAX`] flows in the order of their ids. Answer: a page of flow rows.
    Flows {
        /// Only flows with a larger id than this.
        #[serde(default)]
        after: Option<u64>,
    },
    /// Drop the links and dial again now. Answer: null.
    Reconnect,
    /// Up to [`SPOOL_ROWS_MAX`] stored files in the order of their ids. Answer: a page of rows.
    Spool {
        /// Only files with a larger id than this.
        #[serde(default)]
        after: Option<u64>,
    },
    /// Drop a stored file, or all. Answer: how many.
    SpoolDrop {
        /// Which.
        files: SpoolFiles,
    },
    /// Try to deliver a stored file now, or all. Answer: how many.
    SpoolRetry {
        /// Which.
        files: SpoolFiles,
    },
    /// Totals. Answer: the client's status.
    Status,
}

impl Command for ClientCommand {
    fn access(&self) -> Access {
        match self {
            Self::Status => Access::Totals,
            Self::Disconnect
            | Self::EndedFlows
            | Self::Flows { .. }
            | Self::Reconnect
            | Self::Spool { .. }
            | Self::SpoolDrop { .. }
            | Self::SpoolRetry { .. } => Access::Everything,
        }
    }
}

/// What `tund-server` is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum ServerCommand {
    /// End all sessions of a client. Answer: how many there were.
    DisconnectClient {
        /// Its name in the configuration.
        name: String,
    },
    /// End one session. Answer: how many there were.
    DisconnectSession {
        /// 32 hexadecimal digits.
        session_id: String,
    },
    /// Up to [`SESSION_ROWS_MAX`] sessions in the order of their ids. Answer: a page of rows.
    Sessions {
        /// Only sessions with a larger id than this.
        #[serde(default)]
        after: Option<String>,
    },
    /// Totals. Answer: the server's status.
    Status,
}

impl Command for ServerCommand {
    fn access(&self) -> Access {
        match self {
            Self::Status | Self::Sessions { .. } => Access::Totals,
            Self::DisconnectClient { .. } | Self::DisconnectSession { .. } => Access::Everything,
        }
    }
}
