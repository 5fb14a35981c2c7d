//! The netstack against a second TCP, the application's kernel, in virtual time.

mod chaos;
mod connect;
mod ending;
mod hostile;
pub(crate) mod kernel;
mod transfer;
mod upkeep;
mod wire;
pub(crate) mod world;
