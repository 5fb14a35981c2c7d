//! The reliable, numbered control lane: nothing about a flow's life is fire-and-forget.

use crate::id::{FlowId, LinkId, LinkNumber};
use crate::limits::{CONTROL_WINDOW, LINKS_DOWN};
use crate::wire::frame::{Control, Framing, OnExpiry};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A message sent and not yet acknowledged.
#[derive(Debug)]
struct Said {
    message: Control,
    /// The link it is under way on; none: to be sent (again).
    link: Option<LinkId>,
}

/// Both directions of one end's control lane.
#[derive(Debug, Default)]
pub(crate) struct ControlLane {
    /// Said and never sent; each gets its number when it goes out first.
    fresh: VecDeque<Control>,
    said: BTreeMap<u64, Said>,
    /// The highest number acknowledged.
    acknowledged: u64,
    /// The highest number ever sent (rule 2).
    high: u64,
    /// Numbers to be sent again.
    unsent: BTreeSet<u64>,
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
        self.fresh.push_back(message);
    }

    /// Queues word of a dead link. Of what was never sent, only the last are kept: the peer has few
    /// links, and finds out about each by itself, if later.
    pub(crate) fn say_link_down(&mut self, link: LinkNumber) {
        let is_one = |message: &Control| matches!(message, Control::LinkDown { .. });
        let waiting = self.fresh.iter().filter(|message| is_one(message)).count();
        if waiting >= LINKS_DOWN
            && let Some(oldest) = self.fresh.iter().position(is_one)
        {
            self.fresh.remove(oldest);
        }
        self.say(Control::LinkDown { link });
    }

    /// The session has ended: of what was never sent, only this is still worth a word.
    pub(crate) fn say_last(&mut self, message: Control) {
        self.fresh.clear();
        self.fresh.push_back(message);
    }

    /// Takes OPEN of a flow back; false if it was sent, and the peer may know of the flow.
    pub(crate) fn unsay_open(&mut self, flow: FlowId) -> bool {
        let is_it = |message: &Control| {
            matches!(message, Control::Open(open) if open.flow == flow)
                || matches!(message, Control::Deliver(deliver) if deliver.flow == flow)
        };
        let place = self.fresh.iter().position(is_it);
        place.is_some_and(|place| self.fresh.remove(place).is_some())
    }

    /// OPEN of a flow waits here, and was never sent.
    pub(crate) fn has_unsaid_open(&self, flow: FlowId) -> bool {
        let is_it = |message: &Control| matches!(message, Control::Open(open) if open.flow == flow);
        self.fresh.iter().any(is_it)
    }

    /// OPENs that were never sent ask for no more than what the peer can do.
    pub(crate) fn unstore(&mut self, can_store: impl Fn(Framing) -> bool) {
        for message in &mut self.fresh {
            if let Control::Open(open) = message
                && let OnExpiry::Store(framing) = open.on_expiry
                && !can_store(framing)
            {
                open.on_expiry = OnExpiry::Reset;
            }
        }
    }

    /// The same of what is to be held where the peer cannot; gives back of which flows.
    pub(crate) fn keep_nothing(&mut self, can_hold: impl Fn(Framing) -> bool) -> Vec<FlowId> {
        let mut plain = Vec::new();
        for message in &mut self.fresh {
            if let Control::Open(open) = message
                && open.hand_off.take_if(|h| !can_hold(h.framing)).is_some()
            {
                plain.push(open.flow);
            }
        }
        plain
    }

    /// Something said is not acknowledged.
    pub(crate) fn is_outstanding(&self) -> bool {
        !(self.said.is_empty() && self.fresh.is_empty())
    }

    /// How many messages were said and are not acknowledged.
    pub(crate) fn outstanding(&self) -> u64 {
        let count = self.said.len().saturating_add(self.fresh.len());
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    /// Something could be sent at once; see [`Self::take_ack`] for `most`.
    pub(crate) fn is_ready(&self, most: u64) -> bool {
        self.may_acknowledge(most) || !self.unsent.is_empty() || self.may_number()
    }

    /// An acknowledgement is due, and the peer has left no more than `most` of ours without one.
    fn may_acknowledge(&self, most: u64) -> bool {
        self.ack_due && self.outstanding() <= most
    }

    /// The next message that was never sent may go out. The last words of a session wait for no
    /// acknowledgement: there will be none.
    fn may_number(&self) -> bool {
        self.fresh.front().is_some_and(|message| {
            self.high < self.acknowledged.saturating_add(CONTROL_WINDOW)
                || matches!(message, Control::SessionClose { .. })
        })
    }

    /// The next message to be sent on `link`.
    pub(crate) fn take(&mut self, link: LinkId) -> Option<(u64, Control)> {
        if let Some(number) = self.unsent.pop_first() {
            let said = self.said.get_mut(&number)?;
            said.link = Some(link);
            return Some((number, said.message.clone()));
        }
        if !self.may_number() {
            return None;
        }
        let message = self.fresh.pop_front()?;
        self.high += 1;
        let said = Said {
            message: message.clone(),
            link: Some(link),
        };
        self.said.insert(self.high, said);
        Some((self.high, message))
    }

    /// The acknowledgement to be sent on `link`, if one is due. It lets the peer say more, so it
    /// waits while more than `most` of what was said here is not acknowledged: what answers the
    /// peer's messages has no other bound.
    pub(crate) fn take_ack(&mut self, link: LinkId, most: u64) -> Option<u64> {
        if !self.may_acknowledge(most) {
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

    /// Whether a message that was sent on that link is not acknowledged.
    pub(crate) fn is_under_way_on(&self, link: LinkId) -> bool {
        self.said.values().any(|said| said.link == Some(link))
    }

    /// What was under way on a dead link is due again, acknowledgement included (rules 2, 4).
    pub(crate) fn forget_link(&mut self, link: LinkId) {
        for (number, said) in &mut self.said {
            if said.link == Some(link) {
                said.link = None;
                self.unsent.insert(*number);
            }
        }
        if self.ack_on == Some(link) {
            self.ack_on = None;
            self.ack_due = true;
        }
    }
}
