//! What drivers do with links: dial, write, read, hang up.

use super::books::Books;
use super::coverage::Situation;
use super::pipe::{Farewell, Numbered, Pipe};
use super::rng::Rng;
use super::witness::Witness;
use super::world::{KEY, SERVER, World};
use tund_session::wire::frame::Frame;
use tund_session::{LinkId, Outbox, SessionId};

impl World {
    /// The client daemon has a new transport connection to the server.
    pub fn dial(&mut self) -> Option<LinkId> {
        let uid = self.client.as_ref()?.uid;
        self.link_ids += 1;
        self.session_ids += 1;
        let link = LinkId(self.link_ids);
        let pipe = Pipe::new(link, uid, self.now);
        let secret = pipe.secret();
        let mut fresh = [0; 16];
        fresh[..8].copy_from_slice(&self.session_ids.to_be_bytes());
        self.registry
            .handle_link_up(link, KEY, secret.clone(), SessionId(fresh), self.now);
        self.pipes.insert(link, pipe);
        self.tell(|| format!("client dials {link}"));
        let now = self.now;
        if let Some(client) = &mut self.client {
            client.books.links.insert(link);
            client.session.handle_link_up(link, secret, now);
        }
        self.drain();
        Some(link)
    }

    /// Lets an end write to a link; true if something other than PING or PONG was written.
    pub fn transmit(&mut self, link: LinkId, side: usize, budget: usize) -> bool {
        let now = self.now;
        let Some(pipe) = self.pipes.get(&link) else {
            return false;
        };
        if !pipe.open[side] || pipe.unacknowledged(side) >= self.knobs.send_queue {
            return false;
        }
        let mut out = Outbox::new();
        if side == SERVER {
            let due = self
                .registry
                .session(pipe.session.unwrap_or(SessionId([0; 16])));
            let due = due.is_some_and(|session| session.has_transmit(link));
            self.registry.poll_transmit(link, budget, &mut out, now);
            if pipe.session.is_some() && !due && !out.is_empty() {
                self.fault(format!(
                    "{} bytes came that has_transmit did not promise",
                    out.len()
                ));
            }
        } else if let Some(client) = &mut self.client {
            let due = client.session.has_transmit(link);
            client.session.poll_transmit(link, budget, &mut out, now);
            let again = client.session.has_transmit(link);
            if !due && !out.is_empty() {
                self.fault(format!(
                    "{} bytes came that has_transmit did not promise",
                    out.len()
                ));
            } else if again && out.is_empty() {
                self.fault("has_transmit goes on promising bytes that do not come");
            }
        }
        let sent = self.put(link, side, &out);
        self.drain();
        sent
    }

    fn put(&mut self, link: LinkId, side: usize, out: &Outbox) -> bool {
        let Some(pipe) = self.pipes.get_mut(&link) else {
            return false;
        };
        if out.is_empty() {
            return false;
        }
        let lost = pipe.lanes[side].lost;
        let frames = pipe.put(side, out.to_vec().into());
        let mut matters = false;
        for numbered in frames {
            matters |= !Witness::is_small_talk(&numbered.1);
            self.tell(|| {
                format!(
                    "{} sends on {link} {}{:?}",
                    "CS".get(side..=side).unwrap_or("?"),
                    if lost { "into nothing " } else { "" },
                    numbered.1
                )
            });
            self.saw_sent(link, side, &numbered.1);
            if lost {
                self.saw_lost(link, side, &numbered);
            }
        }
        matters
    }

    /// The driver of one side lets go of a transport connection, after its last words.
    pub fn hang_up(&mut self, link: LinkId, side: usize, last_words: bool) {
        let farewell =
            match Rng::of(self.seed, link.0 * 2 + u64::try_from(side).unwrap_or(0)).below(10) {
                0..6 => Farewell::Orderly,
                6..8 => Farewell::Reset,
                _ => Farewell::Silent,
            };
        if last_words {
            let mut out = Outbox::new();
            if side == SERVER {
                self.registry
                    .poll_transmit(link, usize::MAX, &mut out, self.now);
            } else if let Some(client) = &mut self.client {
                client
                    .session
                    .poll_transmit(link, usize::MAX, &mut out, self.now);
            }
            self.put(link, side, &out);
        }
        self.let_go(link, side, farewell);
    }

    /// Closes one end of a transport connection and tells the core of that end.
    pub fn let_go(&mut self, link: LinkId, side: usize, farewell: Farewell) {
        let Some(pipe) = self.pipes.get_mut(&link) else {
            return;
        };
        if !pipe.open[side] {
            return;
        }
        let cut = pipe.lanes[1 - side].is_mid_frame();
        let lost = pipe.close(side, farewell);
        self.tell(|| {
            format!(
                "{} closes {link}: {farewell:?}",
                "CS".get(side..=side).unwrap_or("?")
            )
        });
        if cut {
            self.met(Situation::CutMidFrame);
        }
        for (from, frames) in lost.into_iter().enumerate() {
            for numbered in frames {
                self.saw_lost(link, from, &numbered);
            }
        }
        let now = self.now;
        let owner = self.owner(link, side);
        if let Some(books) = owner.and_then(|who| self.books(who)) {
            books.links.remove(&link);
        }
        if side == SERVER {
            self.ready.remove(&link);
            self.registry.handle_link_down(link, now);
        } else if owner.is_some()
            && let Some(client) = &mut self.client
        {
            client.session.handle_link_down(link, now);
        }
    }

    /// Something arrives at the end opposite of `side`; true if it was more than small talk.
    pub fn deliver(&mut self, link: LinkId, side: usize, count: usize) -> bool {
        let Some(pipe) = self.pipes.get_mut(&link) else {
            return false;
        };
        let to = 1 - side;
        let lane = &mut pipe.lanes[side];
        if !lane.is_deliverable() {
            return false;
        }
        if lane.under_way() == 0 {
            lane.ending = false;
            self.tell(|| format!("end of {link} reaches {}", "CS".get(to..=to).unwrap_or("?")));
            self.let_go(link, to, Farewell::Orderly);
            self.drain();
            return true;
        }
        let open = pipe.open[to];
        let delivered = pipe.take(side, count);
        if !open {
            return false;
        }
        let mut matters = delivered.frames.is_empty();
        for (_, frame) in &delivered.frames {
            matters |= !Witness::is_small_talk(frame);
            self.tell(|| {
                format!(
                    "{} reads on {link} {frame:?}",
                    "CS".get(to..=to).unwrap_or("?")
                )
            });
            self.saw_arriving(link, side, frame);
        }
        let now = self.now;
        let is_attach = |(_, frame): &Numbered| matches!(frame, Frame::Resume(_) | Frame::Hello(_));
        if delivered.frames.iter().any(|numbered| !is_attach(numbered)) {
            self.note_heard(link, to);
        }
        if to == SERVER {
            self.registry.handle_bytes(link, delivered.bytes, now);
            self.adopt(link);
        } else if let Some(client) = &mut self.client {
            client.session.handle_bytes(link, delivered.bytes, now);
        }
        self.drain();
        matters
    }

    /// An end was reached by its session, not by an attempt or a refusal.
    fn note_heard(&mut self, link: LinkId, side: usize) {
        let now = self.now;
        let Some(who) = self.owner(link, side) else {
            return;
        };
        let live = self
            .session(who)
            .is_some_and(|session| session.live_links().any(|(live, _)| live == link));
        if let Some(books) = self.books(who).filter(|_| live) {
            books.heard_at = now;
        }
    }

    /// Finds the server session that a link has joined.
    pub(super) fn adopt(&mut self, link: LinkId) {
        let now = self.now;
        let Some(pipe) = self
            .pipes
            .get_mut(&link)
            .filter(|pipe| pipe.session.is_none())
        else {
            return;
        };
        let mut sessions = self.registry.sessions();
        let joined = sessions.find(|(_, _, session)| {
            !session.is_ended() && session.live_links().any(|(live, _)| live == link)
        });
        if let Some((id, ..)) = joined {
            pipe.session = Some(id);
            let uid = pipe.dialled_by;
            let books = self.books.entry(id).or_insert_with(|| Books::new(uid, now));
            books.links.insert(link);
        }
    }
}
