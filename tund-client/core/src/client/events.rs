//! What the session tells, and what becomes of it: links, outages, refusals.

use super::storing::Gone;
use super::{Client, ClientEvent, Refused, State};
use crate::account::{self, LostBytes};
use crate::dialer::Attempt;
use crate::flow_table::ClientFlow;
use tund_session::wire::frame::{FlowCode, RejectReason};
use tund_session::{Event, FlowId, Instant, LinkDeath, LinkId, LinkNumber, Remainder};

impl Client {
    pub(super) fn on_session_event(&mut self, event: Event, now: Instant) {
        let event = self.on_delivery_event(event, now);
        let Some(event) = event.and_then(|event| self.on_mapping_event(event, now)) else {
            return;
        };
        match event {
            Event::Attached {
                link,
                number,
                first,
            } => self.on_attached(link, number, first, now),
            Event::Reattached { .. } => self.end_outage(None, now),
            Event::Detached => {
                self.outage_from = self.last_heard.or(Some(now));
                self.mappings.pause(now);
                self.events.push_back(ClientEvent::Detached);
            }
            Event::LinkDead { link, death } => self.on_link_dead(link, death, now),
            Event::WantProgress { link } => {
                self.events.push_back(ClientEvent::WantProgress { link });
            }
            Event::KeyInUse => self.refuse(Refused::KeyInUse, now),
            Event::AttachRefused {
                reason: RejectReason::Version,
                ..
            } => self.refuse(Refused::Version, now),
            Event::AttachRefused { retry_after, .. } => self.dialer.wait(Some(retry_after), now),
            Event::Ended { reason } => self.on_ended(reason, now),
            Event::FlowAccepted { flow } => {
                // An origin that answers will take what is stored for it, too.
                if let Some(known) = self.table.get(flow) {
                    self.spool.on_answered(known.destination);
                }
                self.note_given(flow);
                self.accept(flow, now);
            }
            Event::FlowRefused {
                flow,
                error,
                remainder,
            } => self.turn_down(flow, error, remainder, now),
            Event::FlowExpired { flow, remainder } => self.on_expired(flow, remainder, now),
            Event::FlowReadable { flow } => self.pump_down(flow, now),
            Event::FlowWritable { flow } => self.pump_up(flow, now),
            Event::FlowAborted { flow, code } => self.on_aborted(flow, code, now),
            Event::FlowForgotten {
                flow,
                lost,
                dropped,
            } => {
                let lost = LostBytes {
                    up: lost,
                    down: dropped,
                };
                if let Some(account) = self.table.settle(flow, lost, now) {
                    self.account(account);
                }
                self.asking.hurry(now);
            }
            Event::Confirmed
            | Event::FlowOpened { .. }
            | Event::DeliverOpened { .. }
            | Event::FlowReleased { .. }
            | Event::FlowHeld { .. }
            | Event::ForgetHeld
            | Event::FlowFinal { .. } => {}
        }
    }

    fn on_link_dead(&mut self, link: LinkId, death: LinkDeath, now: Instant) {
        self.dialer.ended(link);
        self.note_death(link, death, now);
        let words = matches!(death, LinkDeath::SessionEnded | LinkDeath::Retired);
        self.close_link(link, words);
    }

    fn on_aborted(&mut self, flow: FlowId, code: FlowCode, now: Instant) {
        let Some(known) = self.table.get_mut(flow).copied() else {
            return;
        };
        let lost = self.in_rings(&known);
        if code == FlowCode::Expired {
            self.expired.0 += 1;
            self.expired.1 += lost.up;
            self.leave_one(flow, now);
        }
        self.table.leave(flow, account::of_abort(code), lost);
        self.netstack.reset(known.connection);
    }

    /// The grace of a flow that is to be stored is over.
    fn on_expired(&mut self, flow: FlowId, remainder: Remainder, now: Instant) {
        self.leave_one(flow, now);
        let mut gone = Gone {
            session: self.session_id(),
            flow,
            end: account::of_abort(FlowCode::Expired),
            dropped: self.session.as_ref().map_or(0, |s| s.dropped_of(flow)),
        };
        if let Some(known) = self.table.remove(flow) {
            self.expired.0 += 1;
            self.keep(&known, gone, remainder, now);
        } else if let Some((known, end)) = self.table.take_leaving(flow) {
            // The application has reset its connection; what it had sent before counts.
            gone.end = end;
            self.keep(&known, gone, remainder, now);
        }
    }

    /// Bytes in the rings of a connection that is about to be reset.
    pub(super) fn in_rings(&mut self, flow: &ClientFlow) -> LostBytes {
        let count = |bytes| u64::try_from(bytes).unwrap_or(u64::MAX);
        LostBytes {
            up: count(self.netstack.readable(flow.connection)),
            down: count(self.netstack.unsent(flow.connection)),
        }
    }

    fn on_attached(&mut self, link: LinkId, number: LinkNumber, first: bool, now: Instant) {
        self.refused = None;
        self.is_insisted_on = false;
        self.worn = None;
        let attempt = self.dialer.ended(link);
        if first {
            self.home = attempt.map(|attempt| attempt.path.address);
            self.note_plain();
            self.forget_held();
        }
        self.end_outage(attempt, now);
        self.note_delivery();
        self.dialer.attached();
        self.outlook.settled();
        self.tend(now);
        self.events
            .push_back(ClientEvent::Attached { link, number });
    }

    fn end_outage(&mut self, by: Option<Attempt>, now: Instant) {
        self.spool.resume(now);
        self.mappings.go_on(now);
        if let Some(from) = self.outage_from.take() {
            self.outages.count += 1;
            self.outages.last_gap = Some(now.saturating_duration_since(from));
            self.outages.last_resume = by.map(|by| now.saturating_duration_since(by.started));
            self.table.survived();
            self.mappings.survived();
        }
    }

    /// The server says a final no. Who waits for a connection is told at once; connections that
    /// are open have their grace, as a person may put it right.
    pub(super) fn refuse(&mut self, why: Refused, now: Instant) {
        if self.state() == State::Attached {
            return;
        }
        self.dialer.wait(None, now);
        if self.refused.replace(why) != Some(why) {
            self.events.push_back(ClientEvent::Refused(why));
        }
        self.refuse_all_held(now);
    }
}
