//! What threads are busy with, moment by moment: how long they did what over any stretch of time, even one that begins
//! and ends in the middle of an image. Why somebody waited meanwhile is [`crate::stall`]'s to say.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What a worker thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It waits for work.
    Idle,
    /// It reads a sample's bytes, and checks them.
    Read,
    /// It decodes an image.
    Decode,
    /// It makes views of one.
    Augment,
}

/// Every activity, in the order of their numbers.
const ALL: [Activity; 4] = [Activity::Idle, Activity::Read, Activity::Decode, Activity::Augment];

/// Who is busy with what, and for how long; cheap to clone.
#[derive(Clone)]
pub struct Activities(Arc<Shared>);

struct Shared {
    began: Instant,
    workers: Mutex<Vec<Arc<Doing>>>,
    /// What was ended, in nanoseconds, by activity.
    ended: [AtomicU64; ALL.len()],
    fetching: Mutex<Fetching>,
}

/// What a thread does, and since when: nanoseconds since the beginning, the activity in the lowest bits, so that both
/// are read at once.
struct Doing(AtomicU64);

const ACTIVITY_BITS: u32 = 2;

/// Requests for bytes that are under way.
#[derive(Default)]
struct Fetching {
    requests: usize,
    since: Option<Instant>,
    ended: Duration,
}

/// How long what had been done up to some moment, in seconds over all threads.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spent {
    /// Waiting for work.
    pub idle: f64,
    /// Reading.
    pub read: f64,
    /// Decoding.
    pub decode: f64,
    /// Augmenting.
    pub augment: f64,
    /// With at least one request for bytes under way: of the clock, not of a thread.
    pub fetching: f64,
}

impl Spent {
    /// What was spent since an earlier moment.
    pub fn since(self, earlier: Self) -> Self {
        // Moments are not frozen while they are read: a stretch may come out short by a whisker, but none is negative.
        let difference = |now: f64, then: f64| (now - then).max(0.0);
        Self {
            idle: difference(self.idle, earlier.idle),
            read: difference(self.read, earlier.read),
            decode: difference(self.decode, earlier.decode),
            augment: difference(self.augment, earlier.augment),
            fetching: difference(self.fetching, earlier.fetching),
        }
    }
}

impl Default for Activities {
    fn default() -> Self {
        let (began, ended) = (Instant::now(), Default::default());
        Self(Arc::new(Shared { began, workers: Mutex::default(), ended, fetching: Mutex::default() }))
    }
}

impl Activities {
    /// What was spent up to now, what is being done included.
    pub fn spent(&self) -> Spent {
        let shared = &*self.0;
        let mut nanoseconds = [0; ALL.len()];
        {
            let workers = shared.workers.lock().expect("no panic while held");
            let now = shared.began.elapsed().as_nanos() as u64;
            for (sum, ended) in nanoseconds.iter_mut().zip(&shared.ended) {
                *sum = ended.load(Ordering::Relaxed);
            }
            for doing in workers.iter() {
                let (since, activity) = doing.read();
                nanoseconds[activity] += now.saturating_sub(since);
            }
        }
        let [idle, read, decode, augment] = nanoseconds.map(|nanoseconds| nanoseconds as f64 * 1e-9);
        let fetching = shared.fetching();
        let fetching = fetching.ended + fetching.since.map_or(Duration::ZERO, |since| since.elapsed());
        Spent { idle, read, decode, augment, fetching: fetching.as_secs_f64() }
    }

    /// A stopwatch for this thread, which is idle at first.
    pub fn stopwatch(&self) -> Stopwatch {
        let now = Instant::now();
        let doing = Arc::new(Doing(AtomicU64::new(0)));
        doing.write(now - self.0.began, Activity::Idle);
        self.0.workers.lock().expect("no panic while held").push(doing.clone());
        Stopwatch { all: self.clone(), doing, activity: Activity::Idle, since: now }
    }

    /// Requests for bytes that are under way.
    pub fn requests(&self) -> u32 {
        self.0.fetching().requests as u32
    }

    /// Says that bytes are asked for, as long as the answer lives.
    pub fn fetch(&self) -> Request {
        let mut fetching = self.0.fetching();
        fetching.requests += 1;
        fetching.since.get_or_insert_with(Instant::now);
        Request(self.clone())
    }
}

impl Shared {
    fn fetching(&self) -> MutexGuard<'_, Fetching> {
        self.fetching.lock().expect("no panic while held")
    }
}

impl Doing {
    fn write(&self, since: Duration, activity: Activity) {
        self.0.store((since.as_nanos() as u64) << ACTIVITY_BITS | activity as u64, Ordering::Relaxed);
    }

    fn read(&self) -> (u64, usize) {
        let both = self.0.load(Ordering::Relaxed);
        (both >> ACTIVITY_BITS, (both & ((1 << ACTIVITY_BITS) - 1)) as usize)
    }
}

/// Times what one thread does.
pub struct Stopwatch {
    all: Activities,
    doing: Arc<Doing>,
    activity: Activity,
    since: Instant,
}

impl Stopwatch {
    /// Turns to another activity; what the last one was, and how long it took.
    pub fn turn_to(&mut self, next: Activity) -> (Activity, Duration) {
        let now = Instant::now();
        let (last, took) = (self.activity, now - self.since);
        self.doing.write(now - self.all.0.began, next);
        self.all.0.ended[last as usize].fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        (self.activity, self.since) = (next, now);
        (last, took)
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        self.turn_to(Activity::Idle);
        self.all.0.workers.lock().expect("no panic while held").retain(|doing| !Arc::ptr_eq(doing, &self.doing));
    }
}

/// A request for bytes that is under way.
pub struct Request(Activities);

impl Drop for Request {
    fn drop(&mut self) {
        let mut fetching = self.0.0.fetching();
        fetching.requests -= 1;
        if fetching.requests == 0 {
            let since = fetching.since.take().expect("set with the first request");
            fetching.ended += since.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(20);

    #[test]
    fn what_is_being_done_counts_before_it_is_done() {
        let all = Activities::default();
        let mut stopwatch = all.stopwatch();
        stopwatch.turn_to(Activity::Decode);
        let before = all.spent();
        std::thread::sleep(STEP);
        let during = all.spent().since(before);
        assert!(during.decode >= STEP.as_secs_f64() && during.augment == 0.0, "{during:?}");
        let (last, took) = stopwatch.turn_to(Activity::Augment);
        assert!(last == Activity::Decode && took >= STEP);
        drop(stopwatch);
        let after = all.spent();
        std::thread::sleep(STEP);
        assert_eq!(all.spent(), after, "nobody does anything any more");
    }

    #[test]
    fn requests_at_the_same_time_count_once() {
        let all = Activities::default();
        let (first, second) = (all.fetch(), all.fetch());
        std::thread::sleep(STEP);
        drop(first);
        std::thread::sleep(STEP);
        drop(second);
        let fetching = all.spent().fetching;
        std::thread::sleep(STEP);
        assert!(fetching >= 2.0 * STEP.as_secs_f64() && all.spent().fetching == fetching, "{fetching}");
    }
}
