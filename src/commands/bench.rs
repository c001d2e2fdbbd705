//! `bench`: how fast the loader is on the user's shards, what each stage costs, and what limits it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::{Args, ValueEnum};
use serde_json::json;
use simclr_data::decode_memory::DECODE_MEMORY;
use simclr_data::loader::{Loader, LoaderOptions};
use simclr_data::metrics::{PipelineMetrics, Stage, Waiting};
use simclr_data::source::{DamagePolicy, Source};
use simclr_ground::activity::Activity;
use simclr_ground::batch_stream::BatchStream;
use simclr_ground::error::{Error, Result};
use simclr_ground::position::Share;
use simclr_ground::sample::SampleRef;
use simclr_ground::stall::Waited;
use simclr_image::augment::Op;
use simclr_image::decode::{decode, decode_bytes};
use simclr_plan::{StreamConfig, Traversal};

use super::Run;
use super::args::ConfigArgs;
use crate::config::{Config, MachineConfig};
use crate::open;
use crate::output::ExitStatus;
use crate::output::Output;

/// Benchmark data loading on your shards and report the bottleneck.
#[derive(Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Workload to benchmark.
    #[arg(long, value_enum, default_value = "simclr")]
    pub variant: Variant,
    /// Number of images to load.
    #[arg(long, default_value_t = 2000)]
    pub images: u64,
    /// Worker threads (0 = all cores).
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Disable instrumentation (to measure its overhead).
    #[arg(long)]
    pub no_metrics: bool,
    /// Target throughput in images per second, all devices together; reports how many cores are needed to sustain it.
    #[arg(long, visible_alias = "feed", value_name = "IMAGES_PER_SECOND")]
    pub target_rate: Option<f64>,
}

/// What `bench` measures.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// Decode only.
    Decode,
    /// Decode, then one random-resized-crop with flip.
    Rrc1,
    /// Decode, then two such views.
    Rrc2,
    /// Decode, then the full augmentation recipe for each view.
    Simclr,
}

/// Images in a batch here: enough for all threads to work on one, small beside the images measured.
const BATCH: u64 = 64;

/// Samples that a thread reads at a time when it only decodes, as the loader's workers get them.
const READ_AT_A_TIME: u64 = 16;

impl Run for BenchArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let mut config = self.config.load()?;
        if self.images == 0 {
            return Err(Error::input("--images must be at least 1"));
        }
        if self.threads > 4096 {
            return Err(Error::input(format!("--threads must be at most 4096, got {}", self.threads)));
        }
        if self.target_rate.is_some_and(|wanted| !(wanted > 0.0 && wanted.is_finite())) {
            return Err(Error::input(format!(
                "--target-rate must be greater than 0, got {}",
                self.target_rate.unwrap_or(0.0)
            )));
        }
        let threads = if self.threads == 0 { open::cores() } else { self.threads };
        let manifest = open::fitted(&mut config)?;
        let stream = self.stream(&config, manifest.samples);
        let source = match self.no_metrics {
            true => {
                let storage = open::store_options(&config.machine);
                Source::open(manifest, stream, &storage, DamagePolicy::Budget, PipelineMetrics::silent())?
            }
            false => open::source_over(manifest, stream, &config.machine, DamagePolicy::Budget)?,
        };
        let run = self.measure(&source, &config.machine, threads)?;
        if self.no_metrics {
            let (rate, cpu) = (run.images_per_second(), run.cpu_per_image());
            let object = json!({ "images_per_second": rate, "cpu_seconds_per_image": cpu, "threads": threads });
            output.result(&object, || {
                format!("{rate:.1} images/s on {threads} threads, {:.3} ms of CPU per image", 1e3 * cpu)
            })?;
            return Ok(ExitStatus::Success);
        }
        let findings = Findings::new(self, &source, &config.machine, run);
        output.result(&findings.object(self, &source), || findings.text(self.target_rate.unwrap_or(1000.0)))?;
        Ok(ExitStatus::Success)
    }
}

impl BenchArgs {
    /// The stream that is read: the configuration's, in batches of few images and with as much of the recipe as asked for.
    fn stream(&self, config: &Config, samples: u64) -> StreamConfig {
        let mut wanted = config.stream();
        wanted.batch.size = BATCH.min(if wanted.data.limit > 0 { wanted.data.limit } else { samples }) as u32;
        if let Traversal::Shuffled(order) = &mut wanted.traversal {
            order.lanes = 1;
        }
        if self.variant != Variant::Simclr {
            wanted.recipe.views = if self.variant == Variant::Rrc2 { 2 } else { 1 };
            wanted.recipe.branches.clear();
            wanted.recipe.ops.retain(|op| matches!(op, Op::RandomResizedCrop(_) | Op::HorizontalFlip(_)));
        }
        wanted
    }

    /// Reads the images, and measures what that takes.
    fn measure(&self, source: &Arc<Source>, machine: &MachineConfig, threads: usize) -> Result<Measured> {
        let runtime = open::runtime()?;
        let (before, began) = (cpu_seconds(), Instant::now());
        let mut waited = Waited::default();
        let images = match self.variant {
            Variant::Decode => decode_all(source, self.images, threads, runtime.handle())?,
            _ => {
                let batches = self.images.div_ceil(source.plan.config.batch.size.into());
                let options = LoaderOptions { threads, from_batch: 0, to_batch: Some(batches), share: Share::ALL };
                let slabs = open::plain_slabs(&source.plan, machine, options.share)?;
                let mut loader = Loader::start(source.clone(), slabs, options, runtime.handle())?;
                let mut images = 0;
                while let Some(batch) = loader.next_batch()? {
                    images += batch.num_images as u64;
                }
                waited = BatchStream::waited(&loader);
                images
            }
        };
        let seconds = began.elapsed().as_secs_f64();
        Ok(Measured { threads, images, seconds, cpu_seconds: cpu_seconds() - before, waited })
    }
}

/// What reading the images took.
struct Measured {
    threads: usize,
    images: u64,
    seconds: f64,
    /// Of all threads together.
    cpu_seconds: f64,
    waited: Waited,
}

impl Measured {
    fn images_per_second(&self) -> f64 {
        self.images as f64 / self.seconds
    }

    fn cpu_per_image(&self) -> f64 {
        self.cpu_seconds / self.images as f64
    }
}

/// What the measurements say of the loader.
struct Findings {
    run: Measured,
    variant: &'static str,
    /// CPU seconds that an image takes in each stage.
    busy: Vec<(Stage, f64)>,
    /// The share of their time for which workers had nothing to do.
    starved: f64,
    bottleneck: &'static str,
    /// All CPU time over that of decoding and augmenting alone.
    overhead: f64,
    slabs: usize,
    slab_bytes: usize,
    peak_memory: u64,
}

impl Findings {
    fn new(args: &BenchArgs, source: &Source, machine: &MachineConfig, run: Measured) -> Self {
        let busy = Stage::ALL.map(|stage| (stage, source.metrics.busy_seconds(stage) / run.images as f64));
        let starved = source.metrics.wait_seconds(Waiting::ForWork) / (run.threads as f64 * run.seconds);
        let bare: f64 = busy.iter().filter(|(stage, _)| *stage != Stage::Read).map(|(_, seconds)| seconds).sum();
        let variant = match args.variant {
            Variant::Decode => "decode",
            Variant::Rrc1 => "rrc1",
            Variant::Rrc2 => "rrc2",
            Variant::Simclr => "simclr",
        };
        Self {
            variant,
            starved,
            bottleneck: bottleneck(source, starved),
            overhead: run.cpu_per_image() / bare,
            slabs: machine.batches_ahead + 1,
            slab_bytes: if args.variant == Variant::Decode { 0 } else { source.plan.slab_bytes(Share::ALL) },
            peak_memory: peak_memory(),
            busy: busy.to_vec(),
            run,
        }
    }

    /// How many cores like these make so many images a second.
    fn cores_for(&self, images_per_second: f64) -> f64 {
        (images_per_second * self.run.cpu_per_image()).ceil()
    }

    fn object(&self, args: &BenchArgs, source: &Source) -> serde_json::Value {
        let Self { run, busy, .. } = self;
        let stages: serde_json::Map<_, _> = busy.iter().map(|(stage, x)| (stage.name().to_owned(), json!(x))).collect();
        json!({
            "variant": self.variant, "threads": run.threads, "images": run.images,
            "views": source.plan.config.recipe.count(), "seconds": run.seconds,
            "images_per_second": run.images_per_second(), "cpu_seconds_per_image": run.cpu_per_image(),
            "stages": stages, "cpu_per_bare_chain": self.overhead, "workers_waiting": self.starved,
            "bottleneck": self.bottleneck, "waited_for": run.waited.causes().into_iter().collect::<BTreeMap<_, _>>(),
            "peak_memory_bytes": self.peak_memory, "slabs": self.slabs, "slab_bytes": self.slab_bytes,
            "feed_images_per_second": args.target_rate, "cores_to_feed": args.target_rate.map(|wanted| self.cores_for(wanted)),
            "damaged": source.quarantine.entries().len(),
        })
    }

    /// It for people, and how many cores `wanted` images a second need.
    fn text(&self, wanted: f64) -> String {
        let Self { run, slabs, .. } = self;
        let mut text = format!(
            "{}: {:.1} images/s on {} threads, {:.3} ms of CPU per image\n",
            self.variant,
            run.images_per_second(),
            run.threads,
            1e3 * run.cpu_per_image()
        );
        for (stage, seconds) in &self.busy {
            text += &format!("  {:8} {:7.3} ms per image\n", stage.name(), 1e3 * seconds);
        }
        let overhead = self.overhead;
        text +=
            &format!("  {:8} {overhead:7.2}x decode + augment (overhead: reading, ordering, hand-off)\n", "all CPU");
        let (peak, slab) = (self.peak_memory as f64 / 1e6, self.slab_bytes as f64 / 1e6);
        text += &format!("memory: {peak:.0} MB peak, including {slabs} batches of {slab:.0} MB\n");
        let mut causes: Vec<_> = run.waited.causes().into_iter().filter(|(cause, _)| *cause != "start").collect();
        causes.sort_by(|a, b| b.1.total_cmp(&a.1));
        let total: f64 = causes.iter().map(|(_, seconds)| seconds).sum();
        if total > 0.0 {
            let shares = causes.iter().map(|(cause, seconds)| (cause, 100.0 * seconds / total));
            let shares =
                shares.filter(|(_, share)| *share >= 0.5).map(|(cause, share)| format!("{cause} {share:.0} %"));
            text += &format!("a faster consumer would be limited by: {}\n", shares.collect::<Vec<_>>().join(", "));
        }
        text += &format!("{wanted:.0} images/s needs about {:.0} cores like these\n", self.cores_for(wanted));
        let waiting = 100.0 * self.starved;
        text + &match self.bottleneck {
            "storage" => {
                format!("bottleneck: storage (workers spend {waiting:.0}% of their time waiting for data)")
            }
            "slabs" => format!(
                "bottleneck: free batches (workers spend {waiting:.0}% of their time waiting for one; increase \
                 machine.batches_ahead)"
            ),
            stage => format!("bottleneck: CPU (workers are busy, mostly with {stage}; add threads or cores)"),
        }
    }
}

/// What limits: workers that are starved lack bytes or places to write to; the others have too much to do.
fn bottleneck(source: &Source, starved: f64) -> &'static str {
    let waited = |waiting| source.metrics.wait_seconds(waiting);
    let busy = |stage| source.metrics.busy_seconds(stage);
    if starved > 0.25 {
        if waited(Waiting::ForSlab) > waited(Waiting::ForStorage) { "slabs" } else { "storage" }
    } else if busy(Stage::Read) > busy(Stage::Decode) + busy(Stage::Augment) {
        "storage"
    } else if busy(Stage::Decode) >= busy(Stage::Augment) {
        "decode"
    } else {
        "augment"
    }
}

/// Reads and decodes `images` samples, in the manifest's order, over and over; how many.
fn decode_all(source: &Source, images: u64, threads: usize, runtime: &tokio::runtime::Handle) -> Result<u64> {
    let plan = &source.plan;
    let samples: Vec<SampleRef> = plan
        .shard_sizes
        .iter()
        .enumerate()
        .flat_map(|(shard, &n)| (0..n).map(move |nth| plan.taken(shard as u32, nth)))
        .collect();
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let work = || -> Result<()> {
            let (mut memory, mut time) = (Vec::new(), source.metrics.worker());
            loop {
                let from = next.fetch_add(READ_AT_A_TIME, Ordering::Relaxed);
                if from >= images {
                    return Ok(());
                }
                let some = from..(from + READ_AT_A_TIME).min(images);
                let some: Vec<SampleRef> = some.map(|i| samples[(i % samples.len() as u64) as usize]).collect();
                let located = runtime.block_on(source.store.locate(&some))?;
                for (&sample, located) in some.iter().zip(&located) {
                    time.turn_to(Activity::Read);
                    let bytes = source.store.bytes(sample, located, &mut memory, runtime)?;
                    let _room = DECODE_MEMORY.room(decode_bytes(bytes));
                    time.turn_to(Activity::Decode);
                    // What is damaged takes its time too; it is counted like the rest.
                    let _ = decode(bytes, plan.config.data.max_pixels);
                }
                time.turn_to(Activity::Idle);
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("decoding does not panic"))
    })?;
    Ok(images)
}

/// CPU seconds of this process so far, over all threads.
fn cpu_seconds() -> f64 {
    let usage = usage();
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// The most memory that this process has had, in bytes.
fn peak_memory() -> u64 {
    usage().ru_maxrss as u64 * 1024
}

#[allow(unsafe_code)]
fn usage() -> libc::rusage {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is a valid place for one rusage, which getrusage fills; all-zero bytes are one too.
    unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    }
}
