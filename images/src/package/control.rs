//! What dpkg reads of the package: control file, maintainer scripts, sums; and the documents that Debian's policy asks for.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};

use super::{ARCHITECTURE, CONFIGURATION, DOC, FILES, NAME, Origin, Package, put, read};
use crate::tool::Tool;

/// Who answers for the package, as the control file and the changelog name them.
const MAINTAINER: &str = "SPS agent authors <sps-agent@localhost.localdomain>";
const DESCRIPTION: &str = "\
Description: firmware slots for an appliance that must come back up
 slotd puts signed firmware images into slots, proves every block before it is
 written, and chooses what boots; spsctl is its command line. A new firmware is
 started once, and left behind by itself when its health checks fail.
 .
 slotd is started by D-Bus when it is first asked. Nothing is enabled at
 installation and nothing is written before slots are set up: see
 /usr/share/doc/sps-agent/packaging.md.
";
/// What must be there besides the libraries of the programs.
const DEPENDS: &str = "dbus | dbus-broker, polkitd, systemd (>= 252)";
/// spsctl downloads over HTTPS with the system's authorities.
const RECOMMENDS: &str = "ca-certificates";
/// The other sandbox for the check programs of a new firmware.
const SUGGESTS: &str = "bubblewrap";

/// Writes `DEBIAN/` into `root`, which holds everything else already.
pub(super) fn write(package: &Package<'_>, root: &Path) -> anyhow::Result<()> {
    let mut libraries = Libraries::default();
    for item in FILES {
        if let Origin::Program(name) = item.from {
            libraries.add(&root.join(item.to)).with_context(|| format!("program {name}"))?;
        }
    }
    let control = format!(
        "Package: {NAME}\nVersion: {}\nArchitecture: {ARCHITECTURE}\nMaintainer: {MAINTAINER}\n\
         Installed-Size: {}\nDepends: {}, {DEPENDS}\nRecommends: {RECOMMENDS}\nSuggests: {SUGGESTS}\n\
         Section: admin\nPriority: optional\n{DESCRIPTION}",
        package.revision(),
        kibibytes(root)?,
        libraries.depends()?,
    );
    let sums = Tool::new("sh", "dash")
        .args(["-euc", SUMS, "sh"])
        .arg(root)
        .run()
        .context("the sums of the package's files could not be made")?;
    let directory = root.join("DEBIAN");
    put(&directory.join("control"), control.as_bytes(), 0o644)?;
    put(&directory.join("conffiles"), CONFIGURATION.as_bytes(), 0o644)?;
    put(&directory.join("md5sums"), sums.stdout.as_bytes(), 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        let text = read(&package.sources.join("images/package").join(script))?;
        put(&directory.join(script), &text, 0o755)?;
    }
    Ok(())
}

/// Of every file but those that are expected to change.
const SUMS: &str = "cd \"$1\"; find usr -type f -print0 | sort -z | xargs -0 md5sum";

/// Size of everything below `path` as dpkg counts it: whole KiB of each file, one for each directory.
fn kibibytes(path: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        sum += if entry.file_type()?.is_dir() {
            1 + kibibytes(&entry.path())?
        } else {
            entry.metadata()?.len().div_ceil(1024)
        };
    }
    Ok(sum)
}

/// The shared libraries that the programs load, and the newest interface of the C library among them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Libraries {
    names: BTreeSet<String>,
    libc: Option<(u32, u32)>,
}

impl Libraries {
    /// Adds what a program says in its dynamic section and its version requirements.
    fn add(&mut self, program: &Path) -> anyhow::Result<()> {
        let said = Tool::new("readelf", "binutils")
            .args(["--wide", "--dynamic", "--version-info"])
            .arg(program)
            .run()?;
        self.read(&said.stdout);
        Ok(())
    }

    /// `0x01 (NEEDED) Shared library: [libc.so.6]` and `0x10: Name: GLIBC_2.34  Flags: none  Version: 4`.
    fn read(&mut self, said: &str) {
        for line in said.lines() {
            let library = line.split_once("(NEEDED)").and_then(|(_, rest)| rest.split_once('['));
            if let Some((name, _)) = library.and_then(|(_, rest)| rest.split_once(']')) {
                self.names.insert(name.to_owned());
            }
            let version = line.split_once("Name: GLIBC_").map(|(_, rest)| rest);
            let mut numbers = version.unwrap_or_default().split([' ', '.']).map(str::parse::<u32>);
            if let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) {
                self.libc = self.libc.max(Some((major, minor)));
            }
        }
    }

    /// The packages that bring them.
    fn depends(&self) -> anyhow::Result<String> {
        let mut packages = BTreeSet::new();
        for name in &self.names {
            match name.as_str() {
                "libc.so.6" | "libm.so.6" | "ld-linux-x86-64.so.2" => {
                    let (major, minor) =
                        self.libc.context("libc.so.6 is needed, but no version of its interface")?;
                    packages.insert(format!("libc6 (>= {major}.{minor})"));
                }
                "libgcc_s.so.1" => {
                    packages.insert("libgcc-s1 (>= 4.2)".to_owned());
                }
                other => bail!("a program needs {other}: its package is to be named here"),
            }
        }
        Ok(packages.into_iter().collect::<Vec<_>>().join(", "))
    }
}

/// Who may do what with it, for machines (DEP 5).
pub(super) fn copyright(sources: &Path) -> anyhow::Result<String> {
    let mit = String::from_utf8(read(&sources.join("LICENSE-MIT"))?).context("LICENSE-MIT")?;
    let holder = mit
        .lines()
        .find_map(|line| line.strip_prefix("Copyright (c) "))
        .context("LICENSE-MIT names no holder of the copyright")?;
    let terms = mit.split_once("Permission is").map(|(_, rest)| format!("Permission is{rest}"));
    let terms = terms.context("LICENSE-MIT has no terms")?;
    Ok(format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: SPS agent\n\
         Comment: The programs contain the Rust crates that Cargo.lock of the sources names.\n\n\
         Files: *\nCopyright: {holder}\nLicense: MIT or Apache-2.0\n\n\
         License: MIT\n{}\n\
         License: Apache-2.0\n On Debian systems, the full text of the Apache License, Version 2.0, can be found in\n \
         /usr/share/common-licenses/Apache-2.0.\n",
        folded(&terms)
    ))
}

/// Lines of a field: one space before each, a dot for an empty one.
fn folded(text: &str) -> String {
    let lines = text.trim_end().lines().map(str::trim_end);
    lines.map(|line| if line.is_empty() { " .\n".to_owned() } else { format!(" {line}\n") }).collect()
}

/// Debian's changelog: one entry, which names the other one.
pub(super) fn changelog(revision: &str, epoch: u64) -> anyhow::Result<String> {
    let date = jiff::Timestamp::from_second(i64::try_from(epoch)?)?.strftime("%a, %d %b %Y %H:%M:%S +0000");
    Ok(format!(
        "{NAME} ({revision}) unstable; urgency=medium\n\n  * See /{DOC}/changelog.gz.\n\n -- {MAINTAINER}  {date}\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_become_packages_with_the_newest_interface() {
        let mut libraries = Libraries::default();
        libraries.read(
            " 0x0000000000000001 (NEEDED)             Shared library: [libgcc_s.so.1]\n \
             0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]\n  \
             0x0010:   Name: GLIBC_2.9  Flags: none  Version: 4\n  \
             0x0020:   Name: GLIBC_2.34  Flags: none  Version: 3\n  0x0030:   Name: GCC_3.0  Flags: none\n  \
             0x0040:   Name: GLIBC_2.2.5  Flags: none  Version: 2\n",
        );
        assert_eq!(libraries.depends().unwrap(), "libc6 (>= 2.34), libgcc-s1 (>= 4.2)");
    }

    #[test]
    fn a_library_without_a_package_is_named() {
        let mut libraries = Libraries::default();
        libraries.read(" 0x1 (NEEDED)  Shared library: [libssl.so.3]\n");
        assert!(libraries.depends().unwrap_err().to_string().contains("libssl.so.3"));
    }

    #[test]
    fn a_field_has_no_empty_line() {
        assert_eq!(folded("one\n\ntwo\n"), " one\n .\n two\n");
    }

    #[test]
    fn changelog_has_the_date_of_the_sources() {
        let text = changelog("0.1.0-1", 1_767_225_600).unwrap();
        assert!(text.ends_with("  Thu, 01 Jan 2026 00:00:00 +0000\n"), "{text}");
    }
}
