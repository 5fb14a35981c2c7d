//! The registry against real client sessions, in virtual time.

mod attach;
mod bounds;
mod farewell;
mod hand_off;
mod memory;
mod newcomers;
mod properties;
mod tombstones;
mod world;
