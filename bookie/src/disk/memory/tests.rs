//! What a crash, a failed sync and a full disk leave.

use super::*;

fn contents(disk: &MemoryDisk, name: &str) -> Vec<u8> {
    let file = disk.open(name).unwrap();
    let mut bytes = vec![0; index(file.len_bytes().unwrap())];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

/// A disk with a durable file of 512 `a` and then 1024 unsynced `b`.
fn half_synced() -> MemoryDisk {
    let disk = MemoryDisk::new();
    let file = disk.create("file").unwrap();
    disk.sync_names().unwrap();
    file.write_at(0, &[b'a'; 512]).unwrap();
    file.sync_data().unwrap();
    file.write_at(512, &[b'b'; 1024]).unwrap();
    disk
}

#[test]
fn a_crash_loses_what_was_not_synced() {
    let disk = half_synced();
    disk.create("other").unwrap().sync_data().unwrap();
    disk.rename("file", "renamed").unwrap();
    disk.crash(Unsynced::Lost);
    assert_eq!(disk.list().unwrap(), ["file"]);
    assert_eq!(contents(&disk, "file"), [b'a'; 512]);
}

#[test]
fn a_crash_tears_what_was_not_synced() {
    let disk = half_synced();
    disk.crash(Unsynced::Prefix { bytes: 700 });
    assert_eq!(contents(&disk, "file"), [vec![b'a'; 512], vec![b'b'; 700]].concat());

    let outcomes: BTreeSet<Vec<u8>> = (0..64)
        .map(|seed| {
            let disk = half_synced();
            disk.crash(Unsynced::Sectors { seed });
            contents(&disk, "file")
        })
        .collect();
    assert!(outcomes.iter().all(|bytes| bytes.starts_with(&[b'a'; 512])));
    // Nothing, the first, the second alone, both; and the length without the bytes, twice.
    assert_eq!(outcomes.len(), 6);
}

#[test]
fn a_failed_sync_loses_its_bytes_also_when_the_next_succeeds() {
    let disk = half_synced();
    let file = disk.open("file").unwrap();
    disk.fail_next_sync();
    file.sync_data().unwrap_err();
    assert_eq!(contents(&disk, "file")[512], b'b');
    file.sync_data().unwrap();
    disk.crash(Unsynced::Lost);
    assert_eq!(contents(&disk, "file"), [vec![b'a'; 512], vec![0; 1024]].concat());
}

#[test]
fn a_full_disk_writes_what_fits() {
    let disk = half_synced();
    disk.set_capacity_bytes(Some(1600));
    let file = disk.open("file").unwrap();
    let error = file.write_at(1500, &[b'c'; 200]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(contents(&disk, "file")[1500..], [b'c'; 100]);
    let Space { capacity_bytes, free_bytes, .. } = disk.space().unwrap();
    assert_eq!((capacity_bytes, free_bytes), (1600, 0));
    disk.set_capacity_bytes(None);
    file.write_at(1500, &[b'c'; 200]).unwrap();
}

#[test]
fn nothing_works_without_power() {
    let disk = half_synced();
    let file = disk.open("file").unwrap();
    disk.lose_power_at(2);
    file.write_at(0, b"x").unwrap();
    file.sync_data().unwrap_err();
    file.write_at(0, b"y").unwrap_err();
    disk.list().unwrap_err();
    disk.crash(Unsynced::Lost);
    assert_eq!(contents(&disk, "file"), [b'a'; 512]);
}
