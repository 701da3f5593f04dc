//! The root file system image and its dm-verity tree.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use slotd::domain::manifest::{BLOCK, PIECE, Root, Sha256Hex, Verity};

use crate::tool::Tool;

/// Arguments of `mkfs.erofs` before the image and the tree. The same tree gives the same image whatever its time stamps;
/// owners are kept.
///
/// LZ4 in clusters of one block, without deduplication, fragments or packed tails: a changed file changes its own blocks
/// and few others. LZ4HC makes a Debian root 4.6 % smaller and takes 16 to 28 times as long.
pub(crate) fn mkfs_args(product: &str, compress: bool) -> Vec<String> {
    let uuid = uuid(&seed("sps erofs uuid", product));
    let mut args = vec!["--quiet".into(), "-T0".into(), format!("-U{uuid}")];
    if compress {
        args.extend(["-zlz4".into(), "-C4096".into()]);
    }
    args
}

/// The image of a tree made with the host's `mkfs.erofs`.
pub(crate) fn make_image(tree: &Path, image: &Path, product: &str, compress: bool) -> anyhow::Result<()> {
    Tool::new("mkfs.erofs", "erofs-utils")
        .args(mkfs_args(product, compress))
        .arg(image)
        .arg(tree)
        .run()
        .with_context(|| format!("no root image of {}", tree.display()))?;
    Ok(())
}

/// Pads `image` to whole blocks and writes superblock and hash tree to `verity`.
pub(crate) fn make_verity(image: &Path, verity: &Path, product: &str) -> anyhow::Result<Root> {
    let file = File::options().write(true).open(image)?;
    let size = file.metadata()?.len().next_multiple_of(BLOCK);
    file.set_len(size)?;
    drop(file);
    let (image_hash, _) = sha256(image)?;
    let uuid = uuid(&image_hash.0);
    // One salt per product, so that the leaves of two versions can be compared.
    let salt = hex::encode(seed("sps dm-verity salt", product));
    let hash_file = verity.with_extension("root-hash");
    Tool::new("veritysetup", "cryptsetup-bin")
        .args(["format", "--hash=sha256", "--data-block-size=4096", "--hash-block-size=4096"])
        .args([format!("--salt={salt}"), format!("--uuid={uuid}")])
        .arg(format!("--root-hash-file={}", hash_file.display()))
        .arg(image)
        .arg(verity)
        .run()?;
    let root_hash = fs::read_to_string(&hash_file)?.trim().to_owned();
    fs::remove_file(&hash_file)?;
    let root_hash = Sha256Hex::try_from(root_hash)
        .map_err(anyhow::Error::msg)
        .context("veritysetup says no root hash")?;
    let block = u32::try_from(BLOCK)?;
    let verity =
        Verity { algorithm: "sha256".into(), data_block: block, hash_block: block, root_hash, salt, uuid };
    Ok(Root { size, verity })
}

/// SHA-256 and length of a file.
pub(crate) fn sha256(path: &Path) -> anyhow::Result<(Sha256Hex, u64)> {
    let (whole, size, _) = sha256_pieces(path)?;
    Ok((whole, size))
}

/// SHA-256 and length of a file, and the SHA-256 of each of its pieces of [`PIECE`] bytes.
pub(crate) fn sha256_pieces(path: &Path) -> anyhow::Result<(Sha256Hex, u64, Vec<Sha256Hex>)> {
    let unreadable = || format!("{} cannot be read", path.display());
    let mut file = File::open(path).with_context(unreadable)?;
    let (mut whole, mut size, mut pieces) = (Sha256::new(), 0, Vec::new());
    let mut piece = Vec::new();
    loop {
        piece.clear();
        let n = file.by_ref().take(PIECE).read_to_end(&mut piece).with_context(unreadable)?;
        if n == 0 {
            return Ok((Sha256Hex(whole.finalize().into()), size, pieces));
        }
        whole.update(&piece);
        pieces.push(Sha256Hex(Sha256::digest(&piece).into()));
        size += n as u64;
    }
}

/// 32 constant bytes of a product for one purpose.
fn seed(purpose: &str, product: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(purpose);
    hash.update([0]);
    hash.update(product);
    hash.finalize().into()
}

/// The first 128 bits of a hash in the spelling of a UUID.
pub fn uuid(hash: &[u8; 32]) -> String {
    let digits = hex::encode(&hash[..16]);
    let part = |from: usize, to: usize| digits[from..to].to_owned();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}
