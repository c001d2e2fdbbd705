//! The command line.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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

#[cfg(feature = "trainer")]
#[derive(Args)]
pub struct TrainArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// The run folder.
    #[arg(long)]
    pub run: PathBuf,
    /// Go on from the newest checkpoint in the run folder, or start it.
    #[arg(long)]
    pub resume: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub feed: FeedArgs,
}

#[cfg(feature = "trainer")]
#[derive(Subcommand)]
pub enum EvalCommand {
    /// Weighted k nearest neighbours by cosine similarity; nothing is trained.
    Knn(KnnArgs),
    /// A linear classifier on a frozen encoder; what it leaves open is chosen on held-out images.
    Linear(LinearArgs),
    /// The encoder and a linear classifier learn from some or all labels; with --untrained, from scratch.
    Finetune(FinetuneArgs),
    /// The paper's transfer protocols: what they leave open is chosen on held-out images, then trained on all.
    Transfer(TransferArgs),
}

#[cfg(feature = "trainer")]
impl EvalCommand {
    /// What all have in common.
    pub fn common(&self) -> &EvalArgs {
        match self {
            Self::Knn(args) => &args.common,
            Self::Linear(args) => &args.common,
            Self::Finetune(args) => &args.common,
            Self::Transfer(args) => &args.common,
        }
    }
}

#[cfg(feature = "trainer")]
#[derive(Args)]
pub struct KnnArgs {
    #[command(flatten)]
    pub common: EvalArgs,
    /// Neighbours; the run's configuration decides if not given.
    #[arg(long)]
    pub k: Option<u32>,
    /// Temperature of the votes; the run's configuration decides if not given.
    #[arg(long)]
    pub temperature: Option<f64>,
}

#[cfg(feature = "trainer")]
#[derive(Args)]
pub struct LinearArgs {
    #[command(flatten)]
    pub common: EvalArgs,
    /// How it is trained.
    #[arg(long, value_enum, default_value = "sgd")]
    pub solver: Solver,
    /// Passes over the training set; sgd alone.
    #[arg(long, default_value_t = 90)]
    pub epochs: u32,
    /// Train on random crops and flips, as the paper, not on features of centre crops: each epoch is a pass through the
    /// encoder. sgd alone.
    #[arg(long)]
    pub crops: bool,
}

/// How a linear classifier is trained.
#[cfg(feature = "trainer")]
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Solver {
    /// Nesterov momentum, several learning rates at the same time, no regularisation (SimCLR, section 4.2).
    Sgd,
    /// Logistic regression over 45 strengths of regularisation (SimCLR, appendix B.8).
    Lbfgs,
}

#[cfg(feature = "trainer")]
#[derive(Args)]
pub struct FinetuneArgs {
    #[command(flatten)]
    pub common: EvalArgs,
    /// The share of each class's labels to learn from, chosen by the seed: 0.01 and 0.1 in the paper.
    #[arg(long, default_value_t = 1.0, value_name = "SHARE")]
    pub share: f64,
    /// Learn from the samples that this file names, such as the official 1percent.txt.
    #[arg(long, value_name = "FILE")]
    pub subset: Option<PathBuf>,
    /// Passes over them; 60 below a share of 0.05, else 30.
    #[arg(long)]
    pub epochs: Option<f64>,
    /// Images per step.
    #[arg(long, default_value_t = 256)]
    pub batch: u32,
    /// The learning rate for a batch of 256, which it follows linearly.
    #[arg(long, default_value_t = 0.05)]
    pub learning_rate: f64,
    /// Share of each weight added to its gradient.
    #[arg(long, default_value_t = 0.0)]
    pub weight_decay: f64,
    /// What is done to the images.
    #[arg(long, value_enum, default_value = "crop")]
    pub augment: crate::config::Augment,
    /// Keep the trained encoder as a run in this new folder.
    #[arg(long, value_name = "RUN", conflicts_with = "compare")]
    pub save: Option<PathBuf>,
}

#[cfg(feature = "trainer")]
#[derive(Args)]
pub struct TransferArgs {
    #[command(flatten)]
    pub common: EvalArgs,
    /// What is transferred.
    #[arg(long, value_enum, default_value = "linear")]
    pub method: TransferMethod,
    /// Steps of fine-tuning; 20000, or 40000 with --untrained.
    #[arg(long)]
    pub steps: Option<u64>,
    /// Images per step of fine-tuning.
    #[arg(long, default_value_t = 256)]
    pub batch: u32,
    /// Learning rates that fine-tuning tries; the paper's 7 if not given.
    #[arg(long, value_delimiter = ',', value_name = "RATE,…")]
    pub learning_rates: Vec<f64>,
    /// Weight decays that fine-tuning tries, divided by the learning rate; the paper's 8 if not given.
    #[arg(long, value_delimiter = ',', value_name = "DECAY,…")]
    pub weight_decays: Vec<f64>,
}

/// What is transferred to another data set.
#[cfg(feature = "trainer")]
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TransferMethod {
    /// Frozen features: logistic regression.
    Linear,
    /// The whole encoder: fine-tuning.
    Finetune,
}

/// The number that a data set is judged by.
#[cfg(feature = "trainer")]
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Metric {
    /// Share of images that are recognised.
    Top1,
    /// Mean of the classes' shares: Aircraft, Pets, Caltech-101, Flowers in the paper.
    MeanPerClass,
    /// Mean over classes of the average precision at 11 recalls, as VOC 2007.
    Map11,
}

#[cfg(feature = "trainer")]
impl From<Metric> for trainer::eval::Metric {
    fn from(metric: Metric) -> Self {
        match metric {
            Metric::Top1 => Self::Top1,
            Metric::MeanPerClass => Self::MeanPerClass,
            Metric::Map11 => Self::Map11,
        }
    }
}

/// Which trained model.
#[cfg(feature = "trainer")]
#[derive(Args)]
pub struct CheckpointArgs {
    /// The run folder; its newest checkpoint is taken.
    #[arg(long, required_unless_present = "checkpoint")]
    pub run: Option<PathBuf>,
    /// A checkpoint folder in a run folder, instead of the newest.
    #[arg(long, conflicts_with = "run")]
    pub checkpoint: Option<PathBuf>,
}

#[cfg(feature = "trainer")]
#[derive(Args)]
pub struct EmbedArgs {
    #[command(flatten)]
    pub model: CheckpointArgs,
    /// The manifest of the images; they need no labels.
    #[arg(long, value_name = "MANIFEST")]
    pub data: PathBuf,
    /// The file to write, .parquet or .npy.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Take the run's initial weights.
    #[arg(long)]
    pub untrained: bool,
    /// Take what so many layers of the projection head make instead of h; all of them give z.
    #[arg(long, default_value_t = 0)]
    pub head_layer: usize,
    /// Change a value of the run's [machine] or [eval] table.
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub settings: Vec<String>,
}

#[cfg(feature = "trainer")]
#[derive(Args)]
pub struct ExportArgs {
    #[command(flatten)]
    pub model: CheckpointArgs,
    /// The safetensors file to write; the card is written beside it, with .md behind its name.
    #[arg(long)]
    pub out: PathBuf,
    /// Whose names the tensors have.
    #[arg(long, value_enum, default_value = "torchvision")]
    pub names: ExportNames,
}

#[cfg(feature = "trainer")]
#[derive(Args)]
pub struct ImportArgs {
    /// A safetensors file with the names of torchvision, timm, Hugging Face, lightly, solo-learn, VISSL, MoCo or the
    /// official TensorFlow code.
    pub file: PathBuf,
    /// The run folder to make.
    #[arg(long)]
    pub run: PathBuf,
    /// What stands before the encoder's names, where the file holds several encoders.
    #[arg(long)]
    pub prefix: Option<String>,
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Libraries whose names are known.
#[cfg(feature = "trainer")]
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportNames {
    /// torchvision.models.resnet….
    Torchvision,
    /// timm's resnet…: the same names.
    Timm,
    /// transformers.ResNetModel.
    HuggingFace,
}

#[cfg(feature = "trainer")]
#[derive(Args)]
pub struct EvalArgs {
    /// The run folder; its newest checkpoint is taken.
    #[arg(long, required_unless_present_any = ["checkpoint", "compare"])]
    pub run: Option<PathBuf>,
    /// A checkpoint folder in a run folder, instead of the newest.
    #[arg(long, conflicts_with = "run")]
    pub checkpoint: Option<PathBuf>,
    /// Evaluate two models, run or checkpoint folders, and say what the first has over the second.
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["run", "checkpoint"])]
    pub compare: Vec<PathBuf>,
    /// Random exchanges of answers that tell whether a difference is luck.
    #[arg(long, default_value_t = 100_000)]
    pub permutations: u32,
    /// By which number models are chosen and compared.
    #[arg(long, value_enum, default_value = "top1")]
    pub metric: Metric,
    /// Repeat it with so many seeds, from the run's on, and tell the spread.
    #[arg(long, default_value_t = 1)]
    pub seeds: u32,
    /// Draw what was taken for what, as PNG.
    #[arg(long, value_name = "FILE", conflicts_with = "compare")]
    pub confusion: Option<PathBuf>,
    /// Evaluate the run's initial weights, for comparison.
    #[arg(long)]
    pub untrained: bool,
    /// Take what so many layers of the projection head make instead of h, as SimCLR v2 does.
    #[arg(long, default_value_t = 0)]
    pub head_layer: usize,
    /// Manifest of the labelled training set.
    #[arg(long, value_name = "MANIFEST")]
    pub train: PathBuf,
    /// Manifest of the labelled test set.
    #[arg(long, value_name = "MANIFEST")]
    pub test: PathBuf,
    /// Change a value of the run's [machine] or [eval] table.
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub settings: Vec<String>,
}

#[cfg(feature = "trainer")]
impl EvalArgs {
    /// The models that are evaluated: one, or the two that are compared.
    pub fn models(&self) -> Vec<CheckpointArgs> {
        if self.compare.is_empty() {
            return vec![CheckpointArgs { run: self.run.clone(), checkpoint: self.checkpoint.clone() }];
        }
        let of = |path: &PathBuf| match path.join("state.json").is_file() {
            true => CheckpointArgs { run: None, checkpoint: Some(path.clone()) },
            false => CheckpointArgs { run: Some(path.clone()), checkpoint: None },
        };
        self.compare.iter().map(of).collect()
    }
}

#[cfg(feature = "trainer")]
#[derive(Args)]
pub struct ReportArgs {
    /// The run folder.
    #[arg(long)]
    pub run: PathBuf,
    /// The HTML to write; report.html in the run folder if not given.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// A table that `embed` wrote: the report gets maps of it, and pictures with their nearest neighbours.
    #[arg(long, value_name = "PARQUET")]
    pub embedding: Option<PathBuf>,
    /// Write the logged steps as a table as well, for spreadsheets and data frames.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
}

#[cfg(feature = "trainer")]
#[derive(Args)]
pub struct QuickstartArgs {
    /// The folder to create; runs/quickstart-1, -2, … if not given.
    #[arg(long)]
    pub run: Option<PathBuf>,
    /// Change one value of the quickstart preset; may be repeated.
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub settings: Vec<String>,
    /// Pictures drawn to train on.
    #[arg(long, default_value_t = 4000)]
    pub train_images: u64,
    /// Pictures drawn to test on.
    #[arg(long, default_value_t = 1000)]
    pub test_images: u64,
}
