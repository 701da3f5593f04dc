//! What a firmware ISO is to be made of.

use std::collections::BTreeMap;
use std::path::PathBuf;

use slotd::domain::manifest::UpgradeFrom;

use crate::BootKey;

/// The start of 2026: the build date of development, in seconds since 1970.
pub(crate) const EPOCH: u64 = 1_767_225_600;

/// Everything that decides the bits of a firmware ISO, besides the signer.
/// Where it names no boot key, that is the signer's, too.
#[derive(Clone, Debug)]
pub struct FirmwareSpec {
    /// Version of the firmware: dotted numbers, optionally `-suffix`.
    pub version: String,
    /// Version of kernel and initrd.
    pub boot_version: String,
    /// Seconds since 1970, UTC: the build date and every time stamp of the ISO (`SOURCE_DATE_EPOCH`).
    pub source_date_epoch: u64,
    /// Security epoch of this firmware.
    pub security_epoch: u32,
    /// Slots of a lower epoch may not be gone back to.
    pub revoked_below: u32,
    /// Running versions from which it may be installed. Empty: from none.
    pub upgrade_from: Vec<UpgradeFrom>,
    /// Product name.
    pub product: String,
    /// Hardware models; `*` stands for all.
    pub hardware: Vec<String>,
    /// Upgrade notes, Markdown; not empty.
    pub notes: String,
    /// Upgrade news, Markdown.
    pub news: Option<String>,
    /// Free text for people.
    pub meta: BTreeMap<String, String>,
    /// Space that a migration needs, in bytes.
    pub required_space: u64,
    /// Version of the slot state that it writes.
    pub state_schema: u32,
    /// Version of the configuration schema that it speaks.
    pub config_schema: u32,
    /// Where the root comes from.
    pub source: Source,
    /// Whether the root is compressed (LZ4).
    pub compress: bool,
    /// Whether the manifest is signed. An unsigned ISO is for tests and demos: no appliance takes it.
    pub signed: bool,
    /// The key that signs boot images and loader for Secure Boot; `None` is the development key's.
    pub boot_key: Option<BootKey>,
}

/// Where the root file system comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The cached Debian 13 tree, bootable. What is laid over it is a directory whose files
    /// come to belong to root.
    Debian {
        /// Laid over the tree.
        overlay: Option<PathBuf>,
        /// Laid over the initrd of a slot.
        initrd: Option<PathBuf>,
        /// Laid over the initrd of the recovery image.
        recovery: Option<PathBuf>,
    },
    /// Any tree as it is, not bootable.
    Tree(PathBuf),
}

impl FirmwareSpec {
    /// A firmware of `version` from `source` with the defaults of development: product `sps`, any hardware, epoch 1,
    /// compressed, signed, to be installed from nothing, built at the start of 2026.
    pub fn new(version: &str, source: Source) -> Self {
        Self {
            version: version.into(),
            boot_version: version.into(),
            source_date_epoch: EPOCH,
            security_epoch: 1,
            revoked_below: 0,
            upgrade_from: Vec::new(),
            product: "sps".into(),
            hardware: vec!["*".into()],
            notes: format!("# Version {version}\n\nBuilt for development.\n"),
            news: None,
            meta: BTreeMap::new(),
            required_space: 0,
            state_schema: 1,
            config_schema: 1,
            source,
            compress: true,
            signed: true,
            boot_key: None,
        }
    }
}
