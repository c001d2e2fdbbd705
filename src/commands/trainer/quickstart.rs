//! `quickstart`: the whole job on images that the program draws itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use clap::Args;
use serde_json::json;
use simclr_data::pack::{PackOptions, pack};
use simclr_ground::error::{Context, Error, Result};
use simclr_ground::files::write_whole;
use simclr_image::drawn;
use simclr_trainer::checkpoint;
use simclr_trainer::device;
use simclr_trainer::eval::{LinearConfig, SetRole, StreamRequest, encode, knn, linear};
use simclr_trainer::metrics::TrainerMetrics;
use simclr_trainer::model::SimClr;
use simclr_trainer::run::RunFolder;
use simclr_trainer::step::End;
use tch::{Device, Tensor};

use super::eval::ManifestData;
use super::train::live::Live;
use super::train::{show, train};
use crate::commands::Run;
use crate::config::Config;
use crate::drawing::contact_sheet::contact_sheet;
use crate::output::ExitStatus;
use crate::output::Output;
use crate::signals::Stop;
use crate::telemetry::progress::Progress;
use crate::{open, report};

/// Run the full pipeline on generated images (pack, train, evaluate, report); about 2 minutes.
#[derive(Args)]
pub struct QuickstartArgs {
    /// Run directory to create [default: runs/quickstart-1, -2, …].
    #[arg(long = "run-dir", visible_alias = "run", value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Override a value of the quickstart preset (repeatable).
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Number of training images to generate.
    #[arg(long, default_value_t = 4000)]
    pub train_images: u64,
    /// Number of test images to generate.
    #[arg(long, default_value_t = 1000)]
    pub test_images: u64,
    /// What people may hope that it takes.
    #[arg(hide = true)]
    pub words: Vec<String>,
}

/// Side of a drawn image in pixels.
const SIDE: u32 = 40;

impl Run for QuickstartArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        if let [word, ..] = &self.words[..] {
            return Err(Error::input(format!(
                "quickstart draws its own images and takes no data set, got {word}\n\
                 hint: to train on your own images: simclr-pipeline train --data {word}"
            )));
        }
        let began = Instant::now();
        let say = |text: String| {
            if !output.quiet {
                crate::telemetry::logging::say(&text);
            }
        };
        let mut config = Config::load(Some("quickstart"), &self.settings)?;
        let path = match &self.run {
            Some(path) => path.clone(),
            None => free_name(),
        };
        let folder = RunFolder::at(&path);
        if path.exists() {
            return Err(Error::input(format!("{}: already exists; choose another directory", path.display())));
        }
        let device = device::open(config.machine.device)?;
        device::compute_on_cpu(open::torch_threads(&config.machine, 1));
        let stop = Stop::on_signals()?;
        // What is half drawn is removed.
        stop.in_order();

        say(format!(
            "generating {} + {} images of {} classes and packing them",
            self.train_images,
            self.test_images,
            drawn::CLASSES.len()
        ));
        // Images of the two sets have different numbers, so none is in both.
        let data = std::path::absolute(&path)?.join("data");
        let train_set = draw(&data, "train", 0, self.train_images, config.seed, output)?;
        let test_set = draw(&data, "test", self.train_images, self.test_images, config.seed, output)?;
        config.data.manifest = train_set.clone();

        let runtime = open::runtime()?;
        let live = Arc::new(Live::default());
        show(&live, &config.machine, 0, runtime.handle(), output)?;
        let sheet = contact_sheet(&*open::source(config.stream(), &config.machine)?, 0, 8)?;
        write_whole(&folder.join("preview.png"), &drawn::png(&sheet)).context("cannot write the contact sheet")?;

        let model = SimClr::new(&config.model, config.seed, device, config.machine.precision)?;
        let sets = Sets { train: &train_set, test: &test_set, metrics: TrainerMetrics::register() };
        let evaluate = |step: u64| sets.evaluate((&model, step), &config, &folder, runtime.handle(), output);
        if stop.is_asked() {
            return Ok(ExitStatus::Interrupted);
        }
        let (knn_before, linear_before) = evaluate(0)?;
        if stop.is_asked() {
            return Ok(ExitStatus::Interrupted);
        }
        say(format!("untrained encoder: kNN {:.1} %, linear {:.1} %", 100.0 * knn_before, 100.0 * linear_before));

        let outcome = train(&config, &folder, false, (&stop, &live, None), runtime.handle(), output)?;
        stop.in_order();
        if outcome.end == End::Interrupted || stop.is_asked() {
            say(format!("stopped at step {}; run `train --run {} --resume` to continue", outcome.step, path.display()));
            return Ok(ExitStatus::Interrupted);
        }
        let (newest, _) = folder.checkpoints().newest();
        let (newest, _) = newest.ok_or_else(|| Error::runtime("the run wrote no checkpoint"))?;
        checkpoint::load(&newest, &model.parameters, None)?;
        let (knn_after, linear_after) = evaluate(outcome.step)?;
        if stop.is_asked() {
            return Ok(ExitStatus::Interrupted);
        }
        let report = folder.join("report.html");
        report::write(&folder, None, &report)?;
        let object = json!({
            "run": path, "report": report, "steps": outcome.step, "loss": outcome.loss, "seconds": began.elapsed().as_secs_f64(),
            "knn_top1_before": knn_before, "knn_top1": knn_after, "linear_top1_before": linear_before, "linear_top1": linear_after,
        });
        output.result(&object, || {
            format!(
                "{} steps in {:.0} s\n              untrained   trained\nkNN top-1       {:5.1} %   {:5.1} %\nlinear top-1    {:5.1} %   {:5.1} %\nreport: {}",
                outcome.step, began.elapsed().as_secs_f64(), 100.0 * knn_before, 100.0 * knn_after, 100.0 * linear_before,
                100.0 * linear_after, report.display()
            )
        })?;
        Ok(ExitStatus::Success)
    }
}

/// The two sets that were drawn.
struct Sets<'a> {
    train: &'a Path,
    test: &'a Path,
    metrics: TrainerMetrics,
}

impl Sets<'_> {
    /// Top-1 accuracy of nearest neighbors and of a linear classifier, noted in the run's folder.
    fn evaluate(
        &self,
        (model, step): (&SimClr, u64),
        config: &Config,
        folder: &RunFolder,
        runtime: &tokio::runtime::Handle,
        output: Output,
    ) -> Result<(f64, f64)> {
        let device = model.parameters.device();
        let represent = |views: &Tensor| model.represent(views, 0).to_device(Device::Cpu);
        let data = ManifestData::open(config, self.train, self.test, runtime, output)?;
        let encode = |set, what| encode(&represent, &data, &StreamRequest::centers(set, config.seed), device, what);
        let (train, test) = (encode(SetRole::Train, "train set")?, encode(SetRole::Test, "test set")?);
        let neighbors = knn(&train.halves(), &test.halves(), &config.eval.knn)?.measure()?;
        let settings = LinearConfig { epochs: 30, batch: 256, seed: config.seed, ..LinearConfig::default() };
        let probe = linear(&train, &test, &settings)?.answers.measure()?;
        self.metrics.knn_accuracy.set(neighbors.top1);
        for (name, top1, top5) in [("knn", neighbors.top1, neighbors.top5), ("linear", probe.top1, probe.top5)] {
            folder.add_evaluation(&json!({
                "evaluation": name, "step": step, "top1": top1, "top5": top5, "train": self.train, "test": self.test,
                "train_images": train.labels.size()[0], "test_images": test.labels.size()[0],
            }))?;
        }
        Ok((neighbors.top1, probe.top1))
    }
}

fn free_name() -> PathBuf {
    let names = (1..).map(|i| PathBuf::from(format!("runs/quickstart-{i}")));
    names.into_iter().find(|path| !path.exists()).expect("there are more numbers than folders")
}

/// Draws images into class folders, packs them, and removes the folders; the manifest of the packed set.
fn draw(data: &Path, name: &'static str, first: u64, count: u64, seed: u64, output: Output) -> Result<PathBuf> {
    let classes = drawn::CLASSES.len() as u64;
    if count < classes {
        return Err(Error::input(format!("--{name}-images must be at least {classes} (one per class), got {count}")));
    }
    std::fs::create_dir_all(data)
        .map_err(|error| Error::input(format!("cannot create {}: {error}", data.display())))?;
    let folder = tempfile::Builder::new().prefix(".drawing-").tempdir_in(data)?;
    for class in drawn::CLASSES {
        std::fs::create_dir(folder.path().join(class))?;
    }
    let progress = Progress::new("generating", 0, count, output.quiet);
    let threads = open::cores() as u64;
    let done = std::sync::atomic::AtomicU64::new(0);
    let draw_some = &|thread: u64| -> std::io::Result<()> {
        for i in (first + thread..first + count).step_by(threads as usize) {
            let class = (i % classes) as usize;
            let png = drawn::png(&drawn::image(seed, class, i, SIDE));
            std::fs::write(folder.path().join(drawn::CLASSES[class]).join(format!("{i:06}.png")), png)?;
            progress.set(done.fetch_add(1, Ordering::Relaxed) + 1, count, || "images".into());
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || draw_some(thread))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("drawing does not panic"))
    })
    .with_context(|| format!("cannot write images to {}", data.display()))?;
    progress.finish();
    let out = data.join(name);
    // Shards small enough for there to be several.
    let options = PackOptions { shard_bytes: 2 << 20, seed, threads: open::cores(), ..PackOptions::default() };
    pack(folder.path(), &out, &options)?;
    Ok(out.join("manifest.json"))
}
