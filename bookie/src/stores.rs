//! The stores of a bookie, one for each of its directories, as one.
//!
//! All of a ledger is in one store, its *home*. It is decided at the first record and is from then
//! on where that is found: nothing else says so. Until the record is there, whoever may write it
//! holds the decision, so that all who come meanwhile are given the same one.
//!
//! A directory that cannot be used may have what is not found in the others, and so may a damaged
//! one: nothing is called absent then, and no ledger begins, since it may be fenced there. A store
//! that fails later still knows its own ledgers, and the others take what is new.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{join_all, select_all};
use futures::stream::{FuturesUnordered, StreamExt};
use inkfast_protocol::gate::Adder;
use inkfast_protocol::{LedgerId, Refusal};
use tokio::sync::{OnceCell, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::Error;
use crate::directories::Directory;
use crate::disk::Space;
use crate::executor::Executor;
use crate::log::Replayed;
use crate::memory::Memory;
use crate::space::{Gauge, Level, MinFree, measure, total};
use crate::store::Store;

#[cfg(test)]
mod tests;

/// How often it is looked how much room there is.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a store may take to say whether it has a ledger: less than a client waits for an add.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);
/// Directories whose free bytes differ by less than this part of the largest get ledgers by turns.
const NOTABLE: u64 = 64;

/// A handle to the stores. Clones are of the same ones.
#[derive(Clone)]
pub(crate) struct Stores(Arc<Shared>);

/// Stores that were opened.
pub(crate) struct Opened {
    pub(crate) stores: Stores,
    /// The tasks of the stores. They end when all handles are dropped and all is written.
    pub(crate) tasks: Vec<JoinHandle<()>>,
    /// The task that looks after the room. It ends when all handles are dropped.
    pub(crate) watching: JoinHandle<()>,
}

/// The store that a ledger is in. As long as it is held, the ledger is in no other.
pub(crate) struct Home {
    shared: Arc<Shared>,
    member: usize,
    _decided: Option<Arc<Decided>>,
}

struct Shared {
    members: Vec<Member>,
    /// Why a ledger that is in none of them may be somewhere else.
    broken: Option<String>,
    homes: Mutex<Homes>,
    read_only: watch::Receiver<bool>,
    space: watch::Receiver<Space>,
    /// Dropped with the last handle, which ends the task that watches.
    _watched: oneshot::Sender<Infallible>,
}

struct Member {
    store: Store,
    health: Arc<Health>,
    /// How many ledgers were begun here.
    begun: AtomicU64,
}

/// What is known of a store without asking it.
struct Health {
    gauge: Gauge,
    read_only: watch::Receiver<bool>,
    /// It may have lost ledgers.
    damaged: Arc<AtomicBool>,
    /// A ledger of which it could not say whether it has it.
    unsure_of: Mutex<Option<LedgerId>>,
}

/// The decisions that somebody holds.
#[derive(Default)]
struct Homes {
    held: BTreeMap<LedgerId, Weak<Decided>>,
    /// How many there may be until it is looked which are dropped.
    pruned_at: usize,
}

/// The number of the store, once that is decided.
#[derive(Default)]
struct Decided(OnceCell<usize>);

impl Stores {
    /// Opens the stores of these directories. Those that cannot be opened are as the `broken` ones.
    ///
    /// Fails if there is none left.
    pub(crate) async fn open(
        sound: Vec<(Directory, Uuid)>,
        mut broken: Vec<Error>,
        (min_free, memory_bytes): (Option<MinFree>, u64),
        executor: Executor,
    ) -> Result<Opened, Error> {
        let memory = Memory::share(memory_bytes, sound.len());
        let opening = sound.into_iter();
        let opening = opening.map(|it| open_one(it, (min_free, memory), executor));
        let (mut members, mut tasks) = (Vec::new(), Vec::new());
        for opened in join_all(opening).await {
            match opened {
                Ok((member, task)) => {
                    members.push(member);
                    tasks.push(task);
                }
                Err(error) => broken.push(error),
            }
        }
        if members.is_empty() {
            return Err(Error::no_directory(broken));
        }
        for error in &broken {
            tracing::error!(%error, "new ledgers are refused, and what is not found is unknown");
        }
        let broken = (!broken.is_empty()).then(|| {
            let words: Vec<_> = broken.iter().map(ToString::to_string).collect();
            format!("it may be in a directory that is not there: {}", words.join("; "))
        });
        let healths: Vec<_> = members.iter().map(|member| member.health.clone()).collect();
        let mut watcher = Watcher {
            healths,
            broken: broken.is_some(),
            executor,
            read_only: watch::Sender::new(false),
            space: watch::Sender::default(),
        };
        watcher.look().await;
        let (watched, ended) = oneshot::channel();
        let shared = Arc::new(Shared {
            members,
            broken,
            homes: Mutex::default(),
            read_only: watcher.read_only.subscribe(),
            space: watcher.space.subscribe(),
            _watched: watched,
        });
        let watching = tokio::spawn(watcher.run(Arc::downgrade(&shared), ended));
        Ok(Opened { stores: Self(shared), tasks, watching })
    }

    /// Returns the home of a ledger, to write there; decides on one if it has none.
    ///
    /// Refuses a ledger of which nothing is known if it may be in a directory that is broken.
    pub(crate) async fn home(&self, ledger: LedgerId) -> Result<Home, Refusal> {
        if self.is_one() {
            return Ok(self.at(0, None));
        }
        let decided = self.decided(ledger);
        let member = *decided.0.get_or_try_init(|| self.decide(ledger)).await?;
        Ok(self.at(member, Some(decided)))
    }

    /// Returns the home of a ledger, to read there. One of which nothing is known has none, and
    /// any sound store is given.
    ///
    /// Refuses a ledger of which nothing is known if it may be in a directory that is broken.
    pub(crate) async fn find(&self, ledger: LedgerId) -> Result<Home, Refusal> {
        if self.is_one() {
            return Ok(self.at(0, None));
        }
        if let Some(decided) = self.0.homes().find(ledger)
            && let Some(&member) = decided.0.get()
        {
            return Ok(self.at(member, Some(decided)));
        }
        let Some(member) = self.look_up(ledger).await? else {
            return Ok(self.at(self.best()?, None));
        };
        // The next who asks need not look.
        let decided = self.decided(ledger);
        let _ = decided.0.set(member);
        Ok(self.at(member, Some(decided)))
    }

    /// Returns the store of this [number](Home::number).
    pub(crate) fn store(&self, number: usize) -> &Store {
        &self.0.members[number].store
    }

    /// Returns all of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Store> {
        self.0.members.iter().map(|member| &member.store)
    }

    /// Tells, and tells again when it changes, whether no new ledger may be placed here.
    pub(crate) fn read_only(&self) -> watch::Receiver<bool> {
        self.0.read_only.clone()
    }

    /// Tells how much room there is on all file systems together.
    pub(crate) fn space(&self) -> watch::Receiver<Space> {
        self.0.space.clone()
    }

    /// Says whether there is nothing to decide or to look for.
    fn is_one(&self) -> bool {
        self.0.members.len() == 1 && self.0.broken.is_none()
    }

    fn at(&self, member: usize, decided: Option<Arc<Decided>>) -> Home {
        Home { shared: self.0.clone(), member, _decided: decided }
    }

    fn decided(&self, ledger: LedgerId) -> Arc<Decided> {
        self.0.homes().hold(ledger)
    }

    async fn decide(&self, ledger: LedgerId) -> Result<usize, Refusal> {
        if let Some(member) = self.look_up(ledger).await? {
            return Ok(member);
        }
        let member = self.best()?;
        self.0.members[member].begun.fetch_add(1, Ordering::Relaxed);
        Ok(member)
    }

    /// Finds the store that knows a ledger, whatever becomes of the others. If none does, one that
    /// cannot tell may be the one.
    async fn look_up(&self, ledger: LedgerId) -> Result<Option<usize>, Refusal> {
        let members = self.0.members.iter().enumerate();
        let asked =
            members.map(|(number, member)| member.knows(ledger).map(move |it| (number, it)));
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut unsure = None;
        while let Some((number, answer)) = asked.next().await {
            match answer {
                Ok(true) => return Ok(Some(number)),
                Ok(false) => {}
                Err(refusal) => unsure = Some(refusal),
            }
        }
        unsure.map_or(Ok(None), Err)
    }

    /// Asks again for what a store could not say.
    async fn ask_again(&self) {
        let members = self.0.members.iter();
        let unsure = members.filter_map(|it| Some(it.knows(it.health.unsure_of()?)));
        join_all(unsure).await;
    }

    /// Chooses where a ledger that no store knows is best put.
    fn best(&self) -> Result<usize, Refusal> {
        if let Some(why) = &self.0.broken {
            return Err(Refusal::Unknown(why.clone()));
        }
        let members = &self.0.members;
        // It may have lost the ledger, and has rules for that.
        if let Some(damaged) = members.iter().position(|member| member.health.is_damaged()) {
            return Ok(damaged);
        }
        let spaces: Vec<_> = members.iter().map(|member| member.health.gauge.space()).collect();
        let largest = spaces.iter().map(|space| space.capacity_bytes).max().unwrap_or_default();
        let order = |number: &usize| {
            let Member { health, begun, .. } = &members[*number];
            let free = spaces[*number].free_bytes / (largest / NOTABLE).max(1);
            let begun = begun.load(Ordering::Relaxed);
            (*health.read_only.borrow(), health.gauge.level(), Reverse(free), begun)
        };
        Ok((0..members.len()).min_by_key(order).unwrap_or_default())
    }
}

impl Home {
    /// Returns the store. Adds must be [let in](Self::let_in) before they go to it.
    pub(crate) fn store(&self) -> &Store {
        &self.member().store
    }

    /// Tells which of the stores it is.
    pub(crate) const fn number(&self) -> usize {
        self.member
    }

    /// Refuses adds for which there is no room on the disk.
    pub(crate) fn let_in(&self, by: &Adder) -> Result<(), Refusal> {
        self.member().health.gauge.let_in(by)
    }

    fn member(&self) -> &Member {
        &self.shared.members[self.member]
    }
}

impl Member {
    /// Asks the store for a ledger, and notes whether it could say.
    async fn knows(&self, ledger: LedgerId) -> Result<bool, Refusal> {
        let late = |_| Err(Refusal::Unknown("a disk does not answer".to_owned()));
        let answer = timeout(ANSWER_DEADLINE, self.store.knows(ledger)).await.unwrap_or_else(late);
        self.health.set_unsure_of(answer.is_err().then_some(ledger));
        answer
    }
}

impl Shared {
    fn homes(&self) -> MutexGuard<'_, Homes> {
        self.homes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Homes {
    fn find(&self, ledger: LedgerId) -> Option<Arc<Decided>> {
        self.held.get(&ledger).and_then(Weak::upgrade)
    }

    /// Returns the decision on a ledger, which may be yet to come.
    fn hold(&mut self, ledger: LedgerId) -> Arc<Decided> {
        if let Some(decided) = self.find(ledger) {
            return decided;
        }
        // Those who do not hold one any more leave no word.
        if self.held.len() >= self.pruned_at {
            self.held.retain(|_, decided| decided.strong_count() > 0);
            self.pruned_at = self.held.len() * 2 + 1;
        }
        let decided = Arc::default();
        self.held.insert(ledger, Arc::downgrade(&decided));
        decided
    }
}

async fn open_one(
    (dir, log): (Directory, Uuid),
    (min_free, memory): (Option<MinFree>, Memory),
    executor: Executor,
) -> Result<(Member, JoinHandle<()>), Error> {
    let opened = Store::open(dir.disk.clone(), log, executor, memory).await;
    let (store, replayed, task) =
        opened.map_err(|error| Error::directory(&dir.path, error.to_string()))?;
    let Replayed { cut, damages, .. } = replayed;
    let shown = dir.path.display();
    if let Some(cut) = cut {
        tracing::info!(dir = %shown, ?cut, "cut what was not acknowledged when the bookie last stopped");
    }
    for damage in &damages {
        tracing::error!(dir = %shown, %damage, "the log is damaged: writers are refused, and what is not found is unknown");
    }
    let health = Health {
        gauge: Gauge::new(dir, min_free),
        read_only: store.read_only(),
        damaged: store.damaged(),
        unsure_of: Mutex::default(),
    };
    Ok((Member { store, health: Arc::new(health), begun: AtomicU64::new(0) }, task))
}

impl Health {
    fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Says whether no new ledger may be placed there.
    fn takes_none(&self) -> bool {
        *self.read_only.borrow() || self.gauge.level() != Level::Plenty
    }

    fn unsure_of(&self) -> Option<LedgerId> {
        *self.unsure_of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_unsure_of(&self, ledger: Option<LedgerId>) {
        *self.unsure_of.lock().unwrap_or_else(PoisonError::into_inner) = ledger;
    }
}

/// Looks after the stores, and tells what has to be told of them.
struct Watcher {
    healths: Vec<Arc<Health>>,
    /// There are directories without a store.
    broken: bool,
    executor: Executor,
    read_only: watch::Sender<bool>,
    space: watch::Sender<Space>,
}

impl Watcher {
    async fn run(mut self, shared: Weak<Shared>, mut ended: oneshot::Receiver<Infallible>) {
        let mut standings: Vec<_> = self.healths.iter().map(|it| it.read_only.clone()).collect();
        loop {
            tokio::select! {
                () = sleep(LOOK_EVERY) => {
                    // Whoever is refused does not ask again.
                    if let Some(stores) = shared.upgrade().map(Stores) {
                        stores.ask_again().await;
                    }
                    self.look().await;
                }
                () = any_changes(&mut standings) => self.tell(),
                _ = &mut ended => return,
            }
        }
    }

    async fn look(&mut self) {
        let gauges: Vec<_> = self.healths.iter().map(|health| &health.gauge).collect();
        measure(&gauges, self.executor).await;
        self.space.send_replace(total(&gauges));
        self.tell();
    }

    fn tell(&self) {
        let may_have_lost = |it: &Arc<Health>| it.is_damaged() || it.unsure_of().is_some();
        let takes_none = self.healths.iter().all(|it| it.takes_none());
        let read_only = self.broken || takes_none || self.healths.iter().any(may_have_lost);
        self.read_only.send_if_modified(|told| mem::replace(told, read_only) != read_only);
    }
}

/// Waits until one of them changes; not for those that never will.
async fn any_changes(standings: &mut [watch::Receiver<bool>]) {
    let changes = standings.iter_mut().map(|standing| {
        Box::pin(async {
            if standing.changed().await.is_err() {
                pending().await
            }
        })
    });
    select_all(changes).await;
}
