//! The file alone, as redb uses it.

use redb::StorageBackend;

use super::*;
use crate::disk::BLOCK_BYTES;

const PAGE: u64 = BLOCK_BYTES as u64;
/// So many pages have their checksums in one block.
const GROUP: u64 = 1024;

fn new_file(disk: &MemoryDisk, pages: u64) -> Backend {
    let backend = Backend(Arc::new(Pages::create(disk.create(FILE).unwrap(), LOG)));
    backend.set_len(pages * PAGE).unwrap();
    backend
}

fn open_file(disk: &MemoryDisk) -> Backend {
    Backend(Arc::new(Pages::open(disk.open(FILE).unwrap(), LOG).unwrap()))
}

fn read(backend: &Backend, page: u64, pages: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(pages * PAGE).unwrap()];
    backend.read(page * PAGE, &mut bytes).map(|()| bytes)
}

/// Makes pages of which no two are the same.
fn pages(pages: std::ops::Range<u64>) -> Vec<u8> {
    pages.flat_map(|page| page.to_le_bytes().repeat(BLOCK_BYTES / 8)).collect()
}

#[test]
fn pages_are_read_as_they_were_written() {
    let disk = MemoryDisk::new();
    let backend = new_file(&disk, 3 * GROUP);
    backend.write(0, b"the first").unwrap();
    // All of a group, with the ends of those around it.
    backend.write((GROUP - 2) * PAGE, &pages(GROUP - 2..2 * GROUP + 3)).unwrap();
    backend.sync_data().unwrap();
    disk.sync_names().unwrap();
    disk.crash(Unsynced::Lost);

    let backend = open_file(&disk);
    assert_eq!(backend.len().unwrap(), 3 * GROUP * PAGE);
    let mut first = [0; 9];
    backend.read(0, &mut first).unwrap();
    assert_eq!(&first, b"the first");
    for (page, count) in [(GROUP - 2, 1), (GROUP - 1, 2), (GROUP, GROUP), (2 * GROUP - 1, 4)] {
        assert_eq!(read(&backend, page, count).unwrap(), pages(page..page + count));
    }
}

#[test]
fn a_page_that_is_not_as_it_was_written_is_not_read() {
    let disk = MemoryDisk::new();
    let backend = new_file(&disk, 20);
    backend.write(5 * PAGE, &pages(5..9)).unwrap();
    backend.sync_data().unwrap();
    // One that was never written, and one that there is not.
    assert!(read(&backend, 4, 2).unwrap_err().to_string().contains("page 4 "));
    assert!(read(&backend, 20, 1).is_err());
    // It is behind the two fronts and the block of checksums. Only what is read is checked.
    disk.flip_bit(FILE, (3 + 7) * BLOCK_BYTES + 99, 3);
    assert_eq!(read(&backend, 5, 2).unwrap(), pages(5..7));
    let error = read(&backend, 5, 4).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("page 7 "), "{error}");
}

#[test]
fn a_page_at_the_place_of_another_is_not_read() {
    let disk = MemoryDisk::new();
    let backend = new_file(&disk, 20);
    backend.write(0, b"the first").unwrap();
    backend.write(5 * PAGE, &pages(5..6).repeat(2)).unwrap();
    backend.sync_data().unwrap();
    let file = disk.open(FILE).unwrap();
    // The checksums of the two pages.
    let mut checksums = [0; 8];
    file.read_at(2 * PAGE + 5 * 4, &mut checksums).unwrap();
    assert_ne!(checksums[..4], checksums[4..]);
    file.write_at(2 * PAGE + 5 * 4, &[&checksums[4..], &checksums[..4]].concat()).unwrap();
    assert!(read(&open_file(&disk), 5, 1).is_err());
}

#[test]
fn a_file_that_became_shorter_is_so_after_a_crash() {
    let disk = MemoryDisk::new();
    let backend = new_file(&disk, 20);
    backend.write(0, b"the first").unwrap();
    backend.sync_data().unwrap();
    disk.sync_names().unwrap();
    backend.set_len(9 * PAGE).unwrap();
    disk.crash(Unsynced::Lost);
    assert_eq!(open_file(&disk).len().unwrap(), 9 * PAGE);
}

/// Were redb to change what it writes, that must not pass unnoticed.
#[test]
fn what_is_no_page_is_neither_read_nor_written() {
    let backend = new_file(&MemoryDisk::new(), 20);
    backend.write(PAGE, &[0; 100]).unwrap_err();
    backend.write(100, &[0; BLOCK_BYTES]).unwrap_err();
    backend.write(0, &[0; BLOCK_BYTES]).unwrap_err();
    backend.read(PAGE + 8, &mut [0; BLOCK_BYTES]).unwrap_err();
}

#[test]
fn a_segment_is_dead_when_nothing_in_it_is_needed() {
    let index = open(&MemoryDisk::new()).unwrap();
    let dead = |checkpoint: Checkpoint| {
        let infos = index.commit(&checkpoint).unwrap();
        let dead = infos.into_iter().filter(|(number, info)| number.0 <= 3 && info.is_dead());
        dead.map(|(number, _)| number.0).collect::<Vec<_>>()
    };
    let state = |segment| StoredLedger {
        state_segments: [SegmentNumber(segment)].into(),
        ..StoredLedger::default()
    };
    let [one, two] = [1, 2].map(ledger);
    let entries = [(one, places(0..300, 1, 9)), (two, places(0..300, 9, 9))].into();
    assert_eq!(dead(Checkpoint { entries, ..checkpoint(20) }), [3]);
    let ledgers = [(one, state(3)), (two, state(1))].into();
    assert_eq!(dead(Checkpoint { ledgers, ..checkpoint(20) }), []);
    // Most of the second segment's entries are moved to the third, and then all.
    let entries = [(two, places(1..300, 16, 9))].into();
    assert_eq!(dead(Checkpoint { entries, ..checkpoint(21) }), []);
    let entries = [(two, places(0..1, 16, 9))].into();
    assert_eq!(dead(Checkpoint { entries, ..checkpoint(22) }), [2]);
    let emptied = [one].into();
    assert_eq!(dead(Checkpoint { emptied, ..checkpoint(23) }), [2]);
    let ledgers = [(two, state(3))].into();
    assert_eq!(dead(Checkpoint { ledgers, ..checkpoint(24) }), [1, 2]);
}
