//! After chaos: the network works, readers read, writers finish; and what must be true then.

use super::collector::Pace;
use super::coverage::Situation;
use super::socket::{Socket, wide};
use super::world::{CLIENT, SERVER, Unit, Who, World};
use bytes::Bytes;
use std::time::Duration;
use tund_session::FlowId;

/// Turns until everything must be quiet.
const TURNS: usize = 20_000;
/// Quiet means so long without anything but PINGs: longer than any end waits for a dead link.
const QUIET: Duration = Duration::from_secs(150);
/// What every application writes at least before it finishes.
const LEAST: u64 = 6;

impl World {
    /// Heals twice, first with the stuck readers still stuck, and demands what is owed.
    pub fn settle(&mut self) {
        self.heal(false);
        self.verdict(false);
        self.heal(true);
        self.prove_mappings();
        for _ in 0..3 {
            self.pass_running(Duration::from_secs(700));
        }
        self.heal(true);
        self.verdict(true);
    }

    fn heal(&mut self, unstick: bool) {
        for pipe in self.pipes.values_mut() {
            for lane in &mut pipe.lanes {
                lane.stalled = false;
            }
            pipe.acknowledge();
        }
        for socket in self
            .units
            .iter_mut()
            .flat_map(|unit| unit.sockets.iter_mut().flatten())
        {
            if unstick {
                socket.stuck = false;
            } else if socket.stuck {
                self.coverage.met(Situation::StuckReader);
            }
        }
        let mut quiet_from = self.now;
        for _ in 0..TURNS {
            if self.fault.is_some() {
                return;
            }
            if self.heal_turn() {
                quiet_from = self.now + Duration::from_millis(20);
                self.pass(Duration::from_millis(20));
                self.check();
                continue;
            }
            if self.now.saturating_duration_since(quiet_from) >= QUIET {
                return;
            }
            let longest = Duration::from_secs(5);
            let next = self.next_deadline();
            let wait = next.map_or(longest, |at| at.saturating_duration_since(self.now));
            self.pass(wait.clamp(Duration::from_millis(1), longest));
        }
        self.fault("nothing comes to rest after healing");
    }

    /// Everybody works once; true if anything but small talk happened.
    pub(super) fn heal_turn(&mut self) -> bool {
        let mut acted = self.run_links();
        if !self.shelf.is_empty() {
            self.want_session();
        }
        let wanted = self.client.as_ref().is_some_and(|client| {
            (client.session.wants_link() || !self.shelf.is_empty())
                && !client.session.is_attached()
                && client.books.links.len() < 3
                && !self.has_fresh_attempt()
        });
        if wanted {
            acted |= self.dial().is_some();
        }
        for who in self.ends() {
            for flow in self.flows(who) {
                acted |= self.work_on(who, flow);
            }
        }
        acted |= self.catch_due();
        acted |= self.deliver_stored(70_000);
        acted |= self.collect(Pace::Whole);
        for socket in self
            .units
            .iter_mut()
            .flat_map(|unit| unit.sockets.iter_mut().flatten())
        {
            acted |= socket.read(5000);
            if socket.wrote < LEAST {
                acted |= socket.write(2) > 0;
            } else {
                acted |= socket.finish();
            }
        }
        acted
    }

    /// An attempt that is younger than any driver would give up.
    fn has_fresh_attempt(&self) -> bool {
        let Some(client) = &self.client else {
            return false;
        };
        let live: Vec<_> = client.session.live_links().map(|(link, _)| link).collect();
        let young = |link| {
            self.pipes
                .get(link)
                .is_some_and(|pipe| pipe.born + Duration::from_millis(500) > self.now)
        };
        client
            .books
            .links
            .iter()
            .any(|link| !live.contains(link) && young(link))
    }

    /// The flows of an end.
    pub fn flows(&mut self, who: Who) -> Vec<FlowId> {
        let books = self.books(who);
        books.map_or_else(Vec::new, |books| books.locals.keys().copied().collect())
    }

    pub(super) fn work_on(&mut self, who: Who, flow: FlowId) -> bool {
        let waits = self
            .books(who)
            .and_then(|books| books.locals.get(&flow))
            .is_some_and(|local| !local.accepted && !local.over);
        if let Who::Server(id) = who
            && waits
        {
            self.answer(id, flow, flow.0 % 13 == 12 && self.refusing);
            return true;
        }
        self.pump(who, flow, 70_000)
    }

    /// What must hold after every step (INV-5).
    pub fn check(&mut self) {
        for who in self.ends() {
            let side = who.side();
            let buffer = self.knobs.buffer[side];
            let most = buffer + self.datagram_bytes(buffer);
            if self.knobs.datagrams {
                self.note_dropped(who);
            }
            let Some(session) = self.session(who) else {
                continue;
            };
            let (up, down) = session.buffered();
            let credit = self.granted_and_not_drained(who);
            let most = if self.knobs.datagrams { most } else { buffer };
            if up > most || down > most {
                self.fault(format!("{who:?} holds {up} and {down} bytes, of {most}"));
            }
            let kept = self.must_be_kept(who);
            if up + self.waiting_ahead(who) < kept {
                self.fault(format!("{who:?} holds {up} bytes, {kept} are not released"));
            }
            if credit > buffer {
                self.fault(format!(
                    "{who:?} has granted {credit} bytes, buffer {buffer}"
                ));
            }
        }
    }

    fn is_stuck(&self, unit: &Unit) -> bool {
        unit.sockets.iter().flatten().any(|socket| socket.stuck)
    }

    /// What must be true when all is quiet. `last`: nobody is stuck, and every time has passed.
    fn verdict(&mut self, last: bool) {
        if self.fault.is_some() {
            return;
        }
        for who in self.ends() {
            if let Some(what) = self.left_over(who, last) {
                self.fault(what);
            }
        }
        if !last {
            return;
        }
        if !self.shelf.is_empty() {
            self.fault("stored messages were never delivered");
        }
        if self.registry.lent() > 0 {
            self.fault("the server's memory is still lent");
        }
        if self
            .registry
            .sessions()
            .any(|(_, _, session)| session.is_ended())
        {
            self.fault("the server still keeps a session that has ended");
        }
        self.judge_mappings();
        for index in 0..self.units.len() {
            if let Err(what) = judge(&self.units[index]) {
                let aborted = self.units[index].aborted;
                self.fault(format!("u{index}: {what} (aborted: {aborted:?})"));
            }
        }
    }

    /// A flow whose writer has reset, of which all that was written is here, and which goes on.
    fn held_reset(&self, who: Who) -> Option<usize> {
        let books = match who {
            Who::Client => self.client.as_ref().map(|client| &client.books),
            Who::Server(id) => self.books.get(&id),
        };
        let session = self.session(who)?;
        let held = books?.locals.iter().find(|(flow, local)| {
            let sockets = &self.units[local.unit].sockets;
            let (here, there) = (&sockets[who.side()], &sockets[1 - who.side()]);
            let (Some(here), Some(there)) = (here, there) else {
                return false;
            };
            let waiting: usize = session.readable(**flow).map(Bytes::len).sum();
            there.app_rst && !here.is_told() && here.put + wide(waiting) >= there.wrote
        });
        held.map(|(_, local)| local.unit)
    }

    fn left_over(&self, who: Who, last: bool) -> Option<String> {
        let current = self.client.as_ref().and_then(|client| client.session.id());
        let orphan = matches!(who, Who::Server(id) if Some(id) != current);
        if orphan && !last {
            // Waits for the key's next contact, or for its grace.
            return None;
        }
        let units: Vec<usize> = match who {
            Who::Client => self
                .client
                .iter()
                .flat_map(|c| c.books.locals.values())
                .map(|l| l.unit)
                .collect(),
            Who::Server(id) => self
                .books
                .get(&id)
                .iter()
                .flat_map(|b| b.locals.values())
                .map(|l| l.unit)
                .collect(),
        };
        if let Some(unit) = self.held_reset(who) {
            return Some(format!(
                "{who:?}: a stuck reader holds the reset of u{unit}"
            ));
        }
        for unit in units {
            if last || !self.is_stuck(&self.units[unit]) {
                return Some(format!(
                    "{who:?}: u{unit} is left over: {}",
                    self.units[unit]
                ));
            }
        }
        let session = self.session(who)?;
        if !last {
            return None;
        }
        let (flows, buffered, lent) = (session.flow_count(), session.buffered(), session.lent());
        if flows > 0 || buffered != (0, 0) || lent > 0 {
            return Some(format!(
                "{who:?}: {flows} flows, {buffered:?} bytes, {lent} lent are left"
            ));
        }
        if session.wants_link() {
            return Some(format!("{who:?}: control messages are left unacknowledged"));
        }
        if !session.is_attached() {
            return Some(format!("{who:?}: without flows and link, and not ended"));
        }
        None
    }
}

/// Two byte strings and an ending each.
fn judge(unit: &Unit) -> Result<(), String> {
    let [Some(app), origin] = &unit.sockets else {
        return Err("no application".to_owned());
    };
    let Some(origin) = origin else {
        return if app.app_rst || app.saw_rst {
            Ok(())
        } else {
            Err("never opened, and the application was not told".to_owned())
        };
    };
    for (side, from, to) in [(CLIENT, app, origin), (SERVER, origin, app)] {
        judge_half(unit, from, to).map_err(|what| format!("from side {side}: {what}"))?;
    }
    Ok(())
}

fn judge_half(unit: &Unit, from: &Socket, to: &Socket) -> Result<(), String> {
    let (wrote, got) = (from.wrote, to.got);
    if got > wrote {
        return Err(format!("{got} bytes read, {wrote} written"));
    }
    if to.saw_fin && !(from.app_fin && got == wrote) {
        return Err(format!(
            "FIN read after {got} of {wrote} bytes, sent: {}",
            from.app_fin
        ));
    }
    if unit.aborted.is_some() {
        return if to.is_told() {
            Ok(())
        } else {
            Err("the flow was aborted, and this end was not told".to_owned())
        };
    }
    let resets = [from.app_rst, to.app_rst, from.saw_rst, to.saw_rst];
    if resets == [false; 4] && !(from.app_fin && to.saw_fin && got == wrote) {
        return Err(format!(
            "{got} of {wrote} bytes, FIN {}/{}",
            from.app_fin, to.saw_fin
        ));
    }
    if from.app_rst && !to.app_rst {
        let ended = to.app_fin && to.saw_fin;
        if !to.saw_rst && !ended {
            return Err("a reset was not passed on".to_owned());
        }
        if to.saw_rst && !unit.stalled_reset && got != wrote {
            return Err(format!("reset after {got} of {wrote} bytes"));
        }
    }
    if to.saw_rst && !from.app_rst {
        return Err("a reset that nobody sent".to_owned());
    }
    Ok(())
}
