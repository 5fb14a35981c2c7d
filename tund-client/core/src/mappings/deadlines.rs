//! When mappings are to be looked at.

use super::ClientMapping;
use std::collections::BTreeSet;
use std::time::Duration;
use tund_session::FlowId;

/// Mappings that are kept for as long as each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Echo,
    Udp,
    /// Of UDP, those whose questions to name servers all have their answers. Each question has a
    /// port of its own (RFC 5452 §9.2), and so a mapping, of which nothing more is to come.
    Answered,
}

impl Order {
    pub(super) const ALL: [Self; 3] = [Self::Echo, Self::Udp, Self::Answered];
}

/// When mappings are to be looked at. In each order the first is the one that has been idle longest.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    echo: BTreeSet<(Duration, FlowId)>,
    udp: BTreeSet<(Duration, FlowId)>,
    answered: BTreeSet<(Duration, FlowId)>,
}

impl Deadlines {
    pub(super) fn of(&mut self, order: Order) -> &mut BTreeSet<(Duration, FlowId)> {
        match order {
            Order::Echo => &mut self.echo,
            Order::Udp => &mut self.udp,
            Order::Answered => &mut self.answered,
        }
    }

    /// The mapping has changed, and stood in another order before.
    pub(super) fn put_in_order(&mut self, id: FlowId, mapping: &mut ClientMapping, before: Order) {
        if mapping.order() != before {
            self.of(before).remove(&(mapping.due, id));
            mapping.due = mapping.active + mapping.kept();
            self.of(mapping.order()).insert((mapping.due, id));
        }
    }

    pub(super) fn first(&self) -> Option<Duration> {
        let firsts = [self.echo.first(), self.udp.first(), self.answered.first()];
        firsts.into_iter().flatten().map(|(due, _)| *due).min()
    }

    pub(super) fn clear(&mut self) {
        self.echo.clear();
        self.udp.clear();
        self.answered.clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.echo.len() + self.udp.len() + self.answered.len()
    }
}
