//! What is done with the directory of a metastore that does not run.

use std::path::Path;

use crate::Failure;

/// Backs up the directory of a member that is stopped.
pub(super) async fn back_up(dir: &Path, file: &Path) -> Result<(), Failure> {
    let words = format!("cannot back up {} to {}", dir.display(), file.display());
    Err(Failure::Failed(words))
}

/// Makes a member of a backup.
pub(super) async fn restore(file: &Path, dir: &Path) -> Result<(), Failure> {
    let words = format!("cannot restore {} to {}", file.display(), dir.display());
    Err(Failure::Failed(words))
}
