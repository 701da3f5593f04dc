//! What recorded media do besides what they should.

use super::{Device, Event, Media};

/// Where something is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On a medium.
    Medium(Device),
    /// In the file of the ESP with this name.
    File(String),
}

/// A write that silently leaves another bit.
#[derive(Clone, Debug)]
pub struct Silent {
    /// Where, and at which byte.
    pub place: (Place, u64),
    /// So many writes go well there before; `None` when it has happened.
    pub after: Option<usize>,
    /// From then on reads answer with what was meant: as if nobody had read back.
    pub unseen: bool,
}

impl Silent {
    fn of<'a>(&self, place: &Place, offset: u64, bytes: &'a mut [u8]) -> Option<&'a mut u8> {
        let at = self.place.1.checked_sub(offset).filter(|_| self.place.0 == *place)?;
        bytes.get_mut(usize::try_from(at).ok()?)
    }

    pub(super) fn write(&mut self, event: Event) -> Event {
        let (Some((place, offset)), Some(after)) = (event.place(), self.after) else { return event };
        let mut bytes = match &event {
            Event::Write { data, .. } => data.to_vec(),
            Event::EspWrite { data, .. } => data.to_vec(),
            _ => return event,
        };
        let Some(byte) = self.of(&place, offset, &mut bytes) else { return event };
        self.after = after.checked_sub(1);
        if after > 0 {
            return event;
        }
        *byte ^= FLIPPED;
        match event {
            Event::Write { device, offset, .. } => Event::Write { device, offset, data: bytes.into() },
            Event::EspWrite { name, offset, .. } => Event::EspWrite { name, offset, data: bytes.into() },
            other => other,
        }
    }

    pub(super) fn read(&self, place: &Place, offset: u64, buf: &mut [u8]) {
        let hidden = self.unseen && self.after.is_none();
        if let Some(byte) = self.of(place, offset, buf).filter(|_| hidden) {
            *byte ^= FLIPPED;
        }
    }
}

/// The bit that is another one.
const FLIPPED: u8 = 4;

/// What the media do besides what they should.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// A write that leaves another bit.
    pub silent: Option<Silent>,
    /// Blocks that cannot be read until they are written again, by their first byte.
    pub unreadable: Vec<(Device, u64)>,
    /// After so many reads of what has changed, one answers with what these media hold.
    pub stale: Option<(usize, Media)>,
    /// The ESP holds no more bytes than these, whatever it says is free.
    pub esp_limit: Option<u64>,
}
