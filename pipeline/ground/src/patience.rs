//! Waits that may become long: whoever waits says so, for whom, and why, rather than standing still.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A wait is worth a word after this long,
const FIRST_WORD: Duration = Duration::from_secs(5);

/// and then again each time that so much more has passed.
const NEXT_WORD: Duration = Duration::from_secs(30);

/// How often whoever waits looks whether the wait has become long, or is not wanted any more.
pub const LOOK: Duration = Duration::from_millis(250);

/// When a wait is to be told of.
#[derive(Debug, Clone, Copy)]
pub struct LongWait {
    began: Instant,
    next: Duration,
}

impl Default for LongWait {
    /// A wait that begins now.
    fn default() -> Self {
        Self { began: Instant::now(), next: FIRST_WORD }
    }
}

impl LongWait {
    /// How long the wait has lasted, if it is time for a word.
    pub fn due(&mut self) -> Option<Duration> {
        self.due_at(self.began.elapsed())
    }

    fn due_at(&mut self, waited: Duration) -> Option<Duration> {
        if waited < self.next {
            return None;
        }
        self.next = waited + NEXT_WORD;
        Some(waited)
    }

    /// How long until the next word.
    fn left(&self) -> Duration {
        self.next.saturating_sub(self.began.elapsed())
    }
}

/// Does what may wait and can't look up meanwhile; `say` is told how long it has been waiting, by another thread.
pub fn saying<T>(say: impl Fn(Duration) + Send, wait: impl FnOnce() -> T) -> T {
    let (done, is_done) = channel::<()>();
    std::thread::scope(|scope| {
        let speak = move || {
            let mut long = LongWait::default();
            while is_done.recv_timeout(long.left()) == Err(RecvTimeoutError::Timeout) {
                if let Some(waited) = long.due() {
                    say(waited);
                }
            }
        };
        // Without a thread it is waited in silence.
        let _ = std::thread::Builder::new().name("patience".into()).spawn_scoped(scope, speak);
        let result = wait();
        drop(done);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_of_at_five_seconds_and_then_each_half_minute() {
        let mut long = LongWait::default();
        let told = (0..100).filter(|&second| long.due_at(Duration::from_secs(second)).is_some());
        assert_eq!(told.collect::<Vec<_>>(), [5, 35, 65, 95]);
    }

    #[test]
    fn a_short_wait_is_not_told_of() {
        let result = saying(|waited| panic!("told of {waited:?}"), || 3);
        assert_eq!(result, 3);
    }
}
