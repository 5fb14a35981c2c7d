//! One transfer by a real program, watched from outside: when its bytes arrived, how it ended.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tund_tests::lab::{Family, Lab, Timeline, wait};

use crate::origin::{Material, PORT, WebServer, clean_git, hash_of_file, hash_of_parts, hex};

/// How often the size of what is growing on disk is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What is transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `git clone`, over git's smart HTTP.
    Clone,
    /// `curl` from nginx.
    Download,
    /// `curl --upload-file` (WebDAV PUT) to nginx.
    Upload,
}

impl Kind {
    /// For table and legend.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Clone => "git clone",
            Self::Download => "curl download",
            Self::Upload => "curl upload",
        }
    }
}

/// Which way it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// A plain TCP connection.
    Direct,
    /// By the TUN device.
    Tund,
}

impl Path {
    /// For table, legend and file names.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Tund => "tund",
        }
    }
}

/// A transfer under way.
#[derive(Debug)]
pub(crate) struct Transfer {
    kind: Kind,
    pub(crate) path: Path,
    program: Child,
    timeline: Timeline,
    stop: Arc<AtomicBool>,
    /// Gives the hash of what it saw, if it sees all.
    watcher: JoinHandle<Option<String>>,
    /// Where what arrives is on disk.
    place: PathBuf,
    status: Option<ExitStatus>,
}

/// What came of a transfer.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) kind: Kind,
    pub(crate) path: Path,
    pub(crate) timeline: Timeline,
    /// How the program ended; none if it had to be killed.
    pub(crate) status: Option<ExitStatus>,
    /// Whether the hash of what arrived is that of what was sent.
    pub(crate) same: bool,
}

impl Outcome {
    /// Whether all of it arrived, and the program was content.
    pub(crate) fn is_intact(&self) -> bool {
        self.same && self.status.is_some_and(|status| status.success())
    }
}

impl Transfer {
    /// Starts the program in the lab's client.
    pub(crate) fn start(
        lab: &Lab,
        web: &WebServer,
        material: &Material,
        kind: Kind,
        path: Path,
    ) -> Self {
        let address = match path {
            Path::Direct => lab.plain_origin_address(Family::V4, PORT),
            Path::Tund => lab.origin_address(Family::V4, PORT),
        };
        let timeline = Timeline::new();
        let stop = Arc::new(AtomicBool::new(false));
        let place = match kind {
            Kind::Clone => lab.directory().join(format!("clone-{}", path.label())),
            Kind::Download => PathBuf::new(),
            Kind::Upload => web.uploaded(path.label()),
        };
        let mut command = command(kind, path, address, material, &place);
        lab.client.narrate(&format!("{command:?}"));
        let mut program = lab.client.spawn_process(&mut command);
        let (seen, stopped) = (timeline.clone(), Arc::clone(&stop));
        let growing = match kind {
            Kind::Clone => place.join(".git/objects"),
            Kind::Download | Kind::Upload => web.incoming(path.label()),
        };
        let watcher = match program.stdout.take() {
            Some(output) => thread::spawn(move || Some(read_all(output, &seen))),
            None => thread::spawn(move || watch_growth(&growing, &seen, &stopped)),
        };
        Self {
            kind,
            path,
            program,
            timeline,
            stop,
            watcher,
            place,
            status: None,
        }
    }

    /// Whether its program has ended, well or not.
    pub(crate) fn has_ended(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.program.try_wait().expect("a child can be waited for");
        }
        self.status.is_some()
    }

    /// Whether nothing has arrived for `patience`, counted from `back` at the earliest.
    pub(crate) fn is_silent(&self, back: Instant, patience: Duration) -> bool {
        let now = wait::now();
        let since = now.checked_sub(patience).unwrap_or(now);
        since > back && self.timeline.first_after(since).is_none()
    }

    /// Ends what has not ended, and compares what arrived with what was sent.
    pub(crate) fn judge(mut self, material: &Material) -> Outcome {
        let ended = self.has_ended();
        if !ended {
            // It may end just now, which is as good.
            drop(self.program.kill());
            drop(self.program.wait());
        }
        self.stop.store(true, Ordering::Relaxed);
        let seen = self
            .watcher
            .join()
            .expect("a watcher's panic has been printed");
        let same = match self.kind {
            Kind::Clone => ended && hash_of_parts(&self.place) == material.repository_hash,
            Kind::Download => seen.as_ref() == Some(&material.download_hash),
            Kind::Upload => hash_of_file(&self.place) == material.upload_hash,
        };
        Outcome {
            kind: self.kind,
            path: self.path,
            timeline: self.timeline,
            status: self.status,
            same,
        }
    }
}

fn command(
    kind: Kind,
    path: Path,
    address: SocketAddr,
    material: &Material,
    place: &std::path::Path,
) -> Command {
    let mut command = match kind {
        Kind::Clone => {
            let mut git = clean_git();
            git.args(["clone", "--quiet"])
                .arg(format!("http://{address}/git/project.git"));
            git.arg(place).stdout(Stdio::null());
            git
        }
        Kind::Download => {
            let mut curl = curl();
            curl.arg(format!("http://{address}/files/download.bin"))
                .stdout(Stdio::piped());
            curl
        }
        Kind::Upload => {
            let mut curl = curl();
            curl.arg("--upload-file").arg(&material.upload);
            curl.arg(format!("http://{address}/put/{}/upload.bin", path.label()));
            curl.stdout(Stdio::null());
            curl
        }
    };
    command.stdin(Stdio::null()).stderr(Stdio::null());
    command
}

/// curl without the settings of whoever runs the demo.
fn curl() -> Command {
    let mut curl = Command::new("curl");
    curl.args([
        "--disable",
        "--silent",
        "--fail",
        "--no-buffer",
        "--noproxy",
        "*",
    ]);
    curl
}

/// Reads to the end, and gives the hash of it.
fn read_all(mut output: impl std::io::Read, timeline: &Timeline) -> String {
    let mut hash = Sha256::new();
    let mut buf = vec![0; 256 << 10];
    while let Ok(count @ 1..) = output.read(&mut buf) {
        timeline.record(count as u64);
        hash.update(&buf[..count]);
    }
    hex(&hash.finalize())
}

/// Notes how what is on disk grows.
fn watch_growth(place: &std::path::Path, timeline: &Timeline, stop: &AtomicBool) -> Option<String> {
    let mut known = 0;
    while !stop.load(Ordering::Relaxed) {
        let size = size_below(place);
        if size > known {
            timeline.record(size - known);
            known = size;
        }
        wait::let_pass(LOOK_EVERY);
    }
    None
}

fn size_below(directory: &std::path::Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    let size_of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        // It was renamed between the listing and the look.
        Err(_) => 0,
    };
    entries.flatten().map(size_of).sum()
}
