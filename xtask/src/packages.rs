//! The Debian 12 packages that the tasks need, and how they get there.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};

use crate::process;

/// What a package is needed for. A task needs what is listed for it and for those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum For {
    /// `cargo xtask test`, `demo` and `image`.
    Test,
    /// `cargo xtask bench`.
    Bench,
}

/// Package, a program of it (for systems without dpkg; a path when it has none), and what needs it.
const TABLE: &[(&str, &str, For)] = &[
    ("binutils", "readelf", For::Test),
    ("bubblewrap", "bwrap", For::Test),
    ("busybox-static", "busybox", For::Test),
    ("ca-certificates", "/etc/ssl/certs/ca-certificates.crt", For::Test),
    ("coreutils", "timeout", For::Test),
    ("cpio", "cpio", For::Test),
    ("cryptsetup-bin", "veritysetup", For::Test),
    ("dbus", "dbus-daemon", For::Test),
    ("debian-archive-keyring", "/usr/share/keyrings/debian-archive-keyring.gpg", For::Test),
    ("dosfstools", "mkfs.vfat", For::Test),
    ("dpkg", "dpkg-deb", For::Test),
    ("e2fsprogs", "mkfs.ext4", For::Test),
    ("efibootmgr", "efibootmgr", For::Test),
    ("efitools", "sign-efi-sig-list", For::Test),
    ("efivar", "efivar", For::Test),
    ("erofs-utils", "mkfs.erofs", For::Test),
    ("faketime", "faketime", For::Test),
    ("fdisk", "sfdisk", For::Test),
    ("findutils", "find", For::Test),
    ("g++", "g++", For::Test),
    ("git", "git", For::Test),
    ("groff-base", "groff", For::Test),
    ("grub-common", "grub-editenv", For::Test),
    ("gzip", "gzip", For::Test),
    ("libglib2.0-bin", "gdbus", For::Test),
    ("lintian", "lintian", For::Test),
    ("mmdebstrap", "mmdebstrap", For::Test),
    ("mount", "mount", For::Test),
    ("mtools", "mcopy", For::Test),
    ("openssl", "openssl", For::Test),
    ("ovmf", "/usr/share/OVMF/OVMF_CODE_4M.fd", For::Test),
    ("polkitd", "pkaction", For::Test),
    ("procps", "ps", For::Test),
    ("python3", "python3", For::Test),
    ("python3-venv", "python3", For::Test),
    ("qemu-system-x86", "qemu-system-x86_64", For::Test),
    ("qemu-utils", "qemu-img", For::Test),
    ("sbsigntool", "sbsign", For::Test),
    ("systemd", "systemd-analyze", For::Test),
    ("util-linux", "setpriv", For::Test),
    ("xorriso", "xorriso", For::Test),
    ("zstd", "zstd", For::Test),
    ("rauc", "rauc", For::Bench),
    ("squashfs-tools", "mksquashfs", For::Bench),
    ("swupdate", "swupdate", For::Bench),
];

/// Makes sure that everything needed is installed: installs it as root, otherwise says how and fails.
pub(crate) fn ensure(need: For) -> Result<()> {
    let wanted = TABLE.iter().filter(|(_, _, needed_for)| *needed_for <= need);
    if !process::exists("dpkg-query") {
        let missing: Vec<_> =
            wanted.filter(|(_, program, _)| !present(program)).map(|(name, ..)| *name).collect();
        if missing.is_empty() {
            return Ok(());
        }
        bail!("this system has no dpkg; install what Debian 12 calls: {}", missing.join(" "));
    }
    let wanted: Vec<&str> = wanted.map(|(name, ..)| *name).collect();
    // Exits nonzero when a name is unknown; what it prints is what counts.
    let known = process::command("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\\n"])
        .args(&wanted)
        .output()
        .context("cannot start dpkg-query")?;
    let missing = missing(&wanted, &String::from_utf8_lossy(&known.stdout));
    if missing.is_empty() {
        return Ok(());
    }
    let install = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    if !nix::unistd::geteuid().is_root() {
        bail!("Debian packages are missing; install them with\n\n    sudo {install}\n");
    }
    println!("== installing missing Debian packages: {}", missing.join(" "));
    let apt = || {
        let mut command = process::command("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.args(["-q", "-o", "Acquire::Retries=5", "-o", "DPkg::Lock::Timeout=300"]);
        command
    };
    process::run(apt().arg("update"))?;
    process::run(apt().args(["install", "-y", "--no-install-recommends"]).args(&missing))
}

fn present(program: &str) -> bool {
    if program.starts_with('/') { std::path::Path::new(program).exists() } else { process::exists(program) }
}

/// Which of `wanted` are not among the lines `NAME installed`.
fn missing<'a>(wanted: &[&'a str], known: &str) -> Vec<&'a str> {
    let installed: BTreeSet<&str> =
        known.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    wanted.iter().copied().filter(|name| !installed.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fully_installed_packages_count() {
        let known = "dbus installed\ngit config-files\nzstd not-installed\n";
        assert_eq!(missing(&["dbus", "git", "zstd", "rauc"], known), ["git", "zstd", "rauc"]);
    }

    #[test]
    fn every_tool_of_the_image_builder_is_listed() {
        for package in sps_images::tool::PACKAGES {
            assert!(TABLE.iter().any(|(name, ..)| *name == package), "{package}");
        }
    }

    #[test]
    fn table_is_sorted_and_the_benchmark_needs_what_the_tests_need() {
        let keys: Vec<_> = TABLE.iter().map(|(name, _, need)| (*need, *name)).collect();
        assert!(keys.is_sorted(), "{keys:?}");
        assert!(For::Test < For::Bench);
    }
}
