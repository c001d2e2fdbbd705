//! Worker threads: parts of batches whose samples' bytes are within reach come in, filled places of slabs go out.
//!
//! Who asks for a batch they do not know. A batch that several workers make is done
//! when the last of them has filled its part.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use async_channel::{Receiver, Sender};
use simclr_ground::activity::Activity;
use simclr_ground::batch::{Batch, Filled, Layout, NO_LABEL, Part, PixelOrder, Slab, split};
use simclr_ground::sample::SampleRef;
use simclr_image::damage::{Damage, DamageReason};
use simclr_image::decode::decode_bytes;
use simclr_image::views::{Key, ViewMaker};

use crate::decode_memory::{DECODE_MEMORY, DecodeMemory};
use crate::metrics::{self, PipelineMetrics};
use crate::quarantine::QuarantineEntry;
use crate::source::{LoadError, Source};
use crate::store::Located;

/// Images that a worker takes at a time.
const PART_IMAGES: usize = 16;

/// Starts threads that do what comes through `work`, until it is closed. `storage` is where reading runs, for the
/// sample that takes a damaged one's place.
pub fn start<S: Slab>(
    source: &Arc<Source>,
    threads: usize,
    work: &Receiver<Work<S>>,
    storage: &tokio::runtime::Handle,
) -> Vec<JoinHandle<()>> {
    let start = |i| {
        let worker = Worker { source: source.clone(), storage: storage.clone() };
        let work = work.clone();
        let thread = std::thread::Builder::new().name(format!("worker-{i}"));
        thread.spawn(move || worker.run(&work)).expect("the system gives us a thread")
    };
    (0..threads).map(start).collect()
}

/// Lays out batch `number`, which holds `samples`, in the slab, in the order that is asked for. The finished batch goes
/// to `done`, its slab in the end to `recycle`.
pub fn begin<S: Slab>(
    source: &Source,
    number: u64,
    samples: &[SampleRef],
    (slab, order): (S, PixelOrder),
    done: Sender<Result<Batch<S>, LoadError>>,
    recycle: Sender<S>,
) -> impl Iterator<Item = NextPart<S>> + use<S> {
    let plan = &source.plan;
    let layout = Layout { order, ..plan.layout(samples.len()) };
    let position = plan.position(number);
    let manifest = source.store.manifest();
    let label = |s: &SampleRef| manifest.shards[s.shard as usize].label(s.index as usize).map_or(NO_LABEL, i64::from);
    let filled = Filled {
        position,
        layout: layout.clone(),
        labels: samples.iter().map(label).collect(),
        sample_ids: samples.iter().map(|&sample| plan.sample_id(sample)).collect(),
        replaced: Vec::new(),
        waited_there: None,
    };
    let making = Arc::new(PendingBatch::new(filled, done, recycle, &source.metrics));
    let samples = samples.to_vec();
    split(slab, layout, PART_IMAGES).into_iter().map(move |part| {
        let samples = samples[part.images.clone()].to_vec();
        NextPart { part, samples, making: making.clone() }
    })
}

/// A part whose samples are to be read.
pub struct NextPart<S: Slab> {
    part: Part<S>,
    /// They, in their places.
    pub samples: Vec<SampleRef>,
    making: Arc<PendingBatch<S>>,
}

impl<S: Slab> NextPart<S> {
    /// What a worker does next, now that it is known where the samples' bytes are.
    pub fn with(self, located: Vec<Located>) -> Work<S> {
        Work { part: self.part, samples: self.samples, located, batch: self.making }
    }

    /// Gives the whole batch up.
    pub fn fail(self, error: LoadError) {
        self.making.fail(error);
    }
}

/// A part of a batch on its way to a worker.
pub struct Work<S: Slab> {
    part: Part<S>,
    samples: Vec<SampleRef>,
    located: Vec<Located>,
    batch: Arc<PendingBatch<S>>,
}

/// A batch that several are making.
pub struct PendingBatch<S: Slab> {
    epoch: u64,
    filled: Mutex<Option<Filled>>,
    done: Sender<Result<Batch<S>, LoadError>>,
    recycle: Sender<S>,
    metrics: PipelineMetrics,
}

impl<S: Slab> PendingBatch<S> {
    /// A batch that goes to `done` when it is finished, and its slab in the end to `recycle`.
    pub fn new(
        filled: Filled,
        done: Sender<Result<Batch<S>, LoadError>>,
        recycle: Sender<S>,
        metrics: &PipelineMetrics,
    ) -> Self {
        let metrics = metrics.clone();
        Self { epoch: filled.position.epoch, filled: Mutex::new(Some(filled)), done, recycle, metrics }
    }

    /// Changes what is known of the batch beside its pixels.
    pub fn note(&self, change: impl FnOnce(&mut Filled)) {
        let mut filled = self.filled.lock().expect("no panic while held");
        change(filled.as_mut().expect("not taken before the last part"));
    }

    /// Says that all pixels are in the slab: the last part was filled, so nobody else holds what is known of the batch.
    pub fn finish(&self, slab: S) {
        let filled = self.filled.lock().expect("no panic while held").take().expect("taken once");
        let _ = self.done.try_send(Ok(Batch::new(filled, slab, self.recycle.clone(), self.metrics.ready())));
    }

    /// Gives the batch up.
    pub fn fail(&self, error: LoadError) {
        let _ = self.done.try_send(Err(error));
    }
}

/// What a worker thread works with.
struct Worker {
    source: Arc<Source>,
    /// Where reading runs, for the sample that takes a damaged one's place.
    storage: tokio::runtime::Handle,
}

impl Worker {
    fn run<S: Slab>(&self, work: &Receiver<Work<S>>) {
        let config = &self.source.plan.config;
        let mut maker = ViewMaker::new(&config.recipe, config.data.decode_limits());
        let mut memory = Vec::new();
        let mut time = self.source.metrics.worker();
        loop {
            let Ok(next) = work.recv_blocking() else { return };
            let batch = next.batch.clone();
            let made = self.make_part(&mut maker, &mut memory, &mut time, next);
            time.turn_to(Activity::Idle);
            match made {
                Ok(None) => {}
                Ok(Some(slab)) => batch.finish(slab),
                Err(error) => batch.fail(error),
            }
        }
    }

    /// Fills the places of a part; the slab comes back with the last part of a batch.
    fn make_part<S: Slab>(
        &self,
        maker: &mut ViewMaker,
        memory: &mut Vec<u8>,
        time: &mut metrics::Worker,
        work: Work<S>,
    ) -> Result<Option<S>, LoadError> {
        let source = &self.source;
        let Work { mut part, samples, located, batch } = work;
        let images = part.images.clone();
        let num_images = images.len();
        for ((image, wanted), located) in images.zip(samples).zip(located) {
            time.turn_to(Activity::Read);
            let mut write = |maker: &mut ViewMaker| {
                for view in 0..maker.steps().len() {
                    maker.write(view, part.view_mut(image, view));
                }
            };
            let used = self.make_or_replace((maker, &mut write), memory, time, batch.epoch, wanted, located)?;
            if used != wanted {
                let label = source.store.manifest().shards[used.shard as usize].label(used.index as usize);
                batch.note(|filled| {
                    filled.labels[image] = label.map_or(NO_LABEL, i64::from);
                    filled.sample_ids[image] = source.plan.sample_id(used);
                    filled.replaced.push(image);
                    filled.replaced.sort_unstable();
                });
            }
        }
        source.metrics.add_samples(num_images as u64);
        Ok(part.finish())
    }

    /// Decodes the sample and writes its views, or if it is damaged those of the first sound one after it in the manifest;
    /// which one it was.
    fn make_or_replace(
        &self,
        (maker, write): (&mut ViewMaker, &mut dyn FnMut(&mut ViewMaker)),
        memory: &mut Vec<u8>,
        time: &mut metrics::Worker,
        epoch: u64,
        wanted: SampleRef,
        located: Located,
    ) -> Result<SampleRef, LoadError> {
        let source = &self.source;
        // A replacement is augmented as the sample it stands for, so that it differs from itself in its own place.
        let key = Key { seed: source.plan.config.seed, epoch, sample: source.plan.sample_id(wanted) };
        let (mut sample, mut located) = (wanted, Some(located));
        loop {
            if !source.quarantine.holds(source.plan.sample_id(sample)) {
                let located = match located.take() {
                    Some(located) => located,
                    None => self.storage.block_on(source.store.locate(&[sample]))?.pop().expect("one was asked for"),
                };
                let bytes = source.store.bytes(sample, &located, memory, &self.storage)?;
                let mut rows = source.store.rows(sample);
                let needed = decode_bytes(bytes);
                if DecodeMemory::is_large(needed) {
                    time.turn_to(Activity::Idle);
                }
                let room = DECODE_MEMORY.room(needed);
                let made = shielded(|| {
                    time.turn_to(Activity::Decode);
                    #[cfg(test)]
                    assert!(bytes != tests::FAULT, "a fault of the decoder's");
                    maker.decode(bytes, rows.as_mut(), key)?;
                    time.turn_to(Activity::Augment);
                    write(maker);
                    Ok(())
                });
                if made.is_err() || room.is_large() {
                    // Whatever it was about to do, its buffers are half done; or they are as large as the image.
                    let config = &source.plan.config;
                    *maker = ViewMaker::new(&config.recipe, config.data.decode_limits());
                }
                drop(room);
                if let Some(rows) = rows {
                    source.store.note_rows(sample, rows);
                }
                let damage = match made {
                    Ok(Ok(())) => {
                        source.quarantine.note_sound(source.plan.sample_id(sample));
                        return Ok(sample);
                    }
                    Ok(Err(damage)) | Err(damage) => damage,
                };
                let is_shortage = damage.reason == DamageReason::NoMemory;
                let entry = entry(source, sample, damage);
                if is_shortage {
                    return Err(LoadError::NoMemory { shard: entry.shard, entry: entry.entry, why: entry.detail });
                }
                source.quarantine.record(entry)?;
                time.turn_to(Activity::Read);
            }
            located = None;
            sample = source.plan.next_in_manifest(sample);
            if sample == wanted {
                return Err(LoadError::NothingSound(source.plan.num_samples()));
            }
        }
    }
}

/// Does what must not end a worker: an image that a decoder has no answer to is damaged, as far as a stream is concerned.
fn shielded<T>(work: impl FnOnce() -> T) -> Result<T, Damage> {
    let gave_up = |_| Damage::new(DamageReason::Corrupt, "the decoder gave up on it");
    catch_unwind(AssertUnwindSafe(work)).map_err(gave_up)
}

fn entry(source: &Source, sample: SampleRef, damage: Damage) -> QuarantineEntry {
    let shard = &source.store.manifest().shards[sample.shard as usize];
    QuarantineEntry {
        sample: source.plan.sample_id(sample),
        shard: shard.location.clone(),
        entry: shard.entries[sample.index as usize].clone(),
        offset: shard.offsets[sample.index as usize],
        reason: damage.reason.name().into(),
        detail: damage.detail,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    /// An image that our decoder is not up to.
    pub const FAULT: &[u8] = b"a fault of the decoder's";
}
