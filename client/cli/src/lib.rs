//! The command of Inkfast: daemons, a local cluster, ledgers, benches.
