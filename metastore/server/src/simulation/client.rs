//! Clients, which look for the leader as the real ones do, in few lines.

use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use fastrand::Rng;
use inkfast_metastore::messages::Request;
use inkfast_metastore::state::{Answer, Operation};
use inkfast_metastore::{
    Error, KeyValue, LeaseId, Metastore, Page, Scan, Transaction, Version, Watch,
};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::net::{Place, Running, SimNet};
use super::record::Record;

/// How long a request is tried.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long one member is waited for.
const PATIENCE: Duration = Duration::from_millis(400);
/// The pause before the next attempt, after a few.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between two requests, in milliseconds.
const THINK_MS: u64 = 80;

pub(super) struct SimClient {
    net: SimNet,
    record: Record,
    place: Place,
    state: Mutex<State>,
}

struct State {
    random: Rng,
    believed: String,
}

impl SimClient {
    pub(super) fn new(net: &SimNet, record: &Record, number: usize) -> Self {
        let believed = Place::Member(0).address();
        let random = Rng::with_seed(net.seed());
        let state = Mutex::new(State { random, believed });
        Self { net: net.clone(), record: record.clone(), place: Place::Client(number), state }
    }

    /// Asks whoever leads until there is an answer: one member after the other.
    pub(super) async fn ask(
        &self,
        request: Request,
        timeout: Duration,
        patience: Duration,
    ) -> Result<Answer, Error> {
        let late = Instant::now() + timeout;
        let mut unsettled = false;
        for attempt in 0.. {
            if Instant::now() >= late {
                break;
            }
            if attempt > 2 {
                sleep(PAUSE).await;
            }
            let member = self.state.lock().unwrap().believed.clone();
            let before = std::mem::replace(&mut unsettled, true);
            let patience = late.min(Instant::now() + patience);
            let request = request.clone();
            let work = |running: Running| async move { running.front.answer(Ok(request)).await };
            match self.net.ask(self.place, &member, patience, work).await {
                None => self.believe(&member, None),
                Some(Err(Error::NotLeader { leader })) => {
                    unsettled = before;
                    self.believe(&member, leader);
                }
                Some(Err(Error::Unavailable { .. })) => self.believe(&member, None),
                Some(answer) => return answer,
            }
        }
        let why = "no member answers".to_owned();
        Err(if unsettled { Error::TimedOut { timeout, why } } else { Error::Unavailable { why } })
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Goes to the member that is named, or to the next one.
    fn believe(&self, member: &str, named: Option<String>) {
        let named = named.unwrap_or_else(|| self.net.next_member(member));
        self.state.lock().unwrap().believed = named;
    }

    pub(super) fn note(&self, request: &Request) {
        self.record.note(|| format!("{} asks {request:?}", self.place));
    }

    async fn call(&self, request: Request) -> Result<Answer, Error> {
        let think = self.state.lock().unwrap().random.u64(..THINK_MS);
        sleep(Duration::from_millis(think)).await;
        self.note(&request);
        let answer = self.ask(request, TIMEOUT, PATIENCE).await;
        self.record.note(|| format!("{} has {answer:?}", self.place));
        answer
    }

    async fn change(&self, operation: Operation) -> Result<Answer, Error> {
        let request = Uuid::from_u128(self.state.lock().unwrap().random.u128(..));
        self.call(Request::Change { request, operation }).await
    }
}

#[async_trait]
impl Metastore for SimClient {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        self.call(Request::Get { key: key.into(), stale: false }).await?.value()
    }

    async fn scan(&self, scan: Scan) -> Result<Page, Error> {
        self.call(Request::Scan { scan, stale: false }).await?.page()
    }

    async fn get_stale(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        self.call(Request::Get { key: key.into(), stale: true }).await?.value()
    }

    async fn scan_stale(&self, scan: Scan) -> Result<Page, Error> {
        self.call(Request::Scan { scan, stale: true }).await?.page()
    }

    async fn commit(&self, transaction: Transaction) -> Result<Version, Error> {
        self.change(Operation::Commit(transaction)).await?.committed()
    }

    async fn next_sequence(&self, name: &str, count: u64) -> Result<Range<u64>, Error> {
        self.change(Operation::NextSequence { name: name.into(), count }).await?.sequence()
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.change(Operation::GrantLease { ttl }).await?.granted()
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        self.call(Request::KeepAlive(lease)).await?.done()
    }

    async fn end_lease(&self, lease: LeaseId) -> Result<(), Error> {
        self.change(Operation::EndLease(lease)).await?.done()
    }

    async fn watch(&self, _: &str, _: Version) -> Result<Watch, Error> {
        Err(Error::unavailable("watches are at a member here"))
    }

    async fn cluster(&self) -> Result<Uuid, Error> {
        Err(Error::unavailable("nobody asks"))
    }
}
