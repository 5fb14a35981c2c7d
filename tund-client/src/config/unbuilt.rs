//! Keys of features that this version does not have: checked all the same, and never ignored in
//! silence.
//!
//! What would leave the user with less than he asked for is a mistake; what merely has no effect is
//! a warning. A feature that gets built takes its keys from here into [`super::Config`].

use tund_daemon::config::{Section, value};

const NOT_BUILT: &str = "is not built in this version";

/// A key that has no effect: whoever sets it to something else than its default is told.
pub(super) fn ignored<T: PartialEq>(
    section: &mut Section<'_>,
    (key, default): (&'static str, T),
    parser: impl FnOnce(&value::Value<'_>) -> value::Parsed<T>,
    why: &str,
) {
    if section
        .optional(key, parser)
        .is_some_and(|value| value != default)
    {
        section.warn(
            key,
            format!("has no effect: {why}"),
            format!("remove {key}"),
        );
    }
}

/// `[link]`: QUIC.
pub(super) fn link(section: &mut Section<'_>) {
    let transports = [("auto", true), ("tls", true), ("quic", false)];
    if !section.or("transport", true, value::choice(&transports)) {
        let found = format!("\"quic\" {NOT_BUILT}");
        section.reject("transport", found, "write transport = \"tls\" or \"auto\"");
    }
}

/// `[metrics]`.
pub(super) fn metrics(root: &mut Section<'_>) {
    root.table("metrics", |section| {
        if section
            .or("listen", None, value::optional_socket_address)
            .is_some()
        {
            section.reject(
                "listen",
                format!("serving metrics {NOT_BUILT}"),
                "write listen = \"\", and read `tund-client status --json`",
            );
        }
    });
}
