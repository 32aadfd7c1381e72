//! The command `inkfast`.
fn main() {}
