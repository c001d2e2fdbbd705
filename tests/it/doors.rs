//! Who gets in where: the page's connections, the names it answers to, and what is said when others can reach it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;

use crate::service::{Node, fed, local, until};
use crate::service_faults::{from_afar, is_closed};
use crate::sources::Bucket;
use crate::world::{TINY, World, text};

/// The pages that show samples and settings.
const GUARDED: [&str; 5] = ["/status", "/history", "/quarantine", "/batch/0", "/batch/0/0/original.png"];

/// The pages for machines, and the frame in which a browser shows the others.
const OPEN: [&str; 4] = ["/", "/metrics", "/livez", "/readyz"];

/// The status of a page that is asked for with these header lines, and all of the answer.
fn ask(address: &str, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer).into_owned();
    (text.split(' ').nth(1).unwrap().parse().unwrap(), text)
}

#[test]
fn idle_connections_keep_nobody_from_the_page_or_the_stream() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let node = Node::start(&world, &["--manifest", &manifest]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut idle: Vec<TcpStream> = (0..300).map(|_| from_afar(&runtime, "127.0.0.2", &node.pages)).collect();
    for (i, stream) in idle.iter_mut().enumerate().filter(|(i, _)| i % 2 == 0) {
        let _ = stream.write_all(&b"GET /metrics"[..i % 12]);
    }
    assert_eq!((node.get("/livez").0, node.get("/metrics").0), (200, 200));
    let files = std::fs::read_dir(format!("/proc/{}/fd", node.child.id())).unwrap();
    let sockets = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
    let sockets = sockets.filter(|target| target.to_string_lossy().starts_with("socket:")).count();
    assert!(sockets < 100, "{sockets} sockets are open for 300 idle connections");
    assert_eq!(world.done(&fed(&manifest, &node.url, &[])), local(&world, &manifest, &[]));
    // Those that were taken end too, since they ask for nothing.
    until("their end", || idle.iter_mut().all(is_closed));
    assert_eq!(ask(&node.pages, "/livez", "Host: localhost\r\n").0, 200);
}

#[test]
fn samples_are_shown_under_names_of_this_machine_only() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    let names = ["--set", "machine.service.names=[\"node7.example.org\"]"];
    let node = Node::start(&world, &[&["--manifest", &manifest], &names[..]].concat());
    until("it is ready", || node.get("/readyz").0 == 200);
    let host = |path: &str, name: &str| ask(&node.pages, path, &format!("Host: {name}\r\n"));
    for path in GUARDED {
        for ours in [&node.pages, "localhost:9464", "[::1]", "node7.example.org", "NODE7.example.org:80"] {
            assert_eq!(host(path, ours).0, 200, "{path} of {ours}");
        }
        for theirs in ["rebind.example", "127.0.0.1.rebind.example:9464", "localhost@rebind.example"] {
            let (code, page) = host(path, theirs);
            assert!(code == 421 && page.contains(theirs) && page.contains("machine.service.names"), "{path}: {page}");
        }
        assert_eq!(ask(&node.pages, path, "Host: localhost\r\nHost: rebind.example\r\n").0, 421, "{path}");
    }
    for path in OPEN {
        assert_eq!(host(path, "rebind.example").0, 200, "{path} is for everyone");
    }
    let wrong = ["--set", "machine.service.names=[\"http://node7:9464\"]"];
    let serve = ["serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--manifest", &manifest];
    world.fails(
        &[&serve, TINY, &wrong].concat(),
        2,
        &["invalid value \"http://node7:9464\" for machine.service.names.0"],
    );
}

#[test]
fn a_page_that_others_reach_says_what_they_can_overhear() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    std::fs::write(world.at("token"), "a long secret\n").unwrap();
    let token = ["--token", "token"];
    for (address, more, wanted) in [
        ("0.0.0.0:0", &token[..], Some("sends the token of machine.service.token in clear")),
        ("0.0.0.0:0", &[], Some("without machine.service.token everyone sees images")),
        ("127.0.0.1:0", &token, None),
    ] {
        let serve = ["serve", "--listen", "127.0.0.1:0", "--metrics", address, "--manifest", &manifest];
        let mut child = world.start(&[&serve, TINY, more].concat());
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        child.kill().unwrap();
        let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
        match wanted {
            Some(wanted) => assert!(said.contains("warning: --metrics") && said.contains(wanted), "{said}"),
            None => assert!(!said.contains("warning"), "{said}"),
        }
    }
}

/// Names come from whoever made the tar; a terminal takes orders from text, and a reader believes what begins like ours.
#[test]
fn names_in_a_tar_cannot_steer_a_terminal() {
    let world = World::new();
    let mut builder = tar::Builder::new(Vec::new());
    let image = simclr_image::drawn::png(&simclr_image::drawn::image(3, 0, 0, 20));
    for i in 0..8 {
        let name = format!("a{i}\u{1b}[2K\u{1b}[1A\r\u{9b}2J\u{202e}\nerror: forged\nwarning: forged.png");
        let data = if i < 4 { &image[..] } else { b"no picture" };
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, data).unwrap();
    }
    std::fs::write(world.at("set.tar"), builder.into_inner().unwrap()).unwrap();
    let mut shown = false;
    let any_damage = ["--manifest", "m.json", "--batches", "1", "--set", "data.max_damaged=1.0"];
    let none = &any_damage[..4];
    let digest = [&["digest"], TINY].concat();
    for (args, changed) in [
        (vec!["manifest", "build", "set.tar", "--out", "m.json", "-v"], false),
        (vec!["manifest", "show", "m.json"], false),
        (vec!["manifest", "verify", "m.json"], false),
        ([&digest[..], &any_damage, &["-vv"]].concat(), false),
        ([&digest[..], none].concat(), false),
        (vec!["manifest", "verify", "m.json"], true),
    ] {
        if changed {
            let mut bytes = std::fs::read(world.at("set.tar")).unwrap();
            bytes.iter_mut().skip(1024).step_by(97).for_each(|byte| *byte ^= 1);
            std::fs::write(world.at("set.tar"), bytes).unwrap();
        }
        let output = world.run(&args);
        for said in [output.stdout, output.stderr] {
            let text = String::from_utf8(said).unwrap();
            let raw = text.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
            assert_eq!(raw, None, "{args:?}: {text:?}");
            assert!(!text.lines().any(|line| line.starts_with("error: forged")), "{args:?}: {text}");
            assert!(!text.lines().any(|line| line.starts_with("warning: forged")), "{args:?}: {text}");
            shown |= text.contains("\\u{1b}[2K");
        }
    }
    assert!(shown, "the names are told, as escapes");
}

/// What is read from a server can't make this machine read its own files, or show its credentials to another server.
#[test]
fn a_manifest_from_a_server_names_only_what_is_below_it() {
    let world = World::new();
    world.packed("bucket/set", 60, &[]);
    let good = std::fs::read_to_string(world.at("bucket/set/manifest.json")).unwrap();
    let shard = world.arg("bucket/set/shard-000000.tar");
    let bucket = Bucket::serve(&world.at(""));
    let digest = |manifest: &str| {
        let mut command = world.command(&[&["digest", "--batches", "2", "--manifest", manifest], TINY].concat());
        command.envs(bucket.environment("secret")).output().unwrap()
    };
    assert!(digest("s3://bucket/set/manifest.json").status.success());
    for named in
        [shard.as_str(), "../other/shard-000000.tar", "s3://other/shard-000000.tar", "http://127.0.0.1:9/a.tar"]
    {
        let text = good.replacen("\"shard-000000.tar\"", &serde_json::to_string(named).unwrap(), 1);
        assert_ne!(text, good);
        std::fs::write(world.at("bucket/set/named.json"), text).unwrap();
        let output = digest("s3://bucket/set/named.json");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{named}: {said}");
        assert!(said.contains("only what is below s3://bucket/set"), "{named}: {said}");
    }
    // A local one is its owner's, who may name any place.
    let elsewhere = good.replacen("\"shard-000000.tar\"", &serde_json::to_string(&shard).unwrap(), 1);
    std::fs::create_dir(world.at("mine")).unwrap();
    for name in std::fs::read_dir(world.at("bucket/set")).unwrap().flatten() {
        if name.file_name() != "shard-000000.tar" {
            std::fs::copy(name.path(), world.at("mine").join(name.file_name())).unwrap();
        }
    }
    std::fs::write(world.at("mine/manifest.json"), elsewhere).unwrap();
    assert!(digest("mine/manifest.json").status.success());
}

/// Each line of the threat model names the test that holds it.
#[test]
fn the_threat_model_names_tests_that_exist() {
    fn rust(folder: &Path, found: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                rust(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push_str(&text(&path));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    ["src", "pipeline", "trainer", "tests"].iter().for_each(|folder| rust(&root.join(folder), &mut code));
    let model = text(&root.join("docs/security.md"));
    let rows: Vec<&str> = model.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| who")).collect();
    assert!(rows.len() > 10, "{rows:?}");
    for row in rows {
        let tests: Vec<&str> = row.rsplit(" | ").next().unwrap().split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test holds this: {row}");
        for test in tests {
            assert!(
                code.contains(&format!("#[test]\nfn {test}()")) || code.contains(&format!("    fn {test}()")),
                "{test}"
            );
        }
    }
}
