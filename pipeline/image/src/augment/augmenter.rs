//! Applies drawn steps to images.

use super::{ColorOp, Mode, Step, View, horizontal_flip, pixelwise, random_resized_crop, resize};
use crate::decode::RgbImage;
use crate::decode::jpeg::Planes;

/// A decoded image, in the form that the recipe's `decode` wants.
#[derive(Debug, Clone, Copy)]
pub enum Image<'a> {
    /// All of its pixels.
    Rgb(&'a RgbImage),
    /// Its planes, at least where the crops are.
    Planes(&'a Planes),
}

/// Applies steps to images, keeping its buffers.
pub struct Augmenter {
    mode: Mode,
    cropper: random_resized_crop::Cropper,
    resizer: resize::Resizer,
    pub(super) view: View,
    /// Color changes that are made together.
    changes: Vec<ColorOp>,
    /// Values between their passes.
    kept: pixelwise::Scratch,
}

impl Augmenter {
    /// Buffers for views in this arithmetic.
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            cropper: Default::default(),
            resizer: Default::default(),
            view: View::default(),
            changes: Vec::new(),
            kept: Default::default(),
        }
    }

    /// Writes the view of side `size` that `steps` make of the image to `out` (`size × size × 3` u8, row-major RGB).
    ///
    /// # Panics
    /// If `out` has another length or the first step is no crop inside the image.
    pub fn apply(&mut self, image: Image<'_>, steps: &[Step], size: usize, out: &mut [u8]) {
        assert_eq!(out.len(), size * size * 3, "a view of side {size}");
        let [Step::Crop(crop), rest @ ..] = steps else { panic!("the first of {steps:?} is no crop") };
        // A mirror image next to the crop costs nothing there.
        let (mirror, rest) = match rest {
            [Step::HorizontalFlip, rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        match image {
            Image::Planes(planes) => {
                let antialias = self.mode == Mode::Torchvision;
                let (region, interpolation) = (crop.region(), crop.interpolation);
                let cut = resize::Cut { region, interpolation, antialias, size, mirror };
                (self.view.width, self.view.height) = (size, size);
                self.resizer.resize(planes, &cut, &mut self.view.planes);
            }
            Image::Rgb(image) => {
                self.cropper.crop(image, crop, self.mode, size, out);
                if mirror {
                    horizontal_flip::flip(out, size);
                }
                if rest.is_empty() {
                    return;
                }
                self.view.read(out, size, size);
            }
        }
        self.change(rest);
        self.view.write(out);
    }

    /// Makes the steps after the crop on the view; color changes that follow each other are made together.
    pub(super) fn change(&mut self, steps: &[Step]) {
        let Self { mode, view, changes, kept, .. } = self;
        for step in steps {
            if let Step::Colors(colors) = step {
                changes.extend_from_slice(colors);
                continue;
            }
            pixelwise::apply(*mode, changes, view, kept);
            changes.clear();
            match step {
                Step::Crop(_) => unreachable!("a crop comes first only"),
                Step::Colors(_) => unreachable!("handled above"),
                Step::HorizontalFlip => view.mirror(),
                Step::Filter(filter) => filter.apply(*mode, view),
            }
        }
        pixelwise::apply(*mode, changes, view, kept);
        changes.clear();
    }
}
