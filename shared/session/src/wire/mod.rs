//! Frames and their bytes.

pub mod codec;
pub mod frame;
