//! The server daemon of tund: keeps sessions through outages and connects to origins for them.

mod cli;
mod config;
mod driver;
mod status;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    tund_daemon::lifecycle::conclude("tund-server", cli::execute())
}
