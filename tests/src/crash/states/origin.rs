//! How a state comes about, as data: from it the same state is built again.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// One cut: after how many events, and what of the unflushed ones did not survive it. What is not named did.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// So many events of the log had happened.
    pub cut: usize,
    /// A flush that the device answered and did not carry out: the number of its event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lied: Option<usize>,
    /// Unflushed writes, by the number of their event.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub writes: BTreeMap<usize, Fate>,
    /// Files of the ESP by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, FileFate>,
    /// Of the changes of names on the data partition that were not synced, only the first so many happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<usize>,
}

/// What became of a write that was not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Nothing of it is there.
    Lost,
    /// Only these bytes of it are.
    Only {
        /// The first.
        from: usize,
        /// Behind the last.
        to: usize,
    },
    /// All but these bytes are.
    Hole {
        /// The first.
        from: usize,
        /// Behind the last.
        to: usize,
    },
    /// Each unit of so many bytes is there or not, as drawn.
    Drawn {
        /// Bytes.
        unit: usize,
        /// Of the draw.
        seed: u64,
    },
}

/// What became of a file of the ESP that was touched since the last sync, or of its neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileFate {
    /// It is not there.
    Absent,
    /// It is not there, though nobody touched it: its directory sector was being written for another one.
    Gone,
    /// It is as it was at the last sync.
    Old,
    /// It ends too early.
    Short {
        /// Of what it was, not of what was written.
        old: bool,
        /// Its length in bytes.
        length: usize,
    },
    /// It has its length and only zeros.
    Zero {
        /// The length of what it was, not of what was written.
        old: bool,
    },
    /// It has its length; each unit of so many bytes is there or zero, as drawn.
    Drawn {
        /// Bytes.
        unit: usize,
        /// Of the draw.
        seed: u64,
    },
}

impl Origin {
    /// A cut that loses nothing.
    pub fn at(cut: usize) -> Self {
        Self { cut, ..Self::default() }
    }

    /// Whether a file is gone that nobody touched.
    pub fn lost_neighbour(&self) -> bool {
        self.files.values().any(|fate| *fate == FileFate::Gone)
    }

    /// How much it takes to say: what is lost, then the sizes, then the cut. Shrinking makes it smaller.
    pub fn weight(&self) -> (usize, usize, usize) {
        let write = |fate: &Fate| match fate {
            Fate::Lost => 1,
            Fate::Only { .. } | Fate::Hole { .. } => 2,
            Fate::Drawn { .. } => 4,
        };
        let file = |fate: &FileFate| match fate {
            FileFate::Absent | FileFate::Gone | FileFate::Old => 1,
            FileFate::Short { .. } | FileFate::Zero { .. } => 2,
            FileFate::Drawn { .. } => 4,
        };
        let kinds =
            self.writes.values().map(write).sum::<usize>() + self.files.values().map(file).sum::<usize>();
        let size = self.writes.values().map(|fate| match fate {
            Fate::Only { from, to } | Fate::Hole { from, to } => to - from,
            Fate::Lost | Fate::Drawn { .. } => 0,
        });
        (kinds + usize::from(self.lied.is_some()) + usize::from(self.names.is_some()), size.sum(), self.cut)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cut after {} events", self.cut)?;
        if let Some(flush) = self.lied {
            write!(f, ", flush {flush} not carried out")?;
        }
        if let Some(names) = self.names {
            write!(f, ", of the names only the first {names} changes")?;
        }
        for (event, fate) in &self.writes {
            match fate {
                Fate::Lost => write!(f, ", event {event} lost")?,
                Fate::Only { from, to } => write!(f, ", of event {event} only {from}..{to}")?,
                Fate::Hole { from, to } => write!(f, ", of event {event} all but {from}..{to}")?,
                Fate::Drawn { unit, seed } => {
                    write!(f, ", of event {event} units of {unit} as drawn from {seed:x}")?;
                }
            }
        }
        for (name, fate) in &self.files {
            let version = |old: &bool| if *old { "old" } else { "new" };
            match fate {
                FileFate::Absent => write!(f, ", {name} absent")?,
                FileFate::Gone => write!(f, ", {name} gone with another one")?,
                FileFate::Old => write!(f, ", {name} old")?,
                FileFate::Short { old, length } => {
                    write!(f, ", {name} {length} bytes of the {} one", version(old))?;
                }
                FileFate::Zero { old } => write!(f, ", {name} zeros like the {} one", version(old))?,
                FileFate::Drawn { unit, seed } => {
                    write!(f, ", {name} units of {unit} as drawn from {seed:x}")?;
                }
            }
        }
        Ok(())
    }
}
