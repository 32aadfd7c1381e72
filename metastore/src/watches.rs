//! Watches in the process that has the state: the recent changes, and who is to be told of them.
//!
//! Whoever applies commands hands their changes to [`Watches::publish`], once they are durable and
//! before anybody is answered. They are kept in memory as long as there is room, for all watchers
//! together: a [`Watcher`] is a prefix and the first revision that may have something for it, so
//! one that is slow costs no more than one that is not. It is woken by changes of its prefix only,
//! and reads what is its own from the recent changes when it comes to it. If that is gone by
//! then, it is told so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::yield_now;

use crate::error::Error;
use crate::limits::{OPERATION_BYTES, check_watch};
use crate::state::Told;
use crate::types::{Change, Version};

/// The most changes that are remembered for watches.
pub const RECENT_MAX: usize = 100_000;
/// The most bytes of changes that are remembered, counted as those of a transaction, but with the
/// key twice where it is written.
pub const RECENT_BYTES_MAX: usize = 64 << 20;
/// The most watchers of a store at a time.
pub const WATCHERS_MAX: usize = 100_000;
/// How long a watch has nothing to tell before it tells just that, so that its caller knows that
/// it lives and needs nothing older when it goes on elsewhere.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// The most bytes of changes told at a time, if they are not all of one revision.
const TOLD_BYTES_MAX: usize = 64 << 10;
/// How many changes are looked through before others get their turn; the rest of a revision comes
/// on top.
const LOOKED_THROUGH_MAX: usize = 1024;

const REGISTERED: &str = "a watcher is registered until it is dropped";

/// The recent changes of a store and those who watch it. Clones are the same.
#[derive(Clone, Debug)]
pub struct Watches(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Recent changes by revision; a revision that changed no key is not there.
    recent: VecDeque<Revision>,
    recent_changes: usize,
    recent_bytes: usize,
    /// All changes after this revision are in `recent`.
    compacted: Version,
    /// The last revision that was published.
    latest: Version,
    watchers: BTreeMap<WatcherId, Entry>,
    next_watcher: WatcherId,
    /// Who watches which prefix, by its length first: few lengths are in use.
    by_prefix: BTreeMap<usize, BTreeMap<Arc<str>, BTreeSet<WatcherId>>>,
}

type WatcherId = u64;

#[derive(Debug)]
struct Revision {
    number: Version,
    changes: Vec<Change>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    /// What was done up to here is not for this watcher: it knows.
    after: Version,
    /// The first revision that may have something for it; none if there is nothing.
    pending: Option<Version>,
    wake: Arc<Notify>,
}

impl Watches {
    /// Begins to remember changes, those after the revision that the store has now.
    pub fn new(revision: Version) -> Self {
        Self(Arc::new(Mutex::new(State {
            recent: VecDeque::new(),
            recent_changes: 0,
            recent_bytes: 0,
            compacted: revision,
            latest: revision,
            watchers: BTreeMap::new(),
            next_watcher: 0,
            by_prefix: BTreeMap::new(),
        })))
    }

    /// Remembers changes, all up to a revision, and wakes whom they concern. They are in the order
    /// of their revisions, after what was published before, and durable.
    pub fn publish(&self, changes: Vec<Change>, revision: Version) {
        let mut state = self.lock();
        for change in changes {
            assert!(change.revision > state.latest, "changes are published out of order");
            state.wake(&change);
            state.remember(change);
        }
        state.latest = state.latest.max(revision);
        state.forget();
    }

    /// Forgets all changes: the store is another one now, at this revision, and what was changed
    /// on the way there is not known. Watchers that have seen less than that are told
    /// [`Error::Compacted`].
    pub fn reset(&self, revision: Version) {
        let mut state = self.lock();
        let latest = state.latest;
        for entry in state.watchers.values_mut() {
            let seen = entry.after.max(latest);
            if entry.pending.is_none() && seen < revision {
                entry.pending = Some(Version::new(seen.get() + 1));
            }
            entry.wake.notify_one();
        }
        state.recent.clear();
        (state.recent_changes, state.recent_bytes) = (0, 0);
        (state.compacted, state.latest) = (revision, revision);
    }

    /// Begins to watch a prefix, after a revision.
    ///
    /// `revision` is the store's, read after the watch was asked for. What is beyond it was not
    /// seen in this store and is an [`Error::BadRequest`]; what is too old is
    /// [`Error::Compacted`].
    pub fn watch(&self, prefix: &str, after: Version, revision: Version) -> Result<Watcher, Error> {
        check_watch(prefix)?;
        if after > revision {
            return Err(Error::bad_request(format!(
                "a watch from the revision {after}, which is in the future: the store is at \
                 {revision}; was the revision read in another cluster?"
            )));
        }
        let mut state = self.lock();
        if after < state.compacted {
            return Err(Error::Compacted);
        }
        if state.watchers.len() >= WATCHERS_MAX {
            return Err(Error::unavailable(format!("it has {WATCHERS_MAX} watches already")));
        }
        let prefix: Arc<str> = prefix.into();
        let wake = Arc::new(Notify::new());
        let id = state.next_watcher;
        state.next_watcher += 1;
        let pending = (after < state.latest).then(|| Version::new(after.get() + 1));
        state.watchers.insert(id, Entry { after, pending, wake: wake.clone() });
        let same_length = state.by_prefix.entry(prefix.len()).or_default();
        same_length.entry(prefix.clone()).or_default().insert(id);
        drop(state);
        Ok(Watcher { watches: self.clone(), id, prefix, wake })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake(&mut self, change: &Change) {
        for (length, prefixes) in self.by_prefix.range(..=change.key.len()) {
            let watchers = change.key.get(..*length).and_then(|prefix| prefixes.get(prefix));
            for watcher in watchers.into_iter().flatten() {
                if let Some(entry) = self.watchers.get_mut(watcher)
                    && entry.pending.is_none()
                    && entry.after < change.revision
                {
                    entry.pending = Some(change.revision);
                    entry.wake.notify_one();
                }
            }
        }
    }

    fn remember(&mut self, change: Change) {
        let bytes = change_bytes(&change);
        self.recent_changes += 1;
        self.recent_bytes += bytes;
        match self.recent.back_mut() {
            Some(last) if last.number == change.revision => {
                last.changes.push(change);
                last.bytes += bytes;
            }
            _ => {
                let number = change.revision;
                self.recent.push_back(Revision { number, changes: vec![change], bytes });
            }
        }
    }

    fn forget(&mut self) {
        while (self.recent_changes > RECENT_MAX || self.recent_bytes > RECENT_BYTES_MAX)
            && let Some(oldest) = self.recent.pop_front()
        {
            self.recent_changes -= oldest.changes.len();
            self.recent_bytes -= oldest.bytes;
            self.compacted = oldest.number;
        }
    }

    /// Takes the next changes for a watcher, or finds that there is nothing; looks at a part of
    /// the recent changes only, so there may be more of both.
    fn take(&mut self, id: WatcherId, prefix: &str) -> Result<Vec<Change>, Error> {
        let entry = self.watchers.get_mut(&id).expect(REGISTERED);
        let Some(from) = entry.pending else { return Ok(Vec::new()) };
        if from <= self.compacted {
            return Err(Error::Compacted);
        }
        let start = self.recent.partition_point(|revision| revision.number < from);
        let (mut taken, mut bytes, mut looked_through) = (Vec::new(), 0, 0);
        entry.pending = None;
        for revision in self.recent.range(start..) {
            let own = revision.changes.iter().filter(|change| change.key.starts_with(prefix));
            let own_bytes = own.clone().map(change_bytes).sum::<usize>();
            let full = !taken.is_empty() && bytes + own_bytes > TOLD_BYTES_MAX;
            if full || looked_through >= LOOKED_THROUGH_MAX {
                entry.pending = Some(revision.number);
                break;
            }
            taken.extend(own.cloned());
            bytes += own_bytes;
            looked_through += revision.changes.len();
        }
        Ok(taken)
    }

    /// Returns the first revision that may have something for a watcher, if there may be any.
    fn pending(&self, id: WatcherId) -> Option<Version> {
        self.watchers.get(&id).expect(REGISTERED).pending
    }

    fn seen(&self, id: WatcherId) -> Version {
        match self.watchers.get(&id).expect(REGISTERED) {
            Entry { pending: Some(pending), .. } => Version::new(pending.get() - 1),
            Entry { after, .. } => self.latest.max(*after),
        }
    }

    fn end(&mut self, id: WatcherId, prefix: &str) {
        self.watchers.remove(&id);
        if let Some(same_length) = self.by_prefix.get_mut(&prefix.len()) {
            if let Some(same) = same_length.get_mut(prefix) {
                same.remove(&id);
                if same.is_empty() {
                    same_length.remove(prefix);
                }
            }
            if same_length.is_empty() {
                self.by_prefix.remove(&prefix.len());
            }
        }
    }
}

fn change_bytes(change: &Change) -> usize {
    let now = change.now.as_ref().map_or(0, |now| now.key.len() + now.value.len());
    change.key.len() + now + OPERATION_BYTES
}

/// Watches a prefix in this process. Dropped, it is forgotten.
#[derive(Debug)]
pub struct Watcher {
    watches: Watches,
    id: WatcherId,
    prefix: Arc<str>,
    wake: Arc<Notify>,
}

impl Watcher {
    /// Waits for the next changes, and returns them in order of revision: all of one revision
    /// together, and what fits besides.
    ///
    /// Fails with [`Error::Compacted`] if it came too late for a change; it does so from then on.
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Told, Error> {
        loop {
            let woken = self.wake.notified();
            let (changes, seen, more) = {
                let mut state = self.watches.lock();
                let changes = state.take(self.id, &self.prefix)?;
                (changes, state.seen(self.id), state.pending(self.id).is_some())
            };
            if !changes.is_empty() {
                return Ok(Told { changes, seen });
            }
            if more {
                yield_now().await;
            } else {
                woken.await;
            }
        }
    }

    /// Returns the revision up to which all has been told.
    pub fn seen(&self) -> Version {
        self.watches.lock().seen(self.id)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.watches.lock().end(self.id, &self.prefix);
    }
}

#[cfg(test)]
mod tests;
