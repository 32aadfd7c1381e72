//! The client library of Inkfast: create, append to, read and recover replicated ledgers.
