//! The ISO file: order of the payload, names, time stamps, boot record.

use std::fs::File;
use std::path::Path;

use anyhow::Context as _;
use slotd::domain::manifest::{MANIFEST_NAME, PAYLOAD_ORDER, SIGNATURE_NAME};

use crate::tool::Tool;
use crate::{root, sbom};

/// Directory of the ISO that holds all files.
pub(crate) const DIRECTORY: &str = "/FIRMWARE";

/// Names of the files in the order in which they lie.
pub(crate) fn order() -> impl Iterator<Item = &'static str> {
    [MANIFEST_NAME, SIGNATURE_NAME].into_iter().chain(PAYLOAD_ORDER)
}

/// Writes the ISO `out` with the files of the directory `stage`, all time stamps at `epoch` (seconds since 1970). With
/// `esp` it boots by UEFI, from optical media and from USB sticks. `sbom` lies beside the directory, behind all payloads.
///
/// The names of the ISO 9660 directory records are the names above to the letter (`-U`: lower case, no `;1`), so a reader
/// needs no Rock Ridge; that is there all the same for tools, with fixed modes and owners.
pub(crate) fn write(
    stage: &Path,
    esp: Option<&Path>,
    sbom: Option<&Path>,
    epoch: u64,
    out: &Path,
) -> anyhow::Result<()> {
    let date = jiff::Timestamp::from_second(i64::try_from(epoch)?)?.strftime("%Y%m%d%H%M%S00").to_string();
    let mut tool = Tool::new("xorriso", "xorriso")
        .args(["-no_rc", "-as", "mkisofs", "-quiet", "-iso-level", "3", "-R", "-U", "-no-pad"])
        .args(["-V", "SPS_FIRMWARE", "-uid", "0", "-gid", "0", "-file-mode", "0444", "-dir-mode", "0555"])
        .arg(format!("--modification-date={date}"))
        .args(["--set_all_file_dates", &date]);
    if let Some(esp) = esp {
        let guid = hex::encode(&root::sha256(&stage.join(MANIFEST_NAME))?.0.0[..16]);
        tool = tool
            .args(["-append_partition", "2", "0xef"])
            .arg(esp)
            .args(["-appended_part_as_gpt", "--gpt_disk_guid", &guid])
            .args(["-c", "/boot.cat", "--boot-catalog-hide"])
            .args(["-e", "--interval:appended_partition_2:all::", "-no-emul-boot"]);
    }
    for (index, name) in order().enumerate().filter(|(_, name)| stage.join(name).exists()) {
        tool = tool.args(["--sort-weight", &(1000 - index).to_string(), &format!("{DIRECTORY}/{name}")]);
    }
    tool.arg("-o")
        .arg(out)
        .arg("-graft-points")
        .arg(format!("{DIRECTORY}={}", stage.display()))
        .args(sbom.map(|file| format!("/{}={}", sbom::FILE, file.display())))
        .run()
        .context("the ISO could not be written")?;
    Ok(())
}

/// Writes an EFI system partition with `uki` as its default program.
pub(crate) fn write_esp(uki: &Path, epoch: u64, out: &Path) -> anyhow::Result<()> {
    const MIB: u64 = 1 << 20;
    let size = (uki.metadata()?.len() + 2 * MIB).next_multiple_of(MIB);
    File::create(out)?.set_len(size)?;
    Tool::new("mkfs.vfat", "dosfstools")
        .args(["--invariant", "-i", "53505349", "-n", "SPS-ISO"])
        .arg(out)
        .run()?;
    let mtool = |name: &str| {
        Tool::new(name, "mtools").env("SOURCE_DATE_EPOCH", epoch.to_string()).env("MTOOLSRC", "/dev/null")
    };
    mtool("mmd").arg("-i").arg(out).args(["::/EFI", "::/EFI/BOOT"]).run()?;
    mtool("mcopy").arg("-i").arg(out).arg(uki).arg("::/EFI/BOOT/BOOTX64.EFI").run()?;
    Ok(())
}
