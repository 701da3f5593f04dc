//! slotboot by itself, as the initrd runs it: the static program.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output};

use system_tests::bus::{Appliance, program};
use system_tests::loader::{Mishaps, Outcome};
use system_tests::static_program::needs;

use crate::{appliance, selected, with_both};

/// An appliance that is off, and where slotboot leaves its traces.
struct Initrd<'a> {
    appliance: &'a Appliance,
    cmdline: String,
}

/// Code and words of a run.
type Ran = (Option<i32>, String);

impl<'a> Initrd<'a> {
    /// slot 1's firmware is being started.
    fn of(appliance: &'a mut Appliance, slot: u32) -> Self {
        appliance.power_cut().unwrap();
        let version = if slot == 1 { "8.0.1" } else { "8.0.2" };
        let hash = crate::firmware(version).manifest.root.verity.root_hash;
        Self { appliance, cmdline: format!("quiet roothash={hash} ro\n") }
    }

    fn link(&self) -> PathBuf {
        self.appliance.path("initrd/run/root")
    }

    fn marker(&self) -> PathBuf {
        self.appliance.path("initrd/run/trial")
    }

    fn linked(&self) -> Option<PathBuf> {
        fs::read_link(self.link()).ok()
    }

    fn run(&self) -> Ran {
        let cmdline = self.appliance.path("initrd-cmdline");
        fs::write(&cmdline, &self.cmdline).unwrap();
        let Output { status, stdout, stderr } = Command::new(program("static/slotboot").unwrap())
            .args(["--config".into(), self.appliance.path("slotd.toml")])
            .args(["--cmdline".into(), cmdline])
            .args(["--run".into(), self.appliance.path("initrd/run")])
            .env_remove("JOURNAL_STREAM")
            .output()
            .unwrap();
        (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
    }

    fn boots(&self, slot: u32) -> u32 {
        let state = self.appliance.state().unwrap().unwrap();
        state.boots.iter().find(|(id, _)| id.get() == slot).map_or(0, |(_, count)| *count)
    }

    /// Everything that a start may change.
    fn written(&self) -> Vec<Vec<u8>> {
        ["state", "grubenv", "slot-1", "slot-2"]
            .map(|name| fs::read(self.appliance.path(name)).unwrap())
            .into()
    }
}

#[test]
fn it_needs_no_interpreter_and_no_library() {
    let [small, usual] = ["static/slotboot", "slotboot"].map(|name| program(name).unwrap());
    assert_eq!(needs(&small).unwrap(), [""; 0]);
    // What cargo builds does.
    assert_eq!(needs(&usual).unwrap().len(), 2);
    let ldd = Command::new("ldd").arg(&small).output().unwrap();
    assert!(String::from_utf8_lossy(&ldd.stderr).contains("not a dynamic executable"), "{ldd:?}");
    println!("slotboot, static, development build: {} bytes", small.metadata().unwrap().len());
    // And it runs where there is nothing else.
    let root = tempfile::tempdir().unwrap();
    fs::copy(&small, root.path().join("slotboot")).unwrap();
    let output = Command::new("chroot").arg(root.path()).args(["/slotboot", "--version"]).output().unwrap();
    assert!(
        String::from_utf8_lossy(&output.stdout).starts_with("slotboot "),
        "chroot needs root: {output:?}"
    );
}

#[tokio::test]
async fn without_a_root_hash_nothing_is_started_or_written() {
    let (mut appliance, _client) = with_both().await;
    let mut initrd = Initrd::of(&mut appliance, 1);
    let before = initrd.written();
    for cmdline in ["quiet ro", "roothash=abab", "roothash=", ""] {
        cmdline.clone_into(&mut initrd.cmdline);
        let (code, said) = initrd.run();
        assert!(
            code == Some(1) && said.contains("no slot holds the root hash"),
            "{cmdline}: {code:?} {said}"
        );
    }
    assert!(initrd.linked().is_none() && !initrd.marker().exists() && initrd.written() == before);
    fs::remove_file(initrd.appliance.path("slotd.toml")).unwrap();
    let (code, said) = initrd.run();
    assert!(code == Some(1) && said.contains("slotd.toml"), "{code:?} {said}");
}

/// A start whose root is gone was repeated for ever.
#[tokio::test]
async fn a_root_that_is_in_no_slot_any_more_gives_way_to_the_other_one() {
    let (mut appliance, client) = with_both().await;
    appliance.power_cut().unwrap();
    let slot = fs::File::options().write(true).open(appliance.path("slot-1")).unwrap();
    let end = slot.metadata().unwrap().len();
    slot.write_all_at(&[0; 4096], end - 4096).unwrap();
    let report = appliance.power_on(&Mishaps::default()).unwrap();
    assert_eq!(
        (report.running(), report.entries()),
        (Some(2), vec!["sps-slot-1", "sps-slot-2"]),
        "{report:?}"
    );
    assert_eq!(report.codes(), [Some(10), Some(0)]);
    assert_eq!(client.selection().await, (2, 1, 1, true, false, 0));
    assert!(client.last_upgrade().await.text("message").contains("its root is in no slot"));
    client.confirm().await.unwrap();
    assert_eq!(client.selection().await, (2, 2, 2, false, true, 0));
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
    // With the other one gone as well, recovery starts.
    appliance.power_cut().unwrap();
    let slot = fs::File::options().write(true).open(appliance.path("slot-2")).unwrap();
    slot.write_all_at(&[0; 4096], end - 4096).unwrap();
    let report = appliance.power_on(&Mishaps::default()).unwrap();
    assert_eq!((report.outcome, report.codes()), (Outcome::Recovery, vec![Some(10), None]), "{report:?}");
}

#[tokio::test]
async fn a_slot_that_cannot_be_read_is_counted_and_then_left() {
    let (mut appliance, _client) = with_both().await;
    let initrd = Initrd::of(&mut appliance, 1);
    // Its device is not there, or not yet.
    let (slot, aside) = (initrd.appliance.path("slot-1"), initrd.appliance.path("slot-1-aside"));
    fs::rename(&slot, &aside).unwrap();
    for count in 1..=3 {
        let (code, said) = initrd.run();
        assert!(code == Some(1) && said.contains("no slot holds the root hash"), "{code:?} {said}");
        assert_eq!(initrd.boots(1), count);
    }
    assert_eq!(initrd.run().0, Some(10));
    assert_eq!(initrd.appliance.grubenv("next_entry").unwrap(), "sps-slot-2");
}

#[tokio::test]
async fn starts_are_counted_and_the_fourth_goes_elsewhere() {
    let (mut appliance, _client) = with_both().await;
    let initrd = Initrd::of(&mut appliance, 1);
    let medium = initrd.appliance.path("slot-1");
    let before = initrd.boots(1);
    assert_eq!(before, 0);
    for count in 1..=3 {
        assert_eq!(initrd.run().0, Some(0));
        assert_eq!((initrd.boots(1), initrd.linked()), (count, Some(medium.clone())));
        assert!(!initrd.marker().exists());
    }
    fs::remove_file(initrd.link()).unwrap();
    let (code, said) = initrd.run();
    assert!(code == Some(10) && said.contains("started too often"), "{code:?} {said}");
    // The link is for a root that is opened.
    assert_eq!((initrd.boots(1), initrd.linked()), (3, None));
    assert_eq!(initrd.appliance.grubenv("next_entry").unwrap(), "sps-slot-2");
    let pending = initrd.appliance.state().unwrap().unwrap().pending.unwrap();
    assert_eq!((pending.slot.get(), pending.version.as_str()), (2, "8.0.2"));
}

#[tokio::test]
async fn a_trial_is_marked_and_started_once() {
    let (mut appliance, _client) = selected().await;
    let initrd = Initrd::of(&mut appliance, 2);
    assert_eq!(initrd.run().0, Some(0));
    assert!(initrd.marker().exists());
    assert_eq!((initrd.boots(2), initrd.linked()), (1, Some(initrd.appliance.path("slot-2"))));
    fs::remove_file(initrd.marker()).unwrap();
    assert_eq!(initrd.run().0, Some(10));
    assert!(!initrd.marker().exists());
    let state = initrd.appliance.state().unwrap().unwrap();
    assert!(state.pending.is_none() && state.refused.len() == 1, "{state:?}");
}

#[tokio::test]
async fn without_keys_it_starts_uncounted_and_says_so() {
    let (mut appliance, _client) = with_both().await;
    let config = appliance.path("slotd.toml");
    let text = fs::read_to_string(&config).unwrap();
    let keyring = text.lines().find(|line| line.starts_with("keyring")).unwrap();
    let initrd = Initrd::of(&mut appliance, 1);
    let garbage = initrd.appliance.path("keyring");
    fs::write(garbage.join("root.pem"), "no certificate").unwrap();
    let missing = initrd.appliance.path("nowhere");
    let before = initrd.written();
    for directory in [garbage, missing] {
        fs::write(&config, text.replace(keyring, &format!("keyring = '{}'", directory.display()))).unwrap();
        let (code, said) = initrd.run();
        assert!(code == Some(0) && said.contains("this start is not counted"), "{code:?} {said}");
        assert!(said.contains("keyring cannot be used"), "{said}");
        assert_eq!(initrd.linked(), Some(initrd.appliance.path("slot-1")));
        assert!(!initrd.marker().exists() && initrd.written() == before);
    }
}

#[tokio::test]
async fn with_a_lost_state_it_starts_uncounted_and_says_so() {
    let (mut appliance, _client) = selected().await;
    let initrd = Initrd::of(&mut appliance, 2);
    initrd.appliance.lose_state().unwrap();
    let before = initrd.written();
    for _ in 0..5 {
        let (code, said) = initrd.run();
        assert!(code == Some(0) && said.contains("state is lost"), "{code:?} {said}");
        assert_eq!(initrd.linked(), Some(initrd.appliance.path("slot-2")));
    }
    assert!(!initrd.marker().exists() && initrd.written() == before);
    // A medium that is no medium is as good.
    let state = initrd.appliance.path("state");
    fs::remove_file(&state).unwrap();
    fs::create_dir(&state).unwrap();
    let (code, said) = initrd.run();
    assert!(code == Some(0) && said.contains("state is lost"), "{code:?} {said}");
}

#[tokio::test]
async fn settings_of_the_loader_that_cannot_be_read_do_not_stop_a_start() {
    let (mut appliance, _client) = with_both().await;
    let initrd = Initrd::of(&mut appliance, 1);
    let grubenv = initrd.appliance.path("grubenv");
    fs::write(&grubenv, [7; 1024]).unwrap();
    for _ in 0..3 {
        let before = initrd.written();
        let (code, said) = initrd.run();
        assert!(code == Some(0) && said.contains("settings cannot be used"), "{code:?} {said}");
        assert_ne!(initrd.written(), before, "this start was not counted");
        assert_eq!(fs::read(&grubenv).unwrap(), [7; 1024]);
    }
    // What dies before slotd mends them would be started for ever.
    let (code, said) = initrd.run();
    assert!(code == Some(10) && said.contains("started too often"), "{code:?} {said}");
    assert!(fs::read(&grubenv).unwrap().starts_with(b"# GRUB Environment Block\n"));
}

#[tokio::test]
async fn a_link_of_before_is_replaced_and_nothing_else_is() {
    let (mut appliance, _client) = appliance().await;
    let initrd = Initrd::of(&mut appliance, 1);
    let wanted = Some(initrd.appliance.path("slot-1"));
    fs::create_dir_all(initrd.link().parent().unwrap()).unwrap();
    symlink("/dev/null", initrd.link()).unwrap();
    assert_eq!(initrd.run().0, Some(0));
    assert_eq!(initrd.linked(), wanted);
    fs::remove_file(initrd.link()).unwrap();
    fs::create_dir(initrd.link()).unwrap();
    let (code, said) = initrd.run();
    assert!(code == Some(1) && said.contains("cannot make the link"), "{code:?} {said}");
}

#[tokio::test]
async fn the_last_root_hash_counts_in_either_case() {
    let (mut appliance, _client) = with_both().await;
    let mut initrd = Initrd::of(&mut appliance, 2);
    let hash = crate::firmware("8.0.1").manifest.root.verity.root_hash.to_string().to_uppercase();
    initrd.cmdline = format!("{} roothash={hash}", initrd.cmdline.trim());
    assert_eq!(initrd.run().0, Some(0));
    assert_eq!(initrd.linked(), Some(initrd.appliance.path("slot-1")));
}
