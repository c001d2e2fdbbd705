//! The command line.

#[cfg(feature = "trainer")]
mod trainer;

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
#[cfg(feature = "trainer")]
pub use trainer::*;

/// Streams SimCLR batches from tar shards, trains on them, evaluates what was learnt.
///
/// Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted after a clean stop.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Print one JSON object on stdout; logs and progress stay on stderr.
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more; twice for debugging.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say nothing but errors.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Logs for people, or for machines: one JSON object a line, with time, run and rank.
    #[arg(long, global = true, value_enum, default_value = "human")]
    pub log: crate::logging::Format,
    /// Colour messages.
    #[arg(long, global = true, value_enum, default_value = "auto")]
    color: When,
}

impl Cli {
    /// Whether stderr is coloured.
    pub fn color(&self) -> bool {
        match self.color {
            When::Always => true,
            When::Never => false,
            When::Auto => std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum When {
    Auto,
    Always,
    Never,
}

#[derive(Subcommand)]
pub enum Command {
    /// Do the whole job with nothing at hand: draw pictures, pack, train, evaluate, report; about two minutes.
    #[cfg(feature = "trainer")]
    Quickstart(QuickstartArgs),
    /// Pack images into shards and a manifest: class folders, ILSVRC2012's tars, or a list.
    Pack(PackArgs),
    /// Build, verify or show the manifest of existing shards.
    #[command(subcommand)]
    Manifest(ManifestCommand),
    /// Draw a contact sheet: pictures, their views, and the drawn parameters.
    Preview(PreviewArgs),
    /// Print the BLAKE3 of each global batch (pixels, labels, ids) and of all.
    Digest(DigestArgs),
    /// Measure the loader on your shards and say what limits it.
    Bench(BenchArgs),
    /// Say what this machine can do for a run: cores, memory, GPU, storage, limits, and what that means.
    Doctor(DoctorArgs),
    /// Serve batches to trainers on other machines, over Arrow Flight; they name this node with --feed.
    Serve(ServeArgs),
    /// Train; a run folder holds configuration, metrics, checkpoints and quarantine.
    #[cfg(feature = "trainer")]
    Train(TrainArgs),
    /// Evaluate a run's encoder on labelled shards.
    #[cfg(feature = "trainer")]
    #[command(subcommand)]
    Eval(EvalCommand),
    /// Write the representations of a set's images as Parquet or npy, for other tools.
    #[cfg(feature = "trainer")]
    Embed(EmbedArgs),
    /// Write a run's encoder as safetensors, with the names that other libraries know, and a model card beside it.
    #[cfg(feature = "trainer")]
    Export(ExportArgs),
    /// Make a run of an encoder that another library trained: its names, depth, width and stem are found out.
    #[cfg(feature = "trainer")]
    Import(ImportArgs),
    /// Write a run's report: one HTML file with curves, settings and evaluations.
    #[cfg(feature = "trainer")]
    Report(ReportArgs),
}

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
    pub fn load(&self) -> anyhow::Result<crate::config::Config> {
        Ok(crate::config::Config::load(self.config.as_deref(), &self.settings())?)
    }
}

#[derive(Args)]
pub struct PackArgs {
    /// A folder of class folders (SRC/<class>/<image>); a tar of class tars (ILSVRC2012_img_train.tar); a tar of
    /// images; or a list (.txt) with a path and a class on each line.
    pub source: PathBuf,
    /// The folder to create.
    #[arg(long)]
    pub out: PathBuf,
    /// Close a shard before its tar stream grows beyond this.
    #[arg(long, default_value_t = 256 << 20)]
    pub shard_bytes: u64,
    /// Compress the shards with zstd, in frames that can be read one by one.
    #[arg(long, value_name = "LEVEL")]
    pub zstd: Option<i32>,
    /// Shrink pictures whose short side is longer than this; they become JPEG.
    #[arg(long, value_name = "PX")]
    pub resize_short: Option<u32>,
    /// Encode pictures anew with this JPEG quality; 90 if only --resize-short is given.
    #[arg(long, value_name = "Q")]
    pub quality: Option<u8>,
    /// Encode with half the resolution of colours (4:2:0): smaller, and faster to decode.
    #[arg(long)]
    pub subsample: bool,
    /// For a tar of images: the class of each on a line, in the order of their names, or after their names.
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Decides the order in which samples are written.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

#[derive(Subcommand)]
pub enum ManifestCommand {
    /// Read shards from end to end and write their manifest.
    Build {
        /// Paths, URLs (s3, gs, az, https), globs or brace ranges (name-{000..012}.tar), plain or .zst; or the index
        /// of another tool: a wids .json, or a dataset's _info.json#split.
        #[arg(required = true)]
        shards: Vec<String>,
        /// The file to write.
        #[arg(long)]
        out: PathBuf,
        /// A file with the name of class i on line i; classes.txt beside the first shard is taken if it is there.
        #[arg(long)]
        classes: Option<PathBuf>,
        /// Leave out the samples that a run has put into quarantine: its quarantine.jsonl.
        #[arg(long, value_name = "FILE")]
        exclude: Option<PathBuf>,
        /// Leave out where each JPEG's data may be entered: the manifest is smaller and built faster, crops of one view
        /// are decoded a little slower
        #[arg(long)]
        no_row_index: bool,
    },
    /// Re-read every shard and list every difference from the manifest.
    Verify {
        /// The manifest.
        manifest: PathBuf,
    },
    /// Show what a manifest lists.
    Show {
        /// The manifest.
        manifest: PathBuf,
        /// Measure how well an epoch is shuffled, and how much of it ranks read twice.
        #[arg(long)]
        shuffle: bool,
        /// With --shuffle: the configuration whose order, batch and seed are meant.
        #[arg(long, value_name = "FILE|PRESET", requires = "shuffle")]
        config: Option<String>,
        /// With --shuffle: change one value of it; may be repeated.
        #[arg(long = "set", value_name = "TABLE.KEY=VALUE", requires = "shuffle")]
        settings: Vec<String>,
    },
    /// Write another tool's index of a manifest's shards: the wids index that webdataset reads.
    Convert {
        /// The manifest.
        manifest: PathBuf,
        /// The index to write.
        #[arg(long)]
        wids: PathBuf,
    },
}

#[derive(Args)]
pub struct PreviewArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// The global batch to look at.
    #[arg(long, default_value_t = 0)]
    pub batch: u64,
    /// How many of its images to show.
    #[arg(long, default_value_t = 12)]
    pub images: usize,
    /// The PNG to write.
    #[arg(long, default_value = "preview.png")]
    pub out: PathBuf,
}

#[derive(Args)]
pub struct DigestArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// The first global batch.
    #[arg(long, default_value_t = 0)]
    pub from_batch: u64,
    /// How many batches.
    #[arg(long, default_value_t = 4)]
    pub batches: u64,
    /// Put each global batch together from the shares of this many ranks; the digests are the same.
    #[arg(long, default_value_t = 1)]
    pub ranks: u32,
    #[command(flatten)]
    pub feed: FeedArgs,
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
    pub fn apply(&self, feed: &mut pipeline::service::reach::FeedConfig) {
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

#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Where clients connect; port 0 takes a free one. Beyond this machine, think of TLS and a token.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8815")]
    pub listen: String,
    /// Where /metrics, /livez, /readyz, /status and a page are served.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464")]
    pub metrics: String,
    /// A file with the bearer token that clients must show; short for machine.service.token.
    #[arg(long, value_name = "FILE")]
    pub token: Option<PathBuf>,
    /// The certificate chain, for TLS; short for machine.service.certificate.
    #[arg(long, value_name = "PEM", requires = "key")]
    pub certificate: Option<PathBuf>,
    /// The certificate's private key; short for machine.service.key.
    #[arg(long, value_name = "PEM", requires = "certificate")]
    pub key: Option<PathBuf>,
    /// Who may vouch for clients, which then need a certificate too; short for machine.service.client_ca.
    #[arg(long, value_name = "PEM", requires = "certificate")]
    pub client_ca: Option<PathBuf>,
}

#[derive(Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
}

#[derive(Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// What is measured.
    #[arg(long, value_enum, default_value = "simclr")]
    pub variant: Variant,
    /// Images to load.
    #[arg(long, default_value_t = 2000)]
    pub images: u64,
    /// Worker threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Count and time nothing: what metrics cost is the difference.
    #[arg(long)]
    pub no_metrics: bool,
    /// Images that the trainer takes each second, all devices together: say how many cores feed it.
    #[arg(long, value_name = "IMAGES_PER_SECOND")]
    pub feed: Option<f64>,
}

/// What `bench` measures.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// Decode only.
    Decode,
    /// Decode, then one random-resized-crop with flip.
    Rrc1,
    /// Decode, then two of them.
    Rrc2,
    /// Decode, then the whole recipe for each of its views.
    Simclr,
}
