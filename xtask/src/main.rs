//! Every multi-step job of the repository.
fn main() {}
