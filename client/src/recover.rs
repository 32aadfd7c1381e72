//! Recovering a ledger: drives the protocol's recovery over the network.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use inkfast_protocol::messages::OpenAdds;
use inkfast_protocol::recovery::{Action, Recovery, Round};
use inkfast_protocol::{BookieId, Entry, EntryId, LedgerId, LedgerMetadata, Refusal, Tenure};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::Error;
use crate::adds::{Adder, Said};
use crate::bookies::Bookies;
use crate::catalog::Catalog;
use crate::driver::cas;
use crate::outbox::{Full, Outbox};
use crate::placement::{self, Lacking};
use crate::reads::{self, Answer, Reads};

/// How many questions to one bookie, or answers of all, may wait. The protocol reads or writes
/// back at most 32 entries at once, each at 64 bookies or fewer.
const QUEUE_MAX: usize = 8192;

/// Closes a ledger, or finds that it is closed, and returns its metadata.
pub(crate) async fn recover(
    bookies: &Bookies,
    catalog: &Catalog,
    ledger: LedgerId,
) -> Result<LedgerMetadata, Error> {
    let deadline = bookies.deadlines().recovery;
    let recovered = timeout(deadline, drive(bookies, catalog, ledger)).await;
    recovered.unwrap_or_else(|_| {
        let what = format!("recovering ledger {ledger} ({deadline:?}); try again");
        Err(Error::TimedOut { what })
    })
}

async fn drive(
    bookies: &Bookies,
    catalog: &Catalog,
    ledger: LedgerId,
) -> Result<LedgerMetadata, Error> {
    let mut known = catalog.ledger(ledger).await?;
    let mut recovery = Recovery::new(known.0, known.1.clone());
    let (events, mut happened) = mpsc::channel(QUEUE_MAX);
    let mut streams = Streams::new(bookies.clone(), ledger, events.clone());
    loop {
        while let Some(action) = recovery.next_action() {
            tracing::trace!(%ledger, ?action);
            match action {
                Action::Fence { round, place, bookie } => streams.fence(round, place, bookie),
                Action::Read { round, place, bookie, entry } => {
                    streams.read(round, place, bookie, entry);
                }
                Action::WriteBack { round, place, tenure, bookie, entry } => {
                    let written = streams.write((round, place, tenure), bookie, &entry);
                    if let Err(refusal) = written {
                        recovery.on_write_refused(round, place, tenure, refusal);
                    }
                }
                Action::Choose { round } => {
                    let (bookies, events) = (bookies.clone(), events.clone());
                    choose(bookies, catalog.clone(), &recovery, round, events);
                }
                Action::ReadMetadata => {
                    known =
                        catalog.ledger(ledger).await.map_err(|error| match recovery.failing() {
                            Some(why) => Error::NotRecovered { ledger, why: why.clone() },
                            None => error,
                        })?;
                    recovery.on_metadata(known.0, known.1.clone());
                }
                Action::Cas { version, metadata } => {
                    recovery.on_cas(cas(catalog, &mut known, version, metadata).await?);
                }
                Action::Done(_, metadata) => return Ok(metadata),
                Action::Fail(why) => return Err(Error::NotRecovered { ledger, why }),
            }
        }
        // We hold a sender ourselves, so there is always another event; the caller's deadline
        // bounds the wait.
        if let Some(event) = happened.recv().await {
            apply(&mut recovery, event);
        }
    }
}

/// What bookies have said.
enum Event {
    Fenced(Round, usize, Result<Option<EntryId>, Refusal>),
    Read(Round, usize, Answer),
    Written(Place, RangeInclusive<EntryId>),
    NotWritten(Place, Refusal),
    Chosen(Round, BTreeMap<usize, BookieId>),
}

/// Where entries are written back to: a place as long as it has the same bookie.
type Place = (Round, usize, Tenure);

type Events = mpsc::Sender<Event>;

fn apply(recovery: &mut Recovery, event: Event) {
    match event {
        Event::Fenced(round, place, Ok(confirmed)) => recovery.on_fenced(round, place, confirmed),
        Event::Fenced(round, place, Err(said)) => recovery.on_fence_refused(round, place, said),
        Event::Read(round, place, Answer { entry, copy, .. }) => match copy {
            Ok(copy) => recovery.on_copy(round, copy),
            Err(refusal) => recovery.on_read_refused(round, place, entry, refusal),
        },
        Event::Written((round, place, tenure), entries) => {
            recovery.on_written(round, place, tenure, entries);
        }
        Event::NotWritten((round, place, tenure), said) => {
            recovery.on_write_refused(round, place, tenure, said);
        }
        Event::Chosen(round, chosen) => recovery.on_chosen(round, &chosen),
    }
}

/// Chooses bookies for the places that lack one, while the recovery goes on.
fn choose(bookies: Bookies, catalog: Catalog, recovery: &Recovery, round: Round, events: Events) {
    let (ensemble, places) = (recovery.ensemble().to_vec(), recovery.lacking());
    let (replication, refused) = (recovery.replication(), recovery.refused());
    tokio::spawn(async move {
        let registered = catalog.registrations().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "recovering without replacements");
            Vec::new()
        });
        let registry = bookies.registry();
        let mut candidates = registry.judge(&registered);
        candidates.retain(|candidate| !refused.contains(&candidate.bookie));
        let racks: Vec<_> = ensemble.iter().map(|bookie| registry.rack(*bookie)).collect();
        let lacking = Lacking { ensemble: &ensemble, racks: &racks, places };
        let chosen = placement::replacements(&candidates, replication, &lacking, false);
        let _ = events.send(Event::Chosen(round, chosen)).await;
    });
}

/// The streams to the bookies. They end when this is dropped.
struct Streams {
    bookies: Bookies,
    ledger: LedgerId,
    events: Events,
    reads: BTreeMap<(Round, usize), mpsc::Sender<Vec<EntryId>>>,
    writes: BTreeMap<Place, Outbox>,
}

impl Streams {
    fn new(bookies: Bookies, ledger: LedgerId, events: Events) -> Self {
        Self { bookies, ledger, events, reads: BTreeMap::new(), writes: BTreeMap::new() }
    }

    /// Fences a place, as each round begins with: streams of earlier rounds are not needed then.
    fn fence(&mut self, round: Round, place: usize, bookie: BookieId) {
        self.reads.clear();
        self.writes.clear();
        let (bookies, ledger, events) = (self.bookies.clone(), self.ledger, self.events.clone());
        tokio::spawn(async move {
            let fenced = bookies.last_add_confirmed(bookie, ledger, true).await;
            let _ = events.send(Event::Fenced(round, place, fenced)).await;
        });
    }

    fn read(&mut self, round: Round, place: usize, bookie: BookieId, entry: EntryId) {
        if let Some(queue) = self.reads.get(&(round, place))
            && queue.try_send(vec![entry]).is_ok()
        {
            return;
        }
        let (queue, queued) = mpsc::channel(QUEUE_MAX);
        // A fresh queue has room.
        let _ = queue.try_send(vec![entry]);
        self.reads.insert((round, place), queue);
        let reads = Reads { bookie, ledger: self.ledger, fence: true };
        let (answer, mut answers) = mpsc::channel(1);
        tokio::spawn(reads::run(self.bookies.clone(), reads, queued, answer));
        let events = self.events.clone();
        tokio::spawn(async move {
            while let Some(answers) = answers.recv().await {
                for answer in answers {
                    if events.send(Event::Read(round, place, answer)).await.is_err() {
                        return;
                    }
                }
            }
        });
    }

    fn write(&mut self, place: Place, bookie: BookieId, entry: &Entry) -> Result<(), Refusal> {
        if !self.writes.contains_key(&place) {
            let outbox = self.open(place, bookie);
            self.writes.insert(place, outbox);
        }
        // A stream that has failed has said so.
        self.writes[&place]
            .push(entry, [0].into_iter().collect(), None)
            .map_err(|Full| Refusal::Unknown("is too many write-backs behind".to_owned()))
    }

    /// Begins to write back to a bookie.
    fn open(&self, place: Place, bookie: BookieId) -> Outbox {
        let outbox = Outbox::new(1);
        let open = OpenAdds { ledger: self.ledger.get(), ..OpenAdds::default() };
        let (bookies, events) = (self.bookies.clone(), self.events.clone());
        let hear = Arc::new(move |said| {
            // There is room for as many as can be under way.
            let _ = events.try_send(match said {
                Said::Added(first, last) => Event::Written(place, first..=last),
                Said::Ended(refusal) => {
                    bookies.refused(bookie, &refusal);
                    Event::NotWritten(place, refusal)
                }
            });
        });
        self.bookies.add(bookie, Adder { open, hear }, |bell| outbox.outlet(0, bell));
        outbox
    }
}
