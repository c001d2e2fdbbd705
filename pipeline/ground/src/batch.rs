//! Batches, the slabs of memory that hold their pixels, and the parts that workers fill side by side.
//!
//! The `unsafe` code is for this: several workers write to disjoint places of one slab.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::position::Position;
use crate::stall::Waited;

/// Memory that the caller brings for a batch's pixels: plain, or pinned for a GPU.
pub trait Slab: Send + 'static {
    /// The slab's bytes; always the same ones.
    fn bytes(&self) -> &[u8];
    /// The slab's bytes, to be written.
    fn bytes_mut(&mut self) -> &mut [u8];
}

impl Slab for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// `bytes` zeros, for a slab; `None` if the system gives no such memory. What is never written takes none.
pub fn zeros(bytes: usize) -> Option<Vec<u8>> {
    if bytes == 0 {
        return Some(Vec::new());
    }
    let layout = std::alloc::Layout::array::<u8>(bytes).ok()?;
    // SAFETY: the layout is of at least one byte.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) };
    // SAFETY: the allocator of vectors gave this memory for a layout of `bytes` u8, and all of them are zeros.
    (!memory.is_null()).then(|| unsafe { Vec::from_raw_parts(memory, bytes, bytes) })
}

/// Counts a batch as ready for as long as it lives; whoever makes batches knows how.
pub type ReadyGuard = Box<dyn Send + Sync>;

/// The label of a sample that has none.
pub const NO_LABEL: i64 = -1;

/// A finished batch. Dropping it gives its slab back to the loader.
pub struct Batch<S: Slab> {
    /// Where in the stream it is.
    pub position: Position,
    /// Images in this batch, `N` (less than `B` only for the last batch of a sequential stream).
    pub num_images: usize,
    /// Class of each image, `[N]`; [`NO_LABEL`] without one.
    pub labels: Vec<i64>,
    /// Id of each image's sample, `[N]`: its place in the manifest.
    pub sample_ids: Vec<u64>,
    /// Places whose sample was damaged and is replaced by another.
    pub replaced: Vec<usize>,
    /// If another machine made it: how long that one waited for it, and for what.
    pub waited_there: Option<Waited>,
    /// How the views lie in the slab.
    pub layout: Layout,
    slab: Option<S>,
    recycle: async_channel::Sender<S>,
    /// Counts the batch as made and not yet taken; dropped when it is taken.
    ready: Option<ReadyGuard>,
}

/// How the views of a batch lie in its slab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Images, `N`.
    pub images: usize,
    /// Bytes of each of an image's views.
    pub view_bytes: Arc<[usize]>,
    /// What lies together.
    pub order: PixelOrder,
}

/// What lies together in a slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelOrder {
    /// A view of all images, `[N, size, size, 3]` u8, then the next view: as a trainer wants it.
    Views,
    /// Views of one size that follow each other, `[N, views, size, size, 3]` u8, then those of the next size: images that
    /// follow each other are one run of bytes, which can be sent as it is.
    Images,
}

impl Layout {
    /// Views per image.
    pub fn views(&self) -> usize {
        self.view_bytes.len()
    }

    /// Bytes of all views.
    pub fn bytes(&self) -> usize {
        self.images * self.view_bytes.iter().sum::<usize>()
    }

    /// Where one view of all images lies.
    fn of_view(&self, view: usize) -> Range<usize> {
        assert_eq!(self.order, PixelOrder::Views, "only then it is one run of bytes");
        let from = self.images * self.view_bytes[..view].iter().sum::<usize>();
        from..from + self.images * self.view_bytes[view]
    }

    /// Where one view of one image lies.
    fn view(&self, image: usize, view: usize) -> Range<usize> {
        assert!(image < self.images && view < self.views(), "view {view} of image {image} in {self:?}");
        let bytes = self.view_bytes[view];
        let from = match self.order {
            PixelOrder::Views => self.of_view(view).start + image * bytes,
            PixelOrder::Images => {
                let group = self.group(view);
                self.of_images(&group, image..image).start + (view - group.start) * bytes
            }
        };
        from..from + bytes
    }

    /// The views of one size that follow each other, this one among them.
    fn group(&self, view: usize) -> Range<usize> {
        let same = |&&bytes: &&usize| bytes == self.view_bytes[view];
        let before = self.view_bytes[..view].iter().rev().take_while(same).count();
        let after = self.view_bytes[view..].iter().take_while(same).count();
        view - before..view + after
    }

    /// Where the views of a group lie, of images that follow each other.
    ///
    /// # Panics
    /// If they do not lie together.
    pub fn of_images(&self, group: &Range<usize>, images: Range<usize>) -> Range<usize> {
        assert_eq!(self.order, PixelOrder::Images, "only then it is one run of bytes");
        let before = self.images * self.view_bytes[..group.start].iter().sum::<usize>();
        let each = self.view_bytes[group.clone()].iter().sum::<usize>();
        before + images.start * each..before + images.end * each
    }
}

impl<S: Slab> Batch<S> {
    /// A batch in `slab`, which goes to `recycle` when the batch is dropped.
    pub fn new(filled: Filled, slab: S, recycle: async_channel::Sender<S>, ready: ReadyGuard) -> Self {
        let Filled { position, layout, labels, sample_ids, replaced, waited_there } = filled;
        let num_images = layout.images;
        Self {
            position,
            num_images,
            labels,
            sample_ids,
            replaced,
            waited_there,
            layout,
            slab: Some(slab),
            recycle,
            ready: Some(ready),
        }
    }

    /// Says that the consumer has it.
    pub fn take(&mut self) {
        self.ready = None;
    }

    /// The slab; the first [`Layout::bytes`] of it are this batch's pixels.
    pub fn slab(&self) -> &S {
        self.slab.as_ref().expect("a batch has its slab until it is dropped")
    }

    /// All pixels, as the layout says: `[views, N, size, size, 3]` u8, where views have one size and lie together.
    pub fn pixels(&self) -> &[u8] {
        &self.slab().bytes()[..self.layout.bytes()]
    }

    /// The pixels of one view: `[size, size, 3]` u8.
    pub fn view(&self, image: usize, view: usize) -> &[u8] {
        &self.pixels()[self.layout.view(image, view)]
    }

    /// BLAKE3 of the batch: pixels, labels, sample ids.
    pub fn digest(&self) -> blake3::Hash {
        digest(std::slice::from_ref(self))
    }
}

/// BLAKE3 of the global batch whose shares these are, in the order of ranks: pixels, labels, sample ids.
pub fn digest<S: Slab>(shares: &[Batch<S>]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for view in 0..shares.first().map_or(0, |share| share.layout.views()) {
        for share in shares {
            hasher.update(&share.pixels()[share.layout.of_view(view)]);
        }
    }
    for label in shares.iter().flat_map(|share| &share.labels) {
        hasher.update(&label.to_le_bytes());
    }
    for id in shares.iter().flat_map(|share| &share.sample_ids) {
        hasher.update(&id.to_le_bytes());
    }
    hasher.finalize()
}

impl<S: Slab> Drop for Batch<S> {
    fn drop(&mut self) {
        if let Some(slab) = self.slab.take() {
            // The loader may be gone; its slabs then are too.
            let _ = self.recycle.try_send(slab);
        }
    }
}

/// What is known of a batch beside its pixels.
pub struct Filled {
    /// Where in the stream it is.
    pub position: Position,
    /// How its views lie in the slab.
    pub layout: Layout,
    /// Class of each image, `[N]`.
    pub labels: Vec<i64>,
    /// Id of each image's sample, `[N]`.
    pub sample_ids: Vec<u64>,
    /// Places whose sample was damaged and is replaced by another.
    pub replaced: Vec<usize>,
    /// If another machine made it: how long that one waited for it, and for what.
    pub waited_there: Option<Waited>,
}

/// A run of places of a slab that one worker fills.
pub struct Part<S: Slab> {
    shared: Arc<SharedSlab<S>>,
    /// The images that this part fills.
    pub images: Range<usize>,
}

struct SharedSlab<S: Slab> {
    slab: UnsafeCell<S>,
    base: UnsafeCell<*mut u8>,
    layout: Layout,
    parts: usize,
    finished: AtomicUsize,
}

// SAFETY: the slab is reached only through `Part`s, whose images are disjoint (`split`), and by value once the last
// of them is gone (`Arc::into_inner`). `S` itself may be sent.
unsafe impl<S: Slab> Sync for SharedSlab<S> {}
// SAFETY: `base` points into the slab, which is sent along with it.
unsafe impl<S: Slab> Send for SharedSlab<S> {}

/// Splits a slab into parts of at most `part_images` images each.
///
/// # Panics
/// If the slab is smaller than the layout.
pub fn split<S: Slab>(slab: S, layout: Layout, part_images: usize) -> Vec<Part<S>> {
    let part_images = part_images.max(1);
    let images = layout.images;
    let shared = Arc::new(SharedSlab {
        slab: UnsafeCell::new(slab),
        base: UnsafeCell::new(std::ptr::null_mut()),
        layout: layout.clone(),
        parts: images.div_ceil(part_images),
        finished: AtomicUsize::new(0),
    });
    {
        // SAFETY: nobody else has the Arc yet, so both cells are ours alone. The pointer is taken after the slab has
        // reached its final address, and stays good since `Slab` promises always the same bytes.
        let bytes = unsafe { &mut *shared.slab.get() }.bytes_mut();
        assert!(bytes.len() >= layout.bytes(), "a slab of {} bytes for {layout:?}", bytes.len());
        // SAFETY: as above.
        unsafe { *shared.base.get() = bytes.as_mut_ptr() };
    }
    (0..images)
        .step_by(part_images)
        .map(|from| Part { shared: shared.clone(), images: from..(from + part_images).min(images) })
        .collect()
}

impl<S: Slab> Part<S> {
    /// The place of one view of one of this part's images.
    ///
    /// # Panics
    /// If the image is not one of this part's.
    pub fn view_mut(&mut self, image: usize, view: usize) -> &mut [u8] {
        assert!(self.images.contains(&image), "image {image} of the part {:?}", self.images);
        let range = self.shared.layout.view(image, view);
        // SAFETY: `range` lies within the layout (checked by `view`) and that within the slab (checked by `split`).
        // Images of different parts do not overlap, this part's are reached through `&mut self` only, and `base` was
        // written before any part existed.
        unsafe { std::slice::from_raw_parts_mut((*self.shared.base.get()).add(range.start), range.len()) }
    }

    /// Says that the part is filled: the last of all parts to be gets the slab. If one was dropped unfilled, nobody
    /// does.
    pub fn finish(self) -> Option<S> {
        self.shared.finished.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::into_inner(self.shared)?;
        (shared.finished.into_inner() == shared.parts).then(|| shared.slab.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_memory_that_is_not_there_is_no_abort() {
        assert_eq!(zeros(0), Some(vec![]));
        assert_eq!(zeros(1000), Some(vec![0; 1000]));
        assert_eq!((zeros(usize::MAX), zeros(1 << 60)), (None, None));
    }

    #[test]
    fn parts_fill_their_places_and_the_last_gets_the_slab() {
        let layout = Layout { images: 5, view_bytes: [3, 2].into(), order: PixelOrder::Views };
        let parts = split(vec![0u8; 40], layout, 2);
        assert_eq!(parts.iter().map(|p| p.images.clone()).collect::<Vec<_>>(), [0..2, 2..4, 4..5]);
        let slabs: Vec<Option<Vec<u8>>> = std::thread::scope(|scope| {
            let fill = |mut part: Part<Vec<u8>>| {
                for image in part.images.clone() {
                    for view in 0..2 {
                        part.view_mut(image, view).fill((10 * view + image) as u8);
                    }
                }
                part.finish()
            };
            let threads: Vec<_> = parts.into_iter().map(|part| scope.spawn(move || fill(part))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut slabs = slabs.into_iter().flatten();
        let slab = slabs.next().expect("one of them was the last");
        assert!(slabs.next().is_none());
        let of_view = |v: u8, bytes| (0..5).flat_map(move |i| vec![10 * v + i; bytes]);
        assert_eq!(slab[..25], of_view(0, 3).chain(of_view(1, 2)).collect::<Vec<_>>());
    }

    #[test]
    fn a_slab_with_an_unfilled_part_is_given_to_nobody() {
        let mut parts =
            split(vec![0u8; 40], Layout { images: 5, view_bytes: [3, 3].into(), order: PixelOrder::Views }, 2);
        drop(parts.pop());
        assert!(parts.into_iter().all(|part| part.finish().is_none()));
    }

    #[test]
    fn both_orders_give_each_view_its_own_place_and_all_of_the_slab() {
        for order in [PixelOrder::Views, PixelOrder::Images] {
            let layout = Layout { images: 3, view_bytes: [4, 4, 2, 5].into(), order };
            let places = (0..3).flat_map(|image| (0..4).map(move |view| (image, view)));
            let mut ranges: Vec<Range<usize>> = places.map(|(image, view)| layout.view(image, view)).collect();
            ranges.sort_by_key(|range| range.start);
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start), "{order:?}: {ranges:?}");
            assert_eq!((ranges[0].start, ranges[11].end), (0, layout.bytes()));
        }
        let layout = Layout { images: 3, view_bytes: [4, 4, 2, 5].into(), order: PixelOrder::Images };
        assert_eq!((layout.of_images(&(0..2), 1..3), layout.of_images(&(2..3), 1..3)), (8..24, 26..30));
        assert_eq!((layout.view(1, 0), layout.view(1, 1), layout.view(2, 2)), (8..12, 12..16, 28..30));
    }
}
