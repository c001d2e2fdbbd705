//! From images to batches: pack, manifest, digest, preview, bench.

use serde_json::Value;

use crate::world::{TINY, World, text};

fn digest(world: &World, manifest: &str, more: &[&str]) -> Value {
    world.done(&[&["digest"], TINY, &["--manifest", manifest], more].concat())
}

#[test]
fn batches_are_the_same_for_any_threads_start_and_compression() {
    let world = World::new();
    let plain = world.packed("plain", 60, &[]);
    let base = digest(&world, &plain, &["--batches", "12"]);
    assert_eq!(base["batches"].as_array().unwrap().len(), 12);
    for threads in ["1", "2", "8"] {
        let setting = format!("machine.threads={threads}");
        assert_eq!(base, digest(&world, &plain, &["--batches", "12", "--set", &setting]), "{threads} threads");
    }
    let later = digest(&world, &plain, &["--from-batch", "5", "--batches", "7"]);
    assert_eq!(base["batches"].as_array().unwrap()[5..], later["batches"].as_array().unwrap()[..]);
    let zstd = world.packed("zstd", 60, &["--zstd", "3"]);
    let zstd = digest(&world, &zstd, &["--batches", "12"]);
    assert_eq!((&base["digest"], &base["plan_digest"]), (&zstd["digest"], &zstd["plan_digest"]));
    for setting in ["seed=2", "recipe.ops.0.scale=[0.5,1.0]", "data.limit=50", "order.shuffle_block_shards=1"] {
        let other = digest(&world, &plain, &["--batches", "12", "--set", setting]);
        assert!(base["digest"] != other["digest"] && base["plan_digest"] != other["plan_digest"], "{setting}");
    }
}

#[test]
fn every_difference_from_the_manifest_is_named() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    assert_eq!(world.done(&["manifest", "verify", &manifest])["problems"].as_array().unwrap().len(), 0);
    let shard = world.at("set/shard-000000.tar");
    let good = std::fs::read(&shard).unwrap();
    let listed: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    let entry = |i: usize| listed["shards"][0]["entries"][i].as_str().unwrap().to_owned();
    let offset = |i: usize| listed["shards"][0]["offsets"][i].as_u64().unwrap() as usize;
    let problems = |bytes: &[u8], wanted: &[&str]| {
        std::fs::write(&shard, bytes).unwrap();
        let output = world.run(&["manifest", "verify", &manifest, "--json"]);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(wanted.iter().all(|part| text.contains(part)), "{wanted:?} is not in {text}");
    };
    let mut flipped = good.clone();
    flipped[offset(3) + 5] ^= 0x10;
    problems(&flipped, &[&entry(3), "content changed", "BLAKE3"]);
    problems(&good[..offset(7) + 20], &[&entry(7), "truncated", "unreadable, with the"]);
    problems(&good[..good.len() - 1024], &["end-of-archive"]);
    problems(&[&good[..], b"more"].concat(), &["data after the end"]);
    // The label's header is the block after the image's data.
    let size = listed["shards"][0]["sizes"][2].as_u64().unwrap() as usize;
    let label = offset(2) + size.next_multiple_of(512);
    let without = [&good[..label], &good[label + 1024..]].concat();
    let key = entry(2).replace(".png", ".cls");
    problems(&without, &[&entry(2), &format!("label file {key} is missing")]);
    std::fs::remove_file(&shard).unwrap();
    let output = world.run(&["manifest", "verify", &manifest]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("no such file"));
}

#[test]
fn manifests_are_built_from_globs_and_brace_ranges() {
    let world = World::new();
    let packed = world.packed("set", 60, &[]);
    let shown = world.done(&["manifest", "show", &packed]);
    let last = shown["shards"].as_u64().unwrap() - 1;
    for pattern in ["set/shard-*.tar".to_owned(), format!("set/shard-{{000000..{last:06}}}.tar")] {
        let built = world.done(&["manifest", "build", &pattern, "--out", "built.json"]);
        assert_eq!(built["digest"], shown["digest"], "{pattern}");
    }
    let base = digest(&world, &packed, &[]);
    assert_eq!(base["digest"], digest(&world, &world.arg("built.json"), &[])["digest"]);
}

#[test]
fn names_with_underscores_and_dots_are_kept_and_metadata_is_not() {
    let world = World::new();
    world.draw("pictures", 0, 10);
    std::fs::rename(world.at("pictures/disc/0000.png"), world.at("pictures/disc/_DSC.0001.png")).unwrap();
    assert_eq!(world.done(&["pack", "pictures", "--out", "set"])["samples"], 10);
    let manifest = text(&world.at("set/manifest.json"));
    assert!(manifest.contains("disc/_DSC_0001.png"), "{manifest}");
    // What is built in the folder itself can be moved with it.
    world.done(&["manifest", "build", "set/*.tar", "--out", "here.json"]);
    assert!(text(&world.at("here.json")).contains("\"location\":\"set/shard-000000.tar\""));
}

#[test]
fn a_killed_pack_leaves_nothing_that_looks_whole() {
    let world = World::new();
    world.draw("pictures", 0, 300);
    let (source, out) = (world.arg("pictures"), world.arg("packed"));
    for wait in [0, 2, 5, 10, 20, 40] {
        let mut child = world.start(&["pack", &source, "--out", &out, "--shard-bytes", "30000", "--zstd", "19"]);
        std::thread::sleep(std::time::Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
        if world.at("packed").exists() {
            // It was done before it was killed; then it is whole.
            world.done(&["manifest", "verify", &world.arg("packed/manifest.json")]);
            std::fs::remove_dir_all(world.at("packed")).unwrap();
        }
    }
    world.done(&["pack", &source, "--out", &out, "--shard-bytes", "30000"]);
    let hidden =
        std::fs::read_dir(world.at("")).unwrap().flatten().filter(|e| e.file_name().to_string_lossy().starts_with('.'));
    assert_eq!(hidden.count(), 0, "what the killed ones left is cleared away");
}

#[test]
fn preview_and_bench_look_at_the_same_stream() {
    let world = World::new();
    let manifest = world.packed("set", 40, &[]);
    let shown = world.done(&[&["preview"], TINY, &["--manifest", &manifest, "--batch", "7", "--images", "4"]].concat());
    let png = std::fs::read(world.at(shown["out"].as_str().unwrap())).unwrap();
    let image = simclr_image::decode::decode(&png, 1 << 26).unwrap();
    assert_eq!(u64::from(image.width), shown["width"].as_u64().unwrap());
    for variant in ["decode", "rrc1", "rrc2", "simclr"] {
        let args = ["bench", "--manifest", &manifest, "--variant", variant, "--images", "50", "--threads", "2"];
        let bench = world.done(&[&args[..], &["--feed", "3000"]].concat());
        assert_eq!((bench["variant"].as_str(), bench["threads"].as_u64()), (Some(variant), Some(2)));
        let positive = |key: &str| bench[key].as_f64().is_some_and(|value| value > 0.0);
        assert!(positive("images_per_second") && positive("cpu_seconds_per_image"), "{bench}");
        let cores = (3000.0 * bench["cpu_seconds_per_image"].as_f64().unwrap()).ceil();
        assert!(bench["cores_to_feed"] == cores && positive("peak_memory_bytes"), "{bench}");
        assert!(bench["bottleneck"].is_string() && bench["stages"]["decode"].as_f64() > Some(0.0), "{bench}");
    }
}

#[test]
fn views_may_be_of_several_kinds_and_made_by_any_ops() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let crop =
        "{ op = \"random_resized_crop\", scale = [0.05, 0.3], ratio = [0.75, 1.33], interpolation = \"bilinear\" }";
    let studies = "{ op = \"cutout\", probability = 0.5, side = 0.4, value = 127 }, \
        { op = \"rotation\", probability = 0.5, degrees = [90, 180, 270] }, \
        { op = \"gaussian_noise\", probability = 0.5, sigma = [2, 20] }, \
        { op = \"sobel\", probability = 0.2 }, \
        { op = \"solarize\", probability = 0.2, threshold = 128 }, \
        { op = \"equalize\", probability = 0.2 }, \
        { op = \"motion_blur\", probability = 0.3, length = [2, 9] }, \
        { op = \"auto_augment\", probability = 1 }";
    // Two views as ever, two of the same size with everything, four small ones.
    let branches = format!(
        "recipe.branches=[{{ size = 16, views = 2, ops = [{crop}, {studies}] }}, {{ size = 8, views = 4, ops = [{crop}] }}]"
    );
    let digest = |more: &[&str]| {
        let args = [&["digest"], TINY, &["--manifest", &manifest, "--batches", "6"], more].concat();
        let object = world.done(&args);
        (object["plan_digest"].clone(), object["digest"].clone())
    };
    let made = digest(&["--set", &branches, "--set", "machine.threads=1"]);
    assert_eq!(made, digest(&["--set", &branches, "--set", "machine.threads=3"]));
    let plain = digest(&[]);
    assert!(made.0 != plain.0 && made.1 != plain.1);
    let show = [&["preview"], TINY, &["--manifest", &manifest, "--batch", "3", "--images", "4", "--set", &branches]];
    let shown = world.done(&show.concat());
    let png = std::fs::read(world.at(shown["out"].as_str().unwrap())).unwrap();
    let image = simclr_image::decode::decode(&png, 1 << 26).unwrap();
    assert!(image.width > 9 * 160, "a picture and its eight views beside each other: {}", image.width);
}

#[test]
fn a_row_index_changes_no_batch_and_is_verified() {
    let world = World::new();
    world.draw("pictures", 0, 60);
    world.done(&["pack", "pictures", "--out", "set", "--quality", "92"]);
    world.done(&["manifest", "build", "set/shard-*.tar", "--no-row-index", "--out", "plain.json"]);
    let manifest =
        |name: &str| -> serde_json::Value { serde_json::from_slice(&std::fs::read(world.at(name)).unwrap()).unwrap() };
    let (mut indexed, plain) = (manifest("set/manifest.json"), manifest("plain.json"));
    let rows = indexed["shards"][0]["rows"].as_array().unwrap();
    assert!(rows.iter().all(|row| row.as_str().is_some_and(|row| !row.is_empty())), "{rows:?}");
    assert!(plain["shards"][0]["rows"].is_null() && plain["digest"] == indexed["digest"]);
    let digest = |name: &str| world.done(&[&["digest"], TINY, &["--manifest", name, "--batches", "9"]].concat());
    assert_eq!(digest("set/manifest.json"), digest("plain.json"));
    world.done(&["manifest", "verify", "set/manifest.json"]);
    indexed["shards"][0]["rows"][7] = indexed["shards"][0]["rows"][8].clone();
    std::fs::write(world.at("set/manifest.json"), indexed.to_string()).unwrap();
    assert_eq!(digest("set/manifest.json"), digest("plain.json"), "an index that is another image's changes no batch");
    let entry = indexed["shards"][0]["entries"][7].as_str().unwrap().to_owned();
    let output = world.run(&["manifest", "verify", "set/manifest.json"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        !output.status.success() && said.contains("row index does not match this image") && said.contains(&entry),
        "{said}"
    );
}
