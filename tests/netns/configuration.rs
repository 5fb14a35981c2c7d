//! Mistakes in a configuration end with 78, name file, line, key and remedy; missing privilege
//! ends with 77.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};

use tund_tests::lab::{Keys, program};

fn check(name: &str, config: &Path) -> Output {
    Command::new(program(name))
        .arg("check")
        .arg("--config")
        .arg(config)
        .output()
        .unwrap()
}

/// Right configurations of both daemons, for mistakes to be made in.
struct Desk {
    directory: tempfile::TempDir,
    client: String,
    server: String,
}

fn desk() -> Desk {
    let directory = tempfile::tempdir().unwrap();
    let client = Keys::generate(directory.path(), "client");
    let server = Keys::generate(directory.path(), "server");
    Desk {
        client: format!(
            "[identity]\nprivate_key_file = \"{}\"\n\n[server]\naddress = [\"192.0.2.1:443\"]\n\
             public_key = \"{}\"\n\n[link]\ntransport = \"auto\"\n\n[session]\ngrace = \"10m\"\n",
            client.file.display(),
            server.public
        ),
        server: format!(
            "[identity]\nprivate_key_file = \"{}\"\n\n[origin]\nallow = [\"10.0.0.0/8\"]\n\n\
             [[client]]\nname = \"phone\"\npublic_key = \"{}\"\n",
            server.file.display(),
            client.public
        ),
        directory,
    }
}

impl Desk {
    #[track_caller]
    fn check(&self, name: &str, text: &str) -> Output {
        let path = self.directory.path().join("config.toml");
        fs::write(&path, text).unwrap();
        check(name, &path)
    }

    #[track_caller]
    fn assert_mistake(&self, name: &str, right: &str, (from, to): (&str, &str), named: &[&str]) {
        assert!(right.contains(from), "{from} is in the right configuration");
        let output = self.check(name, &right.replace(from, to));
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{from} -> {to}: {error}");
        for word in named {
            assert!(
                error.contains(word),
                "{from} -> {to}: no {word} in: {error}"
            );
        }
    }
}

#[test]
fn right_configurations_pass() {
    let desk = desk();

    for (name, text) in [("tund-client", &desk.client), ("tund-server", &desk.server)] {
        let output = desk.check(name, text);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn mistakes_of_the_client_are_named() {
    let desk = desk();
    let right = &desk.client;
    let key = right
        .lines()
        .find(|line| line.starts_with("public_key"))
        .unwrap();

    for (change, named) in [
        (
            ("grace =", "grase ="),
            ["config.toml", "12", "grase", "grace"],
        ),
        (
            (key, "public_key = \"no base64!\""),
            ["config.toml", "6", "public_key", "base64"],
        ),
        (
            ("\"auto\"", "\"quic\""),
            ["config.toml", "9", "transport", "tls"],
        ),
        (
            ("\"10m\"", "\"10 parsecs\""),
            ["config.toml", "12", "grace", "10m"],
        ),
    ] {
        desk.assert_mistake("tund-client", right, change, &named);
    }
}

#[test]
fn mistakes_of_the_server_are_named() {
    let desk = desk();

    desk.assert_mistake(
        "tund-server",
        &desk.server,
        ("10.0.0.0/8", "10.0.0.0/33"),
        &["config.toml", "5", "allow", "10.0.0.0/33"],
    );
    desk.assert_mistake(
        "tund-server",
        &desk.server,
        ("[[client]]", "[[clients]]"),
        &["config.toml", "clients", "client"],
    );
}

#[test]
fn a_missing_file_and_a_readable_key_are_named() {
    let desk = desk();
    let missing = desk.directory.path().join("nowhere.toml");
    let output = check("tund-client", &missing);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nowhere.toml"));

    let key = desk.directory.path().join("client.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let output = desk.check("tund-client", &desk.client);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{error}");
    assert!(
        error.contains("client.key") && error.contains("chmod"),
        "{error}"
    );
}

#[test]
fn a_missing_privilege_ends_with_77() {
    const NOBODY: u32 = 65534;
    let desk = desk();
    let path = desk.directory.path().join("config.toml");
    fs::write(&path, &desk.client).unwrap();
    let key = desk.directory.path().join("client.key");
    std::os::unix::fs::chown(&key, Some(NOBODY), Some(NOBODY)).unwrap();
    std::os::unix::fs::chown(desk.directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    // The program may lie where only root can go.
    let copy = desk.directory.path().join("tund-client");
    fs::copy(program("tund-client"), &copy).unwrap();

    let output = Command::new(copy)
        .args(["run", "--config"])
        .arg(&path)
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();

    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(77), "{error}");
    assert!(error.contains("CAP_NET_ADMIN"), "{error}");
}
