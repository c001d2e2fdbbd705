//! A place for one test: a folder, drawn images, and the binary.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use simclr_image::drawn;

/// A test's own folder; it goes with the test.
pub struct World {
    folder: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// A path in the folder.
    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A path in the folder, as an argument.
    pub fn arg(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    /// Draws `count` images into class folders `name/<class>/NNN.png`, numbered from `first`.
    pub fn draw(&self, name: &str, first: u64, count: u64) {
        for i in first..first + count {
            let class = (i % 10) as usize;
            let folder = self.at(name).join(drawn::CLASSES[class]);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(format!("{i:04}.png")), drawn::png(&drawn::image(3, class, i, 20))).unwrap();
        }
    }

    /// Draws and packs a set; the manifest's path.
    pub fn packed(&self, name: &str, count: u64, more: &[&str]) -> String {
        self.draw(&format!("{name}-pictures"), 0, count);
        let (source, out) = (self.arg(&format!("{name}-pictures")), self.arg(name));
        self.done(&[&["pack", &source, "--out", &out, "--shard-bytes", "60000"], more].concat());
        self.arg(&format!("{name}/manifest.json"))
    }

    /// Runs the binary in the folder.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Starts the binary in the folder.
    pub fn start(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    /// Runs the binary with `--json`, which must succeed; its object.
    pub fn done(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?} ended with {}: {stderr}", output.status);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?} printed no object: {e}"))
    }

    /// Runs the binary, which must end with `code` and say all of `wanted` on stderr.
    pub fn fails(&self, args: &[&str], code: i32, wanted: &[&str]) {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        for part in wanted {
            assert!(stderr.contains(part), "{args:?}: {part:?} is not in: {stderr}");
        }
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    }

    pub fn command(&self, args: &[&str]) -> Command {
        // Another build can be held against the same tests, such as the last release.
        let binary = std::env::var("SIMCLR_PIPELINE_BINARY");
        let binary = binary.as_deref().unwrap_or(env!("CARGO_BIN_EXE_simclr-pipeline"));
        let mut command = Command::new(binary);
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("XDG_CACHE_HOME", self.at(".cache"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// What runs have logged.
#[cfg(feature = "trainer")]
impl World {
    /// The lines of a run's `metrics.jsonl`.
    pub fn steps(&self, run: &str) -> Vec<Value> {
        let text = text(&self.at(run).join("metrics.jsonl"));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// How many steps a run has logged so far.
    pub fn steps_done(&self, run: &str) -> usize {
        std::fs::read_to_string(self.at(run).join("metrics.jsonl")).map_or(0, |text| text.lines().count())
    }

    /// The loss of every step of a run, to the last bit.
    pub fn losses(&self, run: &str) -> Vec<u64> {
        self.steps(run).iter().map(|line| line["loss"].as_f64().unwrap().to_bits()).collect()
    }
}

/// Settings of a stream and a model so small that a step takes milliseconds.
pub const TINY: &[&str] = &[
    "--config",
    "cifar10-resnet18",
    "--set",
    "batch.size=8",
    "--set",
    "order.lanes=4",
    "--set",
    "recipe.size=16",
    "--set",
    "model.width=0.125",
    "--set",
    "model.head.dim=16",
    "--set",
    "model.head.layers=2",
    "--set",
    "machine.precision=fp32",
    "--set",
    "machine.device=cpu",
    "--set",
    "machine.torch_threads=1",
];

/// What a file holds.
pub fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
