//! The kernel's packet filter, through the program `nft`.

use std::io::{self, Write as _};
use std::process::{Command, Output, Stdio};

use super::error::{ErrorKind, SystemError};

/// Where `nft` stands when it is not in PATH: a user's PATH often lacks the second.
const PROGRAMS: [&str; 2] = ["nft", "/usr/sbin/nft"];

/// Has nft make `script` the state of the kernel's tables, in one transaction.
///
/// # Errors
///
/// [`ErrorKind::Missing`] without `nft`, [`ErrorKind::Privilege`] without CAP_NET_ADMIN,
/// [`ErrorKind::Failed`] where this kernel does not know one of the rules.
pub(super) fn apply(tried: &str, script: &str) -> Result<(), SystemError> {
    execute(tried, script).map(drop)
}

/// The tables there are, as `nft list tables` prints them.
///
/// # Errors
///
/// As for [`apply`].
pub(super) fn list_tables() -> Result<String, SystemError> {
    execute("list the tables of the packet filter", "list tables\n")
}

fn execute(tried: &str, script: &str) -> Result<String, SystemError> {
    let output = run(script).map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            SystemError::new(
                ErrorKind::Missing,
                tried,
                "the program nft is not installed",
                "install the package nftables (`apt-get install nftables`)",
            )
        } else {
            SystemError::from_io(format!("{tried}: run nft"), error, "try again")
        }
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or("nothing");
    if said.contains("Operation not permitted") || said.contains("must be root") {
        let denied = io::Error::from(nix::errno::Errno::EPERM);
        return Err(SystemError::missing_net_admin(tried, denied));
    }
    Err(SystemError::new(
        ErrorKind::Failed,
        tried,
        format!("nft said: {said}"),
        "check with `nft list tables` that this kernel has nf_tables with the family inet",
    ))
}

/// Feeds `script` to nft, which applies all of it or nothing.
fn run(script: &str) -> io::Result<Output> {
    let mut result = Err(io::ErrorKind::NotFound.into());
    for program in PROGRAMS {
        result = Command::new(program)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        if result.is_ok() {
            break;
        }
    }
    let mut child = result?;
    if let Some(mut stdin) = child.stdin.take() {
        // An nft that does not read says why on its standard error.
        if let Err(error) = stdin.write_all(script.as_bytes()) {
            tracing::debug!(%error, "nft does not read its rules");
        }
    }
    child.wait_with_output()
}
