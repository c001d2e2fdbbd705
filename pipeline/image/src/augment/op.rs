//! An augmentation, as the configuration has it and as it is drawn.

use std::fmt::{Debug, Display};
use std::sync::Arc;

use simclr_ground::rng::Draws;

use super::{ColorOp, CropStep, Mode, View};

/// What parameters are drawn for.
#[derive(Debug, Clone, Copy)]
pub struct ViewContext {
    /// Sampling rules and arithmetic.
    pub mode: Mode,
    /// The image's columns.
    pub width: u32,
    /// The image's rows.
    pub height: u32,
    /// Side of the view in pixels.
    pub size: u32,
}

/// An augmentation: values that are checked, and parameters that are drawn.
pub trait Augmentation {
    /// Checks every value; what was found and what would be right, if one is out of its range.
    ///
    /// # Errors
    /// The value found, with its name, and what would be right.
    fn check(&self) -> Result<(), (String, String)>;

    /// Draws the augmentation's steps, often none.
    fn draw(&self, context: &ViewContext, draws: &mut Draws, steps: &mut Vec<Step>);

    /// Whether it cuts a box out of the image and resizes it to the view.
    fn is_crop(&self) -> bool {
        false
    }
}

/// What is done to a view behind its crop, with drawn parameters.
pub trait Filter: Debug + Display + Send + Sync {
    /// Does it.
    fn apply(&self, mode: Mode, view: &mut View);
}

/// An augmentation with its drawn parameters.
#[derive(Debug, Clone)]
pub enum Step {
    /// Cut out this box and resize it to the view.
    Crop(CropStep),
    /// Mirror left and right.
    HorizontalFlip,
    /// ColorOp the colors so, in this order; those that follow each other are made together.
    Colors(Vec<ColorOp>),
    /// Anything else.
    Filter(Arc<dyn Filter>),
}

impl Step {
    /// The step that applies this filter.
    pub fn filter(filter: impl Filter + 'static) -> Self {
        Self::Filter(Arc::new(filter))
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Crop(crop) => write!(f, "crop {}×{} at {},{}", crop.width, crop.height, crop.left, crop.top),
            Step::HorizontalFlip => write!(f, "flip"),
            Step::Colors(changes) => {
                for (i, change) in changes.iter().enumerate() {
                    write!(f, "{}{change}", if i > 0 { " " } else { "" })?;
                }
                Ok(())
            }
            Step::Filter(filter) => Display::fmt(filter, f),
        }
    }
}

/// Makes [`Op`] of the table of augmentations: each one's file and type, its name in the configuration (`op = "cutout"`)
/// that of the type.
macro_rules! ops {
    ($($module:ident::$op:ident,)*) => {
        $(pub use $module::$op;)*

        /// An augmentation and its parameters, as the configuration has them.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "op", rename_all = "snake_case")]
        pub enum Op {
            $(#[doc = concat!("See [`", stringify!($op), "`].")] $op($op),)*
        }

        impl Augmentation for Op {
            fn check(&self) -> Result<(), (String, String)> {
                match self { $(Self::$op(op) => op.check(),)* }
            }

            fn draw(&self, context: &ViewContext, draws: &mut Draws, steps: &mut Vec<Step>) {
                match self { $(Self::$op(op) => op.draw(context, draws, steps),)* }
            }

            fn is_crop(&self) -> bool {
                match self { $(Self::$op(op) => op.is_crop(),)* }
            }
        }
    };
}
pub(super) use ops;

/// Checks that a probability is one.
pub(super) fn check_probability(p: f64) -> Result<(), (String, String)> {
    if (0.0..=1.0).contains(&p) {
        Ok(())
    } else {
        Err((format!("probability {p}"), "expected a number between 0 and 1".into()))
    }
}
