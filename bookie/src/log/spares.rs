//! Files of dropped segments that wait to become others: a write is quicker where blocks have been
//! written before.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Disk, DiskFile};

/// The most files that wait; more are removed.
const SPARES_MAX: usize = 2;
const PREFIX: &str = "spare-";
/// What a file is called until it is a segment, when there is no spare.
const FRESH: &str = "spare-fresh";

/// The spare files of a log. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Spares(Arc<Mutex<Vec<String>>>);

impl Spares {
    /// Finds those of a directory.
    pub(super) fn find(disk: &dyn Disk) -> io::Result<Self> {
        let names = disk.list()?.into_iter().filter(|name| name.starts_with(PREFIX));
        Ok(Self(Arc::new(Mutex::new(names.collect()))))
    }

    /// Takes a spare, or makes a new file. It is to be renamed.
    pub(super) fn take(&self, disk: &dyn Disk) -> io::Result<(String, Arc<dyn DiskFile>)> {
        match self.names().pop() {
            Some(name) => disk.open(&name).map(|file| (name, file)),
            None => Ok((FRESH.to_owned(), disk.create(FRESH)?)),
        }
    }

    /// Removes a spare, so that its room can be used; says whether there was one.
    pub(super) fn discard(&self, disk: &dyn Disk) -> io::Result<bool> {
        let spare = self.names().pop();
        spare.map_or(Ok(false), |name| disk.remove(&name).map(|()| true))
    }

    /// Takes back a file that was not used.
    pub(super) fn give_back(&self, name: String) {
        self.names().push(name);
    }

    /// Makes a spare of a file that nothing needs any more, or removes it.
    pub(super) fn put(&self, disk: &dyn Disk, name: &str) -> io::Result<()> {
        let mut names = self.names();
        if names.len() >= SPARES_MAX {
            return disk.remove(name);
        }
        let spare = format!("{PREFIX}{name}");
        disk.rename(name, &spare)?;
        names.push(spare);
        Ok(())
    }

    fn names(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
