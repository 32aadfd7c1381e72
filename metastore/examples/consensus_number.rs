//! Why a cluster needs something like a metastore: what can agree, and what cannot.
//!
//! *Consensus*: several clients each propose a value, and all decide the same one, which one of
//! them has proposed. No client may have to wait for another, for the other may have stopped for
//! good. How many clients an object can do that for is its *consensus number*. Maurice Herlihy
//! ("Wait-free synchronization", 1991) showed that objects differ in it without any remedy: one of a
//! higher number cannot be built from those of a lower one. Flavio Junqueira's talk
//! "Towards consensus on distributed consensus" looks at replicated logs in this light: a ledger
//! has to agree on its end and on who stores it, so somewhere there must be an object that can.
//!
//! The metastore's keys are three such objects, by what one asks of them:
//!
//! - *create* succeeds once: whoever created the key has decided, and the others read it. Any
//!   number of clients agree;
//! - *compare-and-set*, a write under the condition that the version is still the one that was
//!   read, does the same: any number;
//! - a *register*, with get and put alone: number 1. It cannot even do it for two.
//!
//! Why no protocol with registers does, however clever (Loui and Abu-Amara, 1987, after Fischer,
//! Lynch and Paterson): at first both outcomes are possible, and at the end only one is. So there
//! is a last moment at which both are, and from which a step of A leads to one and a step of B to
//! the other. Consider these two steps. If one of them is a get, it leaves nothing behind, so the
//! other client cannot know whether it was done. If they are puts to different keys, their order
//! leaves no trace. If they are puts to the same key, the second wipes out the first. In each case
//! somebody goes on alone after either outcome, sees the same, and decides the same: a
//! contradiction. With create it falls apart: the second one *fails*, and so learns who was first.
//!
//! This program tries all schedules of a few clients, step by step, on a metastore in memory:
//! `cargo run -p inkfast-metastore --example consensus_number`.
#![expect(clippy::print_stdout, reason = "it is there to be read")]

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use inkfast_metastore::{Error, KeyValue, MemoryMetastore, Metastore, Transaction};

/// A key that is absent at first.
const DECISION: &str = "decision";
/// A key that has an empty value at first.
const CELL: &str = "cell";

type Decision<'a> = Pin<Box<dyn Future<Output = Result<String, Error>> + Send + 'a>>;
type Protocol = for<'a> fn(Client<'a>) -> Decision<'a>;

const BY_CREATE: Protocol = |client| Box::pin(by_create(client));
const BY_COMPARE_AND_SET: Protocol = |client| Box::pin(by_compare_and_set(client));
const BY_REGISTER: Protocol = |client| Box::pin(by_register(client));
const BY_ANNOUNCEMENTS: Protocol = |client| Box::pin(by_announcements(client));

fn main() -> Result<(), Error> {
    for (name, protocol) in [("create", BY_CREATE), ("compare-and-set", BY_COMPARE_AND_SET)] {
        for clients in 1..=3 {
            let outcomes = all_outcomes(protocol, clients)?;
            let agreed = outcomes.iter().filter(|outcome| outcome.agrees()).count();
            println!("{name}, {clients} client(s): {agreed} of {} schedules agree", outcomes.len());
        }
    }
    let registers = [("one register", BY_REGISTER), ("a register each", BY_ANNOUNCEMENTS)];
    for (name, protocol) in registers {
        let outcomes = all_outcomes(protocol, 2)?;
        let agreed = outcomes.iter().filter(|outcome| outcome.agrees()).count();
        println!("{name}, 2 clients: {agreed} of {} schedules agree", outcomes.len());
        if let Some(outcome) = outcomes.iter().find(|outcome| !outcome.agrees()) {
            println!("here they do not:");
            outcome.log.iter().for_each(|line| println!("    {line}"));
        }
    }
    Ok(())
}

/// Agrees by create: who is first has decided.
async fn by_create(client: Client<'_>) -> Result<String, Error> {
    let mine = client.proposal();
    if client.commit("create", Transaction::new().create(DECISION, mine.clone())).await? {
        return Ok(mine);
    }
    client.read(DECISION).await
}

/// Agrees by compare-and-set: who is the first to replace the empty value has decided.
async fn by_compare_and_set(client: Client<'_>) -> Result<String, Error> {
    let mine = client.proposal();
    if let Some(found) = client.get(CELL).await?.filter(|found| found.value.is_empty()) {
        let replace = Transaction::new().replace(CELL, found.version, mine.clone());
        if client.commit("replace", replace).await? {
            return Ok(mine);
        }
    }
    client.read(CELL).await
}

/// Tries to agree with one register: puts its proposal if nothing is there, and takes what is there
/// then.
async fn by_register(client: Client<'_>) -> Result<String, Error> {
    if client.read(CELL).await?.is_empty() {
        client.commit("put", Transaction::new().put(CELL, client.proposal())).await?;
    }
    client.read(CELL).await
}

/// Tries to agree with a register each: puts its proposal, looks at the others', and takes the
/// least that it sees.
async fn by_announcements(client: Client<'_>) -> Result<String, Error> {
    let key = |number| format!("proposal {number}");
    let mut least = client.proposal();
    client.commit("put", Transaction::new().put(key(client.number), least.clone())).await?;
    for number in (0..client.clients).filter(|number| *number != client.number) {
        let other = client.read(&key(number)).await?;
        if !other.is_empty() {
            least = least.min(other);
        }
    }
    Ok(least)
}

/// One of the clients that are to agree. Each of its operations is one step, which it takes when
/// the schedule lets it.
struct Client<'a> {
    number: usize,
    clients: usize,
    store: &'a dyn Metastore,
    log: &'a Mutex<Vec<String>>,
}

impl Client<'_> {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        turn().await;
        let found = self.store.get(key).await?;
        self.note(format!("gets {key}: {:?}", text(&found)));
        Ok(found)
    }

    /// Reads the value of a key; empty if it is absent.
    async fn read(&self, key: &str) -> Result<String, Error> {
        Ok(text(&self.get(key).await?))
    }

    /// Commits a transaction; false if its condition does not hold.
    async fn commit(&self, what: &str, transaction: Transaction) -> Result<bool, Error> {
        turn().await;
        let done = match self.store.commit(transaction).await {
            Ok(_) => true,
            Err(Error::Conflict { .. }) => false,
            Err(error) => return Err(error),
        };
        let result = if done { self.proposal() } else { "too late".into() };
        self.note(format!("{what}s: {result:?}"));
        Ok(done)
    }

    fn proposal(&self) -> String {
        format!("value of {}", self.number)
    }

    fn note(&self, what: String) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push(format!("client {} {what}", self.number));
    }
}

/// Waits for the schedule: whoever polls the client again lets it take its next step.
async fn turn() {
    let mut waited = false;
    poll_fn(|context| {
        if waited {
            return Poll::Ready(());
        }
        waited = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn text(found: &Option<KeyValue>) -> String {
    let value = found.as_ref().map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
    value.unwrap_or_default()
}

/// What came of a schedule.
struct Outcome {
    /// What each client has decided; none while it still has steps to take.
    decided: Vec<Option<String>>,
    log: Vec<String>,
}

impl Outcome {
    fn agrees(&self) -> bool {
        self.decided.windows(2).all(|pair| pair[0] == pair[1])
    }
}

/// Tries all schedules.
fn all_outcomes(protocol: Protocol, clients: usize) -> Result<Vec<Outcome>, Error> {
    let mut outcomes = Vec::new();
    let mut schedules = vec![Vec::new()];
    while let Some(schedule) = schedules.pop() {
        let outcome = run(protocol, clients, &schedule)?;
        let running = (0..clients).filter(|number| outcome.decided[*number].is_none());
        schedules.extend(running.clone().map(|number| [&schedule[..], &[number]].concat()));
        if running.count() == 0 {
            outcomes.push(outcome);
        }
    }
    Ok(outcomes)
}

/// Lets clients take steps, in the order of their numbers in the schedule.
fn run(protocol: Protocol, clients: usize, schedule: &[usize]) -> Result<Outcome, Error> {
    let store = MemoryMetastore::new();
    let log = Mutex::default();
    let mut context = Context::from_waker(Waker::noop());
    let mut prepared = store.commit(Transaction::new().put(CELL, ""));
    assert!(prepared.as_mut().poll(&mut context).is_ready(), "nothing in memory waits");
    let client = |number| Some(protocol(Client { number, clients, store: &store, log: &log }));
    let mut running = (0..clients).map(client).collect::<Vec<_>>();
    let mut decided = vec![None; clients];
    // At first each comes to its first step.
    for number in (0..clients).chain(schedule.iter().copied()) {
        let Some(client) = &mut running[number] else { continue };
        if let Poll::Ready(decision) = client.as_mut().poll(&mut context) {
            decided[number] = Some(decision?);
            running[number] = None;
        }
    }
    drop(running);
    Ok(Outcome { decided, log: log.into_inner().unwrap_or_else(PoisonError::into_inner) })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn create_and_compare_and_set_agree_in_every_schedule() {
        for protocol in [BY_CREATE, BY_COMPARE_AND_SET] {
            for clients in 1..=3 {
                let outcomes = all_outcomes(protocol, clients).unwrap();
                assert!(outcomes.iter().all(Outcome::agrees));
                // Each client is the one that has decided, in some schedule.
                let decisions = outcomes.iter().flat_map(|outcome| outcome.decided[0].clone());
                let proposals = (0..clients).map(|number| format!("value of {number}"));
                assert_eq!(decisions.collect::<BTreeSet<_>>(), proposals.collect());
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn create_and_compare_and_set_agree_among_many_tasks() {
        const CLIENTS: usize = 64;
        for protocol in [BY_CREATE, BY_COMPARE_AND_SET] {
            for _ in 0..50 {
                let store = Arc::new(MemoryMetastore::new());
                store.commit(Transaction::new().put(CELL, "")).await.unwrap();
                let tasks = (0..CLIENTS).map(|number| {
                    let store = Arc::clone(&store);
                    tokio::spawn(async move {
                        let (store, log) = (&*store, &Mutex::default());
                        protocol(Client { number, clients: CLIENTS, store, log }).await
                    })
                });
                let mut decided = BTreeSet::new();
                for task in tasks.collect::<Vec<_>>() {
                    decided.insert(task.await.unwrap().unwrap());
                }
                assert_eq!(decided.len(), 1, "{decided:?}");
            }
        }
    }

    #[test]
    fn registers_do_not_agree() {
        for protocol in [BY_REGISTER, BY_ANNOUNCEMENTS] {
            let outcomes = all_outcomes(protocol, 2).unwrap();
            let agreed = outcomes.iter().filter(|outcome| outcome.agrees()).count();
            assert!(0 < agreed && agreed < outcomes.len(), "{agreed} of {}", outcomes.len());
            // One client alone has nobody to differ from.
            assert!(all_outcomes(protocol, 1).unwrap().iter().all(Outcome::agrees));
        }
    }
}
