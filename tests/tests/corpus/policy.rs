//! Images that are sound and signed, and not for this appliance. Slot 1 runs 8.0.1 of epoch 3 on the hardware "test".

use slotd::domain::layout::Part;
use slotd::domain::manifest::{Manifest, UpgradeFrom};
use sps_base::error::ErrorKind;

use crate::firmware::{place, stage};
use crate::judge::Case;

type Change = fn(&mut Manifest);

fn refused(name: &str, kind: ErrorKind, text: impl Into<String>, change: Change) -> Case {
    Case::refused(name, kind, text, move || stage().good.with_manifest(change).iso())
}

fn taken(name: &str, change: Change) -> Case {
    let firmware = move || stage().good.with_manifest(change);
    Case::taken(name, move || firmware().iso()).signed(firmware)
}

/// The image ends behind its signature: not a byte more is asked for.
fn early(name: &str, kind: ErrorKind, text: &str, change: Change) -> Case {
    Case::refused(name, kind, text, move || {
        let mut image = stage().good.with_manifest(change).iso();
        image.truncate(usize::try_from(place(&image, Part::Signature).end()).unwrap());
        image
    })
    .piped()
}

pub(crate) fn compatible() -> Vec<Case> {
    let kind = ErrorKind::Incompatible;
    let text = |found: &str| {
        format!("this firmware is for {found}, this appliance takes sps; get the firmware of this product")
    };
    vec![
        refused("another product", kind, text("box"), |m| m.compatible.product = "box".into()),
        refused("another case", kind, text("SPS"), |m| m.compatible.product = "SPS".into()),
        refused("a space more", kind, text("sps "), |m| m.compatible.product = "sps ".into()),
        refused("a longer name", kind, text("sps-x"), |m| m.compatible.product = "sps-x".into()),
        refused("all products", kind, text("*"), |m| m.compatible.product = "*".into()),
        refused("none", ErrorKind::MediaCorrupt, "compatible is empty", |m| m.compatible.product.clear()),
        early("another product, nothing behind the signature", kind, "is for box", |m| {
            m.compatible.product = "box".into();
        }),
    ]
}

pub(crate) fn hardware() -> Vec<Case> {
    let kind = ErrorKind::Incompatible;
    let text = |list: &str| {
        format!("hardware not supported: this firmware is for {list}, this appliance is \"test\"")
    };
    vec![
        refused("two others", kind, text("m1, m2"), |m| {
            m.compatible.hardware = vec!["m1".into(), "m2".into()];
        }),
        refused("another case", kind, text("TEST"), |m| m.compatible.hardware = vec!["TEST".into()]),
        refused("a pattern", kind, text("te*"), |m| m.compatible.hardware = vec!["te*".into()]),
        refused("a space more", kind, text("test "), |m| m.compatible.hardware = vec!["test ".into()]),
        refused("an empty name", kind, text(""), |m| m.compatible.hardware = vec![String::new()]),
        refused("none", ErrorKind::MediaCorrupt, "compatible is empty", |m| m.compatible.hardware.clear()),
        early("another, nothing behind the signature", kind, "is for m1", |m| {
            m.compatible.hardware = vec!["m1".into()];
        }),
        taken("this one among others", |m| m.compatible.hardware = vec!["m1".into(), "test".into()]),
        taken("all", |m| m.compatible.hardware = vec!["*".into()]),
    ]
}

pub(crate) fn epoch() -> Vec<Case> {
    let kind = ErrorKind::EpochTooOld;
    let text = |epoch: u32| format!("security epoch {epoch} is below 3, which this appliance has reached");
    vec![
        refused("one below", kind, text(2), |m| m.security_epoch = 2),
        refused("none", kind, text(0), |m| m.security_epoch = 0),
        early("one below, nothing behind the signature", kind, &text(2), |m| m.security_epoch = 2),
        taken("the same", |m| m.security_epoch = 3),
        taken("the highest", |m| m.security_epoch = u32::MAX),
    ]
}

pub(crate) fn upgrade_path() -> Vec<Case> {
    fn rules(manifest: &mut Manifest, rules: &[(&str, &str)]) {
        let rule = |(from, min): &(&str, &str)| UpgradeFrom { from: (*from).into(), min: (*min).into() };
        manifest.upgrade_from = rules.iter().map(rule).collect();
    }
    let kind = ErrorKind::VersionPolicy;
    let text = |new: &str, over: &str| {
        format!("version {new} cannot be installed over 8.0.1; it can over: {over}. Upgrade in steps")
    };
    let older = |new: &str| format!("version {new} is older than the running 8.0.1; to go back, use revert");
    vec![
        refused("from a later one", kind, text("8.0.2", "8 from 8.0.5"), |m| rules(m, &[("8", "8.0.5")])),
        refused("from other lines", kind, text("8.0.2", "7.0 from 7.0.5, 9 from 9.0"), |m| {
            rules(m, &[("7.0", "7.0.5"), ("9", "9.0")]);
        }),
        refused("from nothing", kind, text("8.0.2", "nothing"), |m| rules(m, &[])),
        refused("from a line of another depth", kind, text("8.0.2", "8.1 from 8.0.0"), |m| {
            rules(m, &[("8.1", "8.0.0")]);
        }),
        refused("an older one", kind, older("8.0.0"), |m| m.version = "8.0.0".into()),
        refused("a candidate of what runs", kind, older("8.0.1-rc9"), |m| m.version = "8.0.1-rc9".into()),
        refused("another line, older", kind, older("7.9"), |m| m.version = "7.9".into()),
        early("from nothing, nothing behind the signature", kind, "cannot be installed over", |m| {
            rules(m, &[]);
        }),
        taken("the version that runs, another build", |m| m.version = "8.0.1".into()),
        taken("from this very version", |m| rules(m, &[("8.0", "8.0.1")])),
    ]
}
