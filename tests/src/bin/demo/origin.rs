//! The origin of the demo: nginx, with files to download, a place to upload to, and a repository
//! behind git's own HTTP service.

use std::fs;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tund_tests::lab::{Lab, Pattern, Process, wait};

/// The port of the web server.
pub(crate) const PORT: u16 = 80;

/// The size of what is downloaded and of what is uploaded.
const FILE_BYTES: u64 = 256 << 20;

/// The files of the repository: so many of that size.
const REPOSITORY: (u64, u64) = (8, 12 << 20);

/// What is transferred, and the hashes of it.
#[derive(Debug)]
pub(crate) struct Material {
    /// Served by the web server.
    pub(crate) root: PathBuf,
    /// What is uploaded.
    pub(crate) upload: PathBuf,
    /// Of the file to download.
    pub(crate) download_hash: String,
    /// Of the file to upload.
    pub(crate) upload_hash: String,
    /// Of all files of the repository, one after the other.
    pub(crate) repository_hash: String,
}

impl Material {
    /// Makes all of it below `directory`.
    pub(crate) fn new(directory: &Path) -> Self {
        let root = directory.join("www");
        for part in [
            "files",
            "git",
            "work",
            "body-tund",
            "body-direct",
            "put/tund",
            "put/direct",
        ] {
            make_directory(&root.join(part));
        }
        let upload = directory.join("upload.bin");
        let download_hash = write_random(&root.join("files/download.bin"), 1, FILE_BYTES);
        let upload_hash = write_random(&upload, 2, FILE_BYTES);
        let work = root.join("work");
        for number in 0..REPOSITORY.0 {
            write_random(
                &work.join(format!("part-{number}.bin")),
                10 + number,
                REPOSITORY.1,
            );
        }
        let repository_hash = hash_of_parts(&work);
        make_repository(&work, &root.join("git/project.git"));
        Self {
            root,
            upload,
            download_hash,
            upload_hash,
            repository_hash,
        }
    }
}

/// The hash over the repository's files in a checkout.
pub(crate) fn hash_of_parts(checkout: &Path) -> String {
    let mut hash = Sha256::new();
    for number in 0..REPOSITORY.0 {
        // A missing file gives another hash, which is what is to be seen.
        hash.update(fs::read(checkout.join(format!("part-{number}.bin"))).unwrap_or_default());
    }
    hex(&hash.finalize())
}

/// The hash of a file; of nothing if it is not there.
pub(crate) fn hash_of_file(path: &Path) -> String {
    hex(&Sha256::digest(fs::read(path).unwrap_or_default()))
}

/// Bytes as hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn make_directory(path: &Path) {
    fs::create_dir_all(path).unwrap_or_else(|cause| panic!("made {}: {cause}", path.display()));
}

/// Writes bytes that nothing can compress, and gives their hash.
fn write_random(path: &Path, seed: u64, length: u64) -> String {
    let write = || -> std::io::Result<String> {
        let mut file = BufWriter::new(fs::File::create(path)?);
        let mut hash = Sha256::new();
        let mut buf = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < length {
            Pattern::new(seed).fill(offset, &mut buf);
            file.write_all(&buf)?;
            hash.update(&buf);
            offset += buf.len() as u64;
        }
        file.flush()?;
        Ok(hex(&hash.finalize()))
    };
    write().unwrap_or_else(|cause| panic!("wrote {}: {cause}", path.display()))
}

/// Commits what is in `work` and puts a bare clone where the web server finds it.
fn make_repository(work: &Path, bare: &Path) {
    let author = [
        "-c",
        "user.name=demo",
        "-c",
        "user.email=demo@example.invalid",
    ];
    git(work, &["init", "--quiet", "--initial-branch=main"]);
    git(work, &["add", "."]);
    git(
        work,
        &[&author[..], &["commit", "--quiet", "--message", "Parts"]].concat(),
    );
    let bare = bare.to_string_lossy().into_owned();
    git(work, &["clone", "--quiet", "--bare", ".", &bare]);
    // Nothing here can be compressed; trying to would delay the clone's first byte by seconds.
    git(Path::new(&bare), &["config", "core.bigFileThreshold", "1m"]);
    git(Path::new(&bare), &["repack", "-a", "-d", "-q"]);
}

fn git(directory: &Path, arguments: &[&str]) {
    let output = clean_git()
        .arg("-C")
        .arg(directory)
        .args(arguments)
        .output();
    let output = output.unwrap_or_else(|cause| panic!("ran git {arguments:?}: {cause}"));
    assert!(
        output.status.success(),
        "git {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Git without the settings of whoever runs the demo.
pub(crate) fn clean_git() -> Command {
    let mut git = Command::new("git");
    git.env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0");
    for name in [
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "http_proxy",
        "ALL_PROXY",
    ] {
        git.env_remove(name);
    }
    git
}

/// nginx and the gateway to git, running in the lab's origin.
#[derive(Debug)]
pub(crate) struct WebServer {
    root: PathBuf,
    _gateway: Process,
    _nginx: Process,
}

impl WebServer {
    /// Starts both and waits until nginx answers.
    pub(crate) fn start(lab: &Lab, material: &Material) -> Self {
        let directory = lab.directory();
        let socket = directory.join("fcgiwrap.sock");
        let mut gateway = Command::new("fcgiwrap");
        gateway
            .args(["-c", "4", "-s"])
            .arg(format!("unix:{}", socket.display()));
        let gateway = Process::start(&lab.origin, directory, "fcgiwrap", &mut gateway);
        wait::until_true("fcgiwrap listens", Duration::from_secs(5), || {
            socket.exists()
        });

        let config = directory.join("nginx.conf");
        fs::write(&config, configuration(directory, &material.root, &socket))
            .unwrap_or_else(|cause| panic!("wrote {}: {cause}", config.display()));
        let mut nginx = Command::new("nginx");
        nginx.arg("-p").arg(directory).arg("-c").arg(&config);
        let nginx = Process::start(&lab.origin, directory, "nginx", &mut nginx);
        let own = (std::net::Ipv4Addr::LOCALHOST, PORT).into();
        wait::until_true("nginx answers", Duration::from_secs(5), || {
            lab.origin.connect(own, Duration::from_secs(1)).is_ok()
        });
        Self {
            root: material.root.clone(),
            _gateway: gateway,
            _nginx: nginx,
        }
    }

    /// Where nginx collects the body of an upload that is under way.
    pub(crate) fn incoming(&self, path: &str) -> PathBuf {
        self.root.join(format!("body-{path}"))
    }

    /// Where an upload is once it has ended.
    pub(crate) fn uploaded(&self, path: &str) -> PathBuf {
        self.root.join("put").join(path).join("upload.bin")
    }
}

/// Where this machine's git has its HTTP service.
fn git_http_backend() -> PathBuf {
    let output = Command::new("git").arg("--exec-path").output();
    let output = output.unwrap_or_else(|cause| panic!("ran git --exec-path: {cause}"));
    let directory = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let path = Path::new(&directory).join("git-http-backend");
    assert!(
        path.exists(),
        "no {}: is the package git whole?",
        path.display()
    );
    path
}

fn configuration(directory: &Path, root: &Path, socket: &Path) -> String {
    let (directory, root, socket) = (directory.display(), root.display(), socket.display());
    let backend = git_http_backend();
    let backend = backend.display();
    let uploads: String = ["tund", "direct"]
        .map(|path| {
            format!(
                "location /put/{path}/ {{
            root {root};
            dav_methods PUT;
            client_body_temp_path {root}/body-{path};
        }}
        "
            )
        })
        .concat();
    format!(
        "user root;
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log;
events {{ worker_connections 64; }}
http {{
    access_log {directory}/nginx-access.log;
    sendfile on;
    client_max_body_size 0;
    fastcgi_temp_path {directory}/nginx-fastcgi;
    proxy_temp_path {directory}/nginx-proxy;
    scgi_temp_path {directory}/nginx-scgi;
    uwsgi_temp_path {directory}/nginx-uwsgi;
    server {{
        listen [::]:{PORT} ipv6only=off;
        location /files/ {{ root {root}; }}
        {uploads}location /git/ {{
            fastcgi_pass unix:{socket};
            fastcgi_buffering off;
            fastcgi_param SCRIPT_FILENAME {backend};
            fastcgi_param GIT_PROJECT_ROOT {root};
            fastcgi_param GIT_HTTP_EXPORT_ALL 1;
            fastcgi_param GIT_CONFIG_GLOBAL /dev/null;
            fastcgi_param PATH_INFO $uri;
            fastcgi_param QUERY_STRING $query_string;
            fastcgi_param REQUEST_METHOD $request_method;
            fastcgi_param CONTENT_TYPE $content_type;
            fastcgi_param CONTENT_LENGTH $content_length;
            fastcgi_param HTTP_CONTENT_ENCODING $http_content_encoding;
            fastcgi_param GIT_PROTOCOL $http_git_protocol;
            fastcgi_param REMOTE_ADDR $remote_addr;
        }}
    }}
}}
"
    )
}
