//! One test per kind of mistake: file, line, key and remedy are named.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// A directory with a key file, and a client's public key.
struct Stage {
    directory: tempfile::TempDir,
    client_key: PublicKey,
    own_key: PublicKey,
}

fn key() -> PublicKey {
    PrivateKey::generate().expect("a key").public()
}

fn stage() -> Stage {
    let directory = tempfile::tempdir().expect("temporary directory");
    let own = PrivateKey::generate().expect("a key");
    own.save(&directory.path().join("server.key"), false)
        .expect("saved");
    Stage {
        directory,
        client_key: key(),
        own_key: own.public(),
    }
}

impl Stage {
    /// What is required, on lines 1 to 5, the client last: keys may follow in its section.
    fn minimum(&self) -> String {
        format!(
            "[identity]\nprivate_key_file = \"{}\"\n[[client]]\nname = \"phone\"\n\
             public_key = \"{}\"\n",
            self.directory.path().join("server.key").display(),
            self.client_key
        )
    }

    fn write(&self, text: &str) -> PathBuf {
        let file = self.directory.path().join("server.toml");
        fs::write(&file, text).expect("written");
        file
    }

    fn load(&self, text: &str) -> Result<Loaded<Config>, Mistakes> {
        load(&self.write(text))
    }

    fn mistakes(&self, text: &str) -> Vec<String> {
        let Err(Mistakes(mistakes)) = self.load(text) else {
            panic!("no mistake in:\n{text}");
        };
        self.short(&mistakes)
    }

    fn short(&self, all: &[tund_daemon::config::Mistake]) -> Vec<String> {
        let directory = format!("{}/", self.directory.path().display());
        all.iter()
            .map(|mistake| mistake.to_string().replace(&directory, ""))
            .collect()
    }

    /// Asserts that the minimum followed by `text` has one mistake, in this line, with these words.
    fn one(&self, text: &str, line: usize, key: &str, words: &[&str]) {
        let mistakes = self.mistakes(&(self.minimum() + text));
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        let start = format!("server.toml:{line}: {key}: ");
        assert!(
            mistakes[0].starts_with(&start),
            "{} does not start with {start}",
            mistakes[0]
        );
        for word in words {
            assert!(
                mistakes[0].contains(word),
                "{} does not say {word}",
                mistakes[0]
            );
        }
    }
}

#[test]
fn the_minimum_gets_every_default_of_the_interface() {
    let stage = stage();

    let Ok(Loaded { config, warnings }) = stage.load(&stage.minimum()) else {
        panic!("the minimum is not enough");
    };

    assert_eq!(warnings, []);
    assert_eq!(config.private_key.public(), stage.own_key);
    assert_eq!(config.listen, ["[::]:443".parse().expect("an address")]);
    assert_eq!(config.max_grace, Duration::from_secs(86_400));
    assert_eq!(config.buffer_bytes, 64 << 20);
    assert_eq!(config.max_sessions, 10_000);
    assert_eq!(config.max_flows_per_session, 65_536);
    assert_eq!(config.memory_bytes, value::memory_share(25));
    assert_eq!(config.origin_allow, []);
    assert_eq!(config.origin_deny, []);
    assert_eq!(config.connect_timeout, Duration::from_secs(30));
    assert_eq!(config.proxy_protocol, []);
    assert_eq!(config.state_directory, Path::new("/var/lib/tund/server"));
    assert_eq!(config.retain, Duration::from_secs(31 * 86_400));
    assert_eq!(config.control_socket, Path::new("/run/tund/server.sock"));
    assert_eq!(config.log_level, LogLevel::Info);
    let phone = Client {
        name: "phone".to_owned(),
        public_keys: vec![stage.client_key],
        allow: Vec::new(),
    };
    assert_eq!(config.clients, [phone]);
}

#[test]
fn what_is_written_is_taken_over() {
    let stage = stage();
    let (second, third) = (key(), key());
    let text = stage.minimum()
        + &format!(
            "allow = [\"10.0.0.5:22\"]\n[[client]]\nname = \"laptop\"\n\
             public_key = [\"{second}\", \"{third}\"]\n\
             [listen]\naddress = [\"0.0.0.0:8443\", \"[::1]:8443\"]\n\
             [session]\nmax_grace = \"2h\"\nbuffer = \"1MiB\"\nmax_sessions = 5\n\
             max_flows_per_session = 7\n[limits]\nmemory = \"1GiB\"\n\
             [origin]\nallow = [\"10.0.0.0/8\", \"[fd00::/8]:443\"]\ndeny = [\"192.0.2.0/24\"]\n\
             connect_timeout = \"5s\"\n[log]\nlevel = \"warn\"\n"
        );

    let Ok(Loaded { config, warnings }) = stage.load(&text) else {
        panic!("refused");
    };

    assert_eq!(warnings, []);
    assert_eq!(config.clients.len(), 2);
    assert_eq!(
        config.clients[0].allow,
        ["10.0.0.5:22".parse().expect("a rule")]
    );
    assert_eq!(config.clients[1].public_keys, [second, third]);
    assert_eq!(config.listen.len(), 2);
    assert_eq!(config.max_grace, Duration::from_secs(7200));
    assert_eq!(config.max_sessions, 5);
    assert_eq!(config.max_flows_per_session, 7);
    assert_eq!(config.memory_bytes, 1 << 30);
    assert_eq!(config.origin_allow.len(), 2);
    assert_eq!(
        config.origin_deny,
        ["192.0.2.0/24".parse().expect("a rule")]
    );
    assert_eq!(config.connect_timeout, Duration::from_secs(5));
    assert_eq!(config.log_level, LogLevel::Warn);
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    let stage = stage();
    stage.one("alow = []\n", 6, "client.alow", &["`allow`"]);
    stage.one(
        "[listen]\nadress = []\n",
        7,
        "listen.adress",
        &["`address`"],
    );
    stage.one("[orgin]\nallow = []\n", 6, "orgin", &["`origin`"]);
}

#[test]
fn a_bad_public_key_is_told_from_a_good_one() {
    let stage = stage();
    let text = stage
        .minimum()
        .replace(&stage.client_key.to_string(), "phone's key");

    let mistakes = stage.mistakes(&text);

    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert!(
        mistakes[0].starts_with("server.toml:5: client.public_key: "),
        "{mistakes:?}"
    );
    assert!(
        mistakes[0].contains("44 characters of base64"),
        "{mistakes:?}"
    );
}

#[test]
fn a_key_file_that_is_missing_or_open_to_others_is_refused() {
    let stage = stage();
    let missing = stage.mistakes(&stage.minimum().replace("server.key", "other.key"));
    assert!(
        missing[0].starts_with("server.toml:2: identity.private_key_file: private key file other"),
        "{missing:?}"
    );
    assert!(missing[0].contains("keygen --out"), "{missing:?}");

    let file = stage.directory.path().join("server.key");
    fs::set_permissions(file, fs::Permissions::from_mode(0o640)).expect("changed");
    let open = stage.mistakes(&stage.minimum());
    assert!(
        open[0].starts_with("server.toml:2: identity.private_key_file: "),
        "{open:?}"
    );
    assert!(
        open[0].contains("0640") && open[0].contains("chmod 600"),
        "{open:?}"
    );
}

#[test]
fn a_server_without_clients_is_useless() {
    let stage = stage();
    let text = stage
        .minimum()
        .lines()
        .take(2)
        .map(|line| line.to_owned() + "\n")
        .collect::<String>();

    let mistakes = stage.mistakes(&text);

    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert!(mistakes[0].contains(": client: is missing"), "{mistakes:?}");
    assert!(
        mistakes[0].contains("tund-client pubkey FILE"),
        "{mistakes:?}"
    );
}

#[test]
fn two_clients_share_neither_name_nor_key() {
    let stage = stage();
    let client = |name: &str, key: PublicKey| {
        format!("[[client]]\nname = \"{name}\"\npublic_key = \"{key}\"\n")
    };
    stage.one(
        &client("phone", key()),
        7,
        "client.name",
        &["\"phone\"", "a name of its own"],
    );
    stage.one(
        &client("laptop", stage.client_key),
        8,
        "client.public_key",
        &["already", "keygen"],
    );
    stage.one(
        &client("laptop", stage.own_key),
        8,
        "client.public_key",
        &["server's own", "pubkey"],
    );
}

#[test]
fn a_client_needs_a_name_and_a_key() {
    let stage = stage();

    let mistakes = stage.mistakes(&(stage.minimum() + "[[client]]\n"));

    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    assert!(
        mistakes[0].starts_with("server.toml:6: client.name: is required"),
        "{mistakes:?}"
    );
    assert!(
        mistakes[1].starts_with("server.toml:6: client.public_key: is required"),
        "{mistakes:?}"
    );
    stage.one(
        &format!(
            "[[client]]\nname = \"my phone\"\npublic_key = \"{}\"\n",
            key()
        ),
        7,
        "client.name",
        &["\"my phone\"", "without spaces"],
    );
}

/// What follows the minimum, the key in question, and words of the message.
const BAD_VALUES: &[(&str, &str, [&str; 2])] = &[
    (
        "[listen]\naddress = [\"443\"]\n",
        "listen.address",
        ["\"443\"", "\"[::]:443\""],
    ),
    (
        "[listen]\naddress = [\"[::]:0\"]\n",
        "listen.address",
        ["port 0", "from 1 to 65535"],
    ),
    (
        "[listen]\naddress = []\n",
        "listen.address",
        ["empty list", "at least one"],
    ),
    (
        "[session]\nmax_grace = 600\n",
        "session.max_grace",
        ["the number 600", "\"10m\""],
    ),
    (
        "[session]\nmax_sessions = 0\n",
        "session.max_sessions",
        ["the number 0", "from 1 to"],
    ),
    (
        "[limits]\nmemory = \"0%\"\n",
        "limits.memory",
        ["\"0%\"", "\"100%\""],
    ),
    (
        "[origin]\nallow = [\"10.0.0.0/33\"]\n",
        "origin.allow",
        ["10.0.0.0/33", "10.0.0.0/8"],
    ),
    (
        "[origin]\nallow = [\"10.0.0.5/8\"]\n",
        "origin.allow",
        ["10.0.0.5/8", "\"10.0.0.0/8\""],
    ),
    (
        "[origin]\ndeny = [\"example.org\"]\n",
        "origin.deny",
        ["example.org", "10.0.0.9"],
    ),
    (
        "[origin]\nallow = [\"224.0.0.0/8\"]\n",
        "origin.allow",
        ["never allowed", "remove it"],
    ),
    (
        "[origin]\nallow = [\"0.0.0.0\"]\n",
        "origin.allow",
        ["never allowed", "remove it"],
    ),
    (
        "[origin]\nallow = [\"[::]:80\"]\n",
        "origin.allow",
        ["never allowed", "remove it"],
    ),
    (
        "[state]\ndirectory = \"x\"\n",
        "state.directory",
        ["\"x\"", "from / on"],
    ),
    (
        "[metrics]\nlisten = 9464\n",
        "metrics.listen",
        ["9464", "127.0.0.1:9464"],
    ),
];

#[test]
fn every_kind_of_bad_value_is_told_in_its_line() {
    let stage = stage();
    for (text, key, words) in BAD_VALUES {
        stage.one(text, 7, key, words);
    }
}

#[test]
fn every_bad_entry_of_a_list_is_told_in_its_line() {
    let stage = stage();
    let text = "[origin]\nallow = [\n  \"10.0.0.0/33\",\n  \"10.0.0.0/8\",\n  \"224.0.0.1\",\n]\n";

    let mistakes = stage.mistakes(&(stage.minimum() + text));

    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    assert!(
        mistakes[0].starts_with("server.toml:8: origin.allow: "),
        "{mistakes:?}"
    );
    assert!(
        mistakes[1].starts_with("server.toml:10: origin.allow: "),
        "{mistakes:?}"
    );
}

#[test]
fn what_is_not_built_is_never_promised() {
    let stage = stage();
    stage.one(
        "[metrics]\nlisten = \"127.0.0.1:9464\"\n",
        7,
        "metrics.listen",
        &["is not built in this version", "write listen = \"\""],
    );
}

#[test]
fn what_has_no_effect_is_a_warning() {
    let stage = stage();
    for (text, line, key) in [
        ("[origin]\nallow = [\"0.0.0.0/0\"]\n", 7, "origin.allow"),
        ("allow = [\"[::/0]:443\"]\n", 6, "client.allow"),
        ("[limits]\nmemory = \"32MiB\"\n", 7, "limits.memory"),
    ] {
        let loaded = stage.load(&(stage.minimum() + text));
        let warnings = stage.short(
            &loaded
                .unwrap_or_else(|mistakes| panic!("{mistakes}"))
                .warnings,
        );
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0].starts_with(&format!("server.toml:{line}: {key}: ")),
            "{warnings:?}"
        );
    }
}

#[test]
fn the_manual_names_every_key_in_its_section() {
    let manual = include_str!("../../../docs/man/tund-server.toml.5").replace('\\', "");
    let text = "[[policy]]\n[[client]]\n";
    for (section, key) in tund_daemon::config::known_keys(text, build) {
        let heading = format!(".SS \"[{section}]\"");
        let Some((_, rest)) = manual.split_once(&heading) else {
            panic!("no section {heading}");
        };
        let here = rest.split(".SS").next().unwrap_or("");
        assert!(here.contains(&format!(".B {key}\n")), "{section}.{key}");
    }
}
