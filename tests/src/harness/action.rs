//! What happens when an action's turn comes.

use super::collector::Pace;
use super::coverage::Situation;
use super::rng::Rng;
use super::schedule::{Action, Kind};
use super::world::{CLIENT, SERVER, Who, World};
use std::time::Duration;
use tund_session::wire::frame::CloseCode;
use tund_session::{FlowId, LinkId, Session};

impl World {
    /// Lets an action happen.
    pub fn apply(&mut self, action: Action) {
        let rng = &mut Rng::new(action.number);
        match action.kind {
            Kind::Deliver => self.some_delivery(rng),
            Kind::Transmit => self.some_transmission(rng),
            Kind::Application => self.some_application(rng),
            Kind::Pump => self.some_pump(rng),
            Kind::Open => {
                let most = if self.knobs.handed { 40 } else { 12 };
                let live = self.units.iter().flat_map(|u| u.sockets.iter().flatten());
                if live.filter(|socket| !socket.is_told()).count() < 14 && self.units.len() < most {
                    let grace = rng.pick(&[60, 300]);
                    self.open(Duration::from_secs(grace));
                }
            }
            Kind::Datagrams => self.some_datagrams(rng),
            Kind::Dial => self.some_dial(rng),
            Kind::Run => self.run_a_while(rng),
            Kind::Finish => {
                self.heal_turn();
            }
            Kind::Overtake => self.overtake(rng),
            Kind::Wait => self.some_wait(rng),
            Kind::Tick => {
                if self.next_deadline().is_some_and(|at| at > self.now) {
                    self.met(Situation::EarlyTimeout);
                }
                self.timeouts();
            }
            Kind::Steer => self.some_steering(rng),
            Kind::Break => self.some_break(rng),
            Kind::Outage => self.some_outage(rng),
            Kind::Disconnect => {
                self.some_vanishing(rng);
                let idle = self
                    .client
                    .as_ref()
                    .is_some_and(|c| c.session.flow_count() == 0);
                self.close(if idle {
                    CloseCode::Idle
                } else {
                    CloseCode::Asked
                });
            }
            Kind::RestartServer => self.restart_server(),
            Kind::RestartClient => {
                self.some_vanishing(rng);
                self.restart_client();
            }
        }
        self.check();
    }

    fn some_delivery(&mut self, rng: &mut Rng) {
        let ways = self
            .pipes
            .values()
            .flat_map(|pipe| [(pipe, CLIENT), (pipe, SERVER)]);
        let ways = ways.filter(|(pipe, side)| pipe.lanes[*side].is_deliverable());
        let ways: Vec<(LinkId, usize)> = ways.map(|(pipe, side)| (pipe.id, side)).collect();
        if ways.is_empty() {
            return;
        }
        let (link, side) = rng.pick(&ways);
        let count = rng.pick(&[1, 5, 20, 60, 60, 300, usize::MAX, usize::MAX]);
        self.deliver(link, side, count);
    }

    fn some_transmission(&mut self, rng: &mut Rng) {
        let ways = self
            .pipes
            .keys()
            .flat_map(|link| [(*link, CLIENT), (*link, SERVER)]);
        let ways: Vec<_> = ways
            .filter(|(link, side)| self.wants_to_send(*link, *side))
            .collect();
        if ways.is_empty() {
            return;
        }
        let (link, side) = rng.pick(&ways);
        let budget = rng.pick(&[1, 1, 30, 100, 2000, 60_000]);
        self.transmit(link, side, budget);
    }

    fn some_application(&mut self, rng: &mut Rng) {
        let alive: Vec<(usize, usize)> = (0..self.units.len())
            .flat_map(|unit| [(unit, CLIENT), (unit, SERVER)])
            .filter(|(unit, side)| self.units[*unit].sockets[*side].is_some())
            .collect();
        if alive.is_empty() {
            return;
        }
        let (unit, side) = rng.pick(&alive);
        let Some(socket) = &mut self.units[unit].sockets[side] else {
            return;
        };
        let half_closed = socket.saw_fin;
        let chosen = rng.below(100);
        let mut said = None;
        match chosen {
            0..50 => {
                let wrote = socket.write(rng.pick(&[1, 2, 5, 100, 3000, 40_000]));
                if wrote > 0 && half_closed {
                    self.met(Situation::HalfClose);
                }
                said = Some(format!("writes {wrote}"));
            }
            50..80 => {
                socket.read(rng.pick(&[1, 3, 100, 50_000]));
            }
            80..90 => said = socket.finish().then(|| "finishes".to_owned()),
            90..96 => said = socket.reset_by_app().then(|| "resets".to_owned()),
            _ => socket.stuck ^= true,
        }
        if let Some(said) = said {
            self.tell(|| format!("u{unit} side {side} {said}"));
        }
    }

    fn some_pump(&mut self, rng: &mut Rng) {
        let mut flows = Vec::new();
        for who in self.ends() {
            flows.extend(self.flows(who).into_iter().map(|flow| (who, flow)));
        }
        if rng.chance(20) {
            self.answer_late(rng);
        }
        self.some_deliveries(rng);
        if flows.is_empty() {
            return;
        }
        let (who, flow) = rng.pick(&flows);
        self.serve(who, flow, rng);
    }

    /// Both drivers work on what is stored, or do not.
    fn some_deliveries(&mut self, rng: &mut Rng) {
        if !self.shelf.is_empty() && rng.chance(50) {
            self.want_session();
            self.deliver_stored(rng.pick(&[1, 9, 90, 500, 70_000]));
        }
        if !self.desk.is_idle() && rng.chance(50) {
            self.collect(Pace::Random(rng));
        }
    }

    /// One turn of a driver for a flow, or the answer of its origin.
    fn serve(&mut self, who: Who, flow: FlowId, rng: &mut Rng) {
        let waits = self
            .books(who)
            .and_then(|books| books.locals.get(&flow))
            .is_some_and(|local| !local.accepted);
        match who {
            Who::Server(id) if waits => {
                if rng.chance(35) {
                    self.answer(id, flow, rng.chance(15));
                }
            }
            Who::Server(_) | Who::Client => {
                self.pump(who, flow, rng.pick(&[1, 3, 9, 500, 70_000]));
            }
        }
    }

    fn run_a_while(&mut self, rng: &mut Rng) {
        let rounds = rng.pick(&[1, 1, 2, 4]);
        let readers_too = rng.chance(50);
        for _ in 0..rounds {
            self.run_links();
            self.serve_all(rng);
            if readers_too {
                let sockets = self
                    .units
                    .iter_mut()
                    .flat_map(|u| u.sockets.iter_mut().flatten());
                for socket in sockets {
                    socket.read(100);
                }
            }
        }
        self.run_links();
    }

    fn overtake(&mut self, rng: &mut Rng) {
        let Some(client) = &self.client else {
            return;
        };
        if client.books.links.len() > 4 {
            return;
        }
        let carriers = self
            .ends()
            .into_iter()
            .map(|who| (self.carrier(who), who.side()));
        let carriers: Vec<_> = carriers
            .filter_map(|(link, side)| Some((link?, side)))
            .collect();
        self.serve_all(rng);
        for (link, side) in carriers {
            self.transmit(link, side, rng.pick(&[100, 2000]));
        }
        let Some(new) = self.dial() else {
            return;
        };
        for side in [CLIENT, SERVER, CLIENT, SERVER] {
            if rng.chance(60) {
                self.some_application(rng);
                self.some_application(rng);
                if rng.chance(30) {
                    self.some_finish(rng);
                }
                self.serve_all(rng);
            }
            self.transmit(new, side, rng.pick(&[1, 100, 2000]));
            self.deliver(new, side, usize::MAX);
        }
    }

    fn some_finish(&mut self, rng: &mut Rng) {
        let unit = rng.below(self.units.len());
        let side = rng.pick(&[CLIENT, SERVER]);
        if let Some(Some(socket)) = self.units.get_mut(unit).map(|u| u.sockets[side].as_mut()) {
            socket.finish();
        }
    }

    fn carrier(&self, who: Who) -> Option<LinkId> {
        self.session(who).and_then(Session::carrier)
    }

    fn serve_all(&mut self, rng: &mut Rng) {
        self.catch_due();
        for who in self.ends() {
            for flow in self.flows(who) {
                self.serve(who, flow, rng);
            }
        }
        self.some_deliveries(rng);
    }

    fn some_dial(&mut self, rng: &mut Rng) {
        let Some(client) = &self.client else {
            return;
        };
        let live = client.session.live_links().count();
        let attempts = client.books.links.len() - live.min(client.books.links.len());
        let wanted = !client.session.is_attached() || rng.chance(50);
        if attempts < 3 && wanted {
            self.dial();
        }
    }

    fn some_wait(&mut self, rng: &mut Rng) {
        let span = Duration::from_millis(rng.pick(&[3, 200, 1000, 1000, 3000, 6000]));
        self.tell(|| format!("{span:?} pass"));
        match rng.below(4) {
            0 => self.sleep(span),
            1 => self.pass_running(span),
            _ => self.pass(span),
        }
    }

    /// The network is gone, and nobody is told.
    fn some_vanishing(&mut self, rng: &mut Rng) {
        if rng.chance(30) {
            for link in self.pipes.keys().copied().collect::<Vec<_>>() {
                self.cut(link, &[CLIENT, SERVER], &[]);
            }
        }
    }

    fn some_outage(&mut self, rng: &mut Rng) {
        let idle = self
            .client
            .as_ref()
            .is_none_or(|c| c.session.flow_count() == 0);
        let spans: &[u64] = if idle {
            &[20, 700]
        } else {
            &[20, 70, 100, 100, 340, 700]
        };
        let span = Duration::from_secs(rng.pick(spans));
        self.tell(|| format!("{span:?} pass"));
        match rng.below(4) {
            0 => self.sleep(span),
            1 => self.pass_running(span),
            _ => self.pass(span),
        }
    }

    /// What the owner of the client's session knows of its networks.
    fn some_steering(&mut self, rng: &mut Rng) {
        let now = self.now;
        let Some(client) = &mut self.client else {
            return;
        };
        let links: Vec<LinkId> = client.books.links.iter().copied().collect();
        if links.is_empty() {
            return;
        }
        let link = rng.pick(&links);
        let before = client.session.carrier();
        let chosen = rng.below(100);
        match chosen {
            0..40 => client.session.keep(link, true, now),
            40..55 => client.session.keep(link, false, now),
            55..90 => client.session.prefer(link, rng.pick(&[0, 1, 2]), now),
            90..95 => client.session.handle_link_lost(link, now),
            _ => client.session.handle_link_found(link, now),
        }
        let is_moved = client.session.carrier() != before && client.session.is_attached();
        if is_moved && before.is_some() {
            self.met(Situation::Moved);
        }
        if (90..95).contains(&chosen) {
            self.met(Situation::LostByDevice);
        }
        self.tell(|| format!("owner steers {link}: {chosen}"));
        self.drain();
    }

    fn some_break(&mut self, rng: &mut Rng) {
        let links: Vec<LinkId> = self.pipes.keys().copied().collect();
        if links.is_empty() {
            return;
        }
        let link = rng.pick(&links);
        match rng.below(100) {
            0..30 => self.cut(link, &[CLIENT, SERVER], &[CLIENT, SERVER]),
            30..55 => {
                let noticed: &[usize] = rng.pick(&[&[CLIENT], &[SERVER], &[]]);
                self.cut(link, &[CLIENT, SERVER], noticed);
            }
            55..65 => {
                let way: &[usize] = rng.pick(&[&[CLIENT], &[SERVER]]);
                self.cut(link, way, &[]);
            }
            _ => self.stall(link, rng),
        }
    }

    fn stall(&mut self, link: LinkId, rng: &mut Rng) {
        let ways: &[usize] = rng.pick(&[&[CLIENT], &[SERVER], &[CLIENT, SERVER]]);
        let Some(pipe) = self.pipes.get_mut(&link) else {
            return;
        };
        for way in ways {
            pipe.lanes[*way].stalled ^= true;
        }
        pipe.acknowledge();
        let stalled = pipe.lanes.each_ref().map(|lane| lane.stalled);
        self.tell(|| format!("{link} stalled {stalled:?}"));
        match stalled {
            [true, true] => self.met(Situation::StalledBothWays),
            [false, false] => {}
            _ => self.met(Situation::StalledOneWay),
        }
    }

    /// Cuts a link for good; the kernels of `noticed` are told at once.
    pub fn cut(&mut self, link: LinkId, ways: &[usize], noticed: &[usize]) {
        self.tell(|| format!("{link} is cut, ways {ways:?}, noticed by {noticed:?}"));
        for way in ways {
            let Some(pipe) = self.pipes.get_mut(&link) else {
                return;
            };
            if pipe.lanes[*way].is_mid_frame() {
                self.coverage.met(Situation::CutMidFrame);
            }
            for numbered in pipe.cut(*way) {
                self.saw_lost(link, *way, &numbered);
            }
        }
        if noticed.len() == 1 {
            self.met(Situation::NoticedByOne);
        }
        if ways.len() == 1 {
            self.met(Situation::OneWayCut);
        }
        for side in noticed {
            self.let_go(link, *side, super::pipe::Farewell::Silent);
        }
        self.drain();
    }
}
