//! NT-Xent: each view must find the other view of its image among all views of the batch.

use tch::{Kind, Tensor};

use super::Contrast;

/// NT-Xent (SimCLR, Chen et al. 2020, equation 1): the mean over all 2B views, in f32 (in f64 for f64 input).
///
/// `z`: `[2B, dim]`, the first views of all images, then the second ones in the same order; any length. The official
/// code's loss is the sum of both views' means, twice this.
///
/// # Panics
/// If `z` has no even number of rows.
pub fn nt_xent(z: &Tensor, temperature: f64) -> Contrast {
    let (rows, _) = z.size2().expect("z is a matrix");
    assert!(rows >= 2 && rows % 2 == 0, "{rows} projections are no pairs");
    let half = rows / 2;
    let z = if z.kind() == Kind::Double { z.shallow_clone() } else { z.to_kind(Kind::Float) };
    let norms = z.norm_scalaropt_dim(2, [1i64].as_slice(), true).clamp_min(1e-12);
    let z = z / norms;
    let similarity = z.matmul(&z.tr()) / temperature;
    let itself = Tensor::eye(rows, (Kind::Bool, z.device()));
    let others = similarity.masked_fill(&itself, f64::NEG_INFINITY);
    // View i of the first half has its partner at i + B, one of the second half at i − B.
    let partner = Tensor::arange(rows, (Kind::Int64, z.device())).roll(half, [0]);
    let loss = others.cross_entropy_for_logits(&partner);
    let (accuracy, entropy) = tch::no_grad(|| {
        let between = similarity.narrow(0, 0, half).narrow(1, half, half);
        let own = Tensor::arange(half, (Kind::Int64, z.device()));
        let accuracy = between.argmax(1, false).eq_tensor(&own).to_kind(Kind::Float).mean(Kind::Float);
        let log = between.log_softmax(1, between.kind());
        let entropy =
            -(log.exp() * &log).sum_dim_intlist([1i64].as_slice(), false, between.kind()).mean(between.kind());
        (accuracy, entropy)
    });
    Contrast { loss, accuracy, entropy }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

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
            let contrast = nt_xent(&z, case["temperature"].as_f64().unwrap());
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
        let contrast = nt_xent(&Tensor::cat(&[&z, &z], 0), 0.5);
        let wanted = ((2f64).exp() + 6.0).ln() - 2.0;
        assert!((value(&contrast.loss) - wanted).abs() < 1e-6);
        assert_eq!(value(&contrast.accuracy), 1.0);
    }

    #[test]
    fn views_that_find_another_image_count_as_wrong() {
        let z = Tensor::eye(4, (Kind::Float, Device::Cpu));
        // Images 0 and 1 have each other's second view.
        let second = z.index_select(0, &Tensor::from_slice(&[1i64, 0, 2, 3]));
        assert_eq!(value(&nt_xent(&Tensor::cat(&[&z, &second], 0), 0.1).accuracy), 0.5);
    }

    #[test]
    fn a_collapsed_embedding_has_the_loss_of_a_guess() {
        let z = Tensor::ones([16, 4], (Kind::Float, Device::Cpu));
        let contrast = nt_xent(&z, 0.1);
        assert!((value(&contrast.loss) - 15f64.ln()).abs() < 1e-5);
        assert!((value(&contrast.entropy) - 8f64.ln()).abs() < 1e-5);
    }
}
