//! What owns a bad block: a file, a directory, the inode table, a level of the tree, another part, or padding.

use std::error::Error;
use std::io::{self, Read};

use super::blocks::to_usize;
use super::inspect::Installed;
use crate::device::medium::Medium;
use crate::domain::file_list::{Entries, Entry, Kind};
use crate::domain::layout::{Extent, Part, padded};
use crate::domain::manifest::BLOCK;
use crate::domain::verity::Geometry;

/// Names that are listed at most.
const MAX_OWNERS: usize = 1024;

/// The owners of these runs of blocks (first, count; counted from the start of the slot).
pub(super) fn of(medium: &dyn Medium, installed: &Installed, runs: &[(u64, u64)]) -> Vec<String> {
    if runs.is_empty() {
        return Vec::new();
    }
    let mut owners = Vec::new();
    let root: Vec<Extent> = runs
        .iter()
        .map(|(first, count)| Extent { offset: first * BLOCK, size: count * BLOCK })
        .filter(|run| run.offset < installed.manifest.root.size)
        .collect();
    if !root.is_empty() {
        match of_root(medium, installed, &root) {
            Ok(found) => owners.extend(found),
            Err(e) => owners.push(format!("root.erofs (the file list cannot be read: {e})")),
        }
    }
    for (first, count) in runs {
        owners.extend(of_parts(installed, *first, *count));
    }
    owners.dedup();
    owners.truncate(MAX_OWNERS);
    owners
}

/// Owners outside the root image.
fn of_parts(installed: &Installed, first: u64, count: u64) -> Vec<String> {
    let run = Extent { offset: first * BLOCK, size: count * BLOCK };
    let touches = |place: Extent| run.offset < place.offset + padded(place.size) && place.offset < run.end();
    let mut owners = Vec::new();
    for (part, place) in
        installed.layout.parts().iter().filter(|(part, place)| *part != Part::Root && touches(*place))
    {
        if *part != Part::Verity {
            owners.push(part.name().to_owned());
            continue;
        }
        let geometry = Geometry::new(installed.manifest.root.size / BLOCK);
        // Only what of the run lies in this part: it may begin before it and end behind it.
        let start = place.offset / BLOCK;
        let blocks = first.max(start)..(first + count).min(start + geometry.file_blocks);
        for block in blocks.map(|block| block - start).take(MAX_OWNERS) {
            owners.push(match geometry.locate(block) {
                None => "verity superblock".to_owned(),
                Some((level, _)) => format!("tree level {level}"),
            });
        }
        owners.dedup();
    }
    owners
}

/// Owners inside the root image, from the signed file list.
fn of_root(
    medium: &dyn Medium,
    installed: &Installed,
    runs: &[Extent],
) -> Result<Vec<String>, Box<dyn Error>> {
    let place = installed.layout.get(Part::FileList).ok_or("it is missing")?;
    let file = installed.manifest.file(Part::FileList.name()).ok_or("it is missing")?;
    super::parts::prove(medium, Part::FileList, file, place)?;
    let mut found = Found { runs, owned: vec![0; runs.len()], names: Vec::new(), inodes: false };
    for entry in Entries::new(PartReader { medium, place, at: 0 })? {
        found.look_at(&entry?);
    }
    Ok(found.finish())
}

struct Found<'a> {
    runs: &'a [Extent],
    /// Bytes of each run that somebody owns.
    owned: Vec<u64>,
    names: Vec<String>,
    inodes: bool,
}

impl Found<'_> {
    fn look_at(&mut self, entry: &Entry) {
        let kind = match entry.kind {
            Kind::Dir => "directory",
            Kind::File => "file",
            Kind::Symlink => "symbolic link",
            Kind::Char | Kind::Block => "device node",
            Kind::Fifo | Kind::Socket => "special file",
        };
        let mut owns = false;
        for (offset, size) in &entry.extents {
            owns |= self.claim(Extent { offset: *offset, size: *size });
        }
        let inode = self.claim(Extent { offset: entry.at.0, size: entry.at.1 });
        if !(owns || inode) || self.names.len() >= MAX_OWNERS {
            return;
        }
        // What the image holds apart from files stands under a name in parentheses.
        if let Some(internal) = entry.path.strip_prefix('(') {
            self.names.push(internal.trim_end_matches(')').to_owned());
            return;
        }
        self.inodes |= inode;
        let what = if owns { "" } else { "inode of " };
        self.names.push(format!("{what}{kind} {}", entry.path));
    }

    /// Whether `extent` shares a block with a bad run.
    fn claim(&mut self, extent: Extent) -> bool {
        let mut any = false;
        for (run, owned) in self.runs.iter().zip(&mut self.owned) {
            let start = run.offset.max(extent.offset);
            let end = run.end().min(extent.end());
            if start < end {
                *owned = owned.saturating_add(end - start);
                any = true;
            }
        }
        any
    }

    fn finish(mut self) -> Vec<String> {
        if self.inodes {
            self.names.push("inode table".into());
        }
        if self.runs.iter().zip(&self.owned).any(|(_, owned)| *owned == 0) {
            self.names.push("padding".into());
        }
        self.names
    }
}

/// Reads a part of a slot from front to back.
struct PartReader<'a> {
    medium: &'a dyn Medium,
    place: Extent,
    at: u64,
}

impl Read for PartReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = buf.len().min(to_usize(self.place.size - self.at));
        let Some(target) = buf.get_mut(..len) else { return Ok(0) };
        self.medium
            .read_at(self.place.offset + self.at, target)
            .map_err(|e| io::Error::other(e.to_string()))?;
        self.at += len as u64;
        Ok(len)
    }
}
