//! Frames, requests and streams between two that trust each other.

use std::time::Duration;

use bytes::Bytes;
use inkfast_wire::{Error, FRAME_BYTES_MAX, Frame};
use tokio::{sync::mpsc, time::timeout};

use crate::support::{
    COUNT, Certs, Echo, HALF, HOLD, IGNORE, LONG, PANIC, assert_answers, frame, remote, server,
    start, start_as,
};

#[tokio::test]
async fn a_request_is_answered() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let remote = remote(&certs.client(), &address);
    for bytes in [0, 1, 5000, FRAME_BYTES_MAX - 1] {
        let body: Bytes = (0_u8..=250).cycle().take(bytes).collect();
        let sent = Frame { kind: 9, body };
        assert!(remote.request(sent.clone(), LONG).await == Ok(sent), "{bytes} bytes");
    }
}

#[tokio::test]
async fn frames_stream_both_ways_at_once() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let connection = remote(&certs.client(), &address).connection().await.unwrap();
    let mut stream = connection.open().await.unwrap();
    let frames: Vec<Frame> = (0..5000_u32)
        .map(|index| Frame { kind: 1, body: index.to_le_bytes().repeat(300).into() })
        .collect();
    let send = async {
        for batch in frames.chunks(100) {
            let mut encoded: Vec<Bytes> = batch.iter().map(Frame::encode).collect();
            stream.sender.send_encoded(&mut encoded).await.unwrap();
        }
        stream.sender.finish();
    };
    let receive = async {
        let mut buffered = 0;
        let mut received = Vec::new();
        while let Some(frame) = stream.receiver.next().await.unwrap() {
            received.push(frame);
            while let Some(frame) = stream.receiver.next_buffered().unwrap() {
                received.push(frame);
                buffered += 1;
            }
        }
        (received, buffered)
    };
    let ((), (received, buffered)) =
        timeout(LONG, async { tokio::join!(send, receive) }).await.unwrap();
    assert!(received == frames);
    assert!(buffered > 0);
}

#[tokio::test]
async fn one_request_may_have_many_answers() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let connection = remote(&certs.client(), &address).connection().await.unwrap();
    let mut stream = connection.open().await.unwrap();
    stream.sender.set_priority(-1);
    stream.sender.send(&frame(COUNT, "abc")).await.unwrap();
    let mut answers = Vec::new();
    while let Some(frame) = stream.receiver.next().await.unwrap() {
        answers.push(frame.body);
    }
    assert_eq!(answers, ["abc", "bc", "c"]);
    assert_eq!(stream.receiver.next().await, Ok(None));
}

#[tokio::test]
async fn a_frame_over_the_limit_is_not_sent() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let connection = remote(&certs.client(), &address).connection().await.unwrap();
    let mut stream = connection.open().await.unwrap();
    let large = Frame { kind: 1, body: vec![0; FRAME_BYTES_MAX].into() };
    let refused = Err(Error::FrameTooLarge { bytes: FRAME_BYTES_MAX + 1 });
    assert_eq!(stream.sender.send(&large).await, refused);
    // The stream is as good as before.
    stream.sender.send(&frame(1, "small")).await.unwrap();
    assert_eq!(stream.receiver.next().await, Ok(Some(frame(1, "small"))));
}

#[tokio::test]
async fn a_half_frame_at_the_end_is_an_error() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let remote = remote(&certs.client(), &address);
    let error = remote.request(frame(HALF, "longer than half"), LONG).await.unwrap_err();
    assert_eq!(error, Error::Malformed { why: "the stream ended within a frame".into() });
    assert_answers(&remote).await;
}

#[tokio::test]
async fn a_peer_that_does_not_answer_meets_the_deadline() {
    let certs = Certs::new("main");
    let (ends, mut ended) = mpsc::unbounded_channel();
    let echo = Echo { ends: Some(ends), ..Echo::default() };
    let (_server, address) = start_as(&certs, server("127.0.0.1:0"), echo.clone()).await;
    let remote = remote(&certs.client(), &address);
    let connection = remote.connection().await.unwrap();
    let gone = Err(Error::Lost { why: "the peer stopped reading this stream".into() });
    let deadline = Duration::from_millis(50);

    for by_remote in [false, true] {
        let request = frame(HOLD, "anything");
        let answer = if by_remote {
            remote.request(request, deadline).await
        } else {
            connection.request(request, deadline).await
        };
        assert!(matches!(answer, Err(Error::TimedOut { .. })), "{answer:?}");
        echo.go.notify_one();
        assert_eq!(timeout(LONG, ended.recv()).await.unwrap(), Some(gone.clone()));
    }

    let dropped = timeout(deadline, connection.request(frame(HOLD, "anything"), LONG)).await;
    assert!(dropped.is_err());
    echo.go.notify_one();
    assert_eq!(timeout(LONG, ended.recv()).await.unwrap(), Some(gone));
    assert_answers(&remote).await;
}

#[tokio::test]
async fn a_stream_that_is_dropped_unfinished_is_given_up() {
    let certs = Certs::new("main");
    let (ends, mut ended) = mpsc::unbounded_channel();
    let echo = Echo { ends: Some(ends), ..Echo::default() };
    let (_server, address) = start_as(&certs, server("127.0.0.1:0"), echo).await;
    let connection = remote(&certs.client(), &address).connection().await.unwrap();
    let lost = Err(Error::Lost { why: "the peer gave up this stream".into() });
    for (finish, expected) in [(true, Ok(())), (false, lost)] {
        let mut stream = connection.open().await.unwrap();
        stream.sender.send(&frame(1, "x")).await.unwrap();
        assert_eq!(stream.receiver.next().await, Ok(Some(frame(1, "x"))));
        if finish {
            stream.sender.finish();
        }
        drop(stream);
        assert_eq!(timeout(LONG, ended.recv()).await.unwrap(), Some(expected));
    }
}

#[tokio::test]
async fn a_send_that_was_cut_short_spoils_its_stream_only() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let connection = remote(&certs.client(), &address).connection().await.unwrap();
    let mut stream = connection.open().await.unwrap();
    let large = Frame { kind: IGNORE, body: vec![0; FRAME_BYTES_MAX - 1].into() };
    let cut = async {
        loop {
            stream.sender.send(&large).await.unwrap();
        }
    };
    assert!(timeout(Duration::from_millis(50), cut).await.is_err());
    let error = stream.sender.send(&frame(1, "after")).await.unwrap_err();
    assert!(error.to_string().contains("half sent"), "{error}");
    stream.sender.finish();
    drop(stream);
    assert_eq!(connection.request(frame(1, "x"), LONG).await, Ok(frame(1, "x")));
}

#[tokio::test]
async fn a_service_that_panics_hurts_only_its_stream() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let remote = remote(&certs.client(), &address);
    let connection = remote.connection().await.unwrap();
    assert!(remote.request(frame(PANIC, ""), LONG).await.is_err());
    assert!(!connection.is_closed());
    assert_answers(&remote).await;
}

#[tokio::test]
async fn a_connection_that_is_closed_says_so_everywhere() {
    let certs = Certs::new("main");
    let (server, address) = start(&certs).await;
    let remote = remote(&certs.client(), &address);
    let connection = remote.connection().await.unwrap();
    let mut stream = connection.open().await.unwrap();
    stream.sender.send(&frame(IGNORE, "")).await.unwrap();
    server.close("it is evening").await;
    let lost = Error::Lost { why: "the peer closed it: it is evening".into() };
    assert_eq!(stream.receiver.next().await, Err(lost.clone()));
    assert_eq!(connection.closed().await, lost);
    assert!(connection.is_closed());
    assert_eq!(connection.open().await.unwrap_err(), lost);
}
