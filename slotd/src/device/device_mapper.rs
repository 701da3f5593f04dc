//! dm-verity over a slot, for as long as something is mounted from it.
//!
//! Four commands of device-mapper are all that is needed, so they are given to the kernel directly (linux/dm-ioctl.h;
//! the table: Documentation/admin-guide/device-mapper/verity.rst). The mapping is told to go with its last user while it
//! is made: nothing that ends, however it ends, keeps a slot.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;

use super::kernel::{self, DM_HEADER};
use crate::domain::manifest::{BLOCK, Sha256Hex};

/// The control node, where this kernel has device-mapper.
pub const CONTROL: &str = "/dev/mapper/control";
/// The one mapping of this program.
const NAME: &str = "sps-upgrade-check";
/// How long an earlier mapping of this name may take to go.
const WAIT: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(20);

/// Bytes of a sector, the unit of tables.
const SECTOR: u64 = 512;
/// Longest salt in bytes (cryptsetup: `VERITY_MAX_SALT_SIZE`).
const SALT_LIMIT: usize = 256;

// Commands and flags of linux/dm-ioctl.h.
const DEV_CREATE: u8 = 3;
const DEV_REMOVE: u8 = 4;
const DEV_SUSPEND: u8 = 6;
const TABLE_LOAD: u8 = 9;
const READ_ONLY: u32 = 1 << 0;
const DEFERRED_REMOVE: u32 = 1 << 17;
/// The interface's version that this speaks: 4.0, understood by every kernel since 2.6.
const VERSION: u32 = 4;

// Places in `struct dm_ioctl`.
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const FLAGS: usize = 28;
const DEVICE: usize = 40;
const DEVICE_NAME: usize = 48;
/// Length of `struct dm_target_spec`, which the table follows.
const TARGET_HEADER: usize = 40;

/// What dm-verity needs to know of a slot (formats: blocks of 4 KiB, SHA-256, superblock before the tree).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verity {
    /// The signed root hash.
    pub root_hash: Sha256Hex,
    /// In lower-case hexadecimal; may be empty.
    pub salt: String,
    /// Where the superblock of the tree lies on the same device, in bytes.
    pub hash_offset: u64,
}

/// Why there is no mapping.
#[derive(Debug, thiserror::Error)]
pub enum DeviceMapperError {
    /// Lengths that no slot has.
    #[error(
        "no dm-verity table can be made of {size} bytes with a tree at byte {hash_offset}; both must be multiples of {BLOCK}, and the salt hexadecimal"
    )]
    Table {
        /// Bytes of data.
        size: u64,
        /// Where the tree lies.
        hash_offset: u64,
    },
    /// An earlier mapping is still used.
    #[error("the device-mapper device {NAME} is still in use after {} s; end what uses it, or restart", WAIT.as_secs())]
    Busy,
    /// device-mapper refused.
    #[error("device-mapper does not {what}")]
    Call {
        /// What was asked.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The node of the mapping is not there, or another device.
    #[error("{} is not the dm-verity device that was just made", node.display())]
    Node {
        /// Where it should be.
        node: PathBuf,
        /// Why, where it could not be opened.
        #[source]
        source: Option<io::Error>,
    },
}

/// A mapping. It goes when the last user of its node has closed or unmounted it; this is one.
#[derive(Debug)]
pub struct Mapping {
    node: PathBuf,
    _user: File,
}

impl Mapping {
    /// Guards `size` bytes at the start of the block device `slot` with dm-verity. Blocks, for five seconds at most where
    /// an earlier mapping has not gone yet. `control` is the open [`CONTROL`].
    pub fn verity(
        control: &File,
        slot: &File,
        size: u64,
        verity: &Verity,
    ) -> Result<Self, DeviceMapperError> {
        let metadata = slot.metadata().map_err(|source| call("look at the slot", source))?;
        let device = metadata.rdev();
        let table = table((libc::major(device), libc::minor(device)), size, verity)
            .ok_or(DeviceMapperError::Table { size, hash_offset: verity.hash_offset })?;
        remove_earlier(control)?;
        let mut created = Message::new(0);
        created.ask(control, DEV_CREATE).map_err(|source| call("make a device", source))?;
        let mapped = Self::load(control, &created, size / SECTOR, &table);
        if mapped.is_err() {
            let _ = Message::new(0).ask(control, DEV_REMOVE);
        }
        mapped
    }

    fn load(control: &File, created: &Message, sectors: u64, table: &str) -> Result<Self, DeviceMapperError> {
        Message::new(READ_ONLY)
            .with_target(sectors, table)
            .ask(control, TABLE_LOAD)
            .map_err(|source| call("take the dm-verity table", source))?;
        // Without the suspend flag this resumes: the table comes into force.
        Message::new(0).ask(control, DEV_SUSPEND).map_err(|source| call("start dm-verity", source))?;
        let (major, minor) = created.device();
        let node = PathBuf::from(format!("/dev/dm-{minor}"));
        let user = match File::open(&node) {
            Ok(user) => user,
            Err(source) => return Err(DeviceMapperError::Node { node, source: Some(source) }),
        };
        if user.metadata().is_ok_and(|found| found.rdev() != libc::makedev(major, minor)) {
            return Err(DeviceMapperError::Node { node, source: None });
        }
        Message::new(DEFERRED_REMOVE)
            .ask(control, DEV_REMOVE)
            .map_err(|source| call("let the device go by itself", source))?;
        Ok(Self { node, _user: user })
    }

    /// The block device.
    pub fn node(&self) -> &Path {
        &self.node
    }
}

fn call(what: &'static str, source: io::Error) -> DeviceMapperError {
    DeviceMapperError::Call { what, source }
}

/// The control node; `None` where this kernel has no device-mapper.
pub fn open_control() -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).write(true).open(CONTROL) {
        Ok(control) => Ok(Some(control)),
        // A static node whose driver is not there answers ENODEV or ENXIO.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if [Some(libc::ENODEV), Some(libc::ENXIO)].contains(&error.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// One check runs at a time: a mapping that is there is what a check left that was ended while it made one, or one that
/// is about to go.
fn remove_earlier(control: &File) -> Result<(), DeviceMapperError> {
    let over = Instant::now() + WAIT;
    loop {
        match Message::new(0).ask(control, DEV_REMOVE) {
            Ok(()) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => return Ok(()),
            Err(error) if error.raw_os_error() != Some(Errno::EBUSY as i32) => {
                return Err(call("remove an earlier device", error));
            }
            Err(_) if Instant::now() >= over => return Err(DeviceMapperError::Busy),
            Err(_) => thread::sleep(STEP),
        }
    }
}

/// `<version> <dev> <hash dev> <data block size> <hash block size> <data blocks> <hash start block> <algorithm> <digest>
/// <salt>`: the tree begins in the block after its superblock.
fn table((major, minor): (u32, u32), size: u64, verity: &Verity) -> Option<String> {
    let Verity { root_hash, salt, hash_offset } = verity;
    let bytes = hex::decode(salt).ok().filter(|bytes| bytes.len() <= SALT_LIMIT)?;
    let salt = if bytes.is_empty() { "-".to_owned() } else { hex::encode(bytes) };
    if size == 0 || !size.is_multiple_of(BLOCK) || !hash_offset.is_multiple_of(BLOCK) {
        return None;
    }
    let (blocks, tree) = (size / BLOCK, (hash_offset / BLOCK).checked_add(1)?);
    Some(format!(
        "1 {major}:{minor} {major}:{minor} {BLOCK} {BLOCK} {blocks} {tree} sha256 {root_hash} {salt}"
    ))
}

/// A `struct dm_ioctl` and what follows it.
struct Message(Vec<u8>);

impl Message {
    /// About the device [`NAME`].
    fn new(flags: u32) -> Self {
        let mut message = Self(vec![0; DM_HEADER]);
        message.put(0, &VERSION.to_ne_bytes());
        message.put(DATA_START, &u32::try_from(DM_HEADER).unwrap_or_default().to_ne_bytes());
        message.put(FLAGS, &flags.to_ne_bytes());
        message.put(DEVICE_NAME, NAME.as_bytes());
        message
    }

    /// With a `struct dm_target_spec` of one dm-verity target of `sectors`, and its table.
    fn with_target(mut self, sectors: u64, table: &str) -> Self {
        self.put(TARGET_COUNT, &1_u32.to_ne_bytes());
        let length = (TARGET_HEADER + table.len() + 1).next_multiple_of(8);
        self.0.extend(0_u64.to_ne_bytes());
        self.0.extend(sectors.to_ne_bytes());
        self.0.extend(0_u32.to_ne_bytes());
        self.0.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
        self.0.extend(b"verity\0\0\0\0\0\0\0\0\0\0");
        self.0.extend(table.as_bytes());
        self.0.resize(DM_HEADER + length, 0);
        self
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    fn ask(&mut self, control: &File, command: u8) -> io::Result<()> {
        kernel::device_mapper(control.as_fd(), command, &mut self.0)
    }

    /// Major and minor number, as `new_encode_dev` (`linux/kdev_t.h`) packs them.
    fn device(&self) -> (u32, u32) {
        let bytes = self.0.get(DEVICE..DEVICE + 4).and_then(|bytes| bytes.first_chunk::<4>());
        let packed = u32::from_ne_bytes(bytes.copied().unwrap_or_default());
        ((packed >> 8) & 0xfff, (packed & 0xff) | ((packed >> 12) & 0xf_ff00))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verity() -> Verity {
        Verity { root_hash: Sha256Hex([0xab; 32]), salt: "00ff".into(), hash_offset: 8 << 12 }
    }

    #[test]
    fn the_table_is_that_of_the_kernels_documentation() {
        let expected = format!("1 8:2 8:2 4096 4096 8 9 sha256 {} 00ff", "ab".repeat(32));
        assert_eq!(table((8, 2), 8 << 12, &verity()).unwrap(), expected);
        let without_salt = Verity { salt: String::new(), ..verity() };
        assert!(table((8, 2), 8 << 12, &without_salt).unwrap().ends_with(" -"));
        for size in [0, 1, 4095] {
            assert_eq!(table((8, 2), size, &verity()), None);
        }
        let injected = Verity { salt: "00 1 panic_on_corruption".into(), ..verity() };
        assert_eq!(table((8, 2), 4096, &injected), None);
        assert_eq!(table((8, 2), 4096, &Verity { salt: "00".repeat(257), ..verity() }), None);
        assert_eq!(table((8, 2), 4096, &Verity { hash_offset: 17, ..verity() }), None);
    }

    /// Against the sizes and places of linux/dm-ioctl.h.
    #[test]
    fn a_message_has_the_kernels_layout() {
        let message = Message::new(READ_ONLY).with_target(64, "1 8:2").0;
        assert_eq!(message.len(), 312 + 48);
        let word = |at: usize| u32::from_ne_bytes(message[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(16), word(20), word(28)), (4, 312, 1, 1));
        assert_eq!(&message[48..66], b"sps-upgrade-check\0");
        assert_eq!((word(312), word(320), word(332)), (0, 64, 48));
        assert_eq!(&message[336..343], b"verity\0");
        assert_eq!(&message[352..358], b"1 8:2\0");
        let mut answer = Message::new(0);
        answer.put(DEVICE, &(0x0010_fd34_u32).to_ne_bytes());
        assert_eq!(answer.device(), (253, 0x134));
    }

    #[test]
    fn what_is_no_control_node_is_refused() {
        let null = File::open("/dev/null").unwrap();
        let error = Message::new(0).ask(&null, DEV_CREATE).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
        let error = kernel::device_mapper(null.as_fd(), DEV_CREATE, &mut [0; 311]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
