//! Finding a process, and finding it again.

use std::{net::UdpSocket, sync::mpsc::channel, time::Duration};

use inkfast_wire::{Endpoint, Error, Net, Remote, Role, Server, Target};
use tokio::{runtime::Runtime, task::JoinSet, time::Instant};

use crate::support::{
    CALLER, CLUSTER, Certs, Echo, IGNORE, LONG, SERVER, STRANGER, assert_answers, frame, remote,
    server, start, start_as, target,
};

/// An address where nobody listens, and nobody else will while the socket is kept.
fn dead_address() -> (UdpSocket, String) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

#[tokio::test]
async fn callers_share_one_connection() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let remote = remote(&certs.client(), &address);
    let mut callers = JoinSet::new();
    for _ in 0..10 {
        let remote = remote.clone();
        callers.spawn(async move { remote.connection().await.unwrap() });
    }
    let connections = callers.join_all().await;
    connections[0].close("one for all");
    assert!(connections.iter().all(|connection| connection.is_closed()));
}

#[tokio::test]
async fn a_lost_connection_is_made_again() {
    let certs = Certs::new("main");
    let (first, address) = start(&certs).await;
    let remote = remote(&certs.client(), &address);
    assert_answers(&remote).await;
    first.close("a restart").await;
    // The address is free now, though a handle is kept here and the tasks have just been told.
    let (_second, _) = restart(&certs, &address).await;
    assert_answers(&remote).await;
}

async fn restart(certs: &Certs, address: &str) -> (Endpoint, String) {
    let identity = certs.identity(Role::Metastore);
    let endpoint = Endpoint::server(&Net::Os, &identity, server(address)).await.unwrap();
    tokio::spawn(inkfast_wire::serve(endpoint.clone(), Echo::default()));
    (endpoint, address.to_string())
}

/// A server in a runtime of its own, which dies without a word when it is dropped.
struct Apart {
    runtime: Option<Runtime>,
    address: String,
}

impl Apart {
    fn start(certs: &Certs, server: Server) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let (sender, receiver) = channel();
        let identity = certs.identity(Role::Metastore);
        runtime.spawn(async move {
            let deadline = Instant::now() + LONG;
            // The port is free as soon as the one who died is all gone.
            let endpoint = loop {
                match Endpoint::server(&Net::Os, &identity, server.clone()).await {
                    Ok(endpoint) => break endpoint,
                    Err(error) => assert!(Instant::now() < deadline, "{error}"),
                }
            };
            sender.send(endpoint.local_addr().to_string()).unwrap();
            inkfast_wire::serve(endpoint, Echo::default()).await;
        });
        let address = receiver.recv_timeout(LONG).unwrap();
        Self { runtime: Some(runtime), address }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

#[tokio::test]
async fn a_peer_that_died_and_came_back_is_noticed_at_once() {
    let certs = Certs::new("main");
    let first = Apart::start(&certs, server("127.0.0.1:0"));
    let address = first.address.clone();
    let remote = remote(&certs.client(), &address);
    let connection = remote.connection().await.unwrap();
    assert_answers(&remote).await;
    drop(first);
    assert!(!connection.is_closed());
    let _second = Apart::start(&certs, server(&address));
    let began = Instant::now();
    let error = connection.request(frame(1, "x"), LONG).await.unwrap_err();
    let why = "the peer restarted and does not know it any more".into();
    assert_eq!(error, Error::Lost { why });
    // Without the reset it would take the whole idle timeout of 6 s.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_answers(&remote).await;
}

#[tokio::test]
async fn another_instance_at_the_old_address_does_not_answer() {
    let certs = Certs::new("main");
    let first = Apart::start(&certs, server("127.0.0.1:0"));
    let address = first.address.clone();
    let meant = Target { instance: Some(SERVER), ..target(&address) };
    let remote = Remote::new(&certs.client(), meant);
    assert_answers(&remote).await;
    drop(first);
    let emptied = Server { instance: STRANGER, reset_key: [6; 64], ..server(&address) };
    let _second = Apart::start(&certs, emptied);
    let connection = remote.connection().await.unwrap();
    connection.close("to save the time until it is noticed");
    let error = remote.request(frame(1, "x"), LONG).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
}

#[tokio::test]
async fn a_silent_peer_is_lost() {
    let certs = Certs::new("main");
    let first = Apart::start(&certs, server("127.0.0.1:0"));
    let address = first.address.clone();
    let connection = remote(&certs.client(), &address).connection().await.unwrap();
    drop(first);
    tokio::time::pause();
    let began = Instant::now();
    let why = "nothing was heard from the peer for too long".into();
    assert_eq!(connection.closed().await, Error::Lost { why });
    assert!(began.elapsed() <= Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_idle_connection_is_kept() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let connection = remote(&certs.client(), &address).connection().await.unwrap();
    let mut stream = connection.open().await.unwrap();
    stream.sender.send(&frame(IGNORE, "")).await.unwrap();
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!connection.is_closed());
    stream.sender.send(&frame(1, "still there")).await.unwrap();
    assert_eq!(stream.receiver.next().await, Ok(Some(frame(1, "still there"))));
}

#[tokio::test(start_paused = true)]
async fn pauses_between_attempts_grow_and_end() {
    let certs = Certs::new("main");
    let (_socket, address) = dead_address();
    let remote = remote(&certs.client(), &address);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        let began = Instant::now();
        let error = remote.connection().await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
        pauses.push(began.elapsed().saturating_sub(Duration::from_secs(2)));
    }
    assert!(pauses[0] < Duration::from_millis(10), "{pauses:?}");
    assert!(pauses[1] <= Duration::from_millis(60), "{pauses:?}");
    assert!(pauses[9] >= Duration::from_millis(250), "{pauses:?}");
    assert!(pauses[9] <= Duration::from_millis(510), "{pauses:?}");
    // A pause is for those who come back at once.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let began = Instant::now();
    remote.connection().await.unwrap_err();
    assert!(began.elapsed() < Duration::from_millis(2010));
}

#[tokio::test]
async fn a_dead_address_does_not_hide_a_living_one() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let (_socket, dead) = dead_address();
    let stranger = Server { instance: STRANGER, ..server("127.0.0.1:0") };
    let (_stranger, strange) = start_as(&certs, stranger, Echo::default()).await;
    let addresses = vec![dead, "no.such.host.invalid:1".into(), strange, address];
    let target = Target { role: Role::Metastore, instance: Some(SERVER), addresses };
    assert_answers(&Remote::new(&certs.client(), target)).await;
}

#[tokio::test]
async fn the_most_telling_error_is_given() {
    let certs = Certs::new("main");
    let client = certs.client();
    let (_server, address) = start(&certs).await;
    let (_socket, dead) = dead_address();
    let target = |addresses: &[&str]| Target {
        role: Role::Metastore,
        instance: Some(STRANGER),
        addresses: addresses.iter().map(ToString::to_string).collect(),
    };
    for (addresses, words) in [
        (&[&dead, "no.such.host.invalid:1", address.as_str()][..], "refused by"),
        (&["127.0.0.1"], "an address is host:port"),
        (&["127.0.0.1:0"], "cannot reach 127.0.0.1:0"),
        (&[], "none is known"),
    ] {
        let error = Remote::new(&client, target(addresses)).connection().await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn names_are_resolved_and_every_address_of_them_is_tried() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let port = address.rsplit(':').next().unwrap();
    assert_answers(&remote(&certs.client(), &format!("localhost:{port}"))).await;
}

#[tokio::test]
async fn an_attempt_outlives_the_caller_that_began_it() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let remote = remote(&certs.client(), &address);
    let late = remote.request(frame(1, "x"), Duration::ZERO).await;
    assert!(matches!(late, Err(Error::TimedOut { .. })), "{late:?}");
    // With a deadline this short none would ever get a connection of its own.
    let deadline = Instant::now() + LONG;
    while remote.request(frame(1, "x"), Duration::from_micros(500)).await.is_err() {
        assert!(Instant::now() < deadline);
    }
}

#[tokio::test]
async fn a_closed_endpoint_calls_nobody() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let client = certs.client();
    client.close("done").await;
    let error = remote(&client, &address).connection().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_port_in_use_is_refused() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let identity = certs.identity(Role::Metastore);
    let error = Endpoint::server(&Net::Os, &identity, server(&address)).await.unwrap_err();
    assert!(error.to_string().contains("another process listens there"), "{error}");
    let error = Endpoint::server(&Net::Os, &identity, server("192.0.2.1:0")).await.unwrap_err();
    assert!(error.to_string().contains("does not have that address"), "{error}");
    let error = Endpoint::server(&Net::Os, &identity, server("nonsense")).await.unwrap_err();
    assert!(matches!(error, Error::Resolve { .. }), "{error:?}");
}

#[tokio::test]
async fn ipv6_works_where_there_is_any() {
    let certs = Certs::new("main");
    if UdpSocket::bind("[::1]:0").is_err() {
        return;
    }
    let (_server, address) = start_as(&certs, server("[::1]:0"), Echo::default()).await;
    let identity = certs.identity(Role::Client);
    let client = Endpoint::client(&Net::Os, &identity, CALLER, Some(CLUSTER)).unwrap();
    assert_answers(&remote(&client, &address)).await;
}
