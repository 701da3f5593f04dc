//! A medium that fails: at one operation, or from one on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arbitrary::Arbitrary;
use slotd::device::medium::{Medium, MediumError};
use slotd::device::probe::Readback;
use slotd::store::Progress;

/// What goes wrong.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Reading fails.
    Read,
    /// Writing fails.
    Write,
    /// Flushing fails.
    Flush,
    /// What is read has a flipped bit.
    Rot,
    /// Writing says that it succeeded and did nothing.
    Lost,
    /// Nothing; but whoever works is asked to stop.
    Cancel,
}

/// When it goes wrong.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Plan {
    /// What.
    pub fault: Fault,
    /// At which operation of its kind, from 0.
    pub at: u8,
    /// And at every one after it.
    pub stays: bool,
}

/// A medium in front of another one.
#[derive(Debug)]
pub struct Sick {
    healthy: Arc<dyn Medium>,
    plan: Plan,
    seen: AtomicU32,
    progress: Arc<Progress>,
}

impl Sick {
    /// `healthy` with this fault; `progress` is what a [`Fault::Cancel`] stops.
    pub fn new(healthy: Arc<dyn Medium>, plan: Plan, progress: Arc<Progress>) -> Self {
        Self { healthy, plan, seen: AtomicU32::new(0), progress }
    }

    /// Counts an operation of this kind; whether it goes wrong.
    fn due(&self, fault: Fault) -> bool {
        if self.plan.fault != fault {
            return false;
        }
        let seen = self.seen.fetch_add(1, Ordering::Relaxed);
        let at = u32::from(self.plan.at);
        seen == at || (self.plan.stays && seen > at)
    }

    fn fail(operation: &'static str, offset: u64, length: usize) -> MediumError {
        let source = io::Error::from_raw_os_error(5);
        MediumError { path: "sick".into(), operation, offset, length: length as u64, source }
    }
}

impl Medium for Sick {
    fn size(&self) -> u64 {
        self.healthy.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), MediumError> {
        if self.due(Fault::Read) {
            return Err(Self::fail("read", offset, buf.len()));
        }
        self.healthy.read_at(offset, buf)?;
        if self.due(Fault::Rot)
            && let Some(byte) = buf.first_mut()
        {
            *byte ^= 1;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), MediumError> {
        if self.due(Fault::Cancel) {
            self.progress.cancel();
        }
        if self.due(Fault::Write) {
            return Err(Self::fail("write", offset, data.len()));
        }
        if self.due(Fault::Lost) {
            return Ok(());
        }
        self.healthy.write_at(offset, data)
    }

    fn flush(&self) -> Result<(), MediumError> {
        if self.due(Fault::Flush) {
            return Err(Self::fail("flush", 0, 0));
        }
        self.healthy.flush()
    }

    fn readback(&self) -> Readback {
        self.healthy.readback()
    }
}
