//! Memory for decoding: images that need much of it wait for each other rather than being refused, since what is refused must
//! not depend on the machine.

use std::sync::{Condvar, Mutex};

/// Images that need less than this do not wait.
const SMALL: u64 = 128 << 20;
/// All others share this. One alone may take more.
const SHARED: u64 = 1 << 30;

/// What is left for images that need much.
#[derive(Debug)]
pub struct Appetite {
    left: Mutex<u64>,
    freed: Condvar,
}

impl Default for Appetite {
    fn default() -> Self {
        Self { left: Mutex::new(SHARED), freed: Condvar::new() }
    }
}

/// Memory that an image may use until this is dropped.
#[derive(Debug)]
pub struct Helping<'a> {
    of: &'a Appetite,
    bytes: u64,
}

impl Appetite {
    /// Waits until an image that needs about so many bytes may have them; `None` if it need not wait.
    pub fn wait(&self, bytes: u64) -> Option<Helping<'_>> {
        if bytes < SMALL {
            return None;
        }
        let bytes = bytes.min(SHARED);
        let left = self.left.lock().expect("no panic while held");
        let mut left = self.freed.wait_while(left, |left| *left < bytes).expect("no panic while held");
        *left -= bytes;
        Some(Helping { of: self, bytes })
    }
}

impl Drop for Helping<'_> {
    fn drop(&mut self) {
        *self.of.left.lock().expect("no panic while held") += self.bytes;
        self.of.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn images_that_need_much_share_what_there_is() {
        let (appetite, now, most) = (Appetite::default(), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for bytes in [SHARED / 2, SHARED * 9, SHARED / 3, SMALL, SHARED, SHARED / 2 + 1, SHARED / 2] {
                let (appetite, now, most) = (&appetite, &now, &most);
                scope.spawn(move || {
                    let helping = appetite.wait(bytes).unwrap();
                    most.fetch_max(now.fetch_add(helping.bytes, Ordering::SeqCst) + helping.bytes, Ordering::SeqCst);
                    std::thread::sleep(std::time::Duration::from_millis(2));
                    now.fetch_sub(helping.bytes, Ordering::SeqCst);
                });
            }
        });
        assert!(most.into_inner() <= SHARED);
        assert!(appetite.wait(SMALL - 1).is_none(), "most images do not wait");
        assert_eq!(*appetite.left.lock().unwrap(), SHARED);
    }
}
