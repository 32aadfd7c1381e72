//! Drives the protocol's writer: hands its entries to the streams of adds, its questions to the
//! metastore, and its confirmations to those who wait for them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use inkfast_protocol::messages::{FragmentBrief, OpenAdds};
use inkfast_protocol::writer::{Action, CasOutcome, WriteError, Writer};
use inkfast_protocol::{Entry, EntryId, LedgerId, LedgerMetadata, MetadataVersion, Places, Tenure};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep};

use crate::Error;
use crate::adds::{Adder, Said};
use crate::bookies::Bookies;
use crate::catalog::{Catalog, Replaced, Versioned};
use crate::confirmations::{Confirmation, Confirmations};
use crate::outbox::{Outbox, PARTS_MAX};
use crate::room::{ENTRY_ROOM_MIN, ROOM_BYTES, Room};

mod tend;

/// The writer asks the metastore one thing at a time; more would be a bug.
const QUESTIONS_MAX: usize = 1;
/// The pause after a question that got no answer.
const QUESTION_PAUSE: Duration = Duration::from_millis(200);

const _: () = assert!(inkfast_protocol::PAYLOAD_BYTES_MAX <= ROOM_BYTES);
const _: () = assert!(ROOM_BYTES / ENTRY_ROOM_MIN <= PARTS_MAX);

/// One open writer. It is only ever used under its lock, which no one holds while waiting.
pub(crate) struct Driver {
    writer: Writer,
    bookies: Bookies,
    strict_racks: bool,
    outbox: Outbox,
    /// The tenure of the stream to each place, once something was sent there.
    streams: Vec<Option<Tenure>>,
    /// The appends that are not confirmed, in order and without a gap.
    waiting: VecDeque<Waiting>,
    confirmations: Confirmations,
    /// When they have waited for too long, if none is confirmed before.
    overdue_at: Instant,
    /// The last entry that was numbered, whatever became of it, and when.
    appended: Option<EntryId>,
    appended_at: Instant,
    /// When the bookies were last told the last add confirmed by itself.
    told_at: Instant,
    /// It is counted among those that move.
    moving: bool,
    /// When the driver is tended next; none if nothing is due.
    tended_at: Option<Instant>,
    /// Has it tended now. Closed with the driver.
    tend: watch::Sender<()>,
    questions: mpsc::Sender<Question>,
    /// Why it can only close.
    failed: Option<Error>,
    /// How its close ended.
    closed: Option<Result<Option<EntryId>, Error>>,
    /// Wakes whoever waits for any of that, or for the last add confirmed.
    moved: Arc<Notify>,
    room: Arc<Semaphore>,
    this: Weak<Mutex<Self>>,
}

struct Waiting {
    entry: EntryId,
    room: Room,
}

/// What the writer wants of the metastore.
enum Question {
    Read,
    Cas(MetadataVersion, Box<LedgerMetadata>),
}

impl Driver {
    /// Starts to write a ledger that was just created. What it starts ends when the driver is
    /// dropped.
    pub(crate) fn start(
        bookies: &Bookies,
        catalog: Catalog,
        created: Versioned,
        strict_racks: bool,
    ) -> Arc<Mutex<Self>> {
        let (version, metadata) = created.clone();
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        let (tend, tended) = watch::channel(());
        let now = Instant::now();
        let (ledger, places) = (metadata.ledger, metadata.replication.ensemble());
        let driver = Arc::new_cyclic(|this| {
            Mutex::new(Self {
                outbox: Outbox::new(places),
                streams: vec![None; places],
                writer: Writer::new(version, metadata),
                bookies: bookies.clone(),
                strict_racks,
                waiting: VecDeque::new(),
                confirmations: Confirmations::new(ledger),
                overdue_at: now,
                appended: None,
                appended_at: now,
                told_at: now,
                moving: false,
                tended_at: None,
                tend,
                questions,
                failed: None,
                closed: None,
                moved: Arc::default(),
                room: Arc::new(Semaphore::new(ROOM_BYTES)),
                this: this.clone(),
            })
        });
        tokio::spawn(answer(Arc::downgrade(&driver), catalog, created, asked));
        let changes = bookies.registry().changes();
        tokio::spawn(tend::run(Arc::downgrade(&driver), tended, changes));
        driver
    }

    /// Numbers an entry and sends it on its way.
    pub(crate) fn append(
        &mut self,
        payload: &[u8],
        written_at_ms: u64,
        room: OwnedSemaphorePermit,
    ) -> Result<Confirmation, Error> {
        let entry =
            self.writer.append(payload, written_at_ms).map_err(|error| self.error(error))?;
        self.appended = Some(entry);
        self.appended_at = Instant::now();
        if self.waiting.is_empty() {
            self.overdue_at = self.appended_at + self.bookies.deadlines().quorum;
        }
        let room = Room::with(self.waiting.back().map(|before| &before.room), room);
        self.waiting.push_back(Waiting { entry, room });
        self.drain();
        Ok(self.confirmations.of(entry))
    }

    /// Closes the ledger.
    pub(crate) fn close(&mut self) {
        self.writer.close();
        self.drain();
    }

    pub(crate) fn ledger(&self) -> LedgerId {
        self.writer.metadata().ledger
    }

    /// Returns the highest entry that is confirmed.
    pub(crate) const fn confirmed(&self) -> Option<EntryId> {
        self.writer.last_add_confirmed()
    }

    /// Returns why it can only close, if so.
    pub(crate) const fn failed(&self) -> Option<&Error> {
        self.failed.as_ref()
    }

    /// Returns how its close ended, if it has.
    pub(crate) fn closed(&self) -> Option<Result<Option<EntryId>, Error>> {
        self.closed.clone()
    }

    /// Returns what wakes those who wait for any of that to change.
    pub(crate) fn moved(&self) -> Arc<Notify> {
        Arc::clone(&self.moved)
    }

    pub(crate) fn room(&self) -> Arc<Semaphore> {
        Arc::clone(&self.room)
    }

    /// Returns the last entry that was appended, whatever became of it.
    pub(crate) const fn appended(&self) -> Option<EntryId> {
        self.appended
    }

    /// Does what the writer wants. This is the only place where its actions take effect.
    fn drain(&mut self) {
        // An entry that goes to many places goes there at once, to share its bytes.
        let mut sending: Option<(Entry, Places)> = None;
        while let Some(action) = self.writer.next_action() {
            tracing::trace!(ledger = %self.ledger(), ?action);
            match action {
                Action::Send { place, tenure, entry } => {
                    self.open_stream(place, tenure);
                    match &mut sending {
                        Some((same, places)) if same.id() == entry.id() => places.insert(place),
                        _ => {
                            let before = sending.replace((entry, [place].into_iter().collect()));
                            self.send(before);
                        }
                    }
                }
                Action::Tell { place, tenure, confirmed } => {
                    self.open_stream(place, tenure);
                    self.outbox.tell(place, confirmed);
                }
                Action::Confirm(entry) => self.confirm(entry),
                Action::Fail(error) => self.fail(error),
                Action::Choose => {
                    self.tend.send_replace(());
                }
                Action::ReadMetadata => self.ask(Question::Read),
                Action::Cas { version, metadata } => {
                    self.ask(Question::Cas(version, Box::new(metadata)));
                }
                Action::Closed { last } => self.end(Ok(last)),
                Action::NotClosed(error) => self.end(Err(self.error(error))),
            }
        }
        self.send(sending);
        self.see_to_tending();
    }

    fn on_added(&mut self, place: usize, tenure: Tenure, first: EntryId, last: EntryId) {
        let before = self.confirmed();
        self.writer.on_added(place, tenure, first, last);
        // Otherwise nothing follows from it.
        if self.confirmed() > before {
            self.drain();
        }
    }

    /// Opens the stream to a place, unless it is there.
    fn open_stream(&mut self, place: usize, tenure: Tenure) {
        if self.streams[place].replace(tenure) != Some(tenure) {
            let metadata = self.writer.metadata();
            let (bookie, open) = (metadata.last_fragment().ensemble[place], adds_to(metadata));
            let (driver, bookies) = (self.this.clone(), self.bookies.clone());
            let hear = Arc::new(move |said| match said {
                Said::Added(first, last) => {
                    if let Some(driver) = driver.upgrade() {
                        with(&driver, |driver| driver.on_added(place, tenure, first, last));
                    }
                }
                Said::Ended(refusal) => {
                    tracing::info!(place, %bookie, %refusal, "a bookie takes no more adds of a ledger");
                    bookies.refused(bookie, &refusal);
                    tell(&driver, |writer| writer.on_refused(place, tenure, refusal));
                }
            });
            self.bookies.add(bookie, Adder { open, hear }, |bell| self.outbox.outlet(place, bell));
        }
    }

    /// Puts an entry, with its share of the room in flight, into the streams to some places. If one
    /// has failed, its task reports that.
    fn send(&self, entry: Option<(Entry, Places)>) {
        let Some((entry, places)) = entry else { return };
        let lowest = self.waiting.front().map_or_else(|| entry.id(), |waiting| waiting.entry);
        let behind = usize::try_from(entry.id().get() - lowest.get()).unwrap_or(usize::MAX);
        let room = self.waiting.get(behind).map(|waiting| &waiting.room);
        let sent = self.outbox.push(&entry, places, room);
        assert!(sent.is_ok(), "more entries are in flight than there is room");
    }

    fn confirm(&mut self, up_to: EntryId) {
        while self.waiting.pop_front_if(|waiting| waiting.entry <= up_to).is_some() {}
        self.confirmations.confirm(up_to);
        self.overdue_at = Instant::now() + self.bookies.deadlines().quorum;
        self.moved.notify_waiters();
    }

    fn fail(&mut self, error: WriteError) {
        let error = self.error(error);
        self.waiting.clear();
        self.confirmations.fail(error.clone());
        self.outbox.close();
        self.failed = Some(error);
        self.moved.notify_waiters();
        self.room.close();
    }

    fn ask(&mut self, question: Question) {
        let asked = self.questions.try_send(question);
        assert!(asked.is_ok(), "the writer asks one question at a time");
    }

    fn end(&mut self, end: Result<Option<EntryId>, Error>) {
        self.closed = Some(end);
        self.moved.notify_waiters();
    }

    fn error(&self, error: WriteError) -> Error {
        Error::of_writer(self.ledger(), error)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.count_moving(false);
    }
}

/// Runs `work` on the driver under its lock.
pub(crate) fn with<T>(driver: &Mutex<Driver>, work: impl FnOnce(&mut Driver) -> T) -> T {
    work(&mut driver.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Tells a writer's machine what happened, if the writer is still there.
fn tell(driver: &Weak<Mutex<Driver>>, what: impl FnOnce(&mut Writer)) {
    if let Some(driver) = driver.upgrade() {
        with(&driver, |driver| {
            what(&mut driver.writer);
            driver.drain();
        });
    }
}

fn adds_to(metadata: &LedgerMetadata) -> OpenAdds {
    let fragment = metadata.last_fragment();
    OpenAdds {
        adder: 0,
        ledger: metadata.ledger.get(),
        writer: Some(metadata.writer.0.as_bytes().to_vec()),
        fragment: Some(FragmentBrief::new(
            metadata.replication,
            fragment.first,
            &fragment.ensemble,
        )),
    }
}

/// Puts the writer's questions to the metastore.
async fn answer(
    driver: Weak<Mutex<Driver>>,
    catalog: Catalog,
    mut known: Versioned,
    mut questions: mpsc::Receiver<Question>,
) {
    let ledger = known.1.ledger;
    while let Some(question) = questions.recv().await {
        match question {
            Question::Read => match catalog.ledger(ledger).await {
                Ok(found) => {
                    known = found;
                    let (version, metadata) = known.clone();
                    tell(&driver, |writer| writer.on_metadata(version, metadata));
                }
                Err(Error::LedgerNotFound(_) | Error::LedgerDeleted(_)) => {
                    tell(&driver, Writer::on_deleted);
                }
                Err(error) if error.is_metastore_away() => {
                    tracing::warn!(%ledger, %error, "cannot read the metadata");
                    sleep(QUESTION_PAUSE).await;
                    tell(&driver, Writer::on_metadata_unavailable);
                }
                Err(error) => tell(&driver, |writer| writer.on_impossible(error.to_string())),
            },
            Question::Cas(version, metadata) => {
                match cas(&catalog, &mut known, version, *metadata).await {
                    Ok(outcome) => tell(&driver, |writer| writer.on_cas(outcome)),
                    Err(error) => tell(&driver, |writer| writer.on_impossible(error.to_string())),
                }
            }
        }
    }
}

/// Replaces the metadata if the version that the machine wants to replace is the one that is
/// known, and knows what stands there if that is certain. An error says that it never can.
pub(crate) async fn cas(
    catalog: &Catalog,
    known: &mut Versioned,
    version: MetadataVersion,
    metadata: LedgerMetadata,
) -> Result<CasOutcome, Error> {
    if known.0 != version {
        return Ok(CasOutcome::Lost);
    }
    match catalog.replace(known, &metadata).await {
        Ok(Replaced::Won(version)) => {
            *known = (version, metadata);
            Ok(CasOutcome::Won(version))
        }
        Ok(Replaced::Lost) => Ok(CasOutcome::Lost),
        Err(error) if error.is_metastore_away() => {
            tracing::warn!(ledger = %metadata.ledger, %error, "a change of the metadata is open");
            Ok(CasOutcome::Unknown)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use inkfast_metastore::MemoryMetastore;
    use inkfast_protocol::State;

    use super::*;
    use crate::catalog::example;

    #[tokio::test]
    async fn a_machine_replaces_only_the_version_that_it_knows() {
        let catalog = Catalog::new(Arc::new(MemoryMetastore::new()));
        let (created, open) = example::create_ledger(&catalog).await;
        let ledger = open.ledger;
        let ended = |last| LedgerMetadata {
            state: State::Closed { last: Some(EntryId::new(last)), length: 0 },
            ..open.clone()
        };
        // Another client has closed the ledger, and this one has read that.
        let mut known = (created, open.clone());
        let outcome = cas(&catalog, &mut known, created, ended(5)).await;
        assert!(matches!(outcome, Ok(CasOutcome::Won(_))), "{outcome:?}");
        let mut known = catalog.ledger(ledger).await.unwrap();

        // Its machine still wants to replace what it knew before.
        let outcome = cas(&catalog, &mut known, created, ended(3)).await;
        assert!(matches!(outcome, Ok(CasOutcome::Lost)), "{outcome:?}");
        assert_eq!(catalog.ledger(ledger).await.unwrap().1, ended(5));
    }
}
