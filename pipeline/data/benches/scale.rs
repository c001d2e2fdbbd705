//! Positions and manifests at ImageNet's scale and far beyond: `cargo bench -p simclr-data --bench scale`.

use divan::{Bencher, black_box};
use simclr_data::manifest::{Manifest, Shard};
use simclr_ground::location::Location;
use simclr_ground::sample::Check;
use simclr_plan::{EpochOrder, OrderConfig};

fn main() {
    divan::main();
}

const ORDER: OrderConfig = OrderConfig { lanes: 64, shuffle_block_shards: 4 };

/// Shards of a thousand samples.
fn sizes(samples: usize) -> Vec<u32> {
    vec![1000; samples / 1000]
}

/// What it takes to begin anywhere: the order of an epoch, and the samples of one batch of 4096 in its middle.
#[divan::bench(args = [1_280_000, 1_000_000_000])]
fn seek_to_a_batch(bencher: Bencher, samples: usize) {
    let sizes = sizes(samples);
    bencher.bench(|| {
        let order = EpochOrder::new(1, black_box(3), &sizes, &ORDER);
        let middle = order.lane_samples(0) / 2;
        (0..64).flat_map(|lane| order.samples(lane, middle..middle + 64)).count()
    });
}

/// The next batch of 4096 of an epoch that is under way.
#[divan::bench(args = [1_280_000, 1_000_000_000])]
fn next_batch(bencher: Bencher, samples: usize) {
    let order = EpochOrder::new(1, 3, &sizes(samples), &ORDER);
    let middle = order.lane_samples(0) / 2;
    bencher.bench(|| (0..64).flat_map(|lane| order.samples(lane, middle..middle + 64)).count());
}

/// Reading and checking the manifest of ImageNet's training set.
#[divan::bench(sample_count = 5)]
fn read_a_manifest_of_1_281_167_samples(bencher: Bencher) {
    let folder = std::env::temp_dir().join(format!("manifest-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("manifest.json");
    let per_shard = 1251;
    let shard = |i: usize| Shard {
        location: format!("shard-{i:06}.tar"),
        bytes: 143_000_000,
        blake3: blake3::Hash::from([0; 32]).into(),
        tar_bytes: 143_000_000,
        tar_blake3: blake3::hash(&i.to_le_bytes()).into(),
        entries: (0..per_shard).map(|k| format!("n{:08}/n{:08}_{k}.JPEG", 1_440_764 + i, 1_440_764 + i)).collect(),
        labels: Some((0..per_shard as u32).map(|k| Some(k % 1000)).collect()),
        offsets: (0..per_shard as u64).map(|k| k * 114_000 + 512).collect(),
        sizes: vec![110_123; per_shard],
        checks: (0..per_shard as u64).map(|k| Check(k.wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect(),
        compression: None,
        loose: false,
        frames: None,
        rows: None,
        excluded: vec![],
    };
    let classes = (0..1000).map(|i| format!("class {i}")).collect();
    let shards = (0..1024).map(shard).collect();
    Manifest::new("a bench".into(), classes, shards, Location::default()).write(&path).unwrap();
    bencher.bench(|| Manifest::read(&path).unwrap().samples);
    let _ = std::fs::remove_dir_all(&folder);
}
