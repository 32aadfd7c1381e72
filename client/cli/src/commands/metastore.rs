//! `inkfast metastore`: the members of the metastore, and its backups.

use std::path::{Path, PathBuf};

use inkfast_metastore::limits::check_address;
use inkfast_metastore::{Error, Metastore as _, RemoteMetastore};
use uuid::Uuid;

use super::refuse;
use crate::output::{Output, say};
use crate::{Failure, config};
use view::View;

mod backup;
mod offline;
mod view;

#[derive(clap::Subcommand)]
pub(crate) enum Metastore {
    /// Prints who is a member, who leads, and how far each is
    ///
    /// The exit status is 0 if there is a leader, and 1 if there is none; what is known is printed
    /// all the same.
    Status(#[command(flatten)] Output),
    /// Makes a metastore that was started with --join a voter
    ///
    /// Returns when it has learned the state and counts. Does nothing if it is a voter already.
    AddMember {
        /// Where it is, host:port
        address: String,
    },
    /// Removes a member, which may be dead, or the leader, but not the last one
    RemoveMember {
        /// Its id, or its address if no other member has had the same
        #[arg(value_name = "ID-OR-ADDR")]
        member: String,
    },
    /// Makes a member the leader, and returns when it is
    TransferLeader {
        /// Its id, or its address
        #[arg(value_name = "ID-OR-ADDR")]
        member: String,
    },
    /// Writes all that the metastore has to a new file
    Backup {
        /// The file; it must not exist
        file: PathBuf,
        /// Takes it from the directory of a member that is stopped, when no majority is left
        ///
        /// What only other members had is lost then. It prints where the member's log ends: of
        /// several take the one with the highest term, and among those with the highest entry.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Makes of a backup the first member of a metastore, to be started and joined by others
    ///
    /// It is the same cluster, but what was changed after the backup is lost. All sequences leap,
    /// so no ledger's id is used again.
    Restore {
        /// The backup
        file: PathBuf,
        /// The member's directory; it must be missing or empty
        #[arg(long)]
        dir: PathBuf,
    },
}

impl Metastore {
    pub(crate) async fn run(self, settings: Option<&Path>) -> Result<(), Failure> {
        match self {
            Self::Restore { file, dir } => {
                refuse(settings.is_some(), "metastore restore")?;
                offline::restore(&file, &dir).await
            }
            Self::Backup { file, dir: Some(dir) } => {
                refuse(settings.is_some(), "metastore backup --dir")?;
                offline::back_up(&dir, &file).await
            }
            Self::Backup { file, dir: None } => {
                backup::check(&file)?;
                backup::run(&config::metastore(settings)?, &file).await
            }
            Self::Status(output) => status(&config::metastore(settings)?, &output).await,
            Self::AddMember { address } => {
                check_address(&address).map_err(|error| Failure::Usage(error.to_string()))?;
                let store = config::metastore(settings)?;
                store.add_member(&address).await.map_err(failure)?;
                Ok(say(format_args!("{address} is a voter"))?)
            }
            Self::RemoveMember { member } => {
                let store = config::metastore(settings)?;
                let id = resolve(&store, &member).await?;
                store.remove_member(id).await.map_err(failure)?;
                Ok(say(format_args!("{id} is removed"))?)
            }
            Self::TransferLeader { member } => {
                let store = config::metastore(settings)?;
                let id = resolve(&store, &member).await?;
                store.transfer_leader(id).await.map_err(failure)?;
                Ok(say(format_args!("{id} leads"))?)
            }
        }
    }
}

async fn status(store: &RemoteMetastore, output: &Output) -> Result<(), Failure> {
    let view = look(store).await?;
    output.print(&view)?;
    if !view.has_leader() {
        let words = "the metastore has no leader that is reached from here: a majority of its \
                     voters must run and reach each other";
        return Err(Failure::Failed(words.into()));
    }
    Ok(())
}

/// Asks all members what they know; somebody must answer.
async fn look(store: &RemoteMetastore) -> Result<View, Failure> {
    let answers = store.status().await;
    if answers.iter().all(|(_, answer)| answer.is_err()) {
        let words = answers
            .iter()
            .filter_map(|(address, answer)| Some(format!("{address}: {}", answer.as_ref().err()?)));
        let words = words.collect::<Vec<_>>().join("; ");
        return Err(failure(Error::unavailable(words)));
    }
    let answers = answers.into_iter().filter_map(|(_, answer)| answer.ok()).collect();
    let cluster = store.cluster().await.map_err(failure)?;
    Ok(View::new(cluster, answers))
}

/// Finds the member that is meant by an id or an address.
async fn resolve(store: &RemoteMetastore, member: &str) -> Result<Uuid, Failure> {
    if let Ok(id) = Uuid::parse_str(member) {
        return Ok(id);
    }
    check_address(member).map_err(|_| {
        Failure::Usage(format!("{member:?} is neither the id of a member nor its address"))
    })?;
    look(store).await?.member_at(member).map_err(Failure::Failed)
}

fn failure(error: Error) -> Failure {
    match error {
        Error::BadRequest { why } => Failure::Failed(why),
        other => Failure::Client(inkfast::Error::Metastore(other)),
    }
}
