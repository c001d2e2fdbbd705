//! Arguments that several commands share.

use std::path::PathBuf;

use clap::Args;
use simclr_data::listing::Reading;
use simclr_ground::error::Result;
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
}

impl ConfigArgs {
    /// The settings, `--data` among them.
    pub fn settings(&self) -> Vec<String> {
        let manifest =
            self.data.iter().map(|path| format!("data.manifest={}", toml::Value::String(path.display().to_string())));
        self.settings.iter().cloned().chain(manifest).collect()
    }

    /// The configuration.
    ///
    /// # Errors
    /// If a file, key or value is wrong.
    pub fn load(&self) -> Result<Config> {
        Ok(Config::load(self.config.as_deref(), &self.settings())?)
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
