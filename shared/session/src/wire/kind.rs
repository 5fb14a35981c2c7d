//! The numbers of frame types, how long each body may be, and the numbers kept for later.

use std::ops::RangeInclusive;

/// Bytes of stream, or of one datagram, in a frame at most: one TLS record's worth.
pub const MAX_PAYLOAD: usize = 16 * 1024;

/// Bytes of the longest datagram: what IP's length field allows.
pub const MAX_DATAGRAM: usize = 65_535;

/// Bytes before each body: type, and length as a big-endian u24.
pub const HEADER: usize = 4;

/// Bytes of the longest body; an end that holds a header and so many more holds a frame.
pub const MAX_BODY: usize = MAX_PAYLOAD + 64;

/// Bytes of DATA before its payload at most, header included.
pub const MAX_DATA_HEADER: usize = HEADER + 2 * VARINT + FLAGS;

/// Entries of one FLOW_STATE; more go into further frames.
pub const MAX_ACKS: usize = MAX_BODY / ACK_BODY;

/// Entries of one RESUME_REJECT; one with so many is followed by another (PROTOCOL.md §3.4).
pub const MAX_RELEASED: usize = (MAX_BODY - 2 * VARINT) / (2 * VARINT);

/// Entries of one OPEN_HAND_OFF.
pub const MAX_TAKES: usize = 16;

/// The longest integer (RFC 9000 §16).
const VARINT: usize = 8;
pub(super) const FLAGS: usize = 1;
/// A session's or a daemon start's name.
const ID: usize = 16;
const PROOF: usize = 32;
/// Family, IPv6 address, port.
const ADDRESS: usize = 1 + 16 + 2;
const LIMITS: usize = 3 * VARINT;
const ACK_BODY: usize = 4 * VARINT;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident, $name:ident = $number:literal, $max:expr;)+) => {
        /// The type of a frame; each message of the control lane has one of its own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $($(#[$doc])* $kind,)+
        }

        impl Kind {
            /// Every type that has a number.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)+];

            /// The type of that number.
            pub const fn from_wire(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$kind),)+
                    _ => None,
                }
            }

            /// Its number.
            pub const fn to_wire(self) -> u8 {
                match self {
                    $(Self::$kind => $number,)+
                }
            }

            /// Its name in PROTOCOL.md.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => stringify!($name),)+
                }
            }

            /// How long its body may be.
            pub const fn max_body(self) -> usize {
                match self {
                    $(Self::$kind => max_body::$name,)+
                }
            }
        }

        /// How long the body of each type may be.
        pub mod max_body {
            use super::{ACK_BODY, ADDRESS, FLAGS, ID, LIMITS, MAX_ACKS, MAX_BODY, MAX_PAYLOAD};
            use super::{MAX_RELEASED, MAX_TAKES, PROOF, VARINT};

            $(
                #[doc = concat!("Of ", stringify!($name), ".")]
                pub const $name: usize = $max;
                const _: () = assert!($name <= MAX_BODY);
            )+
        }
    };
}

kinds! {
    /// Client asks for a session.
    Hello, HELLO = 0x01, 3 * VARINT + ID + LIMITS;
    /// Server gives it one.
    Welcome, WELCOME = 0x02, 2 * VARINT + 2 * ID + LIMITS;
    /// Server has another live client of this key.
    KeyInUse, KEY_IN_USE = 0x03, 0;
    /// Client adds a link.
    Resume, RESUME = 0x04, 3 * VARINT + 2 * ID + PROOF;
    /// Server has added it.
    ResumeOk, RESUME_OK = 0x05, VARINT;
    /// Server has not.
    ResumeReject, RESUME_REJECT = 0x06, 2 * VARINT + MAX_RELEASED * 2 * VARINT;
    /// Is this link alive?
    Ping, PING = 0x10, VARINT;
    /// It is.
    Pong, PONG = 0x11, VARINT;
    /// This link ends, the session goes on.
    LinkClose, LINK_CLOSE = 0x12, VARINT;
    /// Bytes of a flow.
    Data, DATA = 0x20, 2 * VARINT + FLAGS + MAX_PAYLOAD;
    /// What of one flow has arrived, and may be sent.
    Ack, ACK = 0x21, ACK_BODY;
    /// The same of many.
    FlowState, FLOW_STATE = 0x22, MAX_ACKS * ACK_BODY;
    /// An unreliable message of a mapping.
    Datagram, DATAGRAM = 0x28, 2 * VARINT + ADDRESS + MAX_PAYLOAD;
    /// What became of one.
    DatagramError, DATAGRAM_ERROR = 0x29, 3 * VARINT + ADDRESS;
    /// Part of a datagram that is longer than one frame may be.
    DatagramPiece, DATAGRAM_PIECE = 0x2a, 4 * VARINT + ADDRESS + MAX_PAYLOAD;
    /// What of the control lane has been taken.
    ControlAck, CONTROL_ACK = 0x30, VARINT;
    /// Connect to an origin.
    Open, OPEN = 0x31, 6 * VARINT + 2 * ADDRESS;
    /// Connected.
    OpenOk, OPEN_OK = 0x32, 4 * VARINT;
    /// Cannot be had.
    OpenErr, OPEN_ERR = 0x33, 4 * VARINT;
    /// Reset, once what lies before has been delivered.
    Reset, RESET = 0x34, 4 * VARINT;
    /// Reset at once.
    Stop, STOP = 0x35, 3 * VARINT;
    /// Both directions are complete here.
    Done, DONE = 0x36, 3 * VARINT;
    /// Older links are to be closed.
    Retire, RETIRE = 0x37, 2 * VARINT;
    /// That link is dead.
    LinkDown, LINK_DOWN = 0x38, 2 * VARINT;
    /// The session ends.
    SessionClose, SESSION_CLOSE = 0x39, 2 * VARINT;
    /// Connect to an origin and deliver what was stored.
    Deliver, DELIVER = 0x40, 7 * VARINT + ID + ADDRESS;
    /// The same as OPEN, and hold what its application does not get.
    OpenHandOff, OPEN_HAND_OFF = 0x50, 9 * VARINT + 2 * ADDRESS + MAX_TAKES * (ID + 2 * VARINT);
    /// Nothing that is held will be asked for.
    Forget, FORGET = 0x51, VARINT;
}

/// Type numbers kept for later capabilities: unknown until both ends have agreed on the capability.
pub mod reserved {
    use super::RangeInclusive;

    /// Delivery after grace; DELIVER is one of them.
    pub const DELIVERY: RangeInclusive<u8> = 0x40..=0x4f;
    /// Bytes for an application reach its next connection; OPEN_HAND_OFF and FORGET are of them.
    pub const HAND_OFF: RangeInclusive<u8> = 0x50..=0x5f;
    /// Objects served while offline.
    pub const OFFLINE_OBJECTS: RangeInclusive<u8> = 0x60..=0x6f;
}
