//! The harness of every test above the unit tests: simulation and namespace lab.

pub mod crowd;
pub mod emulator;
pub mod harness;
pub mod lab;
pub mod outages;
