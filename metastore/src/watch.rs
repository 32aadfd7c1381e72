//! A watch as its caller has it, wherever the changes come from.

use crate::error::Error;
use crate::memory::MemoryWatch;
use crate::types::Change;

/// Tells the changes of a prefix. What it promises is said [above](crate#what-is-promised).
#[derive(Debug)]
pub struct Watch(pub(crate) Source);

#[derive(Debug)]
pub(crate) enum Source {
    Memory(MemoryWatch),
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
        }
    }
}
