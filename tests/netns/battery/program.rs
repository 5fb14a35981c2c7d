//! A program that a check runs: its script, its directory, and what it leaves there.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tund_tests::lab::{Namespace, narrate, wait};

/// Where programs are looked for: as Debian has them, not as a person of this machine may have.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What `scripts/test` knows its processes by.
const MARK: &str = "TUND_TEST_RUN";
/// How much of an output is shown of a program that failed.
const SHOWN_BYTES: usize = 2000;

/// Names and values for a script.
pub(super) type Variables = Vec<(&'static str, String)>;

/// A script of sh in `directory`, which knows nothing of the person who runs the tests: neither
/// settings in a home directory, nor a proxy, nor a language.
pub(super) fn script(text: &str, directory: &Path, variables: &Variables) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-euc", text])
        .current_dir(directory)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", directory)
        .env("LC_ALL", "C.UTF-8")
        .env("TERM", "xterm")
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .envs(std::env::var(MARK).map(|mark| (MARK, mark)));
    command
}

/// A running script and all that it has started; killed when it is dropped.
#[derive(Debug)]
pub(super) struct Program {
    child: Child,
    directory: PathBuf,
    variables: Variables,
    begun: Instant,
}

impl Program {
    /// Starts it in `namespace`, in the new directory `directory`.
    #[track_caller]
    pub(super) fn start(
        namespace: &Namespace,
        text: &str,
        directory: &Path,
        variables: Variables,
    ) -> Self {
        fs::create_dir_all(directory).expect("a directory of the lab");
        let file = |name: &str| File::create(directory.join(name)).expect("a file of the lab");
        let mut command = script(text, directory, &variables);
        command
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .process_group(0);
        namespace.narrate(text);
        let begun = wait::now();
        let child = namespace.spawn_process(&mut command);
        Self {
            child,
            directory: directory.to_owned(),
            variables,
            begun,
        }
    }

    /// Whether it has not ended.
    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end, at most `limit`: its exit code, and how long it took.
    pub(super) fn end(&mut self, limit: Duration) -> Result<(Option<i32>, Duration), String> {
        let start = wait::now();
        loop {
            match self.child.try_wait() {
                Ok(None) if wait::now() - start > limit => {
                    return Err(format!("did not end within {limit:?}"));
                }
                Ok(None) => wait::let_pass(Duration::from_millis(5)),
                Ok(Some(status)) => return Ok((status.code(), wait::now() - self.begun)),
                Err(cause) => return Err(format!("could not be waited for: {cause}")),
            }
        }
    }

    /// What it has written to both outputs, the last of it.
    pub(super) fn written(&self) -> String {
        let last = |name: &str| {
            let bytes = fs::read(self.directory.join(name)).unwrap_or_default();
            let from = bytes.len().saturating_sub(SHOWN_BYTES);
            String::from_utf8_lossy(&bytes[from..]).into_owned()
        };
        format!("{}{}", last("out"), last("err"))
    }

    /// Runs another script in its directory, and gives what that prints; an error if it fails.
    pub(super) fn look(&self, namespace: &Namespace, text: &str) -> Result<String, String> {
        look(namespace, text, &self.directory, &self.variables)
    }
}

/// Runs a script to its end, and gives what it prints; an error if it fails.
pub(super) fn look(
    namespace: &Namespace,
    text: &str,
    directory: &Path,
    variables: &Variables,
) -> Result<String, String> {
    let mut command = script(text, directory, variables);
    let output = namespace
        .enter(|| command.stdin(Stdio::null()).output())
        .map_err(|cause| format!("sh: {cause}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(printed),
        false => Err(format!(
            "{text}: {}\n{printed}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Once it has been waited for, its number may be another's; the lab's end ends what it left.
        if self.is_running() {
            let group = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits an i32"));
            if let Err(cause) = killpg(group, Signal::SIGKILL) {
                narrate("battery", &format!("kill -9 -{group}: {cause}"));
            }
            drop(self.child.wait());
        }
    }
}
