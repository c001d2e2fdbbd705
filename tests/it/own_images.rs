//! Images as they lie on people's disks: folders in any shape, lists and tars are data sets whose batches are values.

use std::path::Path;
use std::time::{Duration, SystemTime};

use simclr_image::drawn;

use crate::world::{TINY, World};

/// Draws images side by side in a folder.
fn flat(world: &World, folder: &str, count: u64) {
    std::fs::create_dir_all(world.at(folder)).unwrap();
    for i in 0..count {
        let png = drawn::png(&drawn::image(3, (i % 10) as usize, i, 20));
        std::fs::write(world.at(folder).join(format!("IMG_{i:04}.png")), png).unwrap();
    }
}

fn digest(world: &World, data: &str) -> serde_json::Value {
    world.done(&[&["digest"], TINY, &["--data", data, "--batches", "3"]].concat())
}

/// All paths below a folder, by name.
fn below(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        all.push(entry.path().display().to_string());
        if entry.path().is_dir() {
            all.extend(below(&entry.path()));
        }
    }
    all.sort();
    all
}

/// The same images in the same order and grouping give the same batches, in files of their own or in a shard, named by the
/// folder, by a list, by a shard, by a folder of shards, by a manifest, or by a folder with a manifest in it.
#[test]
fn batches_do_not_depend_on_how_images_lie() {
    let world = World::new();
    flat(&world, "photos", 16);
    let before = below(&world.at("photos"));
    let wanted = digest(&world, "photos")["digest"].clone();
    assert_eq!(below(&world.at("photos")), before, "nothing is written among the images");
    let list: String = (0..16).map(|i| format!("photos/IMG_{i:04}.png\n")).collect();
    std::fs::write(world.at("list.txt"), list).unwrap();
    world.done(&["pack", "photos", "--out", "packed"]);
    std::fs::create_dir(world.at("shards")).unwrap();
    std::fs::copy(world.at("packed/shard-000000.tar"), world.at("shards/a.tar")).unwrap();
    for data in
        ["list.txt", "packed", "packed/manifest.json", "packed/shard-000000.tar", "packed/shard-*.tar", "shards"]
    {
        assert_eq!(digest(&world, data)["digest"], wanted, "{data}");
    }
}

/// What was read is remembered: the second start reads no image again, and a file that changed later is noticed.
#[test]
fn what_was_scanned_is_remembered_and_what_changed_is_named() {
    let world = World::new();
    flat(&world, "photos", 40);
    let (first, set) = (digest(&world, "photos"), world.done(&["manifest", "show", "photos"]));
    let memory = below(&world.at(".cache/simclr-pipeline/datasets"));
    assert!(memory.iter().any(|path| path.ends_with(".json")), "{memory:?}");
    assert_eq!(digest(&world, "photos"), first);
    // Changed behind its size and time, which is what is looked at: still no other bytes pass for it.
    let path = world.at("photos/IMG_0007.png");
    let (mut bytes, time) = (std::fs::read(&path).unwrap(), std::fs::metadata(&path).unwrap().modified().unwrap());
    bytes[60] ^= 1;
    let write = |bytes: &[u8], time: SystemTime| {
        std::fs::write(&path, bytes).unwrap();
        std::fs::File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
    };
    write(&bytes, time);
    let digests = [&["digest"], TINY, &["--data", "photos", "--batches", "5"]].concat();
    world.fails(&digests, 2, &["IMG_0007.png", "XXH3"]);
    // Changed openly, it is another data set.
    write(&bytes, time + Duration::from_secs(5));
    let now = world.done(&["manifest", "show", "photos"]);
    assert!(now["samples"] == 40 && now["digest"] != set["digest"], "{now}");
    std::fs::rename(world.at("photos/IMG_0001.png"), world.at("photos/IMG_0099.png")).unwrap();
    let told = |data: &str| String::from_utf8_lossy(&world.run(&["manifest", "show", data]).stderr).into_owned();
    let said = told("photos");
    assert!(said.contains("since the last start: 1 new (e.g. IMG_0099.png), 1 missing (e.g. IMG_0001.png)"), "{said}");
    assert!(!told("photos").contains("since the last start"));
}

/// What cannot be decoded can be found before a run meets it, in a folder as in shards.
#[test]
fn images_that_cannot_be_decoded_are_found_beforehand() {
    let world = World::new();
    flat(&world, "photos", 20);
    world.done(&["manifest", "verify", "photos", "--decode"]);
    std::fs::write(world.at("photos/IMG_0005.png"), "no image at all").unwrap();
    world.done(&["pack", "photos", "--out", "packed"]);
    for data in ["photos", "packed"] {
        let ledger = format!("{data}.jsonl");
        let output = world.run(&["manifest", "verify", data, "--decode", "--quarantine", &ledger]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("IMG_0005") && said.contains("1 of 20 images cannot be decoded"), "{said}");
        assert_eq!(crate::world::text(&world.at(&ledger)).lines().count(), 1, "{data}");
    }
    for (data, ledger) in [("packed/shard-000000.tar", "packed.jsonl"), ("photos", "photos.jsonl")] {
        let exclude = ["manifest", "build", data, "--exclude", ledger, "--out", "sound.json"];
        let output = world.run(&[&exclude[..], &["--json"]].concat());
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["samples"], 19, "{data}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("since the last start"), "{data}");
        let after = world.run(&["manifest", "show", data]);
        assert!(!String::from_utf8_lossy(&after.stderr).contains("since the last start"), "{data}");
        world.done(&["manifest", "verify", "sound.json", "--decode"]);
    }
}

/// Three commands from a folder of photographs to a page: nothing has to be named, packed or labeled.
#[cfg(feature = "trainer")]
#[test]
fn three_commands_lead_from_a_folder_to_a_page() {
    let world = World::new();
    flat(&world, "photos", 40);
    std::fs::write(world.at("photos/notes.txt"), "x").unwrap();
    let small = [
        "--set",
        "model.width=0.125",
        "--set",
        "recipe.size=32",
        "--set",
        "model.stem=cifar",
        "--set",
        "model.encoder=resnet18",
        "--set",
        "machine.precision=fp32",
        "--set",
        "train.steps=3",
        "--set",
        "schedule.warmup_epochs=0",
    ];
    let output = world.run(&[&["train", "--data", "photos"][..], &small].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("left out 1 files") && said.contains("no labels"), "{said}");
    let config = &serde_json::from_str::<serde_json::Value>(&crate::world::text(&world.at("runs/train-1/run.json")))
        .unwrap()["config"];
    // A quarter of forty images, and lanes that divide it.
    assert_eq!((&config["batch"]["size"], &config["order"]["lanes"]), (&8.into(), &8.into()));
    assert_eq!(world.done(&["embed"])["rows"], 40);
    world.done(&["report"]);
    let page = crate::world::text(&world.at("runs/train-1/report.html"));
    assert!(page.contains("neighbors"), "the report shows neighbors");
    // It goes on without a name, and the next run has the next.
    let more = ["--resume", "--set", "train.steps=4"];
    assert_eq!(world.done(&[&["train"][..], &more].concat())["step"], 4);
    assert_eq!(world.done(&[&["train", "--data", "photos"][..], &small].concat())["run"], "runs/train-2");
    // What the folder holds now is not what the run was trained on.
    std::fs::remove_file(world.at("photos/IMG_0003.png")).unwrap();
    world.fails(
        &["train", "--run", "runs/train-1", "--resume", "--set", "train.steps=5"],
        2,
        &["IMG_0003.png", "missing"],
    );
}

/// Labels may lack: pre-training takes all images, evaluation those that have one, and says how many.
#[cfg(feature = "trainer")]
#[test]
fn evaluation_takes_the_images_that_have_a_label_and_classes_meet_by_name() {
    let world = World::new();
    world.packed("set", 60, &[]);
    let list: String = (0..60)
        .map(|i| {
            let class = drawn::CLASSES[i % 10];
            let label = if i % 2 == 0 || i < 30 { class } else { "" };
            format!("set-pictures/{class}/{i:04}.png,{label}\n")
        })
        .collect();
    std::fs::write(world.at("some.csv"), list).unwrap();
    world.done(&[&["train"], TINY, &["--data", "some.csv", "--run", "run", "--set", "train.steps=2"]].concat());
    let knn = |train: &str, test: &str| {
        let output = world.run(&[
            "eval",
            "knn",
            "--run",
            "run",
            "--train",
            train,
            "--test",
            test,
            "--set",
            "eval.knn.k=1",
            "--json",
        ]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        (serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap(), said)
    };
    let (found, said) = knn("some.csv", "set");
    assert_eq!((&found["train_images"], &found["test_images"]), (&45.into(), &60.into()));
    assert!(said.contains("45 of 60 images have a label"), "{said}");
    // Without its first class, a test set numbers its classes otherwise.
    std::fs::rename(world.at("set-pictures").join(drawn::CLASSES[0]), world.at("away")).unwrap();
    let mut sorted = drawn::CLASSES.to_vec();
    sorted.sort_unstable();
    world.done(&["pack", "set-pictures", "--out", "fewer"]);
    let (found, said) = knn("set", "fewer");
    assert!(said.contains("matched by name"), "{said}");
    assert!(found["top1"].as_f64().unwrap() > 0.9, "each image is its own neighbor: {found}");
    std::fs::rename(world.at("away"), world.at("set-pictures/another")).unwrap();
    world.done(&["pack", "set-pictures", "--out", "other"]);
    let eval = ["eval", "knn", "--run", "run", "--train", "set", "--test", "other"];
    world.fails(&eval, 2, &["another", "matched by name"]);
}

/// A tar with these entries.
fn tar(path: &Path, entries: &[(String, Vec<u8>)]) {
    let mut builder = tar::Builder::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    builder.finish().unwrap();
}

fn image(number: u64) -> Vec<u8> {
    drawn::png(&drawn::image(3, (number % 10) as usize, number, 20))
}

/// What a manifest of shards says of classes: their names, and how many samples have one.
fn classes(world: &World, data: &[&str]) -> (usize, u64) {
    let shown = world.done(&[&["manifest", "show"], data].concat());
    (shown["classes"].as_u64().unwrap() as usize, shown["labelled_samples"].as_u64().unwrap())
}

/// Which entries are images and classes is said where it does not follow from their names; shards can be packed anew.
#[test]
fn images_and_classes_are_chosen_among_the_entries_of_a_key() {
    let world = World::new();
    let entries = (0..12u64).flat_map(|i| {
        let json = format!(r#"{{"label": "{}", "number": {}}}"#, ["cat", "dog"][i as usize % 2], i % 3);
        [
            (format!("{i:02}.input.png"), image(i)),
            (format!("{i:02}.json"), json.into_bytes()),
            (format!("{i:02}.target.png"), image(100 + i)),
        ]
    });
    tar(&world.at("pairs.tar"), &entries.collect::<Vec<_>>());
    let several = ["input.png, target.png", "data.image", "--image"];
    world.fails(&["manifest", "show", "pairs.tar"], 2, &several);
    let inputs = ["pairs.tar", "--image", "input.png"];
    assert_eq!(classes(&world, &inputs), (0, 0));
    assert_eq!(classes(&world, &[&inputs[..], &["--label-field", "number"]].concat()).1, 12);
    assert_eq!(classes(&world, &[&inputs[..], &["--label-field", "label"]].concat()), (2, 12));
    let batches = |image: &str| {
        let image = format!("data.image={image}");
        world.done(&[&["digest"], TINY, &["--data", "pairs.tar", "--batches", "3", "--set", &image]].concat())
    };
    assert_ne!(batches("input.png")["digest"], batches("target.png")["digest"]);
    let named = ["--image", "input.png", "--label-field", "label"];
    world.done(&[&["manifest", "build", "pairs.tar", "--out", "pairs.json"], &named[..]].concat());
    world.done(&["manifest", "verify", "pairs.json"]);
    // Packed anew, as shards with classes of their own.
    world.done(&[&["pack", "pairs.tar", "--out", "from-tar"], &named[..]].concat());
    world.done(&["pack", "pairs.json", "--out", "from-manifest", "--zstd", "3"]);
    for data in ["pairs.json", "from-tar", "from-manifest"] {
        assert_eq!(classes(&world, &[data]), (2, 12), "{data}");
    }
    world.done(&["pack", "from-manifest", "--out", "again"]);
    assert_eq!(classes(&world, &["again"]), (2, 12));
    world.done(&["manifest", "verify", "again/manifest.json"]);
}

/// Class folders inside a tar are classes, as they are on a disk, unless entries say classes themselves.
#[test]
fn folders_in_tars_are_classes() {
    let world = World::new();
    let images =
        |class: &str, count: u64| (0..count).map(|i| (format!("{class}/{i}.png"), image(i))).collect::<Vec<_>>();
    let both = [images("bee", 4), images("ant", 4)].concat();
    tar(&world.at("classes.tar"), &both);
    let labeled: Vec<_> = both.iter().map(|(name, _)| (name.replace(".png", ".cls"), b"0".to_vec())).collect();
    tar(
        &world.at("labeled.tar"),
        &[both.clone(), labeled]
            .concat()
            .into_iter()
            .collect::<std::collections::BTreeMap<_, _>>()
            .into_iter()
            .collect::<Vec<_>>(),
    );
    tar(&world.at("one.tar"), &images("part-0", 4));
    for (data, wanted) in [("classes.tar", (2, 8)), ("labeled.tar", (1, 8)), ("one.tar", (0, 0))] {
        assert_eq!(classes(&world, &[data]), wanted, "{data}");
    }
    world.done(&["pack", "classes.tar", "--out", "packed"]);
    world.done(&["pack", "labeled.tar", "--out", "relabeled"]);
    assert_eq!((classes(&world, &["packed"]), classes(&world, &["relabeled"])), ((2, 8), (1, 8)));
}

/// A file of labels serves folders, lists and shards alike, and says what it leaves without one.
#[test]
fn labels_come_from_a_file_beside_the_images() {
    let world = World::new();
    flat(&world, "photos", 12);
    let rows: String = (0..10).map(|i| format!("IMG_{i:04},{}\n", ["x", "y"][i % 2])).collect();
    std::fs::write(world.at("labels.csv"), format!("id,breed\n{rows}")).unwrap();
    world.done(&["pack", "photos", "--out", "plain"]);
    world.done(&["pack", "photos", "--out", "packed", "--labels", "labels.csv"]);
    assert_eq!(classes(&world, &["packed"]), (2, 10));
    for data in ["photos", "plain", "plain/shard-000000.tar"] {
        assert_eq!(classes(&world, &[data, "--labels", "labels.csv"]), (2, 10), "{data}");
        let said = world.run(&["manifest", "show", data, "--labels", "labels.csv"]);
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains("names 10 of 12 images"), "{data}: {said}");
    }
    std::fs::write(world.at("other.csv"), "dog.jpg,x\ncat.jpg,y\n").unwrap();
    world.fails(&["manifest", "show", "photos", "--labels", "other.csv"], 2, &["other.csv", "dog.jpg", "IMG_0000.png"]);
    let set = ["--set", "data.labels=labels.csv", "--set", "data.part=[0.0, 0.9]", "--batches", "1"];
    world.done(&[&["digest"], TINY, &["--data", "photos"], &set[..]].concat());
}

/// What people name by mistake is called what it is, with what would be right.
#[test]
fn what_is_no_data_set_is_called_what_it_is() {
    let world = World::new();
    flat(&world, "photos", 3);
    std::fs::write(world.at("photos/IMG_0003.HEIC"), "x").unwrap();
    std::fs::write(world.at("a.zip"), b"PK\x03\x04").unwrap();
    std::fs::write(world.at("movie.mp4"), b"\0\0\0\x18ftypmp42").unwrap();
    std::fs::write(world.at("mixed.txt"), "# mine\nphotos/IMG_0000.png\nphotos/notes.md\n").unwrap();
    std::fs::write(world.at("twice.txt"), "photos/IMG_0000.png a\nphotos/IMG_0000.png b\n").unwrap();
    for (data, wanted) in [
        ("a.zip", "zip"),
        ("movie.mp4", "expected a manifest"),
        ("photos/*.png", "name the folder"),
        ("photos/IMG_0000.png", "name the folder"),
        ("mixed.txt", "line 3: \"photos/notes.md\" is not an image"),
        ("twice.txt", "line 2: photos/IMG_0000.png is of \"b\" here and of \"a\" on line 1"),
    ] {
        world.fails(&["manifest", "show", data], 2, &[data, wanted]);
    }
    let said = world.run(&["manifest", "show", "photos"]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("IMG_0003.HEIC: convert them to JPEG"), "{said}");
    std::fs::create_dir(world.at("one")).unwrap();
    std::fs::copy(world.at("photos/IMG_0000.png"), world.at("one/a.png")).unwrap();
    world.fails(&[&["digest"], TINY, &["--data", "one"]].concat(), 2, &["one: holds one image", "at least 2"]);
    world.done(&["pack", "photos", "--out", "packed", "--shard-bytes", "1MiB"]);
    world.fails(&["pack", "photos", "--out", "other", "--shard-bytes", "lots"], 2, &["256MiB"]);
}

/// -1 in a list is no label, and training with a probe takes images without one.
#[cfg(feature = "trainer")]
#[test]
fn half_of_the_labels_are_enough() {
    let world = World::new();
    flat(&world, "photos", 24);
    let rows: String = (0..24).map(|i| format!("photos/IMG_{i:04}.png,{}\n", [-1, 0, 1][i % 3])).collect();
    std::fs::write(world.at("half.csv"), rows).unwrap();
    assert_eq!(classes(&world, &["half.csv"]), (2, 16));
    let probe = ["--set", "train.probe=true", "--set", "train.steps=4", "--run", "run"];
    world.done(&[&["train"], TINY, &["--data", "half.csv"], &probe[..]].concat());
    let accuracy = |line: &serde_json::Value| line["probe_accuracy"].as_f64().unwrap();
    assert!(world.steps("run").iter().all(|line| (0.0..=1.0).contains(&accuracy(line))));
    // A set with names and one with numbers alone cannot be held against each other.
    let names: String = (0..24).map(|i| format!("photos/IMG_{i:04}.png,{}\n", ["cat", "dog"][i % 2])).collect();
    std::fs::write(world.at("names.csv"), names).unwrap();
    let numbered = (0..8u64)
        .flat_map(|i| [(format!("{i}.cls"), (i % 2).to_string().into_bytes()), (format!("{i}.png"), image(i))]);
    tar(&world.at("numbers.tar"), &numbered.collect::<Vec<_>>());
    let sets = ["eval", "knn", "--run", "run", "--train", "names.csv", "--test", "numbers.tar"];
    world.fails(&sets, 2, &["names.csv have names", "numbers.tar are numbers alone"]);
    // Evaluating while training meets it before the first step.
    let every = ["--set", "eval.every=1", "--set", "eval.test=numbers.tar", "--run", "other"];
    let train = [&["train"], TINY, &["--data", "names.csv"], &every[..]].concat();
    world.fails(&train, 2, &["numbers.tar are numbers alone"]);
    assert!(!world.at("other/checkpoints").exists());
}

/// A report shows no other images than those that were embedded.
#[cfg(feature = "trainer")]
#[test]
fn a_report_does_not_show_other_images_than_were_embedded() {
    let world = World::new();
    flat(&world, "photos", 16);
    let steps = ["--set", "train.steps=2", "--run", "run"];
    world.done(&[&["train"], TINY, &["--data", "photos"], &steps[..]].concat());
    world.done(&["embed", "--run", "run"]);
    let page = || {
        world.done(&["report", "--run", "run"]);
        crate::world::text(&world.at("run/report.html"))
    };
    assert!(page().contains("<h2>Nearest neighbors</h2>"));
    std::fs::copy(world.at("photos/IMG_0003.png"), world.at("photos/AAA.png")).unwrap();
    let changed = page();
    assert!(!changed.contains("<h2>Nearest neighbors</h2>") && changed.contains("run `embed` again"));
    assert!(changed.contains("t-SNE"), "what needs no images is there");
    std::fs::rename(world.at("photos"), world.at("elsewhere")).unwrap();
    assert!(page().contains("no images of nearest neighbors"));
}
