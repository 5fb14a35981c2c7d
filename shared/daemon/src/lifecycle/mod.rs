//! How a daemon begins and ends: signals, the service manager, privileges, exit codes.

mod exit;
mod heap;
mod privilege;
mod service;
mod signals;

pub use exit::{Exit, PermissionDenied, UsageError, conclude, exit_of};
pub use heap::keep_some_heap;
pub use privilege::{Capability, MissingPrivilege, has_capability, raise_file_limit};
pub use service::{notify_ready, notify_reloading, notify_status, notify_stopping};
pub use signals::{Signal, Signals};
