//! A batch on the page: what its images are and how their views were made, and the images themselves.

use axum::http::StatusCode;
use serde_json::{Value, json};
use simclr_data::inspect::{Inspected, Inspector};
use simclr_data::source::Source;
use simclr_image::drawn;

/// Images described at a time, at most.
const MOST_IMAGES: usize = 64;

/// Why there is nothing to show.
pub type Refusal = (StatusCode, String);

fn missing(what: String) -> Refusal {
    (StatusCode::NOT_FOUND, what)
}

/// The images of batch `number` from `from` on, at most `images` of them.
pub fn describe(
    source: &Source,
    number: u64,
    from: usize,
    images: usize,
    storage: tokio::runtime::Handle,
) -> Result<Value, Refusal> {
    let mut inspector = Inspector::new(source, number, storage);
    let to = from.saturating_add(images.min(MOST_IMAGES)).min(inspector.num_images());
    let images = (from..to).map(|image| look(&mut inspector, image).map(|place| told(image, &place)));
    let images: Vec<Value> = images.collect::<Result<_, _>>()?;
    let position = source.plan.position(number);
    Ok(json!({
        "batch": number, "epoch": position.epoch, "batch_in_epoch": position.batch_in_epoch,
        "batches_per_epoch": source.plan.batches_per_epoch(), "total_images": inspector.num_images(), "images": images,
    }))
}

/// An image of batch `number` as PNG: `original`, or a view by its number.
pub fn image(
    source: &Source,
    number: u64,
    image: usize,
    which: &str,
    storage: tokio::runtime::Handle,
) -> Result<Vec<u8>, Refusal> {
    let mut inspector = Inspector::new(source, number, storage);
    if image >= inspector.num_images() {
        return Err(missing(format!("batch {number} has {} images, numbered from 0", inspector.num_images())));
    }
    let seen = look(&mut inspector, image)?.seen.map_err(|damage| missing(damage.to_string()))?;
    if which == "original" {
        return Ok(drawn::png(&seen.original));
    }
    let view = which.parse().ok().and_then(|view: usize| seen.views.get(view));
    let (view, _) = view.ok_or_else(|| missing(format!("{which}: expected original or a view's number")))?;
    Ok(drawn::png(view))
}

fn look(inspector: &mut Inspector<'_>, image: usize) -> Result<Inspected, Refusal> {
    inspector.look(image).map_err(|error| (StatusCode::BAD_GATEWAY, format!("{error}")))
}

fn told(image: usize, place: &Inspected) -> Value {
    let mut told = json!({
        "image": image, "entry": place.entry, "shard": place.shard, "class": place.class, "bytes": place.bytes,
    });
    match &place.seen {
        Ok(seen) => {
            let view = |(image, steps): &(simclr_image::decode::RgbImage, Vec<simclr_image::augment::Step>)| {
                let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
                json!({ "side": image.width, "steps": steps })
            };
            told["width"] = json!(seen.original.width);
            told["height"] = json!(seen.original.height);
            told["views"] = seen.views.iter().map(view).collect();
        }
        Err(damage) => {
            told["damage"] = json!(damage.to_string());
            told["views"] = json!([]);
        }
    }
    told
}
