//! The ways to classify with a representation: each gives answers for the test images, and tells how it was done.

use std::cell::OnceCell;
use std::path::Path;

use pipeline::manifest::Manifest;
use pipeline::plan::{DataConfig, Plan, StreamConfig};
use serde_json::{Value, json};
use tch::{Device, Tensor};
use trainer::eval::{
    Answers, Classifier, Features, FineTuneConfig, KnnConfig, LinearConfig, LogisticConfig, knn, linear,
    linear_on_crops, logistic, normalized_halves,
};
use trainer::resnet::{MOMENTUM, Statistics};
use trainer::simclr::SimClr;

use super::super::Voice;
use super::model::{Labels, Loaded, encode, open};
use crate::WrongInput;
use crate::cli::{EvalArgs, FinetuneArgs, LinearArgs, Solver, TransferArgs, TransferMethod};
use crate::config::Augment;
use crate::progress::Progress;

/// The share of a training set that is held out to choose settings by.
const HELD_OUT: f64 = 0.1;

/// A model and the sets that it is evaluated on.
pub struct Task<'a> {
    pub loaded: &'a Loaded,
    /// What the training set lists.
    pub train: Manifest,
    /// What the test set lists.
    pub test: Manifest,
    common: &'a EvalArgs,
    runtime: &'a tokio::runtime::Handle,
    voice: Voice,
    features: OnceCell<(Features, Features)>,
}

/// What one run of an evaluation gave.
pub struct Outcome {
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

impl<'a> Task<'a> {
    /// # Errors
    /// If a manifest can't be read.
    pub fn new(
        loaded: &'a Loaded,
        common: &'a EvalArgs,
        runtime: &'a tokio::runtime::Handle,
        voice: Voice,
    ) -> anyhow::Result<Self> {
        let (train, test) = (Manifest::read(&common.train)?, Manifest::read(&common.test)?);
        Ok(Self { loaded, train, test, common, runtime, voice, features: OnceCell::new() })
    }

    /// Nearest neighbours.
    pub fn knn(&self, config: &KnnConfig) -> anyhow::Result<Outcome> {
        let represent = |views: &Tensor| normalized_halves(&self.loaded.represent(views));
        let (train, test) = self.features(&represent)?;
        let k = u64::from(config.k).min(train.labels.size()[0] as u64);
        let told = json!({ "k": k, "temperature": config.temperature });
        Ok(self.outcome(knn(train, test, config)?, told))
    }

    /// A linear classifier on frozen features.
    pub fn linear(&self, args: &LinearArgs, seed: u64) -> anyhow::Result<Outcome> {
        let config = LinearConfig { epochs: args.epochs, seed, ..LinearConfig::default() };
        match (args.solver, args.crops) {
            (Solver::Lbfgs, true) => Err(WrongInput(
                "--crops: the features of crops change from epoch to epoch; --solver sgd is wanted".into(),
            )
            .into()),
            (Solver::Lbfgs, false) => self.logistic(seed),
            (Solver::Sgd, true) => self.linear_on_crops(&config),
            (Solver::Sgd, false) => {
                let (train, test) = self.cpu_features()?;
                let result = linear(train, test, &config)?;
                let told = json!({
                    "solver": "sgd", "learning_rate": result.learning_rate, "validation_top1": result.validation_top1,
                    "settings": config, "features": "centre crops, computed once",
                });
                Ok(self.outcome(result.answers, told))
            }
        }
    }

    fn linear_on_crops(&self, config: &LinearConfig) -> anyhow::Result<Outcome> {
        let Self { loaded, common, runtime, voice, .. } = *self;
        let base = &loaded.config;
        let cpu = |views: &Tensor| loaded.represent(views).to_device(Device::Cpu);
        let centres = |manifest: &Path, part, what| {
            let set = base.evaluation_stream(manifest.to_owned(), part, config.seed);
            encode(&cpu, (set, Labels::Wanted), (&base.machine, loaded.device), what, runtime, voice)
        };
        let held_out = centres(&common.train, [1.0 - HELD_OUT, 1.0], "held out")?;
        let test = centres(&common.test, [0.0, 1.0], "test set")?;
        let mut data = base.evaluation_data(common.train.clone());
        data.part = [0.0, 1.0 - HELD_OUT];
        let (stream, images) = self.supervised(data, config.batch, Augment::Crop, config.seed)?;
        let steps = images / u64::from(stream.batch.size) * u64::from(config.epochs);
        let (mut loader, _) = open(stream, Labels::Wanted, (&base.machine, loaded.device), Some(steps), runtime)?;
        let progress = Progress::new("probing", 0, steps, voice.quiet);
        let result =
            linear_on_crops(&cpu, (&mut loader, steps, loaded.device), (&held_out, &test), config, &mut |step| {
                progress.set(step, steps, || "steps".into());
            })?;
        progress.finish();
        let told = json!({
            "solver": "sgd", "learning_rate": result.learning_rate, "validation_top1": result.validation_top1,
            "settings": config, "features": "random crops and flips, anew in each epoch",
        });
        let left_out = held_out.left_out + test.left_out;
        let train_images = images as i64 + held_out.labels.size()[0];
        Ok(Outcome { answers: result.answers, train_images, left_out, told, model: None })
    }

    fn logistic(&self, seed: u64) -> anyhow::Result<Outcome> {
        let (train, test) = self.cpu_features()?;
        let metric = self.common.metric.into();
        let settings = LogisticConfig { metric, seed, ..LogisticConfig::default() };
        let result = logistic(train, test, &settings)?;
        let told = json!({
            "solver": "lbfgs", "lambda": result.lambda, "validation": result.validation, "settings": settings,
            "features": "centre crops, computed once",
        });
        Ok(self.outcome(result.answers, told))
    }

    /// The encoder learns too, from some or all labels.
    pub fn finetune(&self, args: &FinetuneArgs, seed: u64) -> anyhow::Result<Outcome> {
        let base = &self.loaded.config;
        let mut data = base.evaluation_data(self.common.train.clone());
        data.part = [0.0, args.share];
        data.subset = args.subset.clone().unwrap_or_default();
        let (stream, images) = self.supervised(data, args.batch, args.augment, seed)?;
        let batch = stream.batch.size;
        // The paper's: 60 epochs of 1 % of the labels, 30 of 10 %.
        let is_little = (images as f64) < 0.05 * self.train.samples as f64;
        let epochs = args.epochs.unwrap_or(if is_little { 60.0 } else { 30.0 });
        if !(epochs > 0.0 && epochs <= 1e6) {
            return Err(WrongInput(format!("--epochs {epochs}: above 0 and at most a million is wanted")).into());
        }
        let config = FineTuneConfig {
            steps: ((epochs * images as f64 / f64::from(batch)).round() as u64).max(1),
            learning_rate: args.learning_rate * f64::from(batch) / 256.0,
            weight_decay: args.weight_decay,
            statistics_share: MOMENTUM,
        };
        let classifier = self.train(stream, &config, seed, "fine-tuning")?;
        let (answers, left_out) = self.ask(&classifier, &self.common.test, [0.0, 1.0], seed)?;
        let told = json!({
            "share": args.share, "subset": args.subset, "epochs": epochs, "batch": batch, "augment": args.augment,
            "settings": config, "from": if self.loaded.chosen.is_some() { "checkpoint" } else { "scratch" },
        });
        let model = Some(classifier.into_model());
        Ok(Outcome { answers, train_images: images as i64, left_out, told, model })
    }

    /// As the paper's transfer experiments (appendix B.8): what is left open is chosen on held-out images.
    pub fn transfer(&self, args: &TransferArgs, seed: u64) -> anyhow::Result<Outcome> {
        if args.method == TransferMethod::Linear {
            return self.logistic(seed);
        }
        let base = &self.loaded.config;
        let scratch = self.loaded.chosen.is_none();
        let steps = args.steps.unwrap_or(if scratch { 40_000 } else { 20_000 });
        let logarithmic = |from: f64, to: f64, count: i32| -> Vec<f64> {
            (0..count).map(|i| 10f64.powf(from + (to - from) * f64::from(i) / f64::from(count - 1))).collect()
        };
        let (mut rates, mut decays) = (args.learning_rates.clone(), args.weight_decays.clone());
        if rates.is_empty() {
            rates = if scratch { logarithmic(-3.0, 0.0, 7) } else { logarithmic(-4.0, -1.0, 7) };
        }
        if decays.is_empty() {
            decays = if scratch { logarithmic(-5.0, -1.5, 8) } else { logarithmic(-6.0, -3.0, 7) };
            if !scratch {
                decays.push(0.0);
            }
        }
        let stream = |part| {
            let mut data = base.evaluation_data(self.common.train.clone());
            data.part = part;
            self.supervised(data, args.batch, Augment::Crop, seed)
        };
        let train = |part, rate: f64, decay: f64, what| {
            let (stream, images) = stream(part)?;
            let statistics_share = (10.0 * f64::from(stream.batch.size) / images as f64).min(MOMENTUM);
            // The paper divides the decay by the learning rate.
            let config = FineTuneConfig { steps, learning_rate: rate, weight_decay: decay / rate, statistics_share };
            self.train(stream, &config, seed, what)
        };
        let metric = self.common.metric.into();
        let mut tried = Vec::new();
        let searches = rates.len() * decays.len() > 1;
        for &rate in rates.iter().filter(|_| searches) {
            for &decay in &decays {
                let reached = match train([0.0, 1.0 - HELD_OUT], rate, decay, "choosing") {
                    Ok(classifier) => {
                        let (answers, _) = self.ask(&classifier, &self.common.train, [1.0 - HELD_OUT, 1.0], seed)?;
                        answers.value(metric)?
                    }
                    // Too high a rate is what the search is there to find out.
                    Err(error)
                        if matches!(error.downcast_ref(), Some(trainer::error::TrainError::NotFinite { .. })) =>
                    {
                        0.0
                    }
                    Err(error) => return Err(error),
                };
                tried.push((rate, decay, reached));
            }
        }
        let best = tried.iter().copied().max_by(|a, b| a.2.total_cmp(&b.2)).unwrap_or((rates[0], decays[0], f64::NAN));
        let classifier = train([0.0, 1.0], best.0, best.1, "fine-tuning")?;
        let (answers, left_out) = self.ask(&classifier, &self.common.test, [0.0, 1.0], seed)?;
        let tried: Vec<Value> = tried
            .iter()
            .map(
                |(rate, decay, reached)| json!({ "learning_rate": rate, "weight_decay": decay, "validation": reached }),
            )
            .collect();
        let told = json!({
            "method": "finetune", "steps": steps, "batch": args.batch, "learning_rate": best.0, "weight_decay": best.1,
            "tried": tried, "from": if scratch { "scratch" } else { "checkpoint" },
        });
        let (_, images) = stream([0.0, 1.0])?;
        Ok(Outcome { answers, train_images: images as i64, left_out, told, model: Some(classifier.into_model()) })
    }

    /// A stream to learn from, and how many images it is made from; a batch has as many as are asked for, or all.
    fn supervised(
        &self,
        data: DataConfig,
        batch: u32,
        augment: Augment,
        seed: u64,
    ) -> anyhow::Result<(StreamConfig, u64)> {
        if batch == 0 {
            return Err(WrongInput("--batch 0: at least one image per batch is wanted".into()).into());
        }
        let mut stream = self.loaded.config.supervised_stream(data, augment, seed);
        let images = Plan::new(&self.train, stream.clone())?.num_samples();
        stream.batch.size = images.min(batch.into()) as u32;
        Ok((stream, images))
    }

    /// Trains a classifier and the encoder below it.
    fn train(
        &self,
        stream: StreamConfig,
        config: &FineTuneConfig,
        seed: u64,
        what: &'static str,
    ) -> anyhow::Result<Classifier> {
        let Self { loaded, runtime, voice, .. } = *self;
        let classes = self.train.num_classes().max(self.test.num_classes());
        let mut classifier = Classifier::new(loaded.again(seed)?, loaded.layers, classes as i64);
        let machine = (&loaded.config.machine, loaded.device);
        let (mut loader, _) = open(stream, Labels::Wanted, machine, Some(config.steps), runtime)?;
        let progress = Progress::new(what, 0, config.steps, voice.quiet);
        let mut smooth = None::<(f64, f64)>;
        classifier.train(&mut loader, loaded.device, config, &mut |step| {
            let (loss, top1) = smooth.map_or((step.loss, step.top1), |(loss, top1)| {
                (0.95 * loss + 0.05 * step.loss, 0.95 * top1 + 0.05 * step.top1)
            });
            smooth = Some((loss, top1));
            progress.set(step.step, config.steps, || format!("loss {loss:.3}, top-1 {:.1} %", 100.0 * top1));
        })?;
        progress.finish();
        Ok(classifier)
    }

    /// What a trained classifier says of the images of a set, and how many damaged ones were left out.
    fn ask(
        &self,
        classifier: &Classifier,
        manifest: &Path,
        part: [f64; 2],
        seed: u64,
    ) -> anyhow::Result<(Answers, u64)> {
        let base = &self.loaded.config;
        let scores = |views: &Tensor| classifier.scores(views, Statistics::Running).to_device(Device::Cpu);
        let set = (base.evaluation_stream(manifest.to_owned(), part, seed), Labels::Wanted);
        let found = encode(&scores, set, (&base.machine, self.loaded.device), "test set", self.runtime, self.voice)?;
        Ok((Answers { scores: found.values, labels: found.labels }, found.left_out))
    }

    fn outcome(&self, answers: Answers, told: Value) -> Outcome {
        let (train, test) = self.features.get().expect("the answers are theirs");
        let (train_images, left_out) = (train.labels.size()[0], train.left_out + test.left_out);
        Outcome { answers, train_images, left_out, told, model: None }
    }

    fn cpu_features(&self) -> anyhow::Result<&(Features, Features)> {
        self.features(&|views| self.loaded.represent(views).to_device(Device::Cpu))
    }

    /// Features of both sets, made once however often they are asked for.
    fn features(&self, represent: &dyn Fn(&Tensor) -> Tensor) -> anyhow::Result<&(Features, Features)> {
        if self.features.get().is_none() {
            let config = &self.loaded.config;
            let machine = (&config.machine, self.loaded.device);
            let of = |manifest: &Path, what| {
                let set = (config.evaluation_stream(manifest.to_owned(), [0.0, 1.0], config.seed), Labels::Wanted);
                encode(represent, set, machine, what, self.runtime, self.voice)
            };
            let both = (of(&self.common.train, "train set")?, of(&self.common.test, "test set")?);
            let _ = self.features.set(both);
        }
        Ok(self.features.get().expect("set above"))
    }
}
