//! What the commands take that train or evaluate.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{ConfigArgs, FeedArgs};

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
    /// Train with so many processes on this machine, one for each GPU; elsewhere a launcher (torchrun, srun, mpirun)
    /// starts them.
    #[arg(long, value_name = "N", conflicts_with = "dry_run")]
    pub nproc: Option<u32>,
    /// With --nproc: when a process fails, start all again from the last checkpoint, so many times.
    #[arg(long, value_name = "K", default_value_t = 0, requires = "nproc")]
    pub restarts: u32,
    #[command(flatten)]
    pub feed: FeedArgs,
}

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
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Solver {
    /// Nesterov momentum, several learning rates at the same time, no regularisation (SimCLR, section 4.2).
    Sgd,
    /// Logistic regression over 45 strengths of regularisation (SimCLR, appendix B.8).
    Lbfgs,
}

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
    /// Passes over them; 60 if they are less than 5 % of the set, else 30.
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
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TransferMethod {
    /// Frozen features: logistic regression.
    Linear,
    /// The whole encoder: fine-tuning.
    Finetune,
}

/// The number that a data set is judged by.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Metric {
    /// Share of images that are recognised.
    Top1,
    /// Mean of the classes' shares: Aircraft, Pets, Caltech-101, Flowers in the paper.
    MeanPerClass,
    /// Mean over classes of the average precision at 11 recalls, as VOC 2007.
    Map11,
}

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
#[derive(Args)]
pub struct CheckpointArgs {
    /// The run folder; its newest checkpoint is taken.
    #[arg(long, required_unless_present = "checkpoint")]
    pub run: Option<PathBuf>,
    /// A checkpoint folder in a run folder, instead of the newest.
    #[arg(long, conflicts_with = "run")]
    pub checkpoint: Option<PathBuf>,
}

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
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportNames {
    /// torchvision.models.resnet….
    Torchvision,
    /// timm's resnet…: the same names.
    Timm,
    /// transformers.ResNetModel.
    HuggingFace,
}

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
    /// By which number models are compared, and what `linear --solver lbfgs` and `transfer` leave open is chosen.
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
