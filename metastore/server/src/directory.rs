//! The files of a member: in a directory, which one process has at a time.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use redb::StorageBackend;
use redb::backends::FileBackend;

use crate::error::Error;

/// Who the member is, and its log. A directory with this file is a member's.
pub(crate) const LOG: &str = "log.redb";
/// What the log has made of the state.
pub(crate) const STATE: &str = "state.redb";
/// A state that is being received.
pub(crate) const INCOMING: &str = "state.incoming";
/// A log that is not whole yet.
pub(crate) const NEW_LOG: &str = "log.redb.new";
/// A state that is not whole yet.
pub(crate) const NEW_STATE: &str = "state.redb.new";

/// The one file of a member before metastores were replicated.
const FORMER: &str = "metastore.redb";
const LOCK: &str = "metastore.lock";

/// The files of a member, which nobody else uses meanwhile.
pub(crate) trait Files: Debug + Send + Sync + 'static {
    /// Returns whether there is such a file.
    fn exists(&self, name: &str) -> io::Result<bool>;

    /// Opens a file, which is made if it is missing.
    fn open(&self, name: &str) -> io::Result<Box<dyn StorageBackend>>;

    /// Renames a file over another, if there is one. When it returns, what was written to the file
    /// is on disk under its new name; a power cut before that leaves both names as they were, or as
    /// they are to be. Who has the other one open goes on reading it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file, if it is there. A power cut may bring it back.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// The files in a directory, which no other process has as long as this is held.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Takes a directory, made if it is missing. Refuses one in which something else lives, or
    /// that another process has.
    pub(crate) fn lock(path: &Path) -> Result<Self, Error> {
        let failed = failed(path);
        fs::create_dir_all(path).map_err(&failed)?;
        refuse_foreign(path)?;
        let lock = open_file(path, LOCK).map_err(&failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.into(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::InUse { path: path.into() }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Takes a directory that is missing or empty, for a member that is to be restored there.
    pub(crate) fn lock_empty(path: &Path) -> Result<Self, Error> {
        let directory = Self::lock(path)?;
        if path.join(LOG).exists() {
            let why = format!("it has {LOG:?} already; give an empty one");
            return Err(Error::Directory { path: path.into(), why });
        }
        Ok(directory)
    }

    /// Returns whether a member lives in a directory.
    pub(crate) fn has_member(path: &Path) -> Result<bool, Error> {
        if !path.exists() {
            return Ok(false);
        }
        refuse_foreign(path)?;
        Ok(path.join(LOG).exists())
    }
}

impl Files for Directory {
    fn exists(&self, name: &str) -> io::Result<bool> {
        self.path.join(name).try_exists()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        let backend = FileBackend::new(open_file(&self.path, name)?);
        Ok(Box::new(backend.map_err(io::Error::other)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        File::open(self.path.join(from))?.sync_all()?;
        fs::rename(self.path.join(from), self.path.join(to))?;
        sync_directory(&self.path)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    move |error| Error::Directory { path: path.into(), why: error.to_string() }
}

fn refuse_foreign(path: &Path) -> Result<(), Error> {
    let refuse = |why| Err(Error::Directory { path: path.into(), why });
    if path.join(FORMER).exists() {
        return refuse(format!(
            "its {FORMER} was written by a version that did not replicate, and this one cannot \
             read it; give an empty directory"
        ));
    }
    match foreign(path).map_err(failed(path))? {
        Some(other) => refuse(format!("it has {other:?} and no {LOG}; give an empty one")),
        None => Ok(()),
    }
}

/// Finds what shows that a directory is of something else; certificates may lie anywhere.
fn foreign(dir: &Path) -> io::Result<Option<String>> {
    if dir.join(LOG).exists() {
        return Ok(None);
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let ours = [LOCK, NEW_LOG, NEW_STATE, "lost+found"].contains(&name.as_str());
        if !ours && !name.ends_with(".pem") && !name.ends_with(".key") {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Opens a file, which is made if it is missing; nobody else may read it, for the reset key in it.
fn open_file(dir: &Path, name: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(dir.join(name))
}

/// Syncs the names in a directory, and its own in its parent.
fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    match dir.canonicalize()?.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
