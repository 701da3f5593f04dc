//! The loader as far as it chooses what to start: GRUB with its environment block, and systemd-boot with the variables of
//! the UEFI firmware and `loader.conf`; and every way in which their settings get lost.

use slotd::device::loader::uefi::LOADER_CONF;
use slotd::domain::boot::{Entry, Selection};
use slotd::domain::envblk::{self, Environment};
use slotd::domain::{efivar, loader_conf};

use super::super::Check;
use crate::recorder::{Content, Media, Recorder};

/// What the loader is set to. An error where it would have to skip something.
pub fn selection(media: &Media) -> Check<Selection> {
    let default = setting(media, envblk::DEFAULT, efivar::DEFAULT)?;
    let one_shot = setting(media, envblk::ONE_SHOT, efivar::ONE_SHOT)?;
    let second = || conf(media).ok().flatten().filter(|_| media.variables.is_some());
    Ok(Selection { default: default.or_else(second), one_shot, damage: None })
}

/// The same as the loader itself sees it: what it cannot read is not set.
pub fn seen(media: &Media) -> Selection {
    let read = |grub, uefi| setting(media, grub, uefi).ok().flatten().filter(|entry| lists(media, entry));
    let second =
        || conf(media).ok().flatten().filter(|entry| media.variables.is_some() && lists(media, entry));
    let default = read(envblk::DEFAULT, efivar::DEFAULT).or_else(second);
    Selection { default, one_shot: read(envblk::ONE_SHOT, efivar::ONE_SHOT), damage: None }
}

/// systemd-boot passes over what matches no boot image; GRUB tries it, and returns.
fn lists(media: &Media, entry: &Entry) -> bool {
    media.variables.is_none()
        || match entry {
            Entry::Recovery => {
                media.esp.keys().any(|name| Entry::parse(name) == Entry::Recovery && is_image(name))
            }
            Entry::Slot(_) => media.esp.contains_key(&format!("{}.efi", entry.name())),
            Entry::Other(_) => false,
        }
}

fn is_image(name: &str) -> bool {
    name.strip_suffix(".efi").is_some()
}

/// What the loader starts, and the settings that it started it from. Without any it is the highest of its list.
pub fn choose(media: &Media) -> (Selection, Option<Entry>) {
    let set = seen(media);
    let images = media.esp.keys().filter(|name| is_image(name) && !name.contains('/'));
    let highest = images.map(|name| Entry::parse(name)).filter(|entry| entry.slot().is_some()).max();
    let entry = set.one_shot.clone().or_else(|| set.default.clone()).or(highest);
    (set, entry)
}

/// The loader forgets what it starts once, before it starts that. What it cannot read it leaves there.
pub fn forget_one_shot(recorder: &Recorder) -> Check<()> {
    if matches!(setting(&recorder.media(), envblk::ONE_SHOT, efivar::ONE_SHOT), Ok(Some(_))) {
        recorder.loader().set_one_shot(None).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn setting(media: &Media, grub: &str, uefi: &str) -> Check<Option<Entry>> {
    let Some(variables) = &media.variables else {
        let environment = envblk::parse(&media.loader).map_err(|e| format!("the environment block: {e}"))?;
        let value = environment.get(grub).filter(|value| !value.is_empty());
        return Ok(value.map(|value| Entry::parse(&String::from_utf8_lossy(value))));
    };
    let text = variables.get(uefi).map(|bytes| efivar::decode(bytes)).transpose();
    let text = text.map_err(|e| format!("{uefi}: {e}"))?.filter(|text| !text.is_empty());
    Ok(text.map(|text| Entry::parse(&text)))
}

fn conf(media: &Media) -> Check<Option<Entry>> {
    let Some(text) = media.esp.get(LOADER_CONF) else { return Ok(None) };
    let default = loader_conf::parse_default(text).map_err(|e| format!("{LOADER_CONF}: {e}"))?;
    Ok(default.map(|name| Entry::parse(&name)))
}

/// Whether every copy of the default says the same.
pub fn is_whole(media: &Media) -> bool {
    let copies = (setting(media, envblk::DEFAULT, efivar::DEFAULT), conf(media));
    match (&media.variables, copies) {
        (None, (first, _)) => first.is_ok(),
        (Some(_), (Ok(first), Ok(second))) => first == second,
        (Some(_), _) => false,
    }
}

/// The same media with the loader's settings lost, one way after the other. What changes nothing is left out.
pub fn losses(media: &Media) -> Vec<(Media, &'static str)> {
    let lost = if media.variables.is_some() { lost_variables(media) } else { lost_block(media) };
    lost.into_iter()
        .filter(|(lost, _)| {
            lost.loader != media.loader || lost.variables != media.variables || lost.esp != media.esp
        })
        .collect()
}

fn lost_block(media: &Media) -> Vec<(Media, &'static str)> {
    let with = |block: [u8; envblk::SIZE]| Media { loader: block, ..media.clone() };
    let mut half = media.loader;
    half[..512].fill(0);
    let mut lost = vec![
        (with([0; envblk::SIZE]), "the environment block zero"),
        (
            with(std::array::from_fn(|at| at.to_le_bytes()[0].wrapping_mul(151))),
            "the environment block garbage",
        ),
        (with(half), "half of the environment block zero"),
    ];
    let unset = |names: &[&str]| {
        let mut environment = envblk::parse(&media.loader).unwrap_or_default();
        for name in names {
            environment.unset(name);
        }
        environment.render().ok().map(with)
    };
    lost.extend(Environment::default().render().ok().map(|block| (with(block), "no settings")));
    lost.extend(unset(&[envblk::ONE_SHOT]).map(|media| (media, "no one-shot")));
    lost.extend(unset(&[envblk::DEFAULT]).map(|media| (media, "no default")));
    lost
}

fn lost_variables(media: &Media) -> Vec<(Media, &'static str)> {
    let change = |names: &[&str], keep: Option<usize>, conf: Option<Option<usize>>| {
        let mut media = media.clone();
        let variables = media.variables.get_or_insert_default();
        for name in names {
            match (keep, variables.get_mut(*name)) {
                (Some(less), Some(bytes)) => bytes.truncate(bytes.len().saturating_sub(less)),
                (_, _) => drop(variables.remove(*name)),
            }
        }
        match conf {
            Some(Some(len)) => drop(media.esp.insert(LOADER_CONF.into(), Content::new(vec![0; len]))),
            Some(None) => drop(media.esp.remove(LOADER_CONF)),
            None => {}
        }
        media
    };
    let (default, one_shot) = (&[efivar::DEFAULT][..], &[efivar::ONE_SHOT][..]);
    let both = &[efivar::DEFAULT, efivar::ONE_SHOT][..];
    vec![
        (change(one_shot, None, None), "no one-shot"),
        (change(default, None, None), "no default variable"),
        (change(both, None, None), "no variables"),
        (change(&[], None, Some(None)), "no loader.conf"),
        (change(&[], None, Some(Some(512))), "loader.conf zero"),
        (change(default, None, Some(None)), "no default"),
        (change(both, None, Some(None)), "no settings"),
        (change(both, None, Some(Some(512))), "no variables, loader.conf zero"),
        (change(default, Some(7), None), "the default variable cut in a character"),
        (change(default, Some(8), None), "the default variable cut"),
        (
            change(default, Some(7), Some(Some(512))),
            "the default variable cut in a character, loader.conf zero",
        ),
        (change(one_shot, Some(7), None), "the one-shot cut in a character"),
        (change(one_shot, Some(8), None), "the one-shot cut"),
    ]
}
