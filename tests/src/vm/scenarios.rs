//! What an appliance lives through, each from a machine that was kept while it ran.
//!
//! Numbers are those of `docs/appliance.md`, "What is shown in a machine".

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::machine::{BOOT, FIRMWARE_STARTS, Machine, Options};
use super::stage::{ILLNESS, Kept, REFUSAL, Stage, reboot, settled, settled_in};
use crate::crash::states::draw::Draw;

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

fn outcome<'a>(all: &'a Value, expected: &str) -> anyhow::Result<&'a str> {
    let last = &all["status"]["last_upgrade"];
    ensure!(last["outcome"] == expected, "expected {expected}: {last:#}");
    Ok(last["reason"].as_str().unwrap_or_default())
}

fn upgrade(stage: &Stage) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Selected, "none")?;
    machine.must(&format!("echo old >{GENERATION}/setting; sync"))?;
    let identity = machine.must("cat /etc/machine-id")?;
    reboot(&mut machine)?;
    let all = settled_in(&mut machine, 2)?;
    outcome(&all, "confirmed")?;
    ensure!(machine.must("cat /etc/machine-id")? == identity, "the machine has another identity");
    // The new firmware has a copy, and migrates it.
    ensure!(machine.must(&format!("cat {GENERATION}/setting"))? == "old\n", "no copy of the configuration");
    machine.must(&format!("echo migrated >{GENERATION}/setting; sync"))?;
    // Back to the old one, which has its own.
    revert(&mut machine)?;
    reboot(&mut machine)?;
    settled_in(&mut machine, 1)?;
    let setting = machine.must(&format!("cat {GENERATION}/setting"))?;
    ensure!(setting == "old\n", "the old firmware's configuration is {setting:?}");
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
    let mut machine = hardware.power_on(&Options { media: &[&stage.firmware(2)?], mishap: None })?;
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
    settled_in(&mut machine, 1).map(drop)
}

fn data_garbage(stage: &Stage) -> anyhow::Result<()> {
    let (_hardware, mut machine) = stage.resume(Kept::Running, "none")?;
    machine.must("dd if=/dev/urandom of=/dev/sps/data bs=1M count=64 conv=notrunc,fsync status=none")?;
    machine.reset()?;
    machine.restarted()?;
    machine.login()?;
    settled_in(&mut machine, 1)?;
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
    let mut machine = hardware.power_on(&Options { media: &[&stage.firmware(2)?], mishap: None })?;
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
    let mut machine = hardware.power_on(&Options { media: &[&stage.firmware(3)?], mishap: None })?;
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
