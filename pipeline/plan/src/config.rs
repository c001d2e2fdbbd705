//! What a stream is made from, as the configuration has it.

use serde::{Deserialize, Serialize};
use simclr_image::augment::RecipeConfig;
use simclr_image::views::DecodeLimits;

use crate::order::OrderConfig;

/// Which samples the stream takes from the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The data set: a manifest's path, or whatever else a manifest can be made of.
    pub manifest: std::path::PathBuf,
    /// In shards: the extension of the entry that is the image, such as `input.jpg`, where a key has several; empty takes the
    /// one whose whole extension is that of an image.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// In shards: the field of `.json` entries that is the class, by index or by name, where there is no `.cls`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label_field: String,
    /// A file with a name and a class on each line, which decides alone; empty takes what the data set itself says.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub labels: std::path::PathBuf,
    /// Only the first n samples of those wanted, before shuffling; 0 takes all.
    pub limit: u64,
    /// Only samples of these classes, by name or index; empty takes all. Labels stay as they are.
    pub classes: Vec<String>,
    /// Only the samples that this file names, one on a line, by file name as the official `imagenet_subsets` do
    /// (`n01440764_10026.JPEG`), or by key; empty takes all.
    pub subset: std::path::PathBuf,
    /// Only this part of each class's samples, which the seed puts in order: where it begins and where it ends, as
    /// shares. [0, 0.01] takes one of a hundred, [0, 1] all; two parts that do not overlap have no sample in common.
    #[serde(default = "whole")]
    pub part: [f64; 2],
    /// The run stops when more than this share of the samples is damaged, in [0, 1].
    pub max_damaged: f64,
    /// Images of more pixels than this count as damaged, before they are decoded.
    pub max_pixels: u64,
    /// Turn images upright as their EXIF orientation says; the field's loaders do not.
    pub exif_orientation: bool,
}

fn is_empty(path: &std::path::Path) -> bool {
    path.as_os_str().is_empty()
}

/// [`DataConfig::part`] of records that know no parts.
fn whole() -> [f64; 2] {
    [0.0, 1.0]
}

/// How many images a batch has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// Images per global batch, `B`; a SimCLR batch holds `2B` views. 0 in a configuration: fits the data set.
    pub size: u32,
}

/// In which order a stream visits the samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Traversal {
    /// Epoch after epoch, each a permutation; what does not fill the last batch of an epoch is dropped.
    Shuffled(OrderConfig),
    /// Once, in the manifest's order; the last batch may be short. For evaluation.
    Sequential,
}

/// What a stream is made from, apart from the manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamConfig {
    /// The run's seed.
    pub seed: u64,
    /// Which samples.
    pub data: DataConfig,
    /// In which order.
    pub traversal: Traversal,
    /// How many at a time.
    pub batch: BatchConfig,
    /// What is done to each.
    pub recipe: RecipeConfig,
}

impl DataConfig {
    /// What decoding may cost, and how images are turned.
    pub fn decode_limits(&self) -> DecodeLimits {
        DecodeLimits { max_pixels: self.max_pixels, exif_orientation: self.exif_orientation }
    }
}

impl StreamConfig {
    /// A shuffled stream of all samples of whatever set it is planned over, with no damage allowed.
    pub fn shuffled(seed: u64, batch: u32, lanes: u32, recipe: RecipeConfig) -> Self {
        Self {
            seed,
            data: DataConfig {
                manifest: "".into(),
                image: String::new(),
                label_field: String::new(),
                labels: std::path::PathBuf::new(),
                limit: 0,
                classes: vec![],
                subset: "".into(),
                part: whole(),
                max_damaged: 0.0,
                max_pixels: 1 << 28,
                exif_orientation: false,
            },
            traversal: Traversal::Shuffled(OrderConfig { lanes, shuffle_block_shards: 2 }),
            batch: BatchConfig { size: batch },
            recipe,
        }
    }
}
