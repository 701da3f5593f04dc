//! `mkfs.erofs` and `dump.erofs`, of this system or of a Debian tree.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sps_images::erofs::escape;
use tempfile::TempDir;

/// What `dump.erofs -e` says of one file.
#[derive(Debug, Default)]
pub struct Dump {
    pub nid: u64,
    pub size: u64,
    /// Bytes of the inode and its attributes.
    pub inode: u64,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    /// Content length, physical offset and length.
    pub extents: Vec<(u64, u64, u64)>,
}

/// A place to work in, and the tools that are there.
pub struct Tools {
    root: Option<PathBuf>,
    dir: TempDir,
}

impl Tools {
    /// Those of this system.
    pub fn host() -> Self {
        Self { root: None, dir: TempDir::new().unwrap() }
    }

    /// Those of the Debian tree of `SPS_DEBIAN_TREE`, run with `chroot`; says why when there is none.
    pub fn debian() -> Option<Self> {
        let Some(root) = std::env::var_os("SPS_DEBIAN_TREE").map(PathBuf::from) else {
            println!("SPS_DEBIAN_TREE is not set: skipping what needs its erofs-utils 1.8");
            return None;
        };
        if !is_root() {
            println!("not root: skipping what runs in the Debian tree");
            return None;
        }
        let dir = TempDir::new_in(root.join("tmp")).unwrap();
        Some(Self { root: Some(root), dir })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, tool: &str, args: &[OsString]) -> Output {
        let mut command = match &self.root {
            Some(root) => {
                let mut command = Command::new("chroot");
                command.arg(root).arg(tool);
                command
            }
            None => Command::new(tool),
        };
        command.args(args).output().unwrap_or_else(|error| panic!("{tool}: {error}"))
    }

    /// The path as the tool sees it.
    fn inside(&self, path: &Path) -> OsString {
        let root = self.root.as_deref().unwrap_or(Path::new("/"));
        Path::new("/").join(path.strip_prefix(root).unwrap()).into()
    }

    /// Makes `name` of `tree`, both in this place.
    pub fn mkfs(&self, options: &[&str], name: &str, tree: &Path) -> PathBuf {
        let image = self.path(name);
        let mut args: Vec<OsString> = options.iter().map(OsString::from).collect();
        args.extend(["-U".into(), "5f5ba2f4-4b0e-4b0c-9d6c-0d3b3f9d2c11".into()]);
        args.extend([self.inside(&image), self.inside(tree)]);
        let output = self.run("mkfs.erofs", &args);
        assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stderr));
        image
    }

    fn dump(&self, image: &Path, what: &OsStr, flag: &str) -> Output {
        self.run("dump.erofs", &[what.to_owned(), flag.into(), self.inside(image)])
    }

    /// One file by its path.
    pub fn by_path(&self, image: &Path, path: &[u8]) -> Dump {
        let mut what = OsString::from("--path=/");
        what.push(OsStr::from_bytes(path));
        self.describe(image, &what, &escape(path))
    }

    /// One inode by its number.
    pub fn by_nid(&self, image: &Path, nid: u64) -> Dump {
        self.describe(image, OsStr::new(&format!("--nid={nid}")), "inode")
    }

    fn describe(&self, image: &Path, what: &OsStr, name: &str) -> Dump {
        let output = self.dump(image, what, "-e");
        assert!(output.status.success(), "{name}: {output:?}");
        parse(&String::from_utf8_lossy(&output.stdout))
    }

    /// Content of a file, `None` when it cannot be read.
    pub fn cat(&self, image: &Path, path: &[u8]) -> Option<Vec<u8>> {
        let mut what = OsString::from("--path=/");
        what.push(OsStr::from_bytes(path));
        let output = self.dump(image, &what, "--cat");
        output.status.success().then_some(output.stdout)
    }
}

pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// The numbers of a text, in order.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

fn parse(text: &str) -> Dump {
    let mut dump = Dump::default();
    for line in text.lines() {
        let found = numbers(line);
        if let Some(rest) = line.strip_prefix("Uid: ") {
            let number = |index: usize| u32::try_from(numbers(rest)[index]).unwrap();
            (dump.uid, dump.gid) = (number(0), number(1));
            let mode = rest.split("Access: ").nth(1).unwrap().split('/').next().unwrap();
            dump.mode = u32::from_str_radix(mode, 8).unwrap();
        } else if line.starts_with("Size: ") {
            dump.size = found[0];
        } else if line.starts_with("NID: ") {
            dump.nid = found[0];
        } else if line.starts_with("Inode size: ") {
            // 1.5 has "Extent size" between the two.
            dump.inode = found[0] + found[found.len() - 1];
        } else if line.contains("..") && line.contains(" | ") && found.len() == 7 {
            // index: from..to | length : from..to | length
            dump.extents.push((found[3], found[4], found[6]));
        }
    }
    dump
}
