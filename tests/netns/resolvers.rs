//! Whom the host asks for names: the stub while the daemon looks after routes, and afterwards, however
//! that ended, whom it asked before.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tund_tests::lab::{Lab, NameServer, Scene, Settings, wait};

use crate::support::{LONG, SOON};

/// The host's own name server, which is reached past tund alone.
const OWN: &str = "nameserver 10.77.4.3\nsearch lab.example\noptions timeout:1\n";
const KEPT: &str = "resolv.conf.before-tund0";

/// A `/etc` of the client's own.
struct Etc(tempfile::TempDir);

impl Etc {
    fn new() -> Self {
        let etc = Self(tempfile::tempdir().expect("a directory"));
        fs::write(etc.path("nsswitch.conf"), "hosts: files dns\n").expect("a file");
        fs::write(etc.path("hosts"), "127.0.0.1 localhost\n").expect("a file");
        fs::copy("/etc/passwd", etc.path("passwd")).expect("a file");
        fs::write(etc.path("resolv.conf"), OWN).expect("a file");
        etc
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn resolv_conf(&self) -> String {
        fs::read_to_string(self.path("resolv.conf")).unwrap_or_default()
    }

    fn leads_to_the_stub(&self) -> bool {
        let text = self.resolv_conf();
        let mut servers = text.lines().filter(|line| line.starts_with("nameserver"));
        servers.next() == Some("nameserver 10.111.0.1") && servers.next().is_none()
    }

    fn has_kept(&self) -> bool {
        self.path(KEPT).symlink_metadata().is_ok()
    }

    /// What a program of the client finds: the addresses of a name in the order of their use.
    fn find(&self, lab: &Lab, name: &str) -> Result<Vec<String>, String> {
        let mut command = Command::new("unshare");
        let script = "mount --bind \"$0\" /etc && exec getent ahosts \"$1\"";
        command.args(["--mount", "sh", "-c", script]);
        command.arg(self.0.path()).arg(name);
        let output = lab.client.enter(|| command.output()).expect("it is there");
        if !output.status.success() {
            return Err(format!("{output:?}"));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let addresses = text.lines().filter(|line| line.contains("STREAM"));
        let address = |line: &str| line.split_ascii_whitespace().next().map(str::to_owned);
        Ok(addresses.filter_map(address).collect())
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A lab whose server's name server knows `web.example`, and the client's own `server.example`.
struct Stage {
    scene: Scene,
    etc: Etc,
    own: NameServer,
    _server_files: tempfile::TempDir,
}

fn stage(title: &str, etc: Etc, settings: Settings) -> Stage {
    let server_files = tempfile::tempdir().expect("a directory");
    let file = server_files.path().join("resolv.conf");
    fs::write(&file, "nameserver 10.77.4.2\n").expect("a file");
    let lab = Lab::new(title);
    let web = [ip("198.51.100.7"), ip("2001:db8::7")];
    NameServer::start(&lab.origin, ip("10.77.4.2"), &[("web.example", &web)]);
    let server = [ip("10.77.3.2")];
    let own = NameServer::start(&lab.origin, ip("10.77.4.3"), &[("server.example", &server)]);
    let settings = settings
        .auto_routes()
        .client("dns", "mode", "\"stub\"")
        .client_etc(etc.0.path())
        .server_resolv_conf(&file);
    Stage {
        scene: Scene::within(lab, &settings),
        etc,
        own,
        _server_files: server_files,
    }
}

#[test]
fn the_host_asks_the_stub_until_the_daemon_ends() {
    let mut stage = stage("host names", Etc::new(), Settings::new());
    assert!(stage.etc.leads_to_the_stub(), "{}", stage.etc.resolv_conf());
    assert!(stage.etc.resolv_conf().contains("\nsearch lab.example\n"));
    let found = stage.etc.find(&stage.scene.lab, "web.example");
    let mut found = found.expect("the stub answers");
    found.sort();
    assert_eq!(found, ["198.51.100.7", "2001:db8::7"]);
    assert_eq!(stage.own.asked(), 0, "nobody else is asked");

    // As a DHCP client does.
    let others = "nameserver 10.77.2.1\n";
    fs::write(stage.etc.path("new"), others).expect("a file");
    fs::rename(stage.etc.path("new"), stage.etc.path("resolv.conf")).expect("it is replaced");
    wait::until_true("the stub is asked again", SOON, || {
        stage.etc.leads_to_the_stub()
    });
    fs::remove_file(stage.etc.path("resolv.conf")).expect("it was there");
    wait::until_true("the stub is asked again", SOON, || {
        stage.etc.leads_to_the_stub()
    });

    let status = stage.scene.tund.client.process.terminate(LONG);
    assert!(status.success(), "{status}");
    assert_eq!(stage.etc.resolv_conf(), others);
    assert!(!stage.etc.has_kept());
}

#[test]
fn the_server_is_found_by_name_though_the_stub_is_all_that_is_asked() {
    let settings = Settings::new().client("server", "address", "[\"server.example:443\"]");
    let mut stage = stage("server by name", Etc::new(), settings);
    let found = stage.etc.find(&stage.scene.lab, "web.example");
    found.expect("the stub answers");
    assert!(stage.own.asked() > 0, "the host's own name server knows it");

    stage.scene.tund.client.process.kill();
    assert!(stage.etc.leads_to_the_stub(), "a crash blocks");
    stage.scene.tund.client.start_again(&stage.scene.lab);
    // The server asks the killed daemon's session first whether it lives.
    wait::until_true("the stub answers again", LONG, || {
        stage.etc.find(&stage.scene.lab, "web.example").is_ok()
    });
}

#[test]
fn what_a_crash_left_is_undone_by_a_daemon_that_leaves_names_alone() {
    let etc = Etc::new();
    fs::rename(etc.path("resolv.conf"), etc.path("elsewhere")).expect("it is there");
    symlink("elsewhere", etc.path("resolv.conf")).expect("a link");
    let mut stage = stage("names after a crash", etc, Settings::new());
    assert!(stage.etc.leads_to_the_stub());
    stage.scene.tund.client.process.kill();

    let config = stage.scene.tund.client.config().to_owned();
    let text = fs::read_to_string(&config).expect("it was written");
    fs::write(&config, text.replace("\"stub\"", "\"off\"")).expect("a file");
    stage.scene.tund.client.start_again(&stage.scene.lab);

    assert_eq!(stage.etc.resolv_conf(), OWN);
    let leads_to = fs::read_link(stage.etc.path("resolv.conf")).expect("a link again");
    assert_eq!(leads_to, Path::new("elsewhere"));
    assert!(!stage.etc.has_kept());
}

/// RFC 6724 prefers IPv4 for a source address that is only locally unique.
#[test]
fn a_name_with_both_addresses_is_used_by_ipv6_as_without_tund() {
    let own = "[\"10.111.0.2/32\", \"2001:2::111:2/128\"]";
    let settings = Settings::new().client("tun", "addresses", own);
    let stage = stage("both addresses", Etc::new(), settings);
    let found = stage.etc.find(&stage.scene.lab, "web.example");
    assert_eq!(
        found.expect("the stub answers"),
        ["2001:db8::7", "198.51.100.7"]
    );
}

/// As scripts do that write it line by line.
#[test]
fn a_program_that_writes_the_file_in_place_loses_nothing_of_it() {
    let mut stage = stage("names in place", Etc::new(), Settings::new());
    let file = stage.etc.path("resolv.conf");
    fs::write(&file, "").expect("it is ours to write");
    let append = |line: &str| {
        let mut options = fs::OpenOptions::new();
        let mut open = options.append(true).open(&file).expect("it is there");
        open.write_all(line.as_bytes())
            .expect("it is ours to write");
    };
    append("search new.example\n");
    append("nameserver 10.77.2.1\n");
    wait::until_true("the stub is asked again", SOON, || {
        stage.etc.leads_to_the_stub()
    });
    append("nameserver 10.77.2.7\n");
    wait::until_true("the stub alone is asked", SOON, || {
        stage.etc.leads_to_the_stub()
    });

    let status = stage.scene.tund.client.process.terminate(LONG);
    assert!(status.success(), "{status}");
    let own = stage.etc.resolv_conf();
    assert_eq!(
        own,
        "search new.example\nnameserver 10.77.2.1\nnameserver 10.77.2.7\n"
    );
}
