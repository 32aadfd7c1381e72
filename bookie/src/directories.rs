//! The directories of a bookie: finds out whose they are, and makes new ones.
//!
//! The file in each names the logs of all. So one that is missing is missed, and what is not found
//! in the others is not called absent. A directory is formatted before any file names its log, and
//! all files name it before anything is written there: a crash in between leaves a bookie that
//! starts, and what the files name together is what counts.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use crate::Error;
use crate::disk::{Disk, OsDisk};
use crate::identity::{self, BookieIdentity, Label};

/// A directory that could be opened.
#[derive(Clone)]
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    pub(crate) disk: Arc<dyn Disk>,
}

/// Directories that a bookie was given.
pub(crate) struct Given {
    pub(crate) opened: Vec<Directory>,
    /// What is wrong with each of the others.
    pub(crate) broken: Vec<Error>,
}

/// The directories of one bookie.
pub(crate) struct Claimed {
    pub(crate) bookie: BookieIdentity,
    /// Those that can be used, each with its log.
    pub(crate) sound: Vec<(Directory, Uuid)>,
    /// What is wrong with the others, and which logs are missing.
    pub(crate) broken: Vec<Error>,
}

/// Opens directories; those that are missing are made. Blocks.
///
/// Fails if one is in use, or given twice. What else is wrong with one leaves the others.
pub(crate) fn open(paths: &[PathBuf]) -> Result<Given, Error> {
    let mut given = Given { opened: Vec::new(), broken: Vec::new() };
    for path in paths {
        match OsDisk::open(path) {
            Ok(disk) => {
                let disk = Arc::new(disk);
                given.opened.push(Directory { path: path.clone(), disk });
            }
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                let same = |other: &Directory| {
                    let resolved = [path, &other.path].map(|path| fs::canonicalize(path).ok());
                    resolved[0].is_some() && resolved[0] == resolved[1]
                };
                let is_twice = given.opened.iter().any(same);
                let why = if is_twice { "it is given twice".to_owned() } else { error.to_string() };
                return Err(Error::directory(path, why));
            }
            Err(error) => given.broken.push(Error::directory(path, error.to_string())),
        }
    }
    Ok(given)
}

/// Finds out whose the directories are, and makes the empty ones those of the same bookie, or of a
/// new one if all are empty. Blocks.
///
/// Fails if some belong to another cluster, name or bookie than the others, if none can be used, or
/// if an empty one cannot be made one of the bookie's. While one is broken or missing no other is
/// added: an empty one may be its mount point.
pub(crate) fn claim(given: Given, cluster: Uuid, name: &str) -> Result<Claimed, Error> {
    let Given { opened, mut broken } = given;
    let (mut sound, mut empty) = (Vec::new(), Vec::new());
    for dir in opened {
        match identity::load(&*dir.disk, &dir.path) {
            Ok(Some(label)) => sound.push((dir, label)),
            Ok(None) => empty.push(dir),
            Err(error) => broken.push(error),
        }
    }
    check(&sound, cluster, name)?;
    broken.extend(missing(&sound));
    if !broken.is_empty() {
        let why = "it is empty, and none is added while a log of the bookie is missing or a \
                   directory cannot be used; if it is a mount point, mount its disk";
        broken.extend(empty.drain(..).map(|dir| Error::directory(&dir.path, why)));
        if sound.is_empty() {
            return Err(Error::no_directory(broken));
        }
    }
    let bookie = match sound.first() {
        Some((_, label)) => label.bookie.clone(),
        None if empty.is_empty() => return Err(Error::no_directory(broken)),
        None => BookieIdentity::new(cluster, name.to_owned()),
    };
    add(&mut sound, empty, &bookie)?;
    let sound = sound.into_iter().map(|(dir, label)| (dir, label.log)).collect();
    Ok(Claimed { bookie, sound, broken })
}

fn check(sound: &[(Directory, Label)], cluster: Uuid, name: &str) -> Result<(), Error> {
    for (number, (dir, Label { bookie, log, .. })) in sound.iter().enumerate() {
        let refused = |why: String| Err(Error::directory(&dir.path, why));
        if bookie.cluster != cluster {
            return refused(format!(
                "it belongs to cluster {}, and the metastore is that of cluster {cluster}; give \
                 the directory or the metastore that belong together",
                bookie.cluster
            ));
        }
        if bookie.name != name {
            return refused(format!(
                "it belongs to the bookie named '{}', and this process's certificate says '{name}'",
                bookie.name
            ));
        }
        for (other, label) in &sound[..number] {
            let other = other.path.display();
            if label.bookie.id != bookie.id {
                let (one, two) = (label.bookie.id, bookie.id);
                return refused(format!(
                    "it is of bookie {two}, and {other} of bookie {one}; each needs a process of \
                     its own"
                ));
            }
            if label.log == *log {
                return refused(format!("it has log {log}, as {other} has; one of them is a copy"));
            }
        }
    }
    Ok(())
}

/// Says which logs are named and not there.
fn missing(sound: &[(Directory, Label)]) -> Vec<Error> {
    let present: BTreeSet<Uuid> = sound.iter().map(|(_, label)| label.log).collect();
    let mut missing = BTreeSet::new();
    let mut words = Vec::new();
    for (dir, label) in sound {
        for log in label.logs.difference(&present).filter(|log| missing.insert(**log)) {
            let why = format!(
                "its file '{}' names log {log} of the same bookie, whose directory is not given or \
                 cannot be used",
                identity::FILE
            );
            words.push(Error::directory(&dir.path, why));
        }
    }
    words
}

/// Formats empty directories, and lets all of them name all logs.
fn add(
    sound: &mut Vec<(Directory, Label)>,
    empty: Vec<Directory>,
    bookie: &BookieIdentity,
) -> Result<(), Error> {
    let mut logs: BTreeSet<Uuid> = sound.iter().flat_map(|(_, label)| label.logs.clone()).collect();
    for dir in empty {
        let log = Uuid::new_v4();
        logs.insert(log);
        let label = Label { bookie: bookie.clone(), log, logs: logs.clone() };
        identity::format(&*dir.disk, &dir.path, &label)?;
        tracing::info!(bookie = %bookie.id, dir = %dir.path.display(), %log, "formatted a directory");
        sound.push((dir, label));
    }
    for (dir, label) in sound.iter_mut().filter(|(_, label)| label.logs != logs) {
        label.logs.clone_from(&logs);
        identity::write(&*dir.disk, &dir.path, label)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{MemoryDisk, Unsynced};

    const CLUSTER: Uuid = Uuid::from_u128(1);

    fn given(disks: &[&MemoryDisk]) -> Given {
        let dir = |(number, disk): (usize, &&MemoryDisk)| {
            let disk: Arc<dyn Disk> = Arc::new((*disk).clone());
            Directory { path: format!("d{number}").into(), disk }
        };
        Given { opened: disks.iter().enumerate().map(dir).collect(), broken: Vec::new() }
    }

    fn claim_all(disks: &[&MemoryDisk]) -> Result<Claimed, Error> {
        claim(given(disks), CLUSTER, "b1")
    }

    /// Expects all of the directories to be of the bookie; returns its logs in their order.
    fn logs(disks: &[&MemoryDisk]) -> Vec<Uuid> {
        let mut claimed = claim_all(disks).unwrap();
        assert!(claimed.broken.is_empty(), "{:?}", claimed.broken);
        claimed.sound.sort_by_key(|(dir, _)| dir.path.clone());
        claimed.sound.into_iter().map(|(_, log)| log).collect()
    }

    fn words(refused: Result<Claimed, Error>) -> String {
        refused.err().expect("it is refused").to_string()
    }

    #[test]
    fn directories_belong_together_in_any_order() {
        let [a, b, c] = [(); 3].map(|()| MemoryDisk::new());
        let two = logs(&[&a, &b]);
        assert_eq!(logs(&[&b, &a]), [two[1], two[0]]);
        let three = logs(&[&c, &a, &b]);
        assert_eq!(three[1..], two);
        for disk in [&a, &b, &c] {
            let label = identity::load(disk, &PathBuf::new()).unwrap().unwrap();
            assert_eq!(label.logs, three.iter().copied().collect());
        }
    }

    #[test]
    fn a_directory_from_before_there_were_lists_gets_company() {
        let (old, new) = (MemoryDisk::new(), MemoryDisk::new());
        let first = logs(&[&old]);
        assert_eq!(logs(&[&new, &old])[1], first[0]);
    }

    #[test]
    fn a_missing_directory_is_missed_and_not_replaced() {
        let [a, b, empty] = [(); 3].map(|()| MemoryDisk::new());
        let two = logs(&[&a, &b]);
        let claimed = claim_all(&[&a, &empty]).unwrap();
        assert_eq!(claimed.sound.len(), 1);
        let words: Vec<_> = claimed.broken.iter().map(ToString::to_string).collect();
        assert_eq!(words.len(), 2);
        assert!(words[0].contains(&two[1].to_string()), "{words:?}");
        assert!(words[1].contains("mount"), "{words:?}");
        assert!(empty.list().unwrap().is_empty());
        assert_eq!(logs(&[&a, &b]), two);
    }

    #[test]
    fn a_directory_that_cannot_be_read_is_left_out_and_nothing_is_formatted() {
        let [a, b, empty] = [(); 3].map(|()| MemoryDisk::new());
        logs(&[&a, &b]);
        a.lose_power_at(0);
        let claimed = claim_all(&[&a, &b]).unwrap();
        assert_eq!(claimed.sound.len(), 1);
        assert_eq!(claimed.broken.len(), 2, "what is wrong with it, and the missing log");
        // It may well be the directory of a bookie that the other belongs to.
        let words = words(claim_all(&[&a, &empty]));
        assert!(words.contains("d0") && words.contains("d1"), "{words}");
        assert!(empty.list().unwrap().is_empty());
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let [a, b] = [(); 2].map(|()| MemoryDisk::new());
        logs(&[&a]);
        logs(&[&b]);
        let other_bookie = words(claim_all(&[&a, &b]));
        assert!(other_bookie.contains("of bookie"), "{other_bookie}");
        let copied = words(claim_all(&[&a, &a.copy()]));
        assert!(copied.contains("is a copy"), "{copied}");
        let other_cluster = words(claim(given(&[&a]), Uuid::from_u128(2), "b1"));
        assert!(other_cluster.contains("cluster"), "{other_cluster}");
        let other_name = words(claim(given(&[&a]), CLUSTER, "b2"));
        assert!(other_name.contains("'b2'"), "{other_name}");
        assert!(words(claim_all(&[])).contains("none was given"));
    }

    #[test]
    fn the_same_directory_twice_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let twice = [dir.path().to_owned(), dir.path().join(".")];
        let words = open(&twice).err().expect("it is refused").to_string();
        assert!(words.contains("twice"), "{words}");
    }

    /// The power goes at each change that formatting and adding make, in either directory.
    #[test]
    fn a_crash_while_directories_are_made_leaves_a_bookie_that_starts() {
        let mut crashes = 0;
        for formatted in 0..=2 {
            for failing in 0..3 {
                for change in 1.. {
                    let [a, b, c] = [(); 3].map(|()| MemoryDisk::new());
                    let all = [&a, &b, &c];
                    let before = if formatted > 0 { logs(&all[..formatted]) } else { Vec::new() };
                    all[failing].lose_power_at(change);
                    if claim_all(&all).is_ok_and(|claimed| claimed.broken.is_empty()) {
                        break;
                    }
                    crashes += 1;
                    let unsynced = match change % 3 {
                        0 => Unsynced::Lost,
                        1 => Unsynced::Prefix { bytes: 100 },
                        _ => Unsynced::Sectors { seed: change },
                    };
                    all.iter().for_each(|disk| disk.crash(unsynced));
                    let after = logs(&all);
                    assert_eq!(after[..formatted], before, "{formatted} {failing} {change}");
                    assert_eq!(logs(&all), after);
                }
            }
        }
        assert!(crashes > 20, "{crashes}");
    }
}
