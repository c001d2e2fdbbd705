//! NT-Xent: each view must find the other view of its image among all views of the batch.

use serde::{Deserialize, Serialize};
use simclr_ground::error::InvalidValue;
use tch::{Kind, Tensor};

use super::{Loss, LossOutput, RetrievalStats, Views, check_temperature};
use crate::distributed::World;
use crate::error::TrainError;

/// Bytes of similarities that are looked at together: all 2B × 2B of them would not fit for large batches.
const CHUNK_BYTES: usize = 64 << 20;

/// NT-Xent (SimCLR, Chen et al. 2020, equation 1): the mean over all 2B views of the cross entropy of finding the
/// partner. The official code's loss is the sum of both views' means, twice this.
///
/// Each rank looks for the partners of its own views among those of all ranks. What is left to tell the others are one
/// number for each view and the sums over them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NtXent {
    /// τ: similarities are divided by it; 0.1 for ImageNet, 0.5 for CIFAR-10 in the paper.
    pub temperature: f64,
}

impl Default for NtXent {
    fn default() -> Self {
        Self { temperature: 0.1 }
    }
}

impl Loss for NtXent {
    fn check(&self) -> Result<(), InvalidValue> {
        check_temperature(self.temperature)
    }

    fn contrast(&self, views: &Views, world: &World) -> Result<LossOutput, TrainError> {
        in_chunks(views, self.temperature, world, CHUNK_BYTES)
    }
}

/// Loss and gradient are worked out some rows of similarities at a time, `[rows, 2B]` being all the memory that it takes,
/// and the gradient is handed to autograd as it is. With `s[i, j]` the similarity of two views over τ and `p[i, j]` its
/// softmax over `j`, the gradient for view `i` is the sum over `j` of `(p[i, j] + p[j, i]) u[j]`, less twice its partner's
/// `u`: knowing every row's normalizer, a row's own similarities are enough for both.
fn in_chunks(views: &Views, temperature: f64, world: &World, chunk_bytes: usize) -> Result<LossOutput, TrainError> {
    let Views { all, images, own, .. } = views;
    let (rows, kind, device) = (2 * images, all.kind(), all.device());
    let chunk = (chunk_bytes / (rows as usize * kind.elt_size_in_bytes())).max(1) as i64;
    // Where each chunk of this rank's rows begins among all, and how many there are in it.
    let chunks: Vec<(i64, i64)> = (own.iter())
        .flat_map(|own| own.clone().step_by(chunk as usize).map(move |from| (from, chunk.min(own.end - from))))
        .collect();
    // No view is searched for among itself.
    let logits = |from: i64, n: i64| {
        let logits = all.narrow(0, from, n).matmul(&all.tr()) / temperature;
        let _ = logits.diagonal(from, 0, 1).fill_(f64::NEG_INFINITY);
        logits
    };
    let partner_of = |from: i64, n: i64| (Tensor::arange(n, (Kind::Int64, device)) + (from + images)).fmod(rows);
    tch::no_grad(|| {
        let mut loss = Tensor::zeros([], (Kind::Double, device));
        let mut search = RetrievalStats::new(device);
        let mut log_sums = Vec::new();
        for &(from, n) in &chunks {
            let logits = logits(from, n);
            if from < *images {
                search.add(&logits.narrow(1, *images, *images), from);
            }
            let log_sum = logits.logsumexp([1i64].as_slice(), false);
            let partner = logits.gather(1, &partner_of(from, n).unsqueeze(1), false).squeeze_dim(1);
            loss += (&log_sum - partner).sum(Kind::Double);
            log_sums.push(log_sum);
        }
        let own_sums = Tensor::cat(&log_sums, 0);
        let all_sums = views.together(&own_sums, world)?;
        let mut gradient = Vec::new();
        for (&(from, n), log_sum) in chunks.iter().zip(&log_sums) {
            let logits = logits(from, n);
            let mut pull = (&logits - log_sum.unsqueeze(1)).exp_();
            pull += (logits - &all_sums).exp_();
            let partner = partner_of(from, n).unsqueeze(1);
            let _ = pull.scatter_add_(1, &partner, &(partner.ones_like().to_kind(kind) * -2.0));
            gradient.push(pull.matmul(all));
        }
        let gradient = Tensor::cat(&gradient, 0) / (rows as f64 * temperature);
        // One message for all of them.
        let sums = Tensor::stack(&[loss / rows as f64, search.hits, search.entropy], 0);
        world.all_reduce(&sums)?;
        let search = RetrievalStats { hits: sums.get(1), entropy: sums.get(2) };
        Ok((sums.get(0).to_kind(kind), gradient, search))
    })
    .map(|(loss, gradient, search)| search.contrast(views.carry(loss, &gradient), views))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::{LossConfig, LossKind, LossShared};
    use tch::Device;

    fn config(temperature: f64) -> LossConfig {
        LossConfig { kind: LossKind::NtXent(NtXent { temperature }), shared: LossShared::default() }
    }

    fn value(tensor: &Tensor) -> f64 {
        f64::try_from(tensor).unwrap()
    }

    /// Golden values: `golden/trainer.py` says how, and with which versions, they were made.
    #[test]
    fn loss_and_gradients_equal_pytorchs() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../golden/trainer.json")).unwrap();
        for case in golden["nt_xent"].as_array().unwrap() {
            let z = |second: f64| {
                let mut values = Vec::new();
                for i in 0..5 {
                    for j in 0..8 {
                        let (i, j) = (f64::from(i), f64::from(j));
                        values.push((0.7 * i + 1.3 * j + 0.1 + second * 0.35 * (2.1 * i + 0.9 * j).cos()).sin());
                    }
                }
                Tensor::from_slice(&values).view([5, 8])
            };
            let z = Tensor::cat(&[z(0.0), z(1.0)], 0).set_requires_grad(true);
            let contrast = config(case["temperature"].as_f64().unwrap()).contrast(&z, &World::alone()).unwrap();
            contrast.loss.backward();
            let close = |found: f64, wanted: &serde_json::Value| {
                let wanted = wanted.as_f64().unwrap();
                assert!((found - wanted).abs() < 2e-7, "{found}, {wanted} wanted");
            };
            close(value(&contrast.loss), &case["loss"]);
            close(value(&contrast.accuracy), &case["accuracy"]);
            close(value(&contrast.entropy), &case["entropy"]);
            let gradient = Vec::<f64>::try_from(z.grad().flatten(0, -1)).unwrap();
            let rows = ["grad_z1", "grad_z2"].iter().flat_map(|key| case[*key].as_array().unwrap());
            for (found, wanted) in gradient.iter().zip(rows.flat_map(|row| row.as_array().unwrap())) {
                close(*found, wanted);
            }
        }
    }

    /// Orthogonal pairs that agree: each view sees its partner at 1/τ and 2B − 2 others at 0.
    #[test]
    fn a_perfect_embedding_has_the_loss_computed_by_hand() {
        let z = Tensor::eye(4, (Kind::Float, Device::Cpu));
        let contrast = config(0.5).contrast(&Tensor::cat(&[&z, &z], 0), &World::alone()).unwrap();
        let wanted = ((2f64).exp() + 6.0).ln() - 2.0;
        assert!((value(&contrast.loss) - wanted).abs() < 1e-6);
        assert_eq!(value(&contrast.accuracy), 1.0);
    }

    #[test]
    fn views_that_find_another_image_count_as_wrong() {
        let z = Tensor::eye(4, (Kind::Float, Device::Cpu));
        // Images 0 and 1 have each other's second view.
        let second = z.index_select(0, &Tensor::from_slice(&[1i64, 0, 2, 3]));
        let contrast = config(0.1).contrast(&Tensor::cat(&[&z, &second], 0), &World::alone()).unwrap();
        assert_eq!(value(&contrast.accuracy), 0.5);
    }

    #[test]
    fn a_collapsed_embedding_has_the_loss_of_a_guess() {
        let z = Tensor::ones([16, 4], (Kind::Float, Device::Cpu));
        let contrast = config(0.1).contrast(&z, &World::alone()).unwrap();
        assert!((value(&contrast.loss) - 15f64.ln()).abs() < 1e-5);
        assert!((value(&contrast.entropy) - 8f64.ln()).abs() < 1e-5);
    }

    #[test]
    fn chunks_of_any_size_give_the_same() {
        tch::manual_seed(1);
        let z = Tensor::randn([26, 7], (Kind::Double, Device::Cpu));
        let of = |chunk_bytes: usize| {
            let z = z.copy().set_requires_grad(true);
            let alone = World::alone();
            let contrast =
                in_chunks(&Views::gather(z.shallow_clone(), &alone).unwrap(), 0.7, &alone, chunk_bytes).unwrap();
            contrast.loss.backward();
            (contrast, z.grad())
        };
        let (whole, gradient) = of(1 << 20);
        for rows in [1, 3, 5, 13, 20] {
            let (contrast, other) = of(rows * 26 * 8);
            for (a, b) in [
                (&contrast.loss, &whole.loss),
                (&contrast.accuracy, &whole.accuracy),
                (&contrast.entropy, &whole.entropy),
                (&other, &gradient),
            ] {
                assert!(value(&(a - b).abs().max()) < 1e-12, "{rows} rows at a time");
            }
        }
    }

    /// `cargo test --release -p simclr-trainer -- --ignored --nocapture memory_of_large_batches`
    #[test]
    #[ignore = "a measurement"]
    fn memory_of_large_batches() {
        let peak = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1e3
        };
        for images in [1024, 4096, 8192] {
            let before = peak();
            let z = Tensor::randn([2 * images, 128], (Kind::Float, Device::Cpu)).set_requires_grad(true);
            let began = std::time::Instant::now();
            config(0.1).contrast(&z, &World::alone()).unwrap().loss.backward();
            let more = peak() - before;
            println!("B = {images}: {more:.0} MB more at the peak, {:.2?}", began.elapsed());
            // One matrix of all similarities has 1074 MB for 8192 images, and autograd would keep several.
            assert!(more < 500.0, "B = {images}: {more} MB");
        }
    }
}
