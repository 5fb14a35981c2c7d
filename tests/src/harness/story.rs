//! What stories are told with: a calm world, and short words for what happens in it.

use super::socket::Socket;
use super::world::{CLIENT, Knobs, SERVER, Who, World};
use std::time::Duration;
use tund_session::LinkId;

/// Turns after which something that should come to rest does not.
const TURNS: usize = 100_000;

impl Knobs {
    /// Room for everything.
    pub const ROOMY: Self = Self {
        buffer: [1 << 20, 1 << 20],
        max_flows: [64, 64],
        ring: 64 * 1024,
        send_queue: 1 << 20,
        memory: 1 << 40,
        stored: false,
        datagrams: false,
        handed: false,
        max_grace: Duration::from_secs(3600),
    };
}

impl World {
    /// A world in which nothing happens by itself.
    pub fn calm(knobs: Knobs) -> Self {
        Self::new(1, knobs)
    }

    /// Moves whatever can move at once; readers read only if `reading`.
    ///
    /// # Panics
    ///
    /// If it never ends, or a fault is found.
    pub fn work(&mut self, reading: bool) {
        for _ in 0..TURNS {
            let mut acted = self.run_links();
            for who in self.ends() {
                for flow in self.flows(who) {
                    acted |= self.work_on(who, flow);
                }
            }
            if reading {
                for socket in self
                    .units
                    .iter_mut()
                    .flat_map(|u| u.sockets.iter_mut().flatten())
                {
                    acted |= socket.read(u64::MAX);
                }
            }
            self.check();
            self.demand();
            if !acted {
                return;
            }
        }
        panic!("the world does not come to rest");
    }

    /// Every flow has a turn at both ends; nothing moves on links.
    pub fn run_flows(&mut self) {
        for who in self.ends() {
            for flow in self.flows(who) {
                self.work_on(who, flow);
            }
        }
    }

    /// No fault so far.
    ///
    /// # Panics
    ///
    /// With the fault, and the story if it is kept.
    pub fn demand(&self) {
        if let Some(fault) = &self.fault {
            let story = self.story.as_ref().map(|lines| lines.join("\n"));
            panic!("{fault}\n{}", story.unwrap_or_default());
        }
    }

    /// Lets time pass while everything but readers works.
    pub fn work_for(&mut self, span: Duration) {
        let until = self.now + span;
        while self.now < until {
            self.work(false);
            let next = self
                .next_deadline()
                .filter(|at| *at < until)
                .unwrap_or(until);
            self.pass(next.saturating_duration_since(self.now));
            self.demand();
        }
        self.work(false);
    }

    /// The client gets a link, and it is confirmed.
    pub fn attach(&mut self) -> LinkId {
        let link = self.dial().unwrap_or_default();
        self.work(false);
        link
    }

    /// A flow whose origin has answered, over a link that is there or made.
    ///
    /// # Panics
    ///
    /// If it cannot be had.
    pub fn connect(&mut self) -> usize {
        let unit = self
            .open(Duration::from_secs(300))
            .expect("room for a flow");
        if !self
            .client
            .as_ref()
            .is_some_and(|client| client.session.is_attached())
        {
            self.attach();
        }
        self.work(false);
        assert!(
            self.socket(unit, CLIENT).connected,
            "u{unit} is not connected"
        );
        unit
    }

    /// The application's or the origin's connection.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn socket(&mut self, unit: usize, side: usize) -> &mut Socket {
        let socket = self.units[unit].sockets[side].as_mut();
        socket.expect("a connection on that side")
    }

    /// The server's only session that is in use.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn server(&self) -> Who {
        let id = self.client.as_ref().and_then(|client| client.session.id());
        Who::Server(id.expect("a session that both know"))
    }

    /// Both kernels are told that a link is gone.
    pub fn lose(&mut self, link: LinkId) {
        self.cut(link, &[CLIENT, SERVER], &[CLIENT, SERVER]);
        self.demand();
    }

    /// A link goes silent; nobody is told.
    pub fn silence(&mut self, link: LinkId) {
        self.cut(link, &[CLIENT, SERVER], &[]);
    }
}
