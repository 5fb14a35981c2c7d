//! The server daemon without I/O: sessions by key and id, and who may reach what.

pub mod admission;
pub mod delivery;
pub mod gate;
pub mod registry;
