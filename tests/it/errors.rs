//! Wrong input: exit code 2 and a message that names what, where, found, expected.

use crate::world::{TINY, World};

#[test]
fn wrong_configurations_are_named() {
    let world = World::new();
    let manifest = world.packed("set", 40, &[]);
    let digest = |more: &[&str], wanted: &[&str]| {
        world.fails(&[&["digest"], TINY, &["--manifest", &manifest], more].concat(), 2, wanted);
    };
    digest(&["--set", "order.lane=4"], &["order.lane", "did you mean lanes?"]);
    digest(&["--set", "recipe.ops.0.scal=1"], &["ops", "scal"]);
    digest(&["--set", "batch.size=48"], &["invalid value 48 for batch.size", "40 samples"]);
    digest(&["--set", "order.lanes=3"], &["invalid value 3 for order.lanes", "nearest valid sizes: 6, 9"]);
    digest(&["--set", "data.limit=41"], &["invalid value 41 for data.limit", "40 samples"]);
    digest(&["--set", "recipe.ops=[]"], &["recipe.ops", "random_resized_crop"]);
    digest(&["--set", "machine.batches_ahead=0"], &["machine.batches_ahead"]);
    let branch = "recipe.branches=[{ size = 16, views = 2, ops = [{ op = \"sobel\", probability = 0.5 }] }]";
    digest(&["--set", branch], &["recipe.branches.0.ops", "random_resized_crop or center_crop"]);
    let ops = "recipe.ops=[{ op = \"center_crop\", fraction = 0.875, interpolation = \"bicubic\" }, \
        { op = \"solarize\", probability = 1, threshold = 300 }]";
    digest(&["--set", ops], &["recipe.ops", "threshold 300", "255"]);
    world.fails(&["bench", "--manifest", &manifest, "--feed", "0"], 2, &["--target-rate must be greater than 0"]);
    world.fails(&["digest", "--config", "nowhere.toml"], 2, &["nowhere.toml", "not a preset"]);
}

#[test]
fn wrong_manifests_and_shards_are_named() {
    let world = World::new();
    let manifest = world.packed("set", 40, &[]);
    world.fails(&["digest", "--manifest", "nowhere.json"], 2, &["nowhere.json", "no such file or directory"]);
    let text = std::fs::read_to_string(&manifest).unwrap();
    let changed = text.replacen("\"digest\":\"", "\"digest\":\"0", 1);
    std::fs::write(world.at("changed.json"), changed).unwrap();
    world.fails(&["manifest", "show", "changed.json"], 2, &["changed.json", "manifest digest mismatch (recorded 0"]);
    std::fs::write(world.at("empty.json"), "{}").unwrap();
    world.fails(&["manifest", "show", "empty.json"], 2, &["empty.json", "missing field"]);
    world.fails(&["manifest", "build", "set/none-*.tar", "--out", "m.json"], 2, &["none-*.tar", "matches no file"]);
    world.fails(&["manifest", "build", "--out", "m.json"], 2, &["SHARDS"]);
    world.fails(&["manifest", "build", "set", "--out", "m.json"], 2, &["is a directory"]);
    world.fails(&["pack", "nowhere", "--out", "packed"], 2, &["nowhere", "no such file or directory"]);
    world.fails(&["pack", "set-pictures", "--out", "set"], 2, &["set", "already exists"]);
    // A shard that is not the manifest's stops the stream before it gives other bytes.
    let shard = world.at("set/shard-000000.tar");
    let mut bytes = std::fs::read(&shard).unwrap();
    bytes[530] ^= 1;
    std::fs::write(&shard, &bytes).unwrap();
    let digest = [&["digest"], TINY, &["--manifest", &manifest, "--batches", "5"]].concat();
    world.fails(&digest, 2, &["shard-000000.tar", "XXH3", "manifest verify"]);
}

#[test]
fn too_much_damage_stops_the_stream_and_names_the_last_sample() {
    let world = World::new();
    world.draw("pictures", 0, 40);
    for i in [3, 13, 23] {
        std::fs::write(world.at(&format!("pictures/triangle/{i:04}.png")), b"no picture at all").unwrap();
    }
    world.done(&["pack", "pictures", "--out", "set"]);
    let digest = |share: &str| {
        let share = format!("data.max_damaged={share}");
        world.run(
            &[&["digest"], TINY, &["--manifest", "set/manifest.json", "--batches", "5", "--json", "--set", &share]]
                .concat(),
        )
    };
    let output = digest("0.05");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("data.max_damaged") && stderr.contains("triangle/00") && stderr.contains("unknown_format"),
        "{stderr}"
    );
    let object: serde_json::Value = serde_json::from_slice(&digest("0.1").stdout).unwrap();
    assert_eq!(object["damaged"].as_array().unwrap().len(), 3);
}

/// A result takes the place of a result of its kind, and of nothing else.
#[test]
fn what_was_not_meant_is_not_replaced() {
    let world = World::new();
    let manifest = world.packed("set", 40, &[]);
    let shard = world.arg("set/shard-000000.tar");
    let before = std::fs::read(&shard).unwrap();
    world.fails(&["manifest", "build", &shard, "--out", &shard], 2, &["shard-000000.tar", "already there"]);
    assert_eq!(std::fs::read(&shard).unwrap(), before);
    world.fails(&["manifest", "convert", &manifest, "--wids", &manifest], 2, &["is the manifest itself"]);
    std::fs::write(world.at("notes.png"), "mine").unwrap();
    let preview = [&["preview"], TINY, &["--data", &manifest, "--out", "notes.png"]].concat();
    world.fails(&preview, 2, &["notes.png", "already there"]);
    std::fs::write(world.at("notes.txt"), "# precious\n").unwrap();
    let verify = ["manifest", "verify", &manifest, "--decode", "--quarantine", "notes.txt"];
    world.fails(&verify, 2, &["notes.txt: line 1", "quarantine"]);
    assert_eq!(std::fs::read(world.at("notes.txt")).unwrap(), b"# precious\n");
    // A link stays one.
    std::os::unix::fs::symlink(world.at("real.json"), world.at("link.json")).unwrap();
    std::fs::write(world.at("real.json"), "").unwrap();
    world.done(&["manifest", "build", &shard, "--out", "link.json"]);
    assert!(std::fs::symlink_metadata(world.at("link.json")).unwrap().is_symlink());
    assert_eq!(world.done(&["manifest", "show", "real.json"])["shards"], 1);
}

/// Nothing waits for a pipe that nobody writes to.
#[test]
fn a_shard_that_is_a_pipe_is_refused() {
    let world = World::new();
    let manifest = world.packed("set", 40, &[]);
    std::fs::remove_file(world.at("set/shard-000000.tar")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(world.at("set/shard-000000.tar")).status().unwrap();
    assert!(made.success());
    let digest = [&["digest"], TINY, &["--data", &manifest, "--batches", "2"]].concat();
    world.fails(&digest, 2, &["shard-000000.tar", "not a regular file"]);
}

/// A server that takes a connection and says nothing is waited for, but not in silence.
#[test]
fn a_server_that_says_nothing_is_named() {
    let world = World::new();
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/manifest.json", server.local_addr().unwrap());
    let mut child = world.command(&["manifest", "show", &url]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let said = lines.map_while(Result::ok).find(|line| line.contains("no complete response"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(said.is_some_and(|line| line.contains("127.0.0.1")));
}
