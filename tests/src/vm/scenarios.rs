//! What an appliance lives through, each from a machine that was kept while it ran.
//!
//! Numbers are those of `docs/appliance.md`, "What is shown in a machine".

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::machine::{BOOT, FIRMWARE_STARTS, Hardware, Machine, Options};
use super::stage::{ILLNESS, Kept, REFUSAL, Stage, reboot, select, settled, settled_in};
use crate::crash::states::draw::Draw;
use crate::replay;

/// The watchdog's timeouts, and a start before and after.
const HANG: Duration = Duration::from_secs(900);

/// What a run was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Power cuts of the scenario that cuts at random.
    pub rounds: u32,
    /// Where these are drawn from.
    pub seed: u64,
}

/// One scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// `1`, `6a` …
    pub number: &'static str,
    /// What happens, in a few words.
    pub name: &'static str,
    /// Whether every change is checked with it.
    pub ci: bool,
    run: fn(&Stage, Asked) -> anyhow::Result<()>,
}

impl Scenario {
    /// Runs it; what the machine said last is in the error.
    pub fn run(&self, stage: &Stage, asked: Asked) -> anyhow::Result<()> {
        (self.run)(stage, asked).with_context(|| format!("scenario {}, {}", self.number, self.name))
    }
}

/// All of them.
pub const ALL: &[Scenario] = &[
    scenario("1", "upgrade, trial, confirmation", true, |stage, _| upgrade(stage)),
    scenario("2", "a health check fails", true, |stage, _| ill(stage)),
    scenario("3", "the loader cannot start what was selected", true, |stage, _| garbage_image(stage)),
    scenario("4", "the root is not the one that the hash names", false, |stage, _| wrong_root(stage)),
    scenario("5", "panic in the initrd", false, |stage, _| comes_back(stage, "initrd-panic")),
    scenario("6a", "hang in the initrd", false, |stage, _| comes_back(stage, "initrd-hang")),
    scenario("6b", "hang after the root switch", false, |stage, _| comes_back(stage, "root-hang")),
    scenario("7", "a flipped byte in the running root", false, |stage, _| rotten_root(stage)),
    scenario("8", "the default slot's boot image is gone", false, |stage, _| default_gone(stage)),
    scenario("9", "both slots broken, and an install from a stick", false, |stage, _| both_broken(stage)),
    scenario("10a", "loader variables lost", false, |stage, _| variables_lost(stage)),
    scenario("10b", "loader variables full", false, |stage, _| variables_full(stage)),
    scenario("11", "the ESP is emptied but for the loader", false, |stage, _| esp_emptied(stage)),
    scenario("12a", "the data partition is full", false, |stage, _| data_full(stage)),
    scenario("12b", "the data partition is garbage", false, |stage, _| data_garbage(stage)),
    scenario("12c", "the state is zeros", false, |stage, _| state_lost(stage, "/dev/zero")),
    scenario("12d", "the state is garbage", false, |stage, _| state_lost(stage, "/dev/urandom")),
    scenario("13", "power cuts at random moments", false, power_cuts),
    scenario("14", "the new firmware's own check refuses", false, |stage, _| refused(stage)),
    scenario("15", "the appliance answers during an install", true, |stage, _| answers(stage)),
    scenario("16", "the same firmware twice, and repair", false, |stage, _| repair(stage)),
    scenario("17", "Secure Boot", false, |stage, _| secure_boot(stage)),
    scenario("18", "an upgrade, recorded and judged at every flush", false, |stage, _| recorded(stage)),
    scenario("19", "the stick is pulled during an install", false, |stage, _| pulled(stage)),
];

const fn scenario(
    number: &'static str,
    name: &'static str,
    ci: bool,
    run: fn(&Stage, Asked) -> anyhow::Result<()>,
) -> Scenario {
    Scenario { number, name, ci, run }
}

/// Directory of the configuration generation of the firmware that runs.
const GENERATION: &str = "/data/config/$(sed 's/.*roothash=\\([0-9a-f]*\\).*/\\1/' /proc/cmdline)";

/// Id and host key of the machine. The key is made when sshd is first started.
const IDENTITY: &str = "systemctl start ssh.service && systemctl stop ssh.service && cat /etc/machine-id && \
    ssh-keygen -l -f /data/machine/ssh/ssh_host_rsa_key.pub";

fn outcome<'a>(all: &'a Value, expected: &str) -> anyhow::Result<&'a str> {
    let last = &all["status"]["last_upgrade"];
    ensure!(last["outcome"] == expected, "expected {expected}: {last:#}");
    Ok(last["reason"].as_str().unwrap_or_default())
}

fn upgrade(stage: &Stage) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Selected, "none")?;
    machine.copy_in(b"old\n", &format!("{GENERATION}/setting"))?;
    let identity = machine.must(IDENTITY)?;
    reboot(&mut machine)?;
    let all = settled_in(&mut machine, 2)?;
    outcome(&all, "confirmed")?;
    ensure!(machine.must(IDENTITY)? == identity, "the machine has another identity");
    // The new firmware has a copy, and migrates it.
    ensure!(machine.must(&format!("cat {GENERATION}/setting"))? == "old\n", "no copy of the configuration");
    machine.must(&format!("echo migrated >{GENERATION}/setting; sync"))?;
    // Back to the old one, which has its own.
    revert(&mut machine)?;
    reboot(&mut machine)?;
    settled_in(&mut machine, 1)?;
    let setting = machine.copy_out(&format!("{GENERATION}/setting"))?;
    ensure!(
        setting == b"old\n",
        "the old firmware's configuration is {:?}",
        String::from_utf8_lossy(&setting)
    );
    Ok(())
}

/// Goes back to the fallback. The date of the configuration that comes back must be named; the refusal tells it.
fn revert(machine: &mut Machine) -> anyhow::Result<()> {
    let asked = machine.run("spsctl revert --reason 'in a test'")?;
    if asked.code == 0 {
        return Ok(());
    }
    let date = asked.output.split("--accept-config ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let date = date.with_context(|| format!("the refusal names no date: {}", asked.output))?;
    machine.must(&format!("spsctl revert --reason 'in a test' --accept-config {date}")).map(drop)
}

fn ill(stage: &Stage) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Selected, "ill")?;
    machine.must(&format!("echo old >{GENERATION}/setting; sync"))?;
    reboot(&mut machine)?;
    machine.restarted()?;
    machine.login()?;
    let all = settled_in(&mut machine, 1)?;
    let reason = outcome(&all, "failed")?;
    ensure!(reason.contains(ILLNESS), "the reason is {reason:?}");
    ensure!(machine.must(&format!("cat {GENERATION}/setting"))? == "old\n", "another configuration");
    let logged = machine.must("journalctl --no-pager -o cat -u sps-health.service")?;
    ensure!(logged.contains(ILLNESS), "the log of the failed firmware is lost: {logged}");
    Ok(())
}

/// A trial that ends in `mishap` ends in the firmware before.
fn comes_back(stage: &Stage, mishap: &str) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Selected, mishap)?;
    machine.begin("systemctl reboot")?;
    machine.restarted()?;
    machine.wait(&[&format!("mishap: {mishap}")], BOOT)?;
    back_on_one(&mut machine)
}

/// Waits until the first firmware runs again, and the upgrade is told to have failed.
fn back_on_one(machine: &mut Machine) -> anyhow::Result<()> {
    machine.wait(&[FIRMWARE_STARTS], HANG)?;
    machine.login()?;
    let all = settled_in(machine, 1)?;
    outcome(&all, "failed").map(drop)
}

/// What the page of recovery begins with.
const PAGE: &str = "=== SPS recovery: no firmware runs ===";

fn garbage_image(stage: &Stage) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Selected, "none")?;
    machine.must("truncate --size 100000 /efi/EFI/Linux/sps-slot-2.efi; sync")?;
    machine.begin("systemctl reboot")?;
    // The UEFI firmware's order: the loader, which returns, then recovery.
    machine.wait(&[PAGE], BOOT)?;
    machine.wait(&["Slot 1 (8.0.1) is sound and is started again in 15 s"], BOOT)?;
    machine.login()?;
    let all = settled_in(&mut machine, 1)?;
    outcome(&all, "failed")?;
    let kept = machine.must("spsctl state show")?;
    ensure!(!kept.contains("\"boots\""), "starts are still counted: {kept}");
    Ok(())
}

/// Answers one question of recovery's console.
fn answer(machine: &mut Machine, question: &str, with: &str) -> anyhow::Result<()> {
    machine.wait(&[question], BOOT)?;
    machine.type_in(&format!("{with}\r"))
}

fn both_broken(stage: &Stage) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Upgraded, "none")?;
    for slot in [1, 2] {
        // Head and trailer.
        let device = format!("/dev/sps/slot-{slot}");
        let size: u64 = machine.must(&format!("blockdev --getsize64 {device}"))?.trim().parse()?;
        zero(&mut machine, &device, 0, 1 << 20)?;
        zero(&mut machine, &device, size - (1 << 20), 1 << 20)?;
    }
    machine.reset()?;
    machine.wait(&[PAGE], 2 * BOOT)?;
    machine.wait(&["Slot 1: not sound: "], BOOT)?;
    machine.wait(&["Slot 2: not sound: "], BOOT)?;
    for (question, with) in [("Choice: ", "3"), ("Medium: ", "1"), ("chooses): ", "1"), ("Press Enter. ", "")]
    {
        answer(&mut machine, question, with)?;
    }
    machine.wait(&["Slot 1: 8.0.2, sound"], BOOT)?;
    answer(&mut machine, "Choice: ", "2")?;
    answer(&mut machine, "Slot: ", "1")?;
    machine.login()?;
    let all = settled_in(&mut machine, 1)?;
    outcome(&all, "confirmed").map(drop)
}

fn wrong_root(stage: &Stage) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Selected, "none")?;
    // The top of the hash tree, behind its superblock.
    let offset = tree_offset(&mut machine, 2)?;
    zero(&mut machine, "/dev/sps/slot-2", offset + 4096, 4096)?;
    machine.begin("systemctl reboot")?;
    machine.restarted()?;
    back_on_one(&mut machine)
}

/// Where the hash tree of a slot begins: its boot image says so.
fn tree_offset(machine: &mut Machine, slot: u32) -> anyhow::Result<u64> {
    let found = machine
        .must(&format!("grep -a -o 'hash-offset=[0-9]*' /efi/EFI/Linux/sps-slot-{slot}.efi | head -n1"))?;
    found
        .trim()
        .rsplit('=')
        .next()
        .unwrap_or_default()
        .parse()
        .with_context(|| format!("offset in {found:?}"))
}

fn zero(machine: &mut Machine, device: &str, offset: u64, length: u64) -> anyhow::Result<()> {
    let command = format!(
        "dd if=/dev/zero of={device} bs=4096 seek={} count={} conv=notrunc,fsync status=none",
        offset / 4096,
        length / 4096
    );
    machine.must(&command).map(drop)
}

fn rotten_root(stage: &Stage) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Upgraded, "none")?;
    // A byte that every start reads: the superblock of the file system.
    machine.must("printf X | dd of=/dev/sps/slot-2 bs=1 seek=1100 conv=notrunc,fsync status=none")?;
    machine.begin("dd if=/dev/mapper/root of=/dev/null bs=4096 count=1 iflag=direct")?;
    machine.wait(&["Kernel panic"], BOOT)?;
    // Three starts of the default, then the other one.
    for _ in 0..4 {
        machine.restarted()?;
    }
    machine.login()?;
    let all = settled(&mut machine)?;
    ensure!(all["status"]["booted"] == 1, "expected slot 1 to run: {all:#}");
    Ok(())
}

fn default_gone(stage: &Stage) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Upgraded, "none")?;
    machine.must("rm /efi/EFI/Linux/sps-slot-2.efi; sync")?;
    reboot(&mut machine)?;
    let all = settled(&mut machine)?;
    ensure!(all["status"]["booted"] == 1, "expected slot 1 to run: {all:#}");
    // slotd has made the image anew from the slot.
    machine.must("test -e /efi/EFI/Linux/sps-slot-2.efi").map(drop)
}

fn variables_lost(stage: &Stage) -> anyhow::Result<()> {
    let (hardware, mut machine) = stage.resume(Kept::Upgraded, "none")?;
    machine.must("sync")?;
    drop(machine);
    hardware.lose_variables()?;
    let mut machine = hardware.power_on(&Options { media: &[&stage.firmware(2)?], ..Options::default() })?;
    machine.login()?;
    settled_in(&mut machine, 2)?;
    // slotd has written them again.
    machine.must("ls /sys/firmware/efi/efivars/LoaderEntryDefault-*").map(drop)
}

fn variables_full(stage: &Stage) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Selected, "none")?;
    machine.must("spsctl deactivate 2")?;
    let fill = "i=0; while [ $i -lt 200 ]; do \
        { printf '\\007\\000\\000\\000'; head -c 4000 /dev/zero; } \
        >/sys/firmware/efi/efivars/Fill$i-12345678-1234-1234-1234-123456789abc 2>/dev/null || break; \
        i=$((i+1)); done; echo $i";
    let filled = machine.must(fill)?;
    ensure!(filled.trim() != "200", "the variables did not become full");
    let selected = machine.run("spsctl test 2 && spsctl activate 2 --message 'in a test'")?;
    reboot(&mut machine)?;
    // Selected or not: a firmware runs, and is the one that is said to run.
    let all = settled(&mut machine)?;
    let booted = all["status"]["booted"].as_u64().unwrap_or_default();
    ensure!(booted == 1 || (booted == 2 && selected.code == 0), "{selected:?}, then {all:#}");
    Ok(())
}

fn esp_emptied(stage: &Stage) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Upgraded, "none")?;
    machine.must("rm -rf /efi/EFI/Linux /efi/loader; sync")?;
    machine.must("systemctl restart slotd.service")?;
    settled_in(&mut machine, 2)?;
    reboot(&mut machine)?;
    let all = settled_in(&mut machine, 2)?;
    ensure!(all["slots"][1]["state"] == "verified", "slot 1 is not whole again: {all:#}");
    machine.must("test -e /efi/EFI/Linux/sps-slot-1.efi && test -e /efi/loader/loader.conf").map(drop)
}

fn data_full(stage: &Stage) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Running, "none")?;
    machine.run("dd if=/dev/zero of=/data/var/fill bs=1M; sync")?;
    reboot(&mut machine)?;
    settled_in(&mut machine, 1)?;
    tainted(&mut machine, "data-full")
}

/// What was noticed is on record.
fn tainted(machine: &mut Machine, kind: &str) -> anyhow::Result<()> {
    let records = machine.must("spsctl taint")?;
    ensure!(records.contains(kind), "{kind} is not on record: {records}");
    Ok(())
}

fn data_garbage(stage: &Stage) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Running, "none")?;
    machine.must("dd if=/dev/urandom of=/dev/sps/data bs=1M count=64 conv=notrunc,fsync status=none")?;
    machine.reset()?;
    machine.restarted()?;
    machine.login()?;
    settled_in(&mut machine, 1)?;
    tainted(&mut machine, "data-lost")?;
    machine.must("grep ' /var ' /proc/mounts | grep tmpfs").map(drop)
}

fn state_lost(stage: &Stage, source: &str) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Upgraded, "none")?;
    machine
        .must(&format!("dd if={source} of=/dev/sps/state bs=64k count=16 conv=notrunc,fsync status=none"))?;
    machine.reset()?;
    machine.restarted()?;
    machine.login()?;
    let all = settled(&mut machine)?;
    ensure!(all["status"]["booted"] == 2, "expected slot 2 to run: {all:#}");
    // Both slots are still what their signatures say.
    for slot in [1, 2] {
        ensure!(all["slots"][slot]["state"] == "verified", "slot {slot}: {all:#}");
    }
    let warnings = all["status"]["warnings"].to_string();
    ensure!(warnings.contains("state"), "nobody is told that the state was lost: {warnings}");
    Ok(())
}

/// A cut comes within so many milliseconds: an install takes about as long.
const MOMENTS: u64 = 60_000;

/// What is cut, and from where.
const CUT: [(Kept, &str); 5] = [
    (Kept::Running, "spsctl install - </dev/vdb"),
    (Kept::Selected, "spsctl deactivate 2; spsctl test 2 && spsctl activate 2"),
    (Kept::Selected, "systemctl reboot"),
    (Kept::Upgraded, "spsctl confirm; spsctl revert --reason test"),
    (Kept::Upgraded, "rm /efi/EFI/Linux/sps-recovery-*; systemctl restart slotd"),
];

fn power_cuts(stage: &Stage, asked: Asked) -> anyhow::Result<()> {
    for round in 0..asked.rounds {
        let (kept, command) = CUT[round as usize % CUT.len()];
        let milliseconds = Draw::new(asked.seed, &[round.into()]).word() % MOMENTS;
        let after = Duration::from_millis(milliseconds);
        cut(stage, kept, command, after).with_context(|| {
            format!("round {round} of seed {}: power cut {after:?} after {command:?}", asked.seed)
        })?;
        eprintln!("vm: cut {after:?} after {command:?}: ok");
    }
    Ok(())
}

fn cut(stage: &Stage, kept: Kept, command: &str, after: Duration) -> anyhow::Result<()> {
    let (hardware, mut machine) = stage.resume(kept, "none")?;
    machine.begin(command)?;
    // The moment is drawn; nothing says this.
    let _ = machine.wait(&["@@never@@"], after);
    drop(machine);
    let mut machine = hardware.power_on(&Options { media: &[&stage.firmware(2)?], ..Options::default() })?;
    machine.login()?;
    sound(&mut machine)?;
    // The interrupted action can be repeated.
    if matches!(kept, Kept::Running) {
        machine.must(
            "spsctl install - </dev/vdb || spsctl install --slot 2 --replace - </dev/vdb || spsctl verify 2",
        )?;
        let all = sound(&mut machine)?;
        ensure!(all["slots"][2]["state"] == "verified", "the install repeated: {all:#}");
    }
    Ok(())
}

/// What runs is confirmed in the end, or a trial that was asked for.
fn sound(machine: &mut Machine) -> anyhow::Result<Value> {
    let all = settled(machine)?;
    let booted = all["status"]["booted"].as_u64().unwrap_or_default();
    let slot = usize::try_from(booted).ok().and_then(|slot| all["slots"].get(slot));
    ensure!(slot.is_some_and(|slot| slot["state"] == "verified"), "what runs does not verify: {all:#}");
    ensure!(all["status"]["confirmed"] == true, "what runs was not confirmed: {all:#}");
    Ok(all)
}

fn refused(stage: &Stage) -> anyhow::Result<()> {
    let hardware = stage.switched_off(Kept::Running)?;
    let mut machine = hardware.power_on(&Options { media: &[&stage.firmware(3)?], ..Options::default() })?;
    machine.login()?;
    settled_in(&mut machine, 1)?;
    machine.must("spsctl install - </dev/vdb")?;
    let tested = machine.run("spsctl test 2")?;
    ensure!(tested.code != 0, "the test passed: {}", tested.output);
    ensure!(tested.output.contains(REFUSAL), "the message is not shown: {}", tested.output);
    let activated = machine.run("spsctl activate 2")?;
    ensure!(activated.code != 0, "a firmware that refuses was selected: {}", activated.output);
    Ok(())
}

fn answers(stage: &Stage) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Running, "none")?;
    let said = machine.must(
        "spsctl install --json - </dev/vdb >/run/installed & install=$!; n=0; \
         while kill -0 $install 2>/dev/null; do \
         spsctl status >/dev/null && journalctl -n1 >/dev/null && systemctl is-active slotd.service >/dev/null \
         && n=$((n+1)) || { echo failed; break; }; done; wait $install; echo $? $n",
    )?;
    let mut words = said.split_whitespace();
    ensure!(words.next() == Some("0"), "the install, or what was asked during it, failed: {said}");
    let answered: u32 = words.next().unwrap_or_default().parse().context("number of answers")?;
    ensure!(answered >= 3, "only {answered} answers during the install");
    Ok(())
}

fn repair(stage: &Stage) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Upgraded, "none")?;
    let twice = machine.run("spsctl install --slot 1 --replace - </dev/vdb")?;
    ensure!(twice.code == 22, "the same firmware in both slots: {}: {}", twice.code, twice.output);
    // Rot in the middle of the fallback's root.
    let middle = tree_offset(&mut machine, 1)? / 8192 * 4096;
    zero(&mut machine, "/dev/sps/slot-1", middle, 4096)?;
    let verified = machine.run("spsctl verify 1 --full")?;
    ensure!(verified.code != 0, "rot was not found: {}", verified.output);
    let all = settled(&mut machine)?;
    ensure!(all["slots"][1]["state"] == "bad", "slot 1 should be bad: {all:#}");
    ensure!(all["status"]["booted"] == 2, "{all:#}");
    // Its own firmware again, from the other stick.
    machine.must("spsctl install --repair --slot 1 - </dev/vdc")?;
    let all = settled(&mut machine)?;
    ensure!(all["slots"][1]["state"] == "verified", "slot 1 is not repaired: {all:#}");
    Ok(())
}

fn pulled(stage: &Stage) -> anyhow::Result<()> {
    let (hardware, stick) = (stage.switched_off(Kept::Running)?, stage.firmware(2)?);
    let mut machine = hardware.power_on(&Options { stick: Some(&stick), ..Options::default() })?;
    machine.login()?;
    settled_in(&mut machine, 1)?;
    machine.begin("{ spsctl install --json - </dev/sda >/run/said 2>&1; echo $? >/run/code; }")?;
    machine.must(
        "(until spsctl slots --json | grep -q '\"writing\"'; do test ! -e /run/code || exit 1; done)",
    )?;
    machine.pull()?;
    machine.run("until test -e /run/code; do sleep 0.2; done")?;
    let (code, said) = (machine.must("cat /run/code")?, machine.must("cat /run/said")?);
    ensure!(code.trim() != "0" && said.contains("cannot"), "an install without its medium: {code}{said}");
    let all = settled_in(&mut machine, 1)?;
    ensure!(all["slots"][2]["state"] == "writing", "half an install: {all:#}");
    // The same stick again, and the install goes on.
    machine.plug()?;
    machine.must("until test -b /dev/sda && head -c1 /dev/sda >/dev/null 2>&1; do sleep 0.2; done")?;
    machine.must("spsctl install --json - </dev/sda")?;
    let all = settled_in(&mut machine, 1)?;
    ensure!(all["slots"][2]["state"] == "verified", "the install repeated: {all:#}");
    Ok(())
}

fn recorded(stage: &Stage) -> anyhow::Result<()> {
    let directory = stage.recording()?;
    let hardware = Hardware::new(&directory.join(replay::DISK))?;
    let (media, log) = ([&*stage.firmware(2)?], directory.join(replay::WRITES));
    let mut machine =
        hardware.power_on(&Options { media: &media, record: Some(&log), ..Options::default() })?;
    machine.login()?;
    settled_in(&mut machine, 1)?;
    select(&mut machine)?;
    reboot(&mut machine)?;
    settled_in(&mut machine, 2)?;
    machine.must("sync")?;
    drop(machine);
    eprintln!("vm: cargo xtask prove --replay-disk {}", directory.display());
    let report = replay::judge(&directory, None)?;
    eprintln!("vm: {report}");
    ensure!(report.violations.is_empty(), "{report}");
    ensure!(report.judged >= 20 && report.checks >= 2, "there was little to judge: {report}");
    // A judge that finds nothing proves nothing.
    for part in ["esp", "sps-slot-2", "sps-state"] {
        let report = replay::judge(&directory, Some(part))?;
        ensure!(
            !report.violations.is_empty(),
            "a flipped bit in each write to {part} is not found: {report}"
        );
        eprintln!("vm: {part} spoiled: {}", report.violations.first().map_or("", String::as_str));
    }
    Ok(())
}

/// The last byte tells.
const SECURE_BOOT: &str = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

fn secure_boot(stage: &Stage) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Running, "none")?;
    // In setup mode, in a virtual machine, the loader enrolls what lies there by itself, and restarts.
    machine.must("mv /efi/loader/keys/sps /efi/loader/keys/auto; sync")?;
    machine.begin("systemctl reboot")?;
    machine.wait(&["successfully enrolled"], BOOT)?;
    machine.login()?;
    settled_in(&mut machine, 1)?;
    let on = machine.must(&format!("tail -c1 {SECURE_BOOT} | od -An -tu1"))?;
    ensure!(on.trim() == "1", "Secure Boot is off: {on:?}");
    let lockdown = machine.must("cat /sys/kernel/security/lockdown")?;
    ensure!(lockdown.contains("[integrity]"), "the kernel does not know of Secure Boot: {lockdown}");
    let image = "/efi/EFI/Linux/sps-slot-2.efi";
    // One bit in the middle; and no signature (PE, "Optional Header Data Directories": the fifth, of a PE32+ image).
    let altered = format!(
        "at=$(($(stat -c %s {image}) / 2)); byte=$(od -An -tu1 -j$at -N1 {image}); \
         printf \"\\\\$(printf %03o $((byte ^ 1)))\" | dd of={image} bs=1 seek=$at conv=notrunc,fsync status=none"
    );
    let header = format!("$(od -An -tu4 -j60 -N4 {image})");
    let unsigned = format!(
        "dd if=/dev/zero of={image} bs=1 count=8 seek=$(({header} + 168)) conv=notrunc,fsync status=none"
    );
    select(&mut machine)?;
    for (what, how) in [("altered", altered), ("unsigned", unsigned)] {
        machine.must(&how)?;
        machine.begin("systemctl reboot")?;
        machine.wait(&[PAGE], BOOT).with_context(|| format!("{what}: recovery does not come"))?;
        machine.wait(&["Slot 1 (8.0.1) is sound and is started again in 15 s"], BOOT)?;
        machine.login()?;
        let all = settled_in(&mut machine, 1)?;
        outcome(&all, "failed")?;
        machine.must("spsctl test 2 && spsctl activate 2 --message 'in a test'")?;
    }
    // As it was signed it is started.
    reboot(&mut machine)?;
    settled_in(&mut machine, 2).map(drop)
}

/// The scenarios of these numbers.
pub fn chosen(numbers: &[String]) -> anyhow::Result<Vec<Scenario>> {
    let mut found = Vec::new();
    for number in numbers {
        let before = found.len();
        found.extend(ALL.iter().filter(|one| {
            one.number == number || one.number.trim_end_matches(char::is_alphabetic) == number
        }));
        if found.len() == before {
            bail!("no scenario {number}; `--list` names them");
        }
    }
    Ok(found)
}
