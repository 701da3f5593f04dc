//! Builds a firmware ISO.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use slotd::domain::manifest::{
    Boot, Compatible, File, MANIFEST_NAME, Manifest, PAYLOAD_ORDER, PIECE, Root, SIGNATURE_NAME, Sha256Hex,
};

use crate::debian::{self, Target};
use crate::{BootKey, BuildDirs, FirmwareSpec, Pki, Source, erofs, iso, product, root, sbom};

/// A firmware ISO that was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// The ISO: `<build>/firmware-<version>.iso` unless said otherwise.
    pub iso: PathBuf,
    /// Its length in bytes.
    pub size: u64,
    /// Its manifest.
    pub manifest: Manifest,
    /// SHA-256 of the manifest, the identity of the image.
    pub manifest_sha256: Sha256Hex,
}

/// Builds the ISO that `spec` describes, signed by `pki`. The same specification, tree and PKI give the same bits.
///
/// `out`: where it goes, else [`Built::iso`]'s default. An ISO that is there is replaced, whole or not at all.
pub fn build_firmware(
    spec: &FirmwareSpec,
    dirs: &BuildDirs,
    pki: &Pki,
    out: Option<&Path>,
) -> anyhow::Result<Built> {
    let stage = dirs.work()?;
    let work = dirs.work()?;
    let (stage_dir, work_dir) = (stage.path(), work.path());
    for (name, text) in [("notes.md", Some(&spec.notes)), ("news.md", spec.news.as_ref())] {
        let Some(text) = text else { continue };
        // An empty file has no place of its own in an ISO.
        if text.is_empty() {
            bail!("{name} is empty; write a sentence, or leave news out");
        }
        fs::write(stage_dir.join(name), text)?;
    }
    let key = match &spec.source {
        Source::Debian { .. } => Some(BootKey::chosen(spec, pki)?),
        Source::Tree(_) => None,
    };
    let made = make_root(spec, dirs, key.as_ref(), stage_dir, work_dir)?;
    let sbom = work_dir.join(sbom::FILE);
    let has_sbom = write_sbom(spec, dirs, work_dir, &sbom)?;
    let mut manifest = manifest(spec, stage_dir, made)?;
    if has_sbom {
        ensure!(!spec.meta.contains_key(sbom::META), "meta {}: set by the builder", sbom::META);
        manifest.meta.insert(sbom::META.into(), root::sha256(&sbom)?.0.to_string());
    }
    let manifest_file = stage_dir.join(MANIFEST_NAME);
    fs::write(&manifest_file, manifest.render())?;
    if spec.signed {
        pki.sign(&manifest_file, spec.source_date_epoch, &stage_dir.join(SIGNATURE_NAME))?;
    }
    let esp = work_dir.join("esp.img");
    if manifest.boot == Boot::Uki {
        // What installs an appliance is the recovery system: there is no slot yet to boot from.
        iso::write_esp(&stage_dir.join("recovery.efi"), spec.source_date_epoch, &esp)?;
    }
    let out =
        out.map_or_else(|| dirs.base().join(format!("firmware-{}.iso", spec.version)), Path::to_path_buf);
    let partial = PathBuf::from(format!("{}.partial", out.display()));
    if partial.exists() {
        fs::remove_file(&partial)?;
    }
    let (esp, sbom) = (esp.exists().then_some(esp.as_path()), has_sbom.then_some(sbom.as_path()));
    iso::write(stage_dir, esp, sbom, spec.source_date_epoch, &partial)?;
    fs::rename(&partial, &out).with_context(|| format!("{} cannot be written", out.display()))?;
    let (manifest_sha256, _) = root::sha256(&manifest_file)?;
    Ok(Built { size: out.metadata()?.len(), iso: out, manifest, manifest_sha256 })
}

/// Makes root image, hash tree, file list and, for a bootable root, the boot images, all in `stage`.
fn make_root(
    spec: &FirmwareSpec,
    dirs: &BuildDirs,
    key: Option<&BootKey>,
    stage: &Path,
    work: &Path,
) -> anyhow::Result<Root> {
    let (image, verity) = (stage.join("root.erofs"), stage.join("root.verity"));
    let root = match &spec.source {
        Source::Tree(tree) => {
            if !tree.is_dir() {
                bail!("{} is no directory", tree.display());
            }
            root::make_image(tree, &image, &spec.product, spec.compress)?;
            let root = root::make_verity(&image, &verity, &spec.product)?;
            fs::write(stage.join("files.ndjson.zst"), file_list(&image, tree)?)?;
            root
        }
        Source::Debian { overlay, initrd, recovery } => {
            let tree = debian::debian_tree(dirs)?;
            let laid_out = work.join("root");
            debian::lay_out(&tree, &laid_out, &spec.version, overlay.as_deref())?;
            debian::make_users(&tree, work)?;
            debian::remove_drivers(&tree, work)?;
            let sign = |image: &Path, to: &Path| {
                key.map_or(Ok(()), |key| key.sign(image, spec.source_date_epoch, to))
            };
            // slotd takes this one, where it is there, to replace an older one on the ESP.
            let loader = laid_out.join(debian::LOADER);
            sign(&loader, &loader.with_extension("efi.signed"))?;
            debian::tool(&tree, work, "mkfs.erofs")?
                .args(root::mkfs_args(&spec.product, spec.compress))
                .args(["/mnt/root.erofs", "/mnt/root"])
                .run()?;
            fs::rename(work.join("root.erofs"), &image)?;
            let root = root::make_verity(&image, &verity, &spec.product)?;
            fs::write(stage.join("files.ndjson.zst"), file_list(&image, &laid_out)?)?;
            let hash = root.verity.root_hash.to_string();
            let images = [
                ("boot.efi", Target::Slot(&hash, root.size), initrd),
                ("recovery.efi", Target::Recovery, recovery),
            ];
            for (name, target, over) in images {
                debian::write_uki(dirs, &tree, work, name, &spec.version, target, over.as_deref())?;
                fs::rename(work.join(name), stage.join(name))?;
                sign(&stage.join(name), &stage.join(name))?;
            }
            root
        }
    };
    Ok(root)
}

/// Writes what the firmware is made of, where that is known: false for a tree that is taken as it is.
fn write_sbom(spec: &FirmwareSpec, dirs: &BuildDirs, work: &Path, out: &Path) -> anyhow::Result<bool> {
    if matches!(spec.source, Source::Tree(_)) {
        return Ok(false);
    }
    let (mut packages, differences) = debian::packages(dirs, false)?;
    let shipped = product::packages(&debian::debian_tree(dirs)?)?;
    packages.retain(|package| shipped.contains(&package.name));
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let ours = work.join("root/usr/lib/sps/slotd").exists();
    let crates = if ours { sbom::crates(&sources)? } else { Vec::new() };
    let contents = sbom::Contents {
        product: &spec.product,
        version: &spec.version,
        epoch: spec.source_date_epoch,
        packages: &packages,
        differences: &differences,
        crates: &crates,
    };
    fs::write(out, sbom::render(&contents)?)?;
    Ok(true)
}

/// Describes what lies in `stage`.
fn manifest(spec: &FirmwareSpec, stage: &Path, root: Root) -> anyhow::Result<Manifest> {
    let mut files = Vec::new();
    for name in PAYLOAD_ORDER.into_iter().filter(|name| *name != "root.erofs") {
        if stage.join(name).exists() {
            let (sha256, size, mut pieces) = root::sha256_pieces(&stage.join(name))?;
            if size <= PIECE || name == "root.verity" {
                pieces.clear();
            }
            files.push(File { name: name.into(), pieces, sha256, size });
        }
    }
    let date = jiff::Timestamp::from_second(i64::try_from(spec.source_date_epoch)?)?;
    let manifest = Manifest {
        boot: if matches!(spec.source, Source::Debian { .. }) { Boot::Uki } else { Boot::None },
        boot_version: spec.boot_version.clone(),
        build_date: date.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        compatible: Compatible { hardware: spec.hardware.clone(), product: spec.product.clone() },
        config_schema: spec.config_schema,
        files,
        meta: spec.meta.clone(),
        required_space: spec.required_space,
        revoked_below: spec.revoked_below,
        root,
        schema: 1,
        security_epoch: spec.security_epoch,
        state_schema: spec.state_schema,
        upgrade_from: spec.upgrade_from.clone(),
        version: spec.version.clone(),
    };
    // What slotd would refuse is not built.
    Manifest::parse(manifest.render().as_bytes()).context("this firmware would be refused")
}

/// `files.ndjson.zst` of `image`, which was made of `tree`.
fn file_list(image: &Path, tree: &Path) -> anyhow::Result<Vec<u8>> {
    let file = fs::File::open(image)?;
    let len = file.metadata()?.len();
    let entries = erofs::walk(&file, len, &|path| Ok(root::sha256(&tree.join(path))?.0.0))
        .with_context(|| format!("{} cannot be listed", image.display()))?;
    Ok(erofs::compress(&erofs::render(&entries)?)?)
}
