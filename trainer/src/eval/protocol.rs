//! The paper's protocols: each way to classify with a representation gives answers for the test images, and tells how it
//! was done. Streams come from whoever calls ([`EvalData`]); nothing here knows where images lie.

use std::cell::OnceCell;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use simclr_ground::batch_stream::BatchStream;
use simclr_ground::error::{Error, Result};
use tch::{Device, Tensor};

use super::{
    Answers, Classifier, Features, FineTuneConfig, KnnConfig, LinearConfig, LinearResult, LogisticConfig, Metric,
    features, knn, linear, linear_on_crops, logistic, normalized_halves,
};
use crate::device::DeviceSlab;
use crate::error::TrainError;
use crate::model::SimClr;
use crate::model::resnet::{BatchNormMode, MOMENTUM};
use crate::run::model::Loaded;

/// The share of a training set that is held out to choose settings by.
const HELD_OUT: f64 = 0.1;

/// One of the two sets of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetRole {
    /// Whose labels are learned from.
    Train,
    /// Whose labels are guessed.
    Test,
}

/// What is seen of each image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvalView {
    /// Its center, image after image in order.
    Center,
    /// A random resized crop and a flip, as the run's recipe draws them, in random order.
    Crop,
    /// All of the run's recipe, in random order.
    Recipe,
}

/// A stream that an evaluation asks for: labeled images, one view of each.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamRequest {
    /// Of which set.
    pub set: SetRole,
    /// Which part of each class, in an order of the seed: from and to, as shares.
    pub part: [f64; 2],
    /// Only the images that this file lists; empty: all.
    pub subset: PathBuf,
    /// What is seen of each.
    pub view: EvalView,
    /// Images per batch; fewer if there are not so many. Of no consequence for centers.
    pub batch: u32,
    /// End after so many batches.
    pub batches: Option<u64>,
    /// Decides parts, order and views.
    pub seed: u64,
}

impl StreamRequest {
    /// The centers of all images of a set.
    pub fn centers(set: SetRole, seed: u64) -> Self {
        let (part, subset) = ([0.0, 1.0], PathBuf::new());
        Self { set, part, subset, view: EvalView::Center, batch: 256, batches: None, seed }
    }
}

/// How large a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamSize {
    /// Images that it is made from.
    pub images: u64,
    /// Images per batch.
    pub batch: u32,
}

/// What an evaluation knows of a set beside its images.
#[derive(Debug, Clone)]
pub struct SetInfo {
    /// Number of samples.
    pub samples: u64,
    /// One more than the largest label, or the number of class names if that is larger.
    pub num_classes: usize,
}

/// Where evaluations get their images from, and tell how far they are.
pub trait EvalData {
    /// What is known of a set.
    fn info(&self, set: SetRole) -> &SetInfo;

    /// How large a stream would be.
    ///
    /// # Errors
    /// If there is none such.
    fn size(&self, request: &StreamRequest) -> Result<StreamSize>;

    /// Opens a stream, whose slabs are for `device`.
    ///
    /// # Errors
    /// If it can't be read, or lacks labels.
    fn open(&self, request: &StreamRequest, device: Device) -> Result<Box<dyn BatchStream<DeviceSlab>>>;

    /// Says that `done` of `total` of something are done.
    fn progress(&self, what: &'static str, done: u64, total: u64, message: &dyn Fn() -> String);
}

/// A model and the sets that it is evaluated on.
pub struct Task<'a> {
    /// The model.
    pub loaded: &'a Loaded,
    /// The sets.
    pub data: &'a dyn EvalData,
    /// By which number settings are chosen.
    pub metric: Metric,
    features: OnceCell<(Features, Features)>,
}

/// What one run of an evaluation gave.
pub struct Outcome {
    /// What it says of the test images.
    pub answers: Answers,
    /// Images that were trained on, or voted.
    pub train_images: i64,
    /// Damaged samples that were left out.
    pub left_out: u64,
    /// What was chosen and with which settings.
    pub told: Value,
    /// The model that was trained, if it was.
    pub model: Option<SimClr>,
}

/// How the paper's fine-tuning is varied.
#[derive(Debug, Clone, PartialEq)]
pub struct FinetuneSettings {
    /// Fraction of each class's labels to train on, in seeded random order.
    pub share: f64,
    /// Train on the images listed in this file; empty: all of the fraction.
    pub subset: PathBuf,
    /// Epochs; by default 60 below 5% of the data, else 30.
    pub epochs: Option<f64>,
    /// Images per step.
    pub batch: u32,
    /// Base learning rate at batch size 256 (scaled linearly).
    pub learning_rate: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// What is seen of each image.
    pub view: EvalView,
}

/// How the paper's search of fine-tuning settings is varied (appendix B.8).
#[derive(Debug, Clone, PartialEq)]
pub struct TransferSettings {
    /// Steps; 20000, or 40000 from scratch, if not given.
    pub steps: Option<u64>,
    /// Images per step.
    pub batch: u32,
    /// Learning rates that are tried; the paper's 7 if there are none.
    pub learning_rates: Vec<f64>,
    /// Weight decays that are tried, divided by the learning rate; the paper's 8 if there are none.
    pub weight_decays: Vec<f64>,
}

/// Fewer labeled images a class than this are few: 5 % of ImageNet's.
const LITTLE_A_CLASS: f64 = 64.0;

impl<'a> Task<'a> {
    /// The evaluations of a model on two sets.
    pub fn new(loaded: &'a Loaded, data: &'a dyn EvalData, metric: Metric) -> Self {
        Self { loaded, data, metric, features: OnceCell::new() }
    }

    /// Nearest neighbors.
    ///
    /// # Errors
    /// If a set can't be read.
    pub fn knn(&self, config: &KnnConfig) -> Result<Outcome> {
        let represent = |views: &Tensor| normalized_halves(&self.loaded.represent(views));
        let (train, test) = self.features(&represent)?;
        let k = u64::from(config.k).min(train.labels.size()[0] as u64);
        let told = json!({ "k": k, "temperature": config.temperature });
        Ok(self.outcome(knn(train, test, config)?, told))
    }

    /// A linear classifier on frozen features of centers.
    ///
    /// # Errors
    /// If a set can't be read, or is too small to hold any images out.
    pub fn linear(&self, config: &LinearConfig) -> Result<Outcome> {
        let (train, test) = self.cpu_features()?;
        let result = linear(train, test, config)?;
        let told = json!({
            "solver": "sgd", "learning_rate": result.learning_rate, "validation_top1": result.validation_top1,
            "settings": config, "features": "center crops, computed once",
        });
        Ok(self.outcome(result.answers, told))
    }

    /// A linear classifier on frozen features of random crops and flips, each epoch anew.
    ///
    /// # Errors
    /// If a set can't be read, or is too small to hold any images out.
    pub fn linear_on_crops(&self, config: &LinearConfig) -> Result<Outcome> {
        let device = self.loaded.device;
        let cpu = |views: &Tensor| self.loaded.represent(views).to_device(Device::Cpu);
        let held_out = StreamRequest { part: [1.0 - HELD_OUT, 1.0], ..self.centers(SetRole::Train, config.seed) };
        let held_out = self.encode(&cpu, &held_out, "held out")?;
        let test = self.encode(&cpu, &self.centers(SetRole::Test, config.seed), "test set")?;
        let crops = StreamRequest {
            part: [0.0, 1.0 - HELD_OUT],
            view: EvalView::Crop,
            batch: config.batch,
            ..self.centers(SetRole::Train, config.seed)
        };
        let trained = |request: &StreamRequest, config: &LinearConfig, what: &'static str| -> Result<_> {
            let size = self.data.size(request)?;
            let steps = size.images / u64::from(size.batch) * u64::from(config.epochs);
            let mut batches = self.data.open(&StreamRequest { batches: Some(steps), ..request.clone() }, device)?;
            let mut on_step = |step| self.data.progress(what, step, steps, &|| "steps".into());
            let features = (&held_out, &test);
            let result =
                linear_on_crops(&cpu, (&mut *batches, steps, size.batch, device), features, config, &mut on_step)?;
            Ok((result, size.images))
        };
        let (chosen, _) = trained(&crops, config, "choosing")?;
        let alone = LinearConfig { learning_rates: vec![chosen.learning_rate], ..config.clone() };
        let (last, images) = trained(&StreamRequest { part: [0.0, 1.0], ..crops }, &alone, "probing")?;
        let result = LinearResult { answers: last.answers, ..chosen };
        let told = json!({
            "solver": "sgd", "learning_rate": result.learning_rate, "validation_top1": result.validation_top1,
            "settings": config, "features": "random crops and flips, resampled every epoch",
        });
        let left_out = held_out.left_out + test.left_out;
        Ok(Outcome { answers: result.answers, train_images: images as i64, left_out, told, model: None })
    }

    /// Logistic regression on frozen features of centers.
    ///
    /// # Errors
    /// If a set can't be read, or is too small to hold any images out.
    pub fn logistic(&self, seed: u64) -> Result<Outcome> {
        let (train, test) = self.cpu_features()?;
        let settings = LogisticConfig { metric: self.metric, seed, ..LogisticConfig::default() };
        let result = logistic(train, test, &settings)?;
        let told = json!({
            "solver": "lbfgs", "lambda": result.lambda, "validation": result.validation, "settings": settings,
            "features": "center crops, computed once",
        });
        Ok(self.outcome(result.answers, told))
    }

    /// The encoder learns too, from some or all labels.
    ///
    /// # Errors
    /// If a set can't be read, a setting is out of its range, or the loss is no number.
    pub fn finetune(&self, settings: &FinetuneSettings, seed: u64) -> Result<Outcome> {
        let request = StreamRequest {
            part: [0.0, settings.share],
            subset: settings.subset.clone(),
            view: settings.view,
            batch: settings.batch,
            ..self.centers(SetRole::Train, seed)
        };
        let StreamSize { images, batch } = self.supervised(&request)?;
        // The paper's: 60 epochs of 1 % of the labels, 30 of 10 %. A training set may itself be the 1 %, as the official subset
        // of ImageNet is, with 13 images a class.
        let info = self.data.info(SetRole::Train);
        let a_class = images as f64 / info.num_classes.max(1) as f64;
        let is_little = (images as f64) < 0.05 * info.samples as f64 || a_class < LITTLE_A_CLASS;
        let epochs = settings.epochs.unwrap_or(if is_little { 60.0 } else { 30.0 });
        if !(epochs > 0.0 && epochs <= 1e6) {
            return Err(Error::input(format!("--epochs must be > 0 and <= 1000000, got {epochs}")));
        }
        let config = FineTuneConfig {
            steps: ((epochs * images as f64 / f64::from(batch)).round() as u64).max(1),
            learning_rate: settings.learning_rate * f64::from(batch) / 256.0,
            weight_decay: settings.weight_decay,
            statistics_share: MOMENTUM,
        };
        let classifier = self.train(&request, &config, "fine-tuning")?;
        let (answers, left_out) = self.ask(&classifier, &self.centers(SetRole::Test, seed))?;
        let subset = (!settings.subset.as_os_str().is_empty()).then_some(&settings.subset);
        let told = json!({
            "share": settings.share, "subset": subset, "epochs": epochs, "batch": batch, "augment": settings.view,
            "settings": config, "from": self.from(),
        });
        let model = Some(classifier.into_model());
        Ok(Outcome { answers, train_images: images as i64, left_out, told, model })
    }

    /// As the paper's transfer experiments (appendix B.8): what is left open is chosen on held-out images.
    ///
    /// # Errors
    /// If a set can't be read, or the loss is no number.
    pub fn transfer(&self, settings: &TransferSettings, seed: u64) -> Result<Outcome> {
        let scratch = self.loaded.chosen.is_none();
        let steps = settings.steps.unwrap_or(if scratch { 40_000 } else { 20_000 });
        let (rates, decays) = grid(settings, scratch);
        let part = |part| StreamRequest {
            part,
            view: EvalView::Crop,
            batch: settings.batch,
            ..self.centers(SetRole::Train, seed)
        };
        let train = |request: &StreamRequest, rate: f64, decay: f64, what| {
            let StreamSize { images, batch } = self.supervised(request)?;
            let statistics_share = (10.0 * f64::from(batch) / images as f64).min(MOMENTUM);
            // The paper divides the decay by the learning rate.
            let config = FineTuneConfig { steps, learning_rate: rate, weight_decay: decay / rate, statistics_share };
            self.train(request, &config, what)
        };
        let held_out = StreamRequest { part: [1.0 - HELD_OUT, 1.0], ..self.centers(SetRole::Train, seed) };
        let mut tried = Vec::new();
        let searches = rates.len() * decays.len() > 1;
        for &rate in rates.iter().filter(|_| searches) {
            for &decay in &decays {
                let reached = match train(&part([0.0, 1.0 - HELD_OUT]), rate, decay, "choosing") {
                    Ok(classifier) => self.ask(&classifier, &held_out)?.0.value(self.metric)?,
                    // Too high a rate is what the search is there to find out.
                    Err(error) if matches!(error.downcast_ref(), Some(TrainError::NotFinite { .. })) => 0.0,
                    Err(error) => return Err(error),
                };
                tried.push((rate, decay, reached));
            }
        }
        let best = tried.iter().copied().max_by(|a, b| a.2.total_cmp(&b.2)).unwrap_or((rates[0], decays[0], f64::NAN));
        let all = part([0.0, 1.0]);
        let classifier = train(&all, best.0, best.1, "fine-tuning")?;
        let (answers, left_out) = self.ask(&classifier, &self.centers(SetRole::Test, seed))?;
        let tried: Vec<Value> = tried
            .iter()
            .map(
                |(rate, decay, reached)| json!({ "learning_rate": rate, "weight_decay": decay, "validation": reached }),
            )
            .collect();
        let told = json!({
            "method": "finetune", "steps": steps, "batch": settings.batch, "learning_rate": best.0,
            "weight_decay": best.1, "tried": tried, "from": self.from(),
        });
        let train_images = self.data.size(&all)?.images as i64;
        Ok(Outcome { answers, train_images, left_out, told, model: Some(classifier.into_model()) })
    }

    /// Where the encoder's first weights come from.
    fn from(&self) -> &'static str {
        if self.loaded.chosen.is_some() { "checkpoint" } else { "scratch" }
    }

    fn centers(&self, set: SetRole, seed: u64) -> StreamRequest {
        StreamRequest::centers(set, seed)
    }

    /// How large a stream to learn from is.
    fn supervised(&self, request: &StreamRequest) -> Result<StreamSize> {
        if request.batch == 0 {
            return Err(Error::input("--batch must be at least 1"));
        }
        self.data.size(request)
    }

    /// Trains a classifier and the encoder below it.
    fn train(&self, request: &StreamRequest, config: &FineTuneConfig, what: &'static str) -> Result<Classifier> {
        let loaded = self.loaded;
        let classes = self.data.info(SetRole::Train).num_classes.max(self.data.info(SetRole::Test).num_classes);
        let mut classifier = Classifier::new(loaded.again(request.seed)?, loaded.layers, classes as i64);
        let request = StreamRequest { batches: Some(config.steps), ..request.clone() };
        let mut batches = self.data.open(&request, loaded.device)?;
        let mut smooth = None::<(f64, f64)>;
        classifier.train(&mut *batches, loaded.device, config, &mut |step| {
            let (loss, top1) = smooth.map_or((step.loss, step.top1), |(loss, top1)| {
                (0.95 * loss + 0.05 * step.loss, 0.95 * top1 + 0.05 * step.top1)
            });
            smooth = Some((loss, top1));
            let message = || format!("loss {loss:.3}, top-1 {:.1} %", 100.0 * top1);
            self.data.progress(what, step.step, config.steps, &message);
        })?;
        Ok(classifier)
    }

    /// What a trained classifier says of the images of a stream, and how many damaged ones were left out.
    fn ask(&self, classifier: &Classifier, request: &StreamRequest) -> Result<(Answers, u64)> {
        let scores = |views: &Tensor| classifier.scores(views, BatchNormMode::Running).to_device(Device::Cpu);
        let found = self.encode(&scores, request, "test set")?;
        Ok((Answers { scores: found.values, labels: found.labels }, found.left_out))
    }

    fn outcome(&self, answers: Answers, told: Value) -> Outcome {
        let (train, test) = self.features.get().expect("the answers are theirs");
        let (train_images, left_out) = (train.labels.size()[0], train.left_out + test.left_out);
        Outcome { answers, train_images, left_out, told, model: None }
    }

    fn cpu_features(&self) -> Result<&(Features, Features)> {
        self.features(&|views| self.loaded.represent(views).to_device(Device::Cpu))
    }

    /// Features of both sets, made once however often they are asked for.
    fn features(&self, represent: &dyn Fn(&Tensor) -> Tensor) -> Result<&(Features, Features)> {
        if self.features.get().is_none() {
            let seed = self.loaded.seed;
            let train = self.encode(represent, &self.centers(SetRole::Train, seed), "train set")?;
            let test = self.encode(represent, &self.centers(SetRole::Test, seed), "test set")?;
            let _ = self.features.set((train, test));
        }
        Ok(self.features.get().expect("set above"))
    }

    fn encode(
        &self,
        represent: &dyn Fn(&Tensor) -> Tensor,
        request: &StreamRequest,
        what: &'static str,
    ) -> Result<Features> {
        encode(represent, self.data, request, self.loaded.device, what)
    }
}

/// What `represent` makes of all images of a stream.
///
/// # Errors
/// If the images can't be read.
pub fn encode(
    represent: &dyn Fn(&Tensor) -> Tensor,
    data: &dyn EvalData,
    request: &StreamRequest,
    device: Device,
    what: &'static str,
) -> Result<Features> {
    let total = data.size(request)?.images;
    let mut batches = data.open(request, device)?;
    let mut done = 0;
    Ok(features(represent, &mut *batches, device, &mut |images| {
        done += images as u64;
        data.progress(what, done, total, &|| "images encoded".into());
    })?)
}

/// The learning rates and weight decays that a search goes through: those that are given, else the paper's.
fn grid(settings: &TransferSettings, scratch: bool) -> (Vec<f64>, Vec<f64>) {
    let logarithmic = |from: f64, to: f64, count: i32| -> Vec<f64> {
        (0..count).map(|i| 10f64.powf(from + (to - from) * f64::from(i) / f64::from(count - 1))).collect()
    };
    let (mut rates, mut decays) = (settings.learning_rates.clone(), settings.weight_decays.clone());
    if rates.is_empty() {
        rates = if scratch { logarithmic(-3.0, 0.0, 7) } else { logarithmic(-4.0, -1.0, 7) };
    }
    if decays.is_empty() {
        decays = if scratch { logarithmic(-5.0, -1.5, 8) } else { logarithmic(-6.0, -3.0, 7) };
        if !scratch {
            decays.push(0.0);
        }
    }
    (rates, decays)
}
