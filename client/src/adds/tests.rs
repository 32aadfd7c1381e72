use inkfast_protocol::{Entry, EntryHeader, LedgerId};

use super::*;
use crate::outbox::Outbox;

/// Begins to add, and gives what the entries are put into.
fn begin(adds: &Adds) -> Outbox {
    let outbox = Outbox::new(1);
    let adder = Adder { open: OpenAdds::default(), hear: Arc::new(|_| ()) };
    adds.add(adder, |bell| outbox.outlet(0, bell));
    outbox
}

fn entry() -> Entry {
    let header = EntryHeader {
        ledger: LedgerId::new(7).unwrap(),
        entry: EntryId::new(0),
        last_add_confirmed: None,
        length: 0,
        written_at_ms: 0,
    };
    Entry::encode(header, b"x")
}

fn push(outbox: &Outbox) {
    outbox.push(&entry(), [0].into_iter().collect(), None).unwrap();
}

fn open(adder: u32) -> Bytes {
    Frame::message(kind::OPEN_ADDS, &OpenAdds { adder, ..OpenAdds::default() }).encode()
}

/// The turn of an adder with its entry.
fn turn(adder: u32) -> Bytes {
    let whose = Frame { kind: kind::ADDER, body: Bytes::copy_from_slice(&encode_adder(adder)) };
    let entry = Frame { kind: kind::ENTRY, body: entry().bytes().clone() };
    [whose.encode(), entry.encode()].concat().into()
}

#[tokio::test]
async fn a_bookie_is_told_of_adders_in_the_order_of_their_numbers() {
    let (state, turns) = (Mutex::default(), Arc::default());
    let adds = Adds(Arc::new(Shared { deadline: Duration::from_secs(1), state, turns }));
    let mut before = Before::default();
    let mut sent = || Bytes::from(adds.0.gather(&mut before).0.concat());
    let [first, second, third] = [(); 3].map(|()| begin(&adds));
    push(&second);
    assert_eq!(sent(), [open(0), open(1), turn(1)].concat());
    push(&first);
    push(&third);
    assert_eq!(sent(), [turn(0), open(2), turn(2)].concat());
}
