//! The configuration of a run: a preset or a TOML file, changed by `--set`, checked once.
//!
//! A file need not say everything: what it leaves out comes from the preset that its `extends` key names, or from
//! `imagenet-resnet50`. What is 0 where 0 makes no sense fits itself: lanes to the batch, the batch to the data,
//! epochs to both. The structs that are read here are the ones that do the work.

mod fit;
mod layers;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
#[cfg(feature = "trainer")]
use simclr_ground::error::Result;
use simclr_ground::error::{Classify, ErrorClass};
use simclr_image::augment::{CenterCrop, Interpolation, Op, RecipeConfig};
#[cfg(feature = "trainer")]
use simclr_image::augment::{HorizontalFlip, RandomResizedCrop};
use simclr_plan::OrderConfig;
use simclr_plan::{BatchConfig, DataConfig, StreamConfig, Traversal};
use simclr_service::ServiceConfig;
use simclr_service::reach::FeedConfig;
#[cfg(feature = "trainer")]
use simclr_trainer::eval::EvalView;
#[cfg(feature = "trainer")]
use simclr_trainer::run::{RunFolder, RunRecord};
use toml::{Table, Value};

pub use layers::full_key;
#[cfg(feature = "trainer")]
use layers::upgrade;
use layers::{hint, in_full, preset, read_file, set_all, shorten_warmup, unknown_key};

/// The presets: name and text.
pub const PRESETS: [(&str, &str); 4] = [
    ("own-images", include_str!("../../config/own-images.toml")),
    ("imagenet-resnet50", include_str!("../../config/imagenet-resnet50.toml")),
    ("cifar10-resnet18", include_str!("../../config/cifar10-resnet18.toml")),
    ("quickstart", include_str!("../../config/quickstart.toml")),
];

/// The preset that is meant when none is named.
const DEFAULT: &str = PRESETS[0].0;
/// The preset that a file begins with when it names none.
const BASE: &str = PRESETS[1].0;

/// The keys that a table has if it is of this kind; `None` if there is no such kind.
type KeysOf = fn(&str) -> Option<Vec<String>>;

#[cfg(feature = "trainer")]
mod tables {
    pub use simclr_trainer::device::{DeviceName, Precision};
    pub use simclr_trainer::eval::KnnConfig;
    pub use simclr_trainer::loss::LossConfig;
    pub use simclr_trainer::model::ModelConfig;
    pub use simclr_trainer::optimizer::OptimizerConfig;
    pub use simclr_trainer::optimizer::schedule::ScheduleConfig;
    pub use simclr_trainer::run::CONFIG_SCHEMA;
    pub use simclr_trainer::step::{CheckpointConfig, TrainConfig};

    /// The tables whose `kind` decides their keys, and the keys of a kind.
    pub const KINDS: [(&str, super::KeysOf); 2] = [("loss", LossConfig::keys), ("optimizer", OptimizerConfig::keys)];
}

/// Without the trainer its tables are carried along unread.
#[cfg(not(feature = "trainer"))]
mod tables {
    pub type KnnConfig = toml::Table;
    pub type LossConfig = toml::Table;
    pub type OptimizerConfig = toml::Table;
    pub type ScheduleConfig = toml::Table;
    pub type ModelConfig = toml::Table;
    pub type CheckpointConfig = toml::Table;
    pub type TrainConfig = toml::Table;
    pub type DeviceName = String;
    pub type Precision = String;
    pub const CONFIG_SCHEMA: u32 = 2;
    pub const KINDS: [(&str, super::KeysOf); 0] = [];
}

/// Everything that decides a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Decides order, augmentations and initial weights.
    pub seed: u64,
    /// Which samples.
    pub data: DataConfig,
    /// How they are shuffled.
    pub order: OrderConfig,
    /// How many at a time.
    pub batch: BatchConfig,
    /// What is done to each.
    pub recipe: RecipeConfig,
    /// The model.
    pub model: tables::ModelConfig,
    /// The loss.
    pub loss: tables::LossConfig,
    /// The optimizer.
    pub optimizer: tables::OptimizerConfig,
    /// The learning rate over time.
    pub schedule: tables::ScheduleConfig,
    /// How long and how chatty.
    pub train: tables::TrainConfig,
    /// How representations are evaluated.
    pub eval: EvalConfig,
    /// When checkpoints are written.
    pub checkpoint: tables::CheckpointConfig,
    /// What the machine gives; nothing here changes the stream.
    pub machine: MachineConfig,
}

/// How representations are evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Side of the central square that is looked at, as a share of the image's short side.
    pub center_crop: f64,
    /// While training, evaluate nearest neighbors every so many epochs; 0: never.
    pub every: u32,
    /// The manifest whose labeled images vote then; empty: the one that is trained on.
    pub train: PathBuf,
    /// The manifest whose labeled images are classified then.
    pub test: PathBuf,
    /// Nearest neighbors.
    pub knn: tables::KnnConfig,
}

/// What the machine gives to a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Loader threads; 0: all cores but one, or one when the trainer computes on the CPU.
    pub threads: usize,
    /// libtorch's threads on the CPU; 0: all cores.
    pub torch_threads: usize,
    /// Finished or unfinished batches beside the one in use; bounds the memory of the pixels.
    pub batches_ahead: usize,
    /// Bytes in memory for shards that are held whole: compressed ones, and those on servers.
    pub memory_bytes: u64,
    /// A folder for such shards on a local disk, shared by all runs that name it; empty: memory only.
    pub cache_dir: PathBuf,
    /// Bytes that the cache folder may take.
    pub cache_bytes: u64,
    /// Requests to one storage server at a time, at most.
    pub storage_requests: usize,
    /// A read from a server that has failed for this long stops the run.
    pub storage_patience_seconds: u64,
    /// With several ranks: one that has not answered for this long is gone.
    pub rank_timeout_seconds: u64,
    /// `cpu`, `cuda`, `cuda:N` or `auto`.
    pub device: tables::DeviceName,
    /// `fp32`, `tf32` or `bf16`.
    pub precision: tables::Precision,
    /// Whether event files for TensorBoard are written into the run's folder.
    pub tensorboard: bool,
    /// Address that serves `/metrics`; empty: none.
    pub metrics: String,
    /// What the data service may use and whom it lets in.
    pub service: ServiceConfig,
    /// Which nodes make the batches, if not this machine.
    pub feed: FeedConfig,
}

/// What is wrong with a configuration. All of it is wrong input.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {why}")]
pub struct ConfigError {
    place: String,
    why: String,
}

impl Classify for ConfigError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Input
    }
}

impl ConfigError {
    fn new(place: impl Into<String>, why: impl Into<String>) -> Self {
        Self { place: place.into(), why: why.into() }
    }
}

impl Config {
    /// The configuration that a preset's name or a file's path stands for, changed by `settings` (`table.key=value`).
    ///
    /// # Errors
    /// Names the file and key, what was found and what would be right.
    pub fn load(source: Option<&str>, settings: &[String]) -> Result<Self, ConfigError> {
        let source = source.unwrap_or(DEFAULT);
        let (mut table, place) = match preset(source) {
            Some(table) => (table, format!("preset {source}")),
            None => (read_file(Path::new(source))?, source.to_owned()),
        };
        let settings = &in_full(settings);
        set_all(&mut table, settings)?;
        shorten_warmup(&mut table, settings);
        let place =
            if settings.is_empty() { place } else { format!("{place} with --set {}", settings.join(" --set ")) };
        Self::from_table(table, &place)
    }

    /// This configuration changed by `settings`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn with(&self, settings: &[String], place: &str) -> Result<Self, ConfigError> {
        let mut table = Table::try_from(self).expect("a configuration is a table");
        let settings = &in_full(settings);
        set_all(&mut table, settings)?;
        Self::from_table(table, place)
    }

    /// Writes out the paths of the data set and of what says more of it, so that a run goes on from wherever it is started.
    ///
    /// # Errors
    /// If the current folder is gone.
    #[cfg(feature = "trainer")]
    pub fn make_paths_absolute(&mut self) -> simclr_ground::error::Result<()> {
        let data = &mut self.data;
        for path in [&mut data.manifest, &mut data.subset, &mut data.labels] {
            if !path.as_os_str().is_empty() {
                *path = simclr_ground::location::absolute(path)?;
            }
        }
        Ok(())
    }

    /// The configuration that a run's record holds, in whatever form it was written.
    ///
    /// # Errors
    /// Names the file and key, what was found and what would be right.
    #[cfg(feature = "trainer")]
    pub fn recorded(folder: &RunFolder) -> Result<RunRecord<Self>> {
        let record = folder.record::<Table>()?;
        let place = folder.join("run.json").display().to_string();
        let mut table = record.config.clone();
        upgrade(&mut table, record.schema_version, &place)?;
        let config = Self::from_table(table, &place)?;
        Ok(record.with_config(config))
    }

    fn from_table(table: Table, place: &str) -> Result<Self, ConfigError> {
        let config: Self = serde_path_to_error::deserialize(Value::Table(table)).map_err(|error| {
            let path = error.path().to_string();
            let why = hint(&error.inner().to_string());
            ConfigError::new(if path == "." { place.to_owned() } else { format!("{place}: {path}") }, why)
        })?;
        let machine = &config.machine;
        for (key, found, least, most) in [
            ("threads", machine.threads, 0, 4096),
            ("torch_threads", machine.torch_threads, 0, 4096),
            ("batches_ahead", machine.batches_ahead, 1, 1024),
            ("storage_requests", machine.storage_requests, 1, 4096),
            ("rank_timeout_seconds", machine.rank_timeout_seconds as usize, 1, 1_000_000),
        ] {
            if !(least..=most).contains(&found) {
                let why = format!("invalid value {found} for machine.{key}: must be between {least} and {most}");
                return Err(ConfigError::new(place, why));
            }
        }
        Ok(config)
    }

    /// What decides the stream of training batches.
    pub fn stream(&self) -> StreamConfig {
        StreamConfig {
            seed: self.seed,
            data: self.data.clone(),
            traversal: Traversal::Shuffled(self.order.clone()),
            batch: self.batch.clone(),
            recipe: self.recipe.clone(),
        }
    }

    /// The samples of another manifest that this one's settings take: all of the same classes.
    pub fn evaluation_data(&self, manifest: PathBuf) -> DataConfig {
        let part = [0.0, 1.0];
        DataConfig { manifest, limit: 0, subset: PathBuf::new(), part, max_damaged: 1.0, ..self.data.clone() }
    }

    /// The stream that evaluations see: every sample of a part of `manifest` once, in order, its center.
    pub fn evaluation_stream(&self, manifest: PathBuf, part: [f64; 2], seed: u64) -> StreamConfig {
        let crop =
            Op::CenterCrop(CenterCrop { fraction: self.eval.center_crop, interpolation: Interpolation::Bicubic });
        StreamConfig {
            seed,
            data: DataConfig { part, ..self.evaluation_data(manifest) },
            traversal: Traversal::Sequential,
            batch: BatchConfig { size: 256 },
            recipe: RecipeConfig { views: 1, ops: vec![crop], branches: vec![], ..self.recipe.clone() },
        }
    }

    /// The stream that classifiers learn from: one view of each image, image by image.
    #[cfg(feature = "trainer")]
    pub fn supervised_stream(&self, data: DataConfig, view: EvalView, seed: u64) -> StreamConfig {
        // Crops and flips are the protocol's, whatever was pre-trained with: a recipe may have none.
        let ops = match view {
            EvalView::Recipe => self.recipe.ops.clone(),
            _ => {
                vec![Op::RandomResizedCrop(RandomResizedCrop::default()), Op::HorizontalFlip(HorizontalFlip::default())]
            }
        };
        StreamConfig {
            seed,
            data,
            traversal: Traversal::Shuffled(OrderConfig { lanes: 1, ..self.order.clone() }),
            batch: BatchConfig { size: 1 },
            recipe: RecipeConfig { views: 1, ops, branches: vec![], ..self.recipe.clone() },
        }
    }

    /// All values, as a file would hold them.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration is a table")
    }

    /// The value of a key, as TOML.
    ///
    /// # Errors
    /// If there is no such key.
    pub fn value(&self, key: &str) -> Result<String, ConfigError> {
        let all = Value::try_from(self).expect("a configuration is a table");
        let found = key.split('.').try_fold(&all, |value, part| value.get(part));
        found.map(ToString::to_string).ok_or_else(|| ConfigError::new(key, unknown_key(key, &all)))
    }

    /// Where two configurations differ.
    pub fn all_differences(&self, other: &Self) -> Vec<Difference> {
        let mut found = Vec::new();
        let [one, two] = [self, other].map(|config| Value::try_from(config).expect("a configuration is a table"));
        compare("", &one, &two, &mut found);
        found
    }

    /// Where two configurations differ, outside of `[machine]`.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let mut found = self.all_differences(other);
        found.retain(|difference| !difference.is_in("machine"));
        found
    }
}

/// A key in which two configurations differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The key, with its tables.
    pub key: String,
    /// Its value in both, as text.
    values: String,
}

impl Difference {
    /// Whether the key is in this table, or in one of its tables.
    pub fn is_in(&self, table: &str) -> bool {
        self.key.strip_prefix(table).is_some_and(|rest| rest.starts_with('.'))
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.key, self.values)
    }
}

/// Differences as one line.
pub fn listed(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn compare(path: &str, one: &Value, two: &Value, found: &mut Vec<Difference>) {
    let differ = |key: String, values: String| Difference { key, values };
    match (one, two) {
        (Value::Table(a), Value::Table(b)) => {
            let inside = |key: &String| if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            for (key, value) in a {
                match b.get(key) {
                    Some(other) => compare(&inside(key), value, other, found),
                    None => found.push(differ(inside(key), format!("{value} vs unset"))),
                }
            }
            for (key, value) in b.iter().filter(|(key, _)| !a.contains_key(*key)) {
                found.push(differ(inside(key), format!("unset vs {value}")));
            }
        }
        _ if one != two => found.push(differ(path.to_owned(), format!("{one} vs {two}"))),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(feature = "trainer")]
    use serde_json::json;

    fn error(source: Option<&str>, settings: &[&str]) -> String {
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        Config::load(source, &settings).unwrap_err().to_string()
    }

    #[test]
    fn presets_are_whole_and_checked() {
        for (name, _) in PRESETS {
            let config = Config::load(Some(name), &[]).unwrap();
            config.recipe.check().unwrap();
            let mut config = config;
            config.fit(1_000_000);
            assert!(config.batch.size.is_multiple_of(config.order.lanes), "{name}");
        }
    }

    /// Runs that were begun before a machine had names go on.
    #[test]
    fn a_record_without_names_of_the_machine_is_read() {
        let mut table = preset(DEFAULT).unwrap();
        let service = table["machine"]["service"].as_table_mut().unwrap();
        service.remove("names").unwrap();
        assert!(Config::from_table(table, "run.json").unwrap().machine.service.names.is_empty());
    }

    #[test]
    fn settings_reach_every_depth() {
        let settings =
            ["recipe.ops.2.strength=0.5", "data.manifest=/a b/c.json", "schedule.epochs=30", "model.head.dim=32"];
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        let config = Config::load(None, &settings).unwrap();
        assert_eq!(config.data.manifest, Path::new("/a b/c.json"));
        let base = Config::load(None, &[]).unwrap();
        let differences = config.differences(&base);
        assert_eq!(differences.len(), 4, "{differences:?}");
    }

    #[cfg(feature = "trainer")]
    #[test]
    fn a_short_schedule_shortens_the_warmup_that_nobody_asked_for() {
        let load = |settings: &[&str]| {
            let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
            Config::load(None, &settings).map(|config| config.schedule.warmup_epochs)
        };
        let preset = load(&[]).unwrap();
        assert_eq!(load(&["schedule.epochs=50"]).unwrap(), preset);
        assert!((load(&["schedule.epochs=3"]).unwrap() - 0.3).abs() < 1e-12);
        assert_eq!(load(&["schedule.epochs=3", "schedule.warmup_epochs=1"]).unwrap(), 1.0);
        // What is asked for stays, sensible or not; training refuses it.
        assert_eq!(load(&["schedule.epochs=3", "schedule.warmup_epochs=5"]).unwrap(), 5.0);
    }

    #[test]
    fn a_file_extends_a_preset() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        std::fs::write(&path, "extends = \"cifar10-resnet18\"\nseed = 7\n[batch]\nsize = 64\n").unwrap();
        let config = Config::load(path.to_str(), &[]).unwrap();
        assert_eq!((config.seed, config.batch.size, config.recipe.size), (7, 64, 32));
        std::fs::write(&path, "extends = \"cifar\"\n").unwrap();
        assert!(error(path.to_str(), &[]).contains("unknown preset"));
        std::fs::write(&path, "[batch]\nsize = \"many\"\n").unwrap();
        assert!(error(path.to_str(), &[]).contains("batch.size"), "{}", error(path.to_str(), &[]));
    }

    #[test]
    #[cfg(feature = "trainer")]
    fn another_kind_brings_its_own_keys() {
        let with = |settings: &[&str]| {
            let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
            let config = Config::load(Some("imagenet-resnet50"), &settings).unwrap();
            serde_json::to_value(&config.optimizer).unwrap()
        };
        let paper = json!({ "kind": "lars", "learning_rate": 0.3, "learning_rate_rule": "linear", "momentum": 0.9,
            "weight_decay": 1e-6, "trust_coefficient": 0.001 });
        assert_eq!(with(&[]), paper);
        let mut sgd = paper.clone();
        sgd["kind"] = json!("sgd");
        sgd["nesterov"] = json!(true);
        sgd.as_object_mut().unwrap().remove("trust_coefficient");
        assert_eq!(with(&["optimizer.nesterov=true", "optimizer.kind=sgd"]), sgd);
        // A file that chooses another kind, and one of the first form, which has the keys of all kinds.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        std::fs::write(&path, "[optimizer]\nkind = \"adamw\"\nlearning_rate = 0.001\n").unwrap();
        let config = Config::load(path.to_str(), &[]).unwrap();
        assert_eq!(serde_json::to_value(&config.optimizer).unwrap()["second_momentum"], json!(0.999));
        let all = "[optimizer]\nkind = \"sgd\"\nnesterov = true\ntrust_coefficient = 0.001\n";
        std::fs::write(&path, all).unwrap();
        assert!(error(path.to_str(), &[]).contains("`trust_coefficient` of kind sgd"));
        std::fs::write(&path, format!("schema_version = 1\n{all}")).unwrap();
        Config::load(path.to_str(), &[]).unwrap();
        std::fs::write(&path, "schema_version = 9\n").unwrap();
        assert!(error(path.to_str(), &[]).contains("schema_version 9 was written by a newer simclr-pipeline"));
    }

    #[test]
    fn wrong_keys_and_values_are_named_with_what_would_be_right() {
        let check = |settings: &[&str], wanted: &[&str]| {
            let message = error(None, settings);
            assert!(wanted.iter().all(|part| message.contains(part)), "{message}");
        };
        check(&["machine.thread=2"], &["machine.thread", "did you mean threads?"]);
        check(&["machin.threads=2"], &["machin", "did you mean machine.threads?"]);
        check(&["order.lanes=many"], &["order.lanes", "invalid type"]);
        check(&["order.lanes"], &["TABLE.KEY=VALUE"]);
        check(&["recipe.mode=torch"], &["recipe.mode", "did you mean torchvision?"]);
        check(&["machine.precision=fp16"], &["machine.precision", "unknown variant `fp16`", "`fp32`, `tf32`, `bf16`"]);
        check(&["machine.device=tpu"], &["machine.device", "expected cpu, cuda, cuda:N or auto"]);
        check(&["optimizer.nesterov=true"], &["optimizer: unknown field `nesterov` of kind lars"]);
        check(&["optimizer.kind=sgd", "optimizer.trust_coefficient=1"], &["`trust_coefficient` of kind sgd"]);
        assert!(error(Some("nowhere.toml"), &[]).contains("available: own-images, imagenet-resnet50"));
    }
}
