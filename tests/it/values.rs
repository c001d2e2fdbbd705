//! Batches are values: what small sets and recipes gave when their digests were recorded, they give for ever.
//!
//! `golden/streams.json` holds the digests. `RECORD=1 cargo test --test it values::` writes it anew; a change of a value
//! already there is a change of the stream, and raises `STREAM_VERSION`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::world::{TINY, World};

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/golden/streams.json")
}

/// The paper's ops for small images, which streams have that say nothing else: presets may change.
const PAPER: &str = "recipe.ops=[\
    { op = \"random_resized_crop\", scale = [0.08, 1.0], ratio = [0.75, 1.3333333333333333], interpolation = \"bicubic\" }, \
    { op = \"horizontal_flip\", probability = 0.5 }, \
    { op = \"color_jitter\", probability = 0.8, strength = 0.5, brightness = 0.8, contrast = 0.8, saturation = 0.8, hue = 0.2, brightness_rule = \"multiply\" }, \
    { op = \"grayscale\", probability = 0.2 }]";

/// The same, with offsets of crops as the official kernel draws them.
const OFFICIAL: &str = "recipe.ops=[\
    { op = \"random_resized_crop\", scale = [0.08, 1.0], ratio = [0.75, 1.3333333333333333], interpolation = \"bicubic\", reach_last = false }, \
    { op = \"horizontal_flip\", probability = 0.5 }, \
    { op = \"color_jitter\", probability = 0.8, strength = 0.5, brightness = 0.8, contrast = 0.8, saturation = 0.8, hue = 0.2, brightness_rule = \"multiply\" }, \
    { op = \"grayscale\", probability = 0.2 }]";

/// Every op that there is, behind a crop.
const EVERY_OP: &str = "recipe.ops=[\
    { op = \"random_resized_crop\", scale = [0.2, 1.0], ratio = [0.75, 1.3333333333333333], interpolation = \"bicubic\" }, \
    { op = \"horizontal_flip\", probability = 0.5 }, \
    { op = \"color_jitter\", probability = 0.8, strength = 0.5, brightness = 0.8, contrast = 0.8, saturation = 0.8, hue = 0.2, brightness_rule = \"multiply\" }, \
    { op = \"grayscale\", probability = 0.2 }, \
    { op = \"gaussian_blur\", probability = 0.5, sigma = [0.1, 2.0], kernel = 0.1 }, \
    { op = \"cutout\", probability = 0.5, side = 0.4, value = 127 }, \
    { op = \"rotation\", probability = 0.5, degrees = [90, 180, 270] }, \
    { op = \"gaussian_noise\", probability = 0.5, sigma = [2, 20] }, \
    { op = \"sobel\", probability = 0.2 }, \
    { op = \"solarize\", probability = 0.2, threshold = 128 }, \
    { op = \"equalize\", probability = 0.2 }, \
    { op = \"motion_blur\", probability = 0.3, length = [2, 9] }, \
    { op = \"auto_augment\", probability = 0.5 }]";

const BRANCHES: &str = "recipe.branches=[{ size = 8, views = 3, ops = [\
    { op = \"random_resized_crop\", scale = [0.05, 0.3], ratio = [0.75, 1.33], interpolation = \"bilinear\" }, \
    { op = \"horizontal_flip\", probability = 0.5 }] }]";

const CENTER: &str = "recipe.ops=[{ op = \"center_crop\", fraction = 0.875, interpolation = \"bicubic\" }, { op = \"color_jitter\", \
     probability = 1.0, strength = 1.0, brightness = 0.8, contrast = 0.8, saturation = 0.8, hue = 0.2, \
     brightness_rule = \"add\" }]";

/// Streams by name: the set, and what is set beside the tiny configuration.
const STREAMS: &[(&str, &str, &[&str])] = &[
    ("plain", "png", &[]),
    ("zstd", "zstd", &[]),
    ("jpeg", "jpeg", &[]),
    ("subsampled", "subsampled", &[]),
    ("another seed", "png", &["seed=2"]),
    ("torchvision", "jpeg", &["recipe.mode=torchvision"]),
    ("torchvision, full decode", "jpeg", &["recipe.mode=torchvision", "recipe.decode=full"]),
    ("paper, full decode", "jpeg", &["recipe.decode=full"]),
    ("every op", "jpeg", &[EVERY_OP]),
    ("every op, torchvision", "png", &[EVERY_OP, "recipe.mode=torchvision"]),
    ("branches", "jpeg", &[BRANCHES]),
    ("center crop", "jpeg", &[CENTER]),
    ("official offsets", "jpeg", &[OFFICIAL]),
    ("one lane", "png", &["order.lanes=1", "order.shuffle_block_shards=1"]),
    ("larger views", "jpeg", &["recipe.size=48"]),
    ("first samples", "png", &["data.limit=41"]),
    ("some classes", "png", &["data.classes=[\"disc\", \"7\"]"]),
    ("half of each class", "png", &["data.part=[0.0, 0.5]"]),
    ("the other half", "png", &["data.part=[0.5, 1.0]"]),
    ("a list", "png", &["data.subset=list.txt", "batch.size=4"]),
    ("upright", "jpeg", &["data.exif_orientation=true"]),
];

fn settings(more: &[&'static str]) -> Vec<&'static str> {
    let ops = more.iter().all(|setting| !setting.starts_with("recipe.ops=")).then_some(&PAPER);
    ops.into_iter().chain(more).flat_map(|setting| ["--set", setting]).collect()
}

#[test]
fn streams_have_the_digests_on_record() {
    let world = World::new();
    let sets: BTreeMap<&str, String> = [
        ("png", world.packed("png", 60, &[])),
        ("zstd", world.packed("zstd", 60, &["--zstd", "3"])),
        ("jpeg", world.packed("jpeg", 60, &["--quality", "92"])),
        ("subsampled", world.packed("subsampled", 60, &["--quality", "75", "--subsample", "--resize-short", "17"])),
    ]
    .into();
    std::fs::write(world.at("list.txt"), "0003.png\n0014.png\ndisc/0020.png\n0021.png\n0038.png\n").unwrap();
    let mut found = BTreeMap::new();
    for (name, set, more) in STREAMS {
        let settings = settings(more);
        let digest = |more: &[&str]| {
            world
                .done(&[&["digest"], TINY, &["--manifest", &sets[set], "--batches", "9"], &settings[..], more].concat())
        };
        let object = digest(&[]);
        if *name != "one lane" {
            assert_eq!(object["digest"], digest(&["--ranks", "2"])["digest"], "{name}: two ranks");
        }
        found.insert(
            (*name).to_owned(),
            json!({
                "manifest": object["manifest_digest"], "plan": object["plan_digest"], "batches": object["digest"],
            }),
        );
    }
    let recorded: Value = match std::env::var_os("RECORD") {
        Some(_) => {
            std::fs::write(golden(), serde_json::to_string_pretty(&found).unwrap() + "\n").unwrap();
            return;
        }
        None => serde_json::from_slice(&std::fs::read(golden()).unwrap()).unwrap(),
    };
    let found = serde_json::to_value(&found).unwrap();
    let differ: Vec<&String> =
        recorded.as_object().unwrap().keys().filter(|name| recorded[*name] != found[*name]).collect();
    assert!(differ.is_empty(), "these streams have other digests: {differ:?}");
    assert_eq!(recorded.as_object().unwrap().len(), STREAMS.len());
}
