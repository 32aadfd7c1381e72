//! Consensus: what is proposed to one member is applied by all, in one order.

use inkfast_metastore::Error;
use inkfast_metastore::state::Answer;

pub(crate) mod codec;
pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod types;

/// What a command is answered with.
pub(crate) type Outcome = Result<Answer, Error>;
