//! `cargo xtask image`: the command line of this package.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use slotd::domain::manifest::UpgradeFrom;

use crate::appliance::disk::{self, Sizes};
use crate::appliance::{self, Parts};
use crate::debian::debian_tree;
use crate::package::Programs;
use crate::packages_lock::Lock;
use crate::{BootKey, BuildDirs, FirmwareSpec, Pki, Source, build_firmware, debian, inspect};

/// Builds and inspects images.
#[derive(Args, Debug)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Builds a firmware ISO
    ///
    /// The same tree, options and keys give the same bits. `SOURCE_DATE_EPOCH` (seconds since 1970) sets the build date;
    /// without it, it is the start of 2026.
    Firmware(Box<FirmwareArgs>),
    /// Builds a firmware with our programs, and the disk of an appliance that runs it
    ///
    /// The disk is raw and sparse: write it to a machine's disk, or boot it in QEMU with UEFI firmware. The firmware trusts
    /// the development PKI unless --keyring names another.
    Appliance(Box<ApplianceArgs>),
    /// Writes the list of Debian packages (images/packages.lock) from what the mirror has today; root, network, two minutes
    Lock,
    /// Shows what an ISO holds, and whether stock tools agree with its manifest
    Inspect(InspectArgs),
}

/// `image firmware`.
#[derive(Args, Debug)]
pub struct FirmwareArgs {
    /// Version: dotted numbers, optionally -suffix
    #[arg(long, value_name = "V")]
    version: String,
    #[command(flatten)]
    source: SourceArgs,
    /// Version of kernel and initrd [default: that of the firmware]
    #[arg(long, value_name = "V")]
    boot_version: Option<String>,
    /// Security epoch
    #[arg(long, value_name = "N", default_value_t = 1)]
    epoch: u32,
    /// Refuse going back to slots below this security epoch
    #[arg(long, value_name = "N", default_value_t = 0)]
    revoked_below: u32,
    /// Release line and lowest version in it from which it may be installed: 7.0:7.0.5; may be repeated
    #[arg(long, value_name = "LINE:MIN", value_parser = upgrade_rule)]
    upgrade_from: Vec<UpgradeFrom>,
    /// Product
    #[arg(long, value_name = "NAME", default_value = "sps")]
    product: String,
    /// Hardware model; may be repeated
    #[arg(long, value_name = "MODEL", default_value = "*")]
    hardware: Vec<String>,
    /// Upgrade notes (Markdown)
    #[arg(long, value_name = "FILE")]
    notes: Option<PathBuf>,
    /// Upgrade news (Markdown)
    #[arg(long, value_name = "FILE")]
    news: Option<PathBuf>,
    /// Free text for people; may be repeated
    #[arg(long, value_name = "KEY=TEXT", value_parser = key_value)]
    meta: Vec<(String, String)>,
    /// Space that its migration needs, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    required_space: u64,
    /// Files to lay over the Debian tree
    #[arg(long, value_name = "DIR", conflicts_with = "tree")]
    overlay: Option<PathBuf>,
    /// Refuse Debian packages of other versions than images/packages.lock names
    #[arg(long, conflicts_with = "tree")]
    locked: bool,
    #[command(flatten)]
    boot_key: BootKeyArgs,
    /// Do not compress the root
    #[arg(long)]
    uncompressed: bool,
    /// Do not sign: no appliance takes it
    #[arg(long)]
    unsigned: bool,
    /// Where it goes [default: firmware-V.iso in the build directory]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// `image appliance`.
#[derive(Args, Debug)]
pub struct ApplianceArgs {
    /// Version: dotted numbers, optionally -suffix
    #[arg(long, value_name = "V", default_value = "0.1.0")]
    version: String,
    /// Release line and lowest version in it from which it may be installed: 7.0:7.0.5; may be repeated [default: every
    /// version that begins with the same number]
    #[arg(long, value_name = "LINE:MIN", value_parser = upgrade_rule)]
    upgrade_from: Vec<UpgradeFrom>,
    /// Size of each of the two slots
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    slot_size: u32,
    /// Size of the data partition
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    data_size: u32,
    /// Directory of roots (*.pem) and CRLs (*.crl) that it trusts [default: the development PKI's]
    #[arg(long, value_name = "DIR")]
    keyring: Option<PathBuf>,
    #[command(flatten)]
    boot_key: BootKeyArgs,
    /// Where the disk goes [default: appliance-V.img in the build directory; the firmware beside it]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// The key of UEFI Secure Boot.
#[derive(Args, Debug)]
struct BootKeyArgs {
    /// Key that signs boot images and loader for Secure Boot: a file, or with --boot-engine a PKCS#11 URI; RSA, as UEFI
    /// firmware knows no other [default: a development key]
    #[arg(long = "boot-key", id = "boot_key", value_name = "KEY", requires = "boot_certificate")]
    key: Option<String>,
    /// Its certificate (PEM)
    #[arg(long = "boot-certificate", id = "boot_certificate", value_name = "FILE", requires = "boot_key")]
    certificate: Option<PathBuf>,
    /// OpenSSL engine that has the key: pkcs11
    #[arg(long = "boot-engine", id = "boot_engine", value_name = "NAME", requires = "boot_key")]
    engine: Option<String>,
}

impl BootKeyArgs {
    fn key(&self) -> Option<BootKey> {
        let (key, certificate) = (self.key.clone()?, self.certificate.clone()?);
        Some(BootKey { key, certificate, engine: self.engine.clone() })
    }
}

/// What of this workspace goes into an appliance.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// Our programs.
    pub programs: Programs,
    /// Root directory of the sources.
    pub sources: PathBuf,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct SourceArgs {
    /// From a Debian 13 tree, bootable; the tree is made at first use (root, network, two minutes)
    #[arg(long)]
    debian: bool,
    /// From any tree as it is, not bootable
    #[arg(long, value_name = "DIR")]
    tree: Option<PathBuf>,
}

/// `image inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// The ISO
    iso: PathBuf,
    /// Directory of roots (*.pem) and CRLs (*.crl) [default: the development PKI's]
    #[arg(long, value_name = "DIR")]
    keyring: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command. The error of `inspect` says how many checks failed, so that the exit status does too.
///
/// `ours` makes our programs; it is called for what needs them only.
pub fn run(
    args: &ImageArgs,
    dirs: &BuildDirs,
    ours: impl FnOnce() -> anyhow::Result<Workspace>,
) -> anyhow::Result<()> {
    match &args.command {
        ImageCommand::Appliance(args) => appliance(args, dirs, &ours()?)?,
        ImageCommand::Firmware(args) => {
            let spec = spec(args)?;
            if matches!(spec.source, Source::Debian { .. }) {
                let (_, differences) = debian::packages(dirs, args.locked)?;
                if !differences.0.is_empty() {
                    eprintln!("image: {differences}");
                }
            }
            let pki = Pki::open_or_create(dirs.pki(), "SPS development")?;
            let built = build_firmware(&spec, dirs, &pki, args.out.as_deref())?;
            println!("{}", built.iso.display());
            println!("{} bytes, manifest sha256 {}", built.size, built.manifest_sha256);
        }
        ImageCommand::Lock => {
            println!("{} packages in {}", debian::lock(dirs)?, Lock::path().display());
        }
        ImageCommand::Inspect(args) => {
            let keyring = args.keyring.clone().unwrap_or_else(|| dirs.pki().join("keyring"));
            let report = inspect::inspect(&args.iso, &keyring, dirs)?;
            if args.json {
                println!("{}", serde_json::to_string_pretty(&report)?);
            } else {
                print!("{report}");
            }
            let failed = report.checks.iter().filter(|check| !check.ok).count();
            if failed > 0 {
                bail!("{}: {failed} of {} checks failed", args.iso.display(), report.checks.len());
            }
        }
    }
    Ok(())
}

fn appliance(args: &ApplianceArgs, dirs: &BuildDirs, ours: &Workspace) -> anyhow::Result<()> {
    let pki = Pki::open_or_create(dirs.pki(), "SPS development")?;
    let keyring = args.keyring.clone().unwrap_or_else(|| pki.keyring_dir());
    let work = dirs.work()?;
    let parts = Parts { programs: &ours.programs, sources: &ours.sources, keyring: &keyring };
    let overlays = appliance::lay_out(&parts, work.path())?;
    let mut spec = FirmwareSpec::new(&args.version, overlays.source());
    spec.upgrade_from.clone_from(&args.upgrade_from);
    if spec.upgrade_from.is_empty() {
        let line = args.version.split(['.', '-']).next().unwrap_or_default().to_owned();
        spec.upgrade_from.push(UpgradeFrom { min: format!("{line}.0.0"), from: line });
    }
    spec.boot_key = args.boot_key.key();
    let key = BootKey::chosen(&spec, &pki)?;
    let built = build_firmware(&spec, dirs, &pki, None)?;
    println!("{}: {} bytes", built.iso.display(), built.size);
    let out = args.out.clone();
    let out = out.unwrap_or_else(|| dirs.base().join(format!("appliance-{}.img", args.version)));
    let sizes = Sizes { slot: u64::from(args.slot_size) << 20, data: u64::from(args.data_size) << 20 };
    disk::write(&built, dirs, &debian_tree(dirs)?, &keyring, &key, &sizes, &out)?;
    println!("{}: {} bytes", out.display(), out.metadata()?.len());
    Ok(())
}

fn spec(args: &FirmwareArgs) -> anyhow::Result<FirmwareSpec> {
    let source = match &args.source.tree {
        Some(tree) => Source::Tree(tree.clone()),
        None => Source::Debian { overlay: args.overlay.clone(), initrd: None, recovery: None },
    };
    let mut spec = FirmwareSpec::new(&args.version, source);
    if let Ok(text) = std::env::var("SOURCE_DATE_EPOCH") {
        spec.source_date_epoch =
            text.parse().with_context(|| format!("SOURCE_DATE_EPOCH is {text:?}; expected seconds"))?;
    }
    if let Some(version) = &args.boot_version {
        spec.boot_version.clone_from(version);
    }
    if let Some(notes) = &args.notes {
        spec.notes = read(notes)?;
    }
    spec.security_epoch = args.epoch;
    spec.revoked_below = args.revoked_below;
    spec.upgrade_from.clone_from(&args.upgrade_from);
    spec.product.clone_from(&args.product);
    spec.hardware.clone_from(&args.hardware);
    spec.news = args.news.as_deref().map(read).transpose()?;
    spec.meta = args.meta.iter().cloned().collect();
    spec.required_space = args.required_space;
    spec.compress = !args.uncompressed;
    spec.signed = !args.unsigned;
    spec.boot_key = args.boot_key.key();
    Ok(spec)
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
}

fn upgrade_rule(text: &str) -> Result<UpgradeFrom, String> {
    let (from, min) = text.split_once(':').ok_or("expected LINE:MIN, such as 7.0:7.0.5")?;
    Ok(UpgradeFrom { from: from.into(), min: min.into() })
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=TEXT")?;
    Ok((key.into(), value.into()))
}
