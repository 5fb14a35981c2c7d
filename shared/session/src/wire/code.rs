//! The numbers of every enumeration inside a frame (PROTOCOL.md §10).

use super::frame::{
    CloseCode, DeniedBy, FlowCode, Framing, LinkCloseReason, OnExpiry, OpenError, Protocol,
    RejectReason,
};

/// An enumeration with numbers on the wire.
pub(super) trait Code: Copy + 'static {
    /// Each value with its number.
    #[cfg(test)]
    const ALL: &'static [(u64, Self)];

    /// The number of this value.
    fn to_wire(self) -> u64;

    /// The value of that number, if it has one.
    fn from_wire(number: u64) -> Option<Self>;
}

macro_rules! codes {
    ($($name:ident { $($number:literal = $variant:ident,)+ })+) => {
        $(impl Code for $name {
            #[cfg(test)]
            const ALL: &'static [(u64, Self)] = &[$(($number, Self::$variant),)+];

            fn to_wire(self) -> u64 {
                match self {
                    $(Self::$variant => $number,)+
                }
            }

            fn from_wire(number: u64) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)+
                    _ => None,
                }
            }
        })+
    };
}

codes! {
    RejectReason {
        1 = Proof,
        2 = Restarted,
        3 = Expired,
        4 = Superseded,
        5 = Ended,
        6 = Version,
        7 = Busy,
    }
    Protocol {
        1 = Tcp,
        2 = Udp,
        3 = Icmp,
        4 = UdpAny,
    }
    FlowCode {
        1 = PeerReset,
        2 = SocketError,
        3 = Expired,
        4 = Cancelled,
        5 = Asked,
        6 = Unsealable,
        7 = Idle,
    }
    CloseCode {
        1 = Asked,
        2 = Idle,
        3 = KeyRemoved,
        4 = Superseded,
        5 = Violation,
        6 = Internal,
    }
    LinkCloseReason {
        1 = Unneeded,
        2 = Stopping,
        3 = Violation,
        4 = KeysOld,
    }
}

impl Code for Framing {
    #[cfg(test)]
    const ALL: &'static [(u64, Self)] = &[(1, Self::Whole), (2, Self::Line), (3, Self::OctetCount)];

    fn to_wire(self) -> u64 {
        u64::from(self.number())
    }

    fn from_wire(number: u64) -> Option<Self> {
        Self::from_number(u8::try_from(number).ok()?)
    }
}

impl Code for OnExpiry {
    #[cfg(test)]
    const ALL: &'static [(u64, Self)] = &[
        (0, Self::Reset),
        (1, Self::Store(Framing::Whole)),
        (2, Self::Store(Framing::Line)),
        (3, Self::Store(Framing::OctetCount)),
    ];

    fn to_wire(self) -> u64 {
        match self {
            Self::Reset => 0,
            Self::Store(framing) => framing.to_wire(),
        }
    }

    fn from_wire(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Reset),
            other => Framing::from_wire(other).map(Self::Store),
        }
    }
}

impl OpenError {
    /// Its number, and the Linux errno that a receiver takes who does not know the number.
    pub(super) const fn to_wire(self) -> (u64, u32) {
        match self {
            Self::Refused => (1, 111),
            Self::NetworkUnreachable => (2, 101),
            Self::HostUnreachable => (3, 113),
            Self::TimedOut => (4, 110),
            Self::Denied(DeniedBy::Never) => (5, 13),
            Self::Denied(DeniedBy::Default) => (6, 13),
            Self::Denied(DeniedBy::Deny) => (7, 13),
            Self::Exhausted => (8, 99),
            Self::TooManyFlows => (9, 24),
            Self::Cancelled => (10, 125),
            Self::Other(errno) => (0, errno),
        }
    }

    /// The error of that number; an unknown one is known by its errno.
    pub(super) const fn from_wire(number: u64, errno: u32) -> Self {
        match number {
            1 => Self::Refused,
            2 => Self::NetworkUnreachable,
            3 => Self::HostUnreachable,
            4 => Self::TimedOut,
            5 => Self::Denied(DeniedBy::Never),
            6 => Self::Denied(DeniedBy::Default),
            7 => Self::Denied(DeniedBy::Deny),
            8 => Self::Exhausted,
            9 => Self::TooManyFlows,
            10 => Self::Cancelled,
            _ => Self::Other(errno),
        }
    }
}
