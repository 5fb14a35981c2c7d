//! `[[client]]`: who may attach, by name and key.

use std::collections::BTreeSet;

use tund_daemon::config::{Section, value};
use tund_daemon::identity::PublicKey;
use tund_server_core::admission::Rule;

use super::{keys, origin};

/// The longest name: it stands in tables and log lines.
const NAME_BYTES_MAX: usize = 64;

/// One `[[client]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Client {
    /// Used once.
    pub(crate) name: String,
    /// At least one, each used once in the file; several while the client changes keys.
    pub(crate) public_keys: Vec<PublicKey>,
    /// Adds to [`super::Config::origin_allow`] for this client.
    pub(crate) allow: Vec<Rule>,
}

pub(super) fn clients(root: &mut Section<'_>, own_key: Option<PublicKey>) -> Vec<Client> {
    let mut seen = Seen {
        names: BTreeSet::new(),
        keys: own_key.into_iter().collect(),
        own_key,
    };
    if !root.has("client") {
        root.reject(
            "client",
            "is missing, so that nobody could attach",
            "run `tund-client pubkey FILE` on the client and add [[client]] with name = \"…\" and \
             public_key = \"…\"",
        );
    }
    root.tables("client", |section| client(section, &mut seen))
}

/// What clients before this one have taken.
struct Seen {
    names: BTreeSet<String>,
    keys: BTreeSet<PublicKey>,
    own_key: Option<PublicKey>,
}

fn client(section: &mut Section<'_>, seen: &mut Seen) -> Option<Client> {
    let name = section.required("name", "add name = \"…\" to this [[client]]", name);
    let public_keys = section.required(
        "public_key",
        "run `tund-client pubkey FILE` on the client and add public_key = \"…\"",
        keys,
    );
    let allow = section.or("allow", Vec::new(), origin::allow);
    origin::check_allow(section, &allow);

    if let Some(name) = name
        .as_ref()
        .filter(|name| !seen.names.insert((*name).clone()))
    {
        let found = format!("the name {name:?} is used by a client above");
        section.reject("name", found, "give each client a name of its own");
    }
    for key in public_keys.iter().flatten() {
        if seen.own_key == Some(*key) {
            section.reject(
                "public_key",
                "this is the server's own public key",
                "write the client's: run `tund-client pubkey FILE` on the client",
            );
        } else if !seen.keys.insert(*key) {
            section.reject(
                "public_key",
                "this key stands in the file already",
                "give each client a key of its own: `tund-client keygen`",
            );
        }
    }
    Some(Client {
        name: name?,
        public_keys: public_keys?,
        allow,
    })
}

fn name(value: &value::Value<'_>) -> value::Parsed<String> {
    let name = value::text(value)?;
    let is_good = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.chars().any(|c| c.is_control() || c.is_whitespace());
    if is_good {
        return Ok(name);
    }
    Err(value::Fault::new(
        format!("found {name:?}, which is not a name"),
        format!("write 1 to {NAME_BYTES_MAX} bytes without spaces, like \"phone\""),
    ))
}
