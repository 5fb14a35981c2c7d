//! The commands that both daemons have, as clap arguments and as what they do.

mod text;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::Mistake;
use crate::control::{self, Command};
use crate::identity::PrivateKey;
use crate::lifecycle::PermissionDenied;

pub use text::{both_ways, columns, elapsed, flow_counts, link_line, state_name};

/// Arguments of `keygen`.
#[derive(Debug, Args)]
pub struct Keygen {
    /// Write the private key to this file (mode 0600), and the public key to stdout. Without it,
    /// the private key goes to stdout and the public key to stderr
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Overwrite the file if it exists; whoever has the old public key needs the new one then
    #[arg(long, requires = "out")]
    pub force: bool,
}

/// Arguments of `pubkey`.
#[derive(Debug, Args)]
pub struct Pubkey {
    /// A private key file, as `keygen --out` makes it
    pub file: PathBuf,
}

/// Arguments of `run` and `check`.
#[derive(Debug, Args)]
pub struct WithConfig {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

impl Keygen {
    /// Makes a key.
    ///
    /// # Errors
    ///
    /// The file exists, or it or the output cannot be written.
    pub fn execute(&self) -> anyhow::Result<()> {
        let key = PrivateKey::generate()?;
        match &self.out {
            Some(file) => {
                key.save(file, self.force)?;
                print(&format!("{}\n", key.public()))
            }
            None => {
                print(&format!("{}\n", *key.to_base64()))?;
                writeln!(io::stderr(), "{}", key.public()).context("cannot write to stderr")
            }
        }
    }
}

impl Pubkey {
    /// Prints the public key of a private key file.
    ///
    /// # Errors
    ///
    /// The file is missing, readable by others, or holds no key.
    pub fn execute(&self) -> anyhow::Result<()> {
        let key = PrivateKey::load(&self.file)?;
        print(&format!("{}\n", key.public()))
    }
}

/// Prints what `check` has to say about a configuration without mistakes.
///
/// # Errors
///
/// The output is closed.
pub fn report_check(file: &Path, warnings: &[Mistake]) -> anyhow::Result<()> {
    for warning in warnings {
        writeln!(io::stderr(), "warning: {warning}").context("cannot write to stderr")?;
    }
    print(&format!("{}: ok\n", file.display()))
}

/// Asks the daemon; that the user may not is an error of its own, for its exit code.
///
/// # Errors
///
/// As [`control::ask`].
pub fn ask<T: DeserializeOwned>(socket: &Path, command: &impl Command) -> anyhow::Result<T> {
    control::ask(socket, command).map_err(|error| {
        if error.is_denied() {
            PermissionDenied(error.to_string()).into()
        } else {
            error.into()
        }
    })
}

/// Prints `value` as JSON, or `text` for people.
///
/// # Errors
///
/// The output is closed.
pub fn show(value: &impl Serialize, text: impl Display, is_json: bool) -> anyhow::Result<()> {
    if is_json {
        let json = serde_json::to_string_pretty(value).context("cannot write it as JSON")?;
        return print(&format!("{json}\n"));
    }
    print(&text.to_string())
}

/// Writes to stdout, without the panic that `print!` answers a closed pipe with.
///
/// # Errors
///
/// The output is closed.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write to stdout")
}
