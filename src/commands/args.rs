//! Arguments that several commands share.

use std::path::PathBuf;

use clap::Args;
use simclr_ground::error::Result;
use simclr_service::reach::FeedConfig;

use crate::config::Config;

/// What to stream.
#[derive(Args, Clone)]
pub struct ConfigArgs {
    /// A TOML file or a preset: imagenet-resnet50 (taken if none is named), cifar10-resnet18, quickstart.
    #[arg(long, value_name = "FILE|PRESET")]
    pub config: Option<String>,
    /// Change one value; may be repeated.
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub settings: Vec<String>,
    /// The manifest; short for --set data.manifest=FILE.
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
}

impl ConfigArgs {
    /// The settings, `--manifest` among them.
    pub fn settings(&self) -> Vec<String> {
        let manifest = self
            .manifest
            .iter()
            .map(|path| format!("data.manifest={}", toml::Value::String(path.display().to_string())));
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

/// Who makes the batches.
#[derive(Args, Clone, Default)]
pub struct FeedArgs {
    /// Nodes that make the batches (`serve`), with commas between them: grpc://host:8815, or grpcs:// with TLS. Short
    /// for machine.feed.nodes, as the other flags are for the other keys of that table.
    #[arg(long, value_name = "URL,…", value_delimiter = ',')]
    pub feed: Vec<String>,
    /// A file with the bearer token that nodes want.
    #[arg(long, value_name = "FILE")]
    pub feed_token: Option<PathBuf>,
    /// Certificates of those who may vouch for nodes.
    #[arg(long, value_name = "PEM")]
    pub feed_ca: Option<PathBuf>,
    /// Our own certificate, for nodes that want one.
    #[arg(long, value_name = "PEM", requires = "feed_key")]
    pub feed_cert: Option<PathBuf>,
    /// The certificate's private key.
    #[arg(long, value_name = "PEM", requires = "feed_cert")]
    pub feed_key: Option<PathBuf>,
}

impl FeedArgs {
    /// Puts the flags into the configuration.
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
