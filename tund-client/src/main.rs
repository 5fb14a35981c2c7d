//! The client daemon of tund.

fn main() {}
