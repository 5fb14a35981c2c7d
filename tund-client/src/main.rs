//! The client daemon of tund: takes applications' traffic and carries it over a session that lasts.

mod cli;
mod config;
mod driver;
mod status;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    tund_daemon::lifecycle::conclude("tund-client", cli::execute())
}
