//! How much memory this machine, or the control group that holds the daemon, has.

use std::fs;
use std::path::Path;

/// What is assumed where neither `/proc` nor the control groups tell: chosen, a small machine.
const UNKNOWN_MEMORY_BYTES: u64 = 512 << 20;

/// The RAM that the daemon may count on: of the machine, or less where its control group says so.
pub fn total_memory_bytes() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| meminfo_total(&text));
    let group = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| group_limit(Path::new("/sys/fs/cgroup"), &text));
    machine
        .into_iter()
        .chain(group)
        .min()
        .unwrap_or(UNKNOWN_MEMORY_BYTES)
}

fn meminfo_total(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The smallest `memory.max` from the process's own group up to the root (version 2 only).
fn group_limit(root: &Path, memberships: &str) -> Option<u64> {
    let own = memberships
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))?;
    Path::new(own)
        .ancestors()
        .filter_map(|group| fs::read_to_string(root.join(group).join("memory.max")).ok())
        .filter_map(|text| text.trim().parse().ok())
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_memory_is_read_in_bytes() {
        let text = "MemTotal:       24576000 kB\nMemFree:         1000 kB\n";

        assert_eq!(meminfo_total(text), Some(24_576_000 * 1024));
        assert_eq!(meminfo_total("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn the_tightest_control_group_counts() {
        let root = tempfile::tempdir().expect("temporary directory");
        fs::create_dir_all(root.path().join("system.slice/tund.service")).expect("directories");
        fs::write(root.path().join("system.slice/memory.max"), "1000000\n").expect("outer");
        fs::write(
            root.path().join("system.slice/tund.service/memory.max"),
            "max\n",
        )
        .expect("inner");

        let limit = group_limit(root.path(), "0::/system.slice/tund.service\n");

        assert_eq!(limit, Some(1_000_000));
    }
}
