//! The two daemons in a lab: keys, configuration, start, steering and status.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::namespace::{Namespace, command_output};
use super::process::Process;
use super::settings::{Sections, Settings, overlay, quoted, set, toml};
use super::status::Status;
use super::{Family, Lab, wait};

/// The client daemon's device.
pub const TUN: &str = "tund0";

/// How long a daemon may take until it serves; generous, for machines that build meanwhile.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A key pair: the private one in a file, the public one as text.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Where the private key is.
    pub file: PathBuf,
    /// The public key, base64.
    pub public: String,
}

impl Keys {
    /// Makes a pair with `tund-client keygen`.
    #[track_caller]
    pub fn generate(directory: &Path, title: &str) -> Self {
        let file = directory.join(format!("{title}.key"));
        let mut keygen = Command::new(program("tund-client"));
        keygen.arg("keygen").arg("--out").arg(&file);
        let public = command_output(&mut keygen, title).trim().to_owned();
        Self { file, public }
    }
}

/// The path of one of the daemons: from the directory in `TUND_BIN`, else from this workspace's
/// `target/release`, else from its `target/debug`.
#[track_caller]
pub fn program(name: &str) -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let candidates = match std::env::var_os("TUND_BIN") {
        Some(directory) => vec![PathBuf::from(directory)],
        None => vec![
            workspace.join("target/release"),
            workspace.join("target/debug"),
        ],
    };
    candidates
        .iter()
        .map(|directory| directory.join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| {
            panic!("no {name} in {candidates:?}; build it (cargo build --release) or set TUND_BIN")
        })
}

/// A server daemon in a lab.
#[derive(Debug)]
pub struct ServerDaemon {
    /// Its process.
    pub process: Process,
    control: PathBuf,
    config: PathBuf,
    is_without_raw_sockets: bool,
}

impl ServerDaemon {
    /// Writes its configuration, starts it in `host` and waits until it serves.
    #[track_caller]
    pub fn start(
        host: &Namespace,
        directory: &Path,
        (title, keys): (&str, &Keys),
        clients: &[(&str, &Keys)],
        settings: &Settings,
    ) -> Self {
        let control = directory.join(format!("{title}.sock"));
        let mut sections = Sections::new();
        set(
            &mut sections,
            "identity",
            "private_key_file",
            &quoted(&keys.file),
        );
        set(
            &mut sections,
            "listen",
            "address",
            &format!("[\"[::]:{}\"]", super::SERVER_PORT),
        );
        // The lab's origins have private addresses, and the server stands beside one.
        set(
            &mut sections,
            "origin",
            "allow",
            "[\"10.77.4.0/24\", \"10.77.5.2\", \"fd77:0:0:4::/64\", \"fd77:0:0:5::2\"]",
        );
        set(&mut sections, "control", "socket", &quoted(&control));
        let state = directory.join(format!("{title}-state"));
        set(&mut sections, "state", "directory", &quoted(&state));
        overlay(&mut sections, &settings.server);
        let mut text = toml(&sections);
        for (name, keys) in clients {
            text.push_str(&format!(
                "\n[[client]]\nname = \"{name}\"\npublic_key = \"{}\"\n",
                keys.public
            ));
        }
        let config = write_config(directory, title, &text);
        let mut command = run_server(&config, settings.is_without_raw_sockets);
        if let Some(file) = &settings.resolv_conf {
            command = in_place(command, file, "/etc/resolv.conf");
        }
        let process = Process::start(host, directory, title, &mut command);
        let mut daemon = Self {
            process,
            control,
            config,
            is_without_raw_sockets: settings.is_without_raw_sockets,
        };
        daemon.wait_until_serving();
        daemon
    }

    /// Starts it again after it was killed or has ended.
    #[track_caller]
    pub fn start_again(&mut self, lab: &Lab) {
        let mut command = run_server(&self.config, self.is_without_raw_sockets);
        self.process = Process::start(&lab.server, lab.directory(), "server", &mut command);
        self.wait_until_serving();
    }

    /// Runs a subcommand on its control socket.
    ///
    /// # Errors
    /// What the command wrote to stderr.
    pub fn command(&self, arguments: &[&str]) -> Result<String, String> {
        ask("tund-server", arguments, &self.control)
    }

    /// The rows of `sessions --json`.
    ///
    /// # Errors
    /// What the command wrote to stderr.
    pub fn sessions(&self) -> Result<Vec<serde_json::Value>, String> {
        let text = ask("tund-server", &["sessions", "--json"], &self.control)?;
        serde_json::from_str(&text).map_err(|cause| format!("{cause}: {text}"))
    }

    /// What `status --json` says.
    ///
    /// # Errors
    /// What the command wrote to stderr.
    pub fn status(&self) -> Result<serde_json::Value, String> {
        let text = ask("tund-server", &["status", "--json"], &self.control)?;
        serde_json::from_str(&text).map_err(|cause| format!("{cause}: {text}"))
    }

    /// The file that it was started with.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Has it read its configuration again, with another key in place of `listed`.
    #[track_caller]
    pub fn unlist(&self, listed: &Keys) {
        let other = Keys::generate(self.config.parent().expect("a file"), "nobody");
        let text = fs::read_to_string(&self.config).expect("its configuration is a file");
        fs::write(&self.config, text.replace(&listed.public, &other.public))
            .expect("its configuration can be written");
        self.process.signal(Signal::SIGHUP);
    }

    fn wait_until_serving(&mut self) {
        wait::until_true(
            "the server daemon answers on its control socket",
            START_LIMIT,
            || {
                assert!(
                    self.process.is_running(),
                    "tund-server ended: {}",
                    self.process.log()
                );
                ask("tund-server", &["status", "--json"], &self.control).is_ok()
            },
        );
    }
}

/// A client daemon in a lab.
#[derive(Debug)]
pub struct ClientDaemon {
    /// Its process.
    pub process: Process,
    control: PathBuf,
    config: PathBuf,
    title: String,
    files: Vec<(PathBuf, &'static str)>,
}

impl ClientDaemon {
    /// Writes its configuration, starts it in `host` and waits until its status can be had.
    #[track_caller]
    pub fn start(
        lab: &Lab,
        host: &Namespace,
        (title, keys): (&str, &Keys),
        server_key: &str,
        settings: &Settings,
    ) -> Self {
        let directory = lab.directory();
        let control = directory.join(format!("{title}.sock"));
        let family = settings.link_family.unwrap_or(Family::V4);
        let mut sections = Sections::new();
        set(
            &mut sections,
            "identity",
            "private_key_file",
            &quoted(&keys.file),
        );
        set(
            &mut sections,
            "server",
            "address",
            &format!("[\"{}\"]", lab.server_address(family)),
        );
        set(
            &mut sections,
            "server",
            "public_key",
            &format!("\"{server_key}\""),
        );
        set(&mut sections, "tun", "name", &format!("\"{TUN}\""));
        set(
            &mut sections,
            "tun",
            "addresses",
            "[\"10.111.0.2/32\", \"fd11::2/128\"]",
        );
        set(&mut sections, "control", "socket", &quoted(&control));
        let spool = quoted(&directory.join(format!("{title}-spool")));
        set(&mut sections, "spool", "directory", &spool);
        overlay(&mut sections, &settings.client);
        let config = write_config(directory, title, &toml(&sections));
        let files = settings.client_files.clone();
        let mut command = run_client(&config, &files);
        let process = Process::start(host, directory, title, &mut command);
        let mut daemon = Self {
            process,
            control,
            config,
            title: title.to_owned(),
            files,
        };
        daemon.wait_until_serving();
        daemon
    }

    /// Starts it again after it was killed or has ended.
    #[track_caller]
    pub fn start_again(&mut self, lab: &Lab) {
        let mut command = run_client(&self.config, &self.files);
        self.process = Process::start(&lab.client, lab.directory(), &self.title, &mut command);
        self.wait_until_serving();
    }

    /// What `status --json` says.
    ///
    /// # Errors
    /// What the command wrote to stderr, or what is wrong with its answer.
    pub fn try_status(&self) -> Result<Status, String> {
        let text = ask("tund-client", &["status", "--json"], &self.control)?;
        serde_json::from_str(&text).map_err(|cause| format!("{cause}: {text}"))
    }

    /// What `status --json` says; panics when it says nothing.
    #[track_caller]
    pub fn status(&self) -> Status {
        self.try_status()
            .unwrap_or_else(|failure| panic!("status of {}: {failure}", self.title))
    }

    /// Runs another subcommand on its control socket.
    ///
    /// # Errors
    /// What the command wrote to stderr.
    pub fn command(&self, arguments: &[&str]) -> Result<String, String> {
        ask("tund-client", arguments, &self.control)
    }

    /// Waits until `status` says `state`.
    #[track_caller]
    pub fn wait_for(&self, state: &str, limit: Duration) -> Status {
        let mut last = None;
        wait::until(
            &format!("status of {} says {state}", self.title),
            limit,
            || {
                let status = self.status();
                if last.as_ref() != Some(&status.state) {
                    super::narrate(&self.title, &format!("status: {}", status.state));
                    last = Some(status.state.clone());
                }
                (status.state == state).then_some(status)
            },
        )
    }

    /// Waits until `status` says attached.
    #[track_caller]
    pub fn wait_attached(&self, limit: Duration) -> Status {
        self.wait_for("attached", limit)
    }

    /// The file that it was started with.
    pub fn config(&self) -> &Path {
        &self.config
    }

    fn wait_until_serving(&mut self) {
        wait::until_true(
            "the client daemon answers on its control socket",
            START_LIMIT,
            || {
                assert!(
                    self.process.is_running(),
                    "tund-client ended: {}",
                    self.process.log()
                );
                self.try_status().is_ok()
            },
        );
    }
}

/// Both daemons of a lab, with the origin's addresses steered into the TUN.
#[derive(Debug)]
pub struct Tund {
    /// In the lab's client.
    pub client: ClientDaemon,
    /// In the lab's server.
    pub server: ServerDaemon,
    /// The client's key.
    pub client_keys: Keys,
    /// The server's key.
    pub server_keys: Keys,
}

impl Tund {
    /// Makes keys, starts both daemons and steers the origin through them, unless they do it.
    #[track_caller]
    pub fn start(lab: &Lab, settings: &Settings) -> Self {
        let client_keys = Keys::generate(lab.directory(), "client");
        let server_keys = Keys::generate(lab.directory(), "server");
        let server = ServerDaemon::start(
            &lab.server,
            lab.directory(),
            ("server", &server_keys),
            &[("client", &client_keys)],
            settings,
        );
        let client = ClientDaemon::start(
            lab,
            &lab.client,
            ("client", &client_keys),
            &server_keys.public,
            settings,
        );
        if !settings.has_auto_routes() {
            steer(lab);
        }
        Self {
            client,
            server,
            client_keys,
            server_keys,
        }
    }
}

/// Steers both of the origin's addresses that applications use into the TUN, as a user does.
pub fn steer(lab: &Lab) {
    let mut lines = Vec::new();
    for family in [Family::V4, Family::V6] {
        for origin in [
            lab.origin_address(family, 0),
            lab.hidden_origin_address(family, 0),
        ] {
            lines.push(format!("route replace {} dev {TUN}", origin.ip()));
        }
    }
    lab.client.ip_batch(&lines);
}

fn ask(name: &str, arguments: &[&str], control: &Path) -> Result<String, String> {
    let output = Command::new(program(name))
        .args(arguments)
        .arg("--control")
        .arg(control)
        .output()
        .map_err(|cause| format!("ran {name} {arguments:?}: {cause}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let error = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "{name} {arguments:?} ended with {}: {}",
            output.status,
            error.trim()
        ))
    }
}

#[track_caller]
fn run(name: &str, config: &Path) -> Command {
    let mut command = Command::new(program(name));
    command.arg("run").arg("--config").arg(config);
    command
}

/// The server daemon, as root or with a capability less.
#[track_caller]
fn run_server(config: &Path, is_without_raw_sockets: bool) -> Command {
    let plain = run("tund-server", config);
    if !is_without_raw_sockets {
        return plain;
    }
    let mut command = Command::new("setpriv");
    command.arg("--bounding-set=-net_raw");
    command.arg(plain.get_program()).args(plain.get_args());
    command
}

/// The client daemon, with files of its own in the place of this host's.
#[track_caller]
fn run_client(config: &Path, files: &[(PathBuf, &str)]) -> Command {
    let plain = run("tund-client", config);
    files
        .iter()
        .fold(plain, |command, (file, of)| in_place(command, file, of))
}

/// The same with `file` in the place of another.
fn in_place(plain: Command, file: &Path, of: &str) -> Command {
    let mut command = Command::new("unshare");
    let script = format!("mount --bind \"$0\" {of} && exec \"$@\"");
    command.args(["--mount", "sh", "-c", &script]).arg(file);
    command.arg(plain.get_program()).args(plain.get_args());
    command
}

#[track_caller]
fn write_config(directory: &Path, title: &str, text: &str) -> PathBuf {
    let path = directory.join(format!("{title}.toml"));
    fs::write(&path, text).unwrap_or_else(|cause| panic!("wrote {}: {cause}", path.display()));
    path
}
