//! Configuration files of the daemons, in the making.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Family;

/// A configuration file in the making: section → key → value as TOML.
pub(super) type Sections = BTreeMap<String, BTreeMap<String, String>>;

/// What is in both configuration files beyond what the lab itself decides.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub(super) client: Sections,
    pub(super) server: Sections,
    pub(super) link_family: Option<Family>,
    /// What the client finds in the place of files and directories of this host.
    pub(super) client_files: Vec<(PathBuf, &'static str)>,
    pub(super) is_without_raw_sockets: bool,
    pub(super) resolv_conf: Option<PathBuf>,
}

impl Settings {
    /// Everything as the daemons have it by default.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key of client.toml; `value` is TOML.
    #[must_use]
    pub fn client(mut self, section: &str, key: &str, value: &str) -> Self {
        set(&mut self.client, section, key, value);
        self
    }

    /// Sets a key of server.toml; `value` is TOML.
    #[must_use]
    pub fn server(mut self, section: &str, key: &str, value: &str) -> Self {
        set(&mut self.server, section, key, value);
        self
    }

    /// Sets how much each daemon keeps in each direction.
    #[must_use]
    pub fn buffer(self, size: &str) -> Self {
        let size = format!("\"{size}\"");
        self.client("session", "buffer", &size)
            .server("session", "buffer", &size)
    }

    /// Sets how long an outage may last.
    #[must_use]
    pub fn grace(self, length: &str) -> Self {
        self.client("session", "grace", &format!("\"{length}\""))
    }

    /// Has the client daemon look after routes itself.
    #[must_use]
    pub fn auto_routes(self) -> Self {
        self.client("routes", "mode", "\"auto\"")
    }

    pub(super) fn has_auto_routes(&self) -> bool {
        let routes = self.client.get("routes");
        routes.is_some_and(|keys| keys.get("mode").is_some_and(|mode| mode == "\"auto\""))
    }

    /// Has the client read `file` in place of `/etc/hosts`.
    #[must_use]
    pub fn hosts(mut self, file: &Path) -> Self {
        self.client_files.push((file.to_owned(), "/etc/hosts"));
        self
    }

    /// Has the client find `directory` in place of `/etc`.
    #[must_use]
    pub fn client_etc(mut self, directory: &Path) -> Self {
        self.client_files.push((directory.to_owned(), "/etc"));
        self
    }

    /// Has the server daemon lack CAP_NET_RAW, as a unit does.
    #[must_use]
    pub fn without_raw_sockets(mut self) -> Self {
        self.is_without_raw_sockets = true;
        self
    }

    /// Has the server daemon read `file` in place of `/etc/resolv.conf`.
    #[must_use]
    pub fn server_resolv_conf(mut self, file: &Path) -> Self {
        self.resolv_conf = Some(file.to_owned());
        self
    }

    /// Has links go over IPv6 (by default over IPv4).
    #[must_use]
    pub fn link_over(mut self, family: Family) -> Self {
        self.link_family = Some(family);
        self
    }
}

/// Sets one key.
pub(super) fn set(sections: &mut Sections, section: &str, key: &str, value: &str) {
    sections
        .entry(section.to_owned())
        .or_default()
        .insert(key.to_owned(), value.to_owned());
}

/// Lays the keys of `settings` over those that are there.
pub(super) fn overlay(sections: &mut Sections, settings: &Sections) {
    for (section, keys) in settings {
        for (key, value) in keys {
            set(sections, section, key, value);
        }
    }
}

/// The text of the file.
pub(super) fn toml(sections: &Sections) -> String {
    let mut text = String::new();
    for (section, keys) in sections {
        text.push_str(&format!("[{section}]\n"));
        for (key, value) in keys {
            text.push_str(&format!("{key} = {value}\n"));
        }
    }
    text
}

/// A path as a TOML string.
pub(super) fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}
