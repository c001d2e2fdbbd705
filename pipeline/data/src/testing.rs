//! Small packed sets of drawn images for this crate's tests.

use simclr_image::augment::RecipeConfig;
use simclr_image::drawn;
use simclr_plan::StreamConfig;

use crate::manifest::Manifest;
use crate::pack::{PackOptions, Resize, pack};

/// A packed set; its folder goes with it.
pub struct Set {
    pub manifest: Manifest,
    _folder: tempfile::TempDir,
}

impl Set {
    /// `samples` images of side `side`, ten classes, in shards of a few images.
    pub fn draw(samples: u64, side: u32, zstd: Option<i32>) -> Self {
        Self::draw_with(samples, side, zstd, |_, _| {})
    }

    /// As `draw`, in JPEG.
    pub fn draw_jpegs(samples: u64, side: u32) -> Self {
        Self::draw_as(samples, side, None, Some(Resize { short_side: 0, quality: 90, subsample: true }), |_, _| {})
    }

    /// As `draw`, each file's bytes first changed by `change`.
    pub fn draw_with(samples: u64, side: u32, zstd: Option<i32>, change: impl Fn(u64, &mut Vec<u8>)) -> Self {
        Self::draw_as(samples, side, zstd, None, change)
    }

    fn draw_as(
        samples: u64,
        side: u32,
        zstd: Option<i32>,
        resize: Option<Resize>,
        change: impl Fn(u64, &mut Vec<u8>),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..samples {
            let class = (i % 10) as usize;
            let dir = folder.path().join("images").join(drawn::CLASSES[class]);
            std::fs::create_dir_all(&dir).unwrap();
            let mut bytes = drawn::png(&drawn::image(1, class, i, side));
            change(i, &mut bytes);
            std::fs::write(dir.join(format!("{i:03}.png")), bytes).unwrap();
        }
        let options = PackOptions { shard_bytes: 40_000, zstd, resize, threads: 2, ..PackOptions::default() };
        let out = folder.path().join("packed");
        pack(&folder.path().join("images"), &out, &options).unwrap();
        Self { manifest: Manifest::read(&out.join("manifest.json")).unwrap(), _folder: folder }
    }
}

/// A shuffled stream of two small views.
pub fn stream(seed: u64, batch: u32, lanes: u32) -> StreamConfig {
    StreamConfig::shuffled(seed, batch, lanes, RecipeConfig::simclr(24))
}

/// The most memory that this process had, in bytes.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
