//! The whole installer on media in memory: an ISO with structured damage, media that fail, somebody who cancels.
//!
//! Whatever happens: the running slot and its boot image keep every bit, a slot that is called verified is, also after
//! a restart, and a good image can be installed afterwards, from the beginning or by a resume.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use fuzz_targets::appliance::{
    EMPTY, NEW, USED, assert_good_install_succeeds, assert_running_untouched, assert_verified_is_true, file,
    install, over, pipe, sick_store, store, view,
};
use fuzz_targets::edits::{IsoEdit, MOST};
use fuzz_targets::sick::Plan;
use libfuzzer_sys::fuzz_target;
use slotd::store::{InstallRequest, Progress, SlotWord};
use system_tests::recorder::Recorder;

#[derive(Arbitrary, Debug)]
struct Case {
    edits: Vec<IsoEdit>,
    slot: Option<Plan>,
    state: Option<Plan>,
    used: bool,
    piped: bool,
    /// The second attempt continues the first one, with the first one's damage.
    again: bool,
    /// It does so from this byte of the image.
    offset: Option<u32>,
}

fuzz_target!(|case: Case| {
    let mut image = NEW.clone();
    case.edits.iter().take(MOST).for_each(|edit| edit.apply(&mut image));
    let recorder = Recorder::new(if case.used { USED.clone() } else { EMPTY.clone() });
    let progress = Arc::new(Progress::default());
    let arrives = |image: &[u8]| if case.piped { pipe(image.to_vec()) } else { file(image) };

    let sick = sick_store(&recorder, case.slot, case.state, &progress);
    let done = install(&sick, arrives(&image), &over(), &progress);
    assert_running_untouched(&recorder.media());
    if done.is_ok() {
        let shown = view(&sick);
        assert!(shown.state == SlotWord::Verified, "installed and {:?}: {}", shown.state, shown.reason);
    }
    drop(sick);

    if case.again {
        let offset = case.offset.map_or(0, |offset| u64::from(offset) % image.len().max(1) as u64);
        let request = InstallRequest { offset, ..over() };
        let rest = image.get(usize::try_from(offset).unwrap_or(0)..).unwrap_or_default();
        let _ = install(&store(&recorder), arrives(rest), &request, &Progress::default());
        assert_running_untouched(&recorder.media());
    }
    assert_verified_is_true(&store(&recorder));
    assert_good_install_succeeds(&recorder);
});
