//! What went over links: enough to know which situations a schedule has met, and what was granted.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an observer notes some frames and lets all others pass"
)]

use super::books::Books;
use super::coverage::Situation;
use super::pipe::Numbered;
use super::socket::{Socket, wide};
use super::world::{CLIENT, SERVER, Who, World};
use std::collections::BTreeMap;
use tund_session::wire::frame::{Ack, Control, Frame};
use tund_session::{FlowId, LinkId, Offset};

/// One half of a flow: client session, flow, and the side that says so.
type Half = (u64, FlowId, usize);

/// Notes of an observer that reads every frame.
#[derive(Debug, Default)]
pub struct Witness {
    /// The flow of the world behind each flow of a client session.
    routes: BTreeMap<(u64, FlowId), usize>,
    /// The highest limit that a side has said for what it receives.
    granted: BTreeMap<Half, u64>,
    /// How far DATA of a side has arrived in order, roughly.
    arrived: BTreeMap<Half, u64>,
    /// The last ACK that arrived, and by which link.
    acked: BTreeMap<Half, (LinkId, Ack)>,
    /// The highest control number of a side that has arrived.
    control: BTreeMap<(u64, usize), u64>,
    /// How much of what a side wrote was released by the other, as far as it was told.
    freed: BTreeMap<Half, u64>,
    /// OPEN_OK was said.
    opened: BTreeMap<(u64, FlowId), ()>,
}

impl Witness {
    /// A client session has opened a flow.
    pub fn opened(&mut self, uid: u64, flow: FlowId, unit: usize) {
        self.routes.insert((uid, flow), unit);
    }

    /// The limit that `side` has said for what it receives.
    pub fn granted(&self, uid: u64, flow: FlowId, side: usize) -> u64 {
        self.granted.get(&(uid, flow, side)).copied().unwrap_or(0)
    }

    /// How much of what `side` writes it knows to be released.
    pub fn released(&self, uid: u64, flow: FlowId, side: usize) -> u64 {
        self.freed.get(&(uid, flow, side)).copied().unwrap_or(0)
    }

    /// PING and PONG, which never end.
    pub fn is_small_talk(frame: &Frame) -> bool {
        matches!(frame, Frame::Ping { .. } | Frame::Pong { .. })
    }

    fn grant(&mut self, half: Half, limit: Offset) {
        let known = self.granted.entry(half).or_default();
        *known = limit.0.max(*known);
    }

    fn free(&mut self, half: Half, released: u64) {
        let known = self.freed.entry(half).or_default();
        *known = released.max(*known);
    }

    fn says(&mut self, uid: u64, side: usize, ack: &Ack) {
        self.grant((uid, ack.flow, side), ack.limit);
    }
}

impl World {
    /// A frame was handed to the network.
    pub(super) fn saw_sent(&mut self, link: LinkId, side: usize, frame: &Frame) {
        let Some(pipe) = self.pipes.get_mut(&link) else {
            return;
        };
        let uid = pipe.dialled_by;
        match frame {
            Frame::Hello(_) => pipe.is_hello = true,
            Frame::Ack(ack) => {
                self.witness.says(uid, side, ack);
                self.doubt(link, side, ack);
            }
            Frame::FlowState(acks) => {
                for ack in acks {
                    self.witness.says(uid, side, ack);
                    self.doubt(link, side, ack);
                }
            }
            Frame::Control { message, .. } => match message {
                Control::Open(open) => self.witness.grant((uid, open.flow, side), open.limit),
                Control::OpenOk { flow, limit, .. } => {
                    self.witness.grant((uid, *flow, side), *limit);
                    self.witness.opened.insert((uid, *flow), ());
                }
                Control::Done { flow, .. } => self.doubt_done(link, side, *flow),
                _ => {}
            },
            Frame::Data(data) => {
                let end = data.offset.0 + wide(data.payload.len()) + u64::from(data.fin);
                if end == self.witness.granted(uid, data.flow, 1 - side) && !data.fin {
                    self.met(Situation::CreditExhausted);
                }
            }
            _ => {}
        }
    }

    /// Nobody may say that bytes were released which the local socket has not taken.
    fn doubt(&mut self, link: LinkId, side: usize, ack: &Ack) {
        let Some(who) = self.owner(link, side) else {
            return;
        };
        let Some(local) = self
            .books(who)
            .and_then(|books| books.locals.get(&ack.flow))
        else {
            return;
        };
        let taken = if local.stored && side == SERVER {
            local.acknowledged
        } else if local.handed && side == CLIENT {
            local.drained + u64::from(local.fin_given())
        } else {
            local.released + u64::from(local.fin_given())
        };
        if ack.released.0 > taken && !local.over {
            let unit = local.unit;
            self.fault(format!(
                "{who:?} says {} of u{unit} released, {taken} were",
                ack.released
            ));
        }
    }

    /// The server may not say that it is done with a flow that may be stored while its origin has
    /// not acknowledged everything.
    fn doubt_done(&mut self, link: LinkId, side: usize, flow: FlowId) {
        let Some(who) = self.owner(link, side).filter(|_| side == SERVER) else {
            return;
        };
        let Some(local) = self.books(who).and_then(|books| books.locals.get(&flow)) else {
            return;
        };
        let is_reset = local.end_told().1;
        let is_owed = local.stored && local.fin_given() && !local.over && !is_reset;
        if is_owed && local.acknowledged < local.released + 1 {
            let unit = local.unit;
            self.fault(format!("{who:?} is done with u{unit}, its origin is not"));
        }
    }

    /// Bytes that an end must still have, as far as anybody can tell from outside: taken from
    /// sockets that are whole, and not known to be released.
    pub(super) fn must_be_kept(&self, who: Who) -> u64 {
        let Some((uid, books)) = self.notes(who) else {
            return 0;
        };
        let side = who.side();
        let whole = books.locals.iter().filter(|(_, local)| {
            let unit = &self.units[local.unit];
            let reset = unit
                .sockets
                .iter()
                .flatten()
                .any(|s| s.app_rst || s.is_reset());
            local.accepted && !local.over && !reset && unit.aborted.is_none()
        });
        whole
            .map(|(flow, local)| {
                let taken = self.units[local.unit].sockets[side].as_ref();
                let freed = self.witness.freed.get(&(uid, *flow, side)).copied();
                taken
                    .map_or(0, Socket::taken)
                    .saturating_sub(freed.unwrap_or(0))
            })
            .sum()
    }

    fn notes(&self, who: Who) -> Option<(u64, &Books)> {
        match who {
            Who::Client => self
                .client
                .as_ref()
                .map(|client| (client.uid, &client.books)),
            Who::Server(id) => self.books.get(&id).map(|books| (books.uid, books)),
        }
    }

    /// A frame will never arrive.
    pub(super) fn saw_lost(&mut self, link: LinkId, side: usize, (index, frame): &Numbered) {
        self.tell(|| format!("lost on {link}: {frame:?}"));
        let is_hello = self.pipes.get(&link).is_some_and(|pipe| pipe.is_hello);
        if side == CLIENT && *index == 1 {
            self.met(if is_hello {
                Situation::LostFirstAfterWelcome
            } else {
                Situation::LostFirstAfterResumeOk
            });
        }
        let situation = match frame {
            Frame::Hello(_) => Situation::LostHello,
            Frame::Welcome(_) => Situation::LostWelcome,
            Frame::Resume(_) => Situation::LostResume,
            Frame::ResumeOk(_) => Situation::LostResumeOk,
            Frame::ControlAck { .. } => Situation::LostControlAck,
            Frame::Ack(_) | Frame::FlowState(_) => Situation::LostAck,
            Frame::Data(data) if data.fin => Situation::LostFin,
            Frame::Data(_) => Situation::LostData,
            Frame::Datagram(_) => return self.saw_datagram_lost(false, side),
            Frame::DatagramPiece(_) => return self.saw_datagram_lost(true, side),
            Frame::Control { message, .. } => match message {
                Control::Open(_) => Situation::LostOpen,
                Control::Deliver(_) => Situation::LostDeliver,
                Control::OpenOk { .. } => Situation::LostOpenOk,
                Control::OpenErr { .. } => Situation::LostOpenErr,
                Control::Reset { .. } => Situation::LostReset,
                Control::Done { .. } => Situation::LostDone,
                _ => return,
            },
            _ => return,
        };
        self.met(situation);
    }

    /// A frame is about to be read by the end opposite of `side`.
    pub(super) fn saw_arriving(&mut self, link: LinkId, side: usize, frame: &Frame) {
        let Some(pipe) = self.pipes.get(&link) else {
            return;
        };
        let uid = pipe.dialled_by;
        let current = self.client.as_ref().map(|client| client.uid);
        match frame {
            Frame::Hello(_) if current != Some(uid) => self.met(Situation::LateHello),
            Frame::Welcome(_) => {
                let known = self.client.as_ref().and_then(|client| client.session.id());
                if known.is_some() {
                    self.met(Situation::LateHello);
                }
            }
            Frame::Resume(resume) => {
                let session = self.registry.session(resume.session);
                let newest = session.and_then(|s| s.live_links().filter_map(|(_, n)| n).max());
                let over = session.is_none_or(tund_session::Session::is_ended);
                if newest.is_some_and(|newest| newest > resume.proved) {
                    self.met(Situation::OldSecret);
                }
                if over {
                    self.met(Situation::LateResume);
                }
            }
            Frame::ResumeReject(_) if self.is_attached_elsewhere(link) => {
                self.met(Situation::StaleReject);
            }
            Frame::Ack(ack) => self.saw_ack(link, (uid, ack.flow, side), ack),
            Frame::FlowState(acks) => {
                for ack in acks {
                    self.saw_ack(link, (uid, ack.flow, side), ack);
                }
            }
            Frame::Data(data) => {
                let half = (uid, data.flow, side);
                let end = data.offset.0 + wide(data.payload.len()) + u64::from(data.fin);
                let arrived = self.witness.arrived.entry(half).or_default();
                let (early, double) = (data.offset.0 > *arrived, end <= *arrived);
                if !early {
                    *arrived = end.max(*arrived);
                }
                if early {
                    self.met(Situation::EarlyData);
                } else if double {
                    self.met(Situation::DuplicateData);
                }
                self.saw_before_open_ok(data.flow, side);
            }
            Frame::Control { number, message } => {
                let known = self.witness.control.entry((uid, side)).or_default();
                let (double, early) = (*number <= *known, *number > *known + 1);
                *known = (*known).max(*number);
                if double {
                    self.met(Situation::DuplicateControl);
                } else if early {
                    self.met(Situation::EarlyControl);
                }
                if let Control::Done { flow, .. } = message {
                    self.witness.free((uid, *flow, 1 - side), u64::MAX);
                }
                self.saw_message(link, uid, message);
            }
            _ => {}
        }
    }

    fn is_attached_elsewhere(&self, link: LinkId) -> bool {
        self.client
            .as_ref()
            .is_some_and(|client| client.session.live_links().any(|(live, _)| live != link))
    }

    fn saw_before_open_ok(&mut self, flow: FlowId, side: usize) {
        let local = self
            .client
            .as_ref()
            .and_then(|client| client.books.locals.get(&flow));
        if side == SERVER && local.is_some_and(|local| !local.accepted) {
            self.met(Situation::DataBeforeOpenOk);
        }
    }

    fn saw_ack(&mut self, link: LinkId, half: Half, ack: &Ack) {
        if let Some((on, last)) = self.witness.acked.get(&half)
            && *on != link
            && (ack.accepted < last.accepted || ack.limit < last.limit)
        {
            self.met(Situation::SmallerAck);
        }
        self.witness.acked.insert(half, (link, *ack));
        self.witness
            .free((half.0, half.1, 1 - half.2), ack.released.0);
        self.saw_before_open_ok(ack.flow, half.2);
    }

    fn saw_message(&mut self, link: LinkId, uid: u64, message: &Control) {
        match message {
            Control::Stop { flow, .. } => {
                let server = self.pipes.get(&link).and_then(|pipe| pipe.session);
                let accepted = server.and_then(|id| {
                    let local = self.books.get(&id)?.locals.get(flow)?;
                    Some(local.accepted && !local.over)
                });
                if accepted == Some(true) && self.witness.opened.contains_key(&(uid, *flow)) {
                    self.met(Situation::StopCrossingOpenOk);
                }
            }
            Control::LinkDown { link: number } => {
                let named = self.ends().into_iter().any(|who| {
                    self.session(who)
                        .is_some_and(|s| s.live_links().any(|(_, n)| n == Some(*number)))
                });
                if named {
                    self.met(Situation::LinkDown);
                }
            }
            Control::Reset { flow, .. } => {
                for who in self.ends() {
                    let unit = self.witness.routes.get(&(uid, *flow)).copied();
                    let socket =
                        unit.and_then(|unit| self.units[unit].sockets[who.side()].as_ref());
                    let Some(socket) = socket else { continue };
                    if socket.app_rst {
                        let other = self.units[unit.unwrap_or(0)].sockets[1 - who.side()].as_ref();
                        if other.is_some_and(|other| other.app_rst) {
                            self.met(Situation::BothReset);
                        }
                    } else if socket.has_fin() {
                        self.met(Situation::ResetAfterFinDelivered);
                    }
                }
            }
            _ => {}
        }
    }

    /// Rules 5 and 6, from outside: what an end has granted and not drained.
    pub(super) fn granted_and_not_drained(&self, who: Who) -> u64 {
        let Some((uid, books)) = self.notes(who) else {
            return 0;
        };
        let Some(session) = self.session(who) else {
            return 0;
        };
        let side = who.side();
        let open = books.locals.iter().filter(|(flow, local)| {
            !local.over
                && !local.fin_given()
                && session.delivery(**flow) != tund_session::Delivery::Ended
        });
        open.map(|(flow, local)| {
            let drained = if side == CLIENT {
                local.drained
            } else {
                local.released
            };
            self.witness
                .granted(uid, *flow, side)
                .saturating_sub(drained)
        })
        .sum()
    }
}
