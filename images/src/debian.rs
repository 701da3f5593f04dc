//! The Debian 13 tree: the root of real firmware, and the tools that make it.
//!
//! `ukify`, `dracut` and `mkfs.erofs` of the host may be older or missing; those of the tree fit its kernel. They run in
//! the tree, mounted read-only in a mount namespace of their own, so that no run of a tool changes the next image.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use crate::BuildDirs;
use crate::packages_lock::{self, DebianPackage, Differences, Lock};
use crate::product;
use crate::tool::Tool;

const SUITE: &str = "trixie";
const MIRROR: &str = "http://deb.debian.org/debian";

/// The boot loader, systemd-boot, in the tree.
pub(crate) const LOADER: &str = "usr/lib/systemd/boot/efi/systemd-bootx64.efi";

/// Packages beside Debian's minimal set (`docs/appliance.md`).
const PACKAGES: [&str; 16] = [
    "dbus-broker",
    "dracut",
    "erofs-utils",
    "iproute2",
    "kmod",
    "linux-image-amd64",
    "openssh-server",
    "openssl",
    "polkitd",
    "systemd",
    "systemd-boot-efi",
    "systemd-cryptsetup",
    "systemd-sysv",
    "systemd-ukify",
    "udev",
    "zstd",
];

/// Writes beside the new tree what apt's index says of every package in it. What was given as a file is in dpkg's own list.
const RECORD: &str = r#"chroot "$1" sh -euc 'dpkg-query -W -f "\${Package}=\${Version}\n" | xargs apt-cache show' > "$1.packages""#;

/// Unpacks the drivers: loading them is faster, and what is compressed as a whole becomes smaller.
const UNPACK: &str = r#"cd "$1/usr/lib/modules" && find . -name "*.ko.xz" -print0 | xargs -0 -r -n 64 xz --decompress && chroot "$1" depmod -a "$(ls)""#;

/// Nobody reads manuals on the appliance; the licences stay.
const DPKG_OPTIONS: [&str; 5] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
];

/// Drivers of the initrd: disks, buses, networks and watchdogs of the supported hardware (`lpc_ich` and `i2c-i801` make the
/// device of `iTCO_wdt`), and what the root needs.
const DRIVERS: &str = "ahci dm-mod dm-verity efivarfs ehci-pci erofs ext4 hid-generic i2c-i801 i40e igb ipmi_devintf ipmi_si \
    ipmi_watchdog isofs iTCO_wdt ixgbe loop lpc_ich megaraid_sas mpt3sas nls_ascii nls_cp437 nvme overlay sd_mod softdog sr_mod \
    uas usb-storage usbhid vfat virtio_blk virtio_net virtio_pci virtio_scsi xhci-pci";

/// What mount-data runs.
const INITRD_PROGRAMS: &str = "mke2fs e2fsck /etc/mke2fs.conf";

/// Dracut modules of the initrd of a slot, and of the recovery image, where slotd runs.
const SLOT_MODULES: &str = "systemd systemd-veritysetup";
const RECOVERY_MODULES: &str = "systemd dbus-broker";

/// Dracut modules that the boot chain never uses.
const OMIT: &str = "console-setup crypt fido2 hwdb i18n lunmask nvdimm overlay-root pkcs11 qemu resume \
    systemd-cryptsetup virtfs virtiofs";

/// Time stamps of what the tools make: the start of 2026.
const EPOCH: &str = "1767225600";

/// What every root of this product has on its kernel's command line.
///
/// `lsm=`: without those that no policy of ours uses; attaching systemd's BPF program costs seconds of a slow processor.
const CMDLINE: &str = "lsm=landlock,lockdown,yama rd.shell=0 rd.emergency=reboot systemd.gpt_auto=0 systemd.ssh_auto=no \
    systemd.condition-needs-update=no panic=10 \
    console=tty0 console=ttyS0,115200 quiet";

/// Makes the mounts and runs a program in the tree: tree, work directory (seen as `/mnt`), program, arguments.
const ENTER: &str = r#"
tree=$1 work=$2
shift 2
mount --bind "$tree" "$tree"
mount -o remount,bind,ro "$tree"
mount --bind "$work" "$tree/mnt"
mount --rbind /dev "$tree/dev"
mount -t proc proc "$tree/proc"
for dir in run tmp var/tmp; do mount -t tmpfs tmpfs "$tree/$dir"; done
exec chroot "$tree" "$@"
"#;

/// What identifies the running machine or one run of a tool, and what the kernel image in the UKI makes superfluous.
/// Of directories the content goes, the directory stays.
const NOT_SHIPPED: [&str; 24] = [
    "boot",
    "mnt",
    "run",
    "tmp",
    "var/cache",
    "var/lib/apt/lists",
    "var/lib/dbus/machine-id",
    "var/log",
    "var/tmp",
    "etc/hostname",
    "etc/resolv.conf",
    "etc/.pwd.lock",
    "vmlinuz",
    "vmlinuz.old",
    "initrd.img",
    "initrd.img.old",
    // What Debian's packages switch on: nothing listens, and nothing runs by a clock, unless the product says so.
    "etc/systemd/system/multi-user.target.wants/e2scrub_reap.service",
    "etc/systemd/system/multi-user.target.wants/ssh.service",
    "etc/systemd/system/ssh.service.wants",
    "etc/systemd/system/ssh.socket.wants",
    "etc/systemd/system/sshd.service",
    "etc/systemd/system/sshd.service.wants",
    "etc/systemd/system/sshd@.service.wants",
    "etc/systemd/system/timers.target.wants",
];

/// The tree at `<build>/debian13`, made by `mmdebstrap` when there is none for this list of packages (about two minutes).
/// It is not to be written to. Needs root.
pub fn debian_tree(dirs: &BuildDirs) -> anyhow::Result<PathBuf> {
    need_root("Firmware from Debian")?;
    let _lock = dirs.lock("debian13")?;
    let (tree, key_file) = (dirs.base().join("debian13"), dirs.base().join("debian13.key"));
    let key = key(&[&[SUITE, MIRROR, RECORD, UNPACK], PACKAGES.as_slice(), DPKG_OPTIONS.as_slice()].concat());
    if tree.is_dir() && fs::read_to_string(&key_file).is_ok_and(|found| found == key) {
        differences(&recorded(&record(&tree))?)?.judge(false)?;
        return Ok(tree);
    }
    eprintln!("image: making {} (Debian {SUITE}, {} packages named)", tree.display(), PACKAGES.len());
    let new = dirs.base().join("debian13.new");
    for old in [&new, &tree] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("{} cannot be removed", old.display()))?;
        }
    }
    Tool::new("mmdebstrap", "mmdebstrap")
        .inherit_env()
        // The kernel package would make an initrd that nobody uses.
        .env("INITRD", "No")
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .deadline(Duration::from_secs(1800))
        .args(["--mode=root", "--variant=minbase", "--quiet"])
        .args(DPKG_OPTIONS.iter().map(|option| format!("--dpkgopt={option}")))
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(format!("--customize-hook={RECORD}"))
        .arg(format!("--customize-hook={UNPACK}"))
        .arg(SUITE)
        .arg(&new)
        .arg(MIRROR)
        .run()
        .context("the Debian tree could not be made")?;
    let differences = differences(&recorded(&record(&new))?)?;
    differences.judge(false)?;
    if !differences.0.is_empty() {
        eprintln!("image: {differences}");
    }
    fs::rename(record(&new), record(&tree))?;
    fs::rename(&new, &tree)?;
    fs::write(&key_file, key)?;
    Ok(tree)
}

/// The packages of the tree, which is made when there is none, and how they differ from the committed list. With `locked`
/// a difference is an error; other bytes of an expected version are one always.
pub fn packages(dirs: &BuildDirs, locked: bool) -> anyhow::Result<(Vec<DebianPackage>, Differences)> {
    let packages = recorded(&record(&debian_tree(dirs)?))?;
    let differences = differences(&packages)?;
    differences.judge(locked)?;
    Ok((packages, differences))
}

/// Makes the tree from what the mirror has today, and writes the committed list anew. The number of its packages.
pub fn lock(dirs: &BuildDirs) -> anyhow::Result<usize> {
    let key_file = dirs.base().join("debian13.key");
    if key_file.exists() {
        fs::remove_file(key_file)?;
    }
    let packages = recorded(&record(&debian_tree(dirs)?))?;
    fs::write(Lock::path(), Lock::of(&packages).render())?;
    Ok(packages.len())
}

/// Where apt's index of the tree's packages lies.
fn record(tree: &Path) -> PathBuf {
    PathBuf::from(format!("{}.packages", tree.display()))
}

fn recorded(record: &Path) -> anyhow::Result<Vec<DebianPackage>> {
    let text = fs::read_to_string(record).with_context(|| format!("{} cannot be read", record.display()))?;
    packages_lock::parse_index(&text).with_context(|| record.display().to_string())
}

fn differences(packages: &[DebianPackage]) -> anyhow::Result<Differences> {
    Ok(Lock::committed()?.compare(packages))
}

/// `program` of the tree, to be run in it. It sees `work` as `/mnt`, where alone it can write to stay.
pub(crate) fn tool(tree: &Path, work: &Path, program: &str) -> anyhow::Result<Tool> {
    need_root(program)?;
    Ok(Tool::new("unshare", "util-linux")
        .args(["--mount", "--propagation", "private", "sh", "-euc", ENTER, "sh"])
        .arg(tree)
        .arg(work)
        .arg(program))
}

fn need_root(what: &str) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "{what} needs root, for owners, mounts and a chroot: run it as root (sudo), or build from a tree (--tree)"
        );
    }
    Ok(())
}

/// Lays out the root of one firmware in `root`: hard links of the tree, without what is not shipped and what only makes
/// images, with its version in `/usr/lib/sps/version` and the files of `overlay`.
pub(crate) fn lay_out(tree: &Path, root: &Path, version: &str, overlay: Option<&Path>) -> anyhow::Result<()> {
    Tool::new("cp", "coreutils")
        .args(["--archive", "--link", "--no-target-directory"])
        .arg(tree)
        .arg(root)
        .run()?;
    // Only names are removed here: what they stood for is still linked from the tree.
    for path in NOT_SHIPPED {
        clear(&root.join(path))?;
    }
    for entry in fs::read_dir(root.join("etc/ssh"))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            fs::remove_file(entry.path())?;
        }
    }
    product::remove_packages(root)?;
    remove_bytecode(&root.join("usr"))?;
    put(root, "etc/machine-id", b"")?;
    symlink("/run/systemd/resolve/stub-resolv.conf", root.join("etc/resolv.conf"))?;
    put(root, "usr/lib/sps/version", format!("{version}\n").as_bytes())?;
    overlay.map_or(Ok(()), |overlay| lay_over(overlay, root))
}

/// Makes the users that the root laid out as `work/root` declares (sysusers.d): its `/etc` is the same at every start.
pub(crate) fn make_users(tree: &Path, work: &Path) -> anyhow::Result<()> {
    tool(tree, work, "systemd-sysusers")?
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .arg("--root=/mnt/root")
        .run()
        .context("the users of the firmware could not be made")?;
    clear(&work.join("root/etc/.pwd.lock"))
}

/// Removes from the root laid out as `work/root` the drivers that no product has. Those that an overlay brings are listed.
pub(crate) fn remove_drivers(tree: &Path, work: &Path) -> anyhow::Result<()> {
    let release = kernel_release(tree)?;
    product::remove_drivers(&work.join("root"), &release, DRIVERS)?;
    // It writes new files beside and renames them: those of the tree stay.
    tool(tree, work, "depmod")?.args(["--basedir", "/mnt/root", "--all", &release]).run()?;
    Ok(())
}

/// Removes a file, or what is in a directory. Nothing there is fine.
fn clear(path: &Path) -> anyhow::Result<()> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    if !metadata.is_dir() {
        return fs::remove_file(path).with_context(|| format!("{} cannot be removed", path.display()));
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let result = if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())
        } else {
            fs::remove_file(entry.path())
        };
        result.with_context(|| format!("{} cannot be removed", entry.path().display()))?;
    }
    Ok(())
}

/// Removes Python's byte code: it carries the time stamps of its sources, which the image does not.
fn remove_bytecode(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        if entry.file_name() == "__pycache__" {
            fs::remove_dir_all(entry.path())?;
        } else {
            remove_bytecode(&entry.path())?;
        }
    }
    Ok(())
}

/// Writes a file of mode 0644 as a new inode: writing into the old one would change the tree that it is linked from.
fn put(root: &Path, name: &str, content: &[u8]) -> anyhow::Result<()> {
    let path = root.join(name);
    if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
        fs::create_dir_all(parent)?;
        fs::set_permissions(parent, Permissions::from_mode(0o755))?;
    }
    if path.symlink_metadata().is_ok() {
        fs::remove_file(&path)?;
    }
    fs::write(&path, content)?;
    fs::set_permissions(&path, Permissions::from_mode(0o644))?;
    Ok(chown(&path, Some(0), Some(0))?)
}

/// Copies the content of `from` over `to`: modes 0755 and 0644, owner root, symbolic links as such.
fn lay_over(from: &Path, to: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(from).with_context(|| format!("overlay {} cannot be read", from.display()))?;
    for entry in entries {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            // A link such as /lib -> usr/lib is followed by whoever makes the overlay, not here.
            if target.is_symlink() {
                bail!("{}: a link in the tree; name its target in the overlay", target.display());
            }
            if !target.exists() {
                fs::create_dir(&target)?;
                fs::set_permissions(&target, Permissions::from_mode(0o755))?;
            }
            lay_over(&source, &target)?;
            continue;
        }
        if target.symlink_metadata().is_ok() {
            fs::remove_file(&target)?;
        }
        if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
            let executable = entry.metadata()?.permissions().mode() & 0o100 != 0;
            let mode = if executable { 0o755 } else { 0o644 };
            fs::set_permissions(&target, Permissions::from_mode(mode))?;
        } else {
            bail!("{}: an overlay holds files, directories and links only", source.display());
        }
        lchown(&target, Some(0), Some(0))?;
    }
    Ok(())
}

/// Kernel release of the tree: the only one in `/usr/lib/modules`.
fn kernel_release(tree: &Path) -> anyhow::Result<String> {
    let mut releases = Vec::new();
    for entry in fs::read_dir(tree.join("usr/lib/modules"))? {
        releases.push(entry?.file_name().to_string_lossy().into_owned());
    }
    match releases.as_slice() {
        [release] => Ok(release.clone()),
        other => bail!("{} has kernels {other:?}; expected exactly one", tree.display()),
    }
}

/// An initrd with these dracut modules, made by `dracut` (20 s) and kept for this state of the tree.
fn initrd(dirs: &BuildDirs, tree: &Path, modules: &str) -> anyhow::Result<PathBuf> {
    let _lock = dirs.lock("initrd")?;
    let release = kernel_release(tree)?;
    let packages = fs::read_to_string(tree.join("var/lib/dpkg/status"))?;
    let key = key(&[&packages, &release, DRIVERS, OMIT, INITRD_PROGRAMS, modules]);
    let kept = dirs.base().join(format!("initrd-{}.img", &key[..16]));
    if kept.is_file() {
        return Ok(kept);
    }
    eprintln!("image: making {} (dracut, kernel {release})", kept.display());
    let work = dirs.work()?;
    tool(tree, work.path(), "dracut")?
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .args(["--force", "--reproducible", "--no-hostonly", "--no-hostonly-cmdline", "--zstd"])
        .args(["--add", modules, "--omit", OMIT, "--drivers", DRIVERS])
        .args(["--install", INITRD_PROGRAMS])
        .args(["--kver", &release, "/mnt/initrd.img"])
        .run()
        .context("the initrd could not be made")?;
    fs::rename(work.path().join("initrd.img"), &kept)?;
    Ok(kept)
}

/// Kernel and initrd of the tree, as its boot images carry them. Made when they are missing; needs root.
pub fn boot_files(dirs: &BuildDirs) -> anyhow::Result<(PathBuf, PathBuf)> {
    let tree = debian_tree(dirs)?;
    let kernel = tree.join("boot").join(format!("vmlinuz-{}", kernel_release(&tree)?));
    Ok((kernel, initrd(dirs, &tree, SLOT_MODULES)?))
}

/// Which root a unified kernel image starts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// The slot with this root hash; its hash tree lies at this offset.
    Slot(&'a str, u64),
    /// None: the recovery system in the initrd.
    Recovery,
}

/// Packs a directory into an initrd of its own, `work/over-initrd.img`, to be laid over the one that dracut makes.
///
/// The kernel unpacks one archive after the other into the same file system (`Documentation/driver-api/early-userspace`).
fn pack(directory: &Path, work: &Path) -> anyhow::Result<()> {
    let (laid_out, image) = (work.join("over-initrd"), work.join("over-initrd.img"));
    if laid_out.exists() {
        fs::remove_dir_all(&laid_out)?;
    }
    fs::create_dir(&laid_out)?;
    lay_over(directory, &laid_out)?;
    let script = r#"cd "$1"; find . -mindepth 1 | LC_ALL=C sort | cpio --quiet --create --format=newc --reproducible | zstd --quiet --force -9 -o "$2""#;
    let epoch = format!("find . -exec touch --no-dereference --date=@{EPOCH} {{}} +");
    Tool::new("sh", "dash")
        .args(["-euc", &format!("cd \"$1\"; {epoch}; {script}"), "sh"])
        .arg(&laid_out)
        .arg(image)
        .run()
        .context("the initrd's overlay could not be packed (packages cpio, zstd)")?;
    Ok(())
}

/// Writes a unified kernel image to the file `name` of the directory `work`.
pub(crate) fn write_uki(
    dirs: &BuildDirs,
    tree: &Path,
    work: &Path,
    name: &str,
    version: &str,
    target: Target<'_>,
    over_initrd: Option<&Path>,
) -> anyhow::Result<()> {
    let release = kernel_release(tree)?;
    let modules = if matches!(target, Target::Recovery) { RECOVERY_MODULES } else { SLOT_MODULES };
    fs::copy(initrd(dirs, tree, modules)?, work.join("initrd.img"))?;
    over_initrd.map_or(Ok(()), |over| pack(over, work))?;
    let (cmdline, title) = match target {
        Target::Slot(hash, offset) => (
            format!(
                "roothash={hash} systemd.verity_root_data=/dev/sps/root systemd.verity_root_hash=/dev/sps/root \
                 systemd.verity_root_options=hash-offset={offset},panic-on-corruption rootfstype=erofs ro {CMDLINE}"
            ),
            format!("SPS {version}"),
        ),
        Target::Recovery => {
            (format!("rd.systemd.unit=sps-recovery.target ro {CMDLINE}"), format!("SPS {version} recovery"))
        }
    };
    let os_release = format!("ID=sps\nNAME=SPS\nPRETTY_NAME=\"{title}\"\nVERSION_ID=\"{version}\"\n");
    fs::write(work.join("os-release"), os_release)?;
    tool(tree, work, "ukify")?
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .args(["build", "--linux"])
        .arg(format!("/boot/vmlinuz-{release}"))
        .args(["--initrd", "/mnt/initrd.img"])
        .args(over_initrd.map(|_| "--initrd=/mnt/over-initrd.img"))
        .args(["--os-release", "@/mnt/os-release"])
        .args(["--cmdline", &cmdline, "--uname", &release])
        .arg(format!("--output=/mnt/{name}"))
        .run()
        .with_context(|| format!("{name} could not be made"))?;
    Ok(())
}

/// Hash of a list of texts, hex.
fn key(texts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hex::encode(hash.finalize())
}
