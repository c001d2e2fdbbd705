//! Lets the binary and its tests find libtorch at run time, with no environment variable, and know their commit.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=SIMCLR_COMMIT={}", commit());
    // Only set when the `trainer` feature, and with it libtorch, is built in.
    if let Ok(lib) = std::env::var("DEP_SIMCLR_TRAINER_LIBTORCH_LIB") {
        // As DT_RPATH, which another libtorch in LD_LIBRARY_PATH, as of an active conda environment, does not override.
        println!("cargo:rustc-link-arg=-Wl,--disable-new-dtags,-rpath,{lib}");
    }
}

/// The commit that is built, if this is a checkout of one.
fn commit() -> String {
    let git = |args: &[&str]| {
        let output =
            std::process::Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    // The file changes with each commit, whatever the branch.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| std::path::Path::new(log).is_file())
    {
        println!("cargo:rerun-if-changed={log}");
    }
    git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into())
}
