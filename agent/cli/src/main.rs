//! headroom.
fn main() {}
