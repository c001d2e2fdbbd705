use super::*;
use crate::manifest::{ManifestError, Problem};

fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn scan_bytes(name: &str, bytes: &[u8]) -> ShardScan {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    scan(&Location::File(path), Extras::default()).unwrap()
}

const GOOD: &[(&str, &[u8])] = &[("a.jpg", b"AAAA"), ("a.cls", b"3\n"), ("d/b.PNG", b"BB"), ("d/b.cls", b"0")];

#[test]
fn samples_have_offset_size_and_label() {
    let tar = tar_of(GOOD);
    let scan = scan_bytes("s.tar", &tar);
    assert_eq!(scan.problems, []);
    assert_eq!(scan.samples.len(), 2);
    let b = &scan.samples[1];
    assert_eq!(
        (b.entry.as_str(), &b.label, &tar[b.offset as usize..][..b.size as usize]),
        ("d/b.PNG", &Label::Index(0), &b"BB"[..])
    );
    assert_eq!(scan.blake3, blake3::hash(&tar).into());
}

#[test]
fn a_zstd_shard_has_the_same_samples() {
    let tar = tar_of(GOOD);
    let plain = scan_bytes("s.tar", &tar);
    let zstd = scan_bytes("s.tar.zst", &zstd::encode_all(&tar[..], 3).unwrap());
    assert_eq!((&plain.samples, &plain.tar_blake3), (&zstd.samples, &zstd.tar_blake3));
    assert_ne!(plain.blake3, zstd.blake3);
}

#[test]
fn damage_is_named() {
    let check = |bytes: &[u8], wanted: &str| {
        let problems = scan_bytes("s.tar", bytes).problems;
        let text = format!("{problems:?}");
        assert!(text.contains(wanted), "{wanted:?} not in {text}");
    };
    let tar = tar_of(GOOD);
    check(&tar[..tar.len() - 1024], "without the end-of-archive");
    check(&tar[..515], "a.jpg");
    check(&[&tar[..], b"junk"].concat(), "data after the end");
    check(&[&tar[..], &tar[..]].concat(), "second archive");
    check(&tar_of(&[("a.jpg", b"A"), ("a.cls", b"cat")]), "ASCII digits");
    check(&tar_of(&[("a.jpg", b"A"), ("b.jpg", b"A"), ("a.cls", b"1")]), "tar --sort=name");
    check(b"BZh91AY&SY", "bzip2");
    check(&tar_of(&[("a.jpg", b"A"), ("b.jpg", b"A"), ("a.jpg", b"A")]), "duplicate key");
    check(&tar_of(&[("a.jpg", b"A"), ("a.png", b"A")]), "second image");
    let mut broken = tar.clone();
    broken[1024] ^= 1;
    check(&broken, "checksum");
}

#[test]
fn long_names_are_read_in_both_ways_that_tars_have() {
    let long = format!("{}/a.jpg", "folder".repeat(40));
    let gnu = scan_bytes("s.tar", &tar_of(&[(&long, b"A")]));
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("path", long.as_bytes())]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_path("short.jpg").unwrap();
    header.set_size(1);
    header.set_cksum();
    builder.append(&header, &b"A"[..]).unwrap();
    let pax = scan_bytes("s.tar", &builder.into_inner().unwrap());
    for scan in [gnu, pax] {
        assert_eq!((scan.samples[0].entry.as_str(), &scan.problems), (long.as_str(), &vec![]));
    }
}

#[test]
fn links_devices_and_paths_upwards_are_refused() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Char);
    header.set_path("device.jpg").unwrap();
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Link);
    header.set_size(0);
    builder.append_link(&mut header, "a.jpg", "/etc/passwd").unwrap();
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..9].copy_from_slice(b"../up.jpg");
    header.set_size(1);
    header.set_cksum();
    builder.append(&header, &b"A"[..]).unwrap();
    let text = format!("{:?}", scan_bytes("s.tar", &builder.into_inner().unwrap()).problems);
    assert!(text.matches("regular files only").count() == 2 && text.contains("relative path of plain parts"), "{text}");
}

#[test]
fn what_is_no_sample_is_passed_over_and_counted() {
    let json = br#"{"label": 2}"#;
    let tar = tar_of(&[
        ("._a.jpg", b"\0\x05"),
        ("a.jpg", b"A"),
        ("a.json", json),
        ("b.txt", b"a caption"),
        ("c.cls", b"1"),
        ("c.jpg", b"C"),
        ("d.JPG", b"D"),
        ("d.CLS", b" -1\n"),
        ("__e__.jpg", b"E"),
        ("__e__.cls.txt", b"3"),
        ("README.md", b"what this is"),
        ("__index__.json", b"{}"),
    ]);
    let scan = scan_bytes("s.tar", &tar);
    assert_eq!(scan.problems, []);
    let seen = |scan: &ShardScan| -> Vec<(String, Label)> {
        scan.samples.iter().map(|sample| (sample.entry.clone(), sample.label.clone())).collect()
    };
    let all = |a| [("a.jpg", a), ("c.jpg", Label::Index(1)), ("d.JPG", Label::None), ("__e__.jpg", Label::Index(3))];
    let owned = |all: [(&str, Label); 4]| all.map(|(name, label)| (name.to_owned(), label)).to_vec();
    assert_eq!(seen(&scan), owned(all(Label::None)));
    let passed = &scan.passed_over;
    assert_eq!((passed.nobodys, passed.without_image, passed.first_without_image.as_deref()), (1, 3, Some("b.txt")));
    assert_eq!(passed.unused, BTreeMap::from([("json".to_owned(), 1)]));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("s.tar"), &tar).unwrap();
    let extras = Extras { label_field: Some("label"), ..Extras::default() };
    let with_field = super::scan(&Location::File(dir.path().join("s.tar")), extras).unwrap();
    assert_eq!((seen(&with_field), with_field.problems), (owned(all(Label::Index(2))), vec![]));
}

#[test]
fn bounded_a_key_of_many_entries_is_told_in_few_words() {
    let names: Vec<String> = (0..3000).map(|i| format!("a.{}{i}", "x".repeat(50))).collect();
    let entries = [("a.jpg", &b"A"[..])].into_iter().chain(names.iter().map(|name| (name.as_str(), &b"x"[..])));
    let scan = scan_bytes("s.tar", &tar_of(&entries.collect::<Vec<_>>()));
    assert_eq!((scan.samples.len(), &scan.problems), (1, &vec![]));
    let unused = &scan.passed_over.unused;
    assert!(
        unused.len() <= MAX_UNUSED + 1 && unused.keys().all(|name| name.len() <= MAX_SHOWN_EXTENSION),
        "{unused:?}"
    );
}

#[test]
fn compression_is_told_by_the_first_bytes() {
    use std::io::Write;
    let tar = tar_of(GOOD);
    let plain = scan_bytes("s.tar", &tar);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    for (name, bytes) in [("s.tgz", gzip.finish().unwrap()), ("s.tar", zstd::encode_all(&tar[..], 3).unwrap())] {
        let packed = scan_bytes(name, &bytes);
        assert_eq!(
            (&packed.samples, &packed.tar_blake3, &packed.problems),
            (&plain.samples, &plain.tar_blake3, &vec![])
        );
    }
}

/// The packed shard's tar, unpacked: a header that announces `size` bytes, so many of them, and a sample.
fn zstd_bomb(kind: tar::EntryType, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_path("././@LongLink").unwrap();
    header.set_size(size);
    header.set_cksum();
    let mut packed = zstd::Encoder::new(Vec::new(), 1).unwrap();
    io::copy(&mut header.as_bytes().chain(io::repeat(b'a').take(size)), &mut packed).unwrap();
    io::copy(&mut &tar_of(GOOD)[..], &mut packed).unwrap();
    packed.finish().unwrap()
}

#[test]
fn bounded_a_long_name_or_header_is_refused_before_it_is_read() {
    for (kind, wanted) in [
        (tar::EntryType::GNULongName, "a long name of 67108864 bytes; expected at most 65536"),
        (tar::EntryType::XHeader, "a PAX header of 67108864 bytes; expected at most 1048576"),
    ] {
        let scan = scan_bytes("s.tar.zst", &zstd_bomb(kind, 64 << 20));
        let text = format!("{:?}", scan.problems);
        assert!(scan.problems.len() == 1 && text.contains(wanted) && text.len() < 500, "{text}");
    }
}

#[test]
fn bounded_messages_show_the_beginning_of_a_name() {
    let long = "a".repeat(60_000);
    let (image, other) = (format!("{long}.jpg"), format!("{long}.png"));
    let scan = scan_bytes("s.tar", &tar_of(&[(&image, b"A"), (&other, b"A"), ("b.cls", b"x")]));
    assert_eq!(scan.samples[0].entry, image);
    assert!(scan.problems.iter().all(|problem| problem.what.len() < 600), "{} problems", scan.problems.len());
    let message = ManifestError::Unsound {
        problems: scan
            .problems
            .into_iter()
            .map(|ShardProblem { entry, offset, what }| Problem { shard: "s.tar".into(), entry, offset, what })
            .collect(),
    }
    .to_string();
    assert!(message.len() < 3000, "{} bytes", message.len());
}

#[test]
fn bounded_the_problems_of_a_shard_are_so_many() {
    let mut builder = tar::Builder::new(Vec::new());
    for _ in 0..2 * MAX_PROBLEMS {
        let mut header = tar::Header::new_ustar();
        header.set_path("a/../b.jpg").unwrap_or(());
        header.set_entry_type(tar::EntryType::Char);
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
    }
    let problems = scan_bytes("s.tar", &builder.into_inner().unwrap()).problems;
    assert_eq!(problems.len(), MAX_PROBLEMS + 1);
    assert!(problems[MAX_PROBLEMS].what.contains("more than 1000 problems"), "{:?}", problems[MAX_PROBLEMS]);
}
