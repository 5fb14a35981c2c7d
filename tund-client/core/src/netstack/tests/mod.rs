//! The netstack against a second TCP, the application's kernel, in virtual time.

mod connect;
mod ending;
mod hostile;
mod kernel;
mod transfer;
mod upkeep;
mod world;
