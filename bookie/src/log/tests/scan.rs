//! Segments that are looked through while the log is in use.

use super::*;

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Record(Place, Vec<u8>),
    Damage(u32, u32),
}

/// Looks through a segment in steps of so many bytes.
fn scan(disk: &MemoryDisk, number: SegmentNumber, end: u32, step: u32) -> Vec<Seen> {
    let reader = Reader::new(Arc::new(disk.clone()), LOG, Executor::Inline, 0);
    let (mut seen, mut from) = (Vec::new(), Some(0));
    while let Some(offset) = from {
        let before = seen.len();
        let mut visit = |found: Found<'_>| {
            seen.push(match found {
                Found::Record(place, _, payload) => Seen::Record(place, payload.to_vec()),
                Found::Damage { offset, bytes } => Seen::Damage(offset, bytes),
            });
        };
        from = reader.scan(number, (offset, end), step, &mut visit).unwrap();
        assert!(seen.len() > before || end == START, "a step that finds nothing");
    }
    seen
}

#[test]
fn a_scan_finds_every_record_or_says_what_is_damaged() {
    let (disk, mut tail) = new_log();
    let mut all = Vec::new();
    for number in 0..6 {
        let some = payloads(&[&number.to_string(), "b", &"c".repeat(5000)]);
        all.extend(commit(&mut tail, &some).unwrap());
    }
    let first = SegmentNumber::FIRST;
    let end = tail.segments[&first];
    let records: Vec<_> = all.into_iter().map(|(place, it)| Seen::Record(place, it)).collect();
    for step in [1, 6000, u32::MAX] {
        assert_eq!(scan(&disk, first, end, step), records, "in steps of {step}");
    }
    // Nothing of what follows the end is looked at.
    let Seen::Record(last, _) = records[records.len() - 1] else { unreachable!() };
    assert_eq!(scan(&disk, first, last.offset, 1), records[..records.len() - 1]);

    for bad in 0..records.len() {
        let disk = disk.copy();
        let Seen::Record(place, _) = records[bad] else { unreachable!() };
        disk.flip_bit(&first.to_string(), place.offset as usize + record::HEADER_BYTES, 3);
        let next = match records.get(bad + 1) {
            Some(Seen::Record(place, _)) => place.offset,
            _ => end,
        };
        for step in [1, u32::MAX] {
            let seen = scan(&disk, first, end, step);
            assert_eq!(seen[..bad], records[..bad]);
            assert_eq!(seen[bad], Seen::Damage(place.offset, next - place.offset));
            assert_eq!(seen[bad + 1..], records[bad + 1..]);
        }
    }

    let cut = disk.copy();
    cut.open(&first.to_string()).unwrap().set_len(u64::from(last.offset) + 7).unwrap();
    let damage = Seen::Damage(last.offset, end - last.offset);
    assert_eq!(scan(&cut, first, end, 1).last(), Some(&damage), "of a file that was cut");
    disk.flip_bit(&first.to_string(), 30, 0);
    assert_eq!(scan(&disk, first, end, 1), [Seen::Damage(0, end)], "without its header");
}

#[test]
fn a_scan_finds_records_of_all_sizes_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(OsDisk::open(dir.path()).unwrap());
    create(&*disk, LOG).unwrap();
    let (mut tail, _) =
        open(disk.clone(), settings(SEGMENT_BYTES_MAX), None, &mut |_| Ok(())).unwrap();
    let mut all = Vec::new();
    for bytes in [1, 700_000, PAYLOAD_BYTES_MAX, 5000, 400_000, PAYLOAD_BYTES_MAX - 1, 0] {
        let byte = u8::try_from(bytes % 251).unwrap();
        let some = [vec![byte; 3000], vec![byte; bytes], vec![byte; 10]];
        all.extend(commit(&mut tail, &some).unwrap());
    }
    let end = tail.segments[&SegmentNumber::FIRST];
    // As a log that was torn may end.
    let unaligned = end - 8;
    disk.open(&name(1)).unwrap().set_len(u64::from(unaligned)).unwrap();
    for (step, end) in [(1, unaligned), (50_000, unaligned), (1 << 20, unaligned), (u32::MAX, end)]
    {
        let reader = Reader::new(disk.clone(), LOG, Executor::Inline, 0);
        let (mut seen, mut from) = (Vec::new(), Some(0));
        while let Some(offset) = from {
            let mut visit = |found: Found<'_>| {
                let Found::Record(place, _, payload) = found else { panic!("{found:?}") };
                seen.push((place, payload.to_vec()));
            };
            from = reader.scan(SegmentNumber::FIRST, (offset, end), step, &mut visit).unwrap();
        }
        assert!(seen == all, "in steps of {step}");
    }
}
