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

/// How long steps were kept waiting, by what, and what would help, such as `the trainer waited 37 % of the time: decode
/// 30 %, storage 7 %; 6 more loader threads would feed it`.
pub fn sentence(spent: &TimeSpent, load: &Load) -> String {
    let total = spent.total();
    if total <= 0.0 {
        return "the trainer has not taken a step yet".into();
    }
    let mut shares = spent.stalls().map(|(cause, seconds)| (cause, seconds / total)).to_vec();
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    let waited = spent.stalled() / total;
    let causes: Vec<String> = shares
        .iter()
        .filter(|(_, share)| *share >= 0.005)
        .map(|(cause, share)| format!("{cause} {}", percent(*share)))
        .collect();
    let said = format!("the trainer waited {} of the time", percent(waited));
    if causes.is_empty() {
        return format!("{said}: its device is the limit");
    }
    let said = format!("{said}: {}", causes.join(", "));
    match remedy(shares[0], spent, load) {
        Some(remedy) => format!("{said}; {remedy}"),
        None => said,
    }
}

fn percent(share: f64) -> String {
    if (0.0005..0.1).contains(&share) { format!("{:.1} %", 100.0 * share) } else { format!("{:.0} %", 100.0 * share) }
}

/// What would end the longest of the waits.
fn remedy((cause, share): (&str, f64), spent: &TimeSpent, load: &Load) -> Option<String> {
    if share < NEGLIGIBLE {
        return None;
    }
    Some(match cause {
        "decode" | "augment" if load.fed => "more nodes, or more threads on them, would feed it".into(),
        "decode" | "augment" => {
            let Waited { storage, decode, augment, network, .. } = spent.waited;
            let without = spent.total() - (storage + decode + augment + network);
            let wanted = load.images as f64 / without.max(1e-9) * load.cpu_per_image;
            let more = (wanted - load.threads as f64).ceil().max(1.0);
            let threads = if more == 1.0 { "thread" } else { "threads" };
            format!("{more:.0} more loader {threads}, each with a core, would feed it")
        }
        "storage" if load.fed => "faster storage for the nodes, or machine.cache_dir there, would help".into(),
        "storage" => "faster storage, or a local disk as machine.cache_dir, would help".into(),
        "network" => "a faster link to the nodes, or more links to several of them, would help".into(),
        "upload" => "fewer or smaller views a step, or a faster bus, would help".into(),
        "checkpoint" => "checkpoint.every could be larger".into(),
        "evaluation" => "eval.every could be larger".into(),
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
            "the trainer waited 50 % of the time: decode 35 %, augment 10 %, storage 5.0 %; 3 more loader threads, each with a core, would feed it",
        );
        check(
            slow,
            Load { fed: true, ..load },
            "the trainer waited 50 % of the time: decode 35 %, augment 10 %, storage 5.0 %; more nodes, or more threads on them, would feed it",
        );
        check(
            waited(Waited { storage: 30.0, ..Waited::default() }),
            load,
            "the trainer waited 75 % of the time: storage 75 %; faster storage, or a local disk as machine.cache_dir, would help",
        );
        check(waited(Waited::default()), load, "the trainer waited 0 % of the time: its device is the limit");
        check(TimeSpent::default(), load, "the trainer has not taken a step yet");
    }

    #[test]
    fn a_wait_that_comes_once_has_no_remedy() {
        let spent =
            TimeSpent { steps: 9.0, waited: Waited { start: 1.0, ..Waited::default() }, ..TimeSpent::default() };
        check(spent, Load::default(), "the trainer waited 10 % of the time: start 10 %");
    }
}
