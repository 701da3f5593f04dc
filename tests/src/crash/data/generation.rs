//! A switch of configuration generations: the trial of a firmware starts from a copy of what runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use slotd::device::file_system::{Attributes, FileSystem, Kind};
use slotd::domain::generation::Origin;
use slotd::domain::manifest::Sha256Hex;
use slotd::initrd::configuration::{self, Made};

use super::super::appliance::Appliance;
use super::super::{Check, ensure};
use super::{Act, Scenario};
use crate::recorder::{Listing, Media, Recorder, Tree};

/// Where the generations are.
const PLACE: &str = "/config";
const OLD: Sha256Hex = Sha256Hex([1; 32]);
const NEW: Sha256Hex = Sha256Hex([2; 32]);

/// The firmware `NEW` starts.
#[derive(Debug)]
struct Switch(Origin);

/// An upgrade's first trial.
pub(super) fn first_trial(appliance: &Appliance) -> anyhow::Result<Scenario<'_>> {
    Scenario::record(appliance, with(&[(OLD, 0)])?, Switch(Origin::Copy(OLD)))
}

/// Its trial failed, and the old firmware has been changed since.
pub(super) fn tried_before(appliance: &Appliance) -> anyhow::Result<Scenario<'_>> {
    Scenario::record(appliance, with(&[(OLD, 1), (NEW, 0)])?, Switch(Origin::Copy(OLD)))
}

/// The first firmware of an appliance.
pub(super) fn nothing_to_copy(appliance: &Appliance) -> anyhow::Result<Scenario<'_>> {
    Scenario::record(appliance, with(&[])?, Switch(Origin::Keep))
}

fn generation(of: Sha256Hex) -> PathBuf {
    Path::new(PLACE).join(of.to_string())
}

/// Media with these generations, each changed so often.
fn with(generations: &[(Sha256Hex, u8)]) -> anyhow::Result<Media> {
    let recorder = Recorder::new(Media::new(0, 0));
    let files = recorder.files();
    files.create_directory(Path::new(PLACE))?;
    for (of, changed) in generations {
        write_generation(&*files, &generation(*of), *changed)?;
    }
    Ok(recorder.media())
}

/// Revisions, one of them longer than a block, and a link: each with an owner and a mode of its own.
fn write_generation(files: &dyn FileSystem, at: &Path, changed: u8) -> anyhow::Result<()> {
    let owned = |kind, mode| Attributes { kind, length: 0, mode, uid: 100, gid: 200 };
    let directory = |path: &Path| {
        files.create_directory(path)?;
        files.set_attributes(path, &owned(Kind::Directory, 0o750))
    };
    directory(at)?;
    directory(&at.join("revisions"))?;
    for (number, length) in [(1, 700), (2, 9000)] {
        let path = at.join(format!("revisions/00000{number}.json"));
        files.create_file(&path)?;
        files.write_at(&path, 0, &vec![b'a' + number + 8 * changed; length])?;
        files.set_attributes(&path, &owned(Kind::File, 0o640))?;
    }
    files.create_link(&at.join("HEAD"), Path::new("revisions/000002.json"))?;
    Ok(())
}

fn below(tree: &Tree, of: Sha256Hex) -> Listing<'_> {
    let at = generation(of);
    let all = tree.listing().into_iter();
    all.filter_map(|(path, content)| Some((path.strip_prefix(&at).ok()?, content))).collect()
}

/// What a cut leaves beside the generations, the next start removes.
fn generations<'a>(listing: &Listing<'a>) -> Listing<'a> {
    let kept = listing.iter().filter(|(path, _)| !path.starts_with("/config/.unfinished"));
    kept.map(|(path, content)| (*path, *content)).collect()
}

impl Act for Switch {
    fn run(&self, _: &Appliance, recorder: &Recorder) -> anyhow::Result<()> {
        configuration::prepare(&*recorder.files(), Path::new(PLACE), &NEW, &self.0)?;
        Ok(())
    }

    fn after_cut(&self, scenario: &Scenario<'_>, found: &Media) -> Check<()> {
        let (start, finished) = (&scenario.start.files, &scenario.finished.files);
        let old = below(start, OLD);
        ensure(below(&found.files, OLD) == old, || "the old generation is another".into())?;
        let own = below(&found.files, NEW);
        ensure(own == below(start, NEW) || own == below(finished, NEW), || {
            format!("the new generation is half: {:?}", own.keys().collect::<Vec<_>>())
        })?;
        // The old firmware starts instead, or the other one by hand.
        for (of, there) in [(OLD, !old.is_empty()), (NEW, !own.is_empty())] {
            let recorder = Recorder::new(found.clone());
            let made = configuration::prepare(&*recorder.files(), Path::new(PLACE), &of, &Origin::Keep)
                .map_err(|e| format!("the old firmware cannot start: {e}"))?;
            let expected = if there { Made::Kept } else { Made::Empty };
            let after: Arc<Tree> = recorder.media().files;
            let kept = !there || below(&after, of) == below(&found.files, of);
            ensure(made == expected && kept, || format!("gone back, the generation is {made:?}"))?;
        }
        Ok(())
    }

    fn at_end(&self, scenario: &Scenario<'_>, found: &Media) -> Check<()> {
        let (expected, found) = (scenario.finished.files.listing(), found.files.listing());
        let beside: Vec<_> = found.keys().filter(|name| !expected.contains_key(*name)).collect();
        ensure(generations(&expected) == generations(&found), || {
            format!(
                "the generations are others, {} of {} names, beside them {beside:?}",
                found.len(),
                expected.len()
            )
        })
    }
}
