//! Frames and their bytes.
// Nothing that a peer sends may panic: what could is denied here, outside the tests.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions
    )
)]

pub mod codec;
pub mod frame;
pub mod kind;

mod code;
mod decode;
mod encode;
#[cfg(test)]
mod tests;
