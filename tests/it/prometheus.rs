//! A real Prometheus scrapes a real fleet, and every expression of every dashboard and rule finds data in it.

use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::dashboards;
use crate::pages::Running as Trainer;
use crate::service::{Node, fed, get, until};
use crate::world::{World, text};

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A free port of this machine, in all likelihood still free when it is used.
fn free() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn query(prometheus: &str, expression: &str) -> Value {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    let (_, page) =
        get(prometheus, &format!("/api/v1/query?query={}", expression.bytes().map(escape).collect::<String>()));
    // The answer may come in chunks, with their lengths on lines of their own.
    let from = page.find("{\"status\"").unwrap_or_else(|| panic!("{expression}: {page}"));
    let body: String = page[from..].split("\r\n").step_by(2).collect();
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{expression}: {error}: {page}"))
}

#[test]
fn every_expression_finds_data_in_a_real_prometheus() {
    if Command::new("prometheus").arg("--version").output().is_err() {
        eprintln!("prometheus is not installed: dashboards and rules are not tried on a real one");
        return;
    }
    let world = World::new();
    world.draw("pictures", 0, 60);
    std::fs::write(world.at("pictures/disc/broken.jpg"), b"no picture").unwrap();
    world.done(&["pack", "pictures", "--out", "set", "--shard-bytes", "60000"]);
    let manifest = world.arg("set/manifest.json");
    let damage = ["--set", "data.max_damaged=0.1"];
    let node = Node::start(&world, &[&["--manifest", &manifest], &damage[..]].concat());
    let test = format!("eval.test={manifest}");
    let eval = [&damage[..], &["--set", "eval.every=5", "--set", &test, "--set", "eval.knn.k=5"]].concat();
    let often = ["--set", "checkpoint.every=15"];
    let alone = Trainer::start(&world, "alone", &manifest, &[&eval[..], &often].concat());
    let far = Trainer::start(&world, "fed", &manifest, &[&damage[..], &often, &["--feed", &node.url]].concat());
    let (alone, far) = (&alone.address, &far.address);
    // As in dashboards/prometheus.yml, but every second and with no pause before an alert fires; one target is not there.
    let rules = |name: &str| text(&dashboards::folder().join("rules").join(name));
    std::fs::write(world.at("recording.yml"), rules("recording.yml")).unwrap();
    let eager: Vec<String> =
        rules("alerts.yml")
            .lines()
            .map(|line| {
                if line.trim_start().starts_with("for: ") { line.replace(line.trim(), "for: 0s") } else { line.into() }
            })
            .collect();
    std::fs::write(world.at("alerts.yml"), eager.join("\n")).unwrap();
    let (address, missing) = (free(), free());
    let config = format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [recording.yml, alerts.yml]\n\
         scrape_configs:\n  - job_name: simclr\n    static_configs: [{{ targets: ['{alone}', '{far}', '{}', '{missing}'] }}]\n",
        node.pages
    );
    std::fs::write(world.at("prometheus.yml"), config).unwrap();
    let flags = ["--config.file=prometheus.yml", "--storage.tsdb.path=data"];
    let prometheus = Command::new("prometheus")
        .args(flags)
        .arg(format!("--web.listen-address={address}"))
        .current_dir(world.at(""))
        .stderr(Stdio::null())
        .spawn();
    let _prometheus = Running(prometheus.unwrap());
    until("Prometheus is ready", || {
        std::net::TcpStream::connect(&address).is_ok() && get(&address, "/-/ready").0 == 200
    });
    let found =
        |expression: &str| query(&address, expression)["data"]["result"].as_array().is_some_and(|r| !r.is_empty());
    until("the fleet is scraped", || found("count(rate(simclr_trainer_steps_total[10s])) == 2"));

    for name in dashboards::DASHBOARDS {
        for expression in dashboards::all_expressions(&dashboards::dashboard(name)) {
            let asked = expression
                .replace("$__rate_interval", "10s")
                .replace("$__range", "1m")
                .replace("$job", ".+")
                .replace("$instance", ".+");
            let answer = query(&address, &asked);
            assert_eq!(answer["status"], "success", "{name}: {asked}: {answer}");
            if asked.contains("refused") {
                // Whoever asks for another plan.
                let stranger = world.run(&fed(&manifest, &node.url, &["--set", "seed=2", "--batches", "1"]));
                assert_eq!(stranger.status.code(), Some(2));
            }
            until(&format!("{name}: data for {asked}"), || found(&asked));
        }
    }
    for rule in rules("recording.yml").split("- record: ").skip(1) {
        let name = rule.lines().next().unwrap();
        until(name, || found(name));
    }
    // Rules that can't be worked out say so.
    let (_, page) = get(&address, "/api/v1/rules");
    assert!(page.contains("SimclrTrainerWaitsForData") && !page.contains("\"health\":\"err\""), "{page}");
}
