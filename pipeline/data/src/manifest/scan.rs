//! Reads many shards at the same time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};

use simclr_ground::location::Location;

use super::{ManifestError, NamedShard};
use crate::shard::ShardScan;

/// Reads the shards, `threads` at a time.
pub(super) fn scan_all<T: Place + Sync>(
    shards: &[T],
    threads: usize,
    progress: &(dyn Fn(u64) + Sync),
    scan: impl Fn(&T) -> std::io::Result<ShardScan> + Sync,
) -> Result<Vec<ShardScan>, ManifestError> {
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    let sender = Mutex::new(sender);
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, shards.len().max(1)) {
            scope.spawn(|| {
                let sender = sender.lock().expect("no panic while sending").clone();
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(shard) = shards.get(i) else { break };
                    let scan = scan(shard);
                    progress(scan.as_ref().map_or(0, |scan| scan.bytes));
                    if sender.send((i, scan)).is_err() {
                        break;
                    }
                }
            });
        }
    });
    drop(sender);
    let mut scans: Vec<Option<ShardScan>> = vec![None; shards.len()];
    for (i, scan) in receiver {
        let path = shards[i].place().to_string().into();
        let io = |source| ManifestError::Io { path, what: "cannot read the shard".into(), source };
        scans[i] = Some(scan.map_err(io)?);
    }
    Ok(scans.into_iter().map(|scan| scan.expect("every shard was read")).collect())
}

/// What has a place.
pub(super) trait Place {
    /// Where it is.
    fn place(&self) -> &Location;
}

impl Place for Location {
    fn place(&self) -> &Location {
        self
    }
}

impl Place for NamedShard {
    fn place(&self) -> &Location {
        &self.place
    }
}
