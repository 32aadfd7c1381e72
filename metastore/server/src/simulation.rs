//! A simulation of several members and clients in one thread, on a clock that nobody waits for.
//!
//! Everything but the network, the disks and the time is what ships: consensus, log, state, leases
//! and the answers to requests. What the network and the disks do, and when which member loses its
//! power, is drawn from a seed; so is what the clients ask for. A run with the same seed is the
//! same run, event by event.
//!
//! While it runs, no two members may lead in one term, no member may vote twice in one, and all
//! must apply the same entries; a lease that is kept alive must not end. In the end the
//! network is healed and everybody is there: all members must become equal, byte by byte, to what
//! the entries make in memory, and what the clients were answered must be
//! [linearizable](inkfast_metastore::history). A watch must have told every change once, and a
//! stale read something that was true.
//!
//! `INKFAST_SEED=n` runs one seed and tells all its events; `INKFAST_LONG=1` runs many.
#![expect(clippy::print_stdout, reason = "what happened, if a seed fails")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use inkfast_metastore::history::{History, drive};
use inkfast_metastore::messages::Request;
use inkfast_metastore::rows::StateError;
use inkfast_metastore::{Metastore, Scan, Transaction};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

use crate::consensus::types::Runtime;
use crate::test_commands::{AllRows, all_rows, block_on};

mod client;
mod faults;
mod leases;
mod members;
mod model;
mod net;
mod record;
pub(crate) mod runtime;
mod stale;
mod watch;

use client::SimClient;
use faults::Faults;
use members::Members;
use model::Model;
use net::{Place, SimNet};
use record::Record;

/// How long there are faults.
const STORM: Duration = Duration::from_secs(20);
/// How long it may take until all members are equal when there are none any more.
const CALM: Duration = Duration::from_secs(60);
/// How often members are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const CLIENTS: usize = 4;
const LEASE_CLIENTS: usize = 2;
/// The client that watches.
const WATCHER: usize = CLIENTS + LEASE_CLIENTS;
/// The client that reads what may be old.
const READER: usize = WATCHER + 1;
/// The client that changes the members.
const OPERATOR: usize = READER + 1;
/// What has to happen in the runs together, lest they prove nothing.
const HAPPENINGS: [&str; 16] = [
    "additions",
    "blackouts",
    "changes told",
    "committed",
    "conflicts",
    "cuts",
    "entries",
    "new terms",
    "pauses",
    "power cuts",
    "removals",
    "snapshots",
    "stale pages",
    "transfers",
    "unanswered",
    "watches resumed",
];

/// How often what happened.
type Counts = BTreeMap<&'static str, usize>;

#[test]
fn members_agree_whatever_happens() {
    let seeds: Vec<u64> = match std::env::var("INKFAST_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) if std::env::var("INKFAST_LONG").is_ok() => (0..500).collect(),
        Err(_) => (0..12).collect(),
    };
    let (mut failed, mut sums) = (Vec::new(), Counts::new());
    for seed in &seeds {
        let (outcome, trace) = run(*seed);
        if seeds.len() == 1 {
            trace.iter().for_each(|line| println!("{line}"));
        }
        match outcome {
            Ok(counts) => {
                println!("seed {seed}: {counts:?}");
                counts
                    .into_iter()
                    .for_each(|(what, times)| *sums.entry(what).or_default() += times);
            }
            Err(why) => {
                println!("seed {seed} FAILED: {why}");
                failed.push(seed);
            }
        }
    }
    assert!(failed.is_empty(), "these of {} seeds have failed: {failed:?}", seeds.len());
    println!("all {} seeds: {sums:?}", seeds.len());
    if seeds.len() > 1 {
        let missing = |what: &&str| sums.get(what).is_none_or(|times| *times == 0);
        let missing = HAPPENINGS.into_iter().filter(missing).collect::<Vec<_>>();
        assert!(missing.is_empty(), "this never happened: {missing:?}");
    }
}

#[test]
fn a_seed_is_a_run() {
    let (_, one) = run(1);
    let (_, other) = run(1);
    let differs = one.iter().zip(&other).position(|(one, other)| one != other);
    if let Some(place) = differs {
        panic!("{} and {} are event {place}", one[place], other[place]);
    }
    assert_eq!(one.len(), other.len());
}

/// What was answered before a power cut is still answered after it, though the state had not all
/// of it on disk: who leads applies it again before it answers.
#[test]
fn a_power_cut_takes_back_no_answer() {
    block_on(Runtime::scope(0, async {
        let record = Record::new();
        let net = SimNet::new(Rng::with_seed(0), record.clone());
        let mut members = Members::new(&net, &record, Rng::with_seed(1));
        let member = members.make().await;
        let client = client(&net, &record, 0);
        for number in 0..20_u8 {
            let version = client.commit(Transaction::new().put("key", vec![number])).await.unwrap();
            members.kill(member);
            members.start(member).await;
            let found = client.get("key").await.unwrap();
            assert_eq!(found.map(|found| found.version), Some(version));
        }
    }));
}

/// Runs a seed, and returns what came of it and all that happened.
fn run(seed: u64) -> (Result<Counts, String>, Vec<String>) {
    // Draws how late the disks are.
    fastrand::seed(seed);
    block_on(Runtime::scope(seed, async {
        let record = Record::new();
        let outcome = simulate(Rng::with_seed(seed), &record).await;
        (outcome, record.trace())
    }))
}

async fn simulate(mut random: Rng, record: &Record) -> Result<Counts, String> {
    let net = SimNet::new(random.fork(), record.clone());
    let mut members = Members::new(&net, record, random.fork());
    let size = random.usize(3..=5);
    let operator = Arc::new(client(&net, record, OPERATOR));
    for _ in 0..size {
        let number = members.make().await;
        let address = Place::Member(number).address();
        let added = operator.ask(
            Request::AddMember { address, id: None },
            Duration::from_secs(20),
            Duration::from_secs(5),
        );
        added.await.map_err(|error| format!("m{number} was not added: {error}"))?;
    }
    let end = Instant::now() + STORM;
    let clients = Clients::start(&net, record, end, random.fork());
    let mut faults = Faults::new(&net, record, operator.clone(), random.fork());
    while Instant::now() < end {
        faults.step(&mut members).await;
        members.look().await;
        refuse(record)?;
        sleep(LOOK_INTERVAL).await;
    }
    faults.end(&mut members).await;
    let Clients { history, working, watching, reading } = clients;
    working.join_all().await;
    let store = client(&net, record, 0);
    let mut last = history.client();
    last.scan(&store, Scan::new("key")).await.map_err(|error| format!("after all: {error}"))?;
    leases::have_ended(&store).await?;
    let rows = become_equal(&members).await?;
    members.look().await;
    refuse(record)?;
    let summary = history.check().map_err(|failure| failure.to_string())?;
    let model = Model::of(record.applied())?;
    if model.rows() != rows {
        return Err("the members have other rows than their entries make".into());
    }
    let words = |error: JoinError| error.to_string();
    watch::check(&watching.await.map_err(words)?, &model)?;
    record.count("stale pages", stale::check(&reading.await.map_err(words)?, &model)?);
    record.count("committed", summary.committed);
    record.count("conflicts", summary.conflicts);
    record.count("unanswered", summary.unanswered);
    record.count("new terms", record.terms() - 1);
    record.count("entries", record.applied().len());
    Ok(record.counts())
}

/// All that ask for something.
struct Clients {
    history: History,
    working: JoinSet<()>,
    watching: JoinHandle<Vec<watch::Part>>,
    reading: JoinHandle<Vec<stale::Seen>>,
}

impl Clients {
    fn start(net: &SimNet, record: &Record, end: Instant, mut random: Rng) -> Self {
        let (history, mut working) = (History::default(), JoinSet::new());
        for number in 0..CLIENTS {
            let (store, history) = (client(net, record, number), history.clone());
            let seed = random.u64(..);
            working.spawn(async move {
                drive(&store, &history, "", seed, || Instant::now() >= end).await;
            });
        }
        for number in CLIENTS..WATCHER {
            let store = client(net, record, number);
            working.spawn(leases::hold(store, record.clone(), end, random.fork()));
        }
        let (watcher, reader) = (client(net, record, WATCHER), client(net, record, READER));
        let watching = watch::follow(net.clone(), record.clone(), watcher, end);
        let reading = stale::read(net.clone(), reader, end, random);
        let (watching, reading) = (tokio::spawn(watching), tokio::spawn(reading));
        Self { history, working, watching, reading }
    }
}

fn client(net: &SimNet, record: &Record, number: usize) -> SimClient {
    SimClient::new(net, record, number)
}

fn refuse(record: &Record) -> Result<(), String> {
    match record.violations().as_slice() {
        [] => Ok(()),
        violations => Err(violations.join("; ")),
    }
}

/// Waits until all members have applied the same, compares what came of it, and returns it.
async fn become_equal(members: &Members) -> Result<AllRows, String> {
    let late = Instant::now() + CALM;
    loop {
        if let Some(rows) = are_equal(members).await? {
            return Ok(rows);
        }
        if Instant::now() > late {
            let lives = members.nodes.values().filter_map(|node| node.life.as_ref());
            let states = lives.map(|life| life.running.consensus.standing());
            return Err(format!("they do not become equal: {:?}", states.collect::<Vec<_>>()));
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// Returns the rows if all members of the leader's cluster have applied the same entries, and fails
/// if they have, but have not the same rows.
async fn are_equal(members: &Members) -> Result<Option<AllRows>, String> {
    let life = |number| members.nodes.get(&number).and_then(|node| node.life.as_ref());
    let Some(leader) = members.leader().and_then(life) else { return Ok(None) };
    let standing = leader.running.consensus.standing();
    let words = |error: StateError| error.to_string();
    let applied = leader.storage.store.applied().await.map_err(words)?;
    let rows = all_rows(&leader.storage.store).await;
    for member in &standing.members {
        let (number, _) = members
            .nodes
            .iter()
            .find(|(_, node)| node.id == member.id)
            .ok_or_else(|| format!("{} was removed, and is a member", member.id))?;
        let Some(member) = life(*number) else { return Ok(None) };
        if member.storage.store.applied().await.map_err(words)? != applied
            || member.running.consensus.standing().log != standing.log
            || standing.applied != standing.log
        {
            return Ok(None);
        }
        if all_rows(&member.storage.store).await != rows {
            // What was applied meanwhile is no difference.
            let applied_now = member.storage.store.applied().await.map_err(words)?;
            let leader_now = leader.storage.store.applied().await.map_err(words)?;
            if applied_now == applied && leader_now == applied {
                return Err(format!("m{number} has other rows than the leader"));
            }
            return Ok(None);
        }
    }
    Ok(Some(rows))
}
