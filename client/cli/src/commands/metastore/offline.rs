//! What is done with the directory of a metastore that does not run.

use std::path::Path;

use inkfast_metastore_server::{backup_directory, restore as restore_directory};

use crate::Failure;
use crate::output::say;

/// Backs up the directory of a member that is stopped.
pub(super) async fn back_up(dir: &Path, file: &Path) -> Result<(), Failure> {
    let summary = backup_directory(dir, file).await?;
    let (rows, revision) = (summary.rows, summary.revision);
    say(format_args!("backup {} {rows} rows, revision {revision}", file.display()))?;
    Ok(say(format_args!("log ends at term {}, entry {}", summary.term, summary.entry))?)
}

/// Makes a member of a backup.
pub(super) async fn restore(file: &Path, dir: &Path) -> Result<(), Failure> {
    let summary = restore_directory(file, dir).await?;
    let (member, rows, revision) = (summary.member, summary.rows, summary.revision);
    say(format_args!("restored {} {rows} rows, revision {revision}", dir.display()))?;
    Ok(say(format_args!(
        "start it as the first member, {member}; others join it with empty directories"
    ))?)
}
