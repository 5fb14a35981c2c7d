//! The resolver: on a thread of its own, it takes questions of clients from sockets on loopback, and
//! puts them to this host's name servers.

mod ask;
mod bounded;
mod guests;
mod name_servers;
mod serve;
#[cfg(test)]
mod tests;

use ask::Asker;
use guests::Guests;
use name_servers::NameServers;
use serve::Service;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tund_server_core::admission::{Admission, Protocol, Rule};
use tund_server_core::mapping::Mapping;
use tund_server_core::resolver;
use tund_session::SessionId;

pub(super) use guests::{Over, Socket};

/// The longest message of DNS over TCP, and more than any datagram has.
const MESSAGE_BYTES: usize = 65_535;
/// What serves and has ended is started again after so long.
const RESTART: Duration = Duration::from_secs(1);

/// The main thread's view of the resolver; without one, nobody gets answers.
#[derive(Debug)]
pub(super) struct Resolver {
    v4: Option<SocketAddr>,
    v6: Option<SocketAddr>,
    guests: Arc<Guests>,
    /// The thread lives, and with it the sockets.
    is_running: Arc<AtomicBool>,
    /// Its thread ends when this is dropped.
    stop: Option<oneshot::Sender<()>>,
}

impl Drop for Resolver {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

/// Says that the thread has ended, however it has.
struct Ending(Arc<AtomicBool>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Resolver {
    /// That of this host; `admission` says which addresses clients may learn.
    pub(super) fn of_this_host(admission: &Admission) -> Self {
        let name_servers = NameServers::of_this_host();
        Self::start(name_servers, admission.clone()).unwrap_or_else(|error| {
            tracing::warn!(%error, "clients get no names: the resolver cannot be started");
            Self::off()
        })
    }

    /// None.
    fn off() -> Self {
        Self {
            v4: None,
            v6: None,
            guests: Arc::new(Guests::new(Admission::new(Vec::new(), Vec::new(), []))),
            is_running: Arc::default(),
            stop: None,
        }
    }

    /// Starts it.
    ///
    /// # Errors
    ///
    /// No socket on loopback, or no thread.
    fn start(name_servers: NameServers, admission: Admission) -> io::Result<Self> {
        let v4 = Some(Sockets::bind(Ipv4Addr::LOCALHOST.into())?);
        let v6 = Sockets::bind(Ipv6Addr::LOCALHOST.into()).ok(); // A host may have no IPv6.
        let address = |sockets: &Option<Sockets>| sockets.as_ref().map(|sockets| sockets.address);
        let (stop, stopped) = oneshot::channel();
        let resolver = Self {
            v4: address(&v4),
            v6: address(&v6),
            guests: Arc::new(Guests::new(admission)),
            is_running: Arc::new(AtomicBool::new(true)),
            stop: Some(stop),
        };
        let service = Service::new(Arc::clone(&resolver.guests), Asker::new(name_servers));
        let service = Arc::new(service);
        let ending = Ending(Arc::clone(&resolver.is_running));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        thread::Builder::new()
            .name("resolver".to_owned())
            .spawn(move || {
                // Nobody is sent to ports that are about to be somebody else's.
                let _ending = ending;
                runtime.block_on(async move {
                    let mut serving = JoinSet::new();
                    for sockets in [v4, v6].into_iter().flatten() {
                        sockets.serve(&mut serving, &service);
                    }
                    tokio::select! {
                        () = service.tell() => {}
                        _stopped = stopped => {}
                    }
                });
            })?;
        Ok(resolver)
    }

    /// Where it listens, by UDP and TCP, for sockets of this version of IP.
    pub(super) fn address(&self, is_v4: bool) -> Option<SocketAddr> {
        let address = if is_v4 { self.v4 } else { self.v6 };
        address.filter(|_| self.is_running.load(Ordering::Acquire))
    }

    /// Where a client reaches it that asks for `destination`; none if it is not asked.
    pub(super) fn at(&self, destination: SocketAddr) -> Option<SocketAddr> {
        resolver::at(self.address(destination.is_ipv4()), destination)
    }

    /// What decides about the datagrams of a mapping, which may ask it too.
    pub(super) fn mapping(&self, protocol: Protocol, source: SocketAddr) -> Option<Mapping> {
        Mapping::new(protocol, source, self.address(source.is_ipv4()))
    }

    /// From now on that socket gets answers, those that its client, with these entries of its own,
    /// may have.
    pub(super) fn introduce(&self, socket: Socket, session: SessionId, allow: &[Rule]) {
        self.guests.introduce(socket, session, allow);
    }

    /// No more, if it was introduced.
    pub(super) fn forget(&self, socket: Option<Socket>) {
        if let Some(socket) = socket {
            self.guests.forget(socket);
        }
    }

    /// The session has ended.
    pub(super) fn end_session(&self, session: SessionId) {
        self.guests.end_session(session);
    }

    /// What may be reached has changed.
    pub(super) fn set_admission(&self, admission: &Admission) {
        self.guests.set_admission(admission.clone());
    }

    /// What the client of each session may reach beside has changed.
    pub(super) fn set_allow<'a>(&self, of: impl Fn(SessionId) -> &'a [Rule]) {
        self.guests.set_allow(of);
    }
}

/// What a thread that has panicked has left is whole: each change is made in one go.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Both sockets on one address.
struct Sockets {
    address: SocketAddr,
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

impl Sockets {
    fn bind(ip: IpAddr) -> io::Result<Self> {
        const TRIES: usize = 16;
        let mut tries = 0;
        loop {
            let tcp = std::net::TcpListener::bind((ip, 0))?;
            let address = tcp.local_addr()?;
            tries += 1;
            match std::net::UdpSocket::bind(address) {
                Ok(udp) => {
                    tcp.set_nonblocking(true)?;
                    udp.set_nonblocking(true)?;
                    return Ok(Self { address, udp, tcp });
                }
                // Somebody else's port.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < TRIES => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The sockets stay here, so that their port is nobody else's while what serves starts again.
    fn serve(self, serving: &mut JoinSet<()>, service: &Arc<Service>) {
        let (udp, tcp) = (self.udp, self.tcp);
        let of = Arc::clone(service);
        serving.spawn(keep("datagrams", RESTART, move || {
            serve::datagrams(udp.try_clone(), Arc::clone(&of))
        }));
        let of = Arc::clone(service);
        serving.spawn(keep("connections", RESTART, move || {
            serve::connections(tcp.try_clone(), Arc::clone(&of))
        }));
    }
}

/// Runs what serves, and again when it has ended, which it is not meant to.
async fn keep<F>(what: &'static str, pause: Duration, serve: impl Fn() -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    loop {
        // A task of its own: one that panics ends alone.
        let mut serving = JoinSet::new();
        serving.spawn(serve());
        let ended = serving
            .join_next()
            .await
            .map(|ended| ended.map(Result::err));
        if let Some(Err(error)) = &ended {
            tracing::error!(%error, "the resolver took no more {what}; it starts again");
        } else {
            let error = ended.and_then(Result::ok).flatten();
            tracing::error!(?error, "the resolver took no more {what}; it starts again");
        }
        tokio::time::sleep(pause).await;
    }
}
