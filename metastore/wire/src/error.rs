//! What can go wrong on the wire, by what the caller can do about it.

use quinn::{ConnectionError, VarInt};

use crate::FRAME_BYTES_MAX;

/// The connection was ended in order; the reason says why.
pub(crate) const CLOSE_DONE: VarInt = VarInt::from_u32(0);
/// The handshake was refused; the reason says why.
pub(crate) const CLOSE_REFUSED: VarInt = VarInt::from_u32(1);

/// Says why a peer could not be reached, or what became of a connection or a stream.
///
/// It can be cloned because callers that wait for the same connection share its outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An address could not be turned into numbers.
    #[error("cannot resolve {address}: {why}; an address is host:port")]
    Resolve {
        /// The address as it was given.
        address: String,
        /// What the resolver said.
        why: String,
    },
    /// A socket could not be opened.
    #[error("cannot listen on {address}: {why}")]
    Bind {
        /// The address as it was given.
        address: String,
        /// What the system said, and what to do.
        why: String,
    },
    /// A server would listen on every address, and so could tell nobody where it is.
    #[error("{address} is no address that others can reach: say with --advertise how they do")]
    NoAddress {
        /// The address as it was given.
        address: String,
    },
    /// A deadline passed. The peer may have acted on what it was asked.
    #[error("no answer in time: {what}")]
    TimedOut {
        /// What was waited for, and how long.
        what: String,
    },
    /// No connection could be made. Trying again later may help.
    #[error("cannot reach {address}: {why}")]
    Unreachable {
        /// Where the peer was looked for.
        address: String,
        /// What stood in the way.
        why: String,
    },
    /// The peer was reached and does not let us in. Trying again helps only where the reason
    /// says so.
    #[error("refused by {by}: {why}")]
    Refused {
        /// The address of the peer that refused.
        by: String,
        /// The peer's reason.
        why: String,
    },
    /// Somebody else than the peer that was meant answers at the address.
    #[error("not the peer that was meant at {address}: {why}")]
    WrongPeer {
        /// Where the peer was looked for.
        address: String,
        /// How the one who answered differs.
        why: String,
    },
    /// A connection or stream that worked has ended. Whether the peer acted on what was sent
    /// last is not known.
    #[error("the connection is lost: {why}")]
    Lost {
        /// What ended it.
        why: String,
    },
    /// A frame is larger than either side may send.
    #[error("a frame of {bytes} bytes is over the limit of {FRAME_BYTES_MAX} bytes")]
    FrameTooLarge {
        /// Kind and body together.
        bytes: usize,
    },
    /// What the peer sent cannot be understood.
    #[error("malformed message: {why}")]
    Malformed {
        /// What is wrong with it.
        why: String,
    },
}

impl Error {
    pub(crate) fn lost(why: impl Into<String>) -> Self {
        Self::Lost { why: why.into() }
    }

    pub(crate) fn malformed(why: impl Into<String>) -> Self {
        Self::Malformed { why: why.into() }
    }

    /// Says how a connection that had been made was lost.
    pub(crate) fn connection_lost(error: ConnectionError) -> Self {
        Self::lost(match error {
            ConnectionError::Reset => "the peer restarted and does not know it any more".into(),
            ConnectionError::TimedOut => "nothing was heard from the peer for too long".into(),
            ConnectionError::LocallyClosed => "it was closed on this side".into(),
            ConnectionError::ApplicationClosed(close) => {
                format!("the peer closed it: {}", String::from_utf8_lossy(&close.reason))
            }
            other => other.to_string(),
        })
    }

    /// Says why a connection could not be made.
    pub(crate) fn connecting_failed(address: &str, error: ConnectionError) -> Self {
        let address = address.to_string();
        match error {
            ConnectionError::ApplicationClosed(close) if close.error_code == CLOSE_REFUSED => {
                let why = String::from_utf8_lossy(&close.reason).into_owned();
                Self::Refused { by: address, why }
            }
            ConnectionError::ConnectionClosed(close) if is_tls(close.error_code) => {
                let reason = String::from_utf8_lossy(&close.reason).into_owned();
                let why = format!(
                    "it does not accept our certificate or protocol ({reason}); \
                     is the certificate from this cluster's authority?"
                );
                Self::Refused { by: address, why }
            }
            ConnectionError::ConnectionClosed(close)
                if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED =>
            {
                let why = "it is stopping or has as many connections as it takes; try again later";
                Self::Refused { by: address, why: why.into() }
            }
            ConnectionError::TransportError(error) if is_tls(error.code) => {
                let why = format!(
                    "its certificate is not accepted ({}); \
                     is it of this cluster's authority, and of the role that was asked for?",
                    error.reason
                );
                Self::WrongPeer { address, why }
            }
            ConnectionError::TimedOut => {
                Self::Unreachable { address, why: "nothing answers there".into() }
            }
            other => Self::Unreachable { address, why: other.to_string() },
        }
    }
}

/// Whether a QUIC error code carries a TLS alert.
fn is_tls(code: quinn::TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}
