//! Peers that send garbage, lie about lengths, or stall.

use std::time::Duration;

use inkfast_wire::{Error, FRAME_BYTES_MAX, Frame};
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    time::{Instant, timeout},
};

use crate::support::{
    Certs, Echo, Hello, LONG, RawFiles, assert_answers, raw_client, raw_closed, raw_connect,
    raw_exchange, remote, server, start, start_as,
};

#[tokio::test]
async fn garbage_datagrams_harm_nothing() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let client = certs.client();
    let before = remote(&client, &address);
    assert_answers(&before).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..3000 {
        let mut datagram = vec![0; random.usize(0..1500)];
        random.fill(&mut datagram);
        // Half of it looks like the beginning of a QUIC connection.
        if round % 2 == 0 && datagram.len() > 6 {
            datagram[..6].copy_from_slice(&[0xc0 | random.u8(..4), 0, 0, 0, 1, 8]);
        }
        socket.send_to(&datagram, &address).await.unwrap();
        if round % 100 == 0 {
            assert_answers(&before).await;
        }
    }
    assert_answers(&before).await;
    assert_answers(&remote(&client, &address)).await;
}

#[tokio::test]
async fn another_protocol_is_refused() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let dir = certs.dir.path();
    let files = RawFiles {
        ca: &dir.join("ca.pem"),
        certificate: &dir.join("client.pem"),
        key: &dir.join("client.key"),
    };
    let endpoint = raw_client(&files, "h3");
    let connecting = endpoint.connect(address.parse().unwrap(), "metastore.main.inkfast").unwrap();
    let error = connecting.await.unwrap_err().to_string();
    assert!(error.contains("error 120"), "{error}");
    assert_answers(&remote(&certs.client(), &address)).await;
}

#[tokio::test]
async fn who_does_not_introduce_itself_is_shown_the_door() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let half = &Frame::message(1, &Hello::good()).encode()[..9];
    tokio::join!(
        assert_shown_the_door(&certs, &address, None),
        assert_shown_the_door(&certs, &address, Some(&[])),
        assert_shown_the_door(&certs, &address, Some(half)),
    );
}

/// Connects, opens a stream if there are bytes for it, and leaves it at that.
async fn assert_shown_the_door(certs: &Certs, address: &str, bytes: Option<&[u8]>) {
    let (_endpoint, connection) = raw_connect(certs, address).await;
    let began = Instant::now();
    let mut stream = connection.open_bi().await.unwrap();
    if let Some(bytes) = bytes {
        stream.0.write_all(bytes).await.unwrap();
    }
    let (code, reason) = raw_closed(&connection).await;
    assert_eq!(code, 1);
    assert!(reason.contains("the handshake"), "{reason}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_is_too_much_is_refused_and_may_come_again() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    // As many as may be in their handshake at a time, and all of them stall.
    let connecting = (0..128).map(|_| raw_connect(&certs, &address));
    let mut stalling = Vec::new();
    for connecting in connecting {
        stalling.push(connecting.await);
    }
    let remote = remote(&certs.client(), &address);
    let error = remote.connection().await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("try again later"), "{error}");
    for (_endpoint, connection) in &stalling {
        connection.closed().await;
    }
    assert_answers(&remote).await;
}

#[tokio::test]
async fn a_malformed_hello_is_refused_with_words() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    for (bytes, words) in [
        (&[0, 0, 0, 0][..], "a frame without a kind"),
        (&[255, 255, 255, 255], "over the limit"),
        (b"GET / HTTP/1.1\r\n\r\n", "over the limit"),
        (&[1, 0, 0, 0, 9], "kind 9"),
        (&[3, 0, 0, 0, 1, 255, 255], "frame of kind 1"),
        (&[3, 0, 0, 0, 1], "within a frame"),
        (&[], "without a frame"),
    ] {
        let (_endpoint, connection) = raw_connect(&certs, &address).await;
        // An empty stream is heard of by its end.
        assert!(raw_exchange(&connection, bytes).await.is_err());
        let (code, reason) = raw_closed(&connection).await;
        assert_eq!(code, 1);
        assert!(reason.contains(words), "{reason}");
    }
}

/// A caller that was let in and knows only QUIC, and how its streams end at the server.
struct Raw {
    connection: quinn::Connection,
    ends: mpsc::UnboundedReceiver<Result<(), Error>>,
    _endpoints: (quinn::Endpoint, inkfast_wire::Endpoint),
}

async fn raw_caller(certs: &Certs) -> Raw {
    let (sender, ends) = mpsc::unbounded_channel();
    let echo = Echo { ends: Some(sender), ..Echo::default() };
    let (server, address) = start_as(certs, server("127.0.0.1:0"), echo).await;
    let (endpoint, connection) = raw_connect(certs, &address).await;
    let hello = Frame::message(1, &Hello::good()).encode();
    raw_exchange(&connection, &hello).await.unwrap();
    Raw { connection, ends, _endpoints: (endpoint, server) }
}

impl Raw {
    async fn ended(&mut self) -> Result<(), Error> {
        timeout(LONG, self.ends.recv()).await.unwrap().unwrap()
    }

    async fn assert_answered(&mut self) {
        let echoed = raw_exchange(&self.connection, &[2, 0, 0, 0, 1, 5]).await.unwrap();
        assert_eq!(echoed, [2, 0, 0, 0, 1, 5]);
        assert_eq!(self.ended().await, Ok(()));
    }
}

#[tokio::test]
async fn a_bad_frame_costs_its_stream_only() {
    let certs = Certs::new("main");
    let mut raw = raw_caller(&certs).await;
    let huge = u32::try_from(FRAME_BYTES_MAX + 1).unwrap().to_le_bytes();
    for (bytes, end) in [
        (&huge[..], Error::FrameTooLarge { bytes: FRAME_BYTES_MAX + 1 }),
        (&[255; 4], Error::FrameTooLarge { bytes: u32::MAX as usize }),
        (&[0; 4], Error::Malformed { why: "a frame without a kind".into() }),
        (&[9, 0, 0, 0, 1, 1], Error::Malformed { why: "the stream ended within a frame".into() }),
    ] {
        assert!(raw_exchange(&raw.connection, bytes).await.is_err());
        assert_eq!(raw.ended().await, Err(end));
        raw.assert_answered().await;
    }
}

#[tokio::test]
async fn a_frame_that_does_not_go_on_costs_its_stream_only() {
    let certs = Certs::new("main");
    let mut raw = raw_caller(&certs).await;
    let (mut sender, _receiver) = raw.connection.open_bi().await.unwrap();
    tokio::time::pause();
    // A frame and a half, then drop by drop.
    sender.write_all(&[2, 0, 0, 0, 1, 5, 99, 0, 0]).await.unwrap();
    let began = Instant::now();
    let drip = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if sender.write_all(&[0]).await.is_err() {
                return;
            }
        }
    };
    drip.await;
    let end = raw.ended().await;
    assert!(matches!(end, Err(Error::TimedOut { .. })), "{end:?}");
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(10) && took < Duration::from_secs(13), "{took:?}");
    raw.assert_answered().await;
}

#[tokio::test]
async fn streams_that_are_opened_and_left_do_not_hinder_others() {
    let certs = Certs::new("main");
    let mut raw = raw_caller(&certs).await;
    let mut left = Vec::new();
    for _ in 0..1000 {
        let mut stream = raw.connection.open_bi().await.unwrap();
        stream.0.write_all(&[9, 0]).await.unwrap();
        left.push(stream);
    }
    raw.assert_answered().await;
    // Neither unidirectional streams nor datagrams are taken.
    let uni = timeout(Duration::from_millis(50), raw.connection.open_uni()).await;
    assert!(uni.is_err());
    assert!(raw.connection.max_datagram_size().is_none());
}
