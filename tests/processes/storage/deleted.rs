//! Whoever comes late to a ledger that was deleted is told so.

use futures::TryStreamExt;
use inkfast::{Client, EntryId, Error, LedgerReader, LedgerWriter};

use super::{append, create, library};
use crate::cluster::Cluster;
use crate::load::until;
use crate::metastores::library::Library;

const BOOKIES: usize = 3;
const ENTRIES: u64 = 20;

fn bytes(_: u64) -> usize {
    100
}

/// Someone who has a ledger open for writing, and someone who has it open for reading.
struct Late {
    writer: LedgerWriter,
    reader: LedgerReader,
}

impl Late {
    async fn new(client: &Client) -> Result<Self, Error> {
        let writer = create(client, BOOKIES, 2).await?;
        append(&writer, 0..ENTRIES, bytes).await?;
        Ok(Self { reader: client.open_ledger(writer.id()).await?, writer })
    }

    /// Panics if anything is taken, or refused in words that say nothing of the deletion.
    async fn assert_refused(&self) {
        let refused = append(&self.writer, ENTRIES..ENTRIES + 1, bytes).await.unwrap_err();
        assert!(refused.to_string().contains("was deleted"), "{refused}");
        let refused = self.read().await.unwrap_err();
        assert!(refused.to_string().contains("was deleted"), "{refused}");
    }

    async fn read(&self) -> Result<(), Error> {
        let last = EntryId::new(ENTRIES - 2);
        self.reader.read(EntryId::FIRST..=last).try_for_each(|_| async { Ok(()) }).await
    }

    fn is_refused_to_read(&self, library: &Library) -> bool {
        let read = library.run(self.read());
        read.is_err_and(|error| error.to_string().contains("was deleted"))
    }
}

#[test]
fn who_has_a_deleted_ledger_open_still_is_told_so() {
    let mut cluster = Cluster::start(BOOKIES);
    let (library, client) = library(&cluster);
    let late: Vec<_> = (0..3).map(|_| library.run(Late::new(&client)).unwrap()).collect();
    let [now, after_restart, after_absence] = &late[..] else { unreachable!() };
    // It does not hear of the deletion.
    cluster.bookies[2].kill();
    for late in &late {
        library.run(client.delete_ledger(late.writer.id())).unwrap();
    }
    for late in &late {
        until("collected", || late.is_refused_to_read(&library));
    }
    library.run(now.assert_refused());

    for bookie in &mut cluster.bookies[..2] {
        bookie.kill();
        bookie.restart();
    }
    until("refused", || after_restart.is_refused_to_read(&library));
    library.run(after_restart.assert_refused());

    // Nobody but it can say.
    cluster.bookies[2].restart();
    cluster.bookies[0].kill();
    cluster.bookies[1].kill();
    until("collected by who was away", || after_absence.is_refused_to_read(&library));
    cluster.restart_killed();
    until("refused", || after_absence.is_refused_to_read(&library));
    library.run(after_absence.assert_refused());
}

/// Bookies that have failed are asked for the first ledger until they answer.
#[test]
fn a_bookie_is_taken_back_though_the_first_ledger_is_gone() {
    let mut cluster = Cluster::start(BOOKIES);
    let (library, client) = library(&cluster);
    let first = library.run(Late::new(&client)).unwrap();
    assert_eq!(first.writer.id().get(), 0);
    library.run(client.delete_ledger(first.writer.id())).unwrap();
    until("collected", || first.is_refused_to_read(&library));

    let writer = library.run(create(&client, BOOKIES, BOOKIES)).unwrap();
    library.run(append(&writer, 0..ENTRIES, bytes)).unwrap();
    cluster.bookies[0].kill();
    cluster.bookies[0].restart();
    library.run(append(&writer, ENTRIES..2 * ENTRIES, bytes)).unwrap();
}

/// No bookie has heard of it, so each has to hear of the deletion.
#[test]
fn a_ledger_that_was_deleted_before_its_first_entry_takes_none() {
    let cluster = Cluster::start(BOOKIES);
    let (library, client) = library(&cluster);
    let writer = library.run(create(&client, BOOKIES, BOOKIES)).unwrap();
    library.run(client.delete_ledger(writer.id())).unwrap();
    // Who has collected what was deleted later has heard of it.
    for _ in 0..2 {
        let later = library.run(Late::new(&client)).unwrap();
        library.run(client.delete_ledger(later.writer.id())).unwrap();
        until("collected", || later.is_refused_to_read(&library));
    }
    let refused = library.run(append(&writer, 0..1, bytes)).unwrap_err();
    assert!(refused.to_string().contains("was deleted"), "{refused}");
}
