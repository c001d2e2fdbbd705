//! Golden values: `golden/augment.py` says how, and with which versions, `golden/augment.json` was made.

use serde_json::Value;

use super::*;

const WIDTH: usize = 24;
const HEIGHT: usize = 18;

fn picture() -> Vec<u8> {
    let pixel =
        |x: usize, y: usize, c: usize| (x * 7 + y * 13 + c * 29 + ((x * y) % 17) * 5 + ((x ^ y) & 3) * 11) % 256;
    (0..HEIGHT).flat_map(|y| (0..WIDTH).flat_map(move |x| (0..3).map(move |c| pixel(x, y, c) as u8))).collect()
}

fn apply(mode: Mode, op: &str, params: &Value) -> Vec<u8> {
    let number = |key: &str| params[key].as_f64().unwrap_or_else(|| panic!("{op} has {key}"));
    let integer = |key: &str| number(key) as u32;
    if op == "resized_crop" {
        let image = RgbImage { width: WIDTH as u32, height: HEIGHT as u32, pixels: picture() };
        let interpolation = serde_json::from_value(params["interpolation"].clone()).unwrap();
        let (left, top, width, height) = (integer("left"), integer("top"), integer("width"), integer("height"));
        let crop = CropStep { left, top, width, height, interpolation };
        let mut out = vec![0; 8 * 8 * 3];
        random_resized_crop::Cropper::default().crop(&image, &crop, mode, 8, &mut out);
        return out;
    }
    let mut pixels = picture();
    if op == "horizontal_flip" {
        // The library flips squares; flip the rows of this picture one by one.
        for row in pixels.chunks_exact_mut(WIDTH * 3) {
            horizontal_flip::flip(row, WIDTH);
        }
        return pixels;
    }
    let mut view = View::default();
    view.read(&pixels, WIDTH, HEIGHT);
    let mut change = |change| pixelwise::apply(mode, &[change], &mut view);
    match op {
        "adjust_brightness" => change(Change::Brightness(number("factor") as f32)),
        "add_brightness" => change(Change::AddBrightness(number("delta") as f32)),
        "adjust_contrast" => change(Change::Contrast(number("factor") as f32)),
        "adjust_saturation" => change(Change::Saturation(number("factor") as f32)),
        "adjust_hue" => change(Change::Hue(number("delta") as f32)),
        "rgb_to_grayscale" => change(Change::Gray),
        "gaussian_blur" => {
            let radius = integer("kernel_size") as usize / 2;
            BlurStep { sigma: number("sigma"), radius }.apply(mode, &mut view, &mut Default::default());
        }
        other => panic!("no augmentation is tested as {other}"),
    }
    view.write(&mut pixels);
    pixels
}

/// Every op equals torchvision's and TensorFlow's to one of 255: where a value lies on a tie, their own results
/// differ by that much from one processor to the next.
#[test]
fn augmentations_equal_the_reference_libraries() {
    let golden: Value = serde_json::from_str(include_str!("golden/augment.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 39);
    let mut worst = Vec::new();
    for case in cases {
        let op = case["op"].as_str().unwrap();
        let mode = serde_json::from_value(case["mode"].clone()).unwrap();
        let found = apply(mode, op, &case["params"]);
        let wanted: Vec<u8> = case["pixels"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u8).collect();
        assert_eq!(found.len(), wanted.len(), "{op}");
        let off = found.iter().zip(&wanted).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        let differing = found.iter().zip(&wanted).filter(|(a, b)| a != b).count();
        println!("{mode:?} {op} {}: largest difference {off}, {differing} of {}", case["params"], wanted.len());
        worst.push((off, op.to_owned(), case["params"].to_string()));
    }
    let (off, op, params) = worst.into_iter().max().unwrap();
    assert!(off <= 1, "{op} {params}: off by {off}");
}

#[test]
fn blur_and_jitter_keep_what_they_should() {
    for mode in [Mode::Paper, Mode::Torchvision] {
        let mut flat = View { width: 32, height: 32, planes: std::array::from_fn(|_| vec![77.0; 1024]) };
        BlurStep { sigma: 2.0, radius: 3 }.apply(mode, &mut flat, &mut Default::default());
        let inner = flat.planes[0][16 * 32 + 16];
        assert!((inner - 77.0).abs() < 1e-3, "blur keeps a flat image flat: {inner}");
        for change in [
            Change::Brightness(1.0),
            Change::Contrast(1.0),
            Change::Saturation(1.0),
            Change::Hue(0.0),
            Change::Hue(1.0),
        ] {
            let mut view = View::default();
            view.read(&picture(), WIDTH, HEIGHT);
            pixelwise::apply(mode, &[change], &mut view);
            let mut pixels = picture();
            view.write(&mut pixels);
            let off = pixels.iter().zip(picture()).map(|(a, b)| a.abs_diff(b)).max().unwrap();
            assert!(off <= 1, "{mode:?} {change:?} changes nothing, but moved a value by {off}");
        }
    }
}

#[test]
fn a_view_depends_on_its_key_alone() {
    let recipe = crate::test_pictures::recipe(16);
    let image = RgbImage { width: WIDTH as u32, height: HEIGHT as u32, pixels: picture() };
    let view = |epoch, sample, view| {
        let steps = recipe.draw(1, epoch, sample, view, image.width, image.height);
        let mut out = vec![0; recipe.view_bytes()];
        Augmenter::new(&recipe).apply(Picture::Rgb(&image), &steps, &mut out);
        out
    };
    let base = view(0, 5, 0);
    assert_eq!(base, view(0, 5, 0));
    assert_ne!(base, view(1, 5, 0));
    assert_ne!(base, view(0, 6, 0));
    assert_ne!(base, view(0, 5, 1));
}
