//! Arguments that several commands share.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use clap::Args;
use simclr_data::listing::Reading;
use simclr_ground::error::{Error, Result};
use simclr_service::reach::FeedConfig;

use crate::config::Config;

/// What to stream.
#[derive(Args, Clone)]
pub struct ConfigArgs {
    /// TOML file or preset name [presets: own-images, imagenet-resnet50, cifar10-resnet18, quickstart; default: own-images].
    #[arg(long, value_name = "FILE|PRESET")]
    pub config: Option<String>,
    /// Override a config value, e.g. --set batch.size=256 (repeatable).
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Dataset: a folder of images in any shape, a list of image files (.txt, .csv), a manifest, or shards (a folder,
    /// pattern or URL); shorthand for --set data.manifest=DATA.
    #[arg(long, visible_alias = "manifest", value_name = "DATA")]
    pub data: Option<PathBuf>,
    /// The dataset, as --data, and config values, as --set.
    #[arg(value_name = "DATA|KEY=VALUE")]
    pub words: Vec<String>,
    /// What people set most.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Flags for what people set most.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Common settings")]
pub struct CommonArgs {
    /// Epochs to train for: --set schedule.epochs=N.
    #[arg(long, value_name = "N")]
    pub epochs: Option<f64>,
    /// Images in a batch, over all GPUs: --set batch.size=N.
    #[arg(long, value_name = "N")]
    pub batch_size: Option<u32>,
    /// Base learning rate, before it is scaled with the batch size: --set optimizer.learning_rate=RATE.
    #[arg(long, value_name = "RATE")]
    pub lr: Option<f64>,
    /// auto, cpu, cuda or cuda:N: --set machine.device=DEVICE.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// fp32, tf32 or bf16: --set machine.precision=PRECISION.
    #[arg(long, value_name = "PRECISION")]
    pub precision: Option<String>,
    /// Seed of order, augmentations and initial weights: --set seed=N.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl CommonArgs {
    /// The flags as settings.
    fn settings(&self) -> Vec<String> {
        fn flag(key: &str, value: Option<&impl Display>) -> Option<String> {
            value.map(|value| format!("{key}={value}"))
        }
        let flags = [
            flag("schedule.epochs", self.epochs.as_ref()),
            flag("batch.size", self.batch_size.as_ref()),
            flag("optimizer.learning_rate", self.lr.as_ref()),
            flag("machine.device", self.device.as_ref()),
            flag("machine.precision", self.precision.as_ref()),
            flag("seed", self.seed.as_ref()),
        ];
        flags.into_iter().flatten().collect()
    }
}

impl ConfigArgs {
    /// The settings, with what flags and words say.
    ///
    /// # Errors
    /// If the data set is named twice.
    pub fn settings(&self) -> Result<Vec<String>> {
        // A name with `=` in it is a data set only if there is one.
        let is_setting = |word: &&String| word.contains('=') && !Path::new(word.as_str()).exists();
        let (settings, named): (Vec<&String>, Vec<&String>) = self.words.iter().partition(is_setting);
        let mut data: Vec<String> = named.into_iter().cloned().collect();
        data.extend(self.data.iter().map(|path| path.display().to_string()));
        if let [one, other, ..] = &data[..] {
            return Err(Error::input(format!(
                "the data set is named twice: {one} and {other}\nhint: to train on several folders, list their images in a \
                 file: find {one} {other} -type f > images.txt; then --data images.txt"
            )));
        }
        let data = data.into_iter().map(|path| format!("data.manifest={}", toml::Value::String(path)));
        Ok(self.settings.iter().chain(settings).cloned().chain(self.common.settings()).chain(data).collect())
    }

    /// Whether the data set is named on the command line.
    pub fn names_data(&self) -> bool {
        self.settings().is_ok_and(|all| all.iter().any(|setting| setting.starts_with("data.manifest=")))
    }

    /// The configuration.
    ///
    /// # Errors
    /// If a file, key or value is wrong.
    pub fn load(&self) -> Result<Config> {
        Ok(Config::load(self.config.as_deref(), &self.settings()?)?)
    }
}

/// Which of a sample's entries are its image and its class.
#[derive(Args, Clone, Default)]
pub struct ReadingArgs {
    /// In shards: take images from entries with this extension (e.g. input.jpg) where a key has several.
    #[arg(long, value_name = "EXTENSION")]
    pub image: Option<String>,
    /// In shards: take classes (index or name) from this field of each sample's .json, where there is no .cls.
    #[arg(long, value_name = "NAME")]
    pub label_field: Option<String>,
}

impl ReadingArgs {
    /// How the data set is read, its classes from `labels` if that is a file.
    pub fn reading(&self, labels: Option<&PathBuf>) -> Reading {
        Reading { image: self.image.clone(), label_field: self.label_field.clone(), labels: labels.cloned() }
    }
}

/// Where the batches come from.
#[derive(Args, Clone, Default)]
pub struct FeedArgs {
    /// Comma-separated batch servers (see `serve`): grpc://HOST:8815, or grpcs:// for TLS. Shorthand for
    /// machine.feed.nodes; the other --feed flags set the other keys of that table.
    #[arg(long, value_name = "URL,…", value_delimiter = ',')]
    pub feed: Vec<String>,
    /// File containing the bearer token for the batch servers.
    #[arg(long, value_name = "FILE")]
    pub feed_token: Option<PathBuf>,
    /// CA bundle used to verify server certificates.
    #[arg(long, value_name = "PEM")]
    pub feed_ca: Option<PathBuf>,
    /// Client certificate for mutual TLS.
    #[arg(long, value_name = "PEM", requires = "feed_key")]
    pub feed_cert: Option<PathBuf>,
    /// Private key of the client certificate.
    #[arg(long, value_name = "PEM", requires = "feed_cert")]
    pub feed_key: Option<PathBuf>,
}

impl FeedArgs {
    /// Applies the flags to the configuration.
    pub fn apply(&self, feed: &mut FeedConfig) {
        if !self.feed.is_empty() {
            feed.nodes.clone_from(&self.feed);
        }
        for (flag, key) in [
            (&self.feed_token, &mut feed.token),
            (&self.feed_ca, &mut feed.ca),
            (&self.feed_cert, &mut feed.certificate),
            (&self.feed_key, &mut feed.key),
        ] {
            if let Some(flag) = flag {
                key.clone_from(flag);
            }
        }
    }
}
