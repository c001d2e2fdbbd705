//! Lets the binary and its tests find libtorch at run time, with no environment variable.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Only set when the `trainer` feature, and with it libtorch, is built in.
    if let Ok(lib) = std::env::var("DEP_SIMCLR_TRAINER_LIBTORCH_LIB") {
        // As DT_RPATH, which another libtorch in LD_LIBRARY_PATH, as of an active conda environment, does not override.
        println!("cargo:rustc-link-arg=-Wl,--disable-new-dtags,-rpath,{lib}");
    }
}
