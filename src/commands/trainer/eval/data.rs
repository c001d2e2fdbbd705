//! The images of an evaluation: two manifests, read as a run's configuration says.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use simclr_data::loader::{Loader, LoaderOptions};
use simclr_data::manifest::Manifest;
use simclr_data::source::DamagePolicy;
use simclr_ground::batch_stream::{BatchStream, Next, StreamError};
use simclr_ground::error::{Classify, Error, ErrorClass, Result};
use simclr_ground::patience::{LOOK, LongWait};
use simclr_ground::position::Share;
use simclr_ground::stall::Waited;
use simclr_plan::{DataConfig, Plan, StreamConfig};
use simclr_trainer::device::DeviceSlab;
use simclr_trainer::eval::{EvalData, EvalView, SetInfo, SetRole, StreamRequest, StreamSize};
use tch::Device;

use super::classes::match_by_name;
use crate::config::Config;
use crate::open;
use crate::output::Output;
use crate::signals::Stop;
use crate::telemetry::logging::say;
use crate::telemetry::progress::Progress;

/// A labeled set.
struct LabeledSet {
    path: PathBuf,
    manifest: Arc<Manifest>,
    info: SetInfo,
}

impl LabeledSet {
    /// Restricts a stream to images that have a label, if some have none and nothing else does so.
    fn keep_labeled(&self, data: &mut DataConfig) {
        if self.info.samples < self.manifest.samples && data.classes.is_empty() {
            data.classes = match self.manifest.classes.is_empty() {
                true => (0..self.info.num_classes).map(|class| class.to_string()).collect(),
                false => self.manifest.classes.clone(),
            };
        }
    }
}

/// Two labeled sets, read as a run's configuration says.
pub struct ManifestData<'a> {
    config: &'a Config,
    sets: [LabeledSet; 2],
    runtime: &'a tokio::runtime::Handle,
    output: Output,
    stop: Option<Stop>,
    progress: Mutex<Option<(&'static str, Progress)>>,
}

impl<'a> ManifestData<'a> {
    /// The sets whose manifests are at `train` and `test`.
    ///
    /// # Errors
    /// If a manifest can't be read.
    pub fn open(
        config: &'a Config,
        train: &Path,
        test: &Path,
        runtime: &'a tokio::runtime::Handle,
        output: Output,
    ) -> Result<Self> {
        let reading = || open::reading(&config.data);
        let (voters, mut asked) = (open::manifest(train, reading())?, open::manifest(test, reading())?);
        match_by_name((train, &voters), (test, &mut asked))?;
        let set = |path: &Path, manifest: Manifest| {
            let (labeled, all) = (manifest.num_labeled(), manifest.samples);
            if 0 < labeled && labeled < all && !output.quiet {
                say(&format!(
                    "{}: {labeled} of {all} images have a label; the others are not evaluated",
                    path.display()
                ));
            }
            let info = SetInfo { samples: labeled, num_classes: manifest.num_classes() };
            LabeledSet { path: path.to_owned(), manifest: Arc::new(manifest), info }
        };
        let sets = [set(train, voters), set(test, asked)];
        Ok(Self { config, sets, runtime, output, stop: None, progress: Mutex::default() })
    }

    /// The same, given up when somebody asks to stop.
    pub fn until(self, stop: &Stop) -> Self {
        Self { stop: Some(stop.clone()), ..self }
    }

    /// What a set lists.
    pub fn manifest(&self, set: SetRole) -> &Manifest {
        &self.set(set).manifest
    }

    fn set(&self, set: SetRole) -> &LabeledSet {
        match set {
            SetRole::Train => &self.sets[0],
            SetRole::Test => &self.sets[1],
        }
    }

    /// The stream that is asked for.
    fn stream(&self, request: &StreamRequest) -> Result<StreamConfig> {
        let set = self.set(request.set);
        if request.view == EvalView::Center {
            let mut stream = self.config.evaluation_stream(set.path.clone(), request.part, request.seed);
            set.keep_labeled(&mut stream.data);
            return Ok(stream);
        }
        let mut data = self.config.evaluation_data(set.path.clone());
        (data.part, data.subset) = (request.part, request.subset.clone());
        set.keep_labeled(&mut data);
        let mut stream = self.config.supervised_stream(data, request.view, request.seed);
        let images = Plan::new(&*set.manifest, stream.clone())?.num_samples();
        stream.batch.size = images.min(request.batch.into()) as u32;
        Ok(stream)
    }
}

impl EvalData for ManifestData<'_> {
    fn info(&self, set: SetRole) -> &SetInfo {
        &self.set(set).info
    }

    fn size(&self, request: &StreamRequest) -> Result<StreamSize> {
        let stream = self.stream(request)?;
        let batch = stream.batch.size;
        Ok(StreamSize { images: Plan::new(&*self.set(request.set).manifest, stream)?.num_samples(), batch })
    }

    fn open(&self, request: &StreamRequest, device: Device) -> Result<Box<dyn BatchStream<DeviceSlab>>> {
        let set = self.set(request.set);
        if set.manifest.num_labeled() == 0 {
            return Err(Error::input(format!(
                "{}: the dataset has no labels; evaluation needs class folders, a list with classes, or .cls files",
                set.path.display()
            )));
        }
        let (stream, machine) = (self.stream(request)?, &self.config.machine);
        let batches = open_stream(set.manifest.clone(), stream, machine, device, request.batches, self.runtime)?;
        Ok(match self.stop.clone() {
            Some(stop) => Box::new(Stoppable { batches, stop }),
            None => batches,
        })
    }

    fn progress(&self, what: &'static str, done: u64, total: u64, message: &dyn Fn() -> String) {
        let mut current = self.progress.lock().expect("no panic while held");
        if current.as_ref().is_none_or(|(known, _)| *known != what) {
            *current = Some((what, Progress::new(what, 0, total, self.output.quiet)));
        }
        let (_, progress) = current.as_ref().expect("set above");
        progress.set(done, total, message);
        if done >= total {
            progress.finish();
            *current = None;
        }
    }
}

/// A stream that ends with an error when somebody asks to stop.
struct Stoppable {
    batches: Box<dyn BatchStream<DeviceSlab>>,
    stop: Stop,
}

#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted;

impl Classify for Interrupted {
    fn class(&self) -> ErrorClass {
        ErrorClass::Runtime
    }
}

impl BatchStream<DeviceSlab> for Stoppable {
    fn next_within(&mut self, patience: Duration) -> Result<Next<DeviceSlab>, StreamError> {
        let (until, mut long) = (Instant::now() + patience, LongWait::default());
        loop {
            if self.stop.is_asked() {
                return Err(StreamError::new(Interrupted));
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.batches.next_within(left.min(LOOK))? {
                Next::NotYet if left.is_zero() => return Ok(Next::NotYet),
                Next::NotYet => {
                    if let Some(waited) = long.due() {
                        let what = self.batches.waits_for();
                        tracing::warn!(
                            "the evaluation has waited {} s for a batch, and so for {what}",
                            waited.as_secs()
                        );
                    }
                }
                next => return Ok(next),
            }
        }
    }

    fn waits_for(&self) -> String {
        self.batches.waits_for()
    }

    fn waited(&self) -> Waited {
        self.batches.waited()
    }
}

/// A stream over a manifest in the device's slabs, on all threads that the machine gives; it ends after `batches` batches, if that is
/// given.
///
/// # Errors
/// If it can't be opened.
pub fn open_stream(
    manifest: impl Into<Arc<Manifest>>,
    stream: StreamConfig,
    machine: &crate::config::MachineConfig,
    device: Device,
    batches: Option<u64>,
    runtime: &tokio::runtime::Handle,
) -> Result<Box<dyn BatchStream<DeviceSlab>>> {
    let source = open::source_over(manifest, stream, machine, DamagePolicy::Budget)?;
    let threads = if machine.threads == 0 { open::cores() } else { machine.threads };
    let options = LoaderOptions { threads, from_batch: 0, to_batch: batches, share: Share::ALL };
    let plan = &source.plan;
    open::check_memory(plan, machine, Share::ALL, 1)?;
    let slabs = DeviceSlab::allocate(machine.batches_ahead + 1, plan.slab_bytes(Share::ALL), device)
        .map_err(|error| open::no_memory_because(plan, machine, Share::ALL, 1, &error))?;
    Ok(Box::new(Loader::start(source, slabs, options, runtime)?))
}
