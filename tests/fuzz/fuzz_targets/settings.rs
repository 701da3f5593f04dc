//! `slotd.toml`: whatever the files say together, the settings keep their limits.
#![no_main]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use slotd::settings::{Inputs, LoaderSettings, Settings, parse_fragment};

fn judge(settings: &Settings) {
    let Settings { keyring, state, esp, upgrade_check, .. } = settings;
    let mut paths = vec![keyring, state, esp, upgrade_check];
    paths.extend(settings.data.iter().chain(&settings.configuration));
    paths.extend(settings.loader.iter().flat_map(|loader| match loader {
        LoaderSettings::Grub { environment } => vec![environment],
        LoaderSettings::SystemdBoot { variables, program } => vec![variables, program],
    }));
    paths.extend(settings.slots.iter().map(|slot| &slot.device));
    assert!(paths.iter().all(|path| path.is_absolute()), "a relative path: {paths:?}");
    let ids: BTreeSet<u32> = settings.slots.iter().map(|slot| slot.id.get()).collect();
    let labels: BTreeSet<&str> = settings.slots.iter().map(|slot| slot.label.as_str()).collect();
    let devices: BTreeSet<&Path> = settings.slots.iter().map(|slot| slot.device.as_path()).collect();
    let count = settings.slots.len();
    assert!((1..=9).contains(&count) && [ids.len(), labels.len(), devices.len()] == [count; 3]);
    assert!(ids.iter().all(|id| (1..=9).contains(id)) && settings.slots.is_sorted_by_key(|slot| slot.id));
    assert!(labels.iter().all(|label| (1..=32).contains(&label.len()) && !label.contains(char::is_control)));
    assert!((1..=86_400).contains(&settings.stall_timeout.as_secs()));
    assert!(settings.stall_timeout.subsec_nanos() == Duration::ZERO.subsec_nanos());
    let names = settings.hardware.iter().chain([&settings.compatible]);
    assert!(names.into_iter().all(|name| !name.is_empty() && !name.contains(char::is_control)));
}

fuzz_target!(|data: &[u8]| {
    let mut inputs = Inputs::default();
    // A byte that no TOML holds parts the files.
    for text in data.split(|byte| *byte == 0xff).take(3) {
        match parse_fragment(Path::new("/etc/sps/slotd.toml"), text) {
            Ok(fragment) => inputs.merge(Path::new("/etc/sps/slotd.toml"), fragment),
            Err(error) => return assert!(!error.to_string().is_empty()),
        }
    }
    match inputs.validate() {
        Ok(settings) => judge(&settings),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
