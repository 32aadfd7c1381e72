//! `inkfast certs`: the certificates by which daemons and clients know each other.

use std::path::PathBuf;

use inkfast_wire::{Authority, Role};

use crate::Failure;
use crate::output::say;

#[derive(clap::Subcommand)]
pub(crate) enum Certs {
    /// Makes a cluster's authority, if there is none yet, and identities
    ///
    /// Files that exist are kept, so identities can be added later. Give each machine ca.pem and
    /// the .pem and .key of its own identity; ca.key stays where it is.
    Create(Create),
}

#[derive(clap::Args)]
pub(crate) struct Create {
    /// Where the files are; it is made if it is missing
    #[arg(long)]
    dir: PathBuf,
    /// For each name, an identity of every role, as ROLE-NAME.pem and .key; without a name one of
    /// every role, as ROLE.pem and .key
    #[arg(long, num_args = 1.., value_name = "NAME")]
    name: Vec<String>,
    /// The cluster's name; certificates of another are not accepted
    #[arg(long, default_value = "inkfast")]
    cluster: String,
}

impl Certs {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self::Create(Create { dir, name: names, cluster }) = self;
        let authority = Authority::open_or_create(&dir, &cluster)?;
        let shown = dir.display();
        say(format_args!("the authority of cluster {cluster} is {shown}/ca.pem"))?;
        let names: Vec<Option<&str>> = match &names[..] {
            [] => vec![None],
            names => names.iter().map(|name| Some(name.as_str())).collect(),
        };
        for name in names {
            Role::ALL.into_iter().try_for_each(|role| authority.issue(role, name))?;
            let name = name.map(|name| format!("-{name}")).unwrap_or_default();
            for role in Role::ALL {
                say(format_args!(
                    "an identity of role {role} is {shown}/{role}{name}.pem and .key"
                ))?;
            }
        }
        Ok(())
    }
}
