use proptest::collection::vec;
use proptest::prelude::any;

use super::proto::{
    ConditionMessage, RevisionMessage, ToldMessage, TransactionMessage, WriteMessage,
};
use super::*;
use crate::limits::{
    KEY_BYTES_MAX, OPERATION_BYTES, TRANSACTION_BYTES_MAX, TRANSACTION_OPERATIONS_MAX,
    VALUE_BYTES_MAX, check_operation,
};
use crate::members::{MemberInfo, MemberStatus};
use crate::state::Told;
use crate::types::{Change, KeyValue, Transaction};

#[test]
fn requests_come_back_as_they_were() {
    let lease = LeaseId::new(u64::MAX);
    let transaction = Transaction::new()
        .put("put", "1")
        .put_leased("leased", Bytes::new(), lease)
        .create("created", vec![0, 255])
        .replace("replaced", Version::new(7), "2")
        .remove("removed", Version::new(0))
        .delete("deleted");
    let operations = [
        Operation::Commit(transaction),
        Operation::Commit(Transaction::new()),
        Operation::NextSequence { name: "numbers".into(), count: 3 },
        Operation::GrantLease { ttl: Duration::from_millis(1234) },
        Operation::EndLease(lease),
    ];
    let change = |operation| Request::Change { request: Uuid::from_u128(5), operation };
    let reads = [
        Request::Get { key: "key".into(), stale: false },
        Request::Get { key: "key".into(), stale: true },
        Request::Scan { scan: Scan::new(""), stale: true },
        Request::Scan {
            scan: Scan { prefix: "a".into(), after: Some(String::new()), limit: 1 },
            stale: false,
        },
        Request::KeepAlive(lease),
        Request::Watch { prefix: "a/".into(), after: Version::new(u64::MAX) },
        Request::More,
        Request::Status,
        Request::AddMember { address: "127.0.0.1:7000".into(), id: None },
        Request::MoveMember { address: "[::1]:7000".into(), id: Some(Uuid::nil()) },
        Request::RemoveMember(Uuid::from_u128(1)),
        Request::TransferLeader(Uuid::max()),
        Request::Backup,
    ];
    for request in operations.map(change).into_iter().chain(reads) {
        assert_eq!(decode_request(&encode_request(request.clone())), Ok(request));
    }
}

#[test]
fn answers_come_back_as_they_were() {
    let entry = |lease| KeyValue {
        key: "key".into(),
        value: "value".into(),
        version: Version::new(9),
        lease,
    };
    let page = Page {
        entries: vec![entry(None), entry(Some(LeaseId::new(0)))],
        more: true,
        revision: Version::new(11),
    };
    let change = |revision, key: &str, lease: Option<Option<LeaseId>>| {
        let (key, revision) = (key.to_string(), Version::new(revision));
        let value = Bytes::from_static(b"value");
        let now = lease.map(|lease| KeyValue { key: key.clone(), value, version: revision, lease });
        Change { revision, key, now }
    };
    let changes = vec![
        change(1, "a", Some(None)),
        change(1, "b", None),
        change(2, "a", Some(Some(LeaseId::new(0)))),
    ];
    let member = |number| MemberInfo {
        id: Uuid::from_u128(number),
        address: format!("127.0.0.1:{number}"),
        voter: number == 1,
    };
    let status = MemberStatus {
        id: Uuid::from_u128(1),
        address: "127.0.0.1:1".into(),
        term: 7,
        leader: Some(Uuid::from_u128(2)),
        log: Some(0),
        applied: None,
        revision: Version::new(3),
        members: vec![member(1), member(2)],
    };
    assert_eq!(status.leader_address(), Some("127.0.0.1:2"));
    let alone = MemberStatus { leader: None, members: Vec::new(), ..status.clone() };
    let answers = [
        Ok(Answer::Status(status)),
        Ok(Answer::Status(alone)),
        Ok(Answer::Piece(Bytes::new())),
        Ok(Answer::Piece(vec![7; PIECE_BYTES_MAX].into())),
        Err(Error::NotLeader { leader: None }),
        Err(Error::NotLeader { leader: Some("127.0.0.1:7000".into()) }),
        Ok(Answer::Told(Told { changes, seen: Version::new(9) })),
        Ok(Answer::Told(Told { changes: Vec::new(), seen: Version::new(0) })),
        Err(Error::Compacted),
        Ok(Answer::Value(None)),
        Ok(Answer::Value(Some(entry(None)))),
        Ok(Answer::Page(page)),
        Ok(Answer::Committed(Version::new(0))),
        Ok(Answer::Sequence(0..u64::MAX)),
        Ok(Answer::Granted(LeaseId::new(3))),
        Ok(Answer::Done),
        Err(Error::Conflict { key: "key".into(), found: None }),
        Err(Error::Conflict { key: "key".into(), found: Some(Version::new(0)) }),
        Err(Error::LeaseNotFound),
        Err(Error::bad_request("why")),
        Err(Error::unavailable("why")),
    ];
    for answer in answers {
        assert_eq!(answer_from_frame(answer_frame(&answer)), Ok(answer));
    }
}

#[test]
fn writes_and_conditions_of_unknown_kinds_are_refused() {
    let (key, number) = ("key".to_string(), 1);
    let refused = |conditions, writes| {
        let body = Some(RequestBody::Commit(TransactionMessage { conditions, writes }));
        let request = id_bytes(Uuid::from_u128(5));
        let message = RequestMessage { body, request, ..RequestMessage::default() };
        let error = decode_request(&Frame::message(KIND_REQUEST, &message)).unwrap_err();
        assert!(error.to_string().contains("newer format"), "{error}");
    };
    refused(vec![ConditionMessage { key: key.clone(), kind: None }], Vec::new());
    refused(Vec::new(), vec![WriteMessage { key: key.clone(), kind: None }]);

    let writes = vec![WriteMessage { key, kind: None }];
    let told = ToldMessage { revisions: vec![RevisionMessage { number, writes }], seen: 1 };
    let message = AnswerMessage { body: Some(AnswerBody::Told(told)) };
    let error = answer_from_frame(Frame::message(KIND_ANSWER, &message)).unwrap_err();
    assert!(error.contains("newer format"), "{error}");
}

#[test]
fn what_the_limits_allow_fits_a_frame() {
    let long = |number: usize| format!("{number:k>KEY_BYTES_MAX$}");
    let rest = TRANSACTION_BYTES_MAX - VALUE_BYTES_MAX - 3 * (KEY_BYTES_MAX + OPERATION_BYTES);
    let large = Transaction::new()
        .replace(long(1), Version::new(u64::MAX), vec![1; VALUE_BYTES_MAX])
        .put_leased(long(2), vec![1; rest], LeaseId::new(u64::MAX));
    let many = (0..TRANSACTION_OPERATIONS_MAX).fold(Transaction::new(), |all, number| {
        all.put_leased(long(number), vec![1; 900], LeaseId::new(u64::MAX))
    });
    for transaction in [large, many] {
        let operation = Operation::Commit(transaction);
        check_operation(&operation).expect("within the limits");
        let frame = encode_request(Request::Change { request: Uuid::max(), operation });
        assert!(frame.body.len() < inkfast_wire::FRAME_BYTES_MAX, "{}", frame.body.len());
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(kind in 0..4u8, body in vec(any::<u8>(), 0..200)) {
        let frame = Frame { kind, body: body.into() };
        let _ = decode_request(&frame);
        let _ = answer_from_frame(frame);
    }
}
