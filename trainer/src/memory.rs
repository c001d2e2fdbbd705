//! A device whose memory is full, as an error.
//!
//! Most of tch's calls panic with what libtorch said. On a GPU the one failure that any of them may meet in a sound program
//! is that its memory is full, and it need not end the program: it is caught here.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::Once;

use tch::Device;

use crate::error::TrainError;

thread_local! {
    /// Whether this thread's panics are looked at here, and so not to be told on the terminal at once.
    static LOOKED_AT: Cell<bool> = const { Cell::new(false) };
}

/// Does `work` on the device; that its memory is full is an error, which says whether it was in the `first` step.
///
/// # Errors
/// What `work` returns, and [`TrainError::Memory`].
pub fn in_memory<T>(
    device: Device,
    first: bool,
    work: impl FnOnce() -> Result<T, TrainError>,
) -> Result<T, TrainError> {
    if !device.is_cuda() {
        return work();
    }
    stay_silent_while_looked_at();
    let before = LOOKED_AT.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    LOOKED_AT.set(before);
    match done {
        Ok(Err(TrainError::Torch(error))) => {
            let text = error.to_string();
            Err(full(&text).map_or(TrainError::Torch(error), |said| TrainError::Memory { said, first }))
        }
        Ok(done) => done,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map_or("", String::as_str);
            match full(text) {
                Some(said) => Err(TrainError::Memory { said, first }),
                None if text.is_empty() => resume_unwind(panic),
                // It was not told yet.
                None => panic_any(text.to_owned()),
            }
        }
    }
}

/// What libtorch says of a full memory, if that is what it says. tch hands on the text alone, not the type of libtorch's
/// exception.
fn full(text: &str) -> Option<String> {
    let start = text.find("out of memory")?;
    let said = &text[start..];
    // Two sentences: what was asked for, and what there is.
    let mut sentences = said.split(". ").skip(1).take(2).map(str::trim);
    Some(match (sentences.next(), sentences.next()) {
        (Some(tried), Some(there)) => format!("{tried}. {there}"),
        (Some(tried), None) => tried.trim_end_matches(['"', ')']).to_owned(),
        _ => "out of memory".to_owned(),
    })
}

fn stay_silent_while_looked_at() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !LOOKED_AT.get() {
                usual(panic);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which \
                        1.13 GiB is free. Including non-PyTorch memory, this process has 77.97 GiB memory in use.";

    #[test]
    fn a_full_memory_is_an_error_however_it_is_told() {
        let check = |work: &dyn Fn() -> Result<(), TrainError>| {
            let error = in_memory(Device::Cuda(0), true, work).unwrap_err();
            let message = error.to_string();
            assert!(message.contains("Tried to allocate 2.00 GiB. GPU 0 has"), "{message}");
            assert!(message.contains("train.micro_batch"), "{message}");
        };
        check(&|| Err(TrainError::Torch(tch::TchError::Torch(SAID.to_owned()))));
        check(&|| Err::<(), _>(tch::TchError::Torch(SAID.to_owned())).map_err(|e| panic!("{e:?}")));
    }

    #[test]
    fn other_panics_go_on() {
        let other = catch_unwind(|| in_memory(Device::Cuda(0), true, || -> Result<(), TrainError> { panic!("{}", 1) }));
        assert_eq!(other.unwrap_err().downcast_ref::<String>().unwrap(), "1");
    }
}
