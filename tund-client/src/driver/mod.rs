//! The client's event loop: TUN, links and clock on one side, the core on the other.

use crate::config::Config;

/// Runs the daemon until a signal ends it.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    anyhow::bail!("{}: the event loop is not part of this build", config.file.display())
}
