//! Why the metastore did not do as it was asked.

use std::time::Duration;

use crate::rows::StateError;
use crate::types::Version;

/// Says why a request failed, by what the caller can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A condition of the transaction did not hold and nothing was written: read again and decide
    /// anew.
    #[error("the key {key:?} {}", state(*found))]
    Conflict {
        /// The key of the first condition that did not hold.
        key: String,
        /// The version that it has; none if the key is absent.
        found: Option<Version>,
    },
    /// The lease has ended or never was, and its keys are gone: grant another.
    #[error("the lease has ended: grant a new one and write its keys again")]
    LeaseNotFound,
    /// The changes after the revision that a watch was to go on from are no longer all remembered:
    /// scan again, and watch from the page's revision.
    #[error("the changes since then are no longer remembered: scan again and watch from there")]
    Compacted,
    /// The request breaks a rule, and nothing was done: it would fail again.
    #[error("bad metastore request: {why}")]
    BadRequest {
        /// The rule, and what was found.
        why: String,
    },
    /// The member that was asked does not lead, and nothing was done: ask the one that does. A
    /// [`RemoteMetastore`](crate::RemoteMetastore) does so by itself and never gives this error.
    #[error("this member of the metastore does not lead: {}", leader_words(leader.as_deref()))]
    NotLeader {
        /// The address of the member that leads, if it is known.
        leader: Option<String>,
    },
    /// No metastore could take the request, and nothing was done: try again later.
    #[error("no metastore is available: {why}")]
    Unavailable {
        /// Which addresses were tried, and what each said.
        why: String,
    },
    /// There was no answer in time. **A write may have happened, or may still happen.**
    #[error("no answer of the metastore within {timeout:?}, so the outcome is unknown: {why}")]
    TimedOut {
        /// How long it was tried.
        timeout: Duration,
        /// Which addresses were tried, and what each said.
        why: String,
    },
}

impl Error {
    /// Makes a [`Error::BadRequest`].
    pub fn bad_request(why: impl Into<String>) -> Self {
        Self::BadRequest { why: why.into() }
    }

    /// Makes an [`Error::Unavailable`].
    pub fn unavailable(why: impl Into<String>) -> Self {
        Self::Unavailable { why: why.into() }
    }
}

impl From<StateError> for Error {
    fn from(error: StateError) -> Self {
        Self::unavailable(error.to_string())
    }
}

fn state(found: Option<Version>) -> String {
    match found {
        Some(version) => format!("is at version {version}, which is not the one asked for"),
        None => "is absent".into(),
    }
}

fn leader_words(leader: Option<&str>) -> String {
    match leader {
        Some(address) => format!("ask {address}"),
        None => "it knows of no leader yet; try again".into(),
    }
}
