//! QUIC connections between Inkfast's processes: identities, handshake, frames.
//!
//! This is the ground on which the metastore and the bookies speak with each other and with
//! clients. It knows nothing of ledgers: it makes sure that one talks to the right process, and
//! carries frames.
//!
//! # What it promises
//!
//! - A [`Connection`] leads to a process whose certificate is from the cluster's own authority
//!   and has the role that was asked for, which is in the same cluster, and which is the very
//!   instance that was meant, if one was named. The same holds for callers. Addresses prove
//!   nothing: whoever answers at the old address of another process refuses before it answers
//!   anything else.
//! - The frames of a [`Stream`] arrive whole, in order, and once, or not at all; when they can
//!   no longer arrive, both sides get an [`Error`].
//! - Every wait ends: a request, a connection attempt, a handshake, and the rest of a frame that
//!   has begun have a deadline, and a peer that is silent for 6 s is lost. A peer that has been
//!   restarted is noticed at the next datagram. Only waiting for the beginning of a frame, or
//!   until a peer reads, has no end but the connection's; put a deadline there where it is needed.
//! - A peer cannot make us crash or hold more memory than the limits below, whatever it sends.
//!
//! [`Remote`] is the usual way to call somebody, [`serve`] the way to be called, and an
//! [`Endpoint`] does both through one socket. [`Authority`] makes the certificates that become an
//! [`Identity`].
//!
//! # Frames
//!
//! All that is said on a stream is a sequence of frames:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | how many bytes follow, little endian: 1 to [`FRAME_BYTES_MAX`] |
//! | 1 | kind: how the body is to be read |
//! | 0.. | body |
//!
//! ```
//! use inkfast_wire::Frame;
//!
//! let frame = Frame { kind: 7, body: "abc".into() };
//! assert_eq!(frame.encode(), [4, 0, 0, 0, 7, b'a', b'b', b'c'].as_slice());
//! ```
//!
//! Kinds belong to the service that is called and begin anew with each; the handshake has kinds
//! of its own. Bodies are protobuf, except where speed matters, and those say how they are laid
//! out. Readers skip protobuf fields that they do not know; a new kind of frame needs a new
//! version of the protocol.
//!
//! # How to connect
//!
//! This is all that a program in another language needs to get as far as a service.
//!
//! 1. QUIC version 1, TLS 1.3, ALPN `inkfast`, the cipher suites of TLS 1.3. No session tickets,
//!    no early data. Certificates on both sides, verified against the cluster's own authority
//!    (`ca.pem`) and nothing else.
//! 2. A certificate is for TLS clients and servers and has two DNS names:
//!    `<role>.<cluster>.inkfast` and `<name>.<role>.<cluster>.inkfast`. Roles are `client`,
//!    `bookie`, `metastore` and `admin`; cluster and name have 1 to 63 of `a-z`, `0-9` and `-`.
//!    Keys are Ed25519 where [`Authority`] makes them. The caller verifies the server name
//!    `<role>.<cluster>.inkfast`, of the role that it means to reach and its own cluster.
//! 3. The caller opens a bidirectional stream, the first of the connection, sends one frame with
//!    kind 1 and the message `Hello`, and finishes its direction.
//! 4. The callee answers with one frame, kind 2, `Welcome`, or closes the connection with the
//!    code 1 and the reason in words. All of this takes at most 2 s.
//! 5. The caller compares the `Welcome` with what it knows, and closes the connection with the
//!    code 1 if they differ.
//! 6. From then on the caller opens bidirectional streams as it likes, up to 16384 at a time;
//!    what is said on them is the service's matter. The callee opens none. There are no
//!    unidirectional streams and no datagrams.
//!
//! | `Hello` | type | what |
//! |---|---|---|
//! | 1 | uint32 | lowest version of the protocol that the caller speaks |
//! | 2 | uint32 | highest |
//! | 3 | optional bytes | the cluster's UUID, 16 bytes, if the caller knows it |
//! | 4 | bytes | the caller's instance, a UUID, 16 bytes |
//! | 5 | optional bytes | the instance that the caller means, 16 bytes, if it means one |
//!
//! | `Welcome` | type | what |
//! |---|---|---|
//! | 1 | uint32 | the version that is used: the highest that both speak |
//! | 2 | bytes | the cluster's UUID, 16 bytes |
//! | 3 | bytes | the callee's instance, 16 bytes |
//!
//! The callee refuses another cluster in the certificate or the `Hello`, a role that it does not
//! let in, another instance than its own, and a range of versions without one of its own. The
//! versions spoken here are [`PROTOCOL_VERSIONS`].
//!
//! A connection that is closed in order has the code 0 and says why in its reason. A stream that
//! is reset or stopped, with whatever code, is given up by that side; the connection lives on.
//! Whoever asks and gives up resets the stream.
//!
//! # Limits
//!
//! | what | limit |
//! |---|---|
//! | frame | 2 MiB |
//! | the rest of a frame that has begun | 10 s |
//! | unread data on its way, a stream / a connection | 8 MiB / 32 MiB |
//! | data sent and not yet acknowledged, a connection | 16 MiB |
//! | streams of a caller at a time | 16384 |
//! | callers of a server / in their handshake | 1024 / 128 |
//! | handshake, and a whole attempt to connect | 2 s |
//! | keep-alive / idle timeout | 1.5 s / 6 s |
//! | datagram | found out by probing, 1200 to 6500 bytes |
//!
//! # Not here
//!
//! - No authorization beyond the role: a service learns who calls ([`Peer`]) and decides.
//! - No retries: a request that failed may have been carried out, and only its maker knows
//!   whether to send it again. [`Remote`] reconnects; it repeats nothing.
//! - No choice between several equal processes; a [`Remote`] is one of them.
//! - No rotation or revocation of certificates; they last ten years.
//! - No TCP, no TLS without client certificates, and no connection without TLS.
//! - No compression: what is carried is as large as it was handed in.

mod authority;
mod connection;
mod endpoint;
mod error;
mod frame;
mod handshake;
mod identity;
mod net;
mod remote;
mod serve;
mod transport;

pub use authority::Authority;
pub use connection::{Connection, Peer};
pub use endpoint::{Endpoint, Server, check_reachable};
pub use error::Error;
pub use frame::{
    FRAME_BYTES_MAX, FRAME_HEADER_BYTES, Frame, FrameReceiver, FrameSender, Frames, Stream,
};
pub use handshake::PROTOCOL_VERSIONS;
pub use identity::{Identity, IdentityError, PeerName, Role};
pub use net::{Net, Sockets};
pub use remote::{Remote, Target};
pub use serve::{Service, serve};
