//! The Debian package `sps-agent`: what it holds, and where each file belongs.
//!
//! [`FILES`] is the one list: firmware for tests and demonstrations is laid out from it too ([`lay_out`]). The package is
//! made with `dpkg-deb` from a directory that has exactly these files; the same files and the same time give the same bytes
//! (`docs/decisions/0008-*.md`).

mod control;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};

use crate::tool::Tool;

/// Name of the package.
pub const NAME: &str = "sps-agent";
/// What it is built for.
pub const ARCHITECTURE: &str = "amd64";
/// Where its documents lie.
const DOC: &str = "usr/share/doc/sps-agent";

/// What a file of the package is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A program of [`Programs`].
    Program(&'static str),
    /// A file of the sources.
    Source(&'static str),
    /// Every file of this directory of the sources, compressed.
    Pages(&'static str),
    /// What `spsctl completion` prints for this shell.
    Completion(&'static str),
    /// A file of the sources for readers alone: no firmware needs it.
    Document(&'static str),
    /// Nothing: an empty directory.
    Directory,
}

/// One file of the package, or the files of one directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Where it belongs, without the leading slash.
    pub to: &'static str,
    /// What it is made of.
    pub from: Origin,
}

const fn item(to: &'static str, from: Origin) -> Item {
    Item { to, from }
}

/// Everything that the package installs, but changelog and copyright.
pub const FILES: &[Item] = &[
    item("usr/bin/spsctl", Origin::Program("spsctl")),
    item("usr/lib/sps/mount-data", Origin::Program("mount-data")),
    item("usr/lib/sps/slotd", Origin::Program("slotd")),
    item("usr/lib/sps/slotboot", Origin::Program("slotboot")),
    item("usr/lib/sps/sps-health", Origin::Program("sps-health")),
    item("usr/lib/sps/sps-recovery", Origin::Program("sps-recovery")),
    item("usr/lib/sps/upgrade-check", Origin::Program("upgrade-check")),
    item("usr/lib/sps/keyring", Origin::Directory),
    item("usr/lib/sps/slotd.toml", Origin::Source("systemd/slotd.toml")),
    item("usr/lib/sps/appliance.preset", Origin::Source("systemd/appliance.preset")),
    item("etc/sps/slotd.toml", Origin::Source("images/package/slotd.toml")),
    item("usr/lib/systemd/system/slotd.service", Origin::Source("systemd/slotd.service")),
    item("usr/lib/systemd/system/sps-boot-report.service", Origin::Source("systemd/sps-boot-report.service")),
    item("usr/lib/systemd/system/sps-health.service", Origin::Source("systemd/sps-health.service")),
    item("usr/lib/systemd/system/sps-trial.service", Origin::Source("systemd/sps-trial.service")),
    item(
        "usr/lib/systemd/system-preset/80-sps-agent.preset",
        Origin::Source("systemd/system-preset/80-sps-agent.preset"),
    ),
    item("usr/lib/systemd/catalog/sps.catalog", Origin::Source("systemd/catalog/sps.catalog")),
    item("usr/lib/udev/rules.d/90-sps.rules", Origin::Source("systemd/udev/90-sps.rules")),
    item("usr/lib/sysusers.d/sps.conf", Origin::Source("systemd/sysusers.d/sps.conf")),
    item("usr/lib/tmpfiles.d/sps.conf", Origin::Source("systemd/tmpfiles.d/sps.conf")),
    item(
        "usr/share/dbus-1/interfaces/org.spsagent.Slots1.xml",
        Origin::Source("base/dbus/org.spsagent.Slots1.xml"),
    ),
    item(
        "usr/share/dbus-1/system.d/org.spsagent.Slots1.conf",
        Origin::Source("systemd/dbus-1/system.d/org.spsagent.Slots1.conf"),
    ),
    item(
        "usr/share/dbus-1/system-services/org.spsagent.Slots1.service",
        Origin::Source("systemd/dbus-1/system-services/org.spsagent.Slots1.service"),
    ),
    item(
        "usr/share/polkit-1/actions/org.spsagent.slots1.policy",
        Origin::Source("systemd/polkit-1/actions/org.spsagent.slots1.policy"),
    ),
    item("usr/share/polkit-1/rules.d/50-sps.rules", Origin::Source("systemd/polkit-1/rules.d/50-sps.rules")),
    item("usr/share/bash-completion/completions/spsctl", Origin::Completion("bash")),
    item("usr/share/zsh/vendor-completions/_spsctl", Origin::Completion("zsh")),
    item("usr/share/fish/vendor_completions.d/spsctl.fish", Origin::Completion("fish")),
    item("usr/share/man/man1", Origin::Pages("docs/man")),
    item("usr/share/doc/sps-agent/errors.md", Origin::Document("docs/errors.md")),
    item("usr/share/doc/sps-agent/firmware-checks.md", Origin::Document("docs/firmware-checks.md")),
    item("usr/share/doc/sps-agent/packaging.md", Origin::Document("docs/packaging.md")),
    item("usr/share/doc/sps-agent/signature.md", Origin::Document("docs/signature.md")),
    item("usr/share/doc/sps-agent/spsctl-json.md", Origin::Document("docs/spsctl-json.md")),
    item("usr/share/doc/sps-agent/troubleshooting.md", Origin::Document("docs/troubleshooting.md")),
    item("usr/share/lintian/overrides/sps-agent", Origin::Document("images/package/lintian-overrides")),
];

/// Names of the programs in [`FILES`].
pub fn programs() -> impl Iterator<Item = &'static str> {
    FILES.iter().filter_map(|item| match item.from {
        Origin::Program(name) => Some(name),
        _ => None,
    })
}

/// Files that dpkg asks about before it replaces a changed one.
const CONFIGURATION: &str = "/etc/sps/slotd.toml\n";

/// The programs that go into the package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// Directory with `mount-data`, `slotd`, `sps-health`, `sps-recovery`, `spsctl` and `upgrade-check`.
    pub directory: PathBuf,
    /// `slotboot` for the initrd: one static file.
    pub slotboot: PathBuf,
}

impl Programs {
    /// Where a program lies.
    fn path(&self, name: &str) -> PathBuf {
        if name == "slotboot" { self.slotboot.clone() } else { self.directory.join(name) }
    }
}

/// One package to be built.
#[derive(Clone, Copy, Debug)]
pub struct Package<'a> {
    /// Root directory of the sources.
    pub sources: &'a Path,
    /// Its programs.
    pub programs: &'a Programs,
    /// Version of the sources, such as `0.1.0`.
    pub version: &'a str,
    /// Seconds since 1970: every time stamp, and the date of the changelog (`SOURCE_DATE_EPOCH`).
    pub epoch: u64,
}

impl Package<'_> {
    /// Version of the package: that of the sources, and which package of it.
    fn revision(&self) -> String {
        format!("{}-1", self.version)
    }
}

/// Writes `sps-agent_VERSION_amd64.deb` into the directory `out`, which is made where it is missing.
pub fn build(package: &Package<'_>, out: &Path) -> anyhow::Result<PathBuf> {
    ensure!(version_is_plain(package.version), "version {:?}: expected numbers, dots, +", package.version);
    let stage = tempfile::tempdir().context("no staging directory")?;
    let root = stage.path().join("root");
    for item in FILES {
        place(package, *item, &root).with_context(|| format!("package: {}", item.to))?;
    }
    put(&root.join(DOC).join("copyright"), control::copyright(package.sources)?.as_bytes(), 0o644)?;
    let changelog = root.join(DOC).join("changelog");
    put(&changelog, &read(&package.sources.join("CHANGELOG.md"))?, 0o644)?;
    let debian = root.join(DOC).join("changelog.Debian");
    put(&debian, control::changelog(&package.revision(), package.epoch)?.as_bytes(), 0o644)?;
    compress(&[changelog, debian])?;
    control::write(package, &root)?;
    settle(&root, SystemTime::UNIX_EPOCH + Duration::from_secs(package.epoch))?;

    fs::create_dir_all(out).with_context(|| format!("{} cannot be made", out.display()))?;
    let file = out.join(format!("{NAME}_{}_{ARCHITECTURE}.deb", package.revision()));
    Tool::new("dpkg-deb", "dpkg")
        .env("SOURCE_DATE_EPOCH", package.epoch.to_string())
        // Several threads of xz give other bytes than one.
        .args(["--root-owner-group", "-Zxz", "--threads-max=1", "--build"])
        .arg(&root)
        .arg(&file)
        .run()
        .context("the package could not be made")?;
    Ok(file)
}

/// What may stand in a file name and in a Debian version, before the revision.
fn version_is_plain(version: &str) -> bool {
    version.starts_with(|c: char| c.is_ascii_digit())
        && version.chars().all(|c| c.is_ascii_alphanumeric() || ".+~".contains(c))
}

/// Copies what a firmware needs to `root`: units, policies, users, settings, and these programs.
pub fn lay_out(sources: &Path, programs: Option<&Programs>, root: &Path) -> anyhow::Result<()> {
    for item in FILES {
        match (item.from, programs) {
            (Origin::Source(from), _) => put(&root.join(item.to), &read(&sources.join(from))?, 0o644)?,
            (Origin::Program(name), Some(programs)) => {
                put(&root.join(item.to), &read(&programs.path(name))?, 0o755)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn place(package: &Package<'_>, item: Item, root: &Path) -> anyhow::Result<()> {
    let to = root.join(item.to);
    match item.from {
        Origin::Program(name) => put(&to, &read(&package.programs.path(name))?, 0o755),
        Origin::Source(from) | Origin::Document(from) => put(&to, &read(&package.sources.join(from))?, 0o644),
        Origin::Completion(shell) => {
            let spsctl = package.programs.path("spsctl");
            let said = Tool::new(&spsctl.to_string_lossy(), NAME).args(["completion", shell]).run()?;
            ensure!(!said.stdout.is_empty(), "spsctl completion {shell} printed nothing");
            put(&to, said.stdout.as_bytes(), 0o644)
        }
        Origin::Pages(from) => {
            let mut pages = Vec::new();
            for entry in fs::read_dir(package.sources.join(from)).with_context(|| from.to_owned())? {
                let entry = entry?;
                let page = to.join(entry.file_name());
                put(&page, &read(&entry.path())?, 0o644)?;
                pages.push(page);
            }
            ensure!(!pages.is_empty(), "no page in {from}");
            compress(&pages)
        }
        Origin::Directory => Ok(fs::create_dir_all(&to)?),
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}

/// Writes a file with this mode, in a directory that is made where it is missing.
pub(crate) fn put(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    fs::create_dir_all(path.parent().context("no directory")?)?;
    fs::write(path, content).with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(fs::set_permissions(path, Permissions::from_mode(mode))?)
}

/// Each file as `FILE.gz`, without name and time in it.
fn compress(files: &[PathBuf]) -> anyhow::Result<()> {
    Tool::new("gzip", "gzip").args(["-9", "--no-name"]).args(files).run().map(drop)
}

/// Modes of directories and every time, so that neither umask nor clock of the builder is in the package.
fn settle(path: &Path, time: SystemTime) -> anyhow::Result<()> {
    let metadata = path.symlink_metadata()?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            settle(&entry?.path(), time)?;
        }
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
    } else if !metadata.is_file() {
        bail!("{} is neither file nor directory", path.display());
    }
    Ok(fs::File::open(path)?.set_modified(time)?)
}
