//! Why a bookie cannot run.

use std::path::{Path, PathBuf};
use std::time::Duration;

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
    /// None of several directories can be used, or none was given.
    #[error("no directory can be used; {0}")]
    NoDirectory(String),
    /// It could not be registered.
    #[error("not registered within {0:?}; is the metastore there?")]
    NotRegistered(Duration),
    /// One of its tasks ended, which is a bug.
    #[error("the bookie's {0} has ended unexpectedly")]
    Ended(&'static str),
    /// It cannot listen, or its certificate is refused.
    #[error(transparent)]
    Network(#[from] inkfast_wire::Error),
    /// The metastore, or what it says of ledgers and bookies.
    #[error(transparent)]
    Catalog(#[from] inkfast::Error),
}

impl Error {
    pub(crate) fn directory(dir: &Path, why: impl Into<String>) -> Self {
        Self::Directory { dir: dir.to_owned(), why: why.into() }
    }

    /// Says that no directory is left, with what is wrong with each.
    pub(crate) fn no_directory(mut broken: Vec<Self>) -> Self {
        if broken.len() == 1 {
            return broken.remove(0);
        }
        let words: Vec<_> = broken.iter().map(ToString::to_string).collect();
        match words.is_empty() {
            true => Self::NoDirectory("none was given".to_owned()),
            false => Self::NoDirectory(words.join("; ")),
        }
    }
}
