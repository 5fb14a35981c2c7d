//! What is wanted of the kernel, in its words, and how far it is from what there is.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

/// Where a route of our table leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// To the TUN.
    Tun,
    /// Past it: other tables are asked.
    Past,
    /// Nowhere, unless a better route is there.
    Refused,
}

/// A route of our table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    /// The destinations.
    pub(crate) prefix: IpNet,
    /// Where they go.
    pub(crate) way: Way,
}

/// What rules, routes and filter should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Our table.
    pub(crate) routes: BTreeSet<Route>,
    /// What goes into the TUN, unless one of the others says otherwise.
    pub(crate) into: Vec<IpNet>,
    /// What goes past it by any device.
    pub(crate) past: Vec<IpNet>,
    /// What goes past it by one device.
    pub(crate) lan: Vec<(String, IpNet)>,
    /// What goes into it whatever lies around it.
    pub(crate) stub: Option<IpAddr>,
}

/// Plans, for the prefixes that devices are on, while the daemon takes packets or when it does not.
pub(crate) type Planner = Box<dyn Fn(&[(String, IpNet)], bool) -> Plan>;

/// What is to be added and what to be taken away, so that each of `wanted` is there once and nothing
/// else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mend<T> {
    /// Missing.
    pub(super) add: Vec<T>,
    /// Not wanted, or there twice.
    pub(super) remove: Vec<T>,
}

impl<T: Ord + Clone> Mend<T> {
    /// Compares what is wanted with what was found.
    pub(super) fn between(wanted: &BTreeSet<T>, found: impl IntoIterator<Item = T>) -> Self {
        let mut missing = wanted.clone();
        let found = found.into_iter();
        let remove = found.filter(|one| !missing.remove(one)).collect();
        Self {
            add: missing.into_iter().collect(),
            remove,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mend_adds_what_is_missing_and_takes_away_what_is_foreign_or_double() {
        let wanted = BTreeSet::from([1, 2, 3]);

        let mend = Mend::between(&wanted, [2, 9, 3, 3]);

        assert_eq!(
            (mend.add.as_slice(), mend.remove.as_slice()),
            ([1].as_slice(), [9, 3].as_slice())
        );
        let none = Mend::between(&wanted, [3, 2, 1]);
        assert_eq!((none.add.len(), none.remove.len()), (0, 0));
    }
}
