//! `doctor`: what this machine can do for a run, and what each finding means for the configuration.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use serde::Serialize;
use serde_json::json;
use simclr_data::pack::Resize;
use simclr_data::source::DamagePolicy;
use simclr_data::store::OTHER_FILES;
use simclr_ground::error::{Error, Result};
use simclr_ground::location::Location;
use simclr_ground::position::Share;
use simclr_ground::sample::SampleRef;
use simclr_image::decode::jpeg::{Decoder, Jpeg, Region};
use simclr_plan::Plan;

use super::Run;
use super::args::ConfigArgs;
use crate::config::{Config, MachineConfig};
use crate::open;
use crate::output::ExitStatus;
use crate::output::Output;
use crate::telemetry::logging::time_now;

/// Check this machine (CPU, memory, GPU, storage, limits) and report problems.
#[derive(Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    /// As it should be.
    Good,
    /// It works; something could be better.
    Note,
    /// A run would fail.
    Problem,
}

#[derive(Debug, Serialize)]
struct Finding {
    /// What was looked at.
    name: &'static str,
    grade: Grade,
    /// What is there.
    found: String,
    /// What that means for a run.
    meaning: String,
}

impl Finding {
    fn new(name: &'static str, grade: Grade, found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self { name, grade, found: found.into(), meaning: meaning.into() }
    }
}

impl Run for DoctorArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let config = self.config.load()?;
        let machine = &config.machine;
        let mut findings = vec![cores(machine), vectors(), memory(&config), decoding()?];
        #[cfg(feature = "trainer")]
        findings.extend(devices(machine));
        findings.push(clock());
        if !machine.cache_dir.as_os_str().is_empty() {
            findings.push(disk("cache", &machine.cache_dir));
        }
        if self.config.names_data() || config.data.manifest.exists() {
            findings.extend(data(&config));
        } else {
            let meaning = "pass --data DATA to check access to its shards and read speed";
            findings.push(files(machine, None));
            findings.push(Finding::new("data", Grade::Note, "no data set given", meaning));
        }
        let problems = findings.iter().filter(|finding| finding.grade == Grade::Problem).count();
        output.result(&json!({ "findings": findings, "problems": problems }), || told(&findings, problems))?;
        Ok(if problems == 0 { ExitStatus::Success } else { ExitStatus::ProblemsFound })
    }
}

fn told(findings: &[Finding], problems: usize) -> String {
    let mut text = String::new();
    for Finding { name, grade, found, meaning } in findings {
        let mark = match grade {
            Grade::Good => "ok  ",
            Grade::Note => "note",
            Grade::Problem => "FAIL",
        };
        let _ = writeln!(text, "{mark} {name:9} {found}\n               {meaning}");
    }
    text + &match problems {
        0 => "no problems found".to_owned(),
        1 => "1 problem found".to_owned(),
        _ => format!("{problems} problems found"),
    }
}

fn cores(machine: &MachineConfig) -> Finding {
    let usable = open::cores();
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let all = text.lines().filter(|line| line.starts_with("processor")).count().max(usable);
    let found = if all > usable { format!("{usable} of {all} cores usable") } else { format!("{usable} cores") };
    let threads = machine.threads;
    if threads > usable {
        let meaning = format!("machine.threads = {threads} exceeds the {usable} usable cores (oversubscribed)");
        return Finding::new("cores", Grade::Note, found, meaning);
    }
    let meaning =
        format!("machine.threads = 0 uses {} loader threads with a GPU, all cores in `serve`", (usable - 1).max(1));
    let grade = if all > usable { Grade::Note } else { Grade::Good };
    Finding::new("cores", grade, found, meaning)
}

fn vectors() -> Finding {
    let name = simclr_image::vector_instructions();
    match name {
        "none" => Finding::new("vectors", Grade::Note, "no vector instructions", "the loader works, but much slower"),
        _ => Finding::new(
            "vectors",
            Grade::Good,
            name,
            "views are bit-identical on every machine, whatever its vector instructions",
        ),
    }
}

fn memory(config: &Config) -> Finding {
    let there = simclr_ground::memory::available().unwrap_or(0);
    let is_limited = simclr_ground::memory::group_limit().is_some();
    let views: u64 = config.recipe.sizes().map(|side| u64::from(side) * u64::from(side) * 3).sum();
    let slabs =
        u64::from(config.batch.size).saturating_mul(views).saturating_mul(config.machine.batches_ahead as u64 + 1);
    let wanted = slabs.saturating_add(config.machine.memory_bytes);
    let giga = |bytes: u64| match bytes {
        0..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    };
    let found = format!("{} available{}", giga(there), if is_limited { " (cgroup limit)" } else { "" });
    let batches = match config.batch.size {
        0 => "batches fit the data set (batch.size = 0)".to_owned(),
        _ => format!("batches need {} (batch.size, machine.batches_ahead)", giga(slabs)),
    };
    let asks = format!("{batches}, shards up to {} (machine.memory_bytes)", giga(config.machine.memory_bytes));
    if slabs > there {
        return Finding::new(
            "memory",
            Grade::Problem,
            found,
            format!("{asks}; the batches alone do not fit in memory"),
        );
    }
    Finding::new("memory", if wanted > there { Grade::Note } else { Grade::Good }, found, asks)
}

/// How fast one core decodes a generated image, about as large as an ImageNet photo.
fn decoding() -> Result<Finding> {
    const FOR: Duration = Duration::from_millis(300);
    let image = simclr_image::drawn::image(1, 3, 1, 448);
    let jpeg = Resize { short_side: 0, quality: 90, subsample: true }.apply(&simclr_image::drawn::png(&image));
    let jpeg = jpeg.map_err(|damage| Error::runtime(format!("cannot encode a generated image: {damage}")))?;
    let mut decoder = Decoder::default();
    let whole = Region { left: 0, top: 0, width: image.width, height: image.height };
    let (began, mut images) = (Instant::now(), 0u32);
    while began.elapsed() < FOR {
        let jpeg = Jpeg::parse(&jpeg).and_then(|jpeg| decoder.decode(&jpeg, whole).map(|planes| planes.width));
        if jpeg.is_err() {
            return Err(Error::runtime("cannot decode a generated image"));
        }
        images += 1;
    }
    let each = 1e3 * began.elapsed().as_secs_f64() / f64::from(images);
    let found = format!("{each:.2} ms per generated 448×448 JPEG on one core");
    Ok(Finding::new(
        "decoding",
        Grade::Good,
        found,
        "run `bench --data DATA` to benchmark the full loader on your images",
    ))
}

#[cfg(feature = "trainer")]
fn devices(machine: &MachineConfig) -> Vec<Finding> {
    use simclr_trainer::device::{self, DeviceName};
    let libtorch = env!("CARGO_PKG_VERSION");
    let threads = open::torch_threads(machine, 1);
    let found = format!("libtorch {} in simclr-pipeline {libtorch}", simclr_trainer::run::LIBTORCH);
    let meaning = format!("uses {threads} threads on the CPU (machine.torch_threads)");
    let mut findings = vec![Finding::new("libtorch", Grade::Good, found, meaning)];
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    let driver = driver.and_then(|text| text.lines().next().map(|line| line.trim().to_owned()));
    let (grade, found, meaning) = match (&driver, device::open(DeviceName::Cuda)) {
        (_, Ok(_)) => {
            (Grade::Good, format!("{} usable", device::gpus()), "machine.device = auto uses the first one".to_owned())
        }
        (_, Err(error)) if device::gpus_of_driver().is_some() || driver.is_some() => (
            Grade::Problem,
            "NVIDIA driver found, but libtorch's CUDA libraries are not loadable".to_owned(),
            error.to_string(),
        ),
        (_, Err(_)) if matches!(machine.device, DeviceName::Cuda | DeviceName::CudaNth(_)) => {
            let device: String = machine.device.into();
            (Grade::Problem, "no NVIDIA driver".to_owned(), format!("machine.device = {device:?} requires one"))
        }
        (_, Err(_)) => (
            Grade::Note,
            "no NVIDIA driver".to_owned(),
            "machine.device = auto trains on the CPU; this machine can still run `serve` for others".to_owned(),
        ),
    };
    findings.push(Finding::new("GPU", grade, found, meaning));
    if let Some(driver) = driver {
        findings.push(Finding::new(
            "driver",
            Grade::Good,
            driver,
            "must support libtorch's CUDA version or a newer one",
        ));
    }
    findings
}

/// How many files may be open, and how many a run opens: shards of the plan, if there is one, and connections.
fn files(machine: &MachineConfig, plan: Option<(&Plan, bool)>) -> Finding {
    let limit = open::open_files();
    let (shards, connections) = match plan {
        None => (0, machine.storage_requests as u64),
        Some((plan, remote)) => {
            let shards = plan.open_shards(Share::ALL) as u64;
            // Shards on a server are files only where a cache keeps them.
            let cached = !machine.cache_dir.as_os_str().is_empty();
            (if remote && !cached { 0 } else { shards }, if remote { machine.storage_requests as u64 } else { 0 })
        }
    };
    let wanted = shards + connections + OTHER_FILES;
    let found = limit.map_or("any number of open files".into(), |limit| format!("{limit} open files allowed"));
    let sum = match plan {
        None => format!("{connections} connections (machine.storage_requests), {OTHER_FILES} others, and shards"),
        Some(_) => format!(
            "{wanted} are recommended: {shards} shards in use at a time, {connections} connections \
             (machine.storage_requests), {OTHER_FILES} others"
        ),
    };
    match limit {
        Some(limit) if limit < OTHER_FILES + 8 => {
            let meaning = format!("{sum}: training would run out of files; run `ulimit -n {wanted}`");
            Finding::new("files", Grade::Problem, found, meaning)
        }
        Some(limit) if limit < wanted => {
            let meaning =
                format!("{sum}: training keeps fewer shards open and reopens them often; run `ulimit -n {wanted}`");
            Finding::new("files", Grade::Note, found, meaning)
        }
        _ => Finding::new("files", Grade::Good, found, sum),
    }
}

fn clock() -> Finding {
    // Long before any of this was written: TLS certificates and signed requests would be refused.
    const EARLIEST: u64 = 1_735_689_600;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if now < EARLIEST {
        let meaning = "object storage requests and TLS need the correct time; batches and losses do not depend on it";
        return Finding::new("clock", Grade::Problem, format!("{} is wrong", time_now()), meaning);
    }
    let meaning = "used only by logs, metrics, TLS and signed requests; batches and losses do not depend on it";
    Finding::new("clock", Grade::Good, time_now(), meaning)
}

/// How fast a folder's disk is written.
fn disk(name: &'static str, folder: &Path) -> Finding {
    const BYTES: usize = 64 << 20;
    let measure = || -> std::io::Result<f64> {
        use std::io::Write;
        std::fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        let piece = vec![0x5A; 1 << 20];
        let began = Instant::now();
        for _ in 0..BYTES >> 20 {
            file.write_all(&piece)?;
        }
        file.as_file().sync_all()?;
        Ok(BYTES as f64 / began.elapsed().as_secs_f64())
    };
    match measure() {
        Ok(speed) => {
            let found = format!("{}: {:.0} MB/s write speed", folder.display(), speed / 1e6);
            Finding::new(name, Grade::Good, found, "shards are cached there (machine.cache_dir)")
        }
        Err(error) => {
            let found = format!("{}: {error}", folder.display());
            Finding::new(name, Grade::Problem, found, "machine.cache_dir must be a writable directory")
        }
    }
}

/// Whether the set can be read here, and how fast.
fn data(config: &Config) -> Vec<Finding> {
    let mut config = config.clone();
    let opened = open::fitted(&mut config)
        .and_then(|manifest| open::source_over(manifest, config.stream(), &config.machine, DamagePolicy::Budget));
    let source = match opened {
        Ok(source) => source,
        Err(error) => {
            let data = Finding::new("data", Grade::Problem, format!("{error:#}"), "training cannot start");
            return vec![files(&config.machine, None), data];
        }
    };
    let plan = &source.plan;
    let found = format!("{} samples in {} shards", plan.num_samples(), plan.shard_sizes.len());
    let meaning = format!(
        "{} batches per epoch, {} samples dropped per epoch (batch.size)",
        plan.batches_per_epoch(),
        plan.dropped_per_epoch()
    );
    let remote = matches!(source.store.manifest().shard_place(0), Location::Url(_));
    let files = files(&config.machine, Some((plan, remote)));
    let mut findings = vec![files, Finding::new("data", Grade::Good, found, meaning)];
    let runtime = match open::runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            return vec![Finding::new("storage", Grade::Problem, error.to_string(), "cannot start the I/O threads")];
        }
    };
    let samples = spread(plan);
    let began = Instant::now();
    let read = source.store.read(&samples, runtime.handle());
    let seconds = began.elapsed().as_secs_f64();
    findings.push(match read {
        Ok(all) => {
            let bytes: usize = all.iter().map(Vec::len).sum();
            let found = format!("read {} samples ({:.1} MB) in {seconds:.2} s", all.len(), bytes as f64 / 1e6);
            let place = source.store.manifest().shard_place(0).to_string();
            let meaning =
                format!("samples of several shards such as {place}, checksums verified; the first read is the slowest");
            Finding::new("storage", Grade::Good, found, meaning)
        }
        Err(error) => Finding::new("storage", Grade::Problem, error.to_string(), "training would stop here"),
    });
    findings
}

/// Some samples from all over the set.
fn spread(plan: &Plan) -> Vec<SampleRef> {
    const SHARDS: usize = 8;
    let shards = plan.shard_sizes.len();
    let chosen = (0..shards).step_by(shards.div_ceil(SHARDS));
    chosen.filter(|&shard| plan.shard_sizes[shard] > 0).map(|shard| plan.taken(shard as u32, 0)).collect()
}
