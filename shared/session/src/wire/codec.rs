//! Bytes of frames: encoding, and checked decoding that cannot panic.
//!
//! A frame is a header of [`HEADER`] bytes (type, then the body's length as a big-endian u24) and a
//! body. Layouts and numbers are in PROTOCOL.md §3 and §10. The codec checks what one frame says by
//! itself; what it means for a session is checked there.

pub use super::decode::{decode, frame_len};
pub use super::encode::{data_header_bytes, encode, encode_data_header, encode_datagram_header};
pub use super::kind::{
    HEADER, MAX_ACKS, MAX_BODY, MAX_DATA_HEADER, MAX_DATAGRAM, MAX_PAYLOAD, MAX_RELEASED,
    MAX_TAKES, max_body,
};

/// Why bytes are no frame; the peer has broken the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// No frame has this type number in the version spoken.
    #[error("frame type {0:#04x} is not known")]
    UnknownType(u8),
    /// The header announces more than the type's [`max_body`].
    #[error("frame of type {kind:#04x} announces a body of {length} bytes, more than it may have")]
    BodyTooLong {
        /// The type's number.
        kind: u8,
        /// What the header says.
        length: u32,
    },
    /// The body ends within a field.
    #[error("frame body ends within a field")]
    BodyTooShort,
    /// The body goes on after its last field.
    #[error("frame body goes on after its last field")]
    TrailingBytes,
    /// An enumeration that cannot do with less has an unknown number.
    #[error("{0}")]
    UnknownCode(&'static str),
    /// A field has a value that it never may have.
    #[error("{0}")]
    BadValue(&'static str),
}

impl WireError {
    /// The same in words that do not change with the bytes, for logs and violations.
    pub const fn what(&self) -> &'static str {
        match self {
            Self::UnknownType(_) => "frame of an unknown type",
            Self::BodyTooLong { .. } => "frame body is longer than its type allows",
            Self::BodyTooShort => "frame body ends within a field",
            Self::TrailingBytes => "frame body goes on after its last field",
            Self::UnknownCode(what) | Self::BadValue(what) => what,
        }
    }
}
