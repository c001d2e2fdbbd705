//! How many requests a storage server gets at a time: more while it answers, half when it pushes back (AIMD).

use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Several refusals within this time come from one moment of overload and halve the number once.
const ONE_MOMENT: Duration = Duration::from_millis(500);

/// The pace of requests to one server; shared by all that send them.
#[derive(Debug)]
pub struct Pace {
    most: f64,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    allowed: f64,
    in_flight: usize,
    not_before: Option<Instant>,
    last_cut: Option<Instant>,
    /// Mean seconds that recent requests took.
    seconds: f64,
}

/// Leave to send one request; dropping it ends the request.
#[derive(Debug)]
pub struct Permit<'a> {
    pace: &'a Pace,
    began: Instant,
}

impl Pace {
    /// A pace that begins with `most` requests at a time and never exceeds it.
    pub fn new(most: usize) -> Self {
        let most = most.max(1) as f64;
        let state = State { allowed: most, in_flight: 0, not_before: None, last_cut: None, seconds: 0.0 };
        Self { most, state: Mutex::new(state), changed: Notify::new() }
    }

    /// Waits for leave to send a request.
    pub async fn enter(&self) -> Permit<'_> {
        loop {
            let changed = self.changed.notified();
            let wait = {
                let mut state = self.lock();
                let now = Instant::now();
                match state.not_before.filter(|&at| at > now) {
                    Some(at) => at - now,
                    None if (state.in_flight as f64) < state.allowed.floor() => {
                        state.in_flight += 1;
                        return Permit { pace: self, began: now };
                    }
                    None => Duration::from_secs(3600),
                }
            };
            let _ = tokio::time::timeout(wait, changed).await;
        }
    }

    /// Leave to send a request if there is room at once.
    pub fn try_enter(&self) -> Option<Permit<'_>> {
        let mut state = self.lock();
        let room = (state.in_flight as f64) < state.allowed.floor();
        let free = state.not_before.is_none_or(|at| at <= Instant::now());
        (room && free).then(|| {
            state.in_flight += 1;
            Permit { pace: self, began: Instant::now() }
        })
    }

    /// The server pushed back: half as many requests from now on, and none for `pause`, where it said so.
    pub fn slow_down(&self, pause: Option<Duration>) {
        let mut state = self.lock();
        let now = Instant::now();
        if state.last_cut.is_none_or(|at| now - at > ONE_MOMENT) {
            state.allowed = (state.allowed / 2.0).max(1.0);
            state.last_cut = Some(now);
        }
        if let Some(pause) = pause {
            state.not_before = state.not_before.max(Some(now + pause));
        }
    }

    /// How many requests are allowed at a time now.
    #[cfg(test)]
    pub fn allowed(&self) -> usize {
        self.lock().allowed as usize
    }

    /// Mean time that recent requests took; `None` before the first.
    pub fn usual_time(&self) -> Option<Duration> {
        let seconds = self.lock().seconds;
        (seconds > 0.0).then(|| Duration::from_secs_f64(seconds))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }
}

impl Permit<'_> {
    /// Says that the request was answered: a little more is allowed from now on.
    pub fn succeeded(self) {
        let mut state = self.pace.lock();
        state.allowed = (state.allowed + 1.0 / state.allowed).min(self.pace.most);
        let seconds = self.began.elapsed().as_secs_f64();
        state.seconds = if state.seconds == 0.0 { seconds } else { 0.9 * state.seconds + 0.1 * seconds };
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.pace.lock().in_flight -= 1;
        self.pace.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn push_back_halves_and_success_restores() {
        let pace = Pace::new(8);
        for _ in 0..3 {
            pace.slow_down(None);
        }
        assert_eq!(pace.allowed(), 4, "one moment of overload halves once");
        for _ in 0..40 {
            pace.try_enter().unwrap().succeeded();
        }
        assert_eq!(pace.allowed(), 8);
    }

    #[test]
    fn no_more_than_allowed_are_under_way() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let pace = Pace::new(2);
            let first = pace.enter().await;
            let _second = pace.enter().await;
            assert!(pace.try_enter().is_none());
            assert!(tokio::time::timeout(Duration::from_millis(20), pace.enter()).await.is_err());
            drop(first);
            pace.slow_down(Some(Duration::from_millis(30)));
            drop(_second);
            let began = Instant::now();
            drop(pace.enter().await);
            assert!(began.elapsed() >= Duration::from_millis(25), "a pause is kept");
        });
    }
}
