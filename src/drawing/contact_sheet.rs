//! A contact sheet of a batch: each image with its views, and how they were made.

use simclr_data::inspect::{Inspector, Seen};
use simclr_data::source::Source;
use simclr_ground::error::Result;
use simclr_image::augment::Step;
use simclr_image::decode::RgbImage;

use super::canvas::{Canvas, Face};

const PAPER: [u8; 3] = [24, 26, 31];
const CARD: [u8; 3] = [34, 37, 44];
const INK: [u8; 3] = [236, 238, 242];
const FAINT: [u8; 3] = [154, 162, 176];
const WARM: [u8; 3] = [255, 170, 110];

/// The first `images` images of global batch `batch`: each with its views and how they were made.
pub fn contact_sheet(source: &Source, batch: u64, images: usize) -> Result<RgbImage> {
    const MARGIN: u32 = 28;
    const GAP: u32 = 10;
    const LINE: u32 = 15;
    let plan = &source.plan;
    let recipe = &plan.config.recipe;
    let images = images.min(plan.config.batch.size as usize);
    // Small views are shown larger, in whole steps.
    let sizes: Vec<u32> = recipe.sizes().collect();
    let largest = sizes.iter().copied().max().expect("a recipe has views");
    let side = if largest >= 160 { largest } else { largest * 160u32.div_ceil(largest) };
    let panels = 1 + sizes.len() as u32;
    let columns = if images > 3 && panels <= 3 { 2 } else { 1 };
    let rows = (images as u32).div_ceil(columns);
    let storage = crate::open::runtime()?;
    let mut inspector = Inspector::new(source, batch, storage.handle().clone());
    let all = (0..images).map(|image| inspector.look(image)).collect::<Result<Vec<_>, _>>()?;
    let drawn = all.iter().filter_map(|image| image.seen.as_ref().ok()).flat_map(|seen| &seen.views);
    let lines = drawn.map(|(_, steps)| captions(steps).len() as u32).max().unwrap_or(0);
    let card_width = panels * side + (panels + 1) * GAP;
    let card_height = 30 + side + GAP + lines * LINE + GAP;
    let width = 2 * MARGIN + columns * card_width + (columns - 1) * GAP * 2;
    let header = 74;
    let mut canvas = Canvas::new(width, header + rows * (card_height + 2 * GAP) + MARGIN, PAPER);
    let position = plan.position(batch);
    canvas.write(&format!("Batch {batch}"), MARGIN, 16, width, 30.0, Face::Text, INK);
    let about = format!(
        "epoch {}, batch {} of {}   seed {}   plan {}",
        position.epoch,
        position.batch_in_epoch + 1,
        plan.batches_per_epoch(),
        plan.config.seed,
        &plan.digest[..16]
    );
    canvas.write(&about, MARGIN, 50, width - 2 * MARGIN, 14.0, Face::Text, FAINT);
    for (i, place) in (0u32..).zip(all) {
        let (column, row) = (i % columns, i / columns);
        let x = MARGIN + column * (card_width + 2 * GAP);
        let y = header + row * (card_height + 2 * GAP);
        canvas.fill(x, y, card_width, card_height, CARD);
        canvas.write(place.class.as_deref().unwrap_or("no label"), x + GAP, y + 6, side, 18.0, Face::Text, INK);
        let name = format!("{}  in  {}", place.entry, place.shard);
        canvas.write(&name, x + 2 * GAP + side, y + 10, card_width - side - 3 * GAP, 12.0, Face::Mono, FAINT);
        let top = y + 30;
        match place.seen {
            Err(damage) => {
                let (left, width) = (x + GAP, card_width - 2 * GAP);
                canvas.write("damaged, replaced in training", left, top + 20, width, 16.0, Face::Text, WARM);
                canvas.write(&damage.to_string(), left, top + 44, width, 12.0, Face::Mono, FAINT);
            }
            Ok(Seen { original, views }) => {
                canvas.put(&original, x + GAP, top, side);
                let size = format!("{}×{}, {:.0} kB", original.width, original.height, place.bytes as f64 / 1e3);
                canvas.write(&size, x + GAP, top + side + GAP, side, 12.0, Face::Mono, FAINT);
                for (view, (image, steps)) in views.iter().enumerate() {
                    let left = x + GAP + (view as u32 + 1) * (side + GAP);
                    canvas.put(image, left, top, side);
                    for (line, text) in captions(steps).iter().enumerate() {
                        let y = top + side + GAP + line as u32 * LINE;
                        canvas.write(text, left, y, side, 12.0, Face::Mono, FAINT);
                    }
                }
            }
        }
    }
    Ok(canvas.into_image())
}

/// A line for each step; the color changes take two.
fn captions(steps: &[Step]) -> Vec<String> {
    let mut lines = Vec::new();
    for step in steps {
        let text = step.to_string();
        match (step, text.match_indices(' ').nth(1)) {
            (Step::Colors(changes), Some((middle, _))) if changes.len() > 2 => {
                lines.push(text[..middle].to_owned());
                lines.push(text[middle + 1..].to_owned());
            }
            _ => lines.push(text),
        }
    }
    lines
}
