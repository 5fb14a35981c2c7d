//! Simulated clients and strangers: many at once, in one thread of a lab's namespace.
//!
//! A [`Crowd`] is made of whole clients: the core of the client daemon with its dialer and its
//! session, links over real sockets, and in place of a TUN device an application that speaks TCP in
//! packets. A [`Rogue`] is one listed client whose every frame is made by hand. [`Strangers`] have
//! no key that is listed.

mod application;
mod member;
mod rogue;
mod strangers;

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use tokio::sync::mpsc;
use tund_daemon::clock::{self, Alarm};
use tund_daemon::identity::{PrivateKey, PublicKey};
use tund_daemon::ready::ReadySet;
use tund_session::{Instant, LinkId};

use crate::lab::{Keys, Lab, Namespace};
use member::Member;

pub use member::View;
pub use rogue::Rogue;
pub use strangers::{Outcome, Strangers};

/// Networks of /24 that members are spread over.
pub const NETWORKS: u8 = 16;
/// Members of one crowd: each may have several sockets, and a process has 20,000 files here.
const MEMBERS_MAX: usize = 1000;
/// Orders that wait for the crowd's thread.
const ORDERS: usize = 16;
/// Bits of a token that are the link's number; above them is the member's.
const LINK_BITS: u32 = 40;

/// A key pair of a simulated client; the private half stays in the process.
#[expect(missing_debug_implementations, reason = "it holds a secret")]
pub struct Pair {
    /// The private key.
    pub private: PrivateKey,
    /// As the lab's server daemon takes it; there is no file.
    pub listed: Keys,
}

impl Pair {
    /// A new one.
    pub fn generate() -> Self {
        let private = PrivateKey::generate().expect("the kernel gives randomness");
        let public = private.public().to_string();
        let file = std::path::PathBuf::new();
        Self {
            private,
            listed: Keys { file, public },
        }
    }
}

/// The address of a member: they are dealt out to the networks in turn.
fn address_of(member: usize) -> Ipv4Addr {
    let network = u8::try_from(member % usize::from(NETWORKS)).expect("below 16");
    let host = u8::try_from(1 + member / usize::from(NETWORKS)).expect("at most 1,000 members");
    Ipv4Addr::new(10, 88, network, host)
}

/// Where a crowd's links and flows lead.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The server daemon.
    pub server: SocketAddr,
    /// Its key.
    pub key: PublicKey,
    /// An origin that sends back what comes.
    pub origin: SocketAddr,
}

enum Order {
    /// One byte there and back, by every member.
    Exchange,
}

/// Simulated clients that dial at once, each with a connection to the origin; when that is reset
/// they open the next one, as applications do.
#[derive(Debug)]
pub struct Crowd {
    views: Arc<Mutex<Vec<View>>>,
    /// Dropped first: the thread then ends.
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// Starts one client for each key on the lab's router, whose device towards the server gets
    /// the members' addresses.
    #[track_caller]
    pub fn start(lab: &Lab, target: Target, pairs: Vec<Pair>) -> Self {
        assert!(pairs.len() <= MEMBERS_MAX, "{} members", pairs.len());
        let addresses = (0..pairs.len()).map(|member| {
            let address = address_of(member);
            format!("addr add {address}/24 dev s0")
        });
        lab.router.ip_batch(&addresses.collect::<Vec<_>>());
        Self::run(&lab.router, target, pairs)
    }

    fn run(namespace: &Namespace, target: Target, pairs: Vec<Pair>) -> Self {
        let views = Arc::new(Mutex::new(vec![View::default(); pairs.len()]));
        let (orders, mut inbox) = mpsc::channel(ORDERS);
        let shared = Arc::clone(&views);
        let thread = namespace.spawn("crowd", move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be made");
            runtime.block_on(async {
                let mut body = Body::new(target, pairs, shared);
                let turns = poll_fn(|cx| body.poll(cx, &mut inbox));
                tokio::task::unconstrained(turns).await;
            });
        });
        Self {
            views,
            orders: Some(orders),
            thread: Some(thread),
        }
    }

    /// What each member has seen so far.
    pub fn views(&self) -> Vec<View> {
        self.views
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Has every member exchange one byte with the origin; [`View::echoes`] says when it is back.
    pub fn exchange(&self) {
        let orders = self.orders.as_ref().expect("dropped with the crowd only");
        orders
            .try_send(Order::Exchange)
            .unwrap_or_else(|error| panic!("the crowd takes orders: {error}"));
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed, and what it has not done is missed by the test.
            drop(thread.join());
        }
    }
}

/// What the thread owns.
struct Body {
    members: Vec<Member>,
    /// When each member wants to be called, as it said last.
    deadlines: Vec<Option<Instant>>,
    ready: ReadySet,
    woken: Vec<u64>,
    alarm: Alarm,
    views: Arc<Mutex<Vec<View>>>,
}

impl Body {
    fn new(target: Target, pairs: Vec<Pair>, views: Arc<Mutex<Vec<View>>>) -> Self {
        let now = clock::now();
        let members = pairs.into_iter().enumerate().map(|(index, pair)| {
            let number = u64::try_from(index).expect("at most 1,000");
            Member::new(target, &pair.private, (number, address_of(index)), now)
        });
        let members: Vec<_> = members.collect();
        Self {
            deadlines: vec![Some(now); members.len()],
            members,
            ready: ReadySet::new(),
            woken: Vec::new(),
            alarm: Alarm::new().expect("a timer can be made"),
            views,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, inbox: &mut mpsc::Receiver<Order>) -> Poll<()> {
        loop {
            let now = clock::now();
            match inbox.poll_recv(cx) {
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Ready(Some(Order::Exchange)) => {
                    for (member, deadline) in self.members.iter_mut().zip(&mut self.deadlines) {
                        member.exchange();
                        *deadline = Some(now);
                    }
                    cx.waker().wake_by_ref();
                }
                Poll::Pending => {}
            }
            let expired = self.alarm.poll_expired(cx).is_ready();
            let mut woken = std::mem::take(&mut self.woken);
            let ready = self.ready.poll_ready(cx, &mut woken).is_ready();
            for token in woken.drain(..) {
                let member = usize::try_from(token >> LINK_BITS).expect("a member's number");
                let link = LinkId(token & ((1 << LINK_BITS) - 1));
                self.members[member].wake(link);
                self.deadlines[member] = Some(now);
            }
            self.woken = woken;
            self.turn(now);
            if !(ready || expired) {
                let next = self.deadlines.iter().flatten().min().copied();
                self.alarm.set(next).expect("the timer can be set");
                return Poll::Pending;
            }
        }
    }

    /// A turn of everybody who has something to do.
    fn turn(&mut self, now: Instant) {
        for (index, member) in self.members.iter_mut().enumerate() {
            if self.deadlines[index].is_some_and(|at| at <= now) {
                member.turn(&self.ready, now);
                self.deadlines[index] = member.poll_timeout();
                let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
                views[index] = member.view();
            }
        }
    }
}
