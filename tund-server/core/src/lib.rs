//! The server daemon without I/O: sessions by key and id, and who may reach what, what origins are told.

pub mod admission;
pub mod delivery;
pub mod gate;
pub mod mapping;
pub mod offers;
pub mod proxy;
pub mod registry;
pub mod resolver;
pub mod shares;
