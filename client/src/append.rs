//! Appending to a ledger.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use inkfast_protocol::writer::WriteError;
use inkfast_protocol::{EntryId, LedgerId, PAYLOAD_BYTES_MAX};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use crate::Error;
use crate::bookies::Bookies;
use crate::catalog::{Catalog, Versioned};
use crate::confirmations::Confirmation;
use crate::driver::{Driver, with};
use crate::room::ENTRY_ROOM_MIN;

/// The one writer of an open ledger.
///
/// Dropping it without [`close`](Self::close) leaves the ledger open, as the death of the writer
/// does: another client can then recover it. Appends that are not confirmed by then end with
/// [`Error::Closed`], and may or may not be in the ledger.
pub struct LedgerWriter {
    ledger: LedgerId,
    close_deadline: Duration,
    driver: Arc<Mutex<Driver>>,
    moved: Arc<Notify>,
    room: Arc<Semaphore>,
    /// Whoever has it is next to append. It is fair, so entries are numbered in the order of the
    /// calls.
    turn: tokio::sync::Mutex<()>,
}

impl LedgerWriter {
    pub(crate) fn start(
        bookies: &Bookies,
        catalog: Catalog,
        created: Versioned,
        strict_racks: bool,
    ) -> Self {
        let ledger = created.1.ledger;
        let driver = Driver::start(bookies, catalog, created, strict_racks);
        let (moved, room) = with(&driver, |driver| (driver.moved(), driver.room()));
        let close_deadline = bookies.deadlines().close;
        Self { ledger, close_deadline, driver, moved, room, turn: tokio::sync::Mutex::default() }
    }

    /// Returns the ledger's id.
    pub const fn id(&self) -> LedgerId {
        self.ledger
    }

    /// Appends an entry: returns when it is numbered and on its way, with a future that ends when
    /// it is confirmed.
    ///
    /// Waits while the entries in flight fill their room (4 MiB of payload, and 4096 entries).
    /// Entries are numbered in the order of the calls. Dropping either future does not undo an
    /// append that was numbered.
    ///
    /// Bookies that fail are replaced by others, or taken back when they answer again; meanwhile
    /// the writer goes on with an ack quorum. When nothing was confirmed for 30 s
    /// ([`Deadlines::quorum`](crate::Deadlines::quorum)) the appends fail. After an error other
    /// than [`Error::EntryTooLarge`] the writer can only close.
    pub async fn append(&self, payload: impl Into<Bytes>) -> Result<Append, Error> {
        let payload = payload.into();
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Error::EntryTooLarge(payload.len()));
        }
        let room = u32::try_from(payload.len().max(ENTRY_ROOM_MIN)).unwrap_or(u32::MAX);
        let turn = self.turn.lock().await;
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(room).await else {
            return Err(self.failure());
        };
        let appended = with(&self.driver, |driver| driver.append(&payload, now_ms(), room));
        drop(turn);
        appended.map(Append)
    }

    /// Returns the highest entry that is confirmed; none when no entry is yet.
    pub fn last_add_confirmed(&self) -> Option<EntryId> {
        with(&self.driver, |driver| driver.confirmed())
    }

    /// Waits until an entry above `known` is confirmed, and returns the highest that is.
    pub async fn confirmed_beyond(&self, known: Option<EntryId>) -> Result<EntryId, Error> {
        let beyond = |driver: &Driver| match driver.confirmed() {
            Some(confirmed) if Some(confirmed) > known => Some(Ok(confirmed)),
            _ => driver.failed().cloned().map(Err),
        };
        self.wait_for(beyond).await
    }

    /// Waits until everything that was appended so far is confirmed, and returns the last add
    /// confirmed; none when nothing was ever appended.
    pub async fn flush(&self) -> Result<Option<EntryId>, Error> {
        let Some(last) = with(&self.driver, |driver| driver.appended()) else {
            return Ok(None);
        };
        match self.confirmed_beyond(last.previous()).await {
            Ok(confirmed) => Ok(Some(confirmed)),
            Err(error) => Err(error),
        }
    }

    /// Waits until an append fails, and returns why. The writer can then only close.
    pub async fn failed(&self) -> Error {
        self.wait_for(|driver| driver.failed().cloned()).await
    }

    /// Closes the ledger at the last add confirmed, and returns that. Appends that are not
    /// confirmed yet fail: [`flush`](Self::flush) first to have them in.
    ///
    /// [`Error::Fenced`] says that another client ended the ledger, where it found its end to be.
    pub async fn close(self) -> Result<Option<EntryId>, Error> {
        with(&self.driver, Driver::close);
        let closed = timeout(self.close_deadline, self.wait_for(Driver::closed)).await;
        closed.unwrap_or_else(|_| Err(Error::of_writer(self.ledger, WriteError::Unsettled)))
    }

    fn failure(&self) -> Error {
        with(&self.driver, |driver| driver.failed().cloned()).unwrap_or(Error::Closed(self.ledger))
    }

    /// Waits until the driver shows what is looked for.
    async fn wait_for<T>(&self, look: impl Fn(&Driver) -> Option<T>) -> T {
        loop {
            // It hears of what happens from here on.
            let moved = self.moved.notified();
            if let Some(found) = with(&self.driver, |driver| look(driver)) {
                return found;
            }
            moved.await;
        }
    }
}

/// An append that is numbered and on its way. As a future it ends when the entry is confirmed:
/// when Qa bookies have it on disk, and every entry before it.
#[must_use = "an append is confirmed only when this future ends with Ok"]
pub struct Append(Confirmation);

impl Append {
    /// Returns the entry's id.
    pub const fn entry(&self) -> EntryId {
        self.0.entry()
    }
}

impl Future for Append {
    type Output = Result<EntryId, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(context)
    }
}

/// Returns the wall clock in milliseconds since 1970: for people, never for a decision.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
