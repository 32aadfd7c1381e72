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
