//! Memory for decoding large images. What an image needs is known from its header; one that needs much waits until there
//! is room, so that a set of them does not take as much as there are threads, and none is refused for it.

use std::sync::{Condvar, LazyLock, Mutex, MutexGuard};

/// Images that need at most so many bytes are decoded at once: 11 million pixels of plain JPEG, 4 million of anything else.
const SMALL_BYTES: u64 = 64 << 20;

/// What large images may take for each thread. Much more than small ones take, so that photographs of cameras hardly wait.
const BYTES_PER_THREAD: u64 = 128 << 20;

/// What they may take in all with few threads: about as much as one of `data.max_pixels` takes by default.
const LEAST_BYTES: u64 = 2 << 30;

/// The process's own: whatever decodes in it, for however many streams, shares it.
pub static DECODE_MEMORY: LazyLock<DecodeMemory> =
    LazyLock::new(|| DecodeMemory::for_threads(std::thread::available_parallelism().map_or(1, usize::from)));

/// A bounded amount of memory for the threads that decode.
pub struct DecodeMemory {
    limit: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    used: u64,
    /// The number of whoever comes next to ask, and of whoever is next to get room: first come, first served.
    next: u64,
    turn: u64,
}

/// Room for an image; dropping it gives it back.
pub struct Room<'a> {
    memory: &'a DecodeMemory,
    bytes: u64,
}

impl Room<'_> {
    /// Whether it was worth counting: buffers that grew to such a size are not to be kept.
    pub fn is_large(&self) -> bool {
        self.bytes > 0
    }
}

impl DecodeMemory {
    /// Memory for so many threads.
    fn for_threads(threads: usize) -> Self {
        Self::of((threads as u64).saturating_mul(BYTES_PER_THREAD).max(LEAST_BYTES))
    }

    fn of(limit: u64) -> Self {
        Self { limit, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Whether an image that needs `bytes` bytes may have to wait.
    pub fn is_large(bytes: u64) -> bool {
        bytes > SMALL_BYTES
    }

    /// Waits for room for an image that needs `bytes` bytes. One that needs more than there is gets all of it, alone.
    ///
    /// Who has room must not ask for more before it is given back.
    pub fn room(&self, bytes: u64) -> Room<'_> {
        if !Self::is_large(bytes) {
            return Room { memory: self, bytes: 0 };
        }
        let bytes = bytes.min(self.limit);
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        while state.turn != number || state.used + bytes > self.limit {
            state = self.changed.wait(state).expect("no panic while held");
        }
        state.turn += 1;
        state.used += bytes;
        drop(state);
        self.changed.notify_all();
        Room { memory: self, bytes }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.memory.state().used -= self.bytes;
            self.memory.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn bounded_large_images_wait_and_none_is_refused() {
        const MB: u64 = 1 << 20;
        let memory = DecodeMemory::of(500 * MB);
        let (used, most, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let (memory, used, most, done) = (&memory, &used, &most, &done);
                scope.spawn(move || {
                    for i in 0..200 {
                        // Some larger than all the memory there is.
                        let bytes = (65 + (thread * 37 + i * 61) % 700) * MB;
                        let room = memory.room(bytes);
                        let now = used.fetch_add(bytes.min(500 * MB), Ordering::SeqCst) + bytes.min(500 * MB);
                        most.fetch_max(now, Ordering::SeqCst);
                        std::thread::yield_now();
                        used.fetch_sub(bytes.min(500 * MB), Ordering::SeqCst);
                        drop(room);
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), 1600);
        let most = most.into_inner();
        assert!(most <= 500 * MB, "{most} bytes at a time");
        assert_eq!(memory.state().used, 0);
    }

    #[test]
    fn small_images_never_wait() {
        let memory = DecodeMemory::of(100 << 20);
        let all = memory.room(u64::MAX);
        assert!(all.is_large() && !memory.room(SMALL_BYTES).is_large());
    }
}
