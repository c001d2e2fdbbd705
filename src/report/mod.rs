//! A run's report: one HTML file that needs nothing else, with curves, evaluations, images and settings.

mod embedding;

use std::fmt::Write;
use std::path::Path;

use simclr_data::dataset::MANIFEST;
use simclr_ground::error::{Context, Error, Result};
use simclr_ground::files::write_whole;
use simclr_trainer::run::{MetricsLine, RunFolder};
use simclr_trainer::step_metrics::STEP_METRICS;

use crate::config::Config;

const STYLE: &str = "
:root { --paper: #fbfbf9; --ink: #1c1e22; --faint: #6b7280; --line: #e2e2dc; --one: #2563eb; --pale: #2563eb33; --good: #15803d; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181d; --ink: #e8eaee; --faint: #98a0ad; --line: #2c3038; --one: #7aa2ff; --pale: #7aa2ff33; --good: #5fd38d; } }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 12px; } .faint { color: var(--faint); }
.numbers { display: flex; flex-wrap: wrap; gap: 12px 40px; margin: 24px 0; } .numbers b { display: block; font-size: 34px; font-weight: 600; line-height: 1.15; }
.numbers .good b { color: var(--good); }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 24px; }
figure { margin: 0; } figcaption { font-weight: 600; } figcaption span { font-weight: 400; color: var(--faint); }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--faint); font: 11px system-ui, sans-serif; }
table { border-collapse: collapse; } td, th { text-align: left; padding: 4px 20px 4px 0; border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
img { max-width: 100%; border-radius: 6px; } pre { overflow-x: auto; font-size: 13px; background: var(--pale); padding: 14px; border-radius: 6px; }
";

/// Writes the report of the run in `folder` to `out`, with maps of the table of representations `embedding` if there is
/// one.
///
/// # Errors
/// If the files can't be read or the report can't be written.
pub fn write(folder: &RunFolder, embedding: Option<&Path>, out: &Path) -> Result<()> {
    let record = Config::recorded(folder)?;
    let metrics = folder.metrics()?;
    let evaluations = folder.evaluations();
    let mut page = String::new();
    let title = std::path::absolute(folder.path())?
        .file_name()
        .map_or("run".into(), |name| name.to_string_lossy().into_owned());
    let title = escape(&title);
    write!(
        page,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style><h1>{title}</h1>\
         <p class=\"faint\">SimCLR, {} images per batch, plan {}</p>",
        record.config.batch.size,
        record.plan_digest.get(..16).unwrap_or("none yet (imported weights)")
    )?;
    numbers(&mut page, &metrics, &evaluations)?;
    if !metrics.is_empty() {
        page.push_str("<h2>Training</h2><div class=\"curves\">");
        for metric in STEP_METRICS {
            let Some((name, unit)) = metric.curve else { continue };
            let value = |line: &MetricsLine| (line.step as f64, line.values.get(metric.key));
            let points: Vec<(f64, f64)> = metrics.iter().map(value).collect();
            if points.iter().all(|(_, value)| value.is_nan()) {
                continue;
            }
            write!(page, "<figure><figcaption>{name} <span>{unit}</span></figcaption>{}</figure>", curve(&points))?;
        }
        page.push_str("</div>");
    }
    if !evaluations.is_empty() {
        page.push_str("<h2>Evaluations</h2><table><tr><th>evaluation<th>step<th>top-1<th>top-5<th>train<th>test");
        for result in &evaluations {
            let percent =
                |key: &str| result[key].as_f64().map_or("–".into(), |share| format!("{:.2} %", 100.0 * share));
            let top1 = |result: &serde_json::Value| {
                let spread = result["spread"].as_f64().map(|spread| format!(" ± {:.2}", 100.0 * spread));
                percent("top1") + &spread.unwrap_or_default()
            };
            let set = |key: &str| {
                let path = Path::new(result[key].as_str().unwrap_or_default());
                // A manifest is known by the folder that it lies in.
                let named = if path.ends_with(MANIFEST) { path.parent().unwrap_or(path) } else { path };
                escape(&named.file_name().unwrap_or(named.as_os_str()).to_string_lossy())
            };
            let text = |key: &str| escape(&result[key].as_str().map_or_else(|| result[key].to_string(), str::to_owned));
            write!(
                page,
                "<tr><td>{}<td>{}<td>{}<td>{}<td>{} ({} images)<td>{} ({} images)",
                text("evaluation"),
                text("step"),
                top1(result),
                percent("top5"),
                set("train"),
                text("train_images"),
                set("test"),
                text("test_images")
            )?;
        }
        page.push_str("</table>");
    }
    if let Some(embedding) = embedding {
        embedding::write(&mut page, embedding, &record.config)?;
    }
    if let Ok(image) = std::fs::read(folder.join("preview.png")) {
        write!(
            page,
            "<h2>What the encoder saw</h2><p class=\"faint\">Each image and its two augmented views, with the sampled parameters. The encoder learns that the two belong together; it never sees a label.</p><img alt=\"contact sheet of the first batch\" src=\"data:image/png;base64,{}\">",
            base64(&image)
        )?;
    }
    let settings = toml::to_string(&record.config).map_err(Error::from_foreign)?;
    write!(page, "<h2>Settings</h2><pre>{}</pre>", escape(&settings))?;
    let versions = &record.versions;
    write!(
        page,
        "<p class=\"faint\">simclr-pipeline {}, libtorch {}, manifest {}</p></html>",
        versions.simclr_pipeline,
        versions.libtorch,
        record.manifest_digest.get(..16).unwrap_or("none yet")
    )?;
    write_whole(out, page.as_bytes()).with_context(|| format!("cannot write {}", out.display()))
}

/// Writes the logged steps of the run in `folder` to `out` as comma-separated values, a column for each number.
///
/// # Errors
/// If the run's metrics can't be read or the table can't be written.
pub fn write_table(folder: &RunFolder, out: &Path) -> Result<()> {
    let keys: Vec<&str> = STEP_METRICS.iter().map(|metric| metric.key).collect();
    let mut table = format!("step,batch,{}\n", keys.join(","));
    for line in folder.metrics()? {
        let value = |key: &&str| match line.values.get(key) {
            value if value.is_nan() => String::new(),
            value => value.to_string(),
        };
        let values: Vec<String> = keys.iter().map(value).collect();
        table += &format!("{},{},{}\n", line.step, line.batch, values.join(","));
    }
    write_whole(out, table.as_bytes()).with_context(|| format!("cannot write {}", out.display()))
}

/// The run in large figures: kNN before and after, the last loss.
fn numbers(page: &mut String, metrics: &[MetricsLine], evaluations: &[serde_json::Value]) -> std::fmt::Result {
    page.push_str("<div class=\"numbers\">");
    let top1 = |name: &str, trained: bool| {
        let fits = |e: &&serde_json::Value| e["evaluation"] == name && (e["step"].as_u64() > Some(0)) == trained;
        evaluations.iter().rfind(fits).and_then(|e| e["top1"].as_f64())
    };
    for (label, value, good) in [
        ("kNN top-1, untrained", top1("knn", false), false),
        ("kNN top-1, trained", top1("knn", true), true),
        ("linear top-1, trained", top1("linear", true), true),
    ] {
        if let Some(value) = value {
            let class = if good { " class=\"good\"" } else { "" };
            write!(page, "<div{class}><b>{:.1} %</b>{label}</div>", 100.0 * value)?;
        }
    }
    if let Some(last) = metrics.last() {
        write!(page, "<div><b>{}</b>steps</div><div><b>{:.3}</b>last loss</div>", last.step, last.values.get("loss"))?;
    }
    page.push_str("</div>");
    Ok(())
}

/// A curve as SVG: every point pale, their running mean on top.
fn curve(points: &[(f64, f64)]) -> String {
    const WIDTH: f64 = 480.0;
    const HEIGHT: f64 = 220.0;
    const LEFT: f64 = 46.0;
    const BOTTOM: f64 = 24.0;
    let finite: Vec<(f64, f64)> = points.iter().copied().filter(|(_, y)| y.is_finite()).collect();
    let (Some(first), Some(last)) = (finite.first(), finite.last()) else { return String::new() };
    let low = finite.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = finite.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    let room = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-9);
    let (low, high) = (if low >= 0.0 { (low - room).max(0.0) } else { low - room }, high + room);
    let x = |step: f64| LEFT + (step - first.0) / (last.0 - first.0).max(1.0) * (WIDTH - LEFT - 8.0);
    let y = |value: f64| 8.0 + (high - value) / (high - low) * (HEIGHT - BOTTOM - 8.0);
    let path = |points: &[(f64, f64)]| {
        let all: Vec<String> = points.iter().map(|&(step, value)| format!("{:.1},{:.1}", x(step), y(value))).collect();
        all.join(" ")
    };
    // No more points than can be seen.
    let thin: Vec<(f64, f64)> = finite.iter().copied().step_by(finite.len().div_ceil(800)).collect();
    let window = (finite.len() / 30).max(1);
    let mut sum = 0.0;
    let mean: Vec<(f64, f64)> = finite
        .iter()
        .enumerate()
        .map(|(i, &(step, value))| {
            sum += value;
            if i >= window {
                sum -= finite[i - window].1;
            }
            (step, sum / (i + 1).min(window) as f64)
        })
        .step_by(finite.len().div_ceil(400))
        .collect();
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for i in 0..=4 {
        let value = low + (high - low) * f64::from(i) / 4.0;
        let at = y(value);
        let _ =
            write!(svg, "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"var(--line)\"/>");
        let _ =
            write!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", LEFT - 6.0, at + 4.0, short(value));
    }
    for i in 0..=4 {
        let step = first.0 + (last.0 - first.0) * f64::from(i) / 4.0;
        let anchor = if i == 4 { "end" } else { "middle" };
        let _ =
            write!(svg, "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{step:.0}</text>", x(step), HEIGHT - 6.0);
    }
    let _ = write!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"var(--pale)\"/><polyline points=\"{}\" fill=\"none\" stroke=\"var(--one)\" stroke-width=\"2\"/></svg>",
        path(&thin),
        path(&mean)
    );
    svg
}

fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Bytes in base 64 (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i)) as usize & 63] as char;
            text.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, wanted) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(text.as_bytes()), wanted);
        }
    }
}
