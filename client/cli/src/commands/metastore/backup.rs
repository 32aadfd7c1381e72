//! A backup of a metastore that runs, to a file.

use std::path::{Path, PathBuf};

use inkfast_metastore::{Backup, RemoteMetastore};
use tokio::fs::{self, File};
use tokio::io::AsyncWriteExt;

use super::failure;
use crate::Failure;
use crate::output::say;

/// Refuses a file that is there.
pub(super) fn check(file: &Path) -> Result<(), Failure> {
    match file.try_exists() {
        Ok(false) => Ok(()),
        Ok(true) => {
            Err(Failure::Failed(format!("{} is there already: name a new file", file.display())))
        }
        Err(error) => Err(unwritable(file, &error)),
    }
}

/// Writes a backup to a file that is whole when it has its name.
pub(super) async fn run(store: &RemoteMetastore, file: &Path) -> Result<(), Failure> {
    let mut backup = store.backup().await.map_err(failure)?;
    let part = part_of(file);
    let written = match receive(&mut backup, &part).await {
        Ok(bytes) => put_in_place(&part, file).await.map(|()| bytes),
        Err(error) => Err(error),
    };
    if written.is_err() {
        // What there is of it is of no use, and in nobody's way if it stays.
        let _ = fs::remove_file(&part).await;
    }
    Ok(say(format_args!("backup {} {} bytes", file.display(), written?))?)
}

/// Writes down all pieces and returns how many bytes they have.
async fn receive(backup: &mut Backup, part: &Path) -> Result<u64, Failure> {
    let unwritable = |error| unwritable(part, &error);
    let mut new = File::options();
    new.write(true).create(true).truncate(true).mode(0o600);
    let mut file = new.open(part).await.map_err(unwritable)?;
    let mut bytes = 0;
    while let Some(piece) = backup.next().await.map_err(failure)? {
        file.write_all(&piece).await.map_err(unwritable)?;
        bytes += piece.len() as u64;
    }
    file.flush().await.map_err(unwritable)?;
    file.sync_all().await.map_err(unwritable)?;
    Ok(bytes)
}

async fn put_in_place(part: &Path, file: &Path) -> Result<(), Failure> {
    check(file)?;
    let unwritable = |error| unwritable(file, &error);
    fs::rename(part, file).await.map_err(unwritable)?;
    let dir = match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    File::open(dir).await.map_err(unwritable)?.sync_all().await.map_err(unwritable)
}

fn part_of(file: &Path) -> PathBuf {
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    part.into()
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("cannot write {}: {error}", path.display()))
}
