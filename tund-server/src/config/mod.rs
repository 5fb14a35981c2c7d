//! The server's configuration: every key, its default and its bounds; past here nothing is checked.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tund_daemon::config::{Loaded, Mistakes, Section, value};
use tund_daemon::identity::{PrivateKey, PublicKey};
use tund_daemon::telemetry::LogLevel;
use tund_server_core::admission::Rule;
use tund_server_core::registry::REMEMBERED_FOR;

mod client;
mod origin;

pub(crate) use client::Client;

/// Where commands look for the daemon unless told otherwise.
pub(crate) const CONTROL_SOCKET: &str = "/run/tund/server.sock";

const HOUR: Duration = Duration::from_secs(3600);

/// The longest grace: chosen; a month outlasts any journey.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// The longest time that ends of sessions are remembered: chosen.
const RETAIN_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// All of `server.toml`. The key file has been read, percentages have been worked out.
pub(crate) struct Config {
    /// Of `[identity]`.
    pub(crate) private_key: PrivateKey,
    /// At least one; an IPv6 wildcard takes IPv4 too.
    pub(crate) listen: Vec<SocketAddr>,
    /// The client's wish is capped by this.
    pub(crate) max_grace: Duration,
    /// Unacknowledged bytes per session and direction.
    pub(crate) buffer_bytes: u64,
    /// More are refused.
    pub(crate) max_sessions: usize,
    /// More are refused.
    pub(crate) max_flows_per_session: u64,
    /// The buffers of all sessions together.
    pub(crate) memory_bytes: u64,
    /// Opens what is denied by default.
    pub(crate) origin_allow: Vec<Rule>,
    /// Adds to what is denied by default, and wins over `origin_allow`.
    pub(crate) origin_deny: Vec<Rule>,
    /// Origins that get a PROXY protocol header.
    pub(crate) proxy_protocol: Vec<Rule>,
    /// How long the connect to an origin may take.
    pub(crate) connect_timeout: Duration,
    /// At least one; names and keys are each used once.
    pub(crate) clients: Vec<Client>,
    /// What outlives a restart.
    pub(crate) state_directory: PathBuf,
    /// How long the end of a session is remembered, and how far a stored stream was delivered.
    pub(crate) retain: Duration,
    /// The control socket.
    pub(crate) control_socket: PathBuf,
    /// `RUST_LOG` wins over it.
    pub(crate) log_level: LogLevel,
}

/// Reads and checks the file, and the key file that it names.
///
/// # Errors
///
/// Everything that is wrong with it.
pub(crate) fn load(file: &Path) -> Result<Loaded<Config>, Mistakes> {
    tund_daemon::config::load(file, build)
}

fn build(root: &mut Section<'_>) -> Option<Config> {
    let private_key = root.table("identity", private_key);
    let listen = root.table("listen", listen);
    let session = root.table("session", session);
    let memory_bytes = root.table("limits", |section| memory(section, session.buffer_bytes));
    let origin = root.table("origin", origin::origin);
    let clients = client::clients(root, private_key.as_ref().map(PrivateKey::public));
    let state = root.table("state", state);
    let control_socket = root.table("control", |section| {
        section.or("socket", CONTROL_SOCKET.into(), value::socket_path)
    });
    root.table("metrics", metrics);
    let log_level = root.table("log", |section| {
        section.or("level", LogLevel::Info, value::choice(&LogLevel::CHOICES))
    });
    Some(Config {
        private_key: private_key?,
        listen,
        max_grace: session.max_grace,
        buffer_bytes: session.buffer_bytes,
        max_sessions: session.max_sessions,
        max_flows_per_session: session.max_flows_per_session,
        memory_bytes,
        origin_allow: origin.allow,
        origin_deny: origin.deny,
        proxy_protocol: origin.proxy_protocol,
        connect_timeout: origin.connect_timeout,
        clients,
        state_directory: state.directory,
        retain: state.retain,
        control_socket,
        log_level,
    })
}

fn private_key(section: &mut Section<'_>) -> Option<PrivateKey> {
    let remedy = "make a key with `tund-server keygen --out /etc/tund/server.key` and add \
                  private_key_file = \"/etc/tund/server.key\" to [identity]";
    section
        .required("private_key_file", remedy, value::private_key)
        .map(|(_, key)| key)
}

fn listen(section: &mut Section<'_>) -> Vec<SocketAddr> {
    let default = vec![SocketAddr::from((Ipv6Addr::UNSPECIFIED, 443))];
    let addresses = section.or(
        "address",
        default,
        value::one_or_list(64, value::socket_address),
    );
    if addresses.iter().any(|address| address.port() == 0) {
        section.reject(
            "address",
            "found port 0, which no client could know",
            "write a port from 1 to 65535, like \"[::]:443\"",
        );
    }
    addresses
}

/// `[session]`.
struct Session {
    max_grace: Duration,
    buffer_bytes: u64,
    max_sessions: usize,
    max_flows_per_session: u64,
}

fn session(section: &mut Section<'_>) -> Session {
    let max_sessions = section.or("max_sessions", 10_000, value::integer(1..=1_000_000));
    let max_flows_per_session =
        section.or("max_flows_per_session", 65_536, value::integer(1..=1 << 20));
    Session {
        max_grace: section.or(
            "max_grace",
            24 * HOUR,
            value::duration(Duration::ZERO..=LONGEST),
        ),
        buffer_bytes: section.or("buffer", 64 << 20, value::size(64 << 10..=64 << 30)),
        max_sessions: usize::try_from(max_sessions).unwrap_or(usize::MAX),
        max_flows_per_session,
    }
}

fn memory(section: &mut Section<'_>, buffer_bytes: u64) -> u64 {
    let memory_bytes = section.or(
        "memory",
        value::memory_share(25),
        value::memory(16 << 20..=1 << 50),
    );
    if section.has("memory") && memory_bytes < buffer_bytes {
        section.warn(
            "memory",
            "is less than [session] buffer, and is reached first",
            "raise it, or lower [session] buffer",
        );
    }
    memory_bytes
}

/// `[state]`.
struct State {
    directory: PathBuf,
    retain: Duration,
}

fn state(section: &mut Section<'_>) -> State {
    State {
        directory: section.or("directory", "/var/lib/tund/server".into(), value::path),
        retain: section.or("retain", REMEMBERED_FOR, value::duration(HOUR..=RETAIN_MAX)),
    }
}

fn metrics(section: &mut Section<'_>) {
    let listen = section.optional("listen", value::optional_socket_address);
    if listen.flatten().is_some() {
        section.reject(
            "listen",
            "serving metrics is not built in this version",
            "write listen = \"\", and read `tund-server status --json`",
        );
    }
}

/// Up to `max` destinations.
fn rules(max: usize) -> impl Fn(&value::Value<'_>) -> value::Parsed<Vec<Rule>> {
    value::list(max, value::from_text::<Rule>("a destination"))
}

fn keys(value: &value::Value<'_>) -> value::Parsed<Vec<PublicKey>> {
    value::one_or_list(8, value::from_text::<PublicKey>("a public key"))(value)
}

#[cfg(test)]
mod tests;
