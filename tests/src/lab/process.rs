//! A process inside a namespace, with its log in a file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::namespace::{Namespace, narrate};
use super::wait;

/// How many lines of its log a process leaves in a failed test's transcript.
const LINES_SHOWN: usize = 40;

/// A running program; killed, and waited for, when it is dropped.
#[derive(Debug)]
pub struct Process {
    title: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` in `namespace`, both outputs into a file named after `title`.
    #[track_caller]
    pub fn start(
        namespace: &Namespace,
        directory: &Path,
        title: &str,
        command: &mut Command,
    ) -> Self {
        let log = directory.join(format!("{title}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap_or_else(|cause| panic!("opened {}: {cause}", log.display()));
        let second = file.try_clone().expect("a file descriptor can be had");
        let words: Vec<_> = command
            .get_args()
            .map(|word| word.to_string_lossy())
            .collect();
        let program = command.get_program().to_string_lossy().into_owned();
        namespace.narrate(&format!("{program} {} &", words.join(" ")));
        command.stdin(Stdio::null()).stdout(file).stderr(second);
        let child = namespace.spawn_process(command);
        Self {
            title: title.to_owned(),
            child,
            log,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        narrate(&self.title, &format!("{signal}"));
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits an i32"));
        kill(pid, signal)
            .unwrap_or_else(|cause| panic!("sent {signal} to {}: {cause}", self.title));
    }

    /// Kills it as a crash would, and waits for its end.
    pub fn kill(&mut self) {
        narrate(&self.title, "kill -9");
        self.end();
    }

    /// Asks it to end, and waits at most `limit` for that.
    #[track_caller]
    pub fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait(limit)
    }

    /// Waits for its end, at most `limit`.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let title = self.title.clone();
        wait::until(&format!("{title} ends"), limit, || {
            self.child.try_wait().expect("a child can be waited for")
        })
    }

    /// Its memory in use (resident set), in KiB.
    #[track_caller]
    pub fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path)
            .unwrap_or_else(|cause| panic!("read {path} of {}: {cause}", self.title));
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|rest| rest.split_ascii_whitespace().next());
        number
            .and_then(|digits| digits.parse().ok())
            .unwrap_or_else(|| panic!("{path} has no VmRSS: {} has ended", self.title))
    }

    /// How many sockets it has open, of whichever kind.
    pub fn sockets(&self) -> usize {
        let path = format!("/proc/{}/fd", self.child.id());
        let open = fs::read_dir(path).into_iter().flatten().flatten();
        let targets = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        let is_socket = |target: &PathBuf| target.to_string_lossy().starts_with("socket:");
        targets.filter(is_socket).count()
    }

    fn end(&mut self) {
        // Both fail only when it has ended and been waited for.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let shown = lines.len().saturating_sub(LINES_SHOWN);
            for line in lines.iter().skip(shown) {
                narrate(&self.title, line);
            }
        }
    }
}
