//! From the root directory to the list.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use slotd::domain::file_list::{self, Entry, Kind};

use super::directory;
use super::error::{ErofsError, Fault};
use super::escape;
use super::inode::Inode;
use super::map::{Map, Place};
use super::source::{Image, ReadAt, le16};
use super::superblock::{self, Superblock};

/// Path of the entry of the superblock with the compression configurations behind it.
pub const SUPERBLOCK: &str = "(superblock)";
/// Path of the entry of the packed inode, which holds the fragments.
pub const PACKED: &str = "(packed)";
/// Path of the entry of the extended attributes that several inodes share.
pub const SHARED_XATTRS: &str = "(shared xattrs)";

/// Most entries in a list, beside those of what lies apart from files.
const MAX_ENTRIES: usize = file_list::MAX_ENTRIES - 3;
/// Longest path, and longest symbolic link, in bytes (`PATH_MAX`).
const MAX_PATH: u64 = 4096;
/// Largest directory in bytes: about two million names.
const MAX_DIRECTORY: u64 = 64 << 20;
/// Rough size of an entry in memory without its path and extents.
const ENTRY_BYTES: u64 = 256;

type Hash<'a> = &'a dyn Fn(&Path) -> anyhow::Result<[u8; 32]>;

/// Lists everything in an EROFS image of `len` bytes, in byte order of [`Entry::path`].
///
/// `sha256` is asked once for each inode of a regular file, with a path that has it, relative to the root
/// (`usr/bin/login`). What the image holds apart from files comes first, under [`PACKED`],
/// [`SHARED_XATTRS`] and [`SUPERBLOCK`]: with these, bytes of the image without an owner are padding.
pub fn walk(image: &impl ReadAt, len: u64, sha256: Hash<'_>) -> Result<Vec<Entry>, ErofsError> {
    let image = Image::new(image, len);
    let superblock = Superblock::read(&image)?;
    let mut walk = Walk {
        image,
        superblock,
        sha256,
        packed: None,
        entries: Vec::new(),
        known: BTreeMap::new(),
        xattrs: BTreeSet::new(),
        pending: vec![(superblock.root, Vec::new())],
    };
    if let Some(nid) = superblock.packed {
        walk.packed(nid)?;
    }
    while let Some((nid, path)) = walk.pending.pop() {
        walk.visit(nid, &path)?;
    }
    walk.shared_xattrs()?;
    let mut entries = walk.entries;
    entries.push(internal(SUPERBLOCK, (superblock::OFFSET, superblock.end - superblock::OFFSET)));
    entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

/// An entry of something that is not in the tree.
fn internal(path: &str, at: (u64, u64)) -> Entry {
    Entry {
        path: path.to_owned(),
        kind: Kind::File,
        mode: 0,
        uid: 0,
        gid: 0,
        size: 0,
        sha256: None,
        target: None,
        device: None,
        inode: 0,
        at,
        extents: Vec::new(),
    }
}

struct Walk<'a, R: ReadAt> {
    image: Image<'a, R>,
    superblock: Superblock,
    sha256: Hash<'a>,
    packed: Option<Map>,
    entries: Vec<Entry>,
    /// Index of an inode's first entry.
    known: BTreeMap<u64, usize>,
    /// Ids of shared extended attributes that are in use.
    xattrs: BTreeSet<u32>,
    /// Inodes to visit with their paths, without the leading slash.
    pending: Vec<(u64, Vec<u8>)>,
}

impl<R: ReadAt> Walk<'_, R> {
    fn packed(&mut self, nid: u64) -> Result<(), ErofsError> {
        let inode = Inode::read(&self.image, &self.superblock, nid)?;
        if inode.kind != Kind::File {
            return Err(Fault::Corrupt("the packed inode is no regular file", u64::from(inode.mode)).of(nid));
        }
        let map = Map::read(&self.image, &self.superblock, &inode)?;
        let entry = self.entry(&inode, &map, PACKED.to_owned())?;
        self.entries.push(entry);
        self.packed = Some(map);
        Ok(())
    }

    fn visit(&mut self, nid: u64, path: &[u8]) -> Result<(), ErofsError> {
        let name = format!("/{}", escape(path));
        self.image.hold(name.len() as u64)?;
        if self.entries.len() >= MAX_ENTRIES {
            return Err(ErofsError::Limit { what: "files", limit: MAX_ENTRIES as u64 });
        }
        if let Some(first) = self.known.get(&nid).and_then(|index| self.entries.get(*index)) {
            if first.kind == Kind::Dir {
                return Err(Fault::Corrupt("the directory is reached twice", nid).of(nid));
            }
            self.image.hold(16 * first.extents.len() as u64)?;
            let entry = Entry { path: name, ..first.clone() };
            self.entries.push(entry);
            return Ok(());
        }
        let inode = Inode::read(&self.image, &self.superblock, nid)?;
        if path.is_empty() && inode.kind != Kind::Dir {
            return Err(Fault::Corrupt("the root is no directory", u64::from(inode.mode)).of(nid));
        }
        let map = Map::read(&self.image, &self.superblock, &inode)?;
        let mut entry = self.entry(&inode, &map, name)?;
        match inode.kind {
            Kind::File => {
                let hash = (self.sha256)(Path::new(OsStr::from_bytes(path)));
                let path = || entry.path.clone();
                let hash = hash.map_err(|source| ErofsError::Hash { path: path(), source })?;
                entry.sha256 = Some(hex::encode(hash));
            }
            Kind::Symlink => entry.target = Some(escape(&self.target(&inode, &map)?)),
            Kind::Dir => self.children(&inode, &map, path)?,
            Kind::Char | Kind::Block | Kind::Fifo | Kind::Socket => {}
        }
        self.known.insert(nid, self.entries.len());
        self.entries.push(entry);
        Ok(())
    }

    fn entry(&mut self, inode: &Inode, map: &Map, path: String) -> Result<Entry, ErofsError> {
        self.xattrs.extend(inode.shared_xattrs(&self.image)?);
        Ok(Entry {
            path,
            kind: inode.kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            size: inode.size,
            sha256: None,
            target: None,
            device: inode.device(),
            inode: inode.nid,
            at: (inode.at, map.end - inode.at),
            extents: self.extents(inode, map)?,
        })
    }

    /// What lies outside the inode, fragments resolved to what of the packed inode holds them.
    fn extents(&self, inode: &Inode, map: &Map) -> Result<Vec<(u64, u64)>, ErofsError> {
        let mut extents = Vec::new();
        for (index, (_, place)) in map.pieces.iter().enumerate() {
            match *place {
                Place::Blocks(at, len) => merge(&mut extents, at, len),
                Place::Inline(..) | Place::Hole => {}
                Place::Fragment(offset) => {
                    let len = map.piece_len(index);
                    let packed = self.packed.as_ref();
                    let packed = packed.ok_or(
                        Fault::Corrupt("a fragment without a packed inode to hold it", offset).of(inode.nid),
                    )?;
                    if offset.checked_add(len).is_none_or(|end| end > packed.size) {
                        return Err(
                            Fault::Corrupt("its fragment ends after the packed inode", offset).of(inode.nid)
                        );
                    }
                    for place in packed.covering(offset, len) {
                        self.image.work(16)?;
                        if let Place::Blocks(at, len) | Place::Inline(at, len) = place {
                            merge(&mut extents, at, len);
                        }
                    }
                }
            }
        }
        self.image.hold(16 * extents.len() as u64)?;
        Ok(extents)
    }

    fn target(&self, inode: &Inode, map: &Map) -> Result<Vec<u8>, ErofsError> {
        if inode.size > MAX_PATH {
            return Err(ErofsError::Limit { what: "bytes in a symbolic link", limit: MAX_PATH });
        }
        let mut target = Vec::new();
        for index in 0..map.pieces.len() {
            target.extend(self.piece(inode, map, index, "a symbolic link")?);
        }
        Ok(target)
    }

    fn children(&mut self, inode: &Inode, map: &Map, path: &[u8]) -> Result<(), ErofsError> {
        if inode.size > MAX_DIRECTORY {
            return Err(ErofsError::Limit { what: "bytes in a directory", limit: MAX_DIRECTORY });
        }
        let mut last = Vec::new();
        let block = usize::try_from(self.superblock.block()).unwrap_or(usize::MAX);
        for index in 0..map.pieces.len() {
            let bytes = self.piece(inode, map, index, "a directory")?;
            for block in bytes.chunks(block) {
                let entries = directory::parse(block, &mut last).map_err(|fault| fault.of(inode.nid))?;
                for (nid, name) in entries {
                    let child = if path.is_empty() { name } else { [path, b"/", &name].concat() };
                    if child.len() as u64 >= MAX_PATH {
                        return Err(ErofsError::Limit { what: "bytes in a path", limit: MAX_PATH });
                    }
                    self.image.hold(ENTRY_BYTES + child.len() as u64)?;
                    self.pending.push((nid, child));
                }
            }
        }
        Ok(())
    }

    /// Content of one piece of an inode that is not compressed.
    fn piece(
        &self,
        inode: &Inode,
        map: &Map,
        index: usize,
        what: &'static str,
    ) -> Result<Vec<u8>, ErofsError> {
        match map.pieces.get(index) {
            Some((_, Place::Blocks(at, _) | Place::Inline(at, _))) => {
                self.image.read(what, *at, map.piece_len(index))
            }
            _ => Err(Fault::Corrupt("what must have content has a hole", inode.size).of(inode.nid)),
        }
    }

    fn shared_xattrs(&mut self) -> Result<(), ErofsError> {
        let mut extents = Vec::new();
        for id in &self.xattrs {
            let at = self.superblock.xattrs + 4 * u64::from(*id);
            let head = self.image.read("a shared extended attribute", at, 4)?;
            let name = u64::from(head.first().copied().unwrap_or(0));
            let len = (4 + name + u64::from(le16(&head, 2))).next_multiple_of(4);
            self.image.check("a shared extended attribute", at, len)?;
            merge(&mut extents, at, len);
        }
        if let Some((start, _)) = extents.first().copied() {
            self.entries.push(Entry { extents, ..internal(SHARED_XATTRS, (start, 0)) });
        }
        Ok(())
    }
}

/// Adds an extent; one that goes on where the last ends, or repeats part of it, becomes part of it.
fn merge(extents: &mut Vec<(u64, u64)>, at: u64, len: u64) {
    if let Some((start, size)) = extents.last_mut()
        && (*start..=*start + *size).contains(&at)
    {
        *size = (*size).max(at - *start + len);
        return;
    }
    extents.push((at, len));
}
