//! How the appends of a writer end.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use inkfast_protocol::{EntryId, LedgerId};

use crate::Error;

/// Tells the appends of a writer how they end. Dropped, it ends the rest with [`Error::Closed`].
pub(crate) struct Confirmations {
    ledger: LedgerId,
    shared: Arc<Mutex<Shared>>,
}

/// Waits until an entry is confirmed, or has failed.
pub(crate) struct Confirmation {
    entry: EntryId,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    confirmed: Option<EntryId>,
    /// Who waits for the entry after that, and for those behind it.
    waiting: VecDeque<Option<Waker>>,
    /// Why those will not be confirmed.
    failed: Option<Error>,
}

impl Confirmations {
    pub(crate) fn new(ledger: LedgerId) -> Self {
        Self { ledger, shared: Arc::default() }
    }

    /// Returns what waits for an entry.
    pub(crate) fn of(&self, entry: EntryId) -> Confirmation {
        Confirmation { entry, shared: Arc::clone(&self.shared) }
    }

    /// Ends the appends up to an entry: they are confirmed.
    pub(crate) fn confirm(&self, up_to: EntryId) {
        let mut shared = lock(&self.shared);
        let count = shared.position(up_to).map_or(0, |position| position.saturating_add(1));
        let count = count.min(shared.waiting.len());
        let woken: Vec<_> = shared.waiting.drain(..count).flatten().collect();
        shared.confirmed = shared.confirmed.max(Some(up_to));
        drop(shared);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Ends all others, now and later, unless they have failed.
    pub(crate) fn fail(&self, error: Error) {
        let mut shared = lock(&self.shared);
        shared.failed.get_or_insert(error);
        let woken = mem::take(&mut shared.waiting);
        drop(shared);
        woken.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Drop for Confirmations {
    fn drop(&mut self) {
        self.fail(Error::Closed(self.ledger));
    }
}

impl Confirmation {
    pub(crate) const fn entry(&self) -> EntryId {
        self.entry
    }

    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Result<EntryId, Error>> {
        let mut shared = lock(&self.shared);
        let Some(position) = shared.position(self.entry) else {
            return Poll::Ready(Ok(self.entry));
        };
        if let Some(error) = &shared.failed {
            return Poll::Ready(Err(error.clone()));
        }
        // As many as there are appends in flight, at most.
        if shared.waiting.len() <= position {
            shared.waiting.resize(position + 1, None);
        }
        match &mut shared.waiting[position] {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl Shared {
    /// Returns where among those that wait an entry has its place; none if it is confirmed.
    fn position(&self, entry: EntryId) -> Option<usize> {
        let position = entry.get().checked_sub(EntryId::after(self.confirmed).get())?;
        Some(usize::try_from(position).unwrap_or(usize::MAX))
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use inkfast_protocol::writer::WriteError;
    use tokio::time::{Duration, timeout};

    use super::*;

    fn ledger() -> LedgerId {
        LedgerId::new(7).unwrap()
    }

    /// Waits for entries, each in a task of its own.
    fn wait<const N: usize>(
        confirmations: &Confirmations,
        entries: [u64; N],
    ) -> [tokio::task::JoinHandle<Result<EntryId, Error>>; N] {
        entries.map(|entry| {
            let confirmation = confirmations.of(EntryId::new(entry));
            let ended = poll_fn(move |context| confirmation.poll(context));
            tokio::spawn(async { timeout(Duration::from_secs(10), ended).await.expect("it ends") })
        })
    }

    #[tokio::test]
    async fn those_that_wait_are_woken_in_any_order() {
        let confirmations = Confirmations::new(ledger());
        let [later, first, last] = wait(&confirmations, [2, 0, 5]);
        tokio::task::yield_now().await;
        confirmations.confirm(EntryId::new(0));
        assert_eq!(first.await.unwrap().unwrap(), EntryId::new(0));
        assert!(!later.is_finished());
        confirmations.confirm(EntryId::new(4));
        assert_eq!(later.await.unwrap().unwrap(), EntryId::new(2));
        assert!(!last.is_finished());
        confirmations.confirm(EntryId::new(5));
        assert_eq!(last.await.unwrap().unwrap(), EntryId::new(5));
    }

    #[tokio::test]
    async fn what_is_confirmed_stays_so_and_the_rest_fails_for_the_first_reason() {
        let confirmations = Confirmations::new(ledger());
        let [waiting] = wait(&confirmations, [3]);
        tokio::task::yield_now().await;
        confirmations.confirm(EntryId::new(2));
        confirmations.fail(Error::of_writer(ledger(), WriteError::Fenced));
        assert!(matches!(waiting.await.unwrap(), Err(Error::Fenced(_))));
        let [confirmed, failed, later] = [2, 3, 4].map(|e| confirmations.of(EntryId::new(e)));
        drop(confirmations);
        let context = Context::from_waker(Waker::noop());
        assert!(matches!(confirmed.poll(&context), Poll::Ready(Ok(entry)) if entry.get() == 2));
        for failed in [failed, later] {
            assert!(matches!(failed.poll(&context), Poll::Ready(Err(Error::Fenced(_)))));
        }
    }

    #[tokio::test]
    async fn an_append_whose_writer_is_gone_ends() {
        let confirmations = Confirmations::new(ledger());
        let [waiting] = wait(&confirmations, [0]);
        tokio::task::yield_now().await;
        drop(confirmations);
        assert!(matches!(waiting.await.unwrap(), Err(Error::Closed(_))));
    }
}
