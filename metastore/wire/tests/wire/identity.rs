//! Certificates and keys on disk.

use std::{fs, os::unix::fs::PermissionsExt};

use inkfast_wire::{Authority, Identity, IdentityError, PeerName, Role};
use tempfile::TempDir;

use crate::support::Certs;

fn why(result: Result<Identity, IdentityError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn an_identity_has_the_names_it_was_issued_for() {
    let dir = TempDir::new().unwrap();
    let authority = Authority::open_or_create(&dir.path().join("made"), "main").unwrap();
    let dir = dir.path().join("made");
    authority.issue(Role::Bookie, Some("b-1")).unwrap();
    authority.issue(Role::Bookie, None).unwrap();
    for (name, expected) in [(Some("b-1"), "b-1"), (None, "bookie")] {
        let identity = Identity::load(&dir, Role::Bookie, name).unwrap();
        let name = PeerName { cluster: "main".into(), role: Role::Bookie, name: expected.into() };
        assert_eq!(identity.name(), &name);
        assert_eq!(name.to_string().parse(), Ok(name));
    }
}

#[test]
fn keys_are_for_their_owner_alone() {
    let certs = Certs::new("main");
    for file in ["ca.key", "client.key"] {
        let metadata = fs::metadata(certs.dir.path().join(file)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{file}");
    }
}

#[test]
fn what_exists_is_kept_and_used() {
    let certs = Certs::new("main");
    let read = |file| fs::read(certs.dir.path().join(file)).unwrap();
    let before = ["ca.pem", "ca.key", "client.pem", "client.key"].map(read);
    let authority = Authority::open_or_create(certs.dir.path(), "main").unwrap();
    authority.issue(Role::Client, None).unwrap();
    assert_eq!(["ca.pem", "ca.key", "client.pem", "client.key"].map(read), before);
    // An authority that was opened again makes identities that go with the old ones.
    authority.issue(Role::Client, Some("late")).unwrap();
    Identity::load(certs.dir.path(), Role::Client, Some("late")).unwrap();
}

#[test]
fn an_authority_is_not_mistaken_for_another() {
    let certs = Certs::new("main");
    let refused = |cluster: &str| {
        Authority::open_or_create(certs.dir.path(), cluster).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refused("other").contains("choose another directory"), "{}", refused("other"));
    let stranger = Certs::new("main");
    fs::copy(stranger.dir.path().join("ca.key"), certs.dir.path().join("ca.key")).unwrap();
    assert!(refused("main").contains("not the key of ca.pem"), "{}", refused("main"));
    fs::remove_file(certs.dir.path().join("ca.key")).unwrap();
    assert!(refused("main").contains("cannot read"), "{}", refused("main"));
}

#[test]
fn names_that_cannot_be_are_refused() {
    let certs = Certs::new("main");
    let authority = Authority::open_or_create(certs.dir.path(), "main").unwrap();
    let long = "x".repeat(64);
    for name in ["", "a.b", "Big", "../up", "-a", "a-", "\u{e9}", &long] {
        assert!(matches!(
            authority.issue(Role::Client, Some(name)),
            Err(IdentityError::Name { .. })
        ));
        assert!(matches!(
            Identity::load(certs.dir.path(), Role::Client, Some(name)),
            Err(IdentityError::Name { .. })
        ));
        let dir = TempDir::new().unwrap();
        assert!(Authority::open_or_create(dir.path(), name).is_err());
    }
    for name in ["client.main.inkfast", "a.client.main.other", "a.king.main.inkfast", ""] {
        assert!(name.parse::<PeerName>().is_err(), "{name}");
    }
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let (certs, stranger) = (Certs::new("main"), Certs::new("main"));
    let (dir, strange) = (certs.dir.path(), stranger.dir.path());
    let load = || Identity::load(dir, Role::Client, None);

    let good = fs::read(dir.join("client.key")).unwrap();
    fs::copy(strange.join("client.key"), dir.join("client.key")).unwrap();
    assert!(why(load()).contains("are certificate, key and ca.pem of one authority"));
    fs::write(dir.join("client.key"), "no key").unwrap();
    assert!(why(load()).contains("client.key cannot be used"));
    fs::write(dir.join("client.key"), good).unwrap();

    fs::copy(strange.join("client.pem"), dir.join("client.pem")).unwrap();
    fs::copy(strange.join("client.key"), dir.join("client.key")).unwrap();
    assert!(why(load()).contains("are certificate, key and ca.pem of one authority"));

    fs::copy(dir.join("bookie.pem"), dir.join("client.pem")).unwrap();
    fs::copy(dir.join("bookie.key"), dir.join("client.key")).unwrap();
    assert!(why(load()).contains("it is for the role bookie, not client"));

    fs::write(dir.join("client.pem"), "").unwrap();
    assert!(why(load()).contains("no PEM certificate"));
    fs::copy(dir.join("ca.pem"), dir.join("client.pem")).unwrap();
    assert!(why(load()).contains("no single"));
    fs::remove_file(dir.join("client.pem")).unwrap();
    assert!(why(load()).contains("made by the authority of the cluster"));
}
