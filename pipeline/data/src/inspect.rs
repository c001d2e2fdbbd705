//! Looks into a batch by its number: which samples it holds, what they look like, and how each view was made. Any moment
//! of any run can be seen so, since a batch is a value.

use simclr_ground::position::Share;
use simclr_ground::sample::SampleRef;
use simclr_image::augment::{Step, view_bytes};
use simclr_image::damage::Damage;
use simclr_image::decode::{RgbImage, decode, decode_bytes, decode_upright};
use simclr_image::views::{Key, ViewMaker};
use simclr_plan::Batches;

use crate::decode_memory::DECODE_MEMORY;
use crate::source::Source;
use crate::store::StoreError;

/// A sample at its place in a batch.
pub struct Inspected {
    /// The image's entry in its shard.
    pub entry: String,
    /// The shard's file name.
    pub shard: String,
    /// The class, by name if it has one.
    pub class: Option<String>,
    /// Bytes of the image as it is stored.
    pub bytes: usize,
    /// The image and its views, or why there are none: training puts another sample in its place.
    pub seen: Result<Seen, Damage>,
}

/// An image and what the encoder sees of it.
pub struct Seen {
    /// The whole image.
    pub original: RgbImage,
    /// Each view, with the steps that made it.
    pub views: Vec<(RgbImage, Vec<Step>)>,
}

/// Looks at places of batches, one after the other.
pub struct Inspector<'a> {
    source: &'a Source,
    maker: ViewMaker,
    storage: tokio::runtime::Handle,
    epoch: u64,
    samples: Vec<SampleRef>,
}

impl<'a> Inspector<'a> {
    /// Looks at global batch `batch`; reads on `storage`.
    pub fn new(source: &'a Source, batch: u64, storage: tokio::runtime::Handle) -> Self {
        let plan = &source.plan;
        let samples = Batches::new(plan, Share::ALL).samples(batch);
        Self {
            source,
            maker: ViewMaker::new(&plan.config.recipe, plan.config.data.decode_limits()),
            storage,
            epoch: plan.position(batch).epoch,
            samples,
        }
    }

    /// How many images the batch has.
    pub fn num_images(&self) -> usize {
        self.samples.len()
    }

    /// What is at place `image`. Blocks while its bytes are read.
    ///
    /// # Errors
    /// If they can't be read.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn look(&mut self, image: usize) -> Result<Inspected, StoreError> {
        let (source, sample) = (self.source, self.samples[image]);
        let (plan, manifest) = (&source.plan, source.store.manifest());
        let (shard, index) = (&manifest.shards[sample.shard as usize], sample.index as usize);
        let name =
            |label: u32| manifest.classes.get(label as usize).cloned().unwrap_or_else(|| format!("class {label}"));
        let bytes = source.store.read(&[sample], &self.storage)?.pop().expect("one sample was read");
        let sizes: Vec<u32> = plan.config.recipe.sizes().collect();
        let _room = DECODE_MEMORY.room(decode_bytes(&bytes).saturating_mul(2));
        let whole = if plan.config.data.exif_orientation { decode_upright } else { decode };
        let seen = whole(&bytes, plan.config.data.max_pixels).and_then(|original| {
            let key = Key { seed: plan.config.seed, epoch: self.epoch, sample: plan.sample_id(sample) };
            self.maker.decode(&bytes, None, key)?;
            let view = |(view, size): (usize, u32)| {
                let mut pixels = vec![0; view_bytes(size)];
                self.maker.write(view, &mut pixels);
                (RgbImage { width: size, height: size, pixels }, self.maker.steps()[view].clone())
            };
            Ok(Seen { original, views: sizes.into_iter().enumerate().map(view).collect() })
        });
        Ok(Inspected {
            entry: shard.entries[index].clone(),
            shard: shard.location.rsplit('/').next().unwrap_or(&shard.location).to_owned(),
            class: shard.label(index).map(name),
            bytes: bytes.len(),
            seen,
        })
    }
}
