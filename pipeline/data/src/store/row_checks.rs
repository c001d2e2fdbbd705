//! Which row indices of a manifest were held against their images' bytes and found right. Those that were not are held
//! against them when the image is decoded for the first time, which then takes as long as without an index.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use simclr_ground::sample::SampleRef;
use simclr_image::decode::{RowCheck, Rows};

use crate::manifest::Manifest;

/// A bit for each sample that has a row index.
pub(super) struct RowChecks {
    /// By shard; empty for one without indices.
    right: Vec<Box<[AtomicU64]>>,
    warned: AtomicBool,
}

impl RowChecks {
    /// Of a manifest none of whose indices were checked.
    pub fn of(manifest: &Manifest) -> Self {
        let words = |shard: &crate::manifest::Shard| shard.rows.as_ref().map_or(0, |rows| rows.len().div_ceil(64));
        let right = manifest.shards.iter().map(|shard| (0..words(shard)).map(|_| AtomicU64::new(0)).collect());
        Self { right: right.collect(), warned: AtomicBool::new(false) }
    }

    /// The row index of a sample, if it has one, and whether it was found right.
    pub fn rows<'a>(&self, manifest: &'a Manifest, sample: SampleRef) -> Option<Rows<'a>> {
        let text = manifest.shards[sample.shard as usize].rows(sample.index as usize)?;
        let (word, bit) = self.bit(sample);
        // The index and the image are the same for every thread; only who looks first is not.
        let right = word.load(Ordering::Relaxed) & bit != 0;
        Some(Rows { text, check: if right { RowCheck::Right } else { RowCheck::NotYet } })
    }

    /// Notes what came of decoding with a sample's row index.
    pub fn note(&self, manifest: &Manifest, sample: SampleRef, rows: Rows<'_>) {
        match rows.check {
            RowCheck::NotYet => {}
            RowCheck::Right => {
                let (word, bit) = self.bit(sample);
                word.fetch_or(bit, Ordering::Relaxed);
            }
            RowCheck::Wrong if self.warned.swap(true, Ordering::Relaxed) => {}
            RowCheck::Wrong => {
                let shard = &manifest.shards[sample.shard as usize];
                let (shard, entry) =
                    (&shard.location, crate::tar_entries::shown(&shard.entries[sample.index as usize]));
                tracing::warn!(shard, entry, "the manifest's row index does not match this image; decoding without it");
            }
        }
    }

    fn bit(&self, sample: SampleRef) -> (&AtomicU64, u64) {
        (&self.right[sample.shard as usize][sample.index as usize / 64], 1 << (sample.index % 64))
    }
}
