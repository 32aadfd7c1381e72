//! The log on a disk that loses, tears and decays.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::smallvec;
use uuid::Uuid;

use super::writer::Committed;
use super::*;
use crate::disk::{Disk, MemoryDisk, OsDisk, Unsynced};
use crate::executor::Executor;

mod reader;
mod scan;
mod segments;
mod writer;

const LOG: Uuid = Uuid::from_u128(0xa11);
/// Where the records of a segment begin in these tests.
const START: u32 = BLOCK;
const BLOCK: u32 = 4096;
/// So small that a segment takes one small batch.
const SMALL: u32 = 2 * BLOCK;
/// So that it takes several batches.
const SEVERAL: u32 = 6 * BLOCK;

/// What a replay showed.
type Records = Vec<(Place, Vec<u8>)>;

fn settings(segment_bytes_max: u32) -> Settings {
    Settings { log: LOG, segment_bytes_max }
}

fn try_open(
    disk: &MemoryDisk,
    segment_bytes_max: u32,
) -> Result<(Tail, Records, Replayed), LogError> {
    let mut shown = Vec::new();
    let (tail, replayed) =
        open(Arc::new(disk.clone()), settings(segment_bytes_max), None, &mut |what| {
            if let Shown::Record(place, kind, payload) = what {
                assert_eq!(usize::from(kind), payload.len() % 256);
                shown.push((place, payload.to_vec()));
            }
            Ok(())
        })?;
    Ok((tail, shown, replayed))
}

fn reopen(disk: &MemoryDisk) -> (Tail, Records, Replayed) {
    try_open(disk, SEGMENT_BYTES_MAX).unwrap()
}

/// Makes a log on a new disk.
fn new_log() -> (MemoryDisk, Tail) {
    let disk = MemoryDisk::new();
    create(&disk, LOG).unwrap();
    let (tail, shown, replayed) = reopen(&disk);
    assert_eq!((shown, replayed), (vec![], Replayed::default()));
    (disk, tail)
}

fn append<T>(payload: &[u8], token: T) -> Append<T> {
    let kind = u8::try_from(payload.len() % 256).unwrap();
    Append { kind, payloads: smallvec![Bytes::copy_from_slice(payload)], token }
}

fn commit(tail: &mut Tail, payloads: &[Vec<u8>]) -> Result<Records, LogError> {
    let appends = payloads.iter().map(|payload| append(payload, payload.clone())).collect();
    let durable = written(tail.commit(appends))?;
    Ok(durable.appends.into_iter().map(|durable| (durable.places[0], durable.token)).collect())
}

fn written<T>(committed: Committed<T>) -> Result<Batch<T>, LogError> {
    match committed {
        Committed::Durable(batch) => Ok(batch),
        Committed::Full(error, _) | Committed::Failed(error) => Err(error),
    }
}

fn payloads(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Three batches: of one, of three and of two records.
fn six_records() -> (MemoryDisk, Records) {
    let (disk, mut tail) = new_log();
    let mut all = commit(&mut tail, &payloads(&["first"])).unwrap();
    all.extend(commit(&mut tail, &payloads(&["second", "", "fourth, longer"])).unwrap());
    all.extend(commit(&mut tail, &payloads(&["fifth", "the sixth"])).unwrap());
    (disk, all)
}

fn read(disk: &MemoryDisk, name: &str) -> Vec<u8> {
    let file = disk.open(name).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len_bytes().unwrap()).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

fn name(number: u32) -> String {
    SegmentNumber(number).to_string()
}

/// Where the record ends in its file.
fn end(place: Place) -> u32 {
    place.offset + u32::try_from(record::stored_bytes(place.payload_bytes as usize)).unwrap()
}

/// Where its batch ends, if it is the last of it.
fn batch_end(place: Place) -> u32 {
    end(place).next_multiple_of(BLOCK)
}

fn range(segment: u32, offset: u32, end: u32) -> Damage {
    Damage::Range { segment: SegmentNumber(segment), offset, bytes: end - offset }
}

#[tokio::test]
async fn records_are_replayed_and_read_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(OsDisk::open(dir.path()).unwrap());
    create(&*disk, LOG).unwrap();
    let mut expected = Vec::new();
    for round in 0..3 {
        let mut shown = Vec::new();
        let (tail, replayed) = open(disk.clone(), settings(30_000), None, &mut |what| {
            if let Shown::Record(place, _, payload) = what {
                shown.push((place, payload.to_vec()));
            }
            Ok(())
        })
        .unwrap();
        assert_eq!((shown, replayed), (expected.clone(), Replayed::default()));

        let (appender, mut completions) = tail.start(Executor::Threads);
        for size in 0..100_usize {
            appender.ready().await.unwrap();
            appender.push(append(&vec![round; size], vec![round; size]));
        }
        drop(appender);
        while let Some(batch) = completions.next().await.unwrap() {
            expected.extend(
                batch.appends.into_iter().map(|durable| (durable.places[0], durable.token)),
            );
        }
    }
    assert_eq!(expected.len(), 300);
    let reader = Reader::new(disk, LOG, Executor::Threads, 0);
    let places = expected.iter().map(|(place, _)| *place).collect();
    for (read, (_, payload)) in reader.read_many(places, 0).await.into_iter().zip(&expected) {
        assert_eq!(read.unwrap(), payload);
    }
}

#[test]
fn a_last_record_torn_at_any_byte_is_cut() {
    let (disk, mut tail) = new_log();
    let all = commit(&mut tail, &payloads(&["first", "second"])).unwrap();
    let start = tail.mark().offset;
    let last = commit(&mut tail, &payloads(&["the last one"])).unwrap();
    let whole = read(&disk, &name(1));
    for torn in start..end(last[0].0) {
        let disk = MemoryDisk::new();
        let file = disk.create(&name(1)).unwrap();
        file.write_at(0, &whole[..torn as usize]).unwrap();
        let (mut tail, shown, replayed) = reopen(&disk);
        // With a header, it looks like what it is.
        let torn_bytes = torn - start;
        let cut = Cut { segment: SegmentNumber(1), offset: start, bytes: torn_bytes };
        let is_seen = torn_bytes as usize >= record::HEADER_BYTES;
        assert_eq!(replayed, Replayed { cut: is_seen.then_some(cut), damages: vec![] });
        assert_eq!(shown, all, "torn at {torn}");
        assert_eq!(read(&disk, &name(1)), whole[..start as usize]);

        // Nothing of it comes back behind what comes now.
        let more = commit(&mut tail, &payloads(&["more"])).unwrap();
        assert_eq!(more[0].0.offset, start);
        assert_eq!(reopen(&disk).1, [&all[..], &more].concat());
        assert_eq!(reopen(&disk).2, Replayed::default());
    }
}

#[test]
fn a_batch_torn_in_its_midst_is_cut_though_records_of_it_follow() {
    let (disk, all) = six_records();
    disk.flip_bit(&name(1), all[4].0.offset as usize + 30, 0);
    let (_, shown, replayed) = reopen(&disk);
    assert_eq!(shown, all[..4]);
    let (offset, bytes) = (all[4].0.offset, batch_end(all[5].0) - all[4].0.offset);
    let cut = Some(Cut { segment: SegmentNumber(1), offset, bytes });
    assert_eq!(replayed, Replayed { cut, damages: vec![] });
    assert_eq!(reopen(&disk).2, Replayed::default());
}

#[test]
fn the_first_records_of_a_torn_batch_stay_as_they_were_shown() {
    let (disk, all) = six_records();
    disk.flip_bit(&name(1), all[5].0.offset as usize + 30, 0);
    for _ in 0..2 {
        let (mut tail, shown, replayed) = reopen(&disk);
        assert_eq!(shown[..5], all[..5]);
        assert_eq!(replayed.damages, []);
        commit(&mut tail, &payloads(&["behind it"])).unwrap();
        disk.crash(Unsynced::Lost);
    }
}

#[tokio::test]
async fn a_corrupt_byte_before_the_last_batch_is_damage() {
    for victim in 0..4 {
        let (disk, all) = six_records();
        let (start, end) = (all[victim].0.offset, end(all[victim].0));
        let next = all[victim + 1].0.offset;
        for offset in start..end {
            disk.flip_bit(&name(1), offset as usize, (offset % 8) as u8);
            let (_, shown, replayed) = reopen(&disk);
            assert_eq!(replayed, Replayed { cut: None, damages: vec![range(1, start, next)] });
            assert_eq!(shown, [&all[..victim], &all[victim + 1..]].concat(), "at {offset}");

            let reader = Reader::new(Arc::new(disk.clone()), LOG, Executor::Inline, 0);
            let error = reader.read(all[victim].0).await.unwrap_err();
            assert_eq!(error.to_string(), format!("{} is corrupt at offset {start}", name(1)));
            assert_eq!(reader.read(all[5].0).await.unwrap(), all[5].1);
            disk.flip_bit(&name(1), offset as usize, (offset % 8) as u8);
        }
        assert_eq!(reopen(&disk).1, all);
    }
}

#[test]
fn a_damaged_log_goes_on_behind_its_end() {
    let (disk, mut all) = six_records();
    disk.flip_bit(&name(1), all[1].0.offset as usize, 0);
    let damages = vec![range(1, all[1].0.offset, all[2].0.offset)];
    let (mut tail, ..) = reopen(&disk);
    all.remove(1);
    all.extend(commit(&mut tail, &payloads(&["seventh"])).unwrap());
    disk.crash(Unsynced::Lost);
    let (_, shown, replayed) = reopen(&disk);
    assert_eq!((shown, replayed), (all, Replayed { cut: None, damages }));
}

/// A log of three segments with a record each.
fn three_segments() -> (MemoryDisk, Records) {
    let disk = MemoryDisk::new();
    create(&disk, LOG).unwrap();
    let (mut tail, ..) = try_open(&disk, SMALL).unwrap();
    let records = ["one", "two", "three"].map(|text| {
        let payload = [text.as_bytes(), &[b'.'; 100]].concat();
        commit(&mut tail, &[payload]).unwrap().remove(0)
    });
    assert_eq!(disk.list().unwrap(), [name(1), name(2), name(3)]);
    (disk, records.to_vec())
}

#[test]
fn any_damage_before_the_last_segment_is_reported() {
    let (disk, all) = three_segments();
    assert_eq!(try_open(&disk, SMALL).unwrap().1, all);
    let len = batch_end(all[1].0);
    let damaged = |disk: &MemoryDisk, damage: Damage| {
        let (_, shown, replayed) = try_open(disk, SMALL).unwrap();
        assert_eq!(replayed, Replayed { cut: None, damages: vec![damage] });
        assert_eq!(shown, [all[0].clone(), all[2].clone()]);
    };
    // The last record of its segment is no torn tail if there is a segment after it.
    disk.flip_bit(&name(2), end(all[1].0) as usize - 1, 0);
    damaged(&disk, range(2, START, len));
    disk.flip_bit(&name(2), 20, 0);
    damaged(&disk, range(2, 0, len));
    disk.remove(&name(2)).unwrap();
    let second = SegmentNumber(2);
    damaged(&disk, Damage::Missing { first: second, last: second });
}

#[test]
fn a_segment_that_lost_its_end_is_noticed() {
    let (disk, all) = three_segments();
    let file = disk.open(&name(2)).unwrap();
    file.set_len(u64::from(START)).unwrap();
    let rest = range(2, START, batch_end(all[1].0));
    assert_eq!(try_open(&disk, SMALL).unwrap().2.damages, [rest]);
    file.set_len(10).unwrap();
    let all_of_it = range(2, 0, batch_end(all[1].0));
    assert_eq!(try_open(&disk, SMALL).unwrap().2.damages, [all_of_it]);
}

#[test]
fn a_last_segment_with_a_damaged_header_is_left_behind() {
    let (disk, all) = three_segments();
    disk.flip_bit(&name(3), 3, 3);
    let (mut tail, shown, replayed) = try_open(&disk, SMALL).unwrap();
    assert_eq!(shown, all[..2]);
    assert_eq!(replayed.damages, [range(3, 0, batch_end(all[2].0))]);
    let [(place, _)] = commit(&mut tail, &payloads(&["new"])).unwrap().try_into().unwrap();
    assert_eq!((place.segment, place.offset), (SegmentNumber(4), START));
    assert_eq!(try_open(&disk, SMALL).unwrap().1.len(), 3);
}

#[test]
fn a_segment_whose_making_was_cut_short_is_made_again() {
    for len in [0, 8, u64::from(START), u64::from(3 * BLOCK)] {
        let (disk, all) = three_segments();
        disk.create("spare-fresh").unwrap().set_len(len).unwrap();
        let (mut tail, shown, replayed) = try_open(&disk, SMALL).unwrap();
        assert_eq!((&shown, replayed), (&all, Replayed::default()));
        let [(place, _)] = commit(&mut tail, &payloads(&["new"])).unwrap().try_into().unwrap();
        assert_eq!((place.segment, place.offset), (SegmentNumber(4), START));
        assert_eq!(disk.list().unwrap(), [name(1), name(2), name(3), name(4)]);
        assert_eq!(try_open(&disk, SMALL).unwrap().1.len(), 4);
    }
}

#[test]
fn a_log_whose_only_segment_was_emptied_is_damaged() {
    let (disk, _) = six_records();
    disk.open(&name(1)).unwrap().set_len(0).unwrap();
    let (mut tail, shown, replayed) = reopen(&disk);
    assert_eq!((shown, replayed.damages), (vec![], vec![range(1, 0, 0)]));
    commit(&mut tail, &payloads(&["in the second"])).unwrap();
    assert_eq!(reopen(&disk).2.damages, [range(1, 0, 0)]);
}

#[test]
fn refusals_have_words() {
    let (disk, _) = six_records();
    let error = create(&disk, LOG).unwrap_err().to_string();
    assert!(error.contains("holds records"), "{error}");
    let mut other = settings(SEGMENT_BYTES_MAX);
    other.log = Uuid::nil();
    let error = open(Arc::new(disk.clone()), other, None, &mut |_| Ok(())).err().unwrap();
    assert!(error.to_string().contains("belongs to the log 0000"), "{error}");
    let mut refuse = |_: Shown<'_>| Err("a kind of tomorrow".to_owned());
    let error = open(Arc::new(disk), settings(SEGMENT_BYTES_MAX), None, &mut refuse).err().unwrap();
    assert!(error.to_string().ends_with("record at offset 4096: a kind of tomorrow"), "{error}");
    let error = try_open(&MemoryDisk::new(), SEGMENT_BYTES_MAX).err().unwrap();
    assert!(matches!(error, LogError::NoSegment));
}

#[test]
fn a_record_with_unknown_flags_is_refused() {
    let (disk, all) = six_records();
    let (place, payload) = &all[5];
    let seed = record::Seed::new(LOG, SegmentNumber(1));
    let batch = record::Batch { sequence: 3, start: place.offset };
    let payload_bytes = place.payload_bytes;
    let mut stored = buffer::Buffer::new(100);
    let header = record::Header { payload_bytes, kind: 9, flags: 0x81, batch };
    record::encode(&mut stored, seed, header, payload);
    disk.open(&name(1)).unwrap().write_at(u64::from(place.offset), stored.bytes()).unwrap();
    let error = try_open(&disk, SEGMENT_BYTES_MAX).err().unwrap().to_string();
    assert!(error.contains("flags 0x81 of a newer format"), "{error}");
}

#[test]
fn a_new_segment_is_durable_before_its_first_record_is() {
    let (disk, mut all) = three_segments();
    disk.crash(Unsynced::Lost);
    assert_eq!(try_open(&disk, SMALL).unwrap().1, all);

    // As if the process had ended between the making of a segment and the sync of its name.
    disk.rename(&name(3), "elsewhere").unwrap();
    disk.sync_names().unwrap();
    disk.rename("elsewhere", &name(3)).unwrap();
    let (mut tail, ..) = reopen(&disk);
    all.extend(commit(&mut tail, &payloads(&["into the third"])).unwrap());
    disk.crash(Unsynced::Lost);
    assert_eq!(reopen(&disk).1, all);
}

#[test]
fn random_decay_is_noticed_and_never_misread() {
    for seed in 0..500 {
        let mut random = fastrand::Rng::with_seed(seed);
        let disk = MemoryDisk::new();
        create(&disk, LOG).unwrap();
        let all = run_until_power_loss(&disk, &mut random);
        for _ in 0..random.usize(1..4) {
            let names = disk.list().unwrap();
            let file = disk.open(random.choice(&names).unwrap()).unwrap();
            let len = file.len_bytes().unwrap();
            let garbage: Vec<u8> = (0..random.usize(1..600)).map(|_| random.u8(..3)).collect();
            match random.u8(..3) {
                0 => file.set_len(random.u64(..=len)).unwrap(),
                1 => file.write_at(len, &garbage).unwrap(),
                _ => file.write_at(random.u64(..=len), &garbage).unwrap(),
            }
        }
        let (_, shown, replayed) = try_open(&disk, SEVERAL).unwrap();
        let mut rest = all.iter();
        assert!(shown.iter().all(|one| rest.any(|other| other == one)), "seed {seed}");
        // Only the last batches can go without notice, as if they had never been written.
        let is_noticed = replayed != Replayed::default();
        assert!(is_noticed || all.starts_with(&shown), "seed {seed}");
    }
}

/// Appends batches of random records, opening the log anew now and then, until the power goes or
/// enough is done. Gives what was answered.
fn run_until_power_loss(disk: &MemoryDisk, random: &mut fastrand::Rng) -> Records {
    let mut answered = Vec::new();
    let mut run = || -> Result<(), LogError> {
        let (mut tail, ..) = try_open(disk, SEVERAL)?;
        for _ in 0..12 {
            if random.u8(..4) == 0 {
                tail = try_open(disk, SEVERAL)?.0;
            }
            let batch: Vec<_> =
                (0..random.usize(1..5)).map(|_| vec![random.u8(..); random.usize(..900)]).collect();
            answered.extend(commit(&mut tail, &batch)?);
        }
        Ok(())
    };
    // The loss of power, and nothing else.
    if let Err(error) = run() {
        assert!(error.to_string().contains("the power is gone"), "{error}");
    }
    answered
}

#[test]
fn a_power_loss_at_any_step_keeps_what_was_answered() {
    let mut steps = 0;
    for seed in 0..40 {
        for step in 1.. {
            let disk = MemoryDisk::new();
            create(&disk, LOG).unwrap();
            disk.lose_power_at(step);
            let answered = run_until_power_loss(&disk, &mut fastrand::Rng::with_seed(seed));
            let is_over = disk.list().is_ok();
            let unsynced = match step % 3 {
                0 => Unsynced::Lost,
                1 => Unsynced::Prefix { bytes: fastrand::Rng::with_seed(step).usize(..3000) },
                _ => Unsynced::Sectors { seed: seed * 1000 + step },
            };
            disk.crash(unsynced);

            let at = format!("seed {seed}, step {step}, {unsynced:?}");
            let (mut tail, mut shown, replayed) = try_open(&disk, SEVERAL).expect(&at);
            assert_eq!(replayed.damages, [], "{at}");
            assert_eq!(shown[..answered.len()], answered, "{at}");

            // What was shown and what comes now survives the next loss.
            shown.extend(commit(&mut tail, &payloads(&["after"])).expect(&at));
            disk.crash(Unsynced::Lost);
            let (_, again, replayed) = try_open(&disk, SEVERAL).expect(&at);
            assert_eq!((again, replayed), (shown, Replayed::default()), "{at}");
            steps += 1;
            if is_over {
                break;
            }
        }
    }
    assert!(steps > 1000, "{steps} steps");
}
