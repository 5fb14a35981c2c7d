//! What a client is left with of flows that may be stored, against what was written and read.

use super::coverage::Situation;
use super::socket::Socket;
use super::world::{CLIENT, SERVER, Who, World};
use tund_session::wire::frame::{CloseCode, FlowCode};
use tund_session::{EndReason, FlowId, Remainder};

impl World {
    /// A flow has expired: what is to be stored is all that may not have reached the origin.
    pub(super) fn check_remainder(&mut self, flow: FlowId, remainder: &Remainder) {
        let Some(local) = self.client.as_ref().and_then(|c| c.books.locals.get(&flow)) else {
            self.fault(format!("{flow} is to be stored, and nobody knows it"));
            return;
        };
        let (unit, (fin_told, reset_told)) = (local.unit, local.end_told());
        if self.units[unit].is_early {
            self.met(Situation::EarlyLeft);
            if !self.units[unit].stored {
                // Its owner asks for the origin anew, or counts it as lost.
                return;
            }
        }
        let [Some(app), origin] = &self.units[unit].sockets else {
            return;
        };
        let start = remainder.start.0;
        let held = remainder.bytes.iter().flatten().copied();
        let expected = (start..app.taken()).map(|place| app.written_at(place));
        let is_whole = held.eq(expected);
        let is_end = start == app.taken() || (remainder.fin && start == app.taken() + 1);
        let at_boundary = start == 0 || app.written_at(start - 1) == b'\n' || is_end;
        let arrived = origin.as_ref().map_or(0, Socket::there);
        let is_cut = start < app.taken() && start < self.released_of(flow);
        if remainder.fin != fin_told && !reset_told {
            self.fault(format!(
                "u{unit}: FIN was taken: {fin_told}, and stored: {}",
                remainder.fin
            ));
        } else if !is_whole {
            self.fault(format!(
                "u{unit}: what is to be stored from {start} on is not what was taken"
            ));
        } else if !at_boundary {
            self.fault(format!("u{unit}: {start} is within a message"));
        } else if start > arrived {
            self.fault(format!(
                "u{unit}: bytes {arrived} to {start} are neither at the origin nor stored"
            ));
        }
        if is_cut {
            self.met(Situation::BoundaryKept);
        }
        self.shelve(unit, flow, remainder);
    }

    /// A flow has expired, and nothing of it is stored: nothing may be left that should be.
    pub(super) fn check_unstored(&mut self, who: Who, flow: FlowId, code: FlowCode) {
        let books = self.client.as_ref().map(|client| &client.books);
        let Some(local) = books.and_then(|books| books.locals.get(&flow)) else {
            return;
        };
        let [Some(app), origin] = &self.units[local.unit].sockets else {
            return;
        };
        let is_reset = app.app_rst || origin.as_ref().is_none_or(|origin| origin.app_rst);
        let is_owed = local.stored && local.accepted && app.taken() > self.released_of(flow);
        let is_opaque = origin.as_ref().is_some_and(Socket::reads_opaque);
        if who == Who::Client && code == FlowCode::Expired && is_owed && !is_reset && !is_opaque {
            let unit = local.unit;
            self.fault(format!("u{unit} has expired, and nothing of it is stored"));
        }
    }

    /// How much the client knows to be released.
    fn released_of(&self, flow: FlowId) -> u64 {
        let client = self.client.as_ref();
        client.map_or(0, |client| self.witness.released(client.uid, flow, CLIENT))
    }

    /// A session has ended: the same of all its flows, and none where a person wanted it so.
    pub(super) fn check_remainders(&mut self, who: Who, reason: EndReason) {
        let remainders = self.with(who, |session| session.take_remainders());
        let remainders = remainders.unwrap_or_default();
        if remainders.is_empty() {
            return;
        }
        self.met(Situation::StoredAtEnd);
        let is_asked_for = matches!(
            reason,
            EndReason::Local(_) | EndReason::Peer(CloseCode::KeyRemoved)
        );
        if is_asked_for || who.side() == SERVER {
            self.fault(format!("{who:?} leaves something to be stored: {reason:?}"));
        }
        for (flow, remainder) in remainders {
            self.check_remainder(flow, &remainder);
        }
    }
}
