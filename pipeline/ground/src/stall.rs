//! Why a consumer waits: each second that it waits for a batch is put down to what it was waited for.
//!
//! A batch is late because somebody had too much to do, or nothing to do it with. While the consumer waits, each worker
//! thread is reading, decoding, augmenting or idle; the wait is dealt out in the proportion of what they did. Idle
//! workers lack bytes if bytes were asked for and had not come: that share is the storage's. Otherwise they lack a free
//! slab, and wait, as the consumer does, for those that are busy.

use serde::{Deserialize, Serialize};

use crate::activity::Spent;

/// Seconds waited, by what was waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Waited {
    /// The stream's first batch: nothing is made ahead of it.
    pub start: f64,
    /// Bytes: storage is too slow, or too far.
    pub storage: f64,
    /// Decoding: too few worker threads, by what it costs.
    pub decode: f64,
    /// Augmentation: likewise.
    pub augment: f64,
    /// The way from the nodes of a data service that had made the batch, or the finding of a node.
    pub network: f64,
}

impl Waited {
    /// Each cause's name in metrics, and its seconds.
    pub fn causes(&self) -> [(&'static str, f64); 5] {
        [
            ("start", self.start),
            ("storage", self.storage),
            ("decode", self.decode),
            ("augment", self.augment),
            ("network", self.network),
        ]
    }

    /// All seconds.
    pub fn total(&self) -> f64 {
        self.causes().iter().map(|(_, seconds)| seconds).sum()
    }

    /// Both waits, one after the other.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            start: self.start + other.start,
            storage: self.storage + other.storage,
            decode: self.decode + other.decode,
            augment: self.augment + other.augment,
            network: self.network + other.network,
        }
    }

    /// What was waited since an earlier moment.
    pub fn since(&self, earlier: &Self) -> Self {
        self.plus(&earlier.times(-1.0))
    }

    /// The same causes over `factor` times the seconds.
    pub fn times(&self, factor: f64) -> Self {
        Self {
            start: self.start * factor,
            storage: self.storage * factor,
            decode: self.decode * factor,
            augment: self.augment * factor,
            network: self.network * factor,
        }
    }

    /// A wait for the first batch.
    pub fn for_start(seconds: f64) -> Self {
        Self { start: seconds, ..Self::default() }
    }

    /// A wait of `seconds` for threads of this process, which spent it so; `always` is what they spend their time on in
    /// general, for waits too short to see anything.
    pub fn for_workers(seconds: f64, spent: Spent, always: Spent) -> Self {
        let dealt = |spent: Spent, clock: f64| {
            let starved = spent.idle * if clock > 0.0 { (spent.fetching / clock).min(1.0) } else { 0.0 };
            Self { storage: spent.read + starved, decode: spent.decode, augment: spent.augment, ..Self::default() }
        };
        let seen = dealt(spent, seconds);
        let seen = if seen.total() > 0.0 { seen } else { dealt(always, 0.0) };
        match seen.total() {
            0.0 => Self { storage: seconds, ..Self::default() },
            total => seen.times(seconds / total),
        }
    }

    /// A wait of `seconds` for a batch from a node, which itself waited `there` until it was made: what exceeds that is
    /// the network's.
    pub fn for_node(seconds: f64, there: &Self) -> Self {
        let total = there.total();
        let made = total.min(seconds);
        let share = if total > 0.0 { there.times(made / total) } else { Self::default() };
        Self { network: share.network + seconds - made, ..share }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Spent = Spent { idle: 0.0, read: 0.0, decode: 0.0, augment: 0.0, fetching: 0.0 };

    fn close(found: Waited, wanted: Waited) {
        let far = found.since(&wanted).causes().into_iter().any(|(_, seconds)| seconds.abs() > 1e-9);
        assert!(!far, "{found:?}, {wanted:?} wanted");
    }

    #[test]
    fn busy_workers_share_the_wait_by_what_they_do() {
        let spent = Spent { decode: 1.5, augment: 0.5, ..NOTHING };
        close(Waited::for_workers(1.0, spent, NOTHING), Waited { decode: 0.75, augment: 0.25, ..Waited::default() });
    }

    #[test]
    fn idle_workers_lack_bytes_only_while_bytes_are_asked_for() {
        let spent = Spent { idle: 1.0, decode: 1.0, ..NOTHING };
        close(Waited::for_workers(1.0, spent, NOTHING), Waited { decode: 1.0, ..Waited::default() });
        let spent = Spent { fetching: 1.0, ..spent };
        close(Waited::for_workers(1.0, spent, NOTHING), Waited { storage: 0.5, decode: 0.5, ..Waited::default() });
    }

    #[test]
    fn whatever_is_seen_the_shares_sum_to_the_wait() {
        for spent in
            [NOTHING, Spent { idle: 3.0, ..NOTHING }, Spent { read: 1e-9, fetching: 9.0, idle: 0.1, ..NOTHING }]
        {
            for always in [NOTHING, Spent { decode: 2.0, augment: 1.0, idle: 9.0, ..NOTHING }] {
                let total = Waited::for_workers(0.7, spent, always).total();
                assert!((total - 0.7).abs() < 1e-12, "{spent:?}, {always:?}: {total}");
            }
        }
        for there in [Waited::default(), Waited { decode: 0.1, ..Waited::default() }, Waited::for_start(9.0)] {
            assert!((Waited::for_node(0.7, &there).total() - 0.7).abs() < 1e-12);
        }
    }

    #[test]
    fn the_network_is_at_fault_for_what_the_node_is_not() {
        let there = Waited { decode: 0.2, storage: 0.2, ..Waited::default() };
        close(Waited::for_node(1.0, &there), Waited { decode: 0.2, storage: 0.2, network: 0.6, ..Waited::default() });
        close(Waited::for_node(0.1, &there), Waited { decode: 0.05, storage: 0.05, ..Waited::default() });
    }
}
