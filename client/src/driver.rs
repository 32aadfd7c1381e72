//! Drives the protocol's writer: hands its entries to the streams of adds, its questions to the
//! metastore, and its confirmations to those who wait for them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use inkfast_protocol::messages::{Added, FragmentBrief, OpenAdds};
use inkfast_protocol::writer::{Action, CasOutcome, WriteError, Writer};
use inkfast_protocol::{EntryId, LedgerId, LedgerMetadata, MetadataVersion, Tenure};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::Error;
use crate::adds::{self, Adds, Queued};
use crate::bookies::Bookies;
use crate::catalog::{Catalog, Replaced, Versioned};

/// The room that the entries in flight of one writer have together, in bytes. An entry takes its
/// payload's bytes, and at least [`ENTRY_ROOM_MIN`], so that there are at most 4096.
pub(crate) const ROOM_BYTES: usize = 4 << 20;
/// The least room that an entry takes.
pub(crate) const ENTRY_ROOM_MIN: usize = 1 << 10;
const ENTRIES_IN_FLIGHT_MAX: usize = ROOM_BYTES / ENTRY_ROOM_MIN;
/// The writer asks the metastore one thing at a time; more would be a bug.
const QUESTIONS_MAX: usize = 2;

const _: () = assert!(inkfast_protocol::PAYLOAD_BYTES_MAX <= ROOM_BYTES);

/// One open writer. It is only ever used under its lock, which no one holds while waiting.
pub(crate) struct Driver {
    ledger: LedgerId,
    writer: Writer,
    places: Vec<mpsc::Sender<Queued>>,
    /// The appends that are not confirmed, in order and without a gap.
    waiting: VecDeque<Waiting>,
    /// The last entry that was numbered, whatever became of it.
    appended: Option<EntryId>,
    questions: mpsc::Sender<Question>,
    progress: watch::Sender<Progress>,
    room: Arc<Semaphore>,
}

struct Waiting {
    entry: EntryId,
    confirmed: oneshot::Sender<Result<EntryId, Error>>,
    room: Arc<OwnedSemaphorePermit>,
}

/// How far a writer has come.
#[derive(Clone, Default)]
pub(crate) struct Progress {
    /// The last add confirmed.
    pub(crate) confirmed: Option<EntryId>,
    /// Why it can only close.
    pub(crate) failed: Option<Error>,
    /// How its close ended.
    pub(crate) closed: Option<Result<Option<EntryId>, Error>>,
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
    ) -> Arc<Mutex<Self>> {
        let (version, metadata) = created.clone();
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        let driver = Arc::new(Mutex::new(Self {
            ledger: metadata.ledger,
            writer: Writer::new(version, metadata.clone()),
            places: Vec::new(),
            waiting: VecDeque::new(),
            appended: None,
            questions,
            progress: watch::Sender::new(Progress::default()),
            room: Arc::new(Semaphore::new(ROOM_BYTES)),
        }));
        for place in 0..metadata.replication.ensemble() {
            let (queue, queued) = mpsc::channel(ENTRIES_IN_FLIGHT_MAX);
            let adds = adds_to(&metadata, place);
            tokio::spawn(feed(Arc::downgrade(&driver), bookies.clone(), place, adds, queued));
            with(&driver, |driver| driver.places.push(queue));
        }
        tokio::spawn(answer(Arc::downgrade(&driver), catalog, created, asked));
        driver
    }

    /// Numbers an entry and sends it on its way.
    pub(crate) fn append(
        &mut self,
        payload: &[u8],
        written_at_ms: u64,
        room: OwnedSemaphorePermit,
    ) -> Result<(EntryId, oneshot::Receiver<Result<EntryId, Error>>), Error> {
        let entry =
            self.writer.append(payload, written_at_ms).map_err(|error| self.error(error))?;
        let (confirmed, confirmation) = oneshot::channel();
        self.appended = Some(entry);
        self.waiting.push_back(Waiting { entry, confirmed, room: Arc::new(room) });
        self.drain();
        Ok((entry, confirmation))
    }

    /// Closes the ledger; the progress tells how it ended.
    pub(crate) fn close(&mut self) {
        self.writer.close();
        self.drain();
    }

    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
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
        while let Some(action) = self.writer.next_action() {
            tracing::trace!(ledger = %self.ledger, ?action);
            match action {
                Action::Send { place, entry, .. } => {
                    let room = self.room_of(entry.id());
                    // It has room: the bound on entries in flight is the queue's length. If it
                    // is closed the stream has failed, which its task reports.
                    let _ = self.places[place].try_send(Queued { entry, _room: room });
                }
                Action::Confirm(entry) => self.confirm(entry),
                Action::Fail(error) => self.fail(error),
                Action::ReadMetadata => self.ask(Question::Read),
                Action::Cas { version, metadata } => {
                    self.ask(Question::Cas(version, Box::new(metadata)))
                }
                Action::Closed { last } => self.closed(Ok(last)),
                Action::NotClosed(error) => self.closed(Err(self.error(error))),
            }
        }
    }

    fn room_of(&self, entry: EntryId) -> Option<Arc<OwnedSemaphorePermit>> {
        let lowest = self.waiting.front()?.entry;
        let behind = usize::try_from(entry.get().checked_sub(lowest.get())?).ok()?;
        self.waiting.get(behind).map(|waiting| Arc::clone(&waiting.room))
    }

    fn confirm(&mut self, up_to: EntryId) {
        while let Some(lowest) = self.waiting.pop_front_if(|waiting| waiting.entry <= up_to) {
            // Whoever dropped the future does not want to know.
            let _ = lowest.confirmed.send(Ok(lowest.entry));
        }
        self.progress.send_modify(|progress| progress.confirmed = Some(up_to));
    }

    fn fail(&mut self, error: WriteError) {
        let error = self.error(error);
        for waiting in self.waiting.drain(..) {
            let _ = waiting.confirmed.send(Err(error.clone()));
        }
        self.progress.send_modify(|progress| progress.failed = Some(error));
        self.room.close();
    }

    fn ask(&mut self, question: Question) {
        let asked = self.questions.try_send(question);
        assert!(asked.is_ok(), "the writer asks one question at a time");
    }

    fn closed(&mut self, end: Result<Option<EntryId>, Error>) {
        self.progress.send_modify(|progress| progress.closed = Some(end));
    }

    fn error(&self, error: WriteError) -> Error {
        Error::of_writer(self.ledger, error)
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

/// Feeds one place with entries until its stream ends.
async fn feed(
    driver: Weak<Mutex<Driver>>,
    bookies: Bookies,
    place: usize,
    adds: Adds,
    queue: mpsc::Receiver<Queued>,
) {
    let tenure = adds.tenure;
    let on_added = |added: Added| {
        tell(&driver, |writer| writer.on_added(place, added.tenure, added.first, added.last));
    };
    if let Err(refusal) = adds::run(&bookies, adds, queue, on_added).await {
        tracing::debug!(place, %refusal, "a stream of adds has ended");
        tell(&driver, |writer| writer.on_refused(place, tenure, refusal));
    }
}

fn adds_to(metadata: &LedgerMetadata, place: usize) -> Adds {
    let fragment = metadata.last_fragment();
    let brief = FragmentBrief::new(metadata.replication, fragment.first, &fragment.ensemble);
    Adds {
        bookie: fragment.ensemble[place],
        open: OpenAdds {
            ledger: metadata.ledger.get(),
            writer: Some(metadata.writer.0.as_bytes().to_vec()),
            fragment: Some(brief),
        },
        tenure: Tenure::default(),
        fragment: u32::try_from(metadata.fragments.len() - 1).unwrap_or(u32::MAX),
    }
}

/// Puts the writer's questions to the metastore.
async fn answer(
    driver: Weak<Mutex<Driver>>,
    catalog: Catalog,
    mut known: Versioned,
    mut questions: mpsc::Receiver<Question>,
) {
    while let Some(question) = questions.recv().await {
        match question {
            Question::Read => match catalog.ledger(known.1.ledger).await {
                Ok(found) => {
                    known = found;
                    let (version, metadata) = known.clone();
                    tell(&driver, |writer| writer.on_metadata(version, metadata));
                }
                Err(Error::LedgerNotFound(_)) => tell(&driver, Writer::on_deleted),
                Err(error) => {
                    tracing::warn!(ledger = %known.1.ledger, %error, "cannot read the metadata");
                    tell(&driver, Writer::on_metadata_unavailable);
                }
            },
            Question::Cas(version, metadata) => {
                match cas(&catalog, &mut known, version, *metadata).await {
                    Ok(outcome) => tell(&driver, |writer| writer.on_cas(outcome)),
                    Err(error) => end_close(&driver, error),
                }
            }
        }
    }
}

/// Ends a close that would fail again however often it were tried.
fn end_close(driver: &Weak<Mutex<Driver>>, error: Error) {
    if let Some(driver) = driver.upgrade() {
        with(&driver, |driver| driver.closed(Err(error)));
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
    use inkfast_protocol::{BookieId, Fragment, Replication, State, WriterId, metadata};
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn a_machine_replaces_only_the_version_that_it_knows() {
        let catalog = Catalog::new(Arc::new(MemoryMetastore::new()));
        let ledger = catalog.next_ledger_id().await.unwrap();
        let ensemble = vec![BookieId(Uuid::from_u128(1))];
        let open = LedgerMetadata {
            ledger,
            namespace: "default".to_owned(),
            owner: "client".to_owned(),
            writer: WriterId(Uuid::from_u128(2)),
            replication: Replication::new(1, 1, 1).unwrap(),
            state: State::Open,
            fragments: vec![Fragment { first: EntryId::FIRST, length_before: 0, ensemble }],
            created_at_ms: 0,
            request: None,
            custom: std::collections::BTreeMap::new(),
            modifiable_from: metadata::FORMAT_VERSION,
        };
        let created = catalog.create(&open).await.unwrap().unwrap();
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
