//! Golden values: `golden/augment.py` says how, and with which versions, `golden/augment.json` was made.

use serde_json::Value;

use simclr_ground::rng::{Draws, Purpose};

use super::*;
use crate::decode::RgbImage;

const WIDTH: usize = 24;
const HEIGHT: usize = 18;

fn image() -> Vec<u8> {
    let pixel =
        |x: usize, y: usize, c: usize| (x * 7 + y * 13 + c * 29 + ((x * y) % 17) * 5 + ((x ^ y) & 3) * 11) % 256;
    (0..HEIGHT).flat_map(|y| (0..WIDTH).flat_map(move |x| (0..3).map(move |c| pixel(x, y, c) as u8))).collect()
}

fn apply(mode: Mode, op: &str, params: &Value) -> Vec<u8> {
    let number = |key: &str| params[key].as_f64().unwrap_or_else(|| panic!("{op} has {key}"));
    let integer = |key: &str| number(key) as u32;
    if op == "resized_crop" {
        let image = RgbImage { width: WIDTH as u32, height: HEIGHT as u32, pixels: image() };
        let interpolation = serde_json::from_value(params["interpolation"].clone()).unwrap();
        let (left, top, width, height) = (integer("left"), integer("top"), integer("width"), integer("height"));
        let crop = CropStep { left, top, width, height, interpolation };
        let mut out = vec![0; 8 * 8 * 3];
        random_resized_crop::Cropper::default().crop(&image, &crop, mode, 8, &mut out);
        return out;
    }
    let mut pixels = image();
    if op == "horizontal_flip" {
        // The library flips squares; flip the rows of this image one by one.
        for row in pixels.chunks_exact_mut(WIDTH * 3) {
            horizontal_flip::flip(row, WIDTH);
        }
        return pixels;
    }
    let mut view = View::default();
    view.read(&pixels, WIDTH, HEIGHT);
    let mut change = |change| pixelwise::apply(mode, &[change], &mut view, &mut Default::default());
    match op {
        "adjust_brightness" => change(ColorOp::Brightness(number("factor") as f32)),
        "add_brightness" => change(ColorOp::AddBrightness(number("delta") as f32)),
        "adjust_contrast" => change(ColorOp::Contrast(number("factor") as f32)),
        "adjust_saturation" => change(ColorOp::Saturation(number("factor") as f32)),
        "adjust_hue" => change(ColorOp::Hue(number("delta") as f32)),
        "rgb_to_grayscale" => change(ColorOp::Gray),
        "gaussian_blur" => {
            let radius = integer("kernel_size") as usize / 2;
            BlurStep { sigma: number("sigma"), radius }.apply(mode, &mut view);
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
        let planes = std::array::from_fn(|_| vec![77; 1024]);
        let mut flat = View { width: 32, height: 32, planes, ..View::default() };
        BlurStep { sigma: 2.0, radius: 3 }.apply(mode, &mut flat);
        let inner = flat.planes[0][16 * 32 + 16];
        assert_eq!(inner, 77, "blur keeps a flat image flat");
        for change in [
            ColorOp::Brightness(1.0),
            ColorOp::Contrast(1.0),
            ColorOp::Saturation(1.0),
            ColorOp::Hue(0.0),
            ColorOp::Hue(1.0),
        ] {
            let mut view = View::default();
            view.read(&image(), WIDTH, HEIGHT);
            pixelwise::apply(mode, &[change], &mut view, &mut Default::default());
            let mut pixels = image();
            view.write(&mut pixels);
            let off = pixels.iter().zip(image()).map(|(a, b)| a.abs_diff(b)).max().unwrap();
            assert!(off <= 1, "{mode:?} {change:?} changes nothing, but moved a value by {off}");
        }
    }
}

#[test]
fn a_view_depends_on_its_key_alone() {
    let recipe = RecipeConfig::simclr(16);
    let image = RgbImage { width: WIDTH as u32, height: HEIGHT as u32, pixels: image() };
    let view = |epoch, sample, view: usize| {
        let steps = recipe.draw(1, epoch, sample, image.width, image.height);
        let mut out = vec![0; view_bytes(recipe.size)];
        Augmenter::new(recipe.mode).apply(Image::Rgb(&image), &steps[view], recipe.size as usize, &mut out);
        out
    };
    let base = view(0, 5, 0);
    assert_eq!(base, view(0, 5, 0));
    assert_ne!(base, view(1, 5, 0));
    assert_ne!(base, view(0, 6, 0));
    assert_ne!(base, view(0, 5, 1));
}

/// `golden/studies.py` says how, and with which versions, `golden/studies.json` was made.
#[test]
fn augmentations_for_studies_equal_the_reference_libraries() {
    let golden: Value = serde_json::from_str(include_str!("golden/studies.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 24);
    for case in cases {
        let (op, params) = (case["op"].as_str().unwrap(), &case["params"]);
        let number = |key: &str| params[key].as_f64().unwrap_or_else(|| panic!("{op} has {key}"));
        let mut pixels = image();
        if params["coarse"] == true {
            pixels.iter_mut().for_each(|value| *value = *value / 2 + 40);
        }
        let step = match op {
            "solarize" => Step::Colors(vec![ColorOp::Solarize(number("threshold") as f32)]),
            "posterize" => Step::Colors(vec![ColorOp::Posterize(number("bits") as u32)]),
            "invert" => Step::Colors(vec![ColorOp::Invert]),
            "equalize" => Step::filter(Levels::Equalize),
            "autocontrast" => Step::filter(Levels::AutoContrast),
            "sharpness" => Step::filter(Levels::Sharpness(number("factor") as f32)),
            "rotate_nearest" => Step::filter(Warp::RotateNearest(number("degrees"))),
            "rotate" => Step::filter(Warp::Rotate(number("degrees"))),
            "shear_nearest" => Step::filter(Warp::ShearNearest(number("shear"))),
            "sobel" => Step::filter(sobel::Edges),
            other => panic!("no augmentation is tested as {other}"),
        };
        let mut augmenter = Augmenter::new(Mode::Torchvision);
        augmenter.view.read(&pixels, WIDTH, HEIGHT);
        augmenter.change(&[step]);
        augmenter.view.write(&mut pixels);
        let wanted = case["pixels"].as_array().unwrap();
        assert_eq!(pixels.len(), wanted.len(), "{op}");
        let differing = |most: u64| {
            pixels.iter().zip(wanted).filter(|(a, b)| u64::from(**a).abs_diff(b.as_u64().unwrap()) > most).count()
        };
        let (off, far) = (differing(0), differing(1));
        println!("{op} {params}: {off} of {} differ, {far} by more than 1", wanted.len());
        assert_eq!(far, 0, "{op} {params}");
    }
}

/// Each op with all of its draws, in any order, at odd and tiny sizes: views stay in range and depend on the key alone.
#[test]
fn every_op_works_in_any_order_and_size() {
    let crop = Op::RandomResizedCrop(RandomResizedCrop {
        interpolation: Interpolation::Bilinear,
        ..RandomResizedCrop::default()
    });
    let others = [
        Op::HorizontalFlip(HorizontalFlip { probability: 0.5 }),
        Op::Cutout(Cutout { probability: 1.0, side: 0.5, value: 127 }),
        Op::Sobel(Sobel { probability: 0.3 }),
        Op::GaussianNoise(GaussianNoise { probability: 1.0, sigma: [0.0, 20.0] }),
        Op::Rotation(Rotation { probability: 1.0, degrees: vec![90.0, 180.0, 270.0, -33.3] }),
        Op::Solarize(Solarize { probability: 0.5, threshold: 128.0 }),
        Op::Equalize(Equalize { probability: 0.5 }),
        Op::MotionBlur(MotionBlur { probability: 1.0, length: [1.0, 12.0] }),
        Op::AutoAugment(AutoAugment { probability: 1.0 }),
        Op::Grayscale(Grayscale { probability: 0.3 }),
        Op::GaussianBlur(GaussianBlur { probability: 0.5, sigma: [0.1, 2.0], kernel: 0.1 }),
    ];
    let image = RgbImage { width: WIDTH as u32, height: HEIGHT as u32, pixels: image() };
    for (round, mode) in [Mode::Paper, Mode::Torchvision].into_iter().cycle().take(60).enumerate() {
        let mut ops = others.to_vec();
        Draws::new(round as u64, Purpose::PackOrder, &[]).shuffle(&mut ops);
        ops.insert(0, crop.clone());
        let size = [1, 2, 3, 17, 32, 45][round % 6];
        let branch = Branch { size: size + 1, views: 2, ops: ops.clone() };
        let recipe = RecipeConfig { mode, decode: DecodePath::Full, size, views: 1, ops, branches: vec![branch] };
        recipe.check().unwrap();
        assert_eq!(recipe.sizes().collect::<Vec<_>>(), [size, size + 1, size + 1]);
        let mut augmenter = Augmenter::new(mode);
        let all_steps = recipe.draw(round as u64, 0, 7, image.width, image.height);
        for (steps, size) in all_steps.iter().zip(recipe.sizes()) {
            let mut make = || {
                let mut out = vec![0; view_bytes(size)];
                augmenter.apply(Image::Rgb(&image), steps, size as usize, &mut out);
                out
            };
            assert_eq!(make(), make(), "{steps:?}");
        }
        assert_ne!(format!("{:?}", all_steps[1]), format!("{:?}", all_steps[2]));
    }
}
