//! One test per kind of mistake: file, line, key and remedy are named.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// A directory with a key file, and the server's public key.
pub(super) struct Stage {
    directory: tempfile::TempDir,
    server_key: PublicKey,
    own_key: PublicKey,
}

pub(super) fn stage() -> Stage {
    let directory = tempfile::tempdir().expect("temporary directory");
    let own = PrivateKey::generate().expect("a key");
    own.save(&directory.path().join("client.key"), false)
        .expect("saved");
    let server_key = PrivateKey::generate().expect("a key").public();
    Stage {
        directory,
        server_key,
        own_key: own.public(),
    }
}

impl Stage {
    /// What is required, on lines 1 to 5.
    pub(super) fn minimum(&self) -> String {
        format!(
            "[identity]\nprivate_key_file = \"{}\"\n[server]\naddress = [\"203.0.113.7:443\"]\n\
             public_key = \"{}\"\n",
            self.directory.path().join("client.key").display(),
            self.server_key
        )
    }

    fn write(&self, text: &str) -> PathBuf {
        let file = self.directory.path().join("client.toml");
        fs::write(&file, text).expect("written");
        file
    }

    fn load(&self, text: &str) -> Result<Loaded<Config>, Mistakes> {
        load(&self.write(text))
    }

    /// What `text` without a mistake says.
    pub(super) fn config(&self, text: &str) -> Config {
        let loaded = self.load(text);
        loaded
            .unwrap_or_else(|mistakes| panic!("{mistakes}"))
            .config
    }

    /// The mistakes in `text`, without the directory.
    fn mistakes(&self, text: &str) -> Vec<String> {
        let Err(Mistakes(mistakes)) = self.load(text) else {
            panic!("no mistake in:\n{text}");
        };
        self.short(&mistakes)
    }

    /// The warnings about the minimum followed by `text`.
    pub(super) fn warnings(&self, text: &str) -> Vec<String> {
        let loaded = self.load(&(self.minimum() + text));
        self.short(
            &loaded
                .unwrap_or_else(|mistakes| panic!("{mistakes}"))
                .warnings,
        )
    }

    fn short(&self, all: &[tund_daemon::config::Mistake]) -> Vec<String> {
        let directory = format!("{}/", self.directory.path().display());
        all.iter()
            .map(|mistake| mistake.to_string().replace(&directory, ""))
            .collect()
    }

    /// Asserts that the minimum followed by `text` has one mistake, in this line, with these words.
    pub(super) fn one(&self, text: &str, line: usize, key: &str, words: &[&str]) {
        let mistakes = self.mistakes(&(self.minimum() + text));
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        let start = format!("client.toml:{line}: {key}: ");
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
    assert_eq!(
        config.server_addresses,
        ["203.0.113.7:443".parse().expect("an endpoint")]
    );
    assert_eq!(config.server_keys, [stage.server_key]);
    assert_eq!(config.connect, Connect::OnDemand);
    assert_eq!(config.linger, Duration::from_secs(300));
    assert_eq!(config.fwmark, 0x7d00_0000);
    assert_eq!(config.tun_name, "tund0");
    assert_eq!(config.tun_addresses, [(IpAddr::from([10, 111, 0, 2]), 32)]);
    assert_eq!(config.tun_mtu, None);
    assert!(!config.accept_forwarded);
    assert_eq!(config.grace, Duration::from_secs(600));
    assert_eq!(config.connect_during_outage, ConnectDuringOutage::Hold);
    assert_eq!(config.buffer_bytes, 64 << 20);
    assert_eq!(config.control_socket, Path::new("/run/tund/client.sock"));
    assert_eq!(config.log_level, LogLevel::Info);
    assert_eq!(config.metered, ["ww*", "ppp*", "rmnet*"]);
    assert!(config.standby);
}

#[test]
fn what_is_written_is_taken_over() {
    let stage = stage();
    let text = stage.minimum()
        + "[link]\ntransport = \"tls\"\nconnect = \"always\"\nlinger = \"0s\"\n\
           interfaces = [\"wlan0\", \"wwan0\"]\nfwmark = 0x4d000000\n\
           standby = false\nmetered = [\"usb*\"]\n\
           [tun]\nname = \"tun7\"\naddresses = [\"10.7.0.1/24\", \"fd7d::1/64\"]\nmtu = 1400\n\
           accept_forwarded = true\n\
           [session]\ngrace = \"1h30m\"\nconnect_during_outage = \"refuse\"\nbuffer = \"1MiB\"\n\
           [limits]\nmemory = \"256MiB\"\n[control]\nsocket = \"/tmp/x.sock\"\n\
           [log]\nlevel = \"debug\"\n[metrics]\nlisten = \"\"\n";

    let Ok(Loaded { config, warnings }) = stage.load(&text) else {
        panic!("refused");
    };

    assert_eq!(warnings, []);
    assert_eq!(config.connect, Connect::Always);
    assert_eq!(config.linger, Duration::ZERO);
    assert_eq!(config.interfaces, ["wlan0", "wwan0"]);
    assert_eq!(config.metered, ["usb*"]);
    assert!(!config.standby);
    assert_eq!(config.fwmark, 0x4d00_0000);
    assert_eq!(config.tun_name, "tun7");
    assert_eq!(config.tun_addresses[0], (IpAddr::from([10, 7, 0, 1]), 24));
    assert_eq!(config.tun_mtu, Some(1400));
    assert!(config.accept_forwarded);
    assert_eq!(config.grace, Duration::from_secs(5400));
    assert_eq!(config.connect_during_outage, ConnectDuringOutage::Refuse);
    assert_eq!(config.buffer_bytes, 1 << 20);
    assert_eq!(config.control_socket, Path::new("/tmp/x.sock"));
    assert_eq!(config.log_level, LogLevel::Debug);
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    let stage = stage();
    stage.one(
        "[link]\ntransprot = \"tls\"\n",
        7,
        "link.transprot",
        &["`transport`"],
    );
    stage.one("[sesion]\ngrace = \"1m\"\n", 6, "sesion", &["`session`"]);
    stage.one(
        "[tun]\ngrace = \"1m\"\n",
        7,
        "tun.grace",
        &["belongs to [session]"],
    );
}

#[test]
fn a_bad_public_key_is_told_from_a_good_one() {
    let stage = stage();
    for (bad, word) in [
        ("not base64!", "base64"),
        ("AAAA", "32 bytes"),
        ("", "32 bytes"),
    ] {
        let text = stage.minimum().replace(&stage.server_key.to_string(), bad);
        let mistakes = stage.mistakes(&text);
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        assert!(
            mistakes[0].starts_with("client.toml:5: server.public_key: "),
            "{mistakes:?}"
        );
        assert!(mistakes[0].contains(word), "{mistakes:?}");
    }
}

#[test]
fn the_own_public_key_in_place_of_the_servers_is_noticed() {
    let stage = stage();
    let text = stage
        .minimum()
        .replace(&stage.server_key.to_string(), &stage.own_key.to_string());

    assert_eq!(
        stage.mistakes(&text),
        [
            "client.toml:5: server.public_key: this is the client's own public key; write the \
          server's: run `tund-server pubkey FILE` on the server"
        ]
    );
}

#[test]
fn a_missing_key_file_is_named_with_the_way_to_make_one() {
    let stage = stage();
    let text = stage.minimum().replace("client.key", "other.key");

    let mistakes = stage.mistakes(&text);

    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert!(
        mistakes[0]
            .starts_with("client.toml:2: identity.private_key_file: private key file other.key"),
        "{mistakes:?}"
    );
    assert!(mistakes[0].contains("No such file"), "{mistakes:?}");
    assert!(mistakes[0].contains("keygen --out"), "{mistakes:?}");
}

#[test]
fn a_key_file_that_others_can_read_is_refused() {
    let stage = stage();
    let key = stage.directory.path().join("client.key");
    fs::set_permissions(key, fs::Permissions::from_mode(0o644)).expect("changed");

    let mistakes = stage.mistakes(&stage.minimum());

    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert!(
        mistakes[0].starts_with("client.toml:2: identity.private_key_file: "),
        "{mistakes:?}"
    );
    assert!(
        mistakes[0].contains("0644") && mistakes[0].contains("chmod 600"),
        "{mistakes:?}"
    );
}

#[test]
fn everything_required_is_asked_for_at_once() {
    let mistakes = stage().mistakes("");

    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
    for (mistake, key) in mistakes.iter().zip([
        "identity.private_key_file",
        "server.address",
        "server.public_key",
    ]) {
        assert!(
            mistake.starts_with(&format!("client.toml:1: {key}: is required")),
            "{mistake}"
        );
    }
}

#[test]
fn an_address_without_a_port_is_completed() {
    let stage = stage();
    let text = stage.minimum().replace("203.0.113.7:443", "203.0.113.7");

    let mistakes = stage.mistakes(&text);

    assert!(
        mistakes[0].starts_with("client.toml:4: server.address: "),
        "{mistakes:?}"
    );
    assert!(
        mistakes[0].contains("add the port, like \"203.0.113.7:443\""),
        "{mistakes:?}"
    );
}

#[test]
fn an_empty_list_of_servers_is_no_list() {
    let stage = stage();
    let text = stage.minimum().replace("\"203.0.113.7:443\"", "");

    assert_eq!(
        stage.mistakes(&text),
        ["client.toml:4: server.address: found an empty list; write at least one item"]
    );
}

/// What follows the minimum, the key in question, and words of the message.
const BAD_VALUES: &[(&str, &str, [&str; 2])] = &[
    (
        "[session]\ngrace = \"10 min\"\n",
        "session.grace",
        ["\"10 min\"", "\"10m\""],
    ),
    (
        "[session]\ngrace = \"31d\"\n",
        "session.grace",
        ["not in range", "\"30d\""],
    ),
    (
        "[session]\nbuffer = 64\n",
        "session.buffer",
        ["the number 64", "\"64MiB\""],
    ),
    (
        "[session]\nbuffer = \"1KiB\"\n",
        "session.buffer",
        ["1KiB", "\"64KiB\""],
    ),
    (
        "[limits]\nmemory = \"120%\"\n",
        "limits.memory",
        ["\"120%\"", "\"100%\""],
    ),
    (
        "[limits]\nmemory = \"lots\"\n",
        "limits.memory",
        ["\"lots\"", "\"10%\""],
    ),
    (
        "[tun]\naddresses = [\"10.0.0.0/33\"]\n",
        "tun.addresses",
        ["/33", "from 0 to 32"],
    ),
    (
        "[tun]\naddresses = [\"127.0.0.1/8\"]\n",
        "tun.addresses",
        ["127.0.0.1/8", "your own"],
    ),
    (
        "[tun]\naddresses = []\n",
        "tun.addresses",
        ["empty list", "at least one"],
    ),
    (
        "[tun]\nname = \"a name\"\n",
        "tun.name",
        ["\"a name\"", "\"tund0\""],
    ),
    (
        "[tun]\nname = \"wg@7\"\n",
        "tun.name",
        ["\"wg@7\"", "\"tund0\""],
    ),
    (
        "[tun]\nname = \"-7\"\n",
        "tun.name",
        ["\"-7\"", "\"tund0\""],
    ),
    ("[tun]\nmtu = 576\n", "tun.mtu", ["576", "1280 to 65535"]),
    (
        "[tun]\naccept_forwarded = \"no\"\n",
        "tun.accept_forwarded",
        ["\"no\"", "true or false"],
    ),
    (
        "[link]\nconnect = \"allways\"\n",
        "link.connect",
        ["\"allways\"", "mean \"always\"?"],
    ),
    (
        "[link]\nfwmark = 0x7d000001\n",
        "link.fwmark",
        ["0x7d000001", "like 0x7d000000"],
    ),
    (
        "[routes]\ninclude = [\"10.0.0.5/8\"]\n",
        "routes.include",
        ["10.0.0.5/8", "10.0.0.0/8"],
    ),
    (
        "[routes]\nkill_switch = true\n",
        "routes.kill_switch",
        ["manual routes", "mode = \"auto\""],
    ),
    (
        "[control]\nsocket = \"x.sock\"\n",
        "control.socket",
        ["\"x.sock\"", "from / on"],
    ),
    (
        "[log]\nlevel = \"verbose\"\n",
        "log.level",
        ["\"verbose\"", "\"debug\""],
    ),
    (
        "[metrics]\nlisten = \"9464\"\n",
        "metrics.listen",
        ["\"9464\"", "127.0.0.1:9464"],
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
fn what_is_not_built_is_never_promised() {
    let stage = stage();
    for (text, key, remedy) in [
        (
            "[link]\ntransport = \"quic\"\n",
            "link.transport",
            "write transport = \"tls\" or \"auto\"",
        ),
        (
            "[metrics]\nlisten = \"127.0.0.1:9464\"\n",
            "metrics.listen",
            "write listen = \"\"",
        ),
    ] {
        stage.one(text, 7, key, &["is not built in this version", remedy]);
    }
}

#[test]
fn mappings_have_their_settings_and_bounds() {
    let stage = stage();
    let udp = |text: &str| stage.config(&(stage.minimum() + text)).udp;
    let defaults = Udp {
        idle: 5 * MINUTE,
        max_age: 2 * SECOND,
        filtering: Filtering::Address,
    };
    assert_eq!(udp(""), defaults);
    let set = "[udp]\nidle = \"10m\"\nmax_age = \"500ms\"\nfiltering = \"endpoint\"\n";
    let expected = Udp {
        idle: 10 * MINUTE,
        max_age: SECOND / 2,
        filtering: Filtering::Endpoint,
    };
    assert_eq!(udp(set), expected);
    for (text, key) in [
        ("[udp]\nidle = \"9s\"\n", "udp.idle"),
        ("[udp]\nmax_age = \"61s\"\n", "udp.max_age"),
        ("[udp]\nfiltering = \"none\"\n", "udp.filtering"),
    ] {
        stage.one(text, 7, key, &[]);
    }
}

#[test]
fn the_stub_has_an_address_of_its_own_that_packets_go_to() {
    let stage = stage();
    for (address, remedy) in [
        ("10.111.0.2", "choose another one that nothing else uses"),
        (
            "127.0.0.53",
            "choose a private address that nothing else uses",
        ),
        (
            "224.0.0.251",
            "choose a private address that nothing else uses",
        ),
    ] {
        let text = format!(
            "[tun]\naddresses = [\"10.111.0.2/32\"]\n[dns]\nmode = \"stub\"\naddress = \"{address}\"\n"
        );
        stage.one(&text, 10, "dns.address", &[remedy]);
    }
    assert_eq!(
        stage.warnings("[dns]\nmode = \"stub\"\n"),
        Vec::<String>::new()
    );
}

#[test]
fn what_has_no_effect_is_a_warning() {
    let stage = stage();
    for (text, key) in [
        ("[routes]\nlan = \"tund\"\n", "routes.lan"),
        ("[dns]\naddress = \"10.111.0.3\"\n", "dns.address"),
        ("[limits]\nmemory = \"32MiB\"\n", "limits.memory"),
    ] {
        let warnings = stage.warnings(text);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0].starts_with(&format!("client.toml:7: {key}: ")),
            "{warnings:?}"
        );
    }
}

#[test]
fn defaults_that_are_written_out_are_no_reason_to_warn() {
    let warnings = stage().warnings(
        "[link]\ntransport = \"auto\"\nstandby = true\n[routes]\nmode = \"manual\"\n\
         include = [\"0.0.0.0/0\", \"::/0\"]\nexclude = []\nlan = \"direct\"\n\
         kill_switch = false\n[dns]\nmode = \"off\"\naddress = \"10.111.0.1\"\n\
         [udp]\nidle = \"5m\"\nmax_age = \"2s\"\nfiltering = \"address\"\n\
         [spool]\ndirectory = \"/var/lib/tund/spool\"\nmax_bytes = \"256MiB\"\n\
         [metrics]\nlisten = \"\"\n",
    );

    assert_eq!(warnings, Vec::<String>::new());
}

#[test]
fn the_manual_names_every_key_in_its_section() {
    let manual = include_str!("../../../docs/man/tund-client.toml.5").replace('\\', "");
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
