//! NT-Xent: each view must find the other view of its image among all views of the batch.

use tch::{Kind, Tensor};

use super::{Contrast, Search};

/// Bytes of similarities that are looked at together: all 2B × 2B of them would not fit for large batches.
const CHUNK_BYTES: usize = 64 << 20;

/// NT-Xent (SimCLR, Chen et al. 2020, equation 1): the mean over all 2B views of the cross entropy of finding the
/// partner. The official code's loss is the sum of both views' means, twice this.
///
/// `u`: `[2B, dim]`, the first views of all images, then the second ones in the same order.
pub(super) fn nt_xent(u: &Tensor, temperature: f64) -> Contrast {
    in_chunks(u, temperature, CHUNK_BYTES)
}

/// Loss and gradient are worked out together, some rows of similarities at a time, and the gradient is handed to
/// autograd as it is: `[rows, 2B]` at a time is all the memory that it takes.
fn in_chunks(u: &Tensor, temperature: f64, chunk_bytes: usize) -> Contrast {
    let (rows, _) = u.size2().expect("projections are a matrix");
    let half = rows / 2;
    let kind = u.kind();
    let row_bytes = rows as usize * kind.elt_size_in_bytes();
    let chunk = (chunk_bytes / row_bytes).max(1) as i64;
    let (loss, gradient, search) = tch::no_grad(|| {
        let u = u.detach();
        let mut gradient = u.zeros_like();
        let mut loss = Tensor::zeros([], (kind, u.device()));
        let mut search = Search::new(u.device());
        for from in (0..rows).step_by(chunk as usize) {
            let n = chunk.min(rows - from);
            let part = u.narrow(0, from, n);
            let mut logits = part.matmul(&u.tr()) / temperature;
            let firsts = (half - from).clamp(0, n);
            if firsts > 0 {
                search.add(&logits.narrow(0, 0, firsts).narrow(1, half, half), from);
            }
            // No view is searched for among itself.
            let _ = logits.diagonal(from, 0, 1).fill_(f64::NEG_INFINITY);
            let log_sum = logits.logsumexp([1i64].as_slice(), true);
            let partner = (Tensor::arange(n, (Kind::Int64, u.device())) + (from + half)).fmod(rows).unsqueeze(1);
            loss += (&log_sum - logits.gather(1, &partner, false)).sum(kind);
            let _ = logits.g_sub_(&log_sum).exp_();
            let _ = logits.scatter_add_(1, &partner, &-partner.ones_like().to_kind(kind));
            let _ = gradient.narrow(0, from, n).g_add_(&logits.matmul(&u));
            gradient += logits.tr().matmul(&part);
        }
        (loss / rows as f64, gradient / (rows as f64 * temperature), search)
    });
    // Its value is 0 and its gradient the one found.
    let carrier = (u * gradient).sum(kind);
    search.contrast(loss + (&carrier - carrier.detach()), half)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::{LossConfig, LossKind};
    use tch::Device;

    fn config(temperature: f64) -> LossConfig {
        LossConfig { kind: LossKind::NtXent, temperature, normalize: true, margin: 1.0, semi_hard: false }
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
            let contrast = config(case["temperature"].as_f64().unwrap()).contrast(&z);
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
        let contrast = config(0.5).contrast(&Tensor::cat(&[&z, &z], 0));
        let wanted = ((2f64).exp() + 6.0).ln() - 2.0;
        assert!((value(&contrast.loss) - wanted).abs() < 1e-6);
        assert_eq!(value(&contrast.accuracy), 1.0);
    }

    #[test]
    fn views_that_find_another_image_count_as_wrong() {
        let z = Tensor::eye(4, (Kind::Float, Device::Cpu));
        // Images 0 and 1 have each other's second view.
        let second = z.index_select(0, &Tensor::from_slice(&[1i64, 0, 2, 3]));
        assert_eq!(value(&config(0.1).contrast(&Tensor::cat(&[&z, &second], 0)).accuracy), 0.5);
    }

    #[test]
    fn a_collapsed_embedding_has_the_loss_of_a_guess() {
        let z = Tensor::ones([16, 4], (Kind::Float, Device::Cpu));
        let contrast = config(0.1).contrast(&z);
        assert!((value(&contrast.loss) - 15f64.ln()).abs() < 1e-5);
        assert!((value(&contrast.entropy) - 8f64.ln()).abs() < 1e-5);
    }

    #[test]
    fn chunks_of_any_size_give_the_same() {
        tch::manual_seed(1);
        let z = Tensor::randn([26, 7], (Kind::Double, Device::Cpu));
        let of = |chunk_bytes: usize| {
            let z = z.copy().set_requires_grad(true);
            let contrast = in_chunks(&z, 0.7, chunk_bytes);
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

    /// `cargo test --release -p trainer -- --ignored --nocapture memory_of_large_batches`
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
            config(0.1).contrast(&z).loss.backward();
            let more = peak() - before;
            println!("B = {images}: {more:.0} MB more at the peak, {:.2?}", began.elapsed());
            // One matrix of all similarities has 1074 MB for 8192 images, and autograd would keep several.
            assert!(more < 500.0, "B = {images}: {more} MB");
        }
    }
}
