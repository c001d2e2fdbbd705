//! What the network costs: the same batches made here, and fed over loopback: `cargo bench -p simclr-service --bench feed`.
//!
//! Service and client share this process and its cores with the workers, so what sending and receiving take is taken
//! from decoding: on two machines it is not. Loader and feed take turns. Images are drawn; with `BENCH_MANIFEST=FILE`
//! they are yours (the views are then 224 pixels wide, or `BENCH_SIZE`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use simclr_data::loader::{Loader, LoaderOptions};
use simclr_data::manifest::Manifest;
use simclr_data::metrics::PipelineMetrics;
use simclr_data::pack::{PackOptions, pack};
use simclr_data::source::{DamagePolicy, Source};
use simclr_data::store::StoreOptions;
use simclr_ground::batch_stream::BatchStream;
use simclr_ground::position::Share;
use simclr_image::augment::RecipeConfig;
use simclr_plan::StreamConfig;
use simclr_service::client::Feed;
use simclr_service::reach::FeedConfig;
use simclr_service::{Service, ServiceConfig, server};

const ROUNDS: usize = 7;
const SLABS: usize = 3;

fn main() {
    let folder = std::env::temp_dir().join(format!("feed-bench-{}", std::process::id()));
    if let Some(manifest) = std::env::var_os("BENCH_MANIFEST") {
        let size = std::env::var("BENCH_SIZE").map_or(224, |text| text.parse().expect("BENCH_SIZE is a number"));
        bench("your images", Path::new(&manifest), size, if size > 64 { 64 } else { 512 });
    } else {
        bench("32 × 32", &drawn(&folder.join("small"), 2000, (32, 32)), 32, 512);
        bench("500 × 375", &drawn(&folder.join("large"), 200, (500, 375)), 224, 64);
    }
    let _ = std::fs::remove_dir_all(&folder);
}

/// Packs drawn JPEGs; the manifest.
fn drawn(folder: &Path, count: u32, (width, height): (u32, u32)) -> PathBuf {
    let images = folder.join("pictures/noise");
    std::fs::create_dir_all(&images).unwrap();
    let mut noise = 1u32;
    for i in 0..count {
        let pixels: Vec<u8> = (0..width * height * 3)
            .map(|k| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let (x, y) = ((k / 3 % width) as f32, (k / 3 / width) as f32);
                let shape = 128.0 + 70.0 * (x / 23.0 + (k % 3) as f32 + i as f32).sin() * (y / 31.0).cos();
                (shape + ((noise >> 24) as f32 - 128.0) * 0.25) as u8
            })
            .collect();
        let mut bytes = Vec::new();
        let encoder = jpeg_encoder::Encoder::new(&mut bytes, 93);
        encoder.encode(&pixels, width as u16, height as u16, jpeg_encoder::ColorType::Rgb).unwrap();
        std::fs::write(images.join(format!("{i:05}.jpg")), bytes).unwrap();
    }
    let options = PackOptions { shard_bytes: 4 << 20, threads: 2, ..PackOptions::default() };
    pack(&folder.join("pictures"), &folder.join("packed"), &options).unwrap();
    folder.join("packed/manifest.json")
}

fn source(manifest: &Path, size: u32, batch: u32) -> Arc<Source> {
    let recipe = serde_json::json!({
        "mode": "paper", "decode": "planar", "size": size, "views": 2, "branches": [], "ops": [
            { "op": "random_resized_crop", "scale": [0.08, 1.0], "ratio": [0.75, 4.0 / 3.0], "interpolation": "bicubic" },
            { "op": "horizontal_flip", "probability": 0.5 },
            { "op": "color_jitter", "probability": 0.8, "strength": 1.0, "brightness": 0.8, "contrast": 0.8,
              "saturation": 0.8, "hue": 0.2, "brightness_rule": "multiply" },
            { "op": "grayscale", "probability": 0.2 },
            { "op": "gaussian_blur", "probability": 0.5, "sigma": [0.1, 2.0], "kernel": 0.1 },
        ],
    });
    let recipe: RecipeConfig = serde_json::from_value(recipe).unwrap();
    let mut config = StreamConfig::shuffled(1, batch, 8, recipe);
    (config.data.manifest, config.data.max_damaged) = (manifest.into(), 1.0);
    let manifest = Manifest::read(manifest).unwrap();
    let options = StoreOptions { memory_bytes: 2 << 30, ..StoreOptions::default() };
    Source::open(manifest, config, &options, DamagePolicy::Any, PipelineMetrics::register()).unwrap()
}

/// What a round took.
#[derive(Clone, Copy)]
struct Took {
    images_per_second: f64,
    cpu_seconds_per_image: f64,
}

fn bench(what: &str, manifest: &Path, size: u32, batch: u32) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let source = source(manifest, size, batch);
    let bytes = source.plan.slab_bytes(Share::ALL);
    let slabs = || vec![vec![0u8; bytes]; SLABS];
    // Some hundred MB.
    let kept = if size > 64 { 32 } else { 256 };
    let service = ServiceConfig {
        memory_bytes: (kept + 32) * bytes as u64,
        connections: 8,
        streams: 64,
        message_bytes: 2 << 20,
        client_timeout_seconds: 30,
        drain_seconds: 1,
        token: "".into(),
        certificate: "".into(),
        key: "".into(),
        client_ca: "".into(),
        names: Vec::new(),
    };
    let doors = server::ServerSecurity::open(&service).unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let feed = FeedConfig {
        nodes: vec![format!("grpc://{}", listener.local_addr().unwrap())],
        token: "".into(),
        ca: "".into(),
        certificate: "".into(),
        key: "".into(),
        timeout_seconds: 10,
        stall_seconds: 60,
        patience_seconds: 10,
    };
    let service = Service::start(source.clone(), service, threads, SLABS - 1, runtime.handle()).unwrap();
    let serving = runtime.spawn(server::serve(service.clone(), listener, doors));
    let start_feed =
        |batches| Feed::start(source.clone(), slabs(), &feed, Share::ALL, batches, runtime.handle()).unwrap();
    // About two seconds a round.
    let per_round = if size > 64 { 3000 / u64::from(batch) } else { 60_000 / u64::from(batch) }.max(4);
    let (mut here, mut fed) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS as u64 {
        let range = (round * per_round, (round + 1) * per_round);
        let options = LoaderOptions { threads, from_batch: range.0, to_batch: Some(range.1), share: Share::ALL };
        let mut loader = Loader::start(source.clone(), slabs(), options, runtime.handle()).unwrap();
        here.push(measure(&mut loader));
        drop(loader);
        fed.push(measure(&mut start_feed((range.0, Some(range.1)))));
    }
    // Batches that are made already: what the way alone takes. They are kept while there are two streams.
    let (mut first, mut second) = (start_feed((0, None)), start_feed((0, None)));
    second.next_batch().unwrap();
    for _ in 0..kept {
        first.next_batch().unwrap();
    }
    let way: Vec<Took> = (0..ROUNDS).map(|_| measure(&mut start_feed((0, Some(kept))))).collect();
    drop((first, second));
    service.drain();
    runtime.block_on(serving).unwrap().unwrap();

    let median = |rounds: &[Took], of: fn(&Took) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let speed = |rounds: &[Took]| median(rounds, |took| took.images_per_second);
    let cpu = |rounds: &[Took]| median(rounds, |took| took.cpu_seconds_per_image);
    let image = bytes as f64 / f64::from(batch);
    println!("{what} images, two views of {size} pixels ({:.0} kB), batches of {batch}, {threads} cores", image / 1e3);
    println!("  made here    {:9.0} images/s  {:7.3} ms CPU/image", speed(&here), 1e3 * cpu(&here));
    println!(
        "  fed          {:9.0} images/s  {:7.3} ms CPU/image  {:.3} of the speed",
        speed(&fed),
        1e3 * cpu(&fed),
        speed(&fed) / speed(&here)
    );
    println!(
        "  the way alone {:8.0} images/s  {:7.3} ms CPU/image  {:.2} GB/s, {:.2} s CPU/GB",
        speed(&way),
        1e3 * cpu(&way),
        1e-9 * image * speed(&way),
        1e9 * cpu(&way) / image
    );
}

fn measure(stream: &mut dyn BatchStream<Vec<u8>>) -> Took {
    let mut images = 0;
    // The first batch is waited for before the clock starts: connections and threads are there by then.
    drop(stream.next_batch().unwrap());
    let (began, before) = (Instant::now(), cpu_seconds());
    while let Some(batch) = stream.next_batch().unwrap() {
        images += batch.num_images;
    }
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - before);
    Took { images_per_second: images as f64 / seconds, cpu_seconds_per_image: cpu / images as f64 }
}

/// CPU time of this process, from the system's clock ticks.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<u64> =
        stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2).map(|x| x.parse().unwrap()).collect();
    (fields[0] + fields[1]) as f64 / 100.0
}
