//! `embed`: the representations of all images that a manifest lists, for other tools: Parquet, or NumPy's npy.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch, StringArray, UInt64Array};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use pipeline::batch::NO_LABEL;
use pipeline::manifest::Manifest;
use serde_json::json;
use trainer::eval::Features;

use super::Voice;
use super::eval::{Labels, Loaded};
use crate::cli::EmbedArgs;
use crate::{Ending, WrongInput, stream};

/// Rows of a Parquet file that are written at a time.
const ROWS: usize = 16_384;

/// What a file can be, by the end of its name.
#[derive(Clone, Copy)]
enum Format {
    Parquet,
    Npy,
}

pub fn run(args: &EmbedArgs, voice: Voice) -> anyhow::Result<Ending> {
    let format = match args.out.extension().and_then(|end| end.to_str()) {
        Some("parquet") => Format::Parquet,
        Some("npy") => Format::Npy,
        _ => {
            let out = args.out.display();
            return Err(WrongInput(format!("--out {out}: a name that ends in .parquet or .npy is wanted")).into());
        }
    };
    let loaded = Loaded::open(&args.model, args.untrained, args.head_layer, &args.settings)?;
    let manifest = Manifest::read(&args.data)?;
    let runtime = stream::runtime()?;
    let features = loaded.features(&args.data, "data set", Labels::IfThere, runtime.handle(), voice)?;
    let (rows, dim) = features.values.size2()?;
    let told = [
        ("simclr.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("simclr.run", loaded.folder.path().display().to_string()),
        ("simclr.checkpoint", loaded.chosen.as_ref().map_or(String::new(), |(path, _)| path.display().to_string())),
        ("simclr.step", loaded.step.to_string()),
        ("simclr.plan_digest", loaded.plan_digest.clone()),
        ("simclr.head_layer", args.head_layer.to_string()),
        ("simclr.manifest", absolute(&args.data).display().to_string()),
        ("simclr.manifest_digest", manifest.digest.clone()),
    ];
    match format {
        Format::Parquet => write_parquet(&args.out, &features, &manifest, &told)?,
        Format::Npy => write_npy(&args.out, &features)?,
    }
    let object = json!({
        "out": args.out, "rows": rows, "dim": dim, "left_out": features.left_out, "step": loaded.step,
        "manifest_digest": manifest.digest,
    });
    voice.result(&object, || format!("{rows} representations of {dim} values in {}", args.out.display()));
    Ok(Ending::Done)
}

/// The path from the root on, of a local file.
fn absolute(path: &Path) -> PathBuf {
    if path.exists() { std::path::absolute(path).unwrap_or_else(|_| path.to_owned()) } else { path.to_owned() }
}

/// A file written aside, that takes its name when it is whole.
fn create(out: &Path) -> anyhow::Result<tempfile::NamedTempFile> {
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder);
    Ok(file.map_err(|error| WrongInput(format!("{}: cannot be written: {error}", out.display())))?)
}

fn keep(file: tempfile::NamedTempFile, out: &Path) -> anyhow::Result<()> {
    file.as_file().sync_all()?;
    file.persist(out).with_context(|| format!("cannot write {}", out.display()))?;
    Ok(())
}

/// Columns `id` (the sample's place in the manifest), `entry`, `label` (null without one), and `feature`, a list of fixed
/// length; where it all comes from is in the file's metadata.
fn write_parquet(out: &Path, features: &Features, manifest: &Manifest, told: &[(&str, String)]) -> anyhow::Result<()> {
    let (rows, dim) = features.values.size2()?;
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let list = DataType::FixedSizeList(item.clone(), dim as i32);
    let fields = vec![
        Field::new("id", DataType::UInt64, false),
        Field::new("entry", DataType::Utf8, false),
        Field::new("label", DataType::Int64, true),
        Field::new("feature", list, false),
    ];
    let metadata: HashMap<String, String> =
        told.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let schema = Arc::new(Schema::new(fields).with_metadata(metadata));
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let mut file = create(out)?;
    let mut writer = ArrowWriter::try_new(file.as_file_mut(), schema.clone(), Some(properties))?;
    let labels = Vec::<i64>::try_from(&features.labels)?;
    let entries: Vec<&str> =
        manifest.shards.iter().flat_map(|shard| shard.entries.iter().map(String::as_str)).collect();
    for from in (0..rows as usize).step_by(ROWS) {
        let some = from..(from + ROWS).min(rows as usize);
        let values = features.values.narrow(0, from as i64, some.len() as i64).flatten(0, -1);
        let values = Float32Array::from(Vec::<f32>::try_from(values)?);
        let ids = &features.ids[some.clone()];
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from(ids.to_vec())),
            Arc::new(StringArray::from_iter_values(ids.iter().map(|&id| entries[id as usize]))),
            Arc::new(labels[some].iter().map(|&label| (label != NO_LABEL).then_some(label)).collect::<Int64Array>()),
            Arc::new(FixedSizeListArray::try_new(item.clone(), dim as i32, Arc::new(values), None)?),
        ];
        writer.write(&RecordBatch::try_new(schema.clone(), columns)?)?;
    }
    writer.close()?;
    keep(file, out)
}

/// The representations, `[N, dim]` f32, at `out`; their ids, u64, and labels, i64, beside it.
fn write_npy(out: &Path, features: &Features) -> anyhow::Result<()> {
    let (rows, dim) = features.values.size2()?;
    let values = Vec::<f32>::try_from(features.values.flatten(0, -1))?;
    let labels = Vec::<i64>::try_from(&features.labels)?;
    let write = |out: &Path, kind: &str, shape: &str, bytes: &mut dyn Iterator<Item = u8>| -> anyhow::Result<()> {
        let mut file = create(out)?;
        let bytes: Vec<u8> = bytes.collect();
        npy(file.as_file_mut(), kind, shape, &bytes)?;
        keep(file, out)
    };
    write(out, "<f4", &format!("({rows}, {dim})"), &mut values.iter().flat_map(|value| value.to_le_bytes()))?;
    let ids = &mut features.ids.iter().flat_map(|id| id.to_le_bytes());
    write(&out.with_extension("ids.npy"), "<u8", &format!("({rows},)"), ids)?;
    let labels = &mut labels.iter().flat_map(|label| label.to_le_bytes());
    write(&out.with_extension("labels.npy"), "<i8", &format!("({rows},)"), labels)
}

/// NumPy's format 1.0: a magic number, the length of a Python dict, the dict, the values.
fn npy(file: &mut File, kind: &str, shape: &str, bytes: &[u8]) -> std::io::Result<()> {
    const HEAD: usize = 10;
    let mut dict = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
    // The values begin at a multiple of 64.
    let padded = (HEAD + dict.len() + 1).next_multiple_of(64) - HEAD;
    dict.extend(std::iter::repeat_n(' ', padded - dict.len() - 1));
    dict.push('\n');
    file.write_all(b"\x93NUMPY\x01\x00")?;
    file.write_all(&(padded as u16).to_le_bytes())?;
    file.write_all(dict.as_bytes())?;
    file.write_all(bytes)
}
