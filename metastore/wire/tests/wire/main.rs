//! The wire between real endpoints on loopback, with peers that behave and peers that do not.

#![expect(clippy::unwrap_used, reason = "tests")]

mod handshake;
mod hostile;
mod identity;
mod remote;
mod streams;
mod support;
