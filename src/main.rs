//! The program; all of it is in the library beside it.

fn main() -> std::process::ExitCode {
    simclr_pipeline::run()
}
