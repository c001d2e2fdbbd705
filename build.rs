//! Lets the binary and its tests find libtorch at run time, with no environment variable.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Only set when the `trainer` feature, and with it libtorch, is built in.
    if let Ok(lib) = std::env::var("DEP_SIMCLR_TRAINER_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
