//! When each operation of a bench begins.

use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc};

/// How many operations may be overdue and not begun before the clock waits. They keep the time
/// they were due at.
const OVERDUE_MAX: usize = 1 << 16;
/// How often a second the clock wakes up at most, to give out all that has become due: to wake up
/// for each operation by itself would take more of the machine than many of them do.
const TICKS_MAX: u32 = 1000;

/// Gives out the beginnings of operations, to any number of tasks, until the time is over.
pub(super) struct Pace {
    until: Instant,
    /// When operations are due, if there is a rate.
    due: Option<Mutex<mpsc::Receiver<Instant>>>,
}

impl Pace {
    pub(super) fn start(lasts: Duration, rate: Option<u32>) -> Self {
        let until = Instant::now() + lasts;
        let due = rate.map(|rate| {
            let (ring, due) = mpsc::channel(OVERDUE_MAX);
            // A thread, since the runtime's timers are no finer than a millisecond.
            tokio::task::spawn_blocking(move || tick(rate, until, &ring));
            Mutex::new(due)
        });
        Self { until, due }
    }

    /// Waits until the next operation is due, and returns the time from which its latency counts;
    /// none when the time is over.
    pub(super) async fn next(&self) -> Option<Instant> {
        let due = match &self.due {
            Some(due) => Some(due.lock().await.recv().await?),
            None => None,
        };
        let now = Instant::now();
        (now < self.until).then(|| due.unwrap_or(now))
    }
}

fn tick(rate: u32, until: Instant, ring: &mpsc::Sender<Instant>) {
    let begun = Instant::now();
    let due = |count: u64| begun + Duration::from_secs_f64(count as f64 / f64::from(rate));
    let together = u64::from(rate.div_ceil(TICKS_MAX));
    for count in 0.. {
        let (now, last_of_tick) = (Instant::now(), count - count % together + together - 1);
        let tick = due(last_of_tick);
        if tick.max(now) >= until {
            return;
        }
        std::thread::sleep(tick.saturating_duration_since(now));
        if ring.blocking_send(due(count)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn operations_are_due_at_the_rate_however_late_they_are_taken() {
        let pace = Pace::start(Duration::from_secs(60), Some(1000));
        let first = pace.next().await.unwrap();
        std::thread::sleep(Duration::from_millis(50));
        for count in 1..40 {
            let due = pace.next().await.unwrap();
            let expected = Duration::from_millis(count);
            assert!((due - first).abs_diff(expected) < Duration::from_micros(10));
        }
    }

    #[tokio::test]
    async fn none_of_many_operations_begins_before_it_is_due() {
        let pace = Pace::start(Duration::from_secs(60), Some(70_500));
        let first = pace.next().await.unwrap();
        for count in 1..1000 {
            let due = pace.next().await.unwrap();
            assert!(due <= Instant::now());
            let expected = Duration::from_secs(1) * count / 70_500;
            assert!((due - first).abs_diff(expected) < Duration::from_micros(10));
        }
    }

    #[tokio::test]
    async fn nothing_begins_when_the_time_is_over() {
        assert_eq!(Pace::start(Duration::ZERO, None).next().await, None);
        assert_eq!(Pace::start(Duration::ZERO, Some(1000)).next().await, None);
    }
}
