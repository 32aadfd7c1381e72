//! Where blocking work runs.

use std::future::pending;
use std::panic::resume_unwind;

/// Runs the storage engine's blocking work: it starts no threads of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executor {
    /// On the threads that tokio keeps for blocking work.
    Threads,
    /// On the caller's task, for simulations: the same order in every run.
    Inline,
    /// The same, but others have some turns first, as if the work took its time.
    #[cfg(test)]
    Late,
}

impl Executor {
    /// Runs `work` to its end and gives back its result.
    ///
    /// Dropping the future does not stop work that has begun. A panic in `work` goes on in the
    /// caller.
    pub async fn run<T, F>(self, work: F) -> T
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        match self {
            Self::Inline => work(),
            #[cfg(test)]
            Self::Late => {
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                work()
            }
            Self::Threads => match tokio::task::spawn_blocking(work).await {
                Ok(result) => result,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    // Not begun, because the runtime shuts down; the caller ends with it.
                    Err(_) => pending().await,
                },
            },
        }
    }
}
