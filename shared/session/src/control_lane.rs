//! The reliable, numbered control lane: nothing about a flow's life is fire-and-forget.

use crate::id::LinkId;
use crate::limits::CONTROL_WINDOW;
use crate::wire::frame::Control;
use std::collections::BTreeMap;

/// A message said and not yet acknowledged.
#[derive(Debug)]
struct Said {
    message: Control,
    /// The link it is under way on; none: to be sent (again).
    link: Option<LinkId>,
}

/// Both directions of one end's control lane.
#[derive(Debug, Default)]
pub(crate) struct ControlLane {
    said: BTreeMap<u64, Said>,
    /// The highest number given out.
    last: u64,
    /// The highest number acknowledged.
    acknowledged: u64,
    /// The highest number ever sent (rule 2).
    high: u64,
    /// Numbers waiting to be sent; a superset of those without a link.
    unsent: BTreeMap<u64, ()>,
    /// The highest number taken in order.
    taken: u64,
    /// Taken ahead of their turn, never dropped (rule 7).
    early: BTreeMap<u64, Control>,
    /// An acknowledgement is to be sent.
    ack_due: bool,
    /// Where the last acknowledgement went.
    ack_on: Option<LinkId>,
}

impl ControlLane {
    /// Queues a message.
    pub(crate) fn say(&mut self, message: Control) {
        self.last += 1;
        self.said.insert(
            self.last,
            Said {
                message,
                link: None,
            },
        );
        self.unsent.insert(self.last, ());
    }

    /// Something said is not acknowledged.
    pub(crate) fn is_outstanding(&self) -> bool {
        !self.said.is_empty()
    }

    /// How many messages were said and are not acknowledged.
    pub(crate) fn outstanding(&self) -> u64 {
        u64::try_from(self.said.len()).unwrap_or(u64::MAX)
    }

    /// Something could be sent at once.
    pub(crate) fn is_ready(&self) -> bool {
        self.ack_due || self.next_unsent().is_some()
    }

    fn next_unsent(&self) -> Option<u64> {
        let number = *self.unsent.first_key_value()?.0;
        (number <= self.acknowledged.saturating_add(CONTROL_WINDOW)).then_some(number)
    }

    /// The next message to be sent on `link`.
    pub(crate) fn take(&mut self, link: LinkId) -> Option<(u64, Control)> {
        let number = self.next_unsent()?;
        self.unsent.remove(&number);
        self.high = self.high.max(number);
        let said = self.said.get_mut(&number)?;
        said.link = Some(link);
        Some((number, said.message.clone()))
    }

    /// The acknowledgement to be sent on `link`, if one is due.
    pub(crate) fn take_ack(&mut self, link: LinkId) -> Option<u64> {
        if !self.ack_due {
            return None;
        }
        self.ack_due = false;
        self.ack_on = Some(link);
        Some(self.taken)
    }

    /// Takes a message; it is due for acknowledgement even if seen before (rule 7).
    ///
    /// # Errors
    ///
    /// A number beyond the window is a violation.
    pub(crate) fn receive(&mut self, number: u64, message: Control) -> Result<(), &'static str> {
        self.ack_due = true;
        if number == 0 || number > self.taken.saturating_add(CONTROL_WINDOW) {
            return Err("control message outside the window");
        }
        if number > self.taken {
            self.early.insert(number, message);
        }
        Ok(())
    }

    /// The next message in order.
    pub(crate) fn next_in_order(&mut self) -> Option<Control> {
        let message = self.early.remove(&self.taken.saturating_add(1))?;
        self.taken += 1;
        Some(message)
    }

    /// The peer has taken everything up to `number`.
    ///
    /// # Errors
    ///
    /// A number never sent is a violation.
    pub(crate) fn acknowledge(&mut self, number: u64) -> Result<(), &'static str> {
        if number > self.high {
            return Err("acknowledgement of a control message that was never sent");
        }
        self.acknowledged = self.acknowledged.max(number);
        while let Some(entry) = self.said.first_entry() {
            if *entry.key() > number {
                break;
            }
            self.unsent.remove(entry.key());
            entry.remove();
        }
        Ok(())
    }

    /// What was under way on a dead link is due again, acknowledgement included (rules 2, 4).
    pub(crate) fn forget_link(&mut self, link: LinkId) {
        for (number, said) in &mut self.said {
            if said.link == Some(link) {
                said.link = None;
                self.unsent.insert(*number, ());
            }
        }
        if self.ack_on == Some(link) {
            self.ack_on = None;
            self.ack_due = true;
        }
    }
}
