//! What the bytes of frames must be, and what no bytes may do.

mod arbitrary;
mod corpus;
mod document;
mod golden;
mod properties;
mod refusals;

use super::codec::{WireError, decode, encode};
use super::frame::Frame;
use bytes::Bytes;

/// The bytes of one frame.
fn encoded(frame: &Frame) -> Vec<u8> {
    let mut out = Vec::new();
    encode(frame, &mut out);
    out
}

/// The first frame of `bytes` and how many bytes it took.
fn decoded(bytes: &[u8]) -> Result<Option<(Frame, usize)>, WireError> {
    let mut input = Bytes::copy_from_slice(bytes);
    let frame = decode(&mut input)?;
    Ok(frame.map(|frame| (frame, bytes.len() - input.len())))
}

/// Bytes written as hex digits, with spaces anywhere.
fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| u8::try_from(c.to_digit(16).expect("hex digit")).expect("below 16"))
        .collect();
    digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}
