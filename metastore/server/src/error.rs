//! Why a metastore could not start, or stopped working.

use std::path::PathBuf;

use inkfast_metastore::rows::StateError;

use crate::database::FORMAT;

/// Says why the daemon does not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be used.
    #[error("the directory {} cannot be used: {why}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another process has the directory open.
    #[error(
        "the directory {} is in use by another process: stop that one, or give another directory",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The file is of something else, or damaged.
    #[error(
        "not a file of a metastore, or a damaged one: {why}; if it is damaged, remove the member \
         and let an empty directory join, or restore a backup"
    )]
    NotAMetastore {
        /// What is wrong with it.
        why: String,
    },
    /// The file was written by a newer program.
    #[error("the file has format {found}, and this program knows {FORMAT}: run a newer one")]
    NewerFormat {
        /// The format of the file.
        found: u32,
    },
    /// A backup cannot be read or written.
    #[error("the backup {} cannot be used: {why}; name another file", path.display())]
    Backup {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The cluster to join has not let this member in.
    #[error(
        "cannot join the cluster: {0}; does a majority run, and are the addresses its members'?"
    )]
    Join(String),
    /// The network cannot be used.
    #[error(transparent)]
    Wire(#[from] inkfast_wire::Error),
    /// The state cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
}

impl Error {
    pub(crate) fn not_a_metastore(why: impl Into<String>) -> Self {
        Self::NotAMetastore { why: why.into() }
    }

    /// Says why a file could not be opened or made.
    pub(crate) fn database(name: &str, error: impl Into<redb::Error>) -> Self {
        match error.into() {
            redb::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                Self::not_a_metastore(format!("{name}: {error}"))
            }
            redb::Error::Corrupted(why) => Self::not_a_metastore(format!("{name}: {why}")),
            other => Self::State(StateError(format!("{name}: {other}"))),
        }
    }
}
