//! `[routes]`: who steers, and what goes where.

use tund_daemon::config::{Prefix, Section, value};

use super::unbuilt::ignored;

/// Routes that the daemon looks after (`mode = "auto"`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Routes {
    /// What goes into the TUN.
    pub(crate) include: Vec<Prefix>,
    /// What stays outside, whatever is included in it.
    pub(crate) exclude: Vec<Prefix>,
    /// Private prefixes that this host is on stay outside.
    pub(crate) is_lan_direct: bool,
    /// What would go into the TUN goes nowhere while the daemon is stopped.
    pub(crate) kill_switch: bool,
}

/// None: the user steers.
pub(super) fn routes(root: &mut Section<'_>) -> Option<Routes> {
    root.table("routes", |section| {
        let modes = [("manual", false), ("auto", true)];
        if section.or("mode", false, value::choice(&modes)) {
            return Some(Routes {
                include: section.or("include", everything(), prefixes),
                exclude: section.or("exclude", Vec::new(), prefixes),
                is_lan_direct: section.or("lan", true, value::choice(&LAN)),
                kill_switch: section.or("kill_switch", false, value::boolean),
            });
        }
        if section.or("kill_switch", false, value::boolean) {
            section.reject(
                "kill_switch",
                "with manual routes there is nothing that it could block",
                "write mode = \"auto\" beside it; routes of your own stay when the daemon ends",
            );
        }
        let why = "you steer, with `ip route add PREFIX dev tund0`";
        ignored(section, ("include", everything()), prefixes, why);
        ignored(section, ("exclude", Vec::new()), prefixes, why);
        ignored(section, ("lan", true), value::choice(&LAN), why);
        None
    })
}

/// Whether local networks stay outside.
const LAN: [(&str, bool); 2] = [("direct", true), ("tund", false)];

fn everything() -> Vec<Prefix> {
    ["0.0.0.0/0", "::/0"]
        .into_iter()
        .filter_map(|text| text.parse().ok())
        .collect()
}

fn prefixes(list: &value::Value<'_>) -> value::Parsed<Vec<Prefix>> {
    value::list(4096, value::from_text::<Prefix>("a prefix"))(list)
}
