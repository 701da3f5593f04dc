//! Boot images: PE/COFF as a unified kernel image is, with a command line and filler where kernel and initrd would be.
//!
//! Format: Microsoft's "PE Format" (PE32+), as far as a UKI stub needs it to find its sections.

use anyhow::{Context, ensure};

const PE_OFFSET: usize = 64;
const COFF: usize = 20;
const OPTIONAL: usize = 240;
const SECTION: usize = 40;
const ALIGNMENT: usize = 512;
const PAGE: usize = 4096;
const CMDLINE: &[u8; 8] = b".cmdline";
const LINUX: &[u8; 8] = b".linux\0\0";
/// Initialised, readable data.
const DATA: u32 = 0x4000_0040;

/// A boot image with this command line; `filler` stands for the kernel.
pub fn render(cmdline: &str, filler: &[u8]) -> anyhow::Result<Vec<u8>> {
    let sections: [(&[u8; 8], &[u8]); 2] = [(CMDLINE, cmdline.as_bytes()), (LINUX, filler)];
    let headers = (PE_OFFSET + 4 + COFF + OPTIONAL + 2 * SECTION).next_multiple_of(ALIGNMENT);
    let (mut table, mut body) = (Vec::new(), Vec::new());
    let (mut address, mut at) = (PAGE, headers);
    for (name, content) in sections {
        let stored = content.len().next_multiple_of(ALIGNMENT);
        table.extend_from_slice(name);
        for number in [content.len(), address, stored, at, 0, 0, 0] {
            table.extend_from_slice(&u32::try_from(number)?.to_le_bytes());
        }
        table.extend_from_slice(&DATA.to_le_bytes());
        body.extend_from_slice(content);
        body.resize(body.len() + stored - content.len(), 0);
        at += stored;
        address += content.len().next_multiple_of(PAGE);
    }
    let mut image = vec![0; headers];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &u32::try_from(PE_OFFSET)?.to_le_bytes());
    put(PE_OFFSET, b"PE\0\0");
    let coff = PE_OFFSET + 4;
    put(coff, &0x8664_u16.to_le_bytes());
    put(coff + 2, &2_u16.to_le_bytes());
    put(coff + 16, &u16::try_from(OPTIONAL)?.to_le_bytes());
    put(coff + 18, &0x0022_u16.to_le_bytes());
    let optional = coff + COFF;
    put(optional, &0x20b_u16.to_le_bytes());
    put(optional + 32, &u32::try_from(PAGE)?.to_le_bytes());
    put(optional + 36, &u32::try_from(ALIGNMENT)?.to_le_bytes());
    put(optional + 56, &u32::try_from(address)?.to_le_bytes());
    put(optional + 60, &u32::try_from(headers)?.to_le_bytes());
    // An EFI application.
    put(optional + 68, &10_u16.to_le_bytes());
    put(optional + 108, &16_u32.to_le_bytes());
    put(optional + OPTIONAL, &table);
    image.extend_from_slice(&body);
    Ok(image)
}

/// The command line of a boot image.
pub fn parse(image: &[u8]) -> anyhow::Result<String> {
    ensure!(image.starts_with(b"MZ"), "no boot image: it does not begin with MZ");
    let pe = number(image, 0x3c)?;
    ensure!(bytes(image, pe, 4)? == b"PE\0\0", "no boot image: no PE signature at byte {pe}");
    let half = |at| Ok::<_, anyhow::Error>(u16::from_le_bytes(bytes(image, at, 2)?.try_into()?));
    let (count, optional) = (half(pe + 6)?, half(pe + 20)?);
    let table = pe + 4 + COFF + usize::from(optional);
    let mut cmdline = None;
    for section in (0..usize::from(count)).map(|index| table + index * SECTION) {
        let content = bytes(image, number(image, section + 20)?, number(image, section + 16)?);
        let content = content.context("the boot image is cut")?;
        if bytes(image, section, 8)? == CMDLINE {
            cmdline = content.get(..number(image, section + 8)?);
        }
    }
    let cmdline = cmdline.context("no boot image: it has no command line")?;
    Ok(String::from_utf8(cmdline.to_vec())?)
}

fn bytes(image: &[u8], at: usize, length: usize) -> anyhow::Result<&[u8]> {
    let end = at.checked_add(length).context("an offset out of range")?;
    image.get(at..end).with_context(|| format!("the boot image ends before byte {end}"))
}

fn number(image: &[u8], at: usize) -> anyhow::Result<usize> {
    Ok(u32::from_le_bytes(bytes(image, at, 4)?.try_into()?) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const LINE: &str = "roothash=ab systemd.verity_root_options=hash-offset=4096,panic-on-corruption ro";

    #[test]
    fn a_stock_tool_reads_the_command_line() {
        let dir = tempfile::tempdir().unwrap();
        let (image, section) = (dir.path().join("boot.efi"), dir.path().join("cmdline"));
        std::fs::write(&image, render(LINE, &vec![7; 70_000]).unwrap()).unwrap();
        let output = Command::new("objcopy")
            .arg("--dump-section")
            .arg(format!(".cmdline={}", section.display()))
            .args([&image, &dir.path().join("copy")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let found = std::fs::read_to_string(&section).unwrap();
        assert_eq!(found.trim_end_matches('\0'), LINE);
    }

    #[test]
    fn a_cut_or_foreign_image_does_not_start() {
        let image = render(LINE, &vec![7; 70_000]).unwrap();
        assert_eq!(parse(&image).unwrap(), LINE);
        for length in [0, 1, 100, 400, 600, image.len() - 1] {
            assert!(parse(&image[..length]).is_err(), "{length}");
        }
        assert!(parse(&[7; 4096]).is_err());
    }
}
