//! A name server with a few names, by UDP and TCP.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use simple_dns::rdata::{A, AAAA, RData};
use simple_dns::{CLASS, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};

use super::namespace::Namespace;

/// Names whose answers do not fit a datagram begin so.
const LONG: &str = "long.";

/// It answers until the lab is gone.
#[derive(Debug)]
pub struct NameServer {
    asked: Arc<AtomicU64>,
}

impl NameServer {
    /// Starts it on port 53 of `address` in `host`, with an address or more of each name.
    #[track_caller]
    pub fn start(host: &Namespace, address: IpAddr, names: &[(&str, &[IpAddr])]) -> Self {
        let at = SocketAddr::new(address, 53);
        let (udp, tcp) = host.enter(|| (UdpSocket::bind(at), TcpListener::bind(at)));
        let (udp, tcp) = (udp.expect("a port of its own"), tcp.expect("and for TCP"));
        let asked = Arc::new(AtomicU64::new(0));
        let names: Arc<Vec<(String, Vec<IpAddr>)>> = Arc::new(
            names
                .iter()
                .map(|(name, addresses)| ((*name).to_owned(), addresses.to_vec()))
                .collect(),
        );
        let (of_udp, counted) = (Arc::clone(&names), Arc::clone(&asked));
        drop(thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((len, from)) = udp.recv_from(&mut buffer) {
                counted.fetch_add(1, Ordering::Relaxed);
                let answer = buffer
                    .get(..len)
                    .and_then(|message| answer(&of_udp, message, false));
                let _lost = answer.is_none_or(|answer| udp.send_to(&answer, from).is_err());
            }
        }));
        let counted = Arc::clone(&asked);
        drop(thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                counted.fetch_add(1, Ordering::Relaxed);
                let (mut reader, mut writer) = (&stream, &stream);
                let mut len = [0; 2];
                if reader.read_exact(&mut len).is_err() {
                    continue;
                }
                let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
                if reader.read_exact(&mut message).is_err() {
                    continue;
                }
                if let Some(answer) = answer(&names, &message, true) {
                    let len = u16::try_from(answer.len()).unwrap_or(u16::MAX);
                    let framed = [&len.to_be_bytes()[..], &answer].concat();
                    let _lost = writer.write_all(&framed).is_err();
                }
            }
        }));
        Self { asked }
    }

    /// Questions that it has got.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

fn answer(names: &[(String, Vec<IpAddr>)], message: &[u8], is_tcp: bool) -> Option<Vec<u8>> {
    let query = Packet::parse(message).ok()?;
    let question = query.questions.first()?;
    let mut reply = Packet::new_reply(query.id());
    reply.questions.push(question.clone());
    let name = question.qname.to_string();
    match names.iter().find(|(known, _)| *known == name) {
        None => *reply.rcode_mut() = RCODE::NameError,
        Some(_) if name.starts_with(LONG) && !is_tcp => reply.set_flags(PacketFlag::TRUNCATION),
        Some((_, addresses)) => {
            let records = addresses.iter().filter_map(|address| {
                let (kind, rdata) = match address {
                    IpAddr::V4(v4) => (TYPE::A, RData::A(A::from(*v4))),
                    IpAddr::V6(v6) => (TYPE::AAAA, RData::AAAA(AAAA::from(*v6))),
                };
                let record = ResourceRecord::new(question.qname.clone(), CLASS::IN, 60, rdata);
                (question.qtype == QTYPE::TYPE(kind)).then_some(record)
            });
            reply.answers.extend(records);
        }
    }
    reply.build_bytes_vec_compressed().ok()
}
