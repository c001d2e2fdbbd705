use super::*;

fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn seen(listing: &Listing) -> Vec<(String, Option<u32>, Vec<u8>)> {
    listing.items.iter().map(|item| (item.key.clone(), item.label, item.read().unwrap())).collect()
}

#[test]
fn a_tar_of_tars_is_read_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.tar");
    let cats = tar_of(&[("n02_1.JPEG", b"one"), ("n02_2.JPEG", b"two")]);
    let dogs = tar_of(&[("n01_1.JPEG", b"three"), ("notes.txt", b"x")]);
    std::fs::write(&path, tar_of(&[("n02.tar", &cats), ("n01.tar", &dogs)])).unwrap();
    let listing = list(&path, &ListingOptions::default()).unwrap();
    assert_eq!(listing.classes, ["n01", "n02"]);
    assert_eq!(listing.left_out.others, [PathBuf::from("n01.tar/notes.txt")]);
    let wanted: [(String, Option<u32>, Vec<u8>); 3] = [
        ("n02/n02_1".into(), Some(1), b"one".to_vec()),
        ("n02/n02_2".into(), Some(1), b"two".to_vec()),
        ("n01/n01_1".into(), Some(0), b"three".to_vec()),
    ];
    assert_eq!(seen(&listing), wanted);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..2000]).unwrap();
    let error = list(&path, &ListingOptions::default()).err().unwrap().to_string();
    assert!(error.contains("train.tar") && error.contains("n02.tar"), "{error}");
}

#[test]
fn a_tar_of_images_takes_its_labels_from_a_list() {
    let folder = tempfile::tempdir().unwrap();
    let (path, labels) = (folder.path().join("val.tar"), folder.path().join("labels.txt"));
    let labeled = ListingOptions { labels: Some(labels.clone()), ..ListingOptions::default() };
    std::fs::write(&path, tar_of(&[("val_2.JPEG", b"two"), ("val_1.JPEG", b"one")])).unwrap();
    assert!(list(&path, &ListingOptions::default()).unwrap().items.iter().all(|item| item.label.is_none()));
    std::fs::write(&labels, "n07\nn03\n").unwrap();
    let listing = list(&path, &labeled).unwrap();
    assert_eq!(listing.classes, ["n03", "n07"]);
    assert_eq!(seen(&listing)[0], ("n07/val_1".into(), Some(1), b"one".to_vec()));
    std::fs::write(&labels, "val_1.JPEG n03\nval_2.JPEG n07\n").unwrap();
    assert_eq!(seen(&list(&path, &labeled).unwrap())[0].0, "n03/val_1");
    let refused = |text: &str, wanted: &str| {
        std::fs::write(&labels, text).unwrap();
        let error = list(&path, &labeled).err().unwrap().to_string();
        assert!(error.contains(wanted), "{error}");
    };
    refused("n07\n", "1 labels for 2 images");
    refused("490\n361\n", "development kit");
    refused("val_1.JPEG a\nval_3.JPEG b\n", "val_2.JPEG has no label");
}

#[test]
fn a_list_names_paths_and_classes() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a b.jpg"), b"one").unwrap();
    let path = folder.path().join("list.txt");
    std::fs::write(&path, "a b.jpg\tcat\n").unwrap();
    assert_eq!(seen(&list(&path, &ListingOptions::default()).unwrap()), [("cat/a b".into(), Some(0), b"one".to_vec())]);
    std::fs::write(&path, "a b.jpg cat\nb.jpg dog\n").unwrap();
    let error = list(&path, &ListingOptions::default()).err().unwrap().to_string();
    assert!(error.contains("line 2") && error.contains("b.jpg: no such file"), "{error}");
}

/// Draws a tree of files, empty but for their names.
fn tree(paths: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for path in paths {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, path.file_name().unwrap().as_encoded_bytes()).unwrap();
    }
    folder
}

fn listed(folder: &tempfile::TempDir) -> (Vec<(String, Option<u32>)>, Listing) {
    let listing = list(folder.path(), &ListingOptions::default()).unwrap();
    (listing.items.iter().map(|item| (item.key.clone(), item.label)).collect(), listing)
}

#[test]
fn folders_in_any_shape_are_listed_and_class_folders_give_labels() {
    let of = |paths: &[&str]| {
        let folder = tree(paths);
        let (items, listing) = listed(&folder);
        (items.into_iter().map(|(key, label)| format!("{key} {label:?}")).collect::<Vec<_>>(), listing.classes)
    };
    let classes = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    assert_eq!(of(&["b.jpg", "a.v2.JPG"]), (vec!["a_v2 None".into(), "b None".into()], vec![]));
    let (items, names) = of(&["dog/1.jpg", "cat/1.jpg", "cat/x.txt"]);
    assert_eq!((items, names), (vec!["cat/1 Some(0)".into(), "dog/1 Some(1)".into()], classes(&["cat", "dog"])));
    assert_eq!(of(&["train/n1/images/a.JPEG", "train/n0/images/a.JPEG"]).1, classes(&["n0", "n1"]), "Tiny ImageNet");
    assert_eq!(
        of(&["2023/01/a.jpg", "2024/02/a.jpg"]),
        (vec!["2023/01/a None".into(), "2024/02/a None".into()], vec![])
    );
    assert_eq!(of(&["cat/1.jpg", "2.jpg"]).1, classes(&[]), "beside folders");
    assert_eq!(of(&["10/a.jpg", "9/a.jpg", "0/a.jpg"]).1, classes(&["0", "9", "10"]), "numbers are in their order");
    assert_eq!(of(&["cat/1.jpg"]).1, classes(&["cat"]), "one class is a class");
}

#[test]
fn what_is_left_out_is_counted_and_named() {
    let folder = tree(&[
        "cat/1.jpg",
        "dog/1.jpg",
        "cat/._1.jpg",
        "__MACOSX/cat/1.jpg",
        "@eaDir/1.jpg",
        "cat/Thumbs.db",
        "notes.txt",
        "empty/x.md",
    ]);
    std::os::unix::fs::symlink(folder.path().join("gone"), folder.path().join("bird")).unwrap();
    std::os::unix::fs::symlink(folder.path(), folder.path().join("cat/again")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(folder.path().join("cat/pipe.jpg")).status().unwrap().success());
    let (items, listing) = listed(&folder);
    assert_eq!(items.len(), 2);
    assert_eq!(listing.left_out.nobodys, 4);
    let told = listing.left_out.told().unwrap();
    assert!(
        told.contains("left out 3 files that are not images") && told.contains("4 hidden or system files"),
        "{told}"
    );
    let notes = listing.notes.join("\n");
    for part in
        ["bird: cannot be looked at", "cat/again: a link to a folder", "cat/pipe.jpg: not a regular file", "empty"]
    {
        assert!(notes.contains(part), "{part}: {notes}");
    }
}

#[test]
fn lists_are_read_in_the_ways_that_people_write_them() {
    let folder = tree(&["a b.jpg", "c,d.jpg", "e.jpg", "cafe\u{301}.jpg"]);
    let path = |name: &str| folder.path().join(name);
    let of = |name: &str, text: &str| {
        std::fs::write(path(name), text).unwrap();
        let listing = list(&path(name), &ListingOptions::default()).map_err(|error| error.to_string())?;
        let items = listing.items.iter().map(|item| (item.key.clone(), item.label)).collect::<Vec<_>>();
        Ok::<_, String>((items, listing.classes))
    };
    let item = |key: &str, label| (key.to_owned(), label);
    let class = |name: &str| vec![name.to_owned()];
    assert_eq!(of("l.txt", "a b.jpg\n\ne.jpg\n").unwrap(), (vec![item("a b", None), item("e", None)], vec![]));
    assert_eq!(of("l.txt", "a b.jpg x\n").unwrap(), (vec![item("x/a b", Some(0))], class("x")));
    assert_eq!(of("l.txt", "a b.jpg\tx y\n").unwrap(), (vec![item("x y/a b", Some(0))], class("x y")));
    let text = "\u{feff}label,filename\r\nx,\"c,d.jpg\"\r\nx,e.jpg\r\n";
    assert_eq!(of("l.csv", text).unwrap(), (vec![item("x/c,d", Some(0)), item("x/e", Some(0))], class("x")));
    assert_eq!(of("l.csv", "filename\ne.jpg\n").unwrap(), (vec![item("e", None)], vec![]));
    assert_eq!(
        of("l.csv", "e.jpg,x\na b.jpg,\n").unwrap(),
        (vec![item("x/e", Some(0)), item("a b", None)], class("x"))
    );
    assert_eq!(of("l.txt", "caf\u{e9}.jpg\n").unwrap().0.len(), 1, "composed otherwise");
    assert!(of("l.csv", "where,what\ne.jpg,x\n").unwrap_err().contains("no column of paths"));
    assert!(of("l.txt", "e.jpg x\nf.jpg x\n").unwrap_err().contains("line 2: "));
    assert!(of("l.txt", "\n").unwrap_err().contains("lists no images"));
}

#[test]
fn many_images_of_one_name_get_keys_without_asking_for_all_before() {
    let mut keys = Keys::default();
    assert_eq!(
        ["a", "a-3", "a", "a", "a", "a-3"].map(|base| keys.free(base.to_owned())),
        ["a", "a-3", "a-2", "a-4", "a-5", "a-3-2"]
    );
    // So many that to ask for each again would take hours.
    let all: std::collections::HashSet<String> = (0..300_000).map(|_| keys.free("b".to_owned())).collect();
    assert_eq!(all.len(), 300_000);
}

#[test]
fn a_class_is_one_however_its_letters_are_written() {
    let folder = tempfile::tempdir().unwrap();
    // As Linux and as macOS write it.
    for (i, class) in ["caf\u{e9}", "cafe\u{301}", "tea"].iter().enumerate() {
        let path = folder.path().join(class);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join(format!("{i}.jpg")), b"bytes").unwrap();
    }
    let found = list(folder.path(), &ListingOptions::default()).unwrap();
    assert_eq!(found.classes, ["caf\u{e9}", "tea"]);
    let given = Some(vec!["tea".to_owned(), "cafe\u{301}".to_owned()]);
    let found = list(folder.path(), &ListingOptions { classes: given, ..ListingOptions::default() }).unwrap();
    assert_eq!(found.items.iter().map(|item| item.label).collect::<Vec<_>>(), [Some(1), Some(1), Some(0)]);
}
