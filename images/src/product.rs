//! What of the Debian tree goes into the root of a product: not the tools that make the image, and only the drivers named here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// Packages that the product runs. What they depend on, and what Debian calls essential, comes with them.
const PACKAGES: [&str; 11] = [
    "dbus-broker",
    "iproute2",
    "kmod",
    "openssh-server",
    "polkitd",
    "systemd",
    // slotd takes the ESP's boot loader from the root that it confirmed.
    "systemd-boot-efi",
    "systemd-cryptsetup",
    "systemd-sysv",
    "udev",
    "tzdata",
];

/// Drivers beside those of the initrd: networks as they are configured, the BMC, keyboards, and what hashes faster.
const DRIVERS: &str = "8021q autofs4 bonding bridge button configfs crc32_pclmul crc32c_generic crc32c_intel dummy \
    efi_pstore evdev fuse inet_diag ipmi_ssif macvlan nf_log_syslog nf_nat nf_reject_ipv4 nf_reject_ipv6 \
    nf_tables nfnetlink nfnetlink_log nft_chain_nat nft_ct nft_limit nft_log nft_masq nft_nat nft_redir nft_reject_inet \
    sha256_ssse3 sha512_ssse3 tcp_diag tls tun udp_diag unix_diag veth";

/// Where drivers lie.
const MODULES: &str = "usr/lib/modules";

/// A stanza of dpkg's list of installed packages.
struct Installed<'a> {
    stanza: &'a str,
    essential: bool,
    provides: Vec<&'a str>,
    /// Each a list of alternatives.
    depends: Vec<Vec<&'a str>>,
}

/// The packages of `status`, dpkg's list of what is installed (deb-control(5)), that the product ships.
fn shipped(status: &str) -> anyhow::Result<BTreeSet<String>> {
    let all = parse(status)?;
    let mut providers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, package) in &all {
        for provided in package.provides.iter().copied().chain([*name]) {
            providers.entry(provided).or_default().push(name);
        }
    }
    let mut left: Vec<&str> = all.iter().filter(|(_, p)| p.essential).map(|(name, _)| *name).collect();
    left.extend(PACKAGES);
    let mut kept: BTreeSet<String> = BTreeSet::new();
    while let Some(name) = left.pop() {
        let package = all.get(name).with_context(|| format!("the tree has no package {name}"))?;
        if !kept.insert(name.to_owned()) {
            continue;
        }
        for alternatives in &package.depends {
            let found = alternatives.iter().find_map(|wanted| providers.get(wanted));
            let found =
                found.with_context(|| format!("{name} needs one of {alternatives:?}: not in the tree"))?;
            // One that is kept anyway serves as well.
            let served = found.iter().any(|provider| kept.contains(*provider));
            left.extend(found.first().filter(|_| !served));
        }
    }
    Ok(kept)
}

fn parse(status: &str) -> anyhow::Result<BTreeMap<&str, Installed<'_>>> {
    let mut all = BTreeMap::new();
    for stanza in status.split("\n\n").filter(|stanza| !stanza.trim().is_empty()) {
        let field = |key: &str| {
            let line =
                stanza.lines().find(|line| line.strip_prefix(key).is_some_and(|l| l.starts_with(": ")));
            line.map(|line| line[key.len() + 2..].trim())
        };
        let name = field("Package")
            .with_context(|| format!("dpkg's list: no name in {:?}", stanza.lines().next()))?;
        all.insert(
            name,
            Installed {
                stanza,
                essential: field("Essential") == Some("yes"),
                provides: field("Provides")
                    .into_iter()
                    .flat_map(|list| list.split(','))
                    .map(bare_name)
                    .collect(),
                depends: ["Depends", "Pre-Depends"]
                    .into_iter()
                    .filter_map(field)
                    .flat_map(|list| list.split(','))
                    .map(|alternatives| alternatives.split('|').map(bare_name).collect())
                    .collect(),
            },
        );
    }
    Ok(all)
}

/// The name in `libc6:any (>= 2.38)`.
fn bare_name(text: &str) -> &str {
    text.trim().split([' ', '(', ':']).next().unwrap_or_default()
}

/// The names of the packages that a product's root made of `tree` has.
pub(crate) fn packages(tree: &Path) -> anyhow::Result<BTreeSet<String>> {
    shipped(&fs::read_to_string(tree.join("var/lib/dpkg/status"))?)
}

/// Removes from `root`, laid out as links of a tree, the packages that a product does not run, and dpkg's records of them.
pub(crate) fn remove_packages(root: &Path) -> anyhow::Result<()> {
    let dpkg = root.join("var/lib/dpkg");
    let status = fs::read_to_string(dpkg.join("status"))?;
    let kept = shipped(&status)?;
    let (mut keep, mut remove) = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(dpkg.join("info"))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some((package, kind)) = name.rsplit_once('.') else { continue };
        let package = package.split(':').next().unwrap_or_default();
        let ours = kept.contains(package) || package == "format";
        if kind == "list" {
            let files = fs::read_to_string(&path)?;
            let files = files.lines().map(|file| PathBuf::from(file.trim_start_matches('/')));
            // Which drivers stay is for `remove_drivers`.
            let files = files.filter(|file| !file.starts_with(MODULES));
            if ours { keep.extend(files) } else { remove.extend(files) }
        }
        if !ours {
            fs::remove_file(&path)?;
        }
    }
    // Backwards: what is in a directory goes before it.
    for file in remove.difference(&keep).collect::<Vec<_>>().into_iter().rev() {
        let path = root.join(file);
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.is_dir() {
            // Something else may be in it.
            let _ = fs::remove_dir(&path);
        } else {
            fs::remove_file(&path).with_context(|| format!("{} cannot be removed", path.display()))?;
        }
    }
    let all = parse(&status)?;
    let left: Vec<&str> =
        all.iter().filter(|(name, _)| kept.contains(**name)).map(|(_, p)| p.stanza).collect();
    // New, because the old one is a link to the tree's.
    fs::remove_file(dpkg.join("status"))?;
    Ok(fs::write(dpkg.join("status"), format!("{}\n", left.join("\n\n")))?)
}

/// Removes from `root` the drivers that neither `DRIVERS`, nor the initrd's list, nor one of these needs. What is left is for
/// `depmod` to list anew.
pub(crate) fn remove_drivers(root: &Path, release: &str, of_initrd: &str) -> anyhow::Result<()> {
    let modules = root.join(MODULES).join(release);
    let read = |name: &str| {
        let path = modules.join(name);
        fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))
    };
    let listed = read("modules.dep")?;
    let needed: BTreeMap<String, Vec<&str>> = listed
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| {
            (module_name(file), [file].into_iter().chain(needs.split_whitespace()).collect())
        })
        .collect();
    let builtin = read("modules.builtin")?;
    let builtin: BTreeSet<String> = builtin.lines().map(module_name).collect();
    let mut keep = BTreeSet::new();
    for name in DRIVERS.split_whitespace().chain(of_initrd.split_whitespace()).map(module_name) {
        match needed.get(&name) {
            Some(files) => keep.extend(files.iter().copied()),
            None => ensure!(builtin.contains(&name), "the kernel has no driver {name}"),
        }
    }
    for file in needed.values().filter_map(|files| files.first()).filter(|file| !keep.contains(*file)) {
        fs::remove_file(modules.join(file)).with_context(|| format!("driver {file}"))?;
    }
    remove_empty(&modules)
}

/// `kernel/fs/fat/vfat.ko` is `vfat`; the kernel takes a hyphen for an underscore.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or_default();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

fn remove_empty(directory: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_empty(&entry.path())?;
            // It stays where something is left in it.
            let _ = fs::remove_dir(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(extra: &str) -> String {
        let named = PACKAGES.map(|name| format!("Package: {name}\nVersion: 1\n")).join("\n");
        format!("{named}\n{extra}")
    }

    #[test]
    fn a_product_has_what_it_names_what_is_essential_and_what_these_need() {
        let status = status(
            "Package: base\nEssential: yes\nPre-Depends: awk, libc:any (>= 2)\n\n\
             Package: mawk\nProvides: awk (= 1), other\n\n\
             Package: libc\nDepends: gone | libgcc\nDescription: x\n Depends: nothing\n\n\
             Package: libgcc\n\n\
             Package: dracut\nDepends: libc, cpio\n\n\
             Package: cpio\n",
        );
        let kept = shipped(&status).unwrap();
        for name in ["base", "mawk", "libc", "libgcc", "systemd"] {
            assert!(kept.contains(name), "{name}: {kept:?}");
        }
        for name in ["dracut", "cpio"] {
            assert!(!kept.contains(name), "{name}: {kept:?}");
        }
    }

    #[test]
    fn what_is_needed_and_not_there_is_told() {
        let error = shipped(&status("Package: base\nEssential: yes\nDepends: lost | gone\n")).unwrap_err();
        assert!(error.to_string().contains(r#"base needs one of ["lost", "gone"]"#), "{error}");
        let error = shipped("Package: systemd\n").unwrap_err();
        assert!(error.to_string().contains("the tree has no package"), "{error}");
    }

    #[test]
    fn a_driver_is_kept_with_what_it_needs() {
        let root = tempfile::tempdir().unwrap();
        let modules = root.path().join("usr/lib/modules/6.1");
        let mut dep = String::new();
        let mut add = |file: &str, needs: &str| {
            let path = modules.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "driver").unwrap();
            dep.extend([file, ": ", needs, "\n"]);
        };
        add("kernel/fs/lib-crc.ko", "");
        add("kernel/fs/disk-driver.ko", "kernel/fs/lib-crc.ko");
        add("kernel/sound/beep.ko", "");
        for name in DRIVERS.split_whitespace().skip(1) {
            add(&format!("kernel/net/{name}.ko"), "");
        }
        fs::write(modules.join("modules.dep"), &dep).unwrap();
        fs::write(modules.join("modules.builtin"), "kernel/net/8021q.ko\n").unwrap();
        remove_drivers(root.path(), "6.1", "disk_driver").unwrap();
        assert!(modules.join("kernel/fs/lib-crc.ko").exists());
        assert!(modules.join("kernel/net/veth.ko").exists());
        assert!(!modules.join("kernel/sound").exists());
        let error = remove_drivers(root.path(), "6.1", "warp_drive").unwrap_err();
        assert_eq!(error.to_string(), "the kernel has no driver warp_drive");
    }
}
