//! Who gets in where: the page's connections, the names it answers to, and what is said when others can reach it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use crate::service::{Node, fed, local, until};
use crate::service_faults::{from_afar, is_closed};
use crate::world::{TINY, World};

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
    world.fails(&[&serve, TINY, &wrong].concat(), 2, &["machine.service.names.0 = \"http://node7:9464\""]);
}

#[test]
fn a_page_that_others_reach_says_what_they_can_overhear() {
    let world = World::new();
    let manifest = world.packed("set", 60, &[]);
    std::fs::write(world.at("token"), "a long secret\n").unwrap();
    let token = ["--token", "token"];
    for (address, more, wanted) in [
        ("0.0.0.0:0", &token[..], Some("sends the token of machine.service.token in clear")),
        ("0.0.0.0:0", &[], Some("without machine.service.token everyone sees pictures")),
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
