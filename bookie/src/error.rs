//! Why a bookie cannot run.

use std::path::PathBuf;
use std::time::Duration;

use crate::log::LogError;
use crate::store::StoreError;

/// Why a bookie cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be used.
    #[error("the directory {} is refused: {why}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It could not be registered.
    #[error("not registered within {0:?}; is the metastore there?")]
    NotRegistered(Duration),
    /// One of its tasks ended, which is a bug.
    #[error("the bookie's {0} has ended unexpectedly")]
    Ended(&'static str),
    /// Its log cannot be made or opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Its index cannot be made or opened.
    #[error("{0}")]
    Index(String),
    /// It cannot listen, or its certificate is refused.
    #[error(transparent)]
    Network(#[from] inkfast_wire::Error),
    /// The metastore, or what it says of ledgers and bookies.
    #[error(transparent)]
    Catalog(#[from] inkfast::Error),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Log(error) => Self::Log(error),
            StoreError::Index(error) => Self::Index(error.to_string()),
        }
    }
}
