//! Why a command did not do what it was asked.

use std::io;

use inkfast_metastore::Error as StoreError;
use inkfast_wire::{Error as WireError, IdentityError};

use crate::cluster;

/// Says in one line why a command failed, and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It could be refused without asking a server: the arguments or the settings are wrong.
    #[error("{0}")]
    Usage(String),
    /// It went wrong on the way; the words are all there is to say.
    #[error("{0}")]
    Failed(String),
    /// The client library could not do it.
    #[error("{0}{next}", next = next_step(.0))]
    Client(#[from] inkfast::Error),
    /// The cluster in this process did not start or did not go on.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// Certificates could not be made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The metastore's daemon did not start or did not go on.
    #[error(transparent)]
    Metastore(#[from] inkfast_metastore_server::Error),
    /// The bookie's daemon did not start or did not go on.
    #[error(transparent)]
    Bookie(#[from] inkfast_bookie::Error),
    /// What was to be printed could not be.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// Returns the exit status of the command.
    pub const fn status(&self) -> u8 {
        match self {
            Self::Usage(_)
            | Self::Identity(IdentityError::Name { .. })
            | Self::Cluster(cluster::Error::Bookies(_) | cluster::Error::Metastores(_)) => 2,
            _ => 1,
        }
    }
}

/// Says what the command's user can do about an error, where the library's words do not.
fn next_step(error: &inkfast::Error) -> &'static str {
    use inkfast::Error;
    match error {
        Error::LedgerNotFound(_) => "; `inkfast ledger list` shows those that there are",
        Error::BeyondEnd { .. } => "; choose a lower --from or --to",
        Error::NotConfirmed { .. } => {
            "; try again later, or end the ledger with `inkfast ledger recover` if its writer is gone"
        }
        Error::Metastore(StoreError::Unavailable { .. } | StoreError::TimedOut { .. })
        | Error::Network(
            WireError::Resolve { .. }
            | WireError::TimedOut { .. }
            | WireError::Unreachable { .. }
            | WireError::Lost { .. },
        ) => "; does the cluster run, and is its address in the settings?",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_was_not_reached_is_looked_for() {
        let words = |error| Failure::Client(inkfast::Error::Metastore(error)).to_string();
        let away = words(StoreError::unavailable("nobody"));
        assert!(away.contains("does the cluster run"), "{away}");
        let conflict = words(StoreError::Conflict { key: "key".into(), found: None });
        assert!(!conflict.contains("does the cluster run"), "{conflict}");
    }
}
