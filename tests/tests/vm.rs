//! What only a real kernel and a real systemd can show, in QEMU.
#![expect(clippy::unwrap_used, reason = "a test that cannot prepare its machine fails here")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use slotd::domain::layout::padded;
use slotd::domain::manifest::UpgradeFrom;
use slotd::store::InstallRequest;
use sps_base::slot::SlotId;
use sps_images::{FirmwareSpec, Pki, Source, build_firmware};
use system_tests::lab::{self, Lab};
use system_tests::vm::direct::{self as vm, Machine};

/// What slot 2 asks: from where it was mounted.
const CHECK: &str = "#!/bin/busybox sh\n/bin/busybox grep ' / ' /proc/mounts\n";
/// Tests slot 2, then runs the helper with another root hash, and on a medium that has changed since.
const SCRIPT: &str = r#"#!/bin/sh
echo "state $(systemctl is-active slotd.service)"
spsctl test 2 --json
echo "test $?"
echo "left: $(cat /sys/block/dm-*/dm/name | sort | tr '\n' ' ')"
check() {
    /usr/lib/sps/upgrade-check --image /dev/vdb --size SIZE --salt "SALT" --hash-offset OFFSET --deadline 60 --root-hash "$1"
    status=$?
    [ $status = 0 ] && echo
    echo "helper $status"
}
check OTHER
check HASH
printf X | dd of=/dev/vdb bs=1 seek=FLIP conv=notrunc status=none
sync
echo 3 >/proc/sys/vm/drop_caches
check HASH
echo "left: $(cat /sys/block/dm-*/dm/name | sort | tr '\n' ' ')"
"#;

fn small_tree(tree: &Path) {
    for name in ["proc", "dev", "tmp", "bin", "usr/lib/sps/upgrade-checks.d"] {
        fs::create_dir_all(tree.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    let check = tree.join("usr/lib/sps/upgrade-checks.d/10-root");
    fs::write(&check, CHECK).unwrap();
    fs::set_permissions(check, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The programs of a new firmware are run from a root that dm-verity guards, under systemd, in slotd's own sandbox.
// rows: J7
#[test]
fn the_new_root_is_mounted_through_dm_verity() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: firmware from Debian needs root");
        return;
    }
    let (work, dirs) = (tempfile::tempdir().unwrap(), vm::build_dirs().unwrap());
    let pki = Pki::open_or_create(work.path().join("pki"), "vm").unwrap();
    let lab = Lab::new(&work.path().join("lab"), &pki.keyring_dir(), 2, 1 << 30).unwrap();

    let tree = work.path().join("tree");
    small_tree(&tree);
    let mut new = FirmwareSpec::new("8.0.2", Source::Tree(tree));
    new.compress = false;
    new.upgrade_from = vec![UpgradeFrom { from: "8".into(), min: "8.0.0".into() }];
    let new = build_firmware(&new, &dirs, &pki, Some(&work.path().join("new.iso"))).unwrap();
    let root = &new.manifest.root;
    let script = SCRIPT
        .replace("SIZE", &root.size.to_string())
        .replace("OFFSET", &padded(root.size).to_string())
        .replace("SALT", &root.verity.salt)
        .replace("OTHER", &hex::encode(Sha256::digest("other")))
        .replace("HASH", &root.verity.root_hash.to_string())
        .replace("FLIP", "0");
    let running = vm::firmware("8.0.1", &pki.keyring_dir(), work.path(), &script).unwrap();
    let running = build_firmware(&running, &dirs, &pki, Some(&work.path().join("running.iso"))).unwrap();
    let store = lab.store("").unwrap();
    for (slot, built) in [(1, &running), (2, &new)] {
        let request = InstallRequest { slot: SlotId::new(slot), ..InstallRequest::default() };
        lab::install(&store, fs::File::open(&built.iso).unwrap(), &request).unwrap();
    }
    drop(store);

    let root = &running.manifest.root;
    let machine = Machine::boot(&lab, &dirs, &root.verity.root_hash.to_string(), padded(root.size)).unwrap();
    let output = machine.output().unwrap();
    let (tested, by_hand) = output.split_once("left: ").unwrap();
    let (state, tested) = tested.split_once('\n').unwrap();
    assert_eq!(state, "state active", "{output}");
    let tested = tested.strip_suffix("test 0\n").unwrap_or_else(|| panic!("{output}"));
    let result = serde_json::from_str::<Value>(tested).unwrap()["job"]["result"].take();
    assert_eq!(result["verity"], "dm-verity", "{result}");
    let check = result["checks"].as_array().unwrap().iter().find(|check| check[0] == "10-root").unwrap();
    assert_eq!(check[1], "passed");
    assert!(check[2].as_str().unwrap().starts_with("/dev/dm-"), "{check}");

    let expected = [
        // The root of the machine itself; the slot's mapping went with the helper.
        "root ",
        "upgrade-check: upgrade-check: the firmware's root cannot be entered: cannot read /dev/dm-1: Input/output error (os \
         error 5) (exit code 1)",
        "helper 1",
        r#"{"schema":1,"verity":"dm-verity","checks":[{"name":"10-root","result":"passed","#,
        "helper 0",
        "upgrade-check: upgrade-check: the firmware's root cannot be entered: cannot read /dev/dm-1: Input/output error (os \
         error 5) (exit code 1)",
        "helper 1",
        "left: root ",
    ];
    let lines: Vec<&str> = by_hand.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{output}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "expected {expected:?}, found {line:?}");
    }
}
