//! What a boot loader may start, and what it is set to.

use sps_base::slot::SlotId;

/// Something that the loader can start.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// The firmware in this slot.
    Slot(SlotId),
    /// The recovery image.
    Recovery,
    /// Something that is none of ours, by its name.
    Other(String),
}

const SLOT: &str = "sps-slot-";
const RECOVERY: &str = "sps-recovery";

impl Entry {
    /// The entry with this name: `sps-slot-N` or `sps-recovery…`, with or without `.efi`, as loaders spell it.
    pub fn parse(name: &str) -> Self {
        let stem = name.strip_suffix(".efi").unwrap_or(name);
        let slot = stem.strip_prefix(SLOT).filter(|number| number.len() == 1);
        let slot = slot.and_then(|number| number.parse().ok()).and_then(SlotId::new);
        match slot {
            Some(id) if id != SlotId::RECOVERY => Self::Slot(id),
            _ if stem == RECOVERY || stem.starts_with("sps-recovery-") => Self::Recovery,
            _ => Self::Other(name.to_owned()),
        }
    }

    /// Its name without suffix.
    pub fn name(&self) -> String {
        match self {
            Self::Slot(id) => format!("{SLOT}{id}"),
            Self::Recovery => RECOVERY.to_owned(),
            Self::Other(name) => name.clone(),
        }
    }

    /// The slot, where it is one.
    pub fn slot(&self) -> Option<SlotId> {
        match self {
            Self::Slot(id) => Some(*id),
            Self::Recovery | Self::Other(_) => None,
        }
    }
}

/// What the loader is set to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selection {
    /// Started unless told otherwise; `None` when nothing says so.
    pub default: Option<Entry>,
    /// Started once, before the default.
    pub one_shot: Option<Entry>,
    /// Why the default should be written again although it can be read: a second copy is lost or says otherwise.
    pub damage: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_loaders_spell_them() {
        let slot = |id| Entry::Slot(SlotId::new(id).unwrap());
        for (name, entry) in [
            ("sps-slot-1", slot(1)),
            ("sps-slot-9.efi", slot(9)),
            ("sps-recovery", Entry::Recovery),
            ("sps-recovery-8.0.4.efi", Entry::Recovery),
            ("sps-slot-0", Entry::Other("sps-slot-0".into())),
            ("sps-slot-12", Entry::Other("sps-slot-12".into())),
            ("sps-slot-", Entry::Other("sps-slot-".into())),
            ("sps-slot-+", Entry::Other("sps-slot-+".into())),
            ("debian.efi", Entry::Other("debian.efi".into())),
        ] {
            assert_eq!(Entry::parse(name), entry);
        }
        assert_eq!(Entry::parse(&slot(3).name()), slot(3));
        assert_eq!(Entry::parse(&Entry::Recovery.name()), Entry::Recovery);
    }
}
