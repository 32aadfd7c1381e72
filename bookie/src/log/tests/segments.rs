//! What is read of a log that is known in part, and what becomes of dropped segments.

use super::*;

/// What is to be known of a log that ends here.
fn known(tail: &Tail) -> Known {
    Known { mark: tail.mark(), segments: tail.segments().clone() }
}

fn open_known(disk: &MemoryDisk, known: &Known) -> (Tail, Vec<Vec<u8>>, Replayed) {
    let mut shown = Vec::new();
    let mut visit = |what: Shown<'_>| {
        if let Shown::Record(_, _, payload) = what {
            shown.push(payload.to_vec());
        }
        Ok(())
    };
    let (tail, replayed) =
        open(Arc::new(disk.clone()), settings(SMALL), Some(known), &mut visit).unwrap();
    (tail, shown, replayed)
}

#[test]
fn only_what_is_behind_the_mark_is_read() {
    let disk = MemoryDisk::new();
    create(&disk, LOG).unwrap();
    let (mut tail, ..) = try_open(&disk, SEVERAL).unwrap();
    let (mut all, mut marks) = (Vec::new(), Vec::new());
    for number in 0..12 {
        all.extend(commit(&mut tail, &payloads(&[&number.to_string(), "b"])).unwrap());
        marks.push((known(&tail), all.len()));
    }
    assert!(tail.segments.len() > 2);
    for (known, count) in marks {
        let disk = disk.copy();
        // Nothing before it is looked at.
        for (place, _) in &all[..count] {
            disk.flip_bit(&place.segment.to_string(), place.offset as usize, 1);
        }
        let (mut tail, shown, replayed) = open_known(&disk, &known);
        let rest: Vec<_> = all[count..].iter().map(|(_, payload)| payload.clone()).collect();
        assert_eq!((shown, replayed), (rest, Replayed::default()), "{known:?}");
        commit(&mut tail, &payloads(&["more"])).unwrap();
        assert_eq!(open_known(&disk, &known).1.last().unwrap(), b"more");
        let first = SegmentNumber(1);
        if first < known.mark.segment {
            disk.remove(&first.to_string()).unwrap();
            let missing = Damage::Missing { first, last: first };
            assert_eq!(open_known(&disk, &known).2.damages, [missing]);
        }
    }
}

fn dropping(number: u32) -> Append<Vec<u8>> {
    Append::dropping(SegmentNumber(number), Vec::new())
}

#[test]
fn a_dropped_segment_becomes_another_and_nothing_of_it_comes_back() {
    let (disk, mut all) = three_segments();
    let (mut tail, ..) = try_open(&disk, SMALL).unwrap();
    let before = known(&{
        all.extend(commit(&mut tail, &payloads(&["four"])).unwrap());
        tail
    });
    for known in [None, Some(&before)] {
        let disk = disk.copy();
        let (mut tail, ..) = try_open(&disk, SMALL).unwrap();
        written(tail.commit(vec![dropping(2)])).unwrap();
        // The process ends before the file goes: the next start does it.
        disk.crash(Unsynced::Lost);
        let (mut tail, replayed) =
            open(Arc::new(disk.clone()), settings(SMALL), known, &mut |_| Ok(())).unwrap();
        assert_eq!(replayed, Replayed::default());
        let segments: Vec<u32> = tail.segments().keys().map(|number| number.0).collect();
        assert_eq!(segments, [1, 3, 4, 5]);
        let spare = format!("spare-{}", name(2));
        assert!(disk.list().unwrap().contains(&spare));
        let new = commit(&mut tail, &payloads(&["in the old file"])).unwrap();
        assert_eq!(new[0].0.segment, SegmentNumber(6));
        assert!(!disk.list().unwrap().contains(&spare));
        disk.crash(Unsynced::Lost);
        let (_, shown, replayed) = try_open(&disk, SMALL).unwrap();
        assert_eq!(replayed, Replayed::default());
        assert_eq!(shown, [&all[..1], &all[2..], &new].concat());
    }
}

#[test]
fn a_drop_is_as_durable_as_any_record() {
    let (disk, all) = three_segments();
    let (mut tail, ..) = try_open(&disk, SMALL).unwrap();
    disk.fail_next_sync();
    written(tail.commit(vec![dropping(2)])).unwrap_err();
    disk.crash(Unsynced::Lost);
    assert_eq!(try_open(&disk, SMALL).unwrap().1, all);
}

/// Segments of different lengths, one of which is dropped.
#[test]
fn each_segment_has_its_own_end_whatever_was_dropped_behind_it() {
    let disk = MemoryDisk::new();
    create(&disk, LOG).unwrap();
    let (mut tail, ..) = try_open(&disk, SMALL).unwrap();
    let mut all = Vec::new();
    for length in [9000, 100, 5000, 20_000, 100] {
        all.push(commit(&mut tail, &[vec![1; length]]).unwrap().remove(0));
    }
    for dropped in 2..=4 {
        let disk = disk.copy();
        let (mut tail, ..) = try_open(&disk, SMALL).unwrap();
        written(tail.commit(vec![dropping(dropped)])).unwrap();
        // Its file goes, and another header is made after that.
        drop(try_open(&disk, SMALL).unwrap());
        let (mut tail, ..) = try_open(&disk, SMALL).unwrap();
        let more = commit(&mut tail, &payloads(&["more"])).unwrap();
        let (_, shown, replayed) = try_open(&disk, SMALL).unwrap();
        assert_eq!(replayed, Replayed::default(), "without {dropped}");
        let left = all.iter().filter(|(place, _)| place.segment.0 != dropped);
        assert_eq!(shown, left.cloned().chain(more).collect::<Vec<_>>());
    }
}

#[test]
fn a_number_is_not_used_again_if_its_file_is_lost() {
    let (disk, all) = three_segments();
    let (tail, ..) = try_open(&disk, SMALL).unwrap();
    let known = known(&tail);
    disk.remove(&name(3)).unwrap();
    let third = SegmentNumber(3);
    let missing = [Damage::Missing { first: third, last: third }];
    let (mut tail, shown, replayed) = open_known(&disk, &known);
    assert_eq!((shown, &replayed.damages[..]), (vec![], &missing[..]));
    let more = commit(&mut tail, &payloads(&["more"])).unwrap();
    assert_eq!(more[0].0.segment, SegmentNumber(4));
    for known in [Some(&known), None] {
        let (_, replayed) =
            open(Arc::new(disk.clone()), settings(SMALL), known, &mut |_| Ok(())).unwrap();
        assert_eq!(replayed.damages, missing);
    }
    let (_, shown, _) = try_open(&disk, SMALL).unwrap();
    assert_eq!(shown, [&all[..2], &more[..]].concat());
}
