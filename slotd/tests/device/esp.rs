//! The contract of the ESP on a directory.

use std::fs;

use slotd::device::esp::{BOOT_IMAGES, DirectoryEsp, Esp};

#[test]
fn files_are_made_filled_read_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let esp = DirectoryEsp::open(directory.path()).unwrap();
    assert_eq!(esp.size("a.efi").unwrap(), None);
    esp.remove("a.efi").unwrap();
    esp.create("a.efi").unwrap();
    assert_eq!(esp.size("a.efi").unwrap(), Some(0));
    esp.write_at("a.efi", 0, b"hello ").unwrap();
    esp.write_at("a.efi", 6, b"world").unwrap();
    esp.sync_file("a.efi").unwrap();
    esp.sync().unwrap();
    let path = directory.path().join(BOOT_IMAGES).join("a.efi");
    assert_eq!(fs::read(&path).unwrap(), b"hello world");
    let mut buf = [0; 5];
    esp.read_at("a.efi", 6, &mut buf).unwrap();
    assert_eq!(&buf, b"world");
    esp.read_at("a.efi", 7, &mut buf).unwrap_err();
    esp.create("a.efi").unwrap();
    assert_eq!(esp.size("a.efi").unwrap(), Some(0), "create replaces");
    esp.remove("a.efi").unwrap();
    assert!(!path.exists());
    assert!(esp.free().unwrap() > 0);
}

#[test]
fn other_files_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let images = directory.path().join(BOOT_IMAGES);
    fs::create_dir_all(&images).unwrap();
    fs::write(images.join("other.efi"), "other").unwrap();
    let esp = DirectoryEsp::open(directory.path()).unwrap();
    esp.create("a.efi").unwrap();
    esp.remove("a.efi").unwrap();
    let names: Vec<_> = fs::read_dir(&images).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["other.efi"]);
    assert_eq!(fs::read(images.join("other.efi")).unwrap(), b"other");
}

#[test]
fn what_is_not_there_or_no_file_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let esp = DirectoryEsp::open(directory.path()).unwrap();
    let errors = [
        esp.read_at("none.efi", 0, &mut [0; 1]).unwrap_err(),
        esp.write_at("none.efi", 0, b"x").unwrap_err(),
        esp.sync_file("none.efi").unwrap_err(),
    ];
    for error in errors {
        assert!(error.to_string().contains("none.efi"), "{error}");
    }
    assert_eq!(esp.size("none.efi").unwrap(), None, "writing makes no file");
    fs::create_dir(directory.path().join(BOOT_IMAGES).join("dir.efi")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", directory.path().join(BOOT_IMAGES).join("link.efi")).unwrap();
    for name in ["dir.efi", "link.efi"] {
        assert!(esp.size(name).unwrap_err().to_string().contains("not a regular file"));
    }
    let missing = directory.path().join("none");
    assert!(DirectoryEsp::open(&missing).unwrap_err().to_string().contains("none"));
    assert!(!missing.exists(), "a mount point is not made");
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    DirectoryEsp::open(&file).unwrap_err();
}
