//! Small firmware images with check programs: a shell, a few programs and their libraries, packed by `mkfs.erofs`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Programs of the host that the image gets.
const PROGRAMS: [&str; 7] =
    ["/bin/sh", "/bin/bash", "/bin/sleep", "/bin/cat", "/bin/id", "/bin/ls", "/bin/dd"];

/// A directory that becomes an image.
pub(crate) struct Firmware {
    directory: tempfile::TempDir,
}

impl Firmware {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Check programs are not root; they must get in.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let firmware = Self { directory };
        for name in ["proc", "dev", "tmp", "etc", "usr/lib/sps/upgrade-checks.d"] {
            fs::create_dir_all(firmware.path(name)).unwrap();
        }
        for program in PROGRAMS {
            firmware.copy(Path::new(program));
            let libraries = Command::new("ldd").arg(program).output().unwrap();
            let text = String::from_utf8(libraries.stdout).unwrap();
            for word in text.split_whitespace().filter(|word| word.starts_with('/')) {
                firmware.copy(Path::new(word));
            }
        }
        firmware
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("root").join(name.trim_start_matches('/'))
    }

    fn copy(&self, file: &Path) {
        let target = self.path(file.to_str().unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(file, target).unwrap();
    }

    /// Adds a check program: a shell script.
    pub(crate) fn check(self, name: &str, script: &str) -> Self {
        self.file(name, &format!("#!/bin/sh\n{script}\n"), 0o755)
    }

    /// Adds a file to the directory of check programs.
    pub(crate) fn file(self, name: &str, text: &str, mode: u32) -> Self {
        let path = self.path("usr/lib/sps/upgrade-checks.d").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        self
    }

    /// Packs it, followed by bytes that do not belong to it, as in a slot; the image's path and size.
    pub(crate) fn pack(&self) -> (PathBuf, u64) {
        let image = self.directory.path().join("slot");
        let made = Command::new("mkfs.erofs")
            .args(["-T0", "--all-root"])
            .arg(&image)
            .arg(self.directory.path().join("root"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let size = fs::metadata(&image).unwrap().len();
        fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(size + (1 << 20)).unwrap();
        (image, size)
    }
}
