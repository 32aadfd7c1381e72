//! One writer and several recoveries against a few bookies, whose messages are delivered in any
//! order, late, or never, while bookies hang and are killed: whatever happens, the promises of
//! the protocol hold, and once enough bookies answer a recovery ends.
//!
//! `PROPTEST_CASES` sets how many schedules are tried.
#![expect(clippy::unwrap_used, reason = "tests")]

use inkfast_protocol::Replication;
use proptest::prelude::*;

use world::World;

mod bookie;
#[path = "../ledgers/mod.rs"]
mod ledgers;
mod world;

/// The schedules that each test tries unless the environment says otherwise.
const CASES: u32 = 1000;
const STEPS_MAX: usize = 500;

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
    /// Somebody gives up waiting. What was asked may still be done, or have been done.
    TimeOut(usize),
    /// A bookie puts the next record of its log on disk.
    Sync(usize),
    /// A bookie stops, or goes on, taking requests.
    Hang(usize),
    /// A bookie is killed and starts again with what is on disk.
    Restart(usize),
    /// Somebody changes what does not matter in the metadata.
    Note,
}

fn pick() -> impl Strategy<Value = usize> {
    any::<u16>().prop_map(usize::from)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        60 => pick().prop_map(Step::Deliver),
        16 => pick().prop_map(Step::Sync),
        8 => Just(Step::Append),
        3 => Just(Step::Recover),
        1 => pick().prop_map(Step::Lose),
        1 => pick().prop_map(Step::TimeOut),
        1 => pick().prop_map(Step::Hang),
        1 => pick().prop_map(Step::Restart),
        1 => Just(Step::Note),
        1 => Just(Step::Close),
    ]
}

fn schedule() -> impl Strategy<Value = (Replication, Vec<Step>)> {
    let replication = prop::sample::select(&REPLICATIONS[..])
        .prop_map(|(e, w, a)| Replication::new(e, w, a).unwrap());
    (replication, prop::collection::vec(step(), 0..STEPS_MAX))
}

/// Runs a schedule; the world checks the promises after every step.
fn run(replication: Replication, steps: &[Step]) -> World {
    let mut world = World::new(replication);
    for step in steps {
        match step {
            Step::Append => world.append(),
            Step::Close => world.close(),
            Step::Recover => world.recover(),
            Step::Deliver(which) => world.deliver(*which),
            Step::Lose(which) => world.lose(*which),
            Step::TimeOut(which) => world.time_out(*which),
            Step::Sync(which) => world.sync(*which),
            Step::Hang(which) => world.hang(*which),
            Step::Restart(which) => world.restart(*which),
            Step::Note => world.note(),
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
    fn no_schedule_breaks_a_promise((replication, steps) in schedule()) {
        run(replication, &steps);
    }

    #[test]
    fn a_recovery_ends_while_enough_bookies_answer(
        (replication, steps) in schedule(), hung in prop::collection::vec(any::<bool>(), 5),
    ) {
        let mut world = run(replication, &steps);
        world.recover_undisturbed(&hung);
    }
}
