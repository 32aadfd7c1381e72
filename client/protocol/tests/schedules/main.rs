//! One writer and several recoveries against a few bookies, whose messages are delivered in any
//! order, late, or never, while bookies hang, are killed, and are replaced by others or by
//! themselves: whatever happens, the promises of the protocol hold, and once enough bookies answer
//! a recovery ends, and so does what a writer has begun.
//!
//! `PROPTEST_CASES` sets how many schedules are tried.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::ops::RangeInclusive;

use inkfast_protocol::Replication;
use proptest::prelude::*;

use undisturbed::{Found, Standing};
use world::World;

mod bookie;
mod invariants;
#[path = "../ledgers/mod.rs"]
mod ledgers;
mod messages;
mod metastore;
mod undisturbed;
mod world;

/// The schedules that each test tries unless the environment says otherwise.
const CASES: u32 = 1000;
/// The steps before the first that may end the ledger, and those from then on.
const STEPS_MAX: [usize; 2] = [300, 300];
/// More entries than a recovery reads at once.
const MORE: usize = 40;
const PICKS_MAX: usize = 200;
/// The pick that delivers the oldest message.
const DELIVER_FIRST: usize = 31;
const ENSEMBLE_MAX: usize = 5;
/// The bookies that there are beyond the ensemble.
const SPARES: RangeInclusive<usize> = 2..=3;

/// E, Qw, Qa.
const REPLICATIONS: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (2, 2, 1),
    (2, 2, 2),
    (3, 3, 2),
    (3, 3, 3),
    (3, 2, 2),
    (3, 2, 1),
    (4, 3, 2),
    (5, 3, 2),
];

/// What happens next. A number picks among what there is at that moment.
#[derive(Clone, Debug)]
enum Step {
    Append,
    Close,
    Recover,
    /// A message arrives.
    Deliver(usize),
    /// A message does not arrive, ever.
    Lose(usize),
    /// Somebody gives up waiting, or is refused. What was asked may still be done, or have been
    /// done.
    TimeOut(usize),
    /// Likewise, for want of the metastore.
    MissMetastore(usize),
    /// A bookie puts the next record of its log on disk.
    Sync(usize),
    /// A bookie stops, or goes on, taking requests.
    Hang(usize),
    /// A bookie's disk is full, or has room again.
    Fill(usize),
    /// A bookie is killed and starts again with what is on disk.
    Restart(usize),
    /// The writer or a recovery is given bookies, by a number for each place.
    Choose(usize, Vec<usize>),
    /// Nothing was appended for a while.
    Idle,
    /// Nothing was confirmed for a long while.
    Overdue,
    /// The metadata turns out to be too large, or the like.
    RefuseToSend,
    /// Somebody changes what does not matter in the metadata.
    Note,
    /// A bookie takes the place of another in a fragment that is complete.
    Rereplicate(usize),
}

fn pick() -> impl Strategy<Value = usize> {
    any::<u16>().prop_map(usize::from)
}

/// What may happen while the ledger is written.
fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        120 => pick().prop_map(Step::Deliver),
        32 => pick().prop_map(Step::Sync),
        16 => Just(Step::Append),
        10 => (pick(), prop::collection::vec(pick(), ENSEMBLE_MAX))
            .prop_map(|(which, picks)| Step::Choose(which, picks)),
        6 => pick().prop_map(Step::TimeOut),
        4 => pick().prop_map(Step::MissMetastore),
        2 => pick().prop_map(Step::Lose),
        2 => pick().prop_map(Step::Hang),
        2 => pick().prop_map(Step::Fill),
        2 => pick().prop_map(Step::Restart),
        2 => pick().prop_map(Step::Rereplicate),
        2 => Just(Step::Note),
        2 => Just(Step::Idle),
    ]
}

/// What may happen to bring it to its end.
fn last_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        100 => step(),
        3 => Just(Step::Recover),
        1 => Just(Step::Close),
        1 => Just(Step::Overdue),
        1 => Just(Step::RefuseToSend),
    ]
}

/// What to run, and with how many bookies beyond the ensemble.
type Schedule = (Replication, usize, Vec<Step>, Vec<Step>);

fn schedule() -> impl Strategy<Value = Schedule> {
    let replication = prop::sample::select(&REPLICATIONS[..])
        .prop_map(|(e, w, a)| Replication::new(e, w, a).unwrap());
    let [first, last] = STEPS_MAX;
    let first = prop::collection::vec(step(), 0..first);
    let last = prop::collection::vec(last_step(), 0..last);
    (replication, SPARES, first, prop_oneof![1 => Just(Vec::new()), 2 => last])
}

fn standing() -> impl Strategy<Value = Standing> {
    prop_oneof![
        1 => Just(Standing::Hung),
        1 => Just(Standing::Room(usize::MAX)),
        1 => (0..10_usize).prop_map(Standing::Room),
        1 => (0..2 * MORE).prop_map(Standing::Room),
    ]
}

/// In what order messages arrive and the like, once there is nothing to disturb them.
fn picks() -> impl Strategy<Value = Vec<usize>> {
    let at_random = prop::collection::vec(pick(), 0..PICKS_MAX);
    prop_oneof![1 => Just(Vec::new()), 3 => at_random]
        .prop_map(|picks| [&picks[..], &[DELIVER_FIRST]].concat())
}

fn found() -> impl Strategy<Value = Found> {
    prop_oneof![1 => Just(Found::Spares), 1 => Just(Found::Back), 2 => Just(Found::NoneYet)]
}

/// Runs a schedule; the world checks the promises after every step.
fn run((replication, spares, first, last): Schedule) -> World {
    let mut world = World::new(replication, spares);
    for step in first.into_iter().chain(last) {
        match step {
            Step::Append => world.append(),
            Step::Close => world.close(),
            Step::Recover => world.recover(),
            Step::Deliver(which) => {
                world.deliver(which);
            }
            Step::Lose(which) => world.lose(which),
            Step::TimeOut(which) => world.time_out(which),
            Step::MissMetastore(which) => world.miss_metastore(which),
            Step::Sync(which) => world.sync(which),
            Step::Hang(which) => world.hang(which),
            Step::Fill(which) => world.fill(which),
            Step::Restart(which) => world.restart(which),
            Step::Choose(which, picks) => world.choose(which, &picks),
            Step::Idle => world.idle(),
            Step::Overdue => world.overdue(),
            Step::RefuseToSend => world.refuse_to_send(),
            Step::Note => world.metastore.note(),
            Step::Rereplicate(which) => world.rereplicate(which),
        }
        world.check();
    }
    world
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => default,
        None => ProptestConfig { cases: CASES, ..default },
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_schedule_breaks_a_promise(schedule in schedule()) {
        run(schedule);
    }

    #[test]
    fn a_recovery_ends_while_enough_bookies_answer(
        schedule in schedule(),
        standings in prop::collection::vec(standing(), ENSEMBLE_MAX + SPARES.end()),
        found in found(),
        more in prop_oneof![7 => 0..10_usize, 1 => Just(MORE)],
        picks in picks(),
    ) {
        run(schedule).recover_undisturbed(&standings, (found, more), &picks);
    }

    #[test]
    fn what_was_appended_is_settled_once_all_is_well(
        schedule in schedule(), found in found(), more in 0..10_usize, picks in picks(),
    ) {
        run(schedule).write_undisturbed((found, more), &picks);
    }
}
