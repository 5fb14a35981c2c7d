//! Names looked up past our own TUN: at this host's name servers, by sockets bound to devices.
//!
//! The resolver of the C library asks by ordinary sockets, and the user may steer everything into
//! the TUN; then the server could not be found because it has not been found. It is asked last,
//! for what only it knows: name servers on this host itself, and other sources of names.

pub(crate) mod nat64;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::os::fd::AsFd as _;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, TYPE};
use socket2::{Domain, Protocol, Socket, Type};

use tund_daemon::resolv_conf::DNS_PORT;

use super::route::Path;

/// Ways of asking, at once: name servers times devices.
const QUERIES_MAX: usize = 8;
/// A question is put so often …
const TRIES: u8 = 3;
/// … with so many milliseconds for an answer: a slow mobile network needs one.
const PATIENCE_MS: u16 = 1000;
/// What a server sends without being asked for more (RFC 1035 §4.2.1), and some more.
const ANSWER_BYTES: usize = 4096;
/// Addresses of one name, at most.
const ADDRESSES_MAX: usize = 16;
/// Looks at what has come, in one try: somebody may send nonsense without end.
const READS_MAX: usize = 64;

/// A name server, and a device that leads to it.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    /// Where to ask.
    pub(crate) server: SocketAddr,
    /// By which device.
    pub(crate) path: Path,
}

/// The addresses of `name`: as `/etc/hosts` says, else as a name server outside says, else, if
/// `asks_library`, as the C library finds them. Blocks, for some seconds at most.
pub(crate) fn look_up(name: &str, ways: &[Way], fwmark: u32, asks_library: bool) -> Vec<IpAddr> {
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let mut found = in_hosts(&hosts, name);
    if found.is_empty() {
        found = ask(name, ways, fwmark);
    }
    if found.is_empty() && asks_library {
        let by_library = (name, DNS_PORT).to_socket_addrs();
        found.extend(by_library.into_iter().flatten().map(|at| at.ip()));
    }
    found.truncate(ADDRESSES_MAX);
    found
}

fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        words
            .any(|word| word.eq_ignore_ascii_case(name))
            .then_some(address)
    });
    lines.collect()
}

/// A question on its way: which family, and whether it was answered.
struct Query {
    socket: UdpSocket,
    id: u16,
    kind: TYPE,
    is_answered: bool,
}

/// Asks every way at once for both families; the first that knows any address has the say, as
/// soon as it has said all.
fn ask(name: &str, ways: &[Way], fwmark: u32) -> Vec<IpAddr> {
    let mut queries = Vec::new();
    for way in ways.iter().take(QUERIES_MAX) {
        match open(way, fwmark) {
            Ok(pair) => queries.push(pair),
            Err(error) => tracing::debug!(%error, "a name server cannot be asked"),
        }
    }
    let mut found: Vec<Vec<IpAddr>> = vec![Vec::new(); queries.len()];
    for _ in 0..TRIES {
        for query in queries.iter().flatten().filter(|query| !query.is_answered) {
            if let Some(bytes) = question(name, query) {
                // A network that is just going is asked again, or another is.
                let _sent = query.socket.send(&bytes).is_ok();
            }
        }
        for _ in 0..READS_MAX {
            if !wait_for_answers(&queries) {
                break;
            }
            let mut has_read = false;
            for (pair, found) in queries.iter_mut().zip(&mut found) {
                for query in pair.iter_mut().filter(|query| !query.is_answered) {
                    has_read |= read(name, query, found);
                }
            }
            let complete = queries.iter().zip(&found).find(|(pair, found)| {
                !found.is_empty() && pair.iter().all(|query| query.is_answered)
            });
            if let Some((_, found)) = complete {
                return found.clone();
            }
            if !has_read {
                break; // an error of a socket: nothing is gained by looking again
            }
        }
    }
    found
        .into_iter()
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

/// One socket for each family of addresses.
fn open(way: &Way, fwmark: u32) -> io::Result<[Query; 2]> {
    let query = |kind| -> io::Result<Query> {
        let type_ = Type::DGRAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(way.server), type_, Some(Protocol::UDP))?;
        socket.set_mark(fwmark)?;
        if !way.path.local {
            socket.bind_device(Some(way.path.interface.as_bytes()))?;
        }
        socket.connect(&way.server.into())?;
        let mut id = [0; 2];
        getrandom::fill(&mut id).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Query {
            socket: socket.into(),
            id: u16::from_ne_bytes(id),
            kind,
            is_answered: false,
        })
    };
    Ok([query(TYPE::A)?, query(TYPE::AAAA)?])
}

fn question(name: &str, query: &Query) -> Option<Vec<u8>> {
    let mut packet = Packet::new_query(query.id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name).ok()?;
    packet.questions.push(Question::new(
        name,
        query.kind.into(),
        CLASS::IN.into(),
        false,
    ));
    packet.build_bytes_vec().ok()
}

/// Whether something has come before the patience for one try is over.
fn wait_for_answers(queries: &[[Query; 2]]) -> bool {
    let waiting = queries.iter().flatten().filter(|query| !query.is_answered);
    let mut sockets: Vec<_> = waiting
        .map(|query| PollFd::new(query.socket.as_fd(), PollFlags::POLLIN))
        .collect();
    !sockets.is_empty()
        && poll(&mut sockets, PollTimeout::from(PATIENCE_MS)).is_ok_and(|count| count > 0)
}

/// Reads what has come for a question; true if anything has.
fn read(name: &str, query: &mut Query, found: &mut Vec<IpAddr>) -> bool {
    let mut bytes = [0; ANSWER_BYTES];
    let Ok(length) = query.socket.recv(&mut bytes) else {
        return false;
    };
    if let Some(addresses) = bytes
        .get(..length)
        .and_then(|bytes| answer(name, query, bytes))
    {
        query.is_answered = true;
        found.extend(addresses);
    }
    true
}

/// The addresses in an answer to that question; none if it is no such answer.
fn answer(name: &str, query: &Query, bytes: &[u8]) -> Option<Vec<IpAddr>> {
    let packet = Packet::parse(bytes).ok()?;
    let asked = packet.questions.first()?;
    let is_ours = packet.id() == query.id
        && packet.has_flags(PacketFlag::RESPONSE)
        && asked.qtype == query.kind.into()
        && asked
            .qname
            .to_string()
            .eq_ignore_ascii_case(name.trim_end_matches('.'));
    let addresses = packet.answers.iter().filter_map(|record| {
        if let RData::A(a) = &record.rdata {
            Some(IpAddr::V4(Ipv4Addr::from(a.address)))
        } else if let RData::AAAA(aaaa) = &record.rdata {
            Some(IpAddr::V6(Ipv6Addr::from(aaaa.address)))
        } else {
            None
        }
    });
    is_ours.then(|| addresses.take(ADDRESSES_MAX).collect())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use simple_dns::ResourceRecord;
    use simple_dns::rdata::{A, AAAA};

    use super::*;
    use crate::sys::testing::{Neighbour, in_namespace, ip};

    #[test]
    fn hosts_are_found_by_any_of_their_names() {
        let text = "192.0.2.1 one uno # two\n2001:db8::2\ttwo ONE\nnonsense one\n";

        let one: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::2".parse().unwrap()];
        assert_eq!(in_hosts(text, "one"), one);
        assert_eq!(in_hosts(text, "uno"), one[..1]);
        assert_eq!(in_hosts(text, "Two"), one[1..]);
        assert!(in_hosts(text, "three").is_empty());
    }

    /// Answers questions about `server.example` as a name server does.
    fn serve(socket: &UdpSocket, questions: usize) {
        let mut bytes = [0; 512];
        for _ in 0..questions {
            let (length, from) = socket.recv_from(&mut bytes).unwrap();
            let query = Packet::parse(&bytes[..length]).unwrap();
            let mut reply = Packet::new_reply(query.id());
            let asked = query.questions[0].clone();
            let rdata = if asked.qtype == TYPE::A.into() {
                RData::A(A {
                    address: Ipv4Addr::new(192, 0, 2, 7).into(),
                })
            } else {
                let address: Ipv6Addr = "2001:db8::7".parse().unwrap();
                RData::AAAA(AAAA {
                    address: address.into(),
                })
            };
            let name = asked.qname.clone();
            reply.questions.push(asked);
            // What is not an answer to the question must not end the waiting for it.
            socket.send_to(&[0; 20], from).unwrap();
            reply
                .answers
                .push(ResourceRecord::new(name, CLASS::IN, 60, rdata));
            socket
                .send_to(&reply.build_bytes_vec().unwrap(), from)
                .unwrap();
        }
    }

    #[test]
    fn a_name_is_found_by_the_device_though_all_else_is_steered_elsewhere() {
        in_namespace(|| {
            let neighbour = Neighbour::new();
            ip("link add wifi type veth peer name far");
            ip(&format!("link set far netns {}", neighbour.tid()));
            ip("address add 198.51.100.2/24 dev wifi");
            ip("link set wifi up");
            ip("route add default via 198.51.100.1 dev wifi");
            // Nothing comes out of here, as of a TUN whose daemon has no link.
            ip("link add tund0 type veth peer name nowhere");
            ip("link set nowhere up");
            ip("link set tund0 up");
            ip("route add 0.0.0.0/1 dev tund0");
            ip("route add 128.0.0.0/1 dev tund0");
            let socket = neighbour.run(|| {
                ip("address add 198.51.100.1/24 dev far");
                ip("address add 203.0.113.53/32 dev lo");
                ip("link set far up");
                UdpSocket::bind("203.0.113.53:53").unwrap()
            });
            let server = thread::spawn(move || serve(&socket, 2));
            let way = Way {
                server: "203.0.113.53:53".parse().unwrap(),
                path: Path {
                    interface: "wifi".to_owned(),
                    index: 0,
                    source: "198.51.100.2".parse().unwrap(),
                    gateway: None,
                    local: false,
                },
            };

            let mut found = ask("server.example", &[way], 0x7d00_0000);
            server.join().unwrap();

            found.sort_unstable();
            let expected: [IpAddr; 2] =
                ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
            assert_eq!(found, expected);
        });
    }

    #[test]
    fn who_cannot_be_asked_is_waited_for_no_longer_than_need_be() {
        in_namespace(|| assert!(ask("server.example", &[], 0).is_empty()));
    }
}
