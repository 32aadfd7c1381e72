use openraft::impls::TokioRuntime;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft_rt::deterministic_rng::DeterministicRng;

use super::*;
use crate::consensus::log::Log;
use crate::storage::{Beginning, Storage};
use crate::store::Executor;
use crate::test_disk::TestFiles;

/// Makes members for openraft's own suite.
struct Members;

impl StoreBuilder<Types, Log, Machine> for Members {
    async fn build(&self) -> Result<((), Log, Machine), openraft::StorageError<Types>> {
        let Storage { log, store, .. } = open(TestFiles::default());
        Ok(((), log, machine(store)))
    }
}

#[tokio::test]
async fn log_and_machine_are_what_openraft_wants() {
    DeterministicRng::<TokioRuntime>::scope(1, Suite::test_all(Members)).await.unwrap();
}

fn open(files: TestFiles) -> Storage {
    Storage::open(files, Executor::Inline, Beginning::Found).unwrap()
}

fn machine(store: Store) -> Machine {
    Machine::new(store, Arc::default(), Watches::new(Version::new(0)))
}
