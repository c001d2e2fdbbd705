//! The gradient of a contrastive loss over a batch larger than the device's memory (Gao et al. 2021).
//!
//! Each view's loss needs all other views, so the parts of a batch cannot be learned from one after the other. Instead
//! all projections are made first, part by part and without a graph; the loss's gradient for them is worked out over
//! the whole batch; then each part is projected once more, with a graph, and that gradient sent back through it. The
//! weights' gradient is that of the whole batch, at the cost of one more forward pass.
//!
//! Batch norm sees one part at a time, in both passes the same one: its statistics are those of a part's views, not of
//! the batch's (with several ranks, those of one part of each). That is what several devices without synchronized batch
//! norm do too, and it is the one difference from a batch in one piece.

use std::ops::Range;

use tch::Tensor;

use crate::distributed::World;
use crate::error::TrainError;
use crate::gradients::Backward;
use crate::loss::{LossConfig, LossOutput};
use crate::model::SimClr;
use crate::model::resnet::BatchNormMode;

/// The loss over all ranks' pairs of views, of which this one has `images`; `backward` gets its gradient, worked out `part`
/// pairs at a time.
///
/// `views` gives the views of some of this rank's images, `[2n, 3, H, W]`, the first views first.
///
/// # Errors
/// If views can't be given, libtorch fails, or a rank is gone.
pub fn backward(
    model: &SimClr,
    (images, part): (i64, i64),
    (loss, world): (&LossConfig, &World),
    mut views: impl FnMut(Range<i64>) -> Result<Tensor, TrainError>,
    backward: &mut Backward<'_>,
) -> Result<LossOutput, TrainError> {
    let parts = || (0..images).step_by(part as usize).map(|from| from..(from + part).min(images));
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for range in parts() {
        let n = range.end - range.start;
        let z = tch::no_grad(|| Ok::<_, TrainError>(model.project(&views(range)?, BatchNormMode::Batch)))?;
        first.push(z.narrow(0, 0, n));
        second.push(z.narrow(0, n, n));
    }
    first.append(&mut second);
    let z = Tensor::cat(&first, 0).set_requires_grad(true);
    let contrast = loss.contrast(&z, world)?;
    let own = Tensor::f_run_backward(&[&contrast.loss], &[&z], false, false)?.swap_remove(0);
    for range in parts() {
        let (from, n) = (range.start, range.end - range.start);
        let own = Tensor::cat(&[own.narrow(0, from, n), own.narrow(0, images + from, n)], 0);
        let z = model.project(&views(range)?, BatchNormMode::Update);
        // The mean over ranks that follows makes the sum over them of this.
        let scale = loss.shared.scale * f64::from(world.size());
        backward.add(&((z * &own).sum(own.kind()) * scale), from + n == images)?;
    }
    Ok(contrast)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Precision;
    use crate::gradients::Gradients;
    use crate::loss::{LossKind, LossShared, NtXent};
    use crate::model::ModelConfig;
    use crate::model::projection_head::HeadConfig;
    use crate::model::resnet::{Encoder, Initialization, Shortcuts, Stem};
    use tch::{Device, Kind};

    fn model() -> SimClr {
        let config = ModelConfig {
            encoder: Encoder::Resnet18,
            width: 0.125,
            stem: Stem::Cifar,
            shortcuts: Shortcuts::default(),
            initialization: Initialization::He,
            head: HeadConfig { layers: 2, hidden: 0, dim: 16 },
        };
        SimClr::new(&config, 1, Device::Cpu, Precision::Fp32).unwrap()
    }

    fn off(a: &Tensor, b: &Tensor) -> f64 {
        f64::try_from((a - b).norm() / b.norm()).unwrap()
    }

    /// The same parts through one graph: what the cache must not change.
    #[test]
    fn gradients_are_those_of_one_graph() {
        tch::manual_seed(3);
        let loss = LossConfig { kind: LossKind::NtXent(NtXent { temperature: 0.2 }), shared: LossShared::default() };
        let images = 12;
        let x = Tensor::rand([2 * images, 3, 16, 16], (Kind::Float, Device::Cpu));
        let views = |range: Range<i64>| {
            let (from, n) = (range.start, range.end - range.start);
            Ok(Tensor::cat(&[x.narrow(0, from, n), x.narrow(0, images + from, n)], 0))
        };
        for part in [12, 5, 4, 2] {
            let (cached, whole) = (model(), model());
            let alone = World::alone();
            let mut passes = Backward::new(&cached.parameters, &alone, None);
            let contrast = backward(&cached, (images, part), (&loss, &alone), views, &mut passes).unwrap();
            let gradients = passes.gradients();
            let (mut first, mut second) = (Vec::new(), Vec::new());
            for from in (0..images).step_by(part as usize) {
                let n = part.min(images - from);
                let z = whole.project(&views(from..from + n).unwrap(), BatchNormMode::Update);
                first.push(z.narrow(0, 0, n));
                second.push(z.narrow(0, n, n));
            }
            first.append(&mut second);
            let all = Tensor::cat(&first, 0);
            let wanted = loss.contrast(&all, &alone).unwrap();
            let wanted_gradients = Gradients::of(&wanted.loss, &whole.parameters).unwrap();
            let far = off(&contrast.projections, &wanted.projections);
            assert!(far < 1e-6, "{part} at a time: projections off by {far}");
            assert!(off(&contrast.loss, &wanted.loss) < 1e-6, "{part} at a time: loss");
            let far = off(&gradients.flat(), &wanted_gradients.flat());
            assert!(far < 1e-5, "{part} at a time: gradients off by {far}");
            for (a, b) in cached.parameters.entries().iter().zip(whole.parameters.entries()) {
                let far = f64::try_from((&a.tensor - &b.tensor).abs().max()).unwrap();
                assert!(far < 1e-6, "{part} at a time: {} off by {far}", a.name);
            }
        }
    }
}
