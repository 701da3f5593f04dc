//! The slots of this appliance and everything that may be done with them.

mod types;

pub use types::{
    Failure, InstallReport, InstallRequest, Progress, SlotView, SlotWord, Summary, VerifyMode, VerifyReport,
};
