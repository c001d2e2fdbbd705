//! Compiles the C++ over libtorch, and hands libtorch's folder on to the build scripts of those who link it.

use std::path::Path;

/// The C++ of `cpp/`; `torch.h` says what each is for.
const SOURCES: [&str; 7] =
    ["store.cpp", "group.cpp", "sync_batch_norm.cpp", "reducer.cpp", "streams.cpp", "gpu.cpp", "foreach.cpp"];

fn main() {
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names the folder of libtorch");
    let lib = std::fs::canonicalize(&lib).map(|p| p.display().to_string()).unwrap_or(lib);
    // As DT_RPATH, which another libtorch in LD_LIBRARY_PATH, as of an active conda environment, does not override.
    println!("cargo:rustc-link-arg=-Wl,--disable-new-dtags,-rpath,{lib}");
    println!("cargo:libtorch_lib={lib}");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=cpp");
    // torch's headers take longer than all of this code, and are read once if it is compiled as one file.
    let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo says where the crate is");
    let lines = SOURCES.map(|file| format!("#include \"{folder}/cpp/{file}\"\n"));
    let together = Path::new(&std::env::var("OUT_DIR").expect("cargo gives a folder")).join("together.cpp");
    std::fs::write(&together, lines.concat()).expect("the folder can be written");
    let include = Path::new(&lib).with_file_name("include");
    let system = |folder: &Path| format!("-isystem{}", folder.display());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .flag(system(&include))
        .flag(system(&include.join("torch/csrc/api/include")))
        .include("cpp")
        .define("USE_C10D_GLOO", None)
        .define("USE_DISTRIBUTED", None)
        .file(together)
        .compile("simclr_torch_cpp");
    // Behind the library that uses it.
    println!("cargo:rustc-link-search=native={lib}");
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
}
