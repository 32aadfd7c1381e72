//! Settings from TOML files: the client's, and what the daemons' have in common with it.

use std::path::{Path, PathBuf};

use inkfast::{Client, Config};
use inkfast_metastore::RemoteMetastore;
use inkfast_wire::{Endpoint, Identity, Role};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::Failure;

/// Names the client's settings where `--config` does not.
const CONFIG_VARIABLE: &str = "INKFAST_CONFIG";

/// What a client's file may say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientFile {
    /// The addresses of the metastore's members.
    metastore: Vec<String>,
    /// The directory of the certificates, relative to the file.
    certs: PathBuf,
    /// Which of the identities of its role it is; none in particular if there is only one.
    identity: Option<String>,
}

/// Connects to the cluster of the settings.
pub(crate) async fn connect(file: Option<&Path>) -> Result<Client, Failure> {
    Ok(Client::connect(configured(file)?).await?)
}

/// Reaches the metastore of the settings, and nothing else.
pub(crate) fn metastore(file: Option<&Path>) -> Result<RemoteMetastore, Failure> {
    let Config { metastore, identity, net, deadlines } = configured(file)?;
    let endpoint = Endpoint::client(&net, &identity, Uuid::new_v4(), None)
        .map_err(|error| Failure::Failed(error.to_string()))?;
    Ok(RemoteMetastore::new(&endpoint, metastore, deadlines.metastore))
}

fn configured(file: Option<&Path>) -> Result<Config, Failure> {
    client(file)?.ok_or_else(|| {
        Failure::Usage(format!(
            "no cluster is configured: name its client.toml with --config FILE or in \
             {CONFIG_VARIABLE}; `inkfast start cluster` makes a cluster and the file"
        ))
    })
}

/// Reads the client's settings from the file that is given, or the one that the environment names;
/// none if there is neither.
pub(crate) fn client(file: Option<&Path>) -> Result<Option<Config>, Failure> {
    let named = std::env::var_os(CONFIG_VARIABLE).filter(|path| !path.is_empty());
    let Some(path) = file.map(Path::to_owned).or_else(|| named.map(PathBuf::from)) else {
        return Ok(None);
    };
    let ClientFile { metastore, certs, identity } = read(&path)?;
    if metastore.is_empty() {
        let words = format!("{}: `metastore` names no address", path.display());
        return Err(Failure::Usage(words));
    }
    let identity = load_identity(&beside(&path, certs), Role::Client, identity.as_deref())?;
    Ok(Some(Config::new(metastore, identity)))
}

/// Loads an identity that the settings name.
pub(crate) fn load_identity(
    certs: &Path,
    role: Role,
    name: Option<&str>,
) -> Result<Identity, Failure> {
    Identity::load(certs, role, name).map_err(|error| Failure::Usage(error.to_string()))
}

/// Reads a TOML file; keys that it may not have are refused.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::Usage(format!("cannot read the settings {shown}: {error}")))?;
    parse(&text).map_err(|why| Failure::Usage(format!("{shown}, {why}")))
}

/// Takes a path in a file to be relative to that file.
pub(crate) fn beside(file: &Path, path: PathBuf) -> PathBuf {
    file.parent().map_or_else(|| path.clone(), |parent| parent.join(&path))
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        format!("line {}: {}", before.matches('\n').count() + 1, error.message())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_metastore_and_certs_are_needed() {
        let file: ClientFile = parse("metastore = ['a:1', 'b:2']\ncerts = 'certs'").unwrap();
        assert_eq!(file.metastore, ["a:1", "b:2"]);
        assert_eq!(file.certs, Path::new("certs"));
        assert_eq!(file.identity, None);
    }

    #[test]
    fn what_a_file_may_not_say_is_refused_with_its_line() {
        let refused = |text| parse::<ClientFile>(text).err().unwrap();
        let unknown = refused("metastore = []\ncerts = 'c'\nmetastores = []");
        assert!(unknown.starts_with("line 3: unknown field `metastores`"), "{unknown}");
        let missing = refused("metastore = []");
        assert!(missing.contains("missing field `certs`"), "{missing}");
        let broken = refused("metastore = []\ncerts = ");
        assert!(broken.starts_with("line 2: "), "{broken}");
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let file = Path::new("/etc/inkfast/client.toml");
        assert_eq!(beside(file, "certs".into()), Path::new("/etc/inkfast/certs"));
        assert_eq!(beside(file, "/certs".into()), Path::new("/certs"));
    }
}
