use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;
use crate::test_disk::TestFiles;

#[test]
fn files_in_a_directory_and_in_memory_do_the_same() {
    let dir = TempDir::new().unwrap();
    conforms(&Directory::lock(dir.path()).unwrap());
    conforms(&TestFiles::default());
}

fn conforms(files: &dyn Files) {
    files.remove("old").unwrap();
    assert!(!files.exists("old").unwrap());
    let old = files.open("old").unwrap();
    assert!(files.exists("old").unwrap());
    assert_eq!(old.len().unwrap(), 0);
    write(&*old, b"old");
    assert_eq!(read(&*files.open("old").unwrap()), b"old", "each open is of the same file");

    let new = files.open("new").unwrap();
    write(&*new, b"new");
    files.rename("new", "old").unwrap();
    assert!(!files.exists("new").unwrap());
    assert_eq!(read(&*files.open("old").unwrap()), b"new");
    assert_eq!(read(&*old), b"old", "who has it open goes on reading it");
    write(&*new, b"NEW");
    assert_eq!(read(&*files.open("old").unwrap()), b"NEW");
    files.rename("missing", "old").unwrap_err();

    files.remove("old").unwrap();
    assert!(!files.exists("old").unwrap());
    assert_eq!(files.open("old").unwrap().len().unwrap(), 0);
    files.remove("old").unwrap();
}

fn write(file: &dyn StorageBackend, bytes: &[u8]) {
    file.set_len(bytes.len() as u64).unwrap();
    file.write(0, bytes).unwrap();
    file.sync_data().unwrap();
}

fn read(file: &dyn StorageBackend) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn one_process_has_a_directory() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("made");
    let held = Directory::lock(&path).unwrap();
    assert!(matches!(Directory::lock(&path), Err(Error::InUse { .. })));
    held.open(LOG).unwrap();
    let mode = fs::metadata(path.join(LOG)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "nobody else may read it");
    drop(held);
    assert!(Directory::has_member(&path).unwrap());
    assert!(Directory::lock(&path).is_ok());
}

#[test]
fn a_directory_of_something_else_is_refused_and_left_alone() {
    let dir = TempDir::new().unwrap();
    assert!(!Directory::has_member(&dir.path().join("missing")).unwrap());
    for (name, word) in [("notes.txt", "notes.txt"), (STATE, "log.redb"), (FORMER, "replicate")] {
        fs::write(dir.path().join(name), "of somebody").unwrap();
        for refused in [
            Directory::lock(dir.path()).map(drop).unwrap_err(),
            Directory::lock_empty(dir.path()).map(drop).unwrap_err(),
            Directory::has_member(dir.path()).map(drop).unwrap_err(),
        ] {
            assert!(matches!(refused, Error::Directory { .. }), "{refused}");
            assert!(refused.to_string().contains(word), "{refused}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::remove_file(dir.path().join(name)).unwrap();
    }
}

#[test]
fn certificates_may_lie_in_it() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("metastore.pem"), "").unwrap();
    fs::write(dir.path().join("metastore.key"), "").unwrap();
    assert!(!Directory::has_member(dir.path()).unwrap());
    assert!(Directory::lock_empty(dir.path()).is_ok());
}
