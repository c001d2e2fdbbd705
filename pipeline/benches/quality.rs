//! How far the planar path is from full decoding and the reference library's resize, on the shards of a manifest:
//! `BENCH_MANIFEST=/path/manifest.json cargo bench -p pipeline --bench quality`.

use std::sync::Arc;

use pipeline::augment::{DecodePath, Interpolation, Mode, Op, RandomResizedCrop, RecipeConfig};
use pipeline::manifest::Manifest;
use pipeline::metrics::PipelineMetrics;
use pipeline::order::SampleRef;
use pipeline::plan::{BatchConfig, DataConfig, StreamConfig, Traversal};
use pipeline::store::{Store, StoreOptions};
use pipeline::views::{Key, ViewMaker};

fn main() {
    let Some(path) = std::env::var_os("BENCH_MANIFEST") else {
        println!("quality: set BENCH_MANIFEST to a manifest of photographs");
        return;
    };
    let manifest = Arc::new(Manifest::read(path.as_ref()).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let store = Store::new(manifest.clone(), &StoreOptions::default(), PipelineMetrics::register()).unwrap();
    for interpolation in [Interpolation::Bicubic, Interpolation::Bilinear] {
        for mode in [Mode::Torchvision, Mode::Paper] {
            let config = |decode| StreamConfig {
                seed: 1,
                data: DataConfig {
                    manifest: Default::default(),
                    limit: 0,
                    classes: vec![],
                    subset: Default::default(),
                    max_damaged: 1.0,
                    max_pixels: 1 << 30,
                    exif_orientation: false,
                },
                traversal: Traversal::Sequential,
                batch: BatchConfig { size: 1 },
                recipe: RecipeConfig {
                    mode,
                    decode,
                    size: 224,
                    views: 2,
                    ops: vec![Op::RandomResizedCrop(RandomResizedCrop {
                        scale: [0.08, 1.0],
                        ratio: [0.75, 4.0 / 3.0],
                        interpolation,
                    })],
                    branches: vec![],
                },
            };
            let (mut planar, mut full) =
                (ViewMaker::new(&config(DecodePath::Planar)), ViewMaker::new(&config(DecodePath::Full)));
            let mut psnr = Vec::new();
            for (shard, samples) in manifest.shards.iter().enumerate() {
                for index in 0..samples.num_samples() {
                    let sample = SampleRef { shard: shard as u32, index: index as u32 };
                    let bytes = runtime.block_on(store.read(&[sample])).unwrap().pop().unwrap();
                    let key = Key { seed: 1, epoch: 0, sample: index as u64 };
                    if planar.decode(&bytes, key).is_err() || full.decode(&bytes, key).is_err() {
                        continue;
                    }
                    for view in 0..2 {
                        let (mut a, mut b) = (vec![0; 224 * 224 * 3], vec![0; 224 * 224 * 3]);
                        planar.write(view, &mut a);
                        full.write(view, &mut b);
                        let square = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
                        let error = a.iter().zip(&b).map(square).sum::<f64>() / a.len() as f64;
                        psnr.push(10.0 * (255.0 * 255.0 / error.max(1e-9)).log10());
                    }
                }
            }
            psnr.sort_by(f64::total_cmp);
            let at = |share: f64| psnr[((psnr.len() - 1) as f64 * share) as usize];
            println!(
                "{mode:?} {interpolation:?}: PSNR of {} views, dB: 1 % {:.1}, 10 % {:.1}, median {:.1}",
                psnr.len(),
                at(0.01),
                at(0.1),
                at(0.5)
            );
        }
    }
}
