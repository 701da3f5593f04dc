//! What the fuzz targets of `tests/fuzz` begin with: a keyring, firmware, and good inputs of every format, made by the
//! project's own generators and stock tools. Nothing of it is committed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::json;
use slotd::domain::layout::Layout;
use slotd::domain::manifest::{MANIFEST_NAME, SIGNATURE_NAME};
use slotd::domain::state::State;
use slotd::domain::taint;
use slotd::domain::trailer::{self, Trailer};
use slotd::domain::{efivar, envblk, loader_conf};
use sps_base::durable::{self, Record};
use sps_images::{Pki, erofs};

use crate::iso_writer::{FIRST_FILE, SECTOR};
use crate::synthetic::{Shape, Synthetic};

/// Length of a root in bytes: one block more than one hash block covers, so that the tree has two levels.
const ROOT_LEN: usize = 129 << 12;

/// One input, its bytes.
type Seeds = Vec<Vec<u8>>;

/// Writes `fixtures/` and `seeds/TARGET/` into `dir`. The PKI there is kept, so that a corpus stays good.
pub fn write(dir: &Path) -> anyhow::Result<()> {
    let fixtures = dir.join("fixtures");
    fs::create_dir_all(&fixtures)?;
    let work = tempfile::tempdir_in(dir)?;
    let pki = Pki::open_or_create(dir.join("pki"), "fuzz")?;
    for name in ["root.pem", "root.crl", "intermediate.crl"] {
        fs::copy(pki.keyring_dir().join(name), fixtures.join(name))?;
    }
    for (command, name) in [("crl", "intermediate.crl"), ("crl", "root.crl"), ("x509", "root.pem")] {
        let out = fixtures.join(format!("{name}.der"));
        let args = [command, "-outform", "DER", "-in"];
        run(Command::new("openssl").args(args).arg(fixtures.join(name)).arg("-out").arg(out))?;
    }
    for (name, version) in [("running", "8.0.1"), ("old", "8.0.2"), ("new", "8.0.3")] {
        let (boot_len, recovery_len) = (5000, 3000);
        let shape = Shape { version, root_len: ROOT_LEN, boot_len, recovery_len, epoch: 1 };
        let firmware = Synthetic::shaped(&shape, &pki, work.path())?;
        let mut image = Vec::new();
        (&firmware.iso).read_to_end(&mut image)?;
        fs::write(fixtures.join(format!("{name}.iso")), &image)?;
        fs::write(fixtures.join(format!("{name}.json")), firmware.manifest.render())?;
        if name == "new" {
            fs::write(fixtures.join(MANIFEST_NAME), firmware.manifest.render())?;
            fs::write(fixtures.join(SIGNATURE_NAME), &firmware.signature)?;
            for (target, seeds) in of_firmware(&firmware, &image, &fixtures)? {
                store(dir, target, seeds)?;
            }
        }
    }
    for (target, seeds) in of_texts()? {
        store(dir, target, seeds)?;
    }
    store(dir, "erofs", of_erofs(work.path())?)
}

fn store(dir: &Path, target: &str, seeds: Seeds) -> anyhow::Result<()> {
    let place = dir.join("seeds").join(target);
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::create_dir_all(&place)?;
    for (number, seed) in seeds.into_iter().enumerate() {
        fs::write(place.join(number.to_string()), seed)?;
    }
    Ok(())
}

/// A byte that chooses what a target does with the rest, and the rest.
fn with(mode: u8, bytes: &[u8]) -> Vec<u8> {
    [&[mode], bytes].concat()
}

fn both(modes: &[u8], bytes: &[u8]) -> Seeds {
    modes.iter().map(|mode| with(*mode, bytes)).collect()
}

/// Noise of these lengths, for targets that make their cases of any bytes; nothing at all is the good case.
fn noise(lengths: &[usize]) -> Seeds {
    let byte = |n: usize| u8::try_from(n.wrapping_mul(167) >> 3 & 0xff).unwrap_or(0);
    lengths.iter().map(|len| (0..*len).map(byte).collect()).collect()
}

fn of_firmware(
    firmware: &Synthetic,
    image: &[u8],
    fixtures: &Path,
) -> anyhow::Result<BTreeMap<&'static str, Seeds>> {
    let text = firmware.manifest.render();
    let head = image.get(16 * SECTOR..FIRST_FILE as usize * SECTOR).context("a short image")?;
    let layout = Layout::of(&firmware.manifest, text.len() as u64, firmware.signature.len() as u64);
    let trailer = trailer::render(&Trailer {
        sequence: 7,
        installed_at: 1_780_000_000,
        manifest: firmware.manifest.root.verity.root_hash,
        parts: layout.parts().to_vec(),
    });
    let der = |name: &str| fs::read(fixtures.join(format!("{name}.der")));
    let list = der("intermediate.crl")?;
    Ok(BTreeMap::from([
        ("iso", both(&[0, 1, 3], head)),
        ("manifest", vec![text.clone().into_bytes()]),
        ("signature", both(&[0, 1], &firmware.signature)),
        ("keyring", vec![with(0, &der("root.pem")?), with(1, &der("root.pem")?), with(2, &list)]),
        ("trailer", both(&[0, 1], &trailer)),
        ("verity", noise(&[0, 40, 200])),
        ("install", noise(&[0, 16, 64, 200, 600])),
        ("media", noise(&[0, 16, 64, 200, 600])),
    ]))
}

/// Three records.
fn taint_log() -> Vec<u8> {
    let record = |number| taint::Record::new(number, number, taint::Cause::DataFull, "no room").render();
    (1..4).flat_map(record).collect()
}

/// A state in which everything is set that can be.
fn state() -> serde_json::Value {
    let hash = "ab".repeat(32);
    let pending = json!({
        "slot": 2, "root_hash": hash, "version": "8.0.2", "from_version": "8.0.1", "kind": "upgrade",
        "message": "why", "who": "root", "at": 1_780_000_000_u64, "x": [1, 2.5, {"y": null}],
    });
    json!({
        "epoch_floor": 3, "time_floor": 1_770_000_000_u64,
        "intent": {"slot": 2, "action": "install", "manifest": hash, "transaction": "t-1", "sequence": 9,
            "source": [["root", {"offset": 4096, "size": 8192}]]},
        "checks": {"1": {"sequence": 4, "at": 5, "how": "full", "bad": "why"}},
        "pending": pending,
        "confirmed": {"slot": 1, "root_hash": hash, "at": 6, "before": [2, hash]},
        "taint": {"count": 1, "digest": hash, "beyond": 2, "standing": ["data-lost"], "x": 1,
            "owed": [{"number": 2, "at": 9, "cause": "data-lost", "place": "data", "detail": "why"}]},
        "boots": {"1": 2}, "refused": [{"root_hash": hash, "reason": "why", "at": 7}],
        "last_upgrade": {"selection": pending, "outcome": "failed", "reason": "why", "at": 8},
        "of a newer version": {"kept": true},
    })
}

fn of_texts() -> anyhow::Result<BTreeMap<&'static str, Seeds>> {
    let state = serde_json::to_vec(&state())?;
    State::parse(&state).context("the state that is a seed")?;
    let record = durable::render(&Record { sequence: 3, payload: state.clone() })?;
    // Two halves that are no whole records, but hold one each.
    let short = record.get(..64 + state.len()).unwrap_or_default();
    let mut environment = envblk::Environment::default();
    for (name, value) in [("saved_entry", "sps-slot-1"), ("next_entry", ""), ("other", "a\\b\nc")] {
        environment.set(name, value.as_bytes())?;
    }
    let block = environment.render()?;
    let settings = include_str!("../../systemd/slotd.toml");
    let all_set: String = settings.lines().map(|line| line.strip_prefix('#').unwrap_or(line)).fold(
        String::new(),
        |mut text, line| {
            // What was prose stays a comment.
            let comment = if line.starts_with(' ') || line.ends_with('.') { "#" } else { "" };
            text.extend([comment, line, "\n"]);
            text
        },
    );
    let entry = json!({
        "path": "/usr/bin/\\xff", "type": "file", "mode": 0o755, "uid": 0, "gid": 0, "size": 5000,
        "sha256": "00".repeat(32), "inode": 40, "at": [1280, 64], "extents": [[4096, 8192]],
    });
    let root = json!({"path": "/", "type": "dir", "mode": 0o755, "uid": 0, "gid": 0, "size": 40, "inode": 36,
        "at": [1152, 96], "device": [1, 3], "target": "x"});
    let list = format!("{root}\n{entry}\n");
    let report = json!({"schema": 1, "verity": "", "checks": [
        {"name": "10-disk", "result": "failed", "detail": "no space", "hint": "make some"}]});
    Ok(BTreeMap::from([
        (
            "taint",
            vec![
                with(0, &taint_log()),
                with(1, b"{\"number\":1,\"at\":1,\"cause\":\"x\",\"place\":\"y\",\"detail\":\"\"}"),
            ],
        ),
        ("state", vec![with(1, &state), with(0, &[short, short].concat())]),
        ("envblk", vec![with(0, &block), with(3, b"saved_entry=sps-slot-1\nnext_entry=\n# x\n")]),
        ("efivar", vec![efivar::encode("sps-slot-2.efi")?, efivar::encode("sps-recovery-8.0.1.efi")?]),
        (
            "loader_conf",
            vec![
                loader_conf::with_default(None, "sps-slot-1.efi")?,
                b"# ours\ndefault \"a b.efi\"\n\ntimeout\t3\r\ndefault c.efi\n".to_vec(),
            ],
        ),
        ("settings", vec![settings.into(), all_set.into_bytes()]),
        ("file_list", vec![with(0, &erofs::compress(&list)?), with(1, list.as_bytes())]),
        (
            "check_output",
            vec![with(200, report.to_string().as_bytes()), with(9, "a\t\u{1b}[1m\u{202e}b".as_bytes())],
        ),
    ]))
}

/// Small file systems of every layout that `mkfs.erofs` of this system makes.
fn of_erofs(work: &Path) -> anyhow::Result<Seeds> {
    let tree = work.join("tree");
    fs::create_dir_all(tree.join("etc/deep"))?;
    fs::write(tree.join("etc/short"), "text")?;
    fs::write(tree.join("etc/deep/even"), "0123456789abcdef".repeat(600))?;
    fs::hard_link(tree.join("etc/short"), tree.join("hard"))?;
    std::os::unix::fs::symlink("etc/short", tree.join("soft"))?;
    let mut seeds = Vec::new();
    let options: [&[&str]; 5] = [
        &[],
        &["-zlz4"],
        &["-zlz4", "-C8192", "-Eztailpacking"],
        &["-zlz4", "-Efragments"],
        &["--chunksize=4096"],
    ];
    for options in options {
        let image = work.join("image.erofs");
        let uuid = "-U5f5c82f4-4b0e-4b0c-9d6c-0d3b3f9d2c11";
        run(Command::new("mkfs.erofs").args(options).args(["-T0", uuid]).args([&image, &tree]))?;
        seeds.push(fs::read(&image)?);
        fs::remove_file(&image)?;
    }
    Ok(seeds)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
