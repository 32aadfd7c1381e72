//! House rules: what no compiler checks and every reader relies on.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The most lines that a source file may have: past it there are two subjects in it.
const LINES_MAX: usize = 500;

/// Each crate with its folder, from the bottom to the top, and the crates below it that it may
/// use.
const LAYERS: &[(&str, &str, &[&str])] = &[
    ("inkfast-wire", "metastore/wire", &[]),
    ("inkfast-protocol", "client/protocol", &[]),
    ("inkfast-metastore", "metastore", &["inkfast-wire"]),
    ("inkfast-metastore-server", "metastore/server", &["inkfast-metastore", "inkfast-wire"]),
    ("inkfast", "client", &["inkfast-metastore", "inkfast-protocol", "inkfast-wire"]),
    (
        "inkfast-bookie",
        "bookie",
        &["inkfast", "inkfast-metastore", "inkfast-protocol", "inkfast-wire"],
    ),
    ("inkfast-cli", "client/cli", ALL_BUT_THE_LEAVES),
    ("inkfast-tests", "tests", ALL_BUT_TESTS),
];

const ALL_BUT_THE_LEAVES: &[&str] = &[
    "inkfast",
    "inkfast-bookie",
    "inkfast-metastore",
    "inkfast-metastore-server",
    "inkfast-protocol",
    "inkfast-wire",
];

const ALL_BUT_TESTS: &[&str] = &[
    "inkfast",
    "inkfast-bookie",
    "inkfast-cli",
    "inkfast-metastore",
    "inkfast-metastore-server",
    "inkfast-protocol",
    "inkfast-wire",
];

#[test]
fn crates_depend_one_way() {
    for (name, folder, may_use) in LAYERS {
        let manifest = read(&root().join(folder).join("Cargo.toml"));
        let manifest: toml::Table = manifest.parse().unwrap();
        assert_eq!(manifest["package"]["name"].as_str(), Some(*name), "{folder}");
        let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
        let tables = kinds.iter().filter_map(|kind| manifest.get(*kind)?.as_table());
        for dependency in tables.flat_map(toml::Table::keys).filter(|d| d.starts_with("inkfast")) {
            assert!(
                may_use.contains(&dependency.as_str()),
                "{folder} must not use {dependency}: it may use {may_use:?}"
            );
        }
    }
}

#[test]
fn every_crate_has_its_layer_and_the_workspace_lints() {
    let manifest: toml::Table = read(&root().join("Cargo.toml")).parse().unwrap();
    let members = manifest["workspace"]["members"].as_array().unwrap();
    let members: Vec<_> = members.iter().map(|member| member.as_str().unwrap()).collect();
    for (_, folder, _) in LAYERS {
        assert!(members.contains(folder), "{folder} is no member of the workspace");
        let manifest: toml::Table = read(&root().join(folder).join("Cargo.toml")).parse().unwrap();
        assert_eq!(manifest["lints"]["workspace"].as_bool(), Some(true), "{folder}");
    }
    assert_eq!(members.len(), LAYERS.len(), "a crate has no layer in this test");
}

#[test]
fn every_dependency_is_listed_once_in_the_workspace() {
    for (_, folder, _) in LAYERS {
        let manifest: toml::Table = read(&root().join(folder).join("Cargo.toml")).parse().unwrap();
        for kind in ["dependencies", "dev-dependencies"] {
            let Some(table) = manifest.get(kind) else { continue };
            for (dependency, from) in table.as_table().unwrap() {
                let inherited = from.get("workspace").and_then(toml::Value::as_bool);
                assert_eq!(inherited, Some(true), "{folder}: {dependency}");
            }
        }
    }
}

#[test]
fn source_files_are_short_plain_and_finished() {
    let mut problems = Vec::new();
    for (path, text) in sources() {
        let lines = text.lines().count();
        if lines > LINES_MAX {
            problems.push(format!("{path}: {lines} lines, and the limit is {LINES_MAX}"));
        }
        for (number, line) in (1..).zip(text.lines()) {
            let at = format!("{path}:{number}");
            if !line.is_ascii() {
                problems.push(format!("{at}: not ASCII"));
            }
            // Put together, so that this file does not break its own rule.
            if line.contains(concat!("TO", "DO")) || line.contains(concat!("FIX", "ME")) {
                problems.push(format!("{at}: unfinished"));
            }
            if line.contains(concat!("#[", "allow(")) {
                problems.push(format!("{at}: expect the lint, with a reason"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn only_the_client_passes_on_what_is_not_its_own() {
    for (path, text) in sources() {
        for line in text.lines().filter(|line| line.trim_start().starts_with("pub use inkfast")) {
            let of_the_protocol = line.trim_start().starts_with("pub use inkfast_protocol::");
            assert!(path == "client/src/lib.rs" && of_the_protocol, "{path}: {line}");
        }
    }
}

#[test]
fn the_top_level_is_as_agreed() {
    let agreed = [
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "bookie",
        "client",
        "metastore",
        "scripts",
        "target",
        "tests",
    ];
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name.starts_with('.') || agreed.contains(&name.as_str()), "{name}");
    }
}

/// Every Rust file of the project, by its path from the root.
fn sources() -> BTreeMap<String, String> {
    let mut sources = BTreeMap::new();
    for folder in ["bookie", "client", "metastore", "tests"] {
        collect(&root().join(folder), &mut sources);
    }
    assert!(sources.len() > 20, "the sources were not found");
    sources
}

fn collect(folder: &Path, sources: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            sources.insert(name, read(&path));
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is in the root").to_owned()
}
