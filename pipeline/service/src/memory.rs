//! Slabs out of a bounded amount of memory; who wants one waits until there is room.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use simclr_ground::batch::{Slab, zeros};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Memory is counted in units of this, since a semaphore counts to 2³².
const UNIT: u64 = 4096;

/// A bounded amount of memory.
pub(super) struct Memory {
    limit: u64,
    room: Arc<Semaphore>,
    used: AtomicU64,
    spare: Mutex<Vec<Vec<u8>>>,
}

/// A slab; dropping it makes room for another.
pub(super) struct PooledSlab {
    bytes: Vec<u8>,
    memory: Arc<Memory>,
    _permit: OwnedSemaphorePermit,
}

impl Memory {
    /// `limit` bytes, none of them in use.
    pub fn new(limit: u64) -> Arc<Self> {
        let units = usize::try_from(limit / UNIT).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let room = Arc::new(Semaphore::new(units));
        Arc::new(Self { limit, room, used: AtomicU64::new(0), spare: Mutex::default() })
    }

    /// Bytes in all.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// A slab of `bytes` bytes, as soon as there is room; `None` if the system gives no such memory.
    ///
    /// # Panics
    /// If it is larger than all the memory there is.
    pub async fn take(self: &Arc<Self>, bytes: usize) -> Option<PooledSlab> {
        assert!(bytes as u64 <= self.limit, "a slab of {bytes} bytes out of {}", self.limit);
        let units = u32::try_from((bytes as u64).div_ceil(UNIT)).ok()?;
        let permit = self.room.clone().acquire_many_owned(units).await.expect("the semaphore is never closed");
        let slab = self.spare().pop_if(|slab| slab.len() == bytes);
        // What is spare beside the memory in use was counted when it was kept; a slab of another size takes its place.
        let slab = match slab {
            Some(slab) => slab,
            None => {
                self.spare().clear();
                zeros(bytes)?
            }
        };
        self.used.fetch_add(bytes as u64, Ordering::Relaxed);
        Some(PooledSlab { bytes: slab, memory: self.clone(), _permit: permit })
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.spare.lock().expect("no panic while held")
    }
}

impl Slab for PooledSlab {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for PooledSlab {
    fn drop(&mut self) {
        let bytes = self.bytes.len() as u64;
        let used = self.memory.used.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        let mut spare = self.memory.spare();
        // Fresh memory costs more than the pixels written into it, so a slab is kept while others are in use; an idle
        // service keeps none.
        let kept: u64 = spare.iter().map(|slab| slab.len() as u64).sum();
        if used == 0 {
            spare.clear();
        } else if used + kept + bytes <= self.memory.limit {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_more_than_there_is_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let memory = Memory::new(3 * UNIT);
            let first = memory.take(2 * UNIT as usize).await.unwrap();
            let second = memory.take(UNIT as usize).await.unwrap();
            let third = memory.take(UNIT as usize);
            tokio::pin!(third);
            let soon = std::time::Duration::from_millis(20);
            assert!(tokio::time::timeout(soon, &mut third).await.is_err(), "there is no room yet");
            drop(second);
            let third = third.await.unwrap();
            assert_eq!(memory.used(), 3 * UNIT);
            drop((first, third));
            assert_eq!(memory.used(), 0);
            assert!(memory.spare().is_empty());
        });
    }

    #[test]
    fn bounded_memory_that_the_system_does_not_give_is_no_abort() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let memory = Memory::new(u64::MAX);
        for bytes in [1 << 43, 1 << 60] {
            assert!(runtime.block_on(memory.take(bytes)).is_none_or(|slab| slab.bytes().len() == bytes));
            assert_eq!(memory.used(), 0);
        }
        assert!(runtime.block_on(memory.take(1 << 60)).is_none());
    }
}
