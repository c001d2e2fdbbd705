//! Which augmentations make the views of an image, as the configuration has them.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use simclr_ground::error::InvalidValue;
use simclr_ground::rng::{Draws, Purpose};

use super::{
    Augmentation, BrightnessRule, ColorJitter, GaussianBlur, Grayscale, HorizontalFlip, Mode, Op, RandomResizedCrop,
    Step, ViewContext,
};
use crate::decode::jpeg::Region;

/// How images become the pixels of a crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecodePath {
    /// Only where crops are, each color plane at its own resolution, colors converted on the view: fast, and within
    /// the noise of a JPEG of what `full` gives.
    Planar,
    /// All pixels, then the reference library's resize: equal to it.
    Full,
}

/// What is done to each image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeConfig {
    /// Sampling rules and arithmetic.
    pub mode: Mode,
    /// How images are decoded and resized.
    pub decode: DecodePath,
    /// Side of a view in pixels.
    pub size: u32,
    /// Views per image that are made by `ops`; SimCLR has two.
    pub views: u32,
    /// What is done, in this order; a crop comes first.
    pub ops: Vec<Op>,
    /// Further views of the same image, made in other view_specs; they come after those of `ops`, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<Branch>,
}

/// Views that are made in a way of their own: another side's recipe, or the small crops of multi-crop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Branch {
    /// Side of a view in pixels.
    pub size: u32,
    /// Views per image.
    pub views: u32,
    /// What is done, in this order; a crop comes first.
    pub ops: Vec<Op>,
}

impl RecipeConfig {
    /// The paper's ImageNet recipe at this side: two views, torchvision's arithmetic.
    pub fn simclr(size: u32) -> Self {
        let ops = vec![
            Op::RandomResizedCrop(RandomResizedCrop::default()),
            Op::HorizontalFlip(HorizontalFlip::default()),
            Op::ColorJitter(ColorJitter {
                probability: 0.8,
                strength: 1.0,
                brightness: 0.8,
                contrast: 0.8,
                saturation: 0.8,
                hue: 0.2,
                brightness_rule: BrightnessRule::Multiply,
            }),
            Op::Grayscale(Grayscale { probability: 0.2 }),
            Op::GaussianBlur(GaussianBlur { probability: 0.5, sigma: [0.1, 2.0], kernel: 0.1 }),
        ];
        Self { mode: Mode::Torchvision, decode: DecodePath::Planar, size, views: 2, ops, branches: vec![] }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// Names the key, what was found and what would be right.
    pub fn check(&self) -> Result<(), InvalidValue> {
        check_way("recipe", self.size, self.views, &self.ops)?;
        for (i, branch) in self.branches.iter().enumerate() {
            check_way(&format!("recipe.branches.{i}"), branch.size, branch.views, &branch.ops)?;
        }
        if self.count() > MOST_VIEWS as usize {
            let found = format!("{} views in total", self.count());
            let wanted = format!("expected at most {MOST_VIEWS}");
            return Err(InvalidValue { key: "recipe.branches".into(), found, wanted });
        }
        Ok(())
    }

    /// Side and ops of each view.
    fn view_specs(&self) -> impl Iterator<Item = (u32, &[Op])> {
        let own = std::iter::repeat_n((self.size, &self.ops[..]), self.views as usize);
        own.chain(
            self.branches
                .iter()
                .flat_map(|branch| std::iter::repeat_n((branch.size, &branch.ops[..]), branch.views as usize)),
        )
    }

    /// Side in pixels of each view of an image.
    pub fn sizes(&self) -> impl Iterator<Item = u32> {
        self.view_specs().map(|(size, _)| size)
    }

    /// Views per image, all branches together.
    pub fn count(&self) -> usize {
        self.view_specs().count()
    }

    /// The smallest region that the crops of all views lie in.
    ///
    /// # Panics
    /// If there is no view, or one without a crop.
    pub fn region(steps: &[Vec<Step>]) -> Region {
        let crop = |steps: &Vec<Step>| match steps.first() {
            Some(Step::Crop(crop)) => crop.region(),
            other => panic!("a view must start with a crop, not with {other:?}"),
        };
        steps.iter().map(crop).reduce(Region::union).expect("at least one view")
    }

    /// Draws the steps for each view of an image of `width` × `height` pixels.
    pub fn draw(&self, seed: u64, epoch: u64, sample: u64, width: u32, height: u32) -> Vec<Vec<Step>> {
        let view = |(view, (size, ops)): (usize, (u32, &[Op]))| {
            let mut draws = Draws::new(seed, Purpose::Augment, &[epoch, sample, view as u64]);
            let mut steps = Vec::with_capacity(ops.len());
            let context = ViewContext { mode: self.mode, width, height, size };
            ops.iter().for_each(|op| op.draw(&context, &mut draws, &mut steps));
            steps
        };
        self.view_specs().enumerate().map(view).collect()
    }
}

/// Bytes of a view of this side: `size × size × 3`.
pub fn view_bytes(size: u32) -> usize {
    size as usize * size as usize * 3
}

/// More views than anybody has wanted of an image.
const MOST_VIEWS: u32 = 64;

/// Checks how some of an image's views are made; `at` is the configuration's key.
fn check_way(at: &str, size: u32, views: u32, ops: &[Op]) -> Result<(), InvalidValue> {
    let wrong = |key: &str, found, wanted| Err(InvalidValue { key: Cow::Owned(format!("{at}.{key}")), found, wanted });
    if !(1..=4096).contains(&size) {
        return wrong("size", size.to_string(), "expected a side between 1 and 4096 pixels".into());
    }
    if !(1..=MOST_VIEWS).contains(&views) {
        return wrong("views", views.to_string(), format!("expected between 1 and {MOST_VIEWS} views"));
    }
    if !ops.first().is_some_and(Augmentation::is_crop) || ops.iter().skip(1).any(Augmentation::is_crop) {
        let wanted = "expected exactly one random_resized_crop or center_crop, as the first op".into();
        return wrong("ops", format!("{} ops", ops.len()), wanted);
    }
    ops.iter().try_for_each(|op| op.check().or_else(|(found, wanted)| wrong("ops", found, wanted)))
}
