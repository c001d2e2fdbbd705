//! What fills whole vectors against what is left over, which plain code does: values given one by one.

use simclr_ground::rng::{Draws, Purpose};

use super::*;

#[test]
fn every_color_is_converted_as_plain_code_does() {
    for y in (0..=255).step_by(3).chain([127, 128, 254]) {
        let [mut first, mut second, mut third] = [const { Vec::new() }; 3];
        for cb in 0..=255u8 {
            for cr in 0..=255u8 {
                first.push(y);
                second.push(cb);
                third.push(cr);
            }
        }
        ycc_to_rgb([&mut first, &mut second, &mut third]);
        for (i, ((&r, &g), &b)) in first.iter().zip(&second).zip(&third).enumerate() {
            let (cb, cr) = ((i / 256) as u8, (i % 256) as u8);
            assert_eq!([r, g, b], super::rgb(y, cb, cr), "{y} {cb} {cr}");
        }
    }
}

#[test]
fn sums_of_rows_are_those_of_plain_code() {
    let mut draws = Draws::new(1, Purpose::Image, &[11]);
    for taps in 1..20 {
        let n = 224 + taps;
        let bytes: Vec<Vec<u8>> = (0..taps).map(|_| (0..n).map(|_| draws.below(256) as u8).collect()).collect();
        let wide: Vec<Vec<i16>> = bytes.iter().map(|row| row.iter().map(|&x| i16::from(x) * 64).collect()).collect();
        let mut weights: Vec<i16> = (0..taps).map(|_| draws.below(1600) as i16 - 500).collect();
        weights[taps / 2] += (1 << 14) - weights.iter().sum::<i16>();
        let (mut sums, mut one) = (vec![0i16; n], [0i16]);
        weigh_bytes(&weights, |i| &bytes[i], &mut sums, 8);
        let (mut out, mut out_one) = (vec![0u8; n], [0u8]);
        weigh_wide(&weights, |i| &wide[i], &mut out, 20);
        for x in 0..n {
            weigh_bytes(&weights, |i| &bytes[i][x..], &mut one, 8);
            assert_eq!(sums[x], one[0], "{taps} taps, value {x}");
            weigh_wide(&weights, |i| &wide[i][x..], &mut out_one, 20);
            assert_eq!(out[x], out_one[0], "{taps} taps, value {x}");
        }
        if taps % 2 == 1 {
            let mut half: Vec<i16> = (0..=taps / 2).map(|_| draws.below(32_768 / taps as u64) as i16).collect();
            half[0] = (32_768 - 2 * half[1..].iter().map(|&w| i32::from(w)).sum::<i32>()).min(32_767) as i16;
            weigh_symmetric(&half, |i| &wide[i], &mut sums);
            for x in 0..n {
                weigh_symmetric(&half, |i| &wide[i][x..], &mut one);
                assert_eq!(sums[x], one[0], "{taps} taps, value {x}");
            }
        }
    }
}

#[test]
fn pixels_are_written_as_plain_code_does() {
    let mut draws = Draws::new(1, Purpose::Image, &[12]);
    for n in [1, 15, 16, 47, 64, 225] {
        let planes: [Vec<u8>; 3] = std::array::from_fn(|_| (0..n).map(|_| draws.below(256) as u8).collect());
        let mut pixels = vec![0; 3 * n];
        interleave(planes.each_ref().map(Vec::as_slice), &mut pixels);
        let plain: Vec<u8> = (0..n).flat_map(|i| [0, 1, 2].map(|c| planes[c][i])).collect();
        assert_eq!(pixels, plain);
        let values: Vec<f32> =
            (0..n).map(|i| (draws.below(511) as f32 / 2.0 + (i % 3) as f32 * 1e-3).min(255.0)).collect();
        let mut bytes = vec![0; n];
        round_to_bytes(&values, &mut bytes);
        assert!(bytes.iter().zip(&values).all(|(&byte, value)| byte == (value + 0.5) as u8), "{values:?}");
    }
}
