//! Says in a sentence where a run's time went, and what would win it back.

use simclr_ground::stall::Waited;

use crate::time_spent::TimeSpent;

/// Waits below this share of the time are not worth a remedy.
const NEGLIGIBLE: f64 = 0.01;

/// What a remedy is worked out from.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    /// Images trained on in that time.
    pub images: u64,
    /// CPU seconds that the workers of this process spend on an image.
    pub cpu_per_image: f64,
    /// Worker threads of this process.
    pub threads: usize,
    /// Whether nodes make the batches.
    pub fed: bool,
}

/// How long steps were kept waiting, by what, and what would help, such as `data wait: 37% of training time (decode 30%,
/// storage 7.0%); add 6 loader threads (one core each)`.
pub fn sentence(spent: &TimeSpent, load: &Load) -> String {
    let total = spent.total();
    if total <= 0.0 {
        return "no training step yet".into();
    }
    let mut shares = spent.stalls().map(|(cause, seconds)| (cause, seconds / total)).to_vec();
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    let waited = spent.stalled() / total;
    let causes: Vec<String> = shares
        .iter()
        .filter(|(_, share)| *share >= 0.005)
        .map(|(cause, share)| format!("{cause} {}", percent(*share)))
        .collect();
    let said = format!("data wait: {} of training time", percent(waited));
    if causes.is_empty() {
        return format!("{said}; compute-bound");
    }
    let said = format!("{said} ({})", causes.join(", "));
    match remedy(shares[0], spent, load) {
        Some(remedy) => format!("{said}; {remedy}"),
        None => said,
    }
}

fn percent(share: f64) -> String {
    if (0.0005..0.1).contains(&share) { format!("{:.1}%", 100.0 * share) } else { format!("{:.0}%", 100.0 * share) }
}

/// What would end the longest of the waits.
fn remedy((cause, share): (&str, f64), spent: &TimeSpent, load: &Load) -> Option<String> {
    if share < NEGLIGIBLE {
        return None;
    }
    Some(match cause {
        "decode" | "augment" if load.fed => "add batch servers, or loader threads on them".into(),
        "decode" | "augment" => {
            let Waited { storage, decode, augment, network, .. } = spent.waited;
            let without = spent.total() - (storage + decode + augment + network);
            let wanted = load.images as f64 / without.max(1e-9) * load.cpu_per_image;
            let more = (wanted - load.threads as f64).ceil().max(1.0);
            let threads = if more == 1.0 { "thread" } else { "threads" };
            format!("add {more:.0} loader {threads} (one core each)")
        }
        "storage" if load.fed => "use faster storage for the batch servers, or machine.cache_dir there".into(),
        "storage" => "use faster storage, or a local disk as machine.cache_dir".into(),
        "network" => "use a faster link to the batch servers, or more servers on links of their own".into(),
        "upload" => "use fewer or smaller views per step, or a faster bus".into(),
        "checkpoint" => "increase checkpoint.every".into(),
        "evaluation" => "increase eval.every".into(),
        // The first batch is waited for once.
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spent: TimeSpent, load: Load, wanted: &str) {
        assert_eq!(sentence(&spent, &load), wanted);
    }

    #[test]
    fn the_culprit_comes_first_and_has_a_remedy() {
        let load = Load { images: 1000, cpu_per_image: 0.05, threads: 2, fed: false };
        let waited = |waited| TimeSpent { steps: 10.0, waited, ..TimeSpent::default() };
        // A thousand images in ten seconds take 100 × 0.05 = 5 cores, three more than there are.
        let slow = waited(Waited { decode: 7.0, augment: 2.0, storage: 1.0, ..Waited::default() });
        check(
            slow,
            load,
            "data wait: 50% of training time (decode 35%, augment 10%, storage 5.0%); add 3 loader threads (one core each)",
        );
        check(
            slow,
            Load { fed: true, ..load },
            "data wait: 50% of training time (decode 35%, augment 10%, storage 5.0%); add batch servers, or loader threads on them",
        );
        check(
            waited(Waited { storage: 30.0, ..Waited::default() }),
            load,
            "data wait: 75% of training time (storage 75%); use faster storage, or a local disk as machine.cache_dir",
        );
        check(waited(Waited::default()), load, "data wait: 0% of training time; compute-bound");
        check(TimeSpent::default(), load, "no training step yet");
    }

    #[test]
    fn a_wait_that_comes_once_has_no_remedy() {
        let spent =
            TimeSpent { steps: 9.0, waited: Waited { start: 1.0, ..Waited::default() }, ..TimeSpent::default() };
        check(spent, Load::default(), "data wait: 10% of training time (start 10%)");
    }
}
