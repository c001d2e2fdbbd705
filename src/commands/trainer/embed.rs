//! `embed`: the representations of all images that a manifest lists, for other tools: Parquet, or NumPy's npy.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch, StringArray, UInt64Array};
use arrow_schema::{DataType, Field, Schema};
use clap::Args;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::json;
use simclr_data::manifest::Manifest;
use simclr_ground::batch::NO_LABEL;
use simclr_ground::error::{Context, Error, Result};
use simclr_ground::files::readable_by_all;
use simclr_trainer::error::TrainError;
use simclr_trainer::eval::{Features, features};
use tch::{Device, Tensor};

use super::eval::open_stream;
use super::model::{ModelArgs, OpenModel};
use crate::commands::Run;
use crate::open;
use crate::output::{ExitStatus, Output, check_replaceable};
use crate::telemetry::progress::Progress;

/// Compute embeddings for a dataset and write them as Parquet or NumPy.
#[derive(Args)]
pub struct EmbedArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Images: a folder, list, manifest or shards [default: the run's].
    #[arg(long, value_name = "DATA")]
    pub data: Option<PathBuf>,
    /// Output file, .parquet or .npy [default: embedding.parquet in the run directory].
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Use the run's initial weights.
    #[arg(long)]
    pub untrained: bool,
    /// Embed after K projection-head layers (0 = encoder output h; all layers = z).
    #[arg(long, default_value_t = 0)]
    pub head_layer: usize,
    /// Override a [machine] or [eval] value (repeatable).
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub settings: Vec<String>,
}

/// The file in a run's folder that embeddings are written to if no other is named.
pub const EMBEDDING: &str = "embedding.parquet";

/// What a Parquet file says at its end of the program that wrote it.
const WRITTEN_BY: &str = "simclr-pipeline";

/// Rows of a Parquet file that are written at a time.
const ROWS: usize = 16_384;

/// What a file can be, by the end of its name.
#[derive(Clone, Copy)]
enum Format {
    Parquet,
    Npy,
}

impl Run for EmbedArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let format = match self.out.as_ref().map(|out| out.extension().and_then(|end| end.to_str())) {
            None | Some(Some("parquet")) => Format::Parquet,
            Some(Some("npy")) => Format::Npy,
            Some(_) => {
                let out = self.out.as_deref().unwrap_or(Path::new("")).display();
                return Err(Error::input(format!("--out must end in .parquet or .npy, got {out}")));
            }
        };
        let model = OpenModel::open(&self.model, self.untrained, self.head_layer, &self.settings)?;
        let loaded = &model.loaded;
        let out = self.out.clone().unwrap_or_else(|| model.folder.join(EMBEDDING));
        match format {
            // The run's own file is the run's.
            Format::Parquet if self.out.is_none() => {}
            Format::Parquet => check_replaceable("--out", &out, "embeddings", |file| file.contains(WRITTEN_BY))?,
            Format::Npy => {
                for file in npy_files(&out) {
                    check_replaceable("--out", &file, "an array", |file| file.start.starts_with(NPY))?;
                }
            }
        }
        let data = self.data.clone().unwrap_or_else(|| model.config.data.manifest.clone());
        let manifest = Arc::new(open::manifest(&data, open::reading(&model.config.data))?);
        let features = encode(&model, &data, &manifest, output)?;
        let (rows, dim) = size(&features);
        let told = [
            ("simclr.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("simclr.run", model.folder.path().display().to_string()),
            (
                "simclr.checkpoint",
                loaded.chosen.as_ref().map_or(String::new(), |chosen| chosen.path.display().to_string()),
            ),
            ("simclr.step", loaded.step().to_string()),
            ("simclr.plan_digest", model.plan_digest.clone()),
            ("simclr.head_layer", self.head_layer.to_string()),
            ("simclr.manifest", absolute(&data).display().to_string()),
            ("simclr.manifest_digest", manifest.digest.clone()),
        ];
        match format {
            Format::Parquet => write_parquet(&out, &features, &manifest, &told)?,
            Format::Npy => write_npy(&out, &features)?,
        }
        let object = json!({
            "out": out, "rows": rows, "dim": dim, "left_out": features.left_out, "step": loaded.step(),
            "manifest_digest": manifest.digest,
        });
        output.result(&object, || {
            let lost = match features.left_out {
                0 => String::new(),
                n => format!("\n{n} of {} images could not be decoded and have no row", manifest.samples),
            };
            format!("wrote {rows} embeddings of dimension {dim} to {}{lost}", out.display())
        })?;
        Ok(ExitStatus::Success)
    }
}

/// Representations of all images of the set, on the CPU.
fn encode(model: &OpenModel, data: &Path, manifest: &Arc<Manifest>, output: Output) -> Result<Features> {
    let (config, samples) = (&model.config, manifest.samples);
    let stream = config.evaluation_stream(data.to_owned(), [0.0, 1.0], config.seed);
    let runtime = open::runtime()?;
    let device = model.loaded.device;
    let mut batches = open_stream(manifest.clone(), stream, &config.machine, device, None, runtime.handle())?;
    let represent = |views: &Tensor| model.loaded.represent(views).to_device(Device::Cpu);
    let (progress, mut done) = (Progress::new("data set", 0, samples, output.quiet), 0);
    let found = features(&represent, &mut *batches, device, &mut |images| {
        done += images as u64;
        progress.set(done, samples, || "images encoded".into());
    })?;
    progress.finish();
    Ok(found)
}

/// Rows, and values in each.
fn size(features: &Features) -> (i64, i64) {
    features.values.size2().expect("features are a matrix")
}

/// The values of a tensor, row after row.
fn values<T: tch::kind::Element>(tensor: &Tensor) -> Result<Vec<T>>
where
    Vec<T>: for<'a> TryFrom<&'a Tensor, Error = tch::TchError>,
{
    Ok(Vec::try_from(&tensor.flatten(0, -1)).map_err(TrainError::from)?)
}

/// The path from the root on, of a local file.
fn absolute(path: &Path) -> PathBuf {
    if path.exists() { std::path::absolute(path).unwrap_or_else(|_| path.to_owned()) } else { path.to_owned() }
}

/// A file written aside, that takes its name when it is whole.
fn create(out: &Path) -> Result<tempfile::NamedTempFile> {
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".writing-").permissions(readable_by_all()).tempfile_in(folder);
    file.map_err(|error| Error::input(format!("cannot write {}: {error}", out.display())))
}

fn keep(file: tempfile::NamedTempFile, out: &Path) -> Result<()> {
    file.as_file().sync_all()?;
    file.persist(out).map_err(|error| error.error).with_context(|| format!("cannot write {}", out.display()))?;
    Ok(())
}

/// Columns `id` (the sample's place in the manifest), `entry`, `label` (null without one), and `feature`, a list of fixed
/// length; where it all comes from is in the file's metadata.
fn write_parquet(out: &Path, features: &Features, manifest: &Manifest, told: &[(&str, String)]) -> Result<()> {
    let (rows, dim) = size(features);
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let list = DataType::FixedSizeList(item.clone(), dim as i32);
    let fields = vec![
        Field::new("id", DataType::UInt64, false),
        Field::new("entry", DataType::Utf8, false),
        Field::new("label", DataType::Int64, true),
        Field::new("class", DataType::Utf8, true),
        Field::new("feature", list, false),
    ];
    let metadata: HashMap<String, String> =
        told.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let schema = Arc::new(Schema::new(fields).with_metadata(metadata));
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_created_by(format!("{WRITTEN_BY} {}", env!("CARGO_PKG_VERSION")))
        .build();
    let mut file = create(out)?;
    let failed = |error| Error::from_foreign(error).context(format!("cannot write {}", out.display()));
    let mut writer = ArrowWriter::try_new(file.as_file_mut(), schema.clone(), Some(properties)).map_err(failed)?;
    let labels: Vec<i64> = values(&features.labels)?;
    let entries: Vec<&str> =
        manifest.shards.iter().flat_map(|shard| shard.entries.iter().map(String::as_str)).collect();
    for from in (0..rows as usize).step_by(ROWS) {
        let some = from..(from + ROWS).min(rows as usize);
        let rows = Float32Array::from(values::<f32>(&features.values.narrow(0, from as i64, some.len() as i64))?);
        let ids = &features.ids[some.clone()];
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from(ids.to_vec())),
            Arc::new(StringArray::from_iter_values(ids.iter().map(|&id| entries[id as usize]))),
            Arc::new(
                labels[some.clone()].iter().map(|&label| (label != NO_LABEL).then_some(label)).collect::<Int64Array>(),
            ),
            Arc::new(
                labels[some]
                    .iter()
                    .map(|&label| manifest.classes.get(usize::try_from(label).ok()?))
                    .collect::<StringArray>(),
            ),
            Arc::new(FixedSizeListArray::new(item.clone(), dim as i32, Arc::new(rows), None)),
        ];
        let batch = RecordBatch::try_new(schema.clone(), columns).expect("columns are as the schema says");
        writer.write(&batch).map_err(failed)?;
    }
    writer.close().map_err(failed)?;
    keep(file, out)
}

/// The files of the arrays of values, ids and labels.
fn npy_files(out: &Path) -> [PathBuf; 3] {
    [out.to_owned(), out.with_extension("ids.npy"), out.with_extension("labels.npy")]
}

/// How an array begins, in NumPy's format 1.0.
const NPY: &[u8] = b"\x93NUMPY\x01\x00";

/// The representations, `[N, dim]` f32, at `out`; their ids, u64, and labels, i64, beside it.
fn write_npy(out: &Path, features: &Features) -> Result<()> {
    let (rows, dim) = size(features);
    let rows_of = values::<f32>(&features.values)?;
    let labels = values::<i64>(&features.labels)?;
    let write = |out: &Path, kind: &str, shape: &str, bytes: &mut dyn Iterator<Item = u8>| -> Result<()> {
        let mut file = create(out)?;
        let bytes: Vec<u8> = bytes.collect();
        npy(file.as_file_mut(), kind, shape, &bytes).with_context(|| format!("cannot write {}", out.display()))?;
        keep(file, out)
    };
    let [out, ids_out, labels_out] = npy_files(out);
    write(&out, "<f4", &format!("({rows}, {dim})"), &mut rows_of.iter().flat_map(|value| value.to_le_bytes()))?;
    let ids = &mut features.ids.iter().flat_map(|id| id.to_le_bytes());
    write(&ids_out, "<u8", &format!("({rows},)"), ids)?;
    let labels = &mut labels.iter().flat_map(|label| label.to_le_bytes());
    write(&labels_out, "<i8", &format!("({rows},)"), labels)
}

/// NumPy's format 1.0: a magic number, the length of a Python dict, the dict, the values.
fn npy(file: &mut File, kind: &str, shape: &str, bytes: &[u8]) -> std::io::Result<()> {
    const HEAD: usize = 10;
    let mut dict = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
    // The values begin at a multiple of 64.
    let padded = (HEAD + dict.len() + 1).next_multiple_of(64) - HEAD;
    dict.extend(std::iter::repeat_n(' ', padded - dict.len() - 1));
    dict.push('\n');
    file.write_all(NPY)?;
    file.write_all(&(padded as u16).to_le_bytes())?;
    file.write_all(dict.as_bytes())?;
    file.write_all(bytes)
}
