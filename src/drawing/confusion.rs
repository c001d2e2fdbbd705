//! A confusion matrix, as an image.

use simclr_image::decode::RgbImage;
use simclr_trainer::eval::Measured;

use crate::drawing::canvas::{Canvas, Face, INK, PAPER};

/// The confusion matrix: a row for each true class, a column for each predicted one, darker for larger fractions.
pub fn confusion_image(measured: &Measured, names: &[String]) -> RgbImage {
    const FULL: [f64; 3] = [16.0, 60.0, 140.0];
    let classes = measured.confusion.len() as u32;
    let cell = (720 / classes.max(1)).clamp(2, 56);
    let named = cell >= 20;
    let (left, top) = if named { (150, 74) } else { (24, 74) };
    let side = cell * classes;
    let mut canvas = Canvas::new(left + side + 24, top + side + 40, PAPER);
    let title =
        format!("top-1 {:.1} %, mean per class {:.1} %", 100.0 * measured.top1, 100.0 * measured.mean_per_class);
    canvas.write(&title, 24, 14, left + side - 24, 22.0, Face::Text, INK);
    canvas.write("rows: true class; columns: predicted class", 24, 44, left + side - 24, 13.0, Face::Text, INK);
    for (row, answers) in measured.confusion.iter().enumerate() {
        let images: u64 = answers.iter().sum();
        let y = top + row as u32 * cell;
        if named {
            let name = names.get(row).cloned().unwrap_or_else(|| format!("class {row}"));
            canvas.write(&name, 24, y + cell / 2 - 7, left - 32, 13.0, Face::Text, INK);
        }
        for (column, &count) in answers.iter().enumerate() {
            let share = if images > 0 { count as f64 / images as f64 } else { 0.0 };
            let shade = share.sqrt();
            let color = std::array::from_fn(|i| (f64::from(PAPER[i]) * (1.0 - shade) + FULL[i] * shade) as u8);
            let x = left + column as u32 * cell;
            canvas.fill(x, y, cell - u32::from(cell > 4), cell - u32::from(cell > 4), color);
            if named && cell >= 32 && share >= 0.005 {
                let ink = if shade > 0.6 { PAPER } else { INK };
                canvas.write(
                    &format!("{:.0}", 100.0 * share),
                    x + 6,
                    y + cell / 2 - 7,
                    cell - 8,
                    12.0,
                    Face::Mono,
                    ink,
                );
            }
        }
    }
    if named {
        canvas.write("row percentages", left, top + side + 12, side, 12.0, Face::Text, INK);
    }
    canvas.into_image()
}
