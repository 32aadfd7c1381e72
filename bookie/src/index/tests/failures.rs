//! Power cuts, failed syncs, full disks, and bits that change.

use super::measure::long;
use super::*;
use crate::disk::BLOCK_BYTES;

/// Some checkpoints that do everything: entries that are new, moved and in between, ledgers that
/// change and go, a file that grows and gets shorter.
fn history() -> Vec<Checkpoint> {
    let many = |ids: std::ops::Range<u64>, batch| places(ids, batch, 1000);
    vec![
        Checkpoint {
            entries: (0..4).map(|id| (ledger(id), many(0..1500, 1))).collect(),
            ledgers: (0..8).map(|id| (ledger(id.into()), stored_ledger(id))).collect(),
            ..checkpoint(1)
        },
        Checkpoint {
            entries: [(ledger(1), many(1400..1600, 9)), (ledger(5), many(70..90, 9))].into(),
            ..checkpoint(9)
        },
        Checkpoint {
            emptied: [ledger(0), ledger(1), ledger(2)].into(),
            ledgers: [(ledger(0), stored_ledger(5))].into(),
            ..checkpoint(17)
        },
        Checkpoint { entries: [(ledger(5), many(60..70, 18))].into(), ..checkpoint(18) },
        Checkpoint {
            entries: (2..8).map(|id| (ledger(id), many(90..900, 19))).collect(),
            ..checkpoint(19)
        },
    ]
}

/// Commits until something fails; returns how much was committed.
fn run(disk: &MemoryDisk, history: &[Checkpoint]) -> Result<(), usize> {
    let index = open(disk).map_err(|_| 0_usize)?;
    for (done, checkpoint) in history.iter().enumerate() {
        index.commit(checkpoint).map_err(|_| done)?;
    }
    Ok(())
}

/// Returns the model after each number of checkpoints.
fn models(history: &[Checkpoint]) -> Vec<Model> {
    let mut models = vec![Model::default()];
    for checkpoint in history {
        let mut model = models[models.len() - 1].clone();
        model.commit(checkpoint);
        models.push(model);
    }
    models
}

/// Opens an index, which has the state of this number of checkpoints or of one more.
fn assert_has(disk: &MemoryDisk, models: &[Model], done: usize) {
    let index = open(disk).unwrap();
    let mark = index.known().unwrap().map(|known| known.mark);
    let found = models[done..].iter().take(2).find(|model| model.mark == mark);
    let found = found.unwrap_or_else(|| panic!("after {done} checkpoints the mark is {mark:?}"));
    found.assert_answers(&index).unwrap();
}

#[test]
fn a_power_cut_anywhere_leaves_the_last_checkpoint_or_the_one_under_way() {
    let history = history();
    let models = models(&history);
    for change in 1.. {
        let mut ended = true;
        let fates = [
            Unsynced::Lost,
            // Within the checksum of the front, or within what redb has in it.
            Unsynced::Prefix { bytes: 10 },
            Unsynced::Prefix { bytes: 100 },
            Unsynced::Prefix { bytes: 3 * BLOCK_BYTES },
            Unsynced::Sectors { seed: change },
            Unsynced::Sectors { seed: !change },
        ];
        // Each fate is that of every third change, with INKFAST_LONG of every one.
        let (skipped, step) = if long() { (0, 1) } else { (change % 3, 3) };
        for fate in fates.into_iter().skip(skipped.try_into().unwrap()).step_by(step) {
            let disk = MemoryDisk::new();
            disk.lose_power_at(change);
            let done = run(&disk, &history);
            ended &= done.is_ok() && disk.list().is_ok();
            disk.crash(fate);
            // And once more while it is opened.
            disk.lose_power_at(1 + change % 7);
            drop(open(&disk));
            disk.crash(fate);
            assert_has(&disk, &models, done.map_or_else(|done| done, |()| history.len()));
        }
        if ended {
            assert!(change > 50, "only {change} changes");
            return;
        }
    }
}

#[test]
fn a_failed_sync_costs_one_checkpoint_and_no_answer() {
    let history = history();
    let models = models(&history);
    for failing in 0..history.len() {
        let disk = MemoryDisk::new();
        let index = open(&disk).unwrap();
        history[..failing].iter().for_each(|checkpoint| {
            index.commit(checkpoint).unwrap();
        });
        disk.fail_next_sync();
        let error = index.commit(&history[failing]).unwrap_err();
        assert!(matches!(error, IndexError::Io(_)), "{error}");
        models[failing].assert_answers(&index).unwrap();
        let left = disk.copy();
        history[failing..].iter().for_each(|checkpoint| {
            index.commit(checkpoint).unwrap();
        });
        models[history.len()].assert_answers(&index).unwrap();
        drop(index);
        disk.crash(Unsynced::Lost);
        assert_has(&disk, &models, history.len());
        assert_has(&left, &models, failing);
    }
}

#[test]
fn a_changed_bit_gives_an_error_or_the_right_answer() {
    let history = history();
    let model = models(&history).pop().unwrap();
    let disk = MemoryDisk::new();
    run(&disk, &history).unwrap();
    let file_bytes = usize::try_from(disk.open(FILE).unwrap().len_bytes().unwrap()).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let mut damaged = 0;
    for block in 0..file_bytes / BLOCK_BYTES {
        // The first blocks have something everywhere.
        let tries = if block < 3 || long() { 60 } else { 3 };
        for attempt in 0..tries {
            let disk = disk.copy();
            let within = random.usize(..if block < 3 { 600 } else { BLOCK_BYTES });
            let flip = || disk.flip_bit(FILE, block * BLOCK_BYTES + within, attempt % 8);
            let answers = if attempt % 2 == 0 {
                flip();
                open(&disk).and_then(|index| model.assert_answers(&index))
            } else {
                let index = open(&disk).unwrap();
                flip();
                model.assert_answers(&index)
            };
            if let Err(error) = answers {
                assert!(matches!(error, IndexError::Damaged(_)), "{error}");
                damaged += 1;
            }
        }
    }
    assert!(
        damaged > file_bytes / BLOCK_BYTES / 2,
        "only {damaged} changes were noticed in {file_bytes} bytes"
    );
}

/// What was seen once is told again: the disk's own error is told only the first time.
#[test]
fn damage_is_told_by_every_later_call() {
    let disk = MemoryDisk::new();
    run(&disk, &history()).unwrap();
    let index = Index::open(&disk, LOG, 0).unwrap();
    let file_bytes = usize::try_from(disk.open(FILE).unwrap().len_bytes().unwrap()).unwrap();
    (3..file_bytes / BLOCK_BYTES).for_each(|block| disk.flip_bit(FILE, block * BLOCK_BYTES, 0));
    for _ in 0..2 {
        let error = index.find(ledger(3), &entries_of([5])).unwrap_err();
        assert!(matches!(&error, IndexError::Damaged(why) if why.contains("page")), "{error}");
    }
}

#[test]
fn a_file_that_is_none_or_cut_short_is_damaged() {
    let disk = MemoryDisk::new();
    run(&disk, &history()).unwrap();
    let file = disk.open(FILE).unwrap();
    for len_bytes in [file.len_bytes().unwrap() - 1, 3 * BLOCK_BYTES as u64, 100, 0] {
        file.set_len(len_bytes).unwrap();
        let error = open(&disk).err().unwrap();
        assert!(matches!(error, IndexError::Damaged(_)), "{error}");
    }
    file.write_at(0, &[7; 5 * BLOCK_BYTES]).unwrap();
    let error = open(&disk).err().unwrap();
    assert!(matches!(error, IndexError::Damaged(_)), "{error}");
    Index::remove(&disk).unwrap();
    assert_eq!(open(&disk).unwrap().known().unwrap(), None);
}

#[test]
fn a_newer_format_is_refused() {
    let disk = MemoryDisk::new();
    drop(open(&disk).unwrap());
    let file = disk.open(FILE).unwrap();
    let mut block = [0; BLOCK_BYTES];
    file.read_at(0, &mut block).unwrap();
    block[12] += 1;
    let checksum = crc32c::crc32c(&block[12..]);
    block[8..12].copy_from_slice(&checksum.to_le_bytes());
    for copy in 0..2 {
        file.write_at(copy * BLOCK_BYTES as u64, &block).unwrap();
    }
    let refused = open(&disk).err().unwrap();
    assert!(matches!(&refused, IndexError::Refused(why) if why.contains("newer")), "{refused}");
}
