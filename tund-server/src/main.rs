//! The server daemon of tund.

fn main() {}
