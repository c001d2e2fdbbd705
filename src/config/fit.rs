//! What a configuration leaves to the data: a batch, lanes and epochs of 0 fit themselves.

use super::Config;

/// Epochs that fit themselves are as many as give so many steps,
#[cfg(feature = "trainer")]
const FITTED_STEPS: f64 = 10_000.0;

/// between those of the paper's ablations (section 2.2) and those of its longest runs (appendices B.1 and B.9).
#[cfg(feature = "trainer")]
const FITTED_EPOCHS: (f64, f64) = (100.0, 1000.0);

/// The batch that fits itself to the data is no larger than this, the usual one for a GPU.
const LARGEST_FITTED_BATCH: u32 = 256;
/// Lanes that fit themselves to the batch are no more than this.
const MOST_FITTED_LANES: u32 = 64;

impl Config {
    /// Fills in what fits itself, for a data set of so many samples: nothing of it depends on the machine.
    pub fn fit(&mut self, samples: u64) {
        let samples = if self.data.limit > 0 { samples.min(self.data.limit) } else { samples };
        if self.batch.size == 0 {
            let quarter = u32::try_from(samples / 4).unwrap_or(u32::MAX).clamp(2, LARGEST_FITTED_BATCH);
            self.batch.size = 1 << quarter.ilog2();
        }
        if self.order.lanes == 0 {
            self.order.lanes = 1 << self.batch.size.trailing_zeros().min(MOST_FITTED_LANES.ilog2());
        }
        #[cfg(feature = "trainer")]
        if self.schedule.epochs == 0.0 {
            let epochs = FITTED_STEPS * f64::from(self.batch.size) / samples.max(1) as f64;
            self.schedule.epochs = epochs.ceil().clamp(FITTED_EPOCHS.0, FITTED_EPOCHS.1);
        }
    }
}

#[cfg(all(test, feature = "trainer"))]
mod tests {
    use super::*;

    #[test]
    fn epochs_fit_small_and_large_sets() {
        let fitted = |images: u64| {
            let mut config = Config::load(Some("own-images"), &[]).unwrap();
            config.fit(images);
            (config.batch.size, config.schedule.epochs)
        };
        assert_eq!(
            [100, 1_000, 20_000, 1_000_000].map(fitted),
            [(16, 1000.0), (128, 1000.0), (256, 128.0), (256, 100.0)]
        );
    }
}
