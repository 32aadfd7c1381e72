//! What is read together, from memory and from the disk.

use proptest::prelude::*;

use super::*;

/// So little that most is read from the disk.
const RECENT_BYTES: usize = 64 << 10;

/// Writes batches of so many bytes each, which the reader keeps in memory if it is told to.
fn write(tail: &mut Tail, batches: &[Vec<usize>], keeper: Option<&Reader>) -> Records {
    let mut all = Records::new();
    for (number, sizes) in batches.iter().enumerate() {
        let byte = u8::try_from(number % 256).unwrap();
        let appends = sizes.iter().map(|size| append(&vec![byte; *size], vec![byte; *size]));
        let batch = written(tail.commit(appends.collect())).unwrap();
        if let Some(reader) = keeper {
            reader.keep(batch.mark, batch.bytes);
        }
        let written = batch.appends.into_iter().map(|durable| (durable.places[0], durable.token));
        all.extend(written);
    }
    all
}

fn reader(disk: &MemoryDisk) -> Reader {
    Reader::new(Arc::new(disk.clone()), LOG, Executor::Inline, RECENT_BYTES)
}

fn places(records: &Records) -> Vec<Place> {
    records.iter().map(|(place, _)| *place).collect()
}

async fn assert_read(reader: &Reader, records: &Records) {
    let read = reader.read_many(places(records), 0).await;
    assert_eq!(read.len(), records.len());
    for (read, (_, payload)) in read.into_iter().zip(records) {
        assert_eq!(read.unwrap(), payload);
    }
}

#[tokio::test]
async fn what_was_just_written_is_read_from_memory_which_is_bounded() {
    let (disk, mut tail) = new_log();
    let reader = reader(&disk);
    let all = write(&mut tail, &vec![vec![1000, 1, 2000]; 50], Some(&reader));
    disk.fail_reads(&name(1), true);
    let mut in_memory = Records::new();
    for (place, payload) in all.iter().rev() {
        let Ok(read) = reader.read(*place).await else { break };
        assert_eq!(read, payload);
        in_memory.push((*place, payload.clone()));
    }
    // A batch takes a block more than its own.
    assert_eq!(in_memory.len(), 3 * RECENT_BYTES / (2 * BLOCK as usize));
    assert_read(&reader, &in_memory).await;
    disk.fail_reads(&name(1), false);
    assert_read(&reader, &all).await;
}

#[tokio::test]
async fn what_is_read_takes_no_memory_but_its_own() {
    let (disk, mut tail) = new_log();
    let reader = reader(&disk);
    let all = write(&mut tail, &[vec![10, 5000, 10], vec![10]], Some(&reader));
    let without = self::reader(&disk);
    for reader in [reader, without] {
        let wanted = [all[0].0, all[2].0, all[3].0];
        let read = reader.read_many(wanted.to_vec(), 0).await;
        let addresses: Vec<_> =
            read.into_iter().map(|read| read.unwrap().as_ptr().addr()).collect();
        assert_eq!(addresses[1..], [addresses[0] + 10, addresses[0] + 20]);
    }
}

#[tokio::test]
async fn neighbours_are_read_with_one_access() {
    let (disk, mut tail) = new_log();
    let all = write(&mut tail, &[vec![100; 50], vec![30_000, 100, 3_000, 100]], None);
    let reader = reader(&disk);
    // Its header is read once.
    reader.read(all[0].0).await.unwrap();
    let before = disk.reads();
    assert_read(&reader, &all[..50].to_vec()).await;
    assert_eq!(disk.reads() - before, 1);
    // Not over a wide gap, and not back.
    let some = [0, 51, 53, 49].map(|index| all[index].clone()).to_vec();
    assert_read(&reader, &some).await;
    assert_eq!(disk.reads() - before, 4);

    let large = write(&mut tail, &[vec![400 << 10; 5]], None);
    assert_read(&reader, &large).await;
    assert_eq!(disk.reads() - before, 7);
}

#[tokio::test]
async fn a_bad_record_spoils_no_other() {
    let (disk, mut tail) = new_log();
    let all = write(&mut tail, &[vec![100; 9]], None);
    let bad = all[4].0;
    disk.flip_bit(&name(1), bad.offset as usize + 30, 0);
    let read = reader(&disk).read_many(places(&all), 0).await;
    for (read, (place, payload)) in read.into_iter().zip(&all) {
        match read {
            Ok(read) => assert_eq!(read, payload),
            Err(error) => {
                assert!(matches!(error, ReadError::Corrupt { offset, .. } if offset == bad.offset));
                assert_eq!(*place, bad);
            }
        }
    }
    // Nor does one that the file ends before.
    let end = all[8].0.offset;
    disk.open(&name(1)).unwrap().set_len(end.into()).unwrap();
    let read = reader(&disk).read_many(places(&all), 0).await;
    let bad: Vec<_> = (0..9).filter(|index| read[*index].is_err()).collect();
    assert_eq!(bad, [4, 8]);
    assert!(matches!(read[8], Err(ReadError::Corrupt { .. })));
}

#[tokio::test]
async fn what_the_cache_has_wrong_is_read_from_the_disk() {
    let (disk, mut tail) = new_log();
    let all = write(&mut tail, &[vec![100; 9]], None);
    let reader = reader(&disk);
    reader.read(all[0].0).await.unwrap();
    for victim in [0, 3, 8] {
        let (place, _) = all[victim];
        disk.spoil_cache(&name(1), place.offset as usize + 9..place.offset as usize + 40);
        assert_read(&reader, &all).await;
    }
}

#[tokio::test]
async fn a_disk_that_fails_and_a_file_that_is_gone_are_told_from_corruption() {
    let (disk, mut tail) = new_log();
    let all = write(&mut tail, &[vec![100; 2]], None);
    let [before, after] = [reader(&disk), reader(&disk)];
    before.read(all[0].0).await.unwrap();
    disk.fail_reads(&name(1), true);
    for reader in [&before, &after] {
        for read in reader.read_many(places(&all), 0).await {
            assert!(matches!(read, Err(ReadError::Log(LogError::Io { .. }))), "{read:?}");
        }
    }
    disk.fail_reads(&name(1), false);
    disk.remove(&name(1)).unwrap();
    let read = after.read(all[0].0).await;
    assert!(matches!(read, Err(ReadError::Gone { .. })), "{read:?}");
}

#[tokio::test]
async fn much_is_read_past_the_cache() {
    let (disk, mut tail) = new_log();
    let all = write(&mut tail, &[vec![1000; 100]], None);
    let reader = reader(&disk);
    reader.read(all[0].0).await.unwrap();
    let (begin, end) = (all[0].0.offset as usize, end(all[99].0) as usize);
    disk.spoil_cache(&name(1), begin..end);
    let before = disk.reads();
    // It begins and ends within blocks.
    assert_read(&reader, &all[7..92].to_vec()).await;
    assert_eq!(disk.reads() - before, 1);
    // Little is read from the cache, and past it only because that is wrong.
    disk.spoil_cache(&name(1), begin..end);
    assert_read(&reader, &all[..1].to_vec()).await;
    assert_eq!(disk.reads() - before, 3);
    // What was read into the same memory before is not taken for what is there now.
    assert_read(&reader, &all).await;
    disk.open(&name(1)).unwrap().set_len(all[50].0.offset.into()).unwrap();
    let read = reader.read_many(places(&all), 0).await;
    assert!(read.iter().enumerate().all(|(index, read)| read.is_ok() == (index < 50)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_is_asked_for_is_read(
        batches in prop::collection::vec(prop::collection::vec(0_usize..9000, 1..8), 1..20),
        wanted: Vec<prop::sample::Index>,
        keep: bool,
    ) {
        let disk = MemoryDisk::new();
        create(&disk, LOG).unwrap();
        let (mut tail, ..) = try_open(&disk, SEVERAL).unwrap();
        let reader = reader(&disk);
        let all = write(&mut tail, &batches, keep.then_some(&reader));
        let wanted: Records = wanted.iter().map(|index| index.get(&all).clone()).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            assert_read(&reader, &all).await;
            assert_read(&reader, &wanted).await;
        });
    }
}
