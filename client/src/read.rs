//! Reading a ledger.

use std::collections::BTreeMap;
use std::mem;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::{FuturesUnordered, Stream, StreamExt};
use inkfast_protocol::reader::{Action, Reader};
use inkfast_protocol::{
    BookieId, Entry, EntryId, LedgerId, LedgerMetadata, Places, Refusal, State,
};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::Error;
use crate::bookies::Bookies;
use crate::catalog::{Catalog, Versioned};
use crate::reads::{self, Answer, Reads};
use crate::tail::{self, Deliver};

/// How often one may ask a bookie while questions wait for it: as many as the protocol's reader has
/// entries under way, and more.
const QUESTIONS_MAX: usize = 8192;
/// How many lots of answers may wait for the reader, each what a stream has taken at once. Then the
/// streams wait, and with them the bookies.
const ANSWERS_MAX: usize = 16;
/// The bytes that may come for a user who does not take what came before; a lot more may.
const UNTAKEN_BYTES_MAX: usize = 8 << 20;

/// Reads a ledger. It never fences it, and any number of clients may read at once.
#[derive(Clone)]
pub struct LedgerReader {
    bookies: Bookies,
    catalog: Catalog,
    known: Arc<Mutex<Known>>,
}

struct Known {
    /// It only becomes newer.
    metadata: Versioned,
    /// The highest entry that anybody has told to be confirmed.
    confirmed: Option<EntryId>,
}

impl Known {
    /// Returns the highest entry that may be read, and whether the ledger ends with it.
    fn end(&self) -> (Option<EntryId>, bool) {
        match self.metadata.1.state {
            State::Closed { last, .. } => (last, true),
            State::Open | State::InRecovery => (self.confirmed, false),
        }
    }
}

impl LedgerReader {
    pub(crate) fn new(bookies: Bookies, catalog: Catalog, metadata: Versioned) -> Self {
        let known = Arc::new(Mutex::new(Known { metadata, confirmed: None }));
        Self { bookies, catalog, known }
    }

    /// Returns the ledger's id.
    pub fn id(&self) -> LedgerId {
        self.known(|known| known.metadata.1.ledger)
    }

    /// Returns the ledger's metadata as it was last read.
    pub fn metadata(&self) -> LedgerMetadata {
        self.versioned().1
    }

    /// Returns the highest entry that may be read: the end of a closed ledger; otherwise the
    /// highest last add confirmed that the bookies know, which is at least that of the last entry
    /// but one that was confirmed before the call. None when no entry is known to be confirmed.
    pub async fn last_add_confirmed(&self) -> Result<Option<EntryId>, Error> {
        Ok(self.find_end().await?.0)
    }

    /// Reads a run of entries, both ends included, in order.
    ///
    /// The stream ends after the last entry, or after an error. Before the first entry it makes
    /// sure that the whole run may be read, and otherwise its only item is
    /// [`Error::BeyondEnd`] or [`Error::NotConfirmed`]. Each entry is verified; where one bookie's
    /// copy is bad or missing another's is read. An entry is [`Error::Unreadable`] only where the
    /// newest metadata says it should be, so it is the metastore's error if that is away.
    pub fn read(
        &self,
        entries: RangeInclusive<EntryId>,
    ) -> impl Stream<Item = Result<Entry, Error>> + Send + use<> {
        let reader = self.clone();
        tail::spawn(move |deliver| async move { reader.drive(entries, &deliver).await })
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

    /// Returns the newest metadata that is known.
    pub(crate) fn versioned(&self) -> Versioned {
        self.known(|known| known.metadata.clone())
    }

    /// Notes metadata that was read.
    pub(crate) fn note(&self, metadata: Versioned) {
        self.known(|known| {
            if metadata.0 > known.metadata.0 {
                known.metadata = metadata;
            }
        });
    }

    /// Returns the highest entry that is known to be confirmed.
    pub(crate) fn confirmed(&self) -> Option<EntryId> {
        self.known(|known| known.end().0)
    }

    /// Notes that an entry, and with it every lower one, is confirmed.
    pub(crate) fn note_confirmed(&self, confirmed: Option<EntryId>) {
        self.known(|known| known.confirmed = known.confirmed.max(confirmed));
    }

    /// Finds out what is the highest entry that may be read, and whether the ledger ends with it.
    async fn find_end(&self) -> Result<(Option<EntryId>, bool), Error> {
        let ledger = self.id();
        if !self.known(|known| known.end().1) {
            match self.catalog.ledger(ledger).await {
                Ok(metadata) => self.note(metadata),
                // What was known is enough to ask the bookies.
                Err(error) if error.is_metastore_away() => {
                    tracing::warn!(%ledger, %error, "reading on without it");
                }
                Err(error) => return Err(error),
            }
        }
        if !self.known(|known| known.end().1) {
            self.quorum_read(&self.metadata()).await?;
        }
        Ok(self.known(|known| known.end()))
    }

    /// Reads until all is delivered, or nobody wants it any more.
    async fn drive(
        &self,
        entries: RangeInclusive<EntryId>,
        deliver: &Deliver,
    ) -> Result<(), Error> {
        self.check_readable(*entries.end()).await?;
        let (mut next, last) = entries.into_inner();
        loop {
            let metadata = self.metadata();
            let read = self.drive_reader(metadata.clone(), next..=last, deliver).await;
            let Err(Error::Unreadable { lost, .. }) = &read else { return read };
            // Nothing is lost before the newest metadata says where it should be.
            tracing::warn!(ledger = %metadata.ledger, %lost, "reading where it should be");
            let (version, now) = self.catalog.ledger(metadata.ledger).await?;
            let is_where_it_was =
                now.fragment_of(lost.entry).ensemble == metadata.fragment_of(lost.entry).ensemble;
            self.note((version, now));
            if is_where_it_was {
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
        deliver: &Deliver,
    ) -> Result<(), Error> {
        let ledger = metadata.ledger;
        let mut reader = Reader::new(metadata, entries);
        let (mut answer, mut answers) = mpsc::channel(ANSWERS_MAX);
        let mut streams = BTreeMap::new();
        let (mut happened, mut batch) = (Vec::new(), Vec::new());
        let mut asked = BTreeMap::<_, Vec<_>>::new();
        loop {
            let mut ended = None;
            while let Some(action) = reader.next_action() {
                match action {
                    Action::Ask { bookie, entry } => asked.entry(bookie).or_default().push(entry),
                    Action::Deliver(entry) => batch.push(Ok(entry)),
                    Action::Done => ended = Some(Ok(())),
                    Action::Fail(lost) => ended = Some(Err(Error::Unreadable { ledger, lost })),
                }
            }
            while let Some((bookie, entries)) = asked.pop_first() {
                let reads = Reads { bookie, ledger, fence: false };
                self.ask(&mut streams, &answer, reads, entries);
            }
            // Whoever does not take what was read must not hold up the connection, which others
            // share: what was asked for is let come. If that is too much, it is asked again.
            let (mut untaken_bytes, mut hung_up) = (0, false);
            while !batch.is_empty() {
                tokio::select! {
                    room = deliver.reserve() => match room {
                        Ok(room) => room.send(mem::take(&mut batch)),
                        Err(_) => return Ok(()),
                    },
                    Some(came) = answers.recv() => {
                        let copies = came.iter().flat_map(|answer| &answer.copy);
                        untaken_bytes += copies.map(|copy| copy.bytes().len()).sum::<usize>();
                        happened.push(came);
                        if untaken_bytes > UNTAKEN_BYTES_MAX {
                            (answer, answers) = mpsc::channel(ANSWERS_MAX);
                            streams.clear();
                            (untaken_bytes, hung_up) = (0, true);
                        }
                    }
                }
            }
            if let Some(ended) = ended {
                return ended;
            }
            if happened.is_empty() {
                // Each question gets an answer by its deadline, so this wait ends.
                answers.recv_many(&mut happened, ANSWERS_MAX).await;
            }
            happened.drain(..).flatten().for_each(|answer| tell(&mut reader, answer));
            if hung_up {
                reader.on_hung_up();
            }
        }
    }

    /// Puts questions into a bookie's stream of reads, which is opened if there is none.
    fn ask(
        &self,
        streams: &mut BTreeMap<BookieId, mpsc::Sender<Vec<EntryId>>>,
        answers: &mpsc::Sender<Vec<Answer>>,
        reads: Reads,
        entries: Vec<EntryId>,
    ) {
        let mut entries = entries;
        if let Some(queue) = streams.get(&reads.bookie) {
            match queue.try_send(entries) {
                Ok(()) => return,
                Err(TrySendError::Full(unsent) | TrySendError::Closed(unsent)) => entries = unsent,
            }
        }
        let (queue, queued) = mpsc::channel(QUESTIONS_MAX);
        // A fresh queue has room.
        let _ = queue.try_send(entries);
        streams.insert(reads.bookie, queue);
        tokio::spawn(reads::run(self.bookies.clone(), reads, queued, answers.clone()));
    }

    /// Makes sure that an entry is confirmed, asking the bookies only if that is not known.
    async fn check_readable(&self, entry: EntryId) -> Result<(), Error> {
        if self.confirmed() >= Some(entry) {
            return Ok(());
        }
        let ledger = self.id();
        match self.find_end().await? {
            (last, _) if last >= Some(entry) => Ok(()),
            (last, true) => Err(Error::BeyondEnd { ledger, entry, last }),
            (last, false) => Err(Error::NotConfirmed { ledger, entry, last }),
        }
    }

    /// Asks the last ensemble until every ack quorum has a bookie that has answered. Notes what
    /// is confirmed by what each says, also if they are too few.
    pub(crate) async fn quorum_read(&self, metadata: &LedgerMetadata) -> Result<(), Error> {
        let fragment = metadata.last_fragment();
        let asked = fragment.ensemble.iter().enumerate().map(|(place, &bookie)| async move {
            (place, bookie, self.bookies.last_add_confirmed(bookie, metadata.ledger, false).await)
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut answered = Places::default();
        let mut refused: Vec<(BookieId, Refusal)> = Vec::new();
        // Every entry before the last fragment was confirmed when that was made.
        self.note_confirmed(fragment.first.previous());
        while let Some((place, bookie, answer)) = asked.next().await {
            match answer {
                Ok(knows) => {
                    answered.insert(place);
                    self.note_confirmed(knows);
                    if metadata.replication.is_fenced_by(answered) {
                        return Ok(());
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
