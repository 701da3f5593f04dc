//! The head of an ISO: what is found lies inside the image, in order, and however it arrives it is the same.
#![no_main]

use fuzz_targets::{assert_printable, edits};
use libfuzzer_sys::fuzz_target;
use slotd::domain::iso::{Head, Index, IsoError, MAX_HEAD, SECTOR, parse_head};
use slotd::domain::layout::Part;

/// What comes first in every image and says nothing.
const SYSTEM_AREA: usize = 16 * 2048;

/// The parts without which there is no firmware.
const NEEDED: [Part; 6] =
    [Part::Manifest, Part::Signature, Part::Notes, Part::Verity, Part::FileList, Part::Root];

/// Hands over as much as is asked for, as a stream does; `None` when it ends too early.
fn arrive(image: &[u8], available: Option<u64>) -> Option<Result<Index, IsoError>> {
    let mut have = 0;
    loop {
        match parse_head(image.get(..have)?, available) {
            Ok(Head::Complete(index)) => return Some(Ok(index)),
            Err(error) => return Some(Err(error)),
            Ok(Head::Needs(more)) => {
                assert!(more <= MAX_HEAD, "asks for {more} bytes");
                let more = usize::try_from(more).unwrap_or(usize::MAX);
                assert!(more > have, "asks for {more} bytes and has {have}");
                have = more;
            }
        }
    }
}

fn judge(index: &Index, available: Option<u64>) {
    let end = available.map_or(index.volume, |available| available.min(index.volume));
    let mut before = 0;
    for (part, extent) in &index.parts {
        if extent.size > 0 {
            assert!(extent.offset.is_multiple_of(SECTOR) && extent.offset >= before, "{part:?} {extent:?}");
            assert!(extent.end() <= end, "{part:?} {extent:?} ends after {end}");
            before = extent.end();
        }
    }
    assert!(index.parts.len() <= Part::ALL.len());
    for part in Part::ALL {
        let times = index.parts.iter().filter(|(found, _)| *found == part).count();
        assert!(times <= 1 && (times == 1 || !NEEDED.contains(&part)), "{part:?} {times} times");
    }
    assert!(index.payload_end() <= end, "payloads end at {} of {end}", index.payload_end());
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    let mut image = vec![0; SYSTEM_AREA];
    image.extend_from_slice(data);
    if mode & 1 == 1 {
        edits::agree(&mut image);
    }
    let available = (mode & 2 == 2).then_some(image.len() as u64);
    let Some(found) = arrive(&image, available) else { return };
    // Whoever has all of it finds the same.
    assert_eq!(parse_head(&image, available), found.clone().map(Head::Complete));
    match found {
        Ok(index) => judge(&index, available),
        Err(error) => assert_printable(&error),
    }
});
