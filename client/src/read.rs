//! Reading a ledger.

use std::collections::BTreeMap;
use std::mem;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::{self, FuturesUnordered, Stream, StreamExt};
use inkfast_protocol::reader::{Action, Reader};
use inkfast_protocol::{
    BookieId, Entry, EntryId, LedgerId, LedgerMetadata, MetadataVersion, Places, Refusal, State,
};
use tokio::sync::mpsc;

use crate::Error;
use crate::bookies::Bookies;
use crate::catalog::{Catalog, Versioned};
use crate::reads::{self, Answer, Reads};
use crate::tail;

/// How many questions may wait for one bookie: more than the protocol's reader asks ahead.
const QUESTIONS_MAX: usize = 4096;
/// How many answers may wait for the reader. Then the streams wait, and with them the bookies.
const ANSWERS_MAX: usize = 64;

/// Reads a ledger. It never fences it, and any number of clients may read at once.
#[derive(Clone)]
pub struct LedgerReader {
    bookies: Bookies,
    catalog: Catalog,
    known: Arc<Mutex<Known>>,
}

struct Known {
    metadata: LedgerMetadata,
    /// The highest entry that is known to be confirmed.
    confirmed: Option<EntryId>,
}

impl LedgerReader {
    pub(crate) fn new(bookies: Bookies, catalog: Catalog, metadata: LedgerMetadata) -> Self {
        let known = Arc::new(Mutex::new(Known { metadata, confirmed: None }));
        Self { bookies, catalog, known }
    }

    /// Returns the ledger's id.
    pub fn id(&self) -> LedgerId {
        self.known(|known| known.metadata.ledger)
    }

    /// Returns the ledger's metadata as it was last read.
    pub fn metadata(&self) -> LedgerMetadata {
        self.known(|known| known.metadata.clone())
    }

    /// Returns the highest entry that may be read: the end of a closed ledger; otherwise the
    /// highest last add confirmed that the bookies know, which is at least that of the last entry
    /// but one that was confirmed before the call. None when no entry is known to be confirmed.
    pub async fn last_add_confirmed(&self) -> Result<Option<EntryId>, Error> {
        let mut metadata = self.metadata();
        if !matches!(metadata.state, State::Closed { .. }) {
            metadata = self.newest().await?.1;
        }
        let confirmed = match metadata.state {
            State::Closed { last, .. } => last,
            State::Open | State::InRecovery => self.quorum_read(&metadata).await?,
        };
        Ok(self.known(|known| {
            known.confirmed = known.confirmed.max(confirmed);
            known.confirmed
        }))
    }

    /// Reads a run of entries, both ends included, in order.
    ///
    /// The stream ends after the last entry, or after an error. Before the first entry it makes
    /// sure that the whole run may be read, and otherwise its only item is
    /// [`Error::BeyondEnd`] or [`Error::NotConfirmed`]. Each entry is verified; where one bookie's
    /// copy is bad or missing another's is read.
    pub fn read(
        &self,
        entries: RangeInclusive<EntryId>,
    ) -> impl Stream<Item = Result<Entry, Error>> + Send + use<> {
        let (deliver, delivered) = mpsc::channel(1);
        let reader = self.clone();
        tokio::spawn(async move {
            if let Err(error) = reader.drive(entries, &deliver).await {
                // Whoever dropped the stream does not want to know.
                let _ = deliver.send(vec![Err(error)]).await;
            }
        });
        let batches = stream::unfold(delivered, |mut delivered| async move {
            delivered.recv().await.map(|batch| (batch, delivered))
        });
        batches.flat_map(stream::iter)
    }

    /// Follows the ledger from an entry on, which need not be there yet, and gives each entry when
    /// it is confirmed, in order, until the ledger is closed.
    ///
    /// The bookies push; of what they push at most 4 MiB wait for the user, for each lane (there
    /// are as many as the ensemble has places) at least 64 KiB, and an entry more. Another bookie
    /// goes on for one that fails, is late or lacks an entry. The stream ends after the last entry
    /// of the ledger, or after an error: [`Error::LedgerDeleted`] when the ledger was deleted,
    /// [`Error::Unreadable`] when an entry that is confirmed cannot be had. While nothing is
    /// confirmed it waits, whatever becomes of the bookies or the metastore.
    pub fn tail(&self, from: EntryId) -> impl Stream<Item = Result<Entry, Error>> + Send + use<> {
        tail::start(self.clone(), from)
    }

    pub(crate) const fn bookies(&self) -> &Bookies {
        &self.bookies
    }

    pub(crate) const fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Reads the metadata; what is known of it, as of the lowest version, if the metastore is away.
    pub(crate) async fn newest(&self) -> Result<Versioned, Error> {
        match self.catalog.ledger(self.id()).await {
            Ok((version, metadata)) => {
                self.note(&metadata);
                Ok((version, metadata))
            }
            // What was known is enough to ask the bookies.
            Err(error) if error.is_metastore_away() => {
                tracing::warn!(ledger = %self.id(), %error, "reading on without it");
                Ok((MetadataVersion(0), self.metadata()))
            }
            Err(error) => Err(error),
        }
    }

    /// Notes metadata that was read.
    pub(crate) fn note(&self, metadata: &LedgerMetadata) {
        self.known(|known| known.metadata = metadata.clone());
    }

    /// Reads until all is delivered, or nobody wants it any more.
    async fn drive(
        &self,
        entries: RangeInclusive<EntryId>,
        deliver: &mpsc::Sender<Vec<Result<Entry, Error>>>,
    ) -> Result<(), Error> {
        self.check_readable(*entries.end()).await?;
        let (mut next, last) = entries.into_inner();
        loop {
            let metadata = self.metadata();
            let read = self.drive_reader(metadata.clone(), next..=last, deliver).await;
            let Err(Error::Unreadable { lost, .. }) = &read else { return read };
            // Nothing is lost before the newest metadata says where it should be.
            let now = match self.catalog.ledger(metadata.ledger).await {
                Ok((_, now)) => now,
                Err(error) if error.is_metastore_away() => return read,
                Err(error) => return Err(error),
            };
            self.note(&now);
            if now.fragment_of(lost.entry).ensemble == metadata.fragment_of(lost.entry).ensemble {
                return read;
            }
            next = lost.entry;
        }
    }

    /// Drives the protocol's reader to its end.
    async fn drive_reader(
        &self,
        metadata: LedgerMetadata,
        entries: RangeInclusive<EntryId>,
        deliver: &mpsc::Sender<Vec<Result<Entry, Error>>>,
    ) -> Result<(), Error> {
        let ledger = metadata.ledger;
        let mut reader = Reader::new(metadata, entries);
        let (answer, mut answers) = mpsc::channel(ANSWERS_MAX);
        let mut streams = BTreeMap::new();
        let (mut happened, mut batch) = (Vec::new(), Vec::new());
        loop {
            let mut ended = None;
            while let Some(action) = reader.next_action() {
                match action {
                    Action::Ask { bookie, entry } => {
                        let reads = Reads { bookie, ledger, fence: false };
                        self.ask(&mut streams, &answer, reads, entry);
                    }
                    Action::Deliver(entry) => batch.push(Ok(entry)),
                    Action::Done => ended = Some(Ok(())),
                    Action::Fail(lost) => ended = Some(Err(Error::Unreadable { ledger, lost })),
                }
            }
            // Whoever does not take what was read must not hold up the connection, which others
            // share. What was asked for comes, and is bounded; no more is asked until it is taken.
            while !batch.is_empty() {
                tokio::select! {
                    room = deliver.reserve() => match room {
                        Ok(room) => room.send(mem::take(&mut batch)),
                        Err(_) => return Ok(()),
                    },
                    _ = answers.recv_many(&mut happened, ANSWERS_MAX) => {}
                }
            }
            if let Some(ended) = ended {
                return ended;
            }
            if happened.is_empty() {
                // Each question gets an answer by its deadline, so this wait ends.
                answers.recv_many(&mut happened, ANSWERS_MAX).await;
            }
            happened.drain(..).for_each(|answer| tell(&mut reader, answer));
        }
    }

    /// Puts a question into a bookie's stream of reads, which is opened if there is none.
    fn ask(
        &self,
        streams: &mut BTreeMap<BookieId, mpsc::Sender<EntryId>>,
        answers: &mpsc::Sender<Answer>,
        reads: Reads,
        entry: EntryId,
    ) {
        if let Some(queue) = streams.get(&reads.bookie)
            && queue.try_send(entry).is_ok()
        {
            return;
        }
        let (queue, queued) = mpsc::channel(QUESTIONS_MAX);
        // A fresh queue has room.
        let _ = queue.try_send(entry);
        streams.insert(reads.bookie, queue);
        tokio::spawn(reads::run(self.bookies.clone(), reads, queued, answers.clone()));
    }

    /// Makes sure that an entry is confirmed, asking the bookies only if that is not known.
    async fn check_readable(&self, entry: EntryId) -> Result<(), Error> {
        let end = |known: &mut Known| match known.metadata.state {
            State::Closed { last, .. } => last,
            State::Open | State::InRecovery => known.confirmed,
        };
        if self.known(end) >= Some(entry) {
            return Ok(());
        }
        let last = self.last_add_confirmed().await?;
        if last >= Some(entry) {
            return Ok(());
        }
        let ledger = self.id();
        match self.metadata().state {
            State::Closed { .. } => Err(Error::BeyondEnd { ledger, entry, last }),
            State::Open | State::InRecovery => Err(Error::NotConfirmed { ledger, entry, last }),
        }
    }

    /// Asks the last ensemble until every ack quorum has a bookie that has answered.
    pub(crate) async fn quorum_read(
        &self,
        metadata: &LedgerMetadata,
    ) -> Result<Option<EntryId>, Error> {
        let fragment = metadata.last_fragment();
        let asked = fragment.ensemble.iter().enumerate().map(|(place, &bookie)| async move {
            (place, bookie, self.bookies.last_add_confirmed(bookie, metadata.ledger, false).await)
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut answered = Places::default();
        let mut refused: Vec<(BookieId, Refusal)> = Vec::new();
        // Every entry before the last fragment was confirmed when that was made.
        let mut confirmed = fragment.first.previous();
        while let Some((place, bookie, answer)) = asked.next().await {
            match answer {
                Ok(knows) => {
                    answered.insert(place);
                    confirmed = confirmed.max(knows);
                    if metadata.replication.is_fenced_by(answered) {
                        return Ok(confirmed);
                    }
                }
                Err(refusal) => refused.push((bookie, refusal)),
            }
        }
        let said = refused.iter().map(|(bookie, said)| format!("bookie {bookie}: {said}"));
        let said = said.collect::<Vec<_>>().join("; ");
        Err(Error::NotEnoughBookies(format!("not enough bookies: {said}")))
    }

    fn known<T>(&self, look: impl FnOnce(&mut Known) -> T) -> T {
        look(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Tells the machine what came of an entry that it asked for.
fn tell(reader: &mut Reader, answer: Answer) {
    let Answer { bookie, entry, copy, silent } = answer;
    let refusal = match copy {
        Ok(copy) => return reader.on_copy(copy),
        Err(refusal) => refusal,
    };
    tracing::warn!(%bookie, %entry, %refusal, "a copy cannot be read");
    if silent {
        reader.on_silent(bookie, entry, &refusal.to_string());
    } else {
        reader.on_refused(bookie, entry, refusal);
    }
}
