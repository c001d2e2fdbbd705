//! How much the pixels of views change by what makes them faster, as PSNR, on the shards of a manifest:
//!
//! - `BENCH_MANIFEST=all.json cargo bench -p simclr-data --bench quality`: the planar path against full decoding and the
//!   reference library's resize;
//! - with `BENCH_PACKED=packed.json` as well: views of images that `pack` shrank or re-encoded against views of the
//!   originals, told from each other by their file names.

use std::collections::HashMap;
use std::sync::Arc;

use simclr_data::manifest::Manifest;
use simclr_data::metrics::PipelineMetrics;
use simclr_data::store::{Store, StoreOptions};
use simclr_ground::sample::SampleRef;
use simclr_image::augment::{DecodePath, HorizontalFlip, Interpolation, Mode, Op, RandomResizedCrop, RecipeConfig};
use simclr_image::views::{Key, ViewMaker};
use simclr_plan::{StreamConfig, Traversal};

const SIZE: u32 = 224;
const VIEWS: u32 = 2;

fn main() {
    let Some(path) = std::env::var_os("BENCH_MANIFEST") else {
        println!("quality: set BENCH_MANIFEST to a manifest of photographs");
        return;
    };
    let images = images(path.as_ref());
    if let Some(packed) = std::env::var_os("BENCH_PACKED") {
        let packed: HashMap<_, _> = self::images(packed.as_ref()).into_iter().collect();
        let pairs = images.iter().filter_map(|(name, bytes)| Some((&bytes[..], &packed.get(name)?[..])));
        let config = config(Mode::Paper, Interpolation::Bicubic, DecodePath::Planar);
        report("packed", &compare(pairs, &config, &config));
        return;
    }
    for interpolation in [Interpolation::Bicubic, Interpolation::Bilinear] {
        for mode in [Mode::Torchvision, Mode::Paper] {
            let pairs = images.iter().map(|(_, bytes)| (&bytes[..], &bytes[..]));
            let [planar, full] = [DecodePath::Planar, DecodePath::Full].map(|path| config(mode, interpolation, path));
            report(&format!("{mode:?} {interpolation:?}"), &compare(pairs, &planar, &full));
        }
    }
}

/// Each sample's file name, without its folders and ending, and bytes.
fn images(path: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let manifest = Arc::new(Manifest::read(path).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let store = Store::new(manifest.clone(), &StoreOptions::default(), PipelineMetrics::register()).unwrap();
    let mut images = Vec::new();
    for (shard, samples) in manifest.shards.iter().enumerate() {
        for (index, entry) in samples.entries.iter().enumerate() {
            let sample = SampleRef { shard: shard as u32, index: index as u32 };
            let bytes = store.read(&[sample], runtime.handle()).unwrap().pop().unwrap();
            let name = entry.rsplit('/').next().unwrap();
            images.push((name.split('.').next().unwrap().to_owned(), bytes.to_vec()));
        }
    }
    images
}

fn config(mode: Mode, interpolation: Interpolation, decode: DecodePath) -> StreamConfig {
    let crop = RandomResizedCrop { interpolation, ..RandomResizedCrop::default() };
    let ops = vec![Op::RandomResizedCrop(crop), Op::HorizontalFlip(HorizontalFlip { probability: 0.5 })];
    let recipe = RecipeConfig { mode, decode, size: SIZE, views: VIEWS, ops, branches: vec![] };
    StreamConfig { traversal: Traversal::Sequential, ..StreamConfig::shuffled(1, 1, 1, recipe) }
}

/// PSNR in dB of each view of each pair of images that both can be decoded, sorted.
fn compare<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>, a: &StreamConfig, b: &StreamConfig) -> Vec<f64> {
    let maker = |config: &StreamConfig| ViewMaker::new(&config.recipe, config.data.decode_limits());
    let (mut first, mut second) = (maker(a), maker(b));
    let mut found = Vec::new();
    for (sample, (a, b)) in pairs.enumerate() {
        let key = Key { seed: 1, epoch: 0, sample: sample as u64 };
        if first.decode(a, None, key).is_err() || second.decode(b, None, key).is_err() {
            continue;
        }
        for view in 0..VIEWS as usize {
            let bytes = simclr_image::augment::view_bytes(SIZE);
            let (mut a, mut b) = (vec![0; bytes], vec![0; bytes]);
            first.write(view, &mut a);
            second.write(view, &mut b);
            let square = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
            let error = a.iter().zip(&b).map(square).sum::<f64>() / bytes as f64;
            found.push(10.0 * (255.0 * 255.0 / error.max(1e-9)).log10());
        }
    }
    found.sort_by(f64::total_cmp);
    found
}

fn report(what: &str, psnr: &[f64]) {
    let at = |share: f64| psnr[((psnr.len() - 1) as f64 * share) as usize];
    let (low, tenth, median) = (at(0.01), at(0.1), at(0.5));
    println!("{what}: PSNR of {} views, dB: 1 % {low:.1}, 10 % {tenth:.1}, median {median:.1}", psnr.len());
}
