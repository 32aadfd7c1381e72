//! Following a ledger while it is written: drives the protocol's tail over the network.

use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, FuturesUnordered, Stream, StreamExt};
use inkfast_protocol::tail::{Action, Tail, TailError};
use inkfast_protocol::{Entry, EntryId, LedgerId, MetadataVersion, messages};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::catalog::Versioned;
use crate::follow::Follow;
use crate::pushes::{self, Pushed, Pushes, Told};
use crate::{Error, LedgerReader};

/// The bytes that a tail holds for its user, over all lanes.
const CREDIT_BYTES: i64 = 4 << 20;
/// The least of them for one lane.
const LANE_CREDIT_BYTES_MIN: i64 = 64 << 10;
/// The bytes of entries that are handed to the user at once; at least one entry is.
const BATCH_BYTES: i64 = 256 << 10;
/// How many batches of what bookies have pushed may wait for the driver.
const TOLD_MAX: usize = 16;
/// The pause after all bookies of an entry have failed.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest that a bookie that is late gets before another is tried. It begins with the read
/// deadline, and doubles each time: under load, or over a slow link, another would be late too.
const LATENESS_MAX: Duration = Duration::from_secs(8);
/// How long an entry that is confirmed may be nowhere to be had, before all are asked once more.
const OVERDUE: Duration = Duration::from_secs(30);
/// After how long without a word the bookies are asked how far the ledger is confirmed: those
/// that push may have lost the writer, and others not.
const QUIET: Duration = Duration::from_secs(10);

/// Hands what is delivered to the user, a batch at a time.
pub(crate) type Deliver = mpsc::Sender<Vec<Result<Entry, Error>>>;

/// Follows a ledger in a task of its own, which ends when the stream is dropped.
pub(crate) fn start(
    reader: LedgerReader,
    from: EntryId,
) -> impl Stream<Item = Result<Entry, Error>> + Send + use<> {
    spawn(move |deliver| async move { Driver::new(reader, from).run(&deliver).await })
}

/// Runs what delivers batches in a task of its own, until it is done or the stream is dropped.
/// Its error is the last item of the stream.
pub(crate) fn spawn<F: Future<Output = Result<(), Error>> + Send>(
    run: impl FnOnce(Deliver) -> F + Send + 'static,
) -> BoxStream<'static, Result<Entry, Error>> {
    let (deliver, delivered) = mpsc::channel(1);
    tokio::spawn(async move {
        let ran = tokio::select! {
            ran = run(deliver.clone()) => ran,
            () = deliver.closed() => return,
        };
        if let Err(error) = ran {
            // Whoever dropped the stream does not want to know.
            let _ = deliver.send(vec![Err(error)]).await;
        }
    });
    let batches = stream::unfold(delivered, |mut delivered| async move {
        delivered.recv().await.map(|batch| (batch, delivered))
    });
    batches.flat_map(stream::iter).boxed()
}

struct Driver {
    reader: LedgerReader,
    ledger: LedgerId,
    tail: Tail,
    version: MetadataVersion,
    news: Follow,
    lanes: Vec<Lane>,
    tell: mpsc::Sender<Told>,
    told: mpsc::Receiver<Told>,
    /// What is under way to the metastore and the bookies.
    asked: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// The tail has asked for the metadata.
    reading: bool,
    /// Delivered and not taken by the user.
    ready: VecDeque<Entry>,
    retry_at: Option<Instant>,
    waiting: Option<Waiting>,
    quiet_since: Instant,
}

/// A lane's stream, and the account that is kept of it.
struct Lane {
    /// The bytes that were granted to the stream in all. Without it the stream ends.
    granted: watch::Sender<u64>,
    /// What the bookie may still push; below 0 when it has overdrawn it.
    left: i64,
    /// What has come, on this stream or an earlier one, and is not taken by the user.
    untaken: i64,
    /// How long an entry may be waited for until another bookie is tried.
    lateness: Duration,
}

/// The entry that is waited for.
#[derive(Clone, Copy)]
struct Waiting {
    entry: EntryId,
    lane: usize,
    since: Instant,
    late_at: Instant,
    overdue_at: Instant,
}

enum Answer {
    Metadata(Result<Versioned, Error>),
    Confirmed(Result<(), Error>),
}

impl Driver {
    /// Begins with the metadata that is known; if there is newer, that will be told.
    fn new(reader: LedgerReader, from: EntryId) -> Self {
        let (version, metadata) = reader.versioned();
        let ledger = metadata.ledger;
        let (tell, told) = mpsc::channel(TOLD_MAX);
        let lateness = reader.bookies().deadlines().read;
        let lane = |_| Lane::new(lateness);
        Self {
            news: Follow::start(reader.catalog().clone(), ledger, version),
            lanes: (0..metadata.replication.ensemble()).map(lane).collect(),
            tail: Tail::new(metadata, from),
            reader,
            ledger,
            version,
            tell,
            told,
            asked: FuturesUnordered::new(),
            reading: false,
            ready: VecDeque::new(),
            retry_at: None,
            waiting: None,
            quiet_since: Instant::now(),
        }
    }

    /// Goes on until all is delivered and handed over, or nobody wants it any more.
    async fn run(mut self, deliver: &Deliver) -> Result<(), Error> {
        loop {
            if let Some(ended) = self.act() {
                let mut ready = mem::take(&mut self.ready);
                // What is still pushed must not wait in the connection, which others share, until
                // the user has taken what is ready.
                drop(self);
                while !ready.is_empty() && deliver.send(batch_of(&mut ready)).await.is_ok() {}
                return ended;
            }
            self.note_waiting();
            let alarm = self.alarm();
            tokio::select! {
                Some(told) = self.told.recv() => self.on_told(told),
                permit = deliver.reserve(), if !self.ready.is_empty() => match permit {
                    Ok(permit) => permit.send(self.take_batch()),
                    Err(_) => return Ok(()),
                },
                // What was read before the tail asked must not be told after it.
                news = self.news.next(), if !self.reading => self.on_news(news)?,
                Some(answer) = self.asked.next() => self.on_answer(answer)?,
                () = sleep_until(alarm) => self.on_alarm(),
            }
        }
    }

    /// Does what the tail wants; returns how it ended, if it did.
    fn act(&mut self) -> Option<Result<(), Error>> {
        let ledger = self.ledger;
        while let Some(action) = self.tail.next_action() {
            tracing::trace!(%ledger, ?action);
            match action {
                Action::Follow { stream, bookie, lane, from, to } => {
                    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
                    let tail = messages::Tail {
                        ledger: ledger.get(),
                        from: from.get(),
                        to: to.map(EntryId::get),
                        lanes: number(self.lanes.len()),
                        lane: number(lane),
                        credit: 0,
                    };
                    self.follow(lane, Pushes { stream, bookie, tail });
                }
                Action::Deliver(entry) => {
                    self.reader.note_confirmed(Some(entry.id()));
                    self.ready.push_back(entry);
                }
                Action::ReadMetadata => {
                    self.reading = true;
                    let catalog = self.reader.catalog().clone();
                    let read = async move { Answer::Metadata(catalog.ledger(ledger).await) };
                    self.asked.push(Box::pin(read));
                }
                Action::Retry => self.retry_at = Some(Instant::now() + PAUSE),
                Action::Done => return Some(Ok(())),
                Action::Fail(TailError::Lost(lost)) => {
                    return Some(Err(Error::Unreadable { ledger, lost }));
                }
                Action::Fail(TailError::Deleted) => {
                    return Some(Err(Error::LedgerDeleted(ledger)));
                }
            }
        }
        None
    }

    /// Replaces the stream of a lane.
    fn follow(&mut self, lane: usize, pushes: Pushes) {
        let credit = self.lane_credit();
        if let Some(waiting) = &mut self.waiting
            && waiting.entry.get() == pushes.tail.from
        {
            waiting.late_at = Instant::now() + self.lanes[lane].lateness;
        }
        let (bookies, granted) = (self.reader.bookies().clone(), self.lanes[lane].begin(credit));
        tokio::spawn(pushes::run(bookies, pushes, granted, self.tell.clone()));
    }

    fn on_told(&mut self, Told { stream, pushed }: Told) {
        for pushed in pushed {
            let Some((lane, bookie)) = self.tail.source_of(stream) else { return };
            if matches!(pushed, Pushed::Entry(_) | Pushed::Confirmed(_)) {
                self.quiet_since = Instant::now();
            }
            match pushed {
                Pushed::Entry(entry) => {
                    self.lanes[lane].note_pushed(bytes_of(&entry));
                    self.tail.on_entry(stream, entry);
                }
                Pushed::Confirmed(confirmed) => self.tail.on_confirmed(confirmed),
                Pushed::Missing(entry, refusal) => {
                    let ledger = self.ledger;
                    tracing::warn!(%ledger, %bookie, %entry, %refusal, "a copy cannot be read");
                    self.tail.on_missing(stream, entry, refusal);
                }
                Pushed::Ended(refusal) => {
                    tracing::debug!(ledger = %self.ledger, %bookie, %refusal, "a stream has ended");
                    self.tail.on_failed(stream, &refusal.to_string());
                }
            }
        }
    }

    fn on_news(&mut self, news: Result<Versioned, Error>) -> Result<(), Error> {
        match news {
            Ok((version, metadata)) if version > self.version => {
                self.version = version;
                self.reader.note((version, metadata.clone()));
                self.tail.on_metadata(metadata);
            }
            Ok(_) => {}
            Err(Error::LedgerNotFound(_) | Error::LedgerDeleted(_)) => self.tail.on_deleted(),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn on_answer(&mut self, answer: Answer) -> Result<(), Error> {
        match answer {
            Answer::Metadata(read) => {
                self.reading = false;
                match read {
                    Ok((version, metadata)) if version == self.version => {
                        self.tail.on_metadata(metadata);
                    }
                    Ok((version, _)) if version < self.version => {
                        self.tail.on_metadata_unavailable();
                    }
                    Err(error) if error.is_metastore_away() => {
                        tracing::debug!(ledger = %self.ledger, %error, "going on without it");
                        self.tail.on_metadata_unavailable();
                    }
                    read => return self.on_news(read),
                }
            }
            Answer::Confirmed(asked) => {
                if let Err(error) = asked {
                    tracing::debug!(ledger = %self.ledger, %error, "more may be confirmed");
                }
                // What one has said counts, also if too few have.
                if let Some(confirmed) = self.reader.confirmed() {
                    self.tail.on_confirmed(confirmed);
                }
            }
        }
        Ok(())
    }

    /// Returns when something is due that nobody will tell.
    fn alarm(&self) -> Instant {
        let waiting = self.waiting.map(|waiting| waiting.late_at.min(waiting.overdue_at));
        let due = self.retry_at.into_iter().chain(waiting);
        due.fold(self.quiet_since + QUIET, Instant::min)
    }

    fn on_alarm(&mut self) {
        let now = Instant::now();
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.tail.on_retry();
        }
        if let Some(waiting) = &mut self.waiting {
            let lane = &mut self.lanes[waiting.lane];
            if waiting.overdue_at <= now {
                // If this process stood still, what was pushed meanwhile is still to be heard.
                (waiting.overdue_at, waiting.late_at) = (now + OVERDUE, now + lane.lateness);
                self.tail.on_overdue();
            } else if waiting.late_at <= now {
                lane.note_late();
                waiting.late_at = now + lane.lateness;
                self.tail.on_late();
            }
        }
        if self.quiet_since + QUIET <= now {
            self.quiet_since = now;
            let reader = self.reader.clone();
            self.asked.push(Box::pin(async move {
                Answer::Confirmed(reader.quorum_read(&reader.metadata()).await)
            }));
        }
    }

    /// Notes since when the next entry is waited for. It is not while its lane may push nothing,
    /// because the user has not taken what was pushed before.
    fn note_waiting(&mut self) {
        let waits_for = self.tail.waits_for();
        let has_credit = |entry: &EntryId| self.lanes[self.tail.lane_with(*entry)].left > 0;
        let entry = waits_for.filter(has_credit);
        if self.waiting.map(|waiting| waiting.entry) == entry {
            return;
        }
        if let Some(came) = self.waiting.filter(|waiting| Some(waiting.entry) != waits_for) {
            let least = self.reader.bookies().deadlines().read;
            self.lanes[came.lane].note_came(came.since.elapsed(), least);
        }
        let now = Instant::now();
        self.waiting = entry.map(|entry| {
            let lane = self.tail.lane_with(entry);
            let late_at = now + self.lanes[lane].lateness;
            Waiting { entry, lane, since: now, late_at, overdue_at: now + OVERDUE }
        });
    }

    /// Takes what is handed to the user next, and lets as much more be pushed.
    fn take_batch(&mut self) -> Vec<Result<Entry, Error>> {
        let batch = batch_of(&mut self.ready);
        for entry in batch.iter().flatten() {
            self.lanes[self.tail.lane_with(entry.id())].untaken -= bytes_of(entry);
        }
        let credit = self.lane_credit();
        self.lanes.iter_mut().for_each(|lane| lane.grant(credit));
        batch
    }

    /// Returns how much a lane may push that is not taken.
    fn lane_credit(&self) -> i64 {
        let lanes = i64::try_from(self.lanes.len()).unwrap_or(i64::MAX);
        (CREDIT_BYTES / lanes).max(LANE_CREDIT_BYTES_MIN)
    }
}

impl Lane {
    fn new(lateness: Duration) -> Self {
        Self { granted: watch::Sender::new(0), left: 0, untaken: 0, lateness }
    }

    /// Begins another stream, and ends the one before.
    fn begin(&mut self, credit: i64) -> watch::Receiver<u64> {
        self.left = (credit - self.untaken).max(0);
        self.granted = watch::Sender::new(u64::try_from(self.left).unwrap_or(0));
        self.granted.subscribe()
    }

    /// Gives the next bookie more time.
    fn note_late(&mut self) {
        self.lateness = (self.lateness * 2).min(LATENESS_MAX);
    }

    /// Gives the next entry as much time as one that was waited for has taken, and as much again.
    fn note_came(&mut self, took: Duration, least: Duration) {
        self.lateness = (took * 2).min(LATENESS_MAX).max(least);
    }

    fn note_pushed(&mut self, bytes: i64) {
        self.left -= bytes;
        self.untaken += bytes;
    }

    /// Lets as much more be pushed as there is credit, once that is worth a message.
    fn grant(&mut self, credit: i64) {
        let free = credit - self.untaken - self.left;
        if free >= credit / 4 {
            self.left += free;
            let free = u64::try_from(free).unwrap_or(0);
            self.granted.send_modify(|granted| *granted += free);
        }
    }
}

/// Takes what is handed to the user at once.
fn batch_of(ready: &mut VecDeque<Entry>) -> Vec<Result<Entry, Error>> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while bytes < BATCH_BYTES
        && let Some(entry) = ready.pop_front()
    {
        bytes += bytes_of(&entry);
        batch.push(Ok(entry));
    }
    batch
}

fn bytes_of(entry: &Entry) -> i64 {
    i64::try_from(entry.bytes().len()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDIT: i64 = 1000;
    const LARGEST: i64 = 300;

    #[test]
    fn what_is_not_taken_is_bounded_and_whoever_takes_all_gets_more() {
        let mut lane = Lane::new(Duration::ZERO);
        let mut granted = lane.begin(CREDIT);
        let (mut pushed, mut random) = (0, fastrand::Rng::with_seed(7));
        for _ in 0..10_000 {
            if random.u8(..) == 0 {
                // Another bookie, whose account begins anew.
                (granted, pushed) = (lane.begin(CREDIT), 0);
            }
            let mut untaken_max = lane.untaken;
            while pushed < *granted.borrow_and_update() {
                let bytes = random.i64(1..=LARGEST);
                pushed += u64::try_from(bytes).unwrap();
                lane.note_pushed(bytes);
                untaken_max = lane.untaken;
            }
            assert!(untaken_max < CREDIT + LARGEST, "{untaken_max} wait for the user");
            let taken = random.i64(0..=lane.untaken);
            lane.untaken -= if random.bool() { taken } else { lane.untaken };
            lane.grant(CREDIT);
            assert!(lane.untaken > 0 || pushed < *granted.borrow(), "nothing more can come");
        }
    }

    #[test]
    fn a_slow_link_is_given_the_time_that_it_needs() {
        let (least, needed) = (Duration::from_secs(1), Duration::from_secs(6));
        let (mut lane, mut late) = (Lane::new(least), 0);
        for _ in 0..10 {
            let mut took = Duration::ZERO;
            while lane.lateness < needed {
                // All that has come of the entry is thrown away.
                took += lane.lateness;
                lane.note_late();
                late += 1;
                assert!(late <= 3, "it begins anew too often");
            }
            lane.note_came(took + needed, least);
        }
        lane.note_came(Duration::ZERO, least);
        assert_eq!(lane.lateness, least);
    }
}
