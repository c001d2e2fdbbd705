//! Compiles the C++ over libtorch, lets this crate's tests find libtorch at run time, and hands its folder on to the
//! binary's build script.

use std::path::Path;

/// The C++ of `shim/`; `shim.h` says what each is for.
const SOURCES: [&str; 6] = ["store.cpp", "group.cpp", "sync_batch_norm.cpp", "reducer.cpp", "stream.cpp", "lists.cpp"];

fn main() {
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names the folder of libtorch");
    let lib = std::fs::canonicalize(&lib).map(|p| p.display().to_string()).unwrap_or(lib);
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo:libtorch_lib={lib}");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=shim");
    let include = Path::new(&lib).with_file_name("include");
    let system = |folder: &Path| format!("-isystem{}", folder.display());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .flag(system(&include))
        .flag(system(&include.join("torch/csrc/api/include")))
        .include("shim")
        .define("USE_C10D_GLOO", None)
        .define("USE_DISTRIBUTED", None)
        .files(SOURCES.map(|file| Path::new("shim").join(file)))
        .compile("simclr_shim");
    // Behind the library that uses it.
    println!("cargo:rustc-link-search=native={lib}");
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
}
