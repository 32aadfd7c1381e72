//! Who talks to whom, and who is refused.

use std::fs;

use inkfast_wire::{Endpoint, Error, Frame, Net, PROTOCOL_VERSIONS, Remote, Role, Server, Target};
use prost::Message;
use uuid::Uuid;

use crate::support::{
    CALLER, CLUSTER, Certs, Echo, Hello, LONG, RawFiles, SERVER, STRANGER, WHO, Welcome,
    assert_answers, frame, raw_client, raw_closed, raw_connect, raw_exchange, raw_server, remote,
    server, start, start_as, target,
};

async fn refused(remote: &Remote) -> Error {
    remote.connection().await.unwrap_err()
}

fn assert_says(error: &Error, words: &str) {
    assert!(error.to_string().contains(words), "{error}");
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let identity = certs.identity(Role::Client);
    let client = Endpoint::client(&Net::Os, &identity, CALLER, None).unwrap();
    assert_eq!(client.cluster(), None);
    let connection = remote(&client, &address).connection().await.unwrap();
    let peer = connection.peer();
    assert_eq!(peer.name.to_string(), "metastore.metastore.main.inkfast");
    assert_eq!((peer.instance, peer.version), (SERVER, *PROTOCOL_VERSIONS.end()));
    assert_eq!(client.cluster(), Some(CLUSTER));
    let answer = connection.request(frame(WHO, ""), LONG).await.unwrap();
    assert_eq!(answer.body, format!("client.client.main.inkfast {CALLER}"));
}

#[tokio::test]
async fn a_server_calls_others_too() {
    let certs = Certs::new("main");
    let roles = &[Role::Metastore];
    let (_server, address) =
        start_as(&certs, Server { roles, ..server("127.0.0.1:0") }, Echo::default()).await;
    let (other, _) = start(&certs).await;
    assert_answers(&remote(&other, &address)).await;
}

#[tokio::test]
async fn a_caller_refuses_a_server_of_another_authority() {
    let (certs, stranger) = (Certs::new("main"), Certs::new("main"));
    let (_server, address) = start(&stranger).await;
    let error = refused(&remote(&certs.client(), &address)).await;
    assert!(matches!(error, Error::WrongPeer { .. }), "{error:?}");
    assert_says(&error, "is it of this cluster's authority");
}

#[tokio::test]
async fn a_server_refuses_a_caller_of_another_authority() {
    let (certs, stranger) = (Certs::new("main"), Certs::new("main"));
    let (_server, address) = start(&certs).await;
    let files = RawFiles {
        ca: &certs.dir.path().join("ca.pem"),
        certificate: &stranger.dir.path().join("client.pem"),
        key: &stranger.dir.path().join("client.key"),
    };
    let error = raw_refusal(&files, &address).await;
    assert!(error.contains("UnknownIssuer") || error.contains("BadSignature"), "{error}");
    assert_answers(&remote(&certs.client(), &address)).await;
}

/// Connects with certificates that will not do, and gives the peer's words.
async fn raw_refusal(files: &RawFiles<'_>, address: &str) -> String {
    let endpoint = raw_client(files, "inkfast");
    let connecting = endpoint.connect(address.parse().unwrap(), "metastore.main.inkfast").unwrap();
    match connecting.await {
        Err(error) => error.to_string(),
        Ok(connection) => {
            let hello = Frame::message(1, &Hello::good()).encode();
            assert!(raw_exchange(&connection, &hello).await.is_err());
            connection.closed().await.to_string()
        }
    }
}

/// Makes a certificate with the cluster's own authority that names another cluster.
fn forge(certs: &Certs, names: [&str; 2]) {
    let dir = certs.dir.path();
    let key = fs::read_to_string(dir.join("ca.key")).unwrap();
    let mut authority = rcgen::CertificateParams::default();
    authority.distinguished_name = rcgen::DistinguishedName::new();
    authority.distinguished_name.push(rcgen::DnType::CommonName, "ca.main.inkfast");
    let issuer = rcgen::Issuer::new(authority, rcgen::KeyPair::from_pem(&key).unwrap());
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let params = rcgen::CertificateParams::new(names.map(str::to_string)).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    fs::write(dir.join("forged.pem"), certificate.pem()).unwrap();
    fs::write(dir.join("forged.key"), key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn names_in_certificates_decide() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let dir = certs.dir.path();
    let files = RawFiles {
        ca: &dir.join("ca.pem"),
        certificate: &dir.join("forged.pem"),
        key: &dir.join("forged.key"),
    };
    for (names, words) in [
        (["client.main.inkfast", "a.client.other.inkfast"], "is not of the cluster main"),
        (["bookie.main.inkfast", "a.bookie.main.inkfast"], "the role bookie is not let in"),
        (["client.main.inkfast", "a.b.client.main.inkfast"], "no single"),
        (["a.admin.main.inkfast", "a.client.main.inkfast"], "no single"),
    ] {
        forge(&certs, names);
        let error = raw_refusal(&files, &address).await;
        assert!(error.contains(words), "{error}");
    }
    // The forger's certificates are as good as any: only the names were wrong.
    forge(&certs, ["client.main.inkfast", "a.client.main.inkfast"]);
    let endpoint = raw_client(&files, "inkfast");
    let connecting = endpoint.connect(address.parse().unwrap(), "metastore.main.inkfast").unwrap();
    let hello = Frame::message(1, &Hello::good()).encode();
    assert!(raw_exchange(&connecting.await.unwrap(), &hello).await.is_ok());
}

#[tokio::test]
async fn a_server_of_another_cluster_name_is_refused() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let other = Certs::new("other");
    // The other cluster trusts this authority as well, so that the name alone is wrong.
    fs::copy(certs.dir.path().join("ca.pem"), other.dir.path().join("main.pem")).unwrap();
    let files = RawFiles {
        ca: &other.dir.path().join("main.pem"),
        certificate: &other.dir.path().join("client.pem"),
        key: &other.dir.path().join("client.key"),
    };
    let endpoint = raw_client(&files, "inkfast");
    let connecting = endpoint.connect(address.parse().unwrap(), "metastore.other.inkfast").unwrap();
    let error = connecting.await.unwrap_err().to_string();
    assert!(error.contains("not valid for name"), "{error}");
}

#[tokio::test]
async fn roles_are_kept_apart() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let target = Target { role: Role::Bookie, ..target(&address) };
    let error = refused(&Remote::new(&certs.client(), target)).await;
    assert!(matches!(error, Error::WrongPeer { .. }), "{error:?}");

    let bookie = certs.identity(Role::Bookie);
    let bookie = Endpoint::client(&Net::Os, &bookie, CALLER, None).unwrap();
    let error = refused(&remote(&bookie, &address)).await;
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert_says(&error, "the role bookie is not let in by a metastore");
    assert_eq!(bookie.cluster(), None);
}

#[tokio::test]
async fn a_caller_of_another_cluster_is_refused() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let (_other, other_address) =
        start_as(&certs, Server { cluster: STRANGER, ..server("127.0.0.1:0") }, Echo::default())
            .await;
    let identity = certs.identity(Role::Client);
    let client = Endpoint::client(&Net::Os, &identity, CALLER, None).unwrap();
    // Nothing is known yet, so the first peer says which cluster it is.
    assert_answers(&remote(&client, &address)).await;
    let error = refused(&remote(&client, &other_address)).await;
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert_says(&error, &format!("belongs to the cluster {CLUSTER}, not {STRANGER}"));
}

#[tokio::test]
async fn only_the_instance_that_is_meant_answers() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let client = certs.client();
    let meant = |instance| Target { instance: Some(instance), ..target(&address) };
    assert_answers(&Remote::new(&client, meant(SERVER))).await;
    let error = refused(&Remote::new(&client, meant(STRANGER))).await;
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert_says(&error, &format!("this is the instance {SERVER}, not {STRANGER}"));
}

#[tokio::test]
async fn a_hello_that_will_not_do_is_refused_with_words() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    for (hello, words) in [
        (Hello { versions_min: 2, versions_max: 9, ..Hello::good() }, "no common version"),
        (Hello { versions_min: 0, versions_max: 0, ..Hello::good() }, "no common version"),
        (Hello { versions_min: 9, versions_max: 1, ..Hello::good() }, "no common version"),
        (Hello { instance: vec![1; 15], ..Hello::good() }, "an id of 15 bytes"),
        (Hello { cluster: Some(vec![]), ..Hello::good() }, "an id of 0 bytes"),
        (Hello { wanted: Some(vec![0; 17]), ..Hello::good() }, "an id of 17 bytes"),
    ] {
        let (_endpoint, connection) = raw_connect(&certs, &address).await;
        assert!(raw_exchange(&connection, &Frame::message(1, &hello).encode()).await.is_err());
        let (code, reason) = raw_closed(&connection).await;
        assert_eq!(code, 1);
        assert!(reason.contains(words), "{reason}");
    }
}

#[tokio::test]
async fn the_handshake_is_as_documented() {
    let certs = Certs::new("main");
    let (_server, address) = start(&certs).await;
    let (_endpoint, connection) = raw_connect(&certs, &address).await;
    let hello = Hello { versions_max: 1000, cluster: None, ..Hello::good() };
    let answer = raw_exchange(&connection, &Frame::message(1, &hello).encode()).await.unwrap();
    let welcome = Welcome {
        version: 1,
        cluster: CLUSTER.into_bytes().to_vec(),
        instance: SERVER.into_bytes().to_vec(),
    };
    assert_eq!(answer, Frame::message(2, &welcome).encode());
    let echoed = raw_exchange(&connection, &[3, 0, 0, 0, 1, b'h', b'i']).await.unwrap();
    assert_eq!(echoed, [3, 0, 0, 0, 1, b'h', b'i']);
}

/// Answers one caller with the given bytes; gives how the caller closed the connection.
async fn answer_once(server: &quinn::Endpoint, welcome: &[u8]) -> (u64, String) {
    let connection = server.accept().await.unwrap().await.unwrap();
    let (mut sender, mut receiver) = connection.accept_bi().await.unwrap();
    let hello = receiver.read_to_end(1000).await.unwrap();
    Hello::decode(&hello[5..]).unwrap();
    sender.write_all(welcome).await.unwrap();
    sender.finish().unwrap();
    raw_closed(&connection).await
}

#[tokio::test]
async fn a_caller_checks_the_welcome() {
    let certs = Certs::new("main");
    let server = raw_server(&certs);
    let address = server.local_addr().unwrap().to_string();
    let client = certs.client();
    let welcome = |version, cluster: Uuid, instance: Uuid| Welcome {
        version,
        cluster: cluster.into_bytes().to_vec(),
        instance: instance.into_bytes().to_vec(),
    };
    for (welcome, words) in [
        (welcome(2, CLUSTER, SERVER), "version 2"),
        (welcome(1, STRANGER, SERVER), "belongs to the cluster"),
        (welcome(1, CLUSTER, STRANGER), "it is the instance"),
        (Welcome { instance: vec![], ..welcome(1, CLUSTER, SERVER) }, "an id of 0 bytes"),
    ] {
        let target = Target { instance: Some(SERVER), ..target(&address) };
        let remote = Remote::new(&client, target);
        let bytes = Frame::message(2, &welcome).encode();
        let (error, (code, reason)) = tokio::join!(refused(&remote), answer_once(&server, &bytes));
        assert!(matches!(error, Error::WrongPeer { .. }), "{error:?}");
        assert_says(&error, words);
        assert_eq!(code, 1);
        assert!(reason.contains(words), "{reason}");
    }
    for (bytes, words) in [
        (&[1, 0, 0, 0, 77][..], "a handshake with a frame of kind 77"),
        (&[], "a handshake without a frame"),
        (&[255, 255, 255, 255, 2], "over the limit"),
        (&[3, 0, 0, 0, 2, 255, 255], "malformed"),
    ] {
        let remote = remote(&client, &address);
        let (error, _) = tokio::join!(refused(&remote), answer_once(&server, bytes));
        assert_says(&error, words);
    }
}
