//! A watch as its caller has it, wherever the changes come from.

use std::fmt::{self, Debug, Formatter};

use crate::error::Error;
use crate::memory::MemoryWatch;
use crate::remote::RemoteWatch;
use crate::types::Change;

/// Tells the changes of a prefix. What it promises is said [above](crate#what-is-promised).
pub struct Watch(pub(crate) Source);

pub(crate) enum Source {
    Memory(MemoryWatch),
    Remote(Box<RemoteWatch>),
}

impl Watch {
    /// Waits for the next changes, of which there is at least one: in order of revision, all of a
    /// revision together. Waits without end if there are none.
    ///
    /// Dropping the future loses nothing, so it may stand in a `select!`. Fails with
    /// [`Error::Compacted`] when a change that it should tell next is no longer remembered; the
    /// watch has ended then. After [`Error::Unavailable`] it may be called again and goes on where
    /// it was.
    pub async fn next(&mut self) -> Result<Vec<Change>, Error> {
        match &mut self.0 {
            Source::Memory(watch) => watch.next().await,
            Source::Remote(watch) => watch.next().await,
        }
    }
}

impl Debug for Watch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}
