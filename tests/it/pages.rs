//! The page of a running training and of a data service: what it asks for, and what a real browser makes of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::service::{Node, get, until};
use crate::world::{TINY, World};

/// A training that goes on until it is killed, and where its pages are.
pub struct Running {
    child: Child,
    /// Host and port of the pages.
    pub address: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// Starts it in the folder `run`, and waits for its third step.
    pub fn start(world: &World, run: &str, manifest: &str, more: &[&str]) -> Self {
        let fixed = ["train", "--run", run, "--manifest", manifest, "--set", "machine.metrics=127.0.0.1:0"];
        let long = ["--set", "train.steps=0", "--set", "schedule.epochs=100000"];
        let mut child = world.start(&[&fixed, TINY, &long, more].concat());
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let address = line.trim().trim_start_matches("metrics: http://").trim_end_matches("/metrics").to_owned();
        std::thread::spawn(move || said.read_to_end(&mut Vec::new()));
        let running = Self { child, address };
        until("step 3", || {
            let (code, page) = get(&running.address, "/metrics");
            let steps = page.lines().find_map(|line| line.strip_prefix("simclr_trainer_steps_total "));
            code == 200 && steps.is_some_and(|steps| steps.trim().parse::<f64>().unwrap() >= 3.0)
        });
        running
    }

    fn json(&self, path: &str) -> Value {
        json(&self.address, path)
    }
}

/// What the page at `path` holds.
fn json(address: &str, path: &str) -> Value {
    let (code, page) = get(address, path);
    assert_eq!(code, 200, "{path}: {page}");
    serde_json::from_str(page.split_once("\r\n\r\n").unwrap().1).unwrap_or_else(|e| panic!("{path}: {e}: {page}"))
}

/// The body of an answer that is no text.
fn bytes(address: &str, path: &str) -> Vec<u8> {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    answer.split_off(head + 4)
}

#[test]
fn a_training_shows_how_it_goes_and_what_is_in_any_batch() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let run = Running::start(&world, "run", &manifest, &[]);
    let status = run.json("/status");
    assert_eq!((&status["kind"], &status["state"]), (&"train".into(), &"training".into()));
    assert!(status["sentence"].as_str().unwrap().starts_with("data wait: "), "{status}");
    until("two points", || run.json("/history?after=0")["next"].as_u64().unwrap() >= 2);
    let past = run.json("/history?after=0");
    let point = past["points"].as_array().unwrap().last().unwrap();
    assert!(point["images_per_second"].as_f64().unwrap() > 0.0 && point["loss"].as_f64().unwrap() > 0.0, "{point}");
    assert!(point["stall"]["decode"].is_number() && point["busy"]["augment"].is_number(), "{point}");
    let next = past["next"].as_u64().unwrap();
    assert!(run.json(&format!("/history?after={next}"))["points"].as_array().unwrap().len() <= 2, "only what is new");

    // Any batch, long past or long to come.
    for batch in [0, 7, 1_000_000] {
        let told = run.json(&format!("/batch/{batch}?from=2&images=3"));
        assert_eq!((told["batch"].as_u64(), told["total_images"].as_u64()), (Some(batch), Some(8)));
        let images = told["images"].as_array().unwrap();
        assert_eq!(images.len(), 3);
        assert_eq!((images[0]["image"].as_u64(), images[0]["width"].as_u64()), (Some(2), Some(20)));
        assert_eq!(images[0]["views"].as_array().unwrap().len(), 2);
        let image = |which: &str| {
            let png = bytes(&run.address, &format!("/batch/{batch}/2/{which}.png"));
            simclr_image::decode::decode(&png, 1 << 20).unwrap_or_else(|damage| panic!("{which}: {damage}"))
        };
        let (original, one, two) = (image("original"), image("0"), image("1"));
        assert_eq!((original.width, one.width, two.width), (20, 16, 16));
        assert_ne!(one, two);
    }
    for (path, wanted) in [
        ("/batch/7/8/0.png", "8 images"),
        ("/batch/7/0/2.png", "2: expected original or"),
        ("/batch/7/0/0.gif", ".png"),
    ] {
        let (code, page) = get(&run.address, path);
        assert!(code == 404 && page.contains(wanted), "{path}: {page}");
    }
    assert_eq!(run.json("/quarantine")["total"], 0);
}

#[test]
fn damaged_samples_are_listed() {
    let world = World::new();
    world.draw("pictures", 0, 40);
    std::fs::write(world.at("pictures/disc/broken.jpg"), b"no picture").unwrap();
    world.done(&["pack", "pictures", "--out", "set", "--shard-bytes", "60000"]);
    let manifest = world.arg("set/manifest.json");
    let run = Running::start(&world, "run", &manifest, &["--set", "data.max_damaged=0.1"]);
    until("it is found", || run.json("/quarantine")["total"] == 1);
    let entry = &run.json("/quarantine")["entries"][0];
    assert!(entry["entry"].as_str().unwrap().ends_with(".jpg") && entry["reason"] == "unknown_format", "{entry}");
}

#[test]
fn a_token_guards_samples_and_settings_but_not_probes() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    std::fs::write(world.at("token"), "let me in\n").unwrap();
    let token = format!("machine.service.token={}", world.arg("token"));
    let run = Running::start(&world, "run", &manifest, &["--set", &token]);
    for path in ["/status", "/history", "/quarantine", "/batch/0", "/batch/0/0/original.png"] {
        assert_eq!(get(&run.address, path).0, 401, "{path}");
    }
    for path in ["/", "/metrics", "/livez", "/readyz"] {
        assert_eq!(get(&run.address, path).0, 200, "{path}");
    }
    let shown = "/status HTTP/1.1\r\nAuthorization: Bearer let me in\r\nX:";
    assert_eq!(get(&run.address, shown).0, 200);
}

/// What a real browser shows after some seconds at the page, if there is one on this machine.
fn browsed(world: &World, address: &str) -> Option<String> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let there = |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    let browser = names.iter().find(there)?;
    let profile = format!("--user-data-dir={}", world.arg("browser"));
    let flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", &profile, "--dump-dom"];
    let began = Instant::now();
    // Time is the page's own: the browser goes on as soon as nothing is under way.
    let output = Command::new(browser)
        .args(flags)
        .args(["--virtual-time-budget=6000", &format!("http://{address}/")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    println!("{browser}: {:.1} s", began.elapsed().as_secs_f64());
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_browser_shows_the_page() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let run = Running::start(&world, "run", &manifest, &[]);
    let Some(shown) = browsed(&world, &run.address) else {
        println!("no Chromium on this machine: the page is not looked at");
        return;
    };
    assert!(shown.contains("Data wait: "), "the sentence is not there: {shown}");
    assert!(shown.contains("data-is=\"live\"") && shown.contains("data-kind=\"train\""), "{shown}");
    drop(run);
    let node = Node::start(&world, &["--manifest", &manifest]);
    std::thread::sleep(Duration::from_millis(2500));
    let shown = browsed(&world, &node.pages).unwrap();
    assert!(shown.contains("data-kind=\"serve\"") && shown.contains(&node.plan_digest[..8]), "{shown}");
}
