//! Every bound and every length of time that is not configurable, and why it is what it is.

use std::time::Duration;

/// Share of the buffer, as a divisor, that is set aside for the floors of all possible flows.
pub const FLOOR_SHARE: u64 = 32;
/// No flow needs a greater floor than one frame; chosen.
pub const FLOOR_MAX: u64 = 16 * 1024;
/// What a new flow may hold at once while half of the pool is free: TCP's initial window,
/// rounded up (RFC 6928: 10 segments).
pub const INITIAL_SHARE: u64 = 16 * 1024;
/// The same when less is free: 9,500 idle flows still leave room for one that works.
pub const INITIAL_SHARE_SCARCE: u64 = 2 * 1024;
/// Share of the pool, as a divisor, that flows do not take in an outage: what was taken then may
/// have no reader afterwards, and others must be able to grow. Chosen: together with the floors it
/// is 1/16 of the buffer.
pub const GROWING_SHARE: u64 = 32;
/// How far beyond what was taken a local window is promised: the receive ring of connection A.
pub const INTAKE_AHEAD: u64 = 256 * 1024;
/// Control messages under way without acknowledgement, and held out of order; push back.
pub const CONTROL_WINDOW: u64 = 1024;
/// Pieces shorter than [`COPY_BELOW`] held out of order in one session; beyond it the peer breaks
/// the protocol (close). Each costs some 100 bytes beside its own, which no credit counts; those
/// that touch become one, so an honest peer has hardly more of them than links have died.
pub const PIECES_OUT_OF_ORDER: usize = 65_536;
/// Payloads shorter than this are copied, so that they do not pin a whole read buffer.
pub const COPY_BELOW: usize = 4 * 1024;
/// The most that a link is read into at once; a payload that is not copied keeps all of it.
pub const READ_BUFFER: u64 = 128 * 1024;
/// Payloads of a session that may wait for local sockets without being copied, though the buffer is
/// small; with a larger one as many as keep no more memory than it. Chosen: the frames of two turns
/// of a driver, so that readers who keep up cost no copy.
pub const SLICES: u64 = 64;
/// Links of one session at once, attaches under way included; more are refused.
pub const LINKS: usize = 32;
/// LINK_DOWNs of a session that were never sent; beyond it the oldest is forgotten. A network that
/// lets RESUME through and no answer would make them without end. Chosen: twice what a peer holds.
pub const LINKS_DOWN: usize = 64;
/// Link secrets kept at the server for one session; the oldest never confirmed is forgotten.
pub const SECRETS: usize = 256;
/// Link-level frames waiting on one link (PONGs to a peer that does not read); close the link.
pub const LINK_FRAMES: usize = 64;
/// Bytes of one turn of a flow in the send schedule: one full frame.
pub const QUANTUM: i64 = 16 * 1024;
/// The same in everybody's first turn after an outage: a thousand flows have their first byte
/// 0.35 s after the attach at 50 Mbit/s, where full turns would take 2.7 s. Chosen; a smaller one
/// would cost more in headers.
pub const FIRST_QUANTUM: i64 = 2 * 1024;
/// What a link encrypts as one record (RFC 8446 §5.1); DATA is cut to end with it.
pub const RECORD: usize = 16 * 1024;
/// The same for the first of a link: what comes in one segment on any usual path. A new connection may
/// have ten segments under way (RFC 6928); of a full record, and of a frame as long, too few to be read
/// before the next round trip.
pub const FIRST_RECORD: usize = 1300;
/// What a link encrypts in such records; chosen: the ten segments, and those that answer to their ACKs
/// begin with a whole one.
pub const FIRST_BYTES: usize = 12 * FIRST_RECORD;
/// Flows whose state goes with RESUME: as many as fit the segment that carries it. Of the others the
/// server hears a round trip later.
pub const EARLY_ACKS: usize = 64;
/// Less payload than this is no reason for a frame of its own at the end of a record. Chosen: a
/// frame costs both ends about as much as the copying of a kilobyte.
pub const LEAST_PIECE: usize = 1024;

/// Datagrams that wait for too long are worth less than the room they take (`[udp] max_age`); what an
/// end without a setting of its own counts as too long.
pub const DATAGRAM_AGE: Duration = Duration::from_secs(2);
/// Datagrams of one mapping that wait in one direction; beyond it the oldest goes. Chosen: a burst
/// of a transfer over UDP, 300 kB, as kernels hold in a socket.
pub const MAPPING_DATAGRAMS: usize = 256;
/// Bytes of the same; four datagrams of the largest size fit.
pub const MAPPING_BYTES: usize = 256 * 1024;
/// What each datagram that waits counts for beside its bytes, so that a bound of bytes is one of
/// their number too.
pub const DATAGRAM_COST: usize = 512;
/// Bytes of all datagrams of a session that wait in one direction: a share of the buffer, as a
/// divisor, in addition to it, within the bounds below; beyond it the mapping that holds most loses
/// its oldest.
pub const DATAGRAM_SHARE: u64 = 16;
/// The largest; chosen.
pub const DATAGRAM_BYTES: usize = 1024 * 1024;
/// The least, which is theirs whatever else the daemon holds: one of the largest size each way, and
/// small ones beside it.
pub const DATAGRAM_BYTES_LEAST: usize = 128 * 1024;
/// What datagrams may borrow of the daemon's memory beyond that, as a divisor of what a session may in
/// one direction; streams have the rest. Chosen: they are worth less.
pub const DATAGRAM_GROWTH: u64 = 8;
/// When so many wait for local sockets, their owner takes them before it reads on from its link: one
/// turn of a link brings thousands. Chosen: with those of one record, fewer than a mapping holds.
pub const DATAGRAMS_WAITING: usize = 64;
/// Datagrams that may wait for local sockets in the buffer that a link was read into, 128 KiB each;
/// while more wait, further ones are copied. Chosen as [`SLICES`].
pub const DATAGRAM_SLICES: usize = 64;
/// Datagrams that wait are looked through for stale ones no more often than this, whatever the
/// longest age: each look costs a step per flow.
pub const SWEEP_LEAST: Duration = Duration::from_millis(100);
/// Addresses that one mapping remembers as sent to; beyond it the oldest is forgotten, and its answers
/// are those of a stranger. Chosen: some 5 KiB, and a second of a busy search among peers.
pub const CONTACTS: usize = 256;
/// A stranger's datagram is heard so often, in a session. Chosen: enough for hole punching and for
/// games that are asked by many, too little to fill a link.
pub const STRANGERS_EVERY: Duration = Duration::from_millis(20);
/// How many may come at once.
pub const STRANGERS_AT_ONCE: u32 = 100;
/// A stranger's datagram is no longer than a packet.
pub const STRANGER_BYTES: usize = 1472;
/// Errors of one mapping that wait in one direction; beyond it further ones are dropped.
pub const MAPPING_ERRORS: usize = 16;

/// The longest message of a stream that may be stored, framed by lines or octet counts; a longer
/// one makes the stream opaque. Chosen: syslog receivers take less (RFC 5425 §4.3.1: 8 KiB).
pub const MESSAGE: u64 = 64 * 1024;
/// The same where all up to FIN is one message; chosen.
pub const MESSAGE_WHOLE: u64 = 1024 * 1024;
/// What a record of DELIVER has beside its messages at most: its header, and what sealing adds.
pub const RECORD_EXTRA: u64 = 256;

/// First silence after which an end that expects something asks (PROTOCOL.md §6).
pub const PING_AFTER: Duration = Duration::from_secs(1);
/// The same while another link works: an end that has somewhere to go does not wait to be sure.
/// Chosen: with the longest of a PONG behind a queue of 100 ms, noticed within a second.
pub const PING_BESIDE: Duration = Duration::from_millis(500);
/// "Heard something lately": for so long silence is asked about.
pub const LATELY: Duration = Duration::from_secs(60);
/// The client asks at least so often while a flow exists (rule 10): NATs forget after 30 s.
pub const KEEPALIVE: Duration = Duration::from_secs(25);
/// A PONG is never expected sooner: scheduling noise.
pub const PONG_MIN: Duration = Duration::from_millis(150);
/// A kernel that heard of the peer less long ago is not held to be cut off: two full segments, which
/// are acknowledged together, take 240 ms at 100 kbit/s and 740 ms at 32 kbit/s.
pub const KERNEL_QUIET: Duration = Duration::from_millis(750);
/// A PONG is expected so soon while no round trip was measured.
pub const PONG_FIRST: Duration = Duration::from_secs(1);
/// So many PINGs follow each other after an attach: by then 4 × RTTVAR, which starts at twice the
/// round trip (RFC 6298), is half of it, and an outage is noticed that much sooner. And a congestion
/// window grows with the first ten segments even if it is not used up: who moves to the link later
/// goes on faster.
pub const FIRST_SAMPLES: u8 = 6;
/// A link that is not needed any more has so long to run empty; what is left goes out again on the
/// new one. Chosen: a queue that takes longer is slower than sending it again.
pub const LEAVING: Duration = Duration::from_secs(1);
/// Without any frame for so long a link is dead (rule 10).
pub const LINK_SILENT: Duration = Duration::from_secs(60);
/// An attach not confirmed for so long is given up (rules 8, 9).
pub const UNCONFIRMED: Duration = Duration::from_secs(15);
/// A reader that takes nothing for so long does not hold a reset any longer (rule 13).
pub const RESET_STALL: Duration = Duration::from_secs(5);
/// The server's clocks of grace run so much longer than the client's (rule 11).
pub const SERVER_EXTRA: Duration = Duration::from_secs(30);
/// A session without flows and without a link ends (rule 15).
pub const ABANDONED: Duration = Duration::from_secs(600);

const _: () = assert!(INITIAL_SHARE_SCARCE * 15_000 < 32 * 1024 * 1024);
