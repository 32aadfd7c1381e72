//! Who has something to send: those who share a stream ring for their turn.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The order in which turns are taken.
#[derive(Default)]
pub(crate) struct Turns {
    rung: Mutex<VecDeque<Arc<Bell>>>,
    woken: Notify,
}

/// Asks for turns for one of those who share.
pub(crate) struct Bell {
    pub(crate) number: u32,
    /// It has asked and not had its turn.
    rung: AtomicBool,
    turns: Arc<Turns>,
}

impl Turns {
    pub(crate) fn bell(self: &Arc<Self>, number: u32) -> Arc<Bell> {
        Arc::new(Bell { number, rung: AtomicBool::new(false), turns: Arc::clone(self) })
    }

    /// Waits until somebody asks for a turn, or is woken. May be so for no reason.
    pub(crate) async fn wait(&self) {
        self.woken.notified().await;
    }

    pub(crate) fn wake(&self) {
        self.woken.notify_one();
    }

    /// Takes who has asked first; it may ask again from now on.
    pub(crate) fn next(&self) -> Option<Arc<Bell>> {
        let bell = self.lock().pop_front()?;
        // Whoever puts something down from here on rings once more.
        bell.rung.store(false, Ordering::SeqCst);
        Some(bell)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Bell>>> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bell {
    /// Asks for a turn; once until it is taken. Call it after there is something to send.
    pub(crate) fn ring(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            let mut rung = self.turns.lock();
            rung.push_back(Arc::clone(self));
            // Whoever waits has found that nobody had rung.
            if rung.len() == 1 {
                drop(rung);
                self.turns.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Duration, timeout};

    use super::*;

    #[tokio::test]
    async fn whoever_waits_is_woken_each_time_that_somebody_rings_again() {
        let turns = Arc::<Turns>::default();
        let bells = [0, 1].map(|number| turns.bell(number));
        for _ in 0..3 {
            bells.iter().for_each(Bell::ring);
            timeout(Duration::from_secs(10), turns.wait()).await.expect("somebody has rung");
            assert_eq!([turns.next().unwrap().number, turns.next().unwrap().number], [0, 1]);
            assert!(turns.next().is_none());
        }
    }
}
