//! Lets this crate's tests find libtorch at run time, and hands its folder on to the binary's build script.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let lib = std::env::var("DEP_SIMCLR_TORCH_LIBTORCH_LIB").expect("simclr-torch names the folder of libtorch");
    // As DT_RPATH, which another libtorch in LD_LIBRARY_PATH, as of an active conda environment, does not override.
    println!("cargo:rustc-link-arg=-Wl,--disable-new-dtags,-rpath,{lib}");
    println!("cargo:libtorch_lib={lib}");
}
