//! What representations look like: maps on which images that are alike lie together, and images with those that the
//! encoder takes for most alike.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int64Type, UInt64Type};
use arrow_array::{Array, RecordBatch};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use simclr_data::decode_memory::DECODE_MEMORY;
use simclr_data::source::Source;
use simclr_ground::error::{Error, Result};
use simclr_ground::sample::SampleRef;
use simclr_image::decode::{decode, decode_bytes};
use simclr_image::drawn;
use simclr_trainer::error::TrainError;
use tch::{Kind, Tensor};

use super::{base64, escape};
use crate::config::Config;
use crate::drawing::canvas::{Canvas, Face, INK, PAPER};
use crate::open;
use crate::telemetry::logging;

/// Points on a map, at most: more hide each other and make the page large.
const POINTS: usize = 2000;
/// Images whose neighbors are shown.
const QUERIES: usize = 10;
/// Neighbors of each.
const NEIGHBORS: usize = 8;
/// Directions of largest variance that t-SNE sees; fewer if there are fewer.
const DIRECTIONS: i64 = 50;

/// A table that `embed` wrote.
struct Embedding {
    /// `[N, dim]` f32.
    values: Tensor,
    /// Places in the manifest.
    ids: Vec<u64>,
    labels: Vec<Option<i64>>,
    /// What the classes are called, by label.
    classes: BTreeMap<i64, String>,
    /// The data set of the images, and its digest when they were embedded.
    manifest: PathBuf,
    digest: String,
}

/// Adds the maps and neighbors of the table at `path` to the page of a run with this configuration.
///
/// # Errors
/// If the table is none that `embed` writes. Images that are gone or others by now are left out of the page, which says so.
pub fn write(page: &mut String, path: &Path, config: &Config) -> Result<()> {
    let embedding = Embedding::read(path)?;
    let manifest = embedding.manifest.display();
    let rows = embedding.ids.len();
    let chosen: Vec<i64> = (0..POINTS.min(rows)).map(|i| (i * rows / POINTS.min(rows)) as i64).collect();
    let some = embedding.values.index_select(0, &Tensor::from_slice(&chosen));
    let labels: Vec<Option<i64>> = chosen.iter().map(|&i| embedding.labels[i as usize]).collect();
    let most = labels.iter().flatten().copied().max().unwrap_or(0).max(9) as usize + 1;
    let components = principal_components(&some);
    page.push_str("<h2>Maps</h2><p class=\"faint\">");
    write!(page, "{} of {rows} images of {}, ", chosen.len(), escape(&manifest.to_string()))?;
    page.push_str("one point each; images with similar representations lie close together.</p><div class=\"curves\">");
    let plane = |values: &Tensor| -> Result<Vec<(f64, f64)>> {
        let [x, y] = [0, 1].map(|i| Vec::<f64>::try_from(values.select(1, i.min(values.size()[1] - 1))));
        Ok(x.map_err(TrainError::from)?.into_iter().zip(y.map_err(TrainError::from)?).collect())
    };
    let near = t_sne(&components)?;
    for (name, unit, points) in [
        ("Principal components", "the two directions of largest variance", plane(&components)?),
        ("t-SNE", "preserves local neighborhoods; distances between groups mean little", near),
    ] {
        write!(page, "<figure><figcaption>{name} <span>{unit}</span></figcaption>")?;
        map(page, &points, &labels, most)?;
        page.push_str("</figure>");
    }
    page.push_str("</div>");
    if (1..=20).contains(&embedding.classes.len()) {
        page.push_str("<p>");
        for (&class, name) in &embedding.classes {
            let color = color(class as usize, most);
            write!(page, "<span style=\"color:{color}\">●</span> {} &ensp; ", escape(name))?;
        }
        page.push_str("</p>");
    }
    let image = match embedding.images(config).and_then(|source| neighbors(&embedding, &source)) {
        Ok(image) => base64(&drawn::png(&image)),
        Err(error) => {
            let why = format!("no images of nearest neighbors: {error:#}");
            logging::say(&format!("{}: {why}", path.display()));
            write!(page, "<p class=\"faint\">{}</p>", escape(&why))?;
            return Ok(());
        }
    };
    write!(
        page,
        "<h2>Nearest neighbors</h2><p class=\"faint\">Each image and its {NEIGHBORS} nearest neighbors by representation; a green mark means the same class.</p><img alt=\"images with their nearest neighbors\" src=\"data:image/png;base64,{image}\">"
    )?;
    Ok(())
}

impl Embedding {
    fn read(path: &Path) -> Result<Self> {
        let wrong = |what: String| Error::input(format!("--embedding {}: {what}", path.display()));
        let none = |error: &dyn std::fmt::Display| wrong(format!("expected a table written by `embed`: {error}"));
        let file = File::open(path).map_err(|error| wrong(format!("cannot read: {error}")))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| none(&error))?;
        let manifest = builder.schema().metadata().get("simclr.manifest").map(PathBuf::from);
        let manifest = manifest.ok_or_else(|| none(&"no manifest in its metadata"))?;
        let digest = builder.schema().metadata().get("simclr.manifest_digest").cloned().unwrap_or_default();
        let (mut values, mut ids, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        let mut classes = BTreeMap::new();
        for batch in builder.build().map_err(|error| none(&error))? {
            let batch = batch.map_err(|error| none(&error))?;
            let feature = column(&batch, "feature").and_then(<dyn Array>::as_fixed_size_list_opt);
            let feature = feature.ok_or_else(|| none(&"no list column feature"))?;
            let flat = feature.values().as_primitive_opt::<Float32Type>();
            let flat = flat.ok_or_else(|| none(&"the features are not f32"))?;
            values.push(Tensor::from_slice(flat.values()).view([-1, feature.value_length().into()]));
            let id = column(&batch, "id").and_then(|ids| ids.as_primitive_opt::<UInt64Type>());
            ids.extend(id.ok_or_else(|| none(&"no column id"))?.values());
            let label = column(&batch, "label").and_then(|labels| labels.as_primitive_opt::<Int64Type>());
            let label = label.ok_or_else(|| none(&"no column label"))?;
            // Older tables have none.
            if let Some(names) = column(&batch, "class").and_then(<dyn Array>::as_string_opt::<i32>) {
                let named = label.iter().zip(names).filter_map(|(label, name)| Some((label?, name?.to_owned())));
                classes.extend(named);
            }
            labels.extend(label.iter());
        }
        if ids.len() < 2 {
            return Err(wrong(format!("expected at least 2 rows, found {}", ids.len())));
        }
        Ok(Self { values: Tensor::cat(&values, 0), ids, labels, classes, manifest, digest })
    }

    /// The images, if they still are those that were embedded.
    fn images(&self, config: &Config) -> Result<Arc<Source>> {
        let source = open::source(config.evaluation_stream(self.manifest.clone(), [0.0, 1.0], 1), &config.machine)?;
        if source.store.manifest().digest != self.digest {
            let manifest = self.manifest.display();
            return Err(Error::input(format!("{manifest} is not what was embedded any more; run `embed` again")));
        }
        Ok(source)
    }
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Option<&'a dyn Array> {
    batch.column_by_name(name).map(|column| &**column)
}

/// The rows of `values`, `[N, dim]`, along their directions of largest variance, the largest first: `[N, directions]` f64.
fn principal_components(values: &Tensor) -> Tensor {
    let values = values.to_kind(Kind::Double);
    let centred = &values - values.mean_dim([0i64].as_slice(), true, Kind::Double);
    let (u, s, _) = centred.svd(true, true);
    let count = s.size()[0].min(DIRECTIONS);
    u.narrow(1, 0, count) * s.narrow(0, 0, count)
}

/// The rows of `components` in the plane, neighbors beside neighbors; it begins with the first two components.
fn t_sne(components: &Tensor) -> Result<Vec<(f64, f64)>> {
    let (count, directions) = components.size2().map_err(TrainError::from)?;
    let start = components.narrow(1, 0, 2.min(directions)).contiguous();
    let start = &start / start.std(false).clamp_min(1e-12) * 1e-4;
    let start = if directions < 2 { Tensor::cat(&[&start, &start.zeros_like()], 1) } else { start };
    let start: Vec<f32> =
        Vec::<f64>::try_from(start.flatten(0, -1)).map_err(TrainError::from)?.into_iter().map(|x| x as f32).collect();
    let rows = Vec::<Vec<f64>>::try_from(components).map_err(TrainError::from)?;
    let rows: Vec<Vec<f32>> = rows.iter().map(|row| row.iter().map(|&x| x as f32).collect()).collect();
    // A neighborhood is a part of the whole.
    let perplexity = (count as f32 / 4.0).clamp(1.0, 30.0);
    let distance = |a: &Vec<f32>, b: &Vec<f32>| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
    let mut t_sne: bhtsne::tSNE<'_, f32, Vec<f32>> = bhtsne::tSNE::new(&rows);
    t_sne.perplexity(perplexity).epochs(750).initial_embedding(start).barnes_hut(0.5, distance);
    Ok(t_sne.embedding().chunks(2).map(|point| (f64::from(point[0]), f64::from(point[1]))).collect())
}

/// Points as SVG, colored by class.
fn map(page: &mut String, points: &[(f64, f64)], labels: &[Option<i64>], classes: usize) -> std::fmt::Result {
    const SIDE: f64 = 480.0;
    const EDGE: f64 = 8.0;
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        let low = points.iter().map(of).fold(f64::INFINITY, f64::min);
        (low, points.iter().map(of).fold(f64::NEG_INFINITY, f64::max) - low)
    };
    let ((left, width), (top, height)) = (bounds(|p| p.0), bounds(|p| p.1));
    let scale = (SIDE - 2.0 * EDGE) / width.max(height).max(1e-12);
    write!(page, "<svg viewBox=\"0 0 {SIDE} {SIDE}\" role=\"img\">")?;
    for (point, label) in points.iter().zip(labels) {
        let x = SIDE / 2.0 + (point.0 - left - width / 2.0) * scale;
        let y = SIDE / 2.0 + (point.1 - top - height / 2.0) * scale;
        let color = label.map_or("var(--faint)".to_owned(), |label| color(label as usize, classes));
        write!(page, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\" fill=\"{color}\" fill-opacity=\"0.75\"/>")?;
    }
    page.push_str("</svg>");
    Ok(())
}

/// A class's color: hues all around, in two lightnesses so that neighbors on the wheel differ.
fn color(class: usize, classes: usize) -> String {
    let hue = 360 * class / classes.max(1);
    format!("hsl({hue} 75% {}%)", if class.is_multiple_of(2) { 45 } else { 62 })
}

/// Rows of an image and those most like it.
fn neighbors(embedding: &Embedding, source: &Source) -> Result<simclr_image::decode::RgbImage> {
    const SIDE: u32 = 96;
    const GAP: u32 = 10;
    const NAME: u32 = 20;
    const GOOD: [u8; 3] = [21, 128, 61];
    const OTHER: [u8; 3] = [190, 190, 184];
    let rows = embedding.ids.len();
    let neighbors = NEIGHBORS.min(rows - 1);
    let queries = queries(&embedding.labels);
    let values = &embedding.values / embedding.values.norm_scalaropt_dim(2, [1i64].as_slice(), true).clamp_min(1e-12);
    let asked = values.index_select(0, &Tensor::from_slice(&queries));
    let similarity = asked.matmul(&values.tr());
    // Not the image itself, nor a copy of it that comes first.
    let itself = Tensor::from_slice(&queries).unsqueeze(1);
    let similarity = similarity.scatter_value(1, &itself, f64::NEG_INFINITY);
    let (_, nearest) = similarity.topk(neighbors as i64, 1, true, true);
    let nearest = Vec::<Vec<i64>>::try_from(nearest).map_err(TrainError::from)?;
    let storage = open::runtime()?;
    let manifest = source.store.manifest();
    let pick = |id: u64| {
        let mut left = id;
        let found = manifest.shards.iter().enumerate().find_map(|(shard, s)| {
            let count = s.num_samples() as u64;
            if left < count {
                return Some(SampleRef { shard: shard as u32, index: left as u32 });
            }
            left -= count;
            None
        });
        found.ok_or_else(|| {
            Error::input(format!("the embeddings contain sample {id}, but the manifest has {}", manifest.samples))
        })
    };
    let columns = 1 + neighbors as u32;
    let width = GAP + columns * (SIDE + GAP) + GAP;
    let mut canvas = Canvas::new(width, GAP + queries.len() as u32 * (SIDE + NAME + GAP), PAPER);
    for (row, (&query, near)) in queries.iter().zip(&nearest).enumerate() {
        let y = GAP + row as u32 * (SIDE + NAME + GAP);
        for (column, &place) in std::iter::once(&query).chain(near).enumerate() {
            let x = GAP + column as u32 * (SIDE + GAP) + if column > 0 { GAP } else { 0 };
            let bytes = source.store.read(&[pick(embedding.ids[place as usize])?], storage.handle())?.remove(0);
            let _room = DECODE_MEMORY.room(decode_bytes(&bytes));
            if let Ok(image) = decode(&bytes, source.plan.config.data.max_pixels) {
                canvas.put(&image, x, y, SIDE);
            }
            let label = embedding.labels[place as usize];
            let name = label.and_then(|label| manifest.classes.get(label as usize)).map_or("", String::as_str);
            if column > 0 {
                let same = label.is_some() && label == embedding.labels[query as usize];
                canvas.fill(x, y + SIDE + 2, SIDE, 3, if same { GOOD } else { OTHER });
            }
            canvas.write(name, x, y + SIDE + 6, SIDE, 12.0, Face::Text, INK);
        }
    }
    Ok(canvas.into_image())
}

/// The rows whose neighbors are shown: the first of each class, as long as there are not too many.
fn queries(labels: &[Option<i64>]) -> Vec<i64> {
    let mut seen = std::collections::BTreeMap::new();
    for (row, label) in labels.iter().enumerate() {
        if let Some(label) = label {
            seen.entry(*label).or_insert(row as i64);
        }
    }
    let mut chosen: Vec<i64> = seen.into_values().take(QUERIES).collect();
    // Fewer classes than rows to show: any others.
    for row in 0..labels.len() as i64 {
        if chosen.len() == QUERIES {
            break;
        }
        if !chosen.contains(&row) {
            chosen.push(row);
        }
    }
    chosen
}
