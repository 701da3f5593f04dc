//! A journaling file system in memory: names on one side, what they name on the other.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use slotd::device::file_system::{Attributes, FileSystem, Kind, Rename};

use super::{Digest, Event, Recorder, digest};

/// The directory that everything is in.
const ROOT: Node = 0;

/// What there is under a name: kind, mode, owner and bytes.
pub type Found<'a> = (Kind, u32, (u32, u32), &'a [u8]);
/// By name.
pub type Listing<'a> = BTreeMap<&'a Path, Found<'a>>;

/// What has a name; names may come and go, it stays the same.
pub type Node = u64;

/// A file, a directory or a link.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Content {
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    /// Of a file; of a link, where it leads.
    bytes: Arc<Vec<u8>>,
}

/// Everything in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    names: BTreeMap<PathBuf, Node>,
    nodes: BTreeMap<Node, Content>,
}

/// A change of it, or a barrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Something new got a name.
    Make {
        /// Its name.
        path: PathBuf,
        /// What it is.
        node: Node,
        /// Of this kind.
        kind: Kind,
        /// Where a link leads.
        target: PathBuf,
    },
    /// Mode and owner were set.
    Attributes {
        /// Of this.
        node: Node,
        /// The mode.
        mode: u32,
        /// User and group.
        owner: (u32, u32),
    },
    /// A name was changed, or two were exchanged.
    Rename {
        /// The one.
        from: PathBuf,
        /// The other.
        to: PathBuf,
        /// Two were exchanged.
        exchange: bool,
    },
    /// A name was taken away.
    Remove {
        /// It.
        path: PathBuf,
    },
    /// Bytes were written into a file.
    Write {
        /// The file.
        node: Node,
        /// Byte.
        offset: usize,
        /// What.
        data: Arc<[u8]>,
    },
    /// A file was cut.
    Truncate {
        /// The file.
        node: Node,
        /// To so many bytes.
        length: usize,
    },
    /// The content of a file, or the names in a directory, are on stable storage.
    Sync {
        /// It.
        node: Node,
        /// Its name.
        path: PathBuf,
    },
}

impl Change {
    /// Whether it changes names and not content.
    pub fn is_of_names(&self) -> bool {
        matches!(
            self,
            Self::Make { .. } | Self::Attributes { .. } | Self::Rename { .. } | Self::Remove { .. }
        )
    }

    /// Whether it changes what is in the directory `path`, which is `node`.
    pub fn is_in(&self, path: &Path, node: Node) -> bool {
        let below = |name: &PathBuf| name.parent() == Some(path);
        match self {
            Self::Make { path: name, .. } | Self::Remove { path: name } => below(name),
            Self::Rename { from, to, .. } => below(from) || below(to),
            Self::Attributes { node: of, .. } => *of == node,
            Self::Write { .. } | Self::Truncate { .. } | Self::Sync { .. } => false,
        }
    }
}

impl Tree {
    /// Everything that has a name.
    pub fn listing(&self) -> Listing<'_> {
        let content = |node: &Node| self.nodes.get(node);
        let named = self.names.iter().filter_map(|(path, node)| Some((path.as_path(), content(node)?)));
        named.map(|(path, found)| (path, (found.kind, found.mode, found.owner, &**found.bytes))).collect()
    }

    /// What tells what can be read in it from any other.
    pub fn digest(&self) -> Option<Digest> {
        let mut all = Vec::new();
        for (path, (kind, mode, owner, bytes)) in self.listing() {
            all.extend(digest(path.as_os_str().as_encoded_bytes()));
            all.extend(digest(format!("{kind:?} {mode} {owner:?}").as_bytes()));
            all.extend(digest(bytes));
        }
        (!all.is_empty()).then(|| digest(&all))
    }

    /// Carries out one change.
    pub fn apply(&mut self, change: &Change) {
        if change.is_of_names() {
            self.born(change);
            self.name(change);
            return;
        }
        match change {
            Change::Write { node, offset, data } => self.write(*node, *offset, data, 0..data.len(), true),
            Change::Truncate { node, length } => {
                if let Some(content) = self.nodes.get_mut(node) {
                    Arc::make_mut(&mut content.bytes).resize(*length, 0);
                }
            }
            _ => {}
        }
    }

    /// What is made is there, though no name leads to it.
    pub fn born(&mut self, change: &Change) {
        if let Change::Make { node, kind, target, .. } = change {
            let mode = if *kind == Kind::Directory { 0o700 } else { 0o600 };
            let bytes = Arc::new(target.as_os_str().as_encoded_bytes().to_vec());
            self.nodes.entry(*node).or_insert(Content { kind: *kind, mode, owner: (0, 0), bytes });
        }
    }

    /// Carries out what changes names.
    pub fn name(&mut self, change: &Change) {
        match change {
            Change::Make { path, node, .. } => {
                self.names.insert(path.clone(), *node);
            }
            Change::Attributes { node, mode, owner } => {
                if let Some(content) = self.nodes.get_mut(node) {
                    (content.mode, content.owner) = (*mode, *owner);
                }
            }
            Change::Remove { path } => {
                self.names.remove(path);
            }
            Change::Rename { from, to, exchange } => {
                let moved = |name: PathBuf| {
                    let as_other = |one: &Path, other: &Path| {
                        let rest = name.strip_prefix(one).ok()?;
                        // Joining nothing would end the name with a slash.
                        Some(if rest.as_os_str().is_empty() { other.to_owned() } else { other.join(rest) })
                    };
                    let back = || if *exchange { as_other(to, from) } else { None };
                    as_other(from, to).or_else(back).unwrap_or(name.clone())
                };
                let names = std::mem::take(&mut self.names);
                self.names = names.into_iter().map(|(name, node)| (moved(name), node)).collect();
            }
            Change::Write { .. } | Change::Truncate { .. } | Change::Sync { .. } => {}
        }
    }

    /// Writes these bytes of `data`. With `whole` the file is as long as after the whole write, zeros where nothing was.
    pub fn write(
        &mut self,
        node: Node,
        offset: usize,
        data: &[u8],
        part: std::ops::Range<usize>,
        whole: bool,
    ) {
        let Some(content) = self.nodes.get_mut(&node) else { return };
        let bytes = Arc::make_mut(&mut content.bytes);
        let end = offset + if whole { data.len() } else { part.end };
        bytes.resize(bytes.len().max(end), 0);
        bytes[offset + part.start..offset + part.end].copy_from_slice(&data[part]);
    }

    fn find(&self, path: &Path) -> io::Result<(Node, &Content)> {
        let node = self.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok((*node, self.nodes.get(node).ok_or(io::ErrorKind::NotFound)?))
    }

    fn has_below(&self, path: &Path) -> bool {
        self.names.keys().any(|name| name.parent() == Some(path))
    }

    /// What no file has named yet.
    fn next(&self) -> Node {
        self.nodes.keys().next_back().map_or(1, |last| last + 1)
    }
}

/// The recorded file system, as slotd takes it.
#[derive(Debug)]
pub(super) struct RecordedFiles(pub(super) Recorder);

impl RecordedFiles {
    fn with<T>(&self, look: impl FnOnce(&Tree) -> io::Result<T>) -> io::Result<T> {
        look(&self.0.lock().media.files)
    }

    fn change(&self, change: Change) {
        self.0.record(Event::File(change));
    }

    fn make(&self, path: &Path, kind: Kind, target: &Path) -> io::Result<()> {
        let node = self.with(|tree| {
            let parent = path.parent().filter(|parent| *parent != Path::new("/"));
            let in_directory = parent.is_none_or(|parent| {
                tree.find(parent).is_ok_and(|(_, content)| content.kind == Kind::Directory)
            });
            match tree.find(path) {
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                Err(_) if !in_directory => Err(io::ErrorKind::NotFound.into()),
                Err(_) => Ok(tree.next()),
            }
        })?;
        self.change(Change::Make { path: path.into(), node, kind, target: target.into() });
        Ok(())
    }

    fn node(&self, path: &Path) -> io::Result<Node> {
        if path == Path::new("/") {
            return Ok(ROOT);
        }
        self.with(|tree| Ok(tree.find(path)?.0))
    }
}

impl FileSystem for RecordedFiles {
    fn look(&self, path: &Path) -> io::Result<Option<Attributes>> {
        self.with(|tree| {
            let Ok((_, content)) = tree.find(path) else { return Ok(None) };
            let Content { kind, mode, owner: (uid, gid), bytes } = content;
            let length = bytes.len() as u64;
            Ok(Some(Attributes { kind: *kind, length, mode: *mode, uid: *uid, gid: *gid }))
        })
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.with(|tree| {
            tree.find(directory)?;
            let below = tree.names.keys().filter(|name| name.parent() == Some(directory));
            Ok(below.filter_map(|name| Some(name.file_name()?.to_owned())).collect())
        })
    }

    fn read_at(&self, file: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.with(|tree| {
            let bytes = &tree.find(file)?.1.bytes;
            let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
            let rest = rest.unwrap_or_default();
            Ok(rest[..length.min(rest.len())].to_vec())
        })
    }

    fn read_link(&self, link: &Path) -> io::Result<PathBuf> {
        self.with(|tree| Ok(String::from_utf8_lossy(&tree.find(link)?.1.bytes).into_owned().into()))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.make(path, Kind::Directory, Path::new(""))
    }

    fn create_file(&self, path: &Path) -> io::Result<()> {
        self.make(path, Kind::File, Path::new(""))
    }

    fn create_link(&self, path: &Path, target: &Path) -> io::Result<()> {
        self.make(path, Kind::Link, target)
    }

    fn write_at(&self, file: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (node, offset) = (self.node(file)?, usize::try_from(offset).map_err(io::Error::other)?);
        self.change(Change::Write { node, offset, data: bytes.into() });
        Ok(())
    }

    fn truncate(&self, file: &Path, length: u64) -> io::Result<()> {
        let (node, length) = (self.node(file)?, usize::try_from(length).map_err(io::Error::other)?);
        self.change(Change::Truncate { node, length });
        Ok(())
    }

    fn set_attributes(&self, path: &Path, attributes: &Attributes) -> io::Result<()> {
        let owner = (attributes.uid, attributes.gid);
        self.change(Change::Attributes { node: self.node(path)?, mode: attributes.mode, owner });
        Ok(())
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        self.change(Change::Sync { node: self.node(path)?, path: path.into() });
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path, how: Rename) -> io::Result<()> {
        self.node(from)?;
        let exchange = how == Rename::Exchange;
        if self.node(to).is_ok() != exchange {
            return Err(if exchange { io::ErrorKind::NotFound } else { io::ErrorKind::AlreadyExists }.into());
        }
        self.change(Change::Rename { from: from.into(), to: to.into(), exchange });
        Ok(())
    }

    fn remove(&self, path: &Path, _: Kind) -> io::Result<()> {
        self.node(path)?;
        if self.with(|tree| Ok(tree.has_below(path)))? {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        self.change(Change::Remove { path: path.into() });
        Ok(())
    }
}
