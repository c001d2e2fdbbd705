//! Labeled images drawn from a seed: a data set where there is none, for the quick start and for tests.
//!
//! The classes differ in shape or texture. Colors, brightness, place, size and turn are drawn alike for every
//! class, so that mean color tells nothing.

use simclr_ground::rng::{Draws, Purpose};

use crate::decode::RgbImage;

/// The classes, in the order of their labels.
pub const CLASSES: [&str; 10] =
    ["disc", "ring", "square", "triangle", "cross", "star", "stripes", "checks", "dots", "rings"];

/// Image `index` of class `label`, `size` × `size` pixels: the same for the same arguments.
///
/// # Panics
/// If the label is not one of [`CLASSES`].
pub fn image(seed: u64, label: usize, index: u64, size: u32) -> RgbImage {
    assert!(label < CLASSES.len(), "label {label} of {} classes", CLASSES.len());
    let mut draws = Draws::new(seed, Purpose::Image, &[label as u64, index]);
    let draws = &mut draws;
    // Two colors that differ enough in brightness for the shape to be seen in gray.
    let (ground, figure) = loop {
        let colour = |draws: &mut Draws| [0; 3].map(|_: u8| draws.uniform(20.0, 235.0));
        let (a, b) = (colour(draws), colour(draws));
        let gray = |c: [f64; 3]| 0.3 * c[0] + 0.59 * c[1] + 0.11 * c[2];
        if (gray(a) - gray(b)).abs() > 50.0 {
            break (a, b);
        }
    };
    let (sin, cos) = sin_cos(draws.uniform(0.0, std::f64::consts::TAU));
    let (centre_x, centre_y) = (draws.uniform(-0.25, 0.25), draws.uniform(-0.25, 0.25));
    let scale = draws.uniform(0.5, 0.8);
    let period = draws.uniform(0.28, 0.5);
    // Light that falls from one side, so that no color is flat.
    let (light_x, light_y) = (draws.uniform(-25.0, 25.0), draws.uniform(-25.0, 25.0));
    let noise = draws.uniform(2.0, 14.0);
    let mut pixels = Vec::with_capacity((size * size * 3) as usize);
    for row in 0..size {
        for column in 0..size {
            // Four samples a pixel smooth the edges.
            let mut share = 0.0;
            for (dx, dy) in [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)] {
                let x = (f64::from(column) + dx) / f64::from(size) * 2.0 - 1.0 - centre_x;
                let y = (f64::from(row) + dy) / f64::from(size) * 2.0 - 1.0 - centre_y;
                let (x, y) = (x * cos - y * sin, x * sin + y * cos);
                share += if inside(label, x, y, scale, period) { 0.25 } else { 0.0 };
            }
            let x = f64::from(column) / f64::from(size) - 0.5;
            let y = f64::from(row) / f64::from(size) - 0.5;
            let light = light_x * x + light_y * y;
            for channel in 0..3 {
                let value =
                    ground[channel] + (figure[channel] - ground[channel]) * share + light + noise * draws.normal();
                pixels.push(value.round() as u8);
            }
        }
    }
    RgbImage { width: size, height: size, pixels }
}

/// Whether the point (x, y), turned and moved to the figure, belongs to the figure.
fn inside(label: usize, x: f64, y: f64, scale: f64, period: f64) -> bool {
    let radius = libm::sqrt(x * x + y * y);
    let wave = |v: f64| (v / period).rem_euclid(1.0) < 0.5;
    match CLASSES[label] {
        "disc" => radius < scale * 0.8,
        "ring" => (scale * 0.55..scale).contains(&radius),
        "square" => x.abs().max(y.abs()) < scale * 0.75,
        "triangle" => {
            // Inside all three edges: the largest of three distances is small.
            let edge = |turn: f64| {
                let (sin, cos) = sin_cos(turn);
                x * cos + y * sin
            };
            let third = std::f64::consts::TAU / 3.0;
            edge(0.0).max(edge(third)).max(edge(2.0 * third)) < scale * 0.5
        }
        "cross" => x.abs().min(y.abs()) < scale * 0.25 && x.abs().max(y.abs()) < scale,
        "star" => {
            let angle = libm::atan2(y, x);
            radius < scale * (0.65 + 0.35 * libm::cos(5.0 * angle))
        }
        "stripes" => wave(x),
        "checks" => wave(x) != wave(y),
        "dots" => {
            let to_dot = |v: f64| (v / period).rem_euclid(1.0) - 0.5;
            let (x, y) = (to_dot(x), to_dot(y));
            x * x + y * y < 0.3 * 0.3
        }
        "rings" => wave(radius),
        other => unreachable!("no image for class {other}"),
    }
}

fn sin_cos(angle: f64) -> (f64, f64) {
    (libm::sin(angle), libm::cos(angle))
}

/// An image as PNG.
pub fn png(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
    image::ImageEncoder::write_image(encoder, &image.pixels, image.width, image.height, image::ExtendedColorType::Rgb8)
        .expect("memory takes any image");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_colour_does_not_tell_the_class() {
        // The classes' mean brightness must differ by much less than the images of one class do.
        let mean = |label, index| {
            let image = image(1, label, index, 16);
            image.pixels.iter().map(|&p| f64::from(p)).sum::<f64>() / image.pixels.len() as f64
        };
        let classes: Vec<Vec<f64>> = (0..10).map(|label| (0..60).map(|i| mean(label, i)).collect()).collect();
        let average = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let means: Vec<f64> = classes.iter().map(|values| average(values)).collect();
        let spread = |values: &[f64]| {
            let centre = average(values);
            (average(&values.iter().map(|v| (v - centre) * (v - centre)).collect::<Vec<_>>())).sqrt()
        };
        let within = average(&classes.iter().map(|values| spread(values)).collect::<Vec<_>>());
        assert!(spread(&means) < within / 3.0, "classes spread {}, images {within}", spread(&means));
    }
}
