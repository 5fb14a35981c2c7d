//! Who owns a lab, and its removal: by the owner's end, however it comes, or by the next lab.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::namespace::narrate;

/// The namespaces of a lab, by the last part of their names.
pub(super) const ROLES: [&str; 4] = ["client", "router", "server", "origin"];

/// Removes one lab: `$1` is its name, `$2` its directory, `$3` its lock file.
///
/// Processes first, since a namespace lives as long as a process in it.
const REMOVE: &str = r#"
for role in client router server origin; do
    namespace="$1-$role"
    [ -e "/run/netns/$namespace" ] || continue
    tries=0
    while pids=$(ip netns pids "$namespace" 2>/dev/null) && [ -n "$pids" ] && [ $tries -lt 50 ]; do
        kill -9 $pids 2>/dev/null
        tries=$((tries + 1))
        sleep 0.02
    done
    ip netns del "$namespace" 2>/dev/null
done
rm -rf "$2"
rm -f "$3"
"#;

/// Ownership of one lab: a name, a directory, a locked file, and a guardian process.
///
/// The guardian waits for the end of its standard input, whose other end only the owner holds, and
/// then removes the lab. So there is one way of removal for a dropped lab, a failed test, an
/// interrupted program and a killed one. Should the guardian be killed too, the lock has become
/// free, and the next lab removes what is left.
#[derive(Debug)]
pub struct Claim {
    name: String,
    directory: PathBuf,
    lock_path: PathBuf,
    /// Held for its lock; the kernel lets go of it when the owner dies.
    lock: File,
    guardian: Child,
    lifeline: Option<ChildStdin>,
}

impl Claim {
    /// Removes what dead owners left, and claims a new name.
    pub fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("tund-{}-{number}", process::id());
        let base = base_directory();
        fs::create_dir_all(&base)
            .unwrap_or_else(|cause| panic!("made {}: {cause}", base.display()));
        remove_leftovers();
        let directory = base.join(&name);
        let lock_path = base.join(format!("{name}.lock"));
        let lock = locked_file(&base.join(format!("{name}.new")), &lock_path)
            .unwrap_or_else(|cause| panic!("locked {}: {cause}", lock_path.display()));
        fs::create_dir_all(&directory)
            .unwrap_or_else(|cause| panic!("made {}: {cause}", directory.display()));
        let mut guardian = guardian(&name, &directory, &lock_path);
        let lifeline = guardian.stdin.take();
        Self {
            name,
            directory,
            lock_path,
            lock,
            guardian,
            lifeline,
        }
    }

    /// The lab's name, which its namespaces begin with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory that lives as long as the lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The guardian's process id, for the test of the reaper.
    pub fn guardian_pid(&self) -> u32 {
        self.guardian.id()
    }
}

impl Default for Claim {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let ended = self.guardian.wait();
        narrate(
            &self.name,
            &format!("removed ({ended:?}, {} free)", self.lock_path.display()),
        );
        if let Err(cause) = self.lock.unlock() {
            narrate(
                &self.name,
                &format!("unlock {}: {cause}", self.lock_path.display()),
            );
        }
    }
}

/// Where all labs of this machine have their directories and locks.
fn base_directory() -> PathBuf {
    std::env::temp_dir().join("tund-lab")
}

/// A file that is locked before it appears under its name, so that no reaper sees it unlocked.
fn locked_file(first: &Path, last: &Path) -> io::Result<File> {
    let file = File::create(first)?;
    file.lock()?;
    fs::rename(first, last)?;
    Ok(file)
}

fn guardian(name: &str, directory: &Path, lock: &Path) -> Child {
    let script = format!("trap '' HUP INT TERM\ncat >/dev/null\n{REMOVE}");
    Command::new("sh")
        .args(["-c", &script, "lab-guardian", name])
        .args([directory, lock])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        // Neither Ctrl-C nor a test runner that kills a whole group reaches it.
        .process_group(0)
        .spawn()
        .unwrap_or_else(|cause| panic!("started sh for the lab's guardian: {cause}"))
}

/// Removes every lab whose owner is dead.
fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(base_directory()) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let Some(name) = name.strip_suffix(".lock") else {
            continue;
        };
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if file.try_lock().is_err() {
            continue;
        }
        narrate(name, "its owner is dead; removing what is left of it");
        let directory = base_directory().join(name);
        let removed = Command::new("sh")
            .args(["-c", REMOVE, "lab-reaper", name])
            .args([&directory, &path])
            .stdin(Stdio::null())
            .status();
        narrate(name, &format!("removed: {removed:?}"));
    }
}
