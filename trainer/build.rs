//! Lets this crate's tests find libtorch at run time, and hands its folder on to the binary's build script.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let lib = std::env::var("DEP_SIMCLR_TORCH_LIBTORCH_LIB").expect("simclr-torch names the folder of libtorch");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo:libtorch_lib={lib}");
}
