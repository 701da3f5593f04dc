//! Starting on damaged media: a slot, the state, the ESP and the loader's block with any damage, checksums put right.
//!
//! Starting never touches the running slot; a full check tells the truth; after the operator has reset the state, a good
//! image can be installed.
#![no_main]

use arbitrary::Arbitrary;
use fuzz_targets::appliance::{EMPTY, USED, assert_good_install_succeeds, store};
use fuzz_targets::edits::{Edit, MOST};
use fuzz_targets::sum_trailer;
use libfuzzer_sys::fuzz_target;
use slotd::domain::verity::BLOCK_LEN;
use slotd::store::SlotWord;
use sps_base::durable::{self, RECORD, Record};
use system_tests::crash::appliance::{full_check, target};
use system_tests::recorder::{Content, Device, Media, Recorder};

#[derive(Arbitrary, Debug)]
struct Case {
    slot: Vec<Edit>,
    trailer: Vec<Edit>,
    state: Vec<Edit>,
    records: Vec<Edit>,
    esp: Vec<(u8, Edit)>,
    loader: Vec<Edit>,
}

fn edited(edits: &[Edit], mut bytes: Vec<u8>) -> Vec<u8> {
    let len = bytes.len();
    edits.iter().take(MOST).for_each(|edit| edit.apply(&mut bytes));
    bytes.resize(len, 0);
    bytes
}

fn read(media: &mut Media, device: Device, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    assert!(media.image(device).read(at, &mut bytes));
    bytes
}

fn damage(case: &Case, media: &mut Media) {
    let slot = Device::Slot(2);
    let size = media.image(slot).size();
    let whole = read(media, slot, 0, usize::try_from(size).unwrap_or(0));
    let mut whole = edited(&case.slot, whole);
    if let Some(last) = whole.last_chunk_mut::<BLOCK_LEN>().filter(|_| !case.trailer.is_empty()) {
        let trailer = edited(&case.trailer, last.to_vec());
        last.copy_from_slice(&trailer);
        sum_trailer(last);
    }
    media.image(slot).write(0, &whole);
    damage_state(case, media);
    let names: Vec<String> = media.esp.keys().cloned().collect();
    for (number, edit) in case.esp.iter().take(MOST) {
        let Some(name) = names.get(usize::from(*number) % names.len().max(1)) else { continue };
        let mut bytes = media.esp.get(name).map(|content| content.to_vec()).unwrap_or_default();
        edit.apply(&mut bytes);
        media.esp.insert(name.clone(), Content::new(bytes));
    }
    let loader = edited(&case.loader, media.loader.to_vec());
    media.loader.copy_from_slice(&loader);
}

/// Edits what the newer record holds and writes it as its successor would be; then the bytes of both.
fn damage_state(case: &Case, media: &mut Media) {
    let size = usize::try_from(media.image(Device::State).size()).unwrap_or(0);
    let mut bytes = read(media, Device::State, 0, size);
    let places = [0, size / 2 / RECORD * RECORD];
    let records = places.map(|at| durable::parse(bytes.get(at..at + RECORD).unwrap_or_default()));
    let [first, second] = records;
    if let Ok((record, next)) = durable::choose(first, second)
        && !case.state.is_empty()
    {
        let mut payload = record.payload;
        case.state.iter().take(MOST).for_each(|edit| edit.apply(&mut payload));
        let record = Record { sequence: record.sequence + 1, payload };
        if let Ok(block) = durable::render(&record) {
            bytes[places[next]..places[next] + RECORD].copy_from_slice(&block);
        }
    }
    let bytes = edited(&case.records, bytes);
    media.image(Device::State).write(0, &bytes);
}

fuzz_target!(|case: Case| {
    let mut media = USED.clone();
    damage(&case, &mut media);
    let recorder = Recorder::new(media);
    let running = store(&recorder);
    let untouched = |recorder: &Recorder| recorder.media().slots.first() == EMPTY.slots.first();
    assert!(untouched(&recorder), "starting has changed the running slot");
    let _ = (running.summary(), running.slots(), running.state(), running.notes(target()));
    if let Ok(healthy) = full_check(&running, target()) {
        let found = running.slots().into_iter().find(|view| view.id == target());
        let word = found.map(|view| (view.state == SlotWord::Verified, view.version));
        let expected = (true, "8.0.2".to_owned());
        assert!(!healthy || word == Some(expected), "healthy and {word:?}");
        assert!(healthy || word.is_some_and(|(verified, _)| !verified), "bad and verified");
    }
    drop(running);
    let restarted = store(&recorder);
    if let Err(error) = restarted.reset_state("the operator has looked") {
        unreachable!("the state cannot be reset: {error}");
    }
    drop(restarted);
    assert!(untouched(&recorder), "the running slot has changed");
    assert_good_install_succeeds(&recorder);
});
