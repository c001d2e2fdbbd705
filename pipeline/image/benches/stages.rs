//! Each stage of a sample's journey: `cargo bench -p simclr-image --bench stages`.
//!
//! The image is drawn: 500 × 375 pixels, as large in bytes as a photograph of that size. With `BENCH_JPEG=FILE` it is
//! a file of yours.

use divan::Bencher;
use simclr_image::augment::{Augmenter, BlurStep, ColorOp, CropStep, Image, Interpolation, Mode, Step};
use simclr_image::decode::jpeg::{Decoder, Jpeg, Planes, Region};

fn main() {
    divan::main();
}

fn jpeg() -> Vec<u8> {
    if let Some(path) = std::env::var_os("BENCH_JPEG") {
        return std::fs::read(path).unwrap();
    }
    let (width, height) = (500, 375);
    let mut noise = 1u32;
    let pixels: Vec<u8> = (0..width * height * 3)
        .map(|i| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (x, y) = ((i / 3 % width) as f32, (i / 3 / width) as f32);
            let shape = 128.0 + 70.0 * (x / 23.0 + (i % 3) as f32).sin() * (y / 31.0).cos();
            (shape + ((noise >> 24) as f32 - 128.0) * 0.25) as u8
        })
        .collect();
    let mut bytes = Vec::new();
    let encoder = jpeg_encoder::Encoder::new(&mut bytes, 93);
    encoder.encode(&pixels, width as u16, height as u16, jpeg_encoder::ColorType::Rgb).unwrap();
    bytes
}

fn planes() -> Planes {
    let bytes = jpeg();
    let jpeg = Jpeg::parse(&bytes).unwrap();
    let (width, height) = jpeg.size();
    Decoder::default().decode(&jpeg, Region { left: 0, top: 0, width, height }).unwrap().clone()
}

/// The entropy-coded data alone: a region of one pixel.
#[divan::bench]
fn entropy_decoding(bencher: Bencher) {
    let bytes = jpeg();
    let mut decoder = Decoder::default();
    let region = Region { left: 0, top: 0, width: 1, height: 1 };
    bencher.bench_local(|| decoder.decode(&Jpeg::parse(&bytes).unwrap(), region).unwrap().width);
}

/// All planes.
#[divan::bench]
fn decode_to_planes(bencher: Bencher) {
    let bytes = jpeg();
    let mut decoder = Decoder::default();
    let jpeg = Jpeg::parse(&bytes).unwrap();
    let (width, height) = jpeg.size();
    let region = Region { left: 0, top: 0, width, height };
    bencher.bench_local(|| decoder.decode(&jpeg, region).unwrap().width);
}

/// Planes to RGB at full size.
#[divan::bench]
fn planes_to_rgb(bencher: Bencher) {
    let planes = planes();
    bencher.bench_local(|| planes.to_rgb().width);
}

/// A view's crop alone, and with one thing done to it: the difference is what that costs.
#[divan::bench(args = ["crop", "crop bilinear", "brightness", "contrast", "saturation", "hue", "all four", "gray", "blur 0.5", "blur 2"])]
fn view(bencher: Bencher, what: &str) {
    let planes = planes();
    let mode = if std::env::var_os("BENCH_TORCHVISION").is_some() { Mode::Torchvision } else { Mode::Paper };
    let interpolation = if what == "crop bilinear" { Interpolation::Bilinear } else { Interpolation::Bicubic };
    let crop = CropStep { left: 90, top: 40, width: 320, height: 280, interpolation };
    let jitter = |changes: &[ColorOp]| Step::Colors(changes.to_vec());
    let all = [ColorOp::Brightness(1.3), ColorOp::Contrast(0.6), ColorOp::Saturation(1.4), ColorOp::Hue(0.1)];
    let mut steps = vec![Step::Crop(crop)];
    steps.extend(match what {
        "brightness" => Some(jitter(&all[..1])),
        "contrast" => Some(jitter(&all[1..2])),
        "saturation" => Some(jitter(&all[2..3])),
        "hue" => Some(jitter(&all[3..])),
        "all four" => Some(jitter(&all)),
        "gray" => Some(Step::Colors(vec![ColorOp::Gray])),
        "blur 0.5" => Some(Step::filter(BlurStep { sigma: 0.5, radius: 11 })),
        "blur 2" => Some(Step::filter(BlurStep { sigma: 2.0, radius: 11 })),
        _ => None,
    });
    let mut augmenter = Augmenter::new(mode);
    let mut out = vec![0; 224 * 224 * 3];
    bencher.bench_local(|| augmenter.apply(Image::Planes(&planes), &steps, 224, &mut out));
}
