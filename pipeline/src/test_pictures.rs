//! Small packed sets of drawn pictures for this crate's tests.

use crate::augment::{BrightnessRule, ColorJitter, GaussianBlur, Grayscale, HorizontalFlip, Interpolation, Mode, Op};
use crate::augment::{DecodePath, RandomResizedCrop, RecipeConfig};
use crate::drawn;
use crate::manifest::Manifest;
use crate::order::OrderConfig;
use crate::pack::{PackOptions, pack};
use crate::plan::{BatchConfig, DataConfig, StreamConfig, Traversal};

/// A packed set; its folder goes with it.
pub struct Set {
    pub manifest: Manifest,
    _folder: tempfile::TempDir,
}

impl Set {
    /// `samples` pictures of side `side`, ten classes, in shards of a few pictures.
    pub fn draw(samples: u64, side: u32, zstd: Option<i32>) -> Self {
        Self::draw_with(samples, side, zstd, |_, _| {})
    }

    /// As `draw`, each file's bytes first changed by `change`.
    pub fn draw_with(samples: u64, side: u32, zstd: Option<i32>, change: impl Fn(u64, &mut Vec<u8>)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..samples {
            let class = (i % 10) as usize;
            let dir = folder.path().join("pictures").join(drawn::CLASSES[class]);
            std::fs::create_dir_all(&dir).unwrap();
            let mut bytes = drawn::png(&drawn::picture(1, class, i, side));
            change(i, &mut bytes);
            std::fs::write(dir.join(format!("{i:03}.png")), bytes).unwrap();
        }
        let options = PackOptions {
            shard_bytes: 40_000,
            zstd,
            seed: 1,
            resize: None,
            labels: None,
            threads: 2,
            progress: &|_, _| {},
        };
        let out = folder.path().join("packed");
        pack(&folder.path().join("pictures"), &out, &options).unwrap();
        Self { manifest: Manifest::read(&out.join("manifest.json")).unwrap(), _folder: folder }
    }
}

/// The paper's recipe at this side.
pub fn recipe(size: u32) -> RecipeConfig {
    let ops = vec![
        Op::RandomResizedCrop(RandomResizedCrop {
            scale: [0.08, 1.0],
            ratio: [0.75, 4.0 / 3.0],
            interpolation: Interpolation::Bicubic,
        }),
        Op::HorizontalFlip(HorizontalFlip { probability: 0.5 }),
        Op::ColorJitter(ColorJitter {
            probability: 0.8,
            strength: 1.0,
            brightness: 0.8,
            contrast: 0.8,
            saturation: 0.8,
            hue: 0.2,
            brightness_rule: BrightnessRule::Multiply,
        }),
        Op::Grayscale(Grayscale { probability: 0.2 }),
        Op::GaussianBlur(GaussianBlur { probability: 0.5, sigma: [0.1, 2.0], kernel: 0.1 }),
    ];
    RecipeConfig { mode: Mode::Torchvision, decode: DecodePath::Planar, size, views: 2, ops, branches: vec![] }
}

/// A shuffled stream of two small views.
pub fn stream(seed: u64, batch: u32, lanes: u32) -> StreamConfig {
    StreamConfig {
        seed,
        data: DataConfig {
            manifest: "".into(),
            limit: 0,
            classes: vec![],
            subset: "".into(),
            part: [0.0, 1.0],
            max_damaged: 0.0,
            max_pixels: 1 << 20,
            exif_orientation: false,
        },
        traversal: Traversal::Shuffled(OrderConfig { lanes, shuffle_block_shards: 2 }),
        batch: BatchConfig { size: batch },
        recipe: recipe(24),
    }
}
