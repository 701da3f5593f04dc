//! `mount-data` on real file systems, in a mount namespace of its own.
#![expect(clippy::unwrap_used, reason = "a test that cannot prepare its file systems fails here")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use slotd::domain::generation::{Origin, Start};
use slotd::domain::manifest::Sha256Hex;
use slotd::initrd::data::{NEW, TAIL};
use sps_base::slot::SlotId;
use system_tests::bus::program;
use tempfile::TempDir;

/// Runs mount-data, then the test's words in the root, each line of them a question.
const SCRIPT: &str = r#"
cd "$1"
mount --bind root root
loop=$(losetup --find --show data.img 2>/dev/null || echo /dev/none)
"$2" --device "$loop" --root root --run run 2>log
echo "exit $?"
eval "$3"
umount --recursive root
[ "$loop" = /dev/none ] || losetup --detach "$loop"
"#;

/// Of the data partition, in bytes.
const SIZE: u64 = 32 << 20;

struct Machine {
    directory: TempDir,
}

impl Machine {
    /// With a data partition as the installer leaves it.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["root/data", "root/var", "root/etc", "run"] {
            fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        fs::write(directory.path().join("root/etc/os-release"), "ID=sps\n").unwrap();
        let machine = Self { directory };
        machine.fill(b"", NEW);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Another data partition, with these bytes at its start and in its tail.
    fn fill(&self, head: &[u8], tail: &[u8]) {
        let file = File::create(self.path("data.img")).unwrap();
        file.set_len(SIZE).unwrap();
        file.write_all_at(head, 0).unwrap();
        file.write_all_at(tail, SIZE - TAIL).unwrap();
    }

    /// A start of the firmware with this hash; what `questions`, run in the root, said.
    fn start(&self, firmware: [u8; 32], configuration: Origin, questions: &str) -> (String, Value) {
        let slot = SlotId::new(1).unwrap();
        let start = Start { slot, root_hash: Sha256Hex(firmware), configuration };
        fs::write(self.path("run").join(Start::FILE), serde_json::to_vec(&start).unwrap()).unwrap();
        let output = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"])
            .arg(self.directory.path())
            .arg(program("mount-data").unwrap())
            .arg(questions)
            .output()
            .unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let log = fs::read_to_string(self.path("log")).unwrap();
        assert!(said.starts_with("exit 0\n"), "{said}{log}");
        let report = fs::read(self.path("run/data.json")).unwrap();
        // The memory that lay over it is gone with the namespace; its mount point stays.
        fs::remove_dir(self.path("run/etc")).unwrap();
        (said, serde_json::from_slice(&report).unwrap())
    }
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: mounting needs root");
    }
    root
}

fn config(firmware: [u8; 32]) -> String {
    format!("root/data/config/{}", Sha256Hex(firmware))
}

#[test]
fn identity_and_configuration_stay_and_etc_does_not() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    let (old, new) = ([1; 32], [2; 32]);
    let first = "cat root/etc/machine-id; echo changed >root/etc/os-release; echo log >root/var/log.txt; ";
    let setting = format!("echo old >{}/setting", config(old));
    let (said, report) = machine.start(old, Origin::Keep, &format!("{first}{setting}"));
    let identity = said.strip_prefix("exit 0\n").unwrap_or_else(|| panic!("{said}")).to_owned();
    assert_eq!(identity.len(), 33, "{identity:?}");
    assert_eq!(report, serde_json::json!({ "configuration": "empty" }));

    let second = "cat root/etc/machine-id root/etc/os-release root/var/log.txt ";
    let migrate = format!("{second} {0}/setting; echo new >{0}/setting", config(new));
    let (said, report) = machine.start(new, Origin::Copy(Sha256Hex(old)), &migrate);
    assert_eq!(said, format!("exit 0\n{identity}ID=sps\nlog\nold\n"));
    assert_eq!(report, serde_json::json!({ "configuration": "copied" }));

    let (said, report) =
        machine.start(old, Origin::Keep, &format!("cat {}/setting {}/setting", config(old), config(new)));
    assert_eq!(said, "exit 0\nold\nnew\n");
    assert_eq!(report, serde_json::json!({ "configuration": "kept" }));
}

/// Whatever is wrong with the data partition: the start goes on, it is told, and nothing is written there.
#[test]
fn memory_stands_in_for_data_that_cannot_be_used() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    let question =
        "stat --file-system --format=%T root/data root/var; test -s root/etc/machine-id && echo id";
    for head in [&b"\0"[..], b"garbage"] {
        machine.fill(head, b"");
        let before = fs::read(machine.path("data.img")).unwrap();
        let (said, report) = machine.start([1; 32], Origin::Keep, question);
        // Of one memory: `var/` of what stands in for the partition.
        assert_eq!(said, "exit 0\ntmpfs\ntmpfs\nid\n");
        let why = report["data_lost"].as_str().unwrap();
        assert!(why.contains("neither a file system nor the installer's mark"), "{why}");
        assert!(fs::read(machine.path("data.img")).unwrap() == before);
    }
    fs::remove_file(machine.path("data.img")).unwrap();
    let (said, report) = machine.start([1; 32], Origin::Keep, question);
    assert_eq!(said, "exit 0\ntmpfs\ntmpfs\nid\n");
    assert!(report["data_lost"].as_str().unwrap().starts_with("cannot read /dev/none"), "{report}");
}

#[test]
fn a_full_partition_can_still_be_read() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    let fill =
        format!("echo 1 >{}/setting; dd if=/dev/zero of=root/var/fill bs=64k 2>/dev/null", config([1; 32]));
    machine.start([1; 32], Origin::Keep, &fill);
    let question = format!(
        "stat --file-system --format=%T root/data root/var; cat {}/setting; touch root/var/x && echo written",
        config([1; 32])
    );
    let (said, report) = machine.start([1; 32], Origin::Keep, &question);
    assert_eq!(said, "exit 0\next2/ext3\ntmpfs\n1\nwritten\n");
    let why = report["data_full"].as_str().unwrap();
    assert!(why.contains("is full: "), "{why}");
    assert_eq!(report["configuration"], "kept");
}
