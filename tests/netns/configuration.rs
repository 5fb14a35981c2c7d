//! Mistakes in a configuration end with 78, name file, line, key and remedy; missing privilege
//! ends with 77.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
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

const NOBODY: u32 = 65534;

impl Desk {
    /// Has a user without any privilege call a daemon; its code, and what it says.
    fn as_nobody(&self, name: &str, command: &str, text: &str) -> (Option<i32>, String) {
        let path = self.directory.path().join("config.toml");
        fs::write(&path, text).unwrap();
        chown(self.directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        // The program may lie where only root can go.
        let copy = self.directory.path().join(name);
        fs::copy(program(name), &copy).unwrap();
        // In a network of its own: the host's may leave low ports to everybody.
        let output = Command::new("unshare")
            .args([
                "--net",
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
            ])
            .arg(copy)
            .args([command, "--config"])
            .arg(&path)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), error)
    }
}

#[test]
fn a_missing_privilege_ends_with_77_also_where_the_key_is_roots() {
    let desk = desk();
    for owner in [NOBODY, 0] {
        let key = desk.directory.path().join("client.key");
        chown(&key, Some(owner), Some(owner)).unwrap();

        let (code, error) = desk.as_nobody("tund-client", "run", &desk.client);

        assert_eq!(code, Some(77), "{error}");
        assert!(error.contains("CAP_NET_ADMIN"), "{error}");
        assert!(error.contains("sudo"), "{error}");
    }
}

#[test]
fn a_server_without_the_privilege_for_its_port_ends_with_77() {
    let desk = desk();
    let key = desk.directory.path().join("server.key");
    chown(&key, Some(NOBODY), Some(NOBODY)).unwrap();
    let socket = desk.directory.path().join("server.sock");
    let control = format!("\n[control]\nsocket = \"{}\"\n", socket.display());

    let (code, error) = desk.as_nobody("tund-server", "run", &(desk.server.clone() + &control));

    assert_eq!(code, Some(77), "{error}");
    assert!(error.contains("CAP_NET_BIND_SERVICE"), "{error}");
}

#[test]
fn a_key_of_another_user_is_not_taken_for_a_missing_one() {
    let desk = desk();
    for (name, text) in [("tund-client", &desk.client), ("tund-server", &desk.server)] {
        let (code, error) = desk.as_nobody(name, "check", text);

        assert_eq!(code, Some(78), "{error}");
        assert!(
            error.contains("config.toml:2: identity.private_key_file"),
            "{error}"
        );
        assert!(
            error.contains("sudo") && !error.contains("keygen"),
            "{error}"
        );
    }
}
