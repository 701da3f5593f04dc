//! Configuration in three stages: fragments as written, merged in order, settings validated.
//!
//! `slotd.toml` is read from /usr/lib/sps, /run/sps and /etc/sps, a later file over an earlier one, key by key.
//! A `[[slot]]` list replaces the earlier list as a whole, and so does the table `[loader]`. Unknown keys are errors.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use sps_base::slot::SlotId;

/// Where the configuration lies, the weakest first.
pub const STANDARD_FILES: [&str; 3] =
    ["/usr/lib/sps/slotd.toml", "/run/sps/slotd.toml", "/etc/sps/slotd.toml"];
/// Longest file that is read.
pub const FILE_LIMIT: u64 = 64 * 1024;

const EFIVARS: &str = "/sys/firmware/efi/efivars";
const LOADER_PROGRAM: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
const GRUB_ENVIRONMENT: &str = "/boot/grub/grubenv";
const UPGRADE_CHECK: &str = "/usr/lib/sps/upgrade-check";
const LABEL_LIMIT: usize = 32;
const STALL_LIMIT: u64 = 86_400;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file cannot be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is larger than any configuration.
    #[error("{} is larger than {FILE_LIMIT} bytes; that is no slotd.toml", file.display())]
    TooLarge {
        /// Which file.
        file: PathBuf,
    },
    /// A file is not TOML, has a key that slotd does not know, or a value of another type.
    #[error("{} is not a valid slotd.toml", file.display())]
    Syntax {
        /// Which file.
        file: PathBuf,
        /// Line, key and what was expected.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// None of the standard files exists.
    #[error("no configuration: none of {} exists", STANDARD_FILES.join(", "))]
    Nowhere,
    /// A key that has no default is in none of the files.
    #[error("{key} is set nowhere; expected {expected}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What belongs there.
        expected: &'static str,
    },
    /// A value is out of range.
    #[error("{}: {key} = {found:?} is refused; expected {expected}", file.display())]
    Value {
        /// The file that set it.
        file: PathBuf,
        /// The key, for a slot with its place in the list.
        key: String,
        /// What it says.
        found: String,
        /// What belongs there.
        expected: &'static str,
    },
}

/// One file as written: every key may be absent.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fragment {
    compatible: Option<String>,
    hardware: Option<String>,
    keyring: Option<PathBuf>,
    state: Option<PathBuf>,
    esp: Option<PathBuf>,
    data: Option<PathBuf>,
    configuration: Option<PathBuf>,
    upgrade_check: Option<PathBuf>,
    check_runner: Option<CheckRunner>,
    recycle_fallback: Option<bool>,
    require_message: Option<bool>,
    stall_timeout_s: Option<u64>,
    loader: Option<LoaderFragment>,
    slot: Option<Vec<SlotFragment>>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
enum LoaderFragment {
    Grub { environment: Option<PathBuf> },
    SystemdBoot { variables: Option<PathBuf>, program: Option<PathBuf> },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SlotFragment {
    id: u32,
    label: String,
    device: PathBuf,
}

/// A value and the file that set it.
type Input<T> = Option<(PathBuf, T)>;

/// The files merged, a later one over an earlier one; each value still knows its file.
#[derive(Debug, Default)]
pub struct Inputs {
    compatible: Input<String>,
    hardware: Input<String>,
    keyring: Input<PathBuf>,
    state: Input<PathBuf>,
    esp: Input<PathBuf>,
    data: Input<PathBuf>,
    configuration: Input<PathBuf>,
    upgrade_check: Input<PathBuf>,
    check_runner: Input<CheckRunner>,
    recycle_fallback: Input<bool>,
    require_message: Input<bool>,
    stall_timeout_s: Input<u64>,
    loader: Input<LoaderFragment>,
    slot: Input<Vec<SlotFragment>>,
}

/// Validated configuration of slotd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Product this appliance takes firmware for.
    pub compatible: String,
    /// Hardware model, where the firmware's own (DMI product name) is not to be used.
    pub hardware: Option<String>,
    /// Directory of trusted roots and revocation lists.
    pub keyring: PathBuf,
    /// The durable state file.
    pub state: PathBuf,
    /// Directory that holds `EFI/`.
    pub esp: PathBuf,
    /// Directory of `sps-data`, whose free space counts for a new firmware, and which has the taint record; neither when unset.
    pub data: Option<PathBuf>,
    /// Directory of one directory per configuration generation, named by root hash.
    pub configuration: Option<PathBuf>,
    /// The program that runs a new firmware's own checks.
    pub upgrade_check: PathBuf,
    /// What it is run with; unset: systemd where that runs.
    pub check_runner: Option<CheckRunner>,
    /// An install without an empty slot may overwrite the fallback; unset: with exactly two slots.
    pub recycle_fallback: Option<bool>,
    /// Nothing is selected without a message that says why.
    pub require_message: bool,
    /// No byte from a pipe or socket for this long ends an install.
    pub stall_timeout: Duration,
    /// The boot loader; `None`: nothing can be selected.
    pub loader: Option<LoaderSettings>,
    /// Firmware slots, ascending by number.
    pub slots: Vec<SlotSettings>,
}

/// Where the boot loader keeps what it is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoaderSettings {
    /// GRUB.
    Grub {
        /// The file with the environment block.
        environment: PathBuf,
    },
    /// systemd-boot; its other copy is on the ESP.
    SystemdBoot {
        /// The directory where efivarfs is mounted.
        variables: PathBuf,
        /// The loader itself, as the running firmware has it.
        program: PathBuf,
    },
}

/// What keeps a new firmware's own checks apart from this system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckRunner {
    /// A transient unit.
    Systemd,
    /// `bwrap`.
    Bubblewrap,
}

/// One firmware slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSettings {
    /// 1 to 9.
    pub id: SlotId,
    /// Name for people.
    pub label: String,
    /// Block device or file that holds it.
    pub device: PathBuf,
}

/// Parses the text of one file; `file` only names it in errors.
pub fn parse_fragment(file: &Path, text: &[u8]) -> Result<Fragment, SettingsError> {
    toml::from_slice(text)
        .map_err(|source| SettingsError::Syntax { file: file.to_owned(), source: Box::new(source) })
}

impl Inputs {
    /// Lays one file over what came before.
    pub fn merge(&mut self, file: &Path, fragment: Fragment) {
        fn lay<T>(below: &mut Input<T>, file: &Path, above: Option<T>) {
            if let Some(value) = above {
                *below = Some((file.to_owned(), value));
            }
        }
        let Fragment { compatible, hardware, keyring, state, esp, data, configuration, .. } = fragment;
        let Fragment { upgrade_check, check_runner, recycle_fallback, require_message, .. } = fragment;
        let Fragment { stall_timeout_s, loader, slot, .. } = fragment;
        lay(&mut self.compatible, file, compatible);
        lay(&mut self.hardware, file, hardware);
        lay(&mut self.keyring, file, keyring);
        lay(&mut self.state, file, state);
        lay(&mut self.esp, file, esp);
        lay(&mut self.data, file, data);
        lay(&mut self.configuration, file, configuration);
        lay(&mut self.upgrade_check, file, upgrade_check);
        lay(&mut self.check_runner, file, check_runner);
        lay(&mut self.recycle_fallback, file, recycle_fallback);
        lay(&mut self.require_message, file, require_message);
        lay(&mut self.stall_timeout_s, file, stall_timeout_s);
        lay(&mut self.loader, file, loader);
        lay(&mut self.slot, file, slot);
    }

    /// Checks everything that the files say together.
    pub fn validate(self) -> Result<Settings, SettingsError> {
        let compatible = required("compatible", self.compatible, "the product's name")?;
        let upgrade_check = (PathBuf::new(), PathBuf::from(UPGRADE_CHECK));
        let stall = self.stall_timeout_s.unwrap_or((PathBuf::new(), 60));
        Ok(Settings {
            compatible: name("compatible", compatible)?,
            hardware: self.hardware.map(|input| name("hardware", input)).transpose()?,
            keyring: absolute("keyring", required("keyring", self.keyring, "a directory")?)?,
            state: absolute("state", required("state", self.state, "a file")?)?,
            esp: absolute("esp", required("esp", self.esp, "the directory that holds EFI/")?)?,
            data: self.data.map(|input| absolute("data", input)).transpose()?,
            configuration: self.configuration.map(|input| absolute("configuration", input)).transpose()?,
            upgrade_check: absolute("upgrade_check", self.upgrade_check.unwrap_or(upgrade_check))?,
            check_runner: self.check_runner.map(|(_, runner)| runner),
            recycle_fallback: self.recycle_fallback.map(|(_, allowed)| allowed),
            require_message: self.require_message.is_some_and(|(_, required)| required),
            stall_timeout: stall_timeout(stall)?,
            loader: self.loader.map(loader).transpose()?,
            slots: slots(required("slot", self.slot, "one [[slot]] for each firmware slot")?)?,
        })
    }
}

fn required<T>(
    key: &'static str,
    input: Input<T>,
    expected: &'static str,
) -> Result<(PathBuf, T), SettingsError> {
    input.ok_or(SettingsError::Missing { key, expected })
}

fn refuse<T>(
    file: &Path,
    key: impl Into<String>,
    found: &impl ToString,
    expected: &'static str,
) -> Result<T, SettingsError> {
    let (file, key, found) = (file.to_owned(), key.into(), found.to_string());
    Err(SettingsError::Value { file, key, found, expected })
}

/// Manifest names are compared with these, so they must be something a manifest can say.
fn name(key: &'static str, (file, text): (PathBuf, String)) -> Result<String, SettingsError> {
    if text.trim() == text && (1..=128).contains(&text.len()) && !text.contains(char::is_control) {
        return Ok(text);
    }
    refuse(&file, key, &text, "1 to 128 bytes without control characters or space around them")
}

fn absolute(key: impl Into<String>, (file, path): (PathBuf, PathBuf)) -> Result<PathBuf, SettingsError> {
    if path.is_absolute() && !path.components().any(|part| part == std::path::Component::ParentDir) {
        return Ok(path);
    }
    refuse(&file, key, &path.display(), "an absolute path without ..")
}

fn stall_timeout((file, seconds): (PathBuf, u64)) -> Result<Duration, SettingsError> {
    if (1..=STALL_LIMIT).contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    refuse(&file, "stall_timeout_s", &seconds, "1 to 86400 seconds")
}

fn loader((file, loader): (PathBuf, LoaderFragment)) -> Result<LoaderSettings, SettingsError> {
    let path = |key: &str, given: Option<PathBuf>, default: &str| {
        absolute(key, (file.clone(), given.unwrap_or_else(|| default.into())))
    };
    Ok(match loader {
        LoaderFragment::Grub { environment } => {
            LoaderSettings::Grub { environment: path("loader.environment", environment, GRUB_ENVIRONMENT)? }
        }
        LoaderFragment::SystemdBoot { variables, program } => LoaderSettings::SystemdBoot {
            variables: path("loader.variables", variables, EFIVARS)?,
            program: path("loader.program", program, LOADER_PROGRAM)?,
        },
    })
}

fn slots((file, list): (PathBuf, Vec<SlotFragment>)) -> Result<Vec<SlotSettings>, SettingsError> {
    if list.is_empty() {
        return refuse(&file, "slot", &"[]", "at least one [[slot]]");
    }
    let (mut ids, mut labels, mut devices) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut slots = Vec::with_capacity(list.len());
    for (place, slot) in list.into_iter().enumerate() {
        let key = |field: &str| format!("slot[{place}].{field}");
        let id = match SlotId::new(slot.id) {
            Some(id) if id != SlotId::RECOVERY && ids.insert(id) => id,
            _ => return refuse(&file, key("id"), &slot.id, "a number from 1 to 9 that no other slot has"),
        };
        let label = slot.label;
        let printable = label.trim() == label && !label.is_empty() && !label.contains(char::is_control);
        if !printable || label.len() > LABEL_LIMIT || !labels.insert(label.clone()) {
            return refuse(&file, key("label"), &label, "1 to 32 printable bytes that no other slot has");
        }
        let device = absolute(key("device"), (file.clone(), slot.device))?;
        if !devices.insert(device.clone()) {
            return refuse(&file, key("device"), &device.display(), "a device that no other slot has");
        }
        slots.push(SlotSettings { id, label, device });
    }
    slots.sort_by_key(|slot| slot.id);
    Ok(slots)
}

fn read_file(file: &Path) -> Result<Vec<u8>, SettingsError> {
    let failed = |source| SettingsError::Read { file: file.to_owned(), source };
    let mut text = Vec::new();
    File::open(file).map_err(failed)?.take(FILE_LIMIT + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_LIMIT {
        return Err(SettingsError::TooLarge { file: file.to_owned() });
    }
    Ok(text)
}

/// Reads the files that are named, or the standard ones where none is.
pub fn read_named_settings(files: &[PathBuf]) -> Result<Settings, SettingsError> {
    if files.is_empty() { read_standard_settings() } else { read_settings(files) }
}

/// Reads exactly these files, in order; each must exist.
pub fn read_settings(files: &[PathBuf]) -> Result<Settings, SettingsError> {
    let mut inputs = Inputs::default();
    for file in files {
        inputs.merge(file, parse_fragment(file, &read_file(file)?)?);
    }
    inputs.validate()
}

/// Reads those of the standard files that exist; one at least must.
pub fn read_standard_settings() -> Result<Settings, SettingsError> {
    let mut inputs = Inputs::default();
    let mut seen = false;
    for file in STANDARD_FILES.map(Path::new) {
        match read_file(file) {
            Ok(text) => inputs.merge(file, parse_fragment(file, &text)?),
            Err(SettingsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        }
        seen = true;
    }
    if seen { inputs.validate() } else { Err(SettingsError::Nowhere) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHIPPED: &str = include_str!("../../systemd/slotd.toml");

    fn settings(files: &[&str]) -> Result<Settings, SettingsError> {
        let mut inputs = Inputs::default();
        for (number, text) in files.iter().enumerate() {
            let file = PathBuf::from(format!("{number}.toml"));
            inputs.merge(&file, parse_fragment(&file, text.as_bytes())?);
        }
        inputs.validate()
    }

    /// The error and its sources on one line.
    fn refusal(files: &[&str]) -> String {
        let error = settings(files).unwrap_err();
        match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        }
    }

    #[test]
    fn the_shipped_file_is_a_whole_configuration() {
        let settings = settings(&[SHIPPED]).unwrap();
        assert_eq!(settings.stall_timeout, Duration::from_mins(1));
        assert_eq!(settings.hardware, None);
        let (variables, program) = (EFIVARS.into(), LOADER_PROGRAM.into());
        assert_eq!(settings.loader, Some(LoaderSettings::SystemdBoot { variables, program }));
        assert_eq!((settings.data, settings.configuration), (None, None));
        assert_eq!((settings.check_runner, settings.recycle_fallback), (None, None));
        assert_eq!(settings.upgrade_check, Path::new("/usr/lib/sps/upgrade-check"));
        let ids: Vec<_> = settings.slots.iter().map(|slot| slot.id.get()).collect();
        assert_eq!(ids, [1, 2]);
    }

    #[test]
    fn every_commented_default_is_accepted_when_uncommented() {
        let text: String = SHIPPED
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with([' ', '#']) && rest.contains(" = ") => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        assert_ne!(text, SHIPPED);
        let all = settings(&[&text]).unwrap();
        assert_eq!(all.hardware.as_deref(), Some("SPS-1000"));
        assert!(all.data.is_some() && all.configuration.is_some() && all.check_runner.is_some());
        let shipped = settings(&[SHIPPED]).unwrap();
        assert_eq!((all.loader, all.upgrade_check), (shipped.loader, shipped.upgrade_check), "the defaults");
    }

    #[test]
    fn a_later_file_wins_key_by_key_and_replaces_the_slot_list() {
        let later = "compatible = \"other\"\n[[slot]]\nid = 3\nlabel = \"C\"\ndevice = \"/dev/c\"\n";
        let both = settings(&[SHIPPED, later, "stall_timeout_s = 5"]).unwrap();
        let one = settings(&[SHIPPED]).unwrap();
        assert_eq!((both.compatible.as_str(), both.stall_timeout.as_secs()), ("other", 5));
        assert_eq!((&both.keyring, &both.state), (&one.keyring, &one.state));
        assert_eq!(both.slots.len(), 1);
        assert_eq!(both.slots[0].label, "C");
    }

    #[test]
    fn the_loader_is_named_by_kind_and_replaced_as_a_whole() {
        let none = SHIPPED.replace("[loader]\nkind = \"systemd-boot\"", "");
        assert_ne!(none, SHIPPED);
        assert_eq!(settings(&[&none]).unwrap().loader, None);
        for (text, environment) in [
            ("loader = {kind = \"grub\"}", "/boot/grub/grubenv"),
            ("[loader]\nkind = \"grub\"\nenvironment = \"/efi/grubenv\"\n", "/efi/grubenv"),
        ] {
            let expected = LoaderSettings::Grub { environment: environment.into() };
            assert_eq!(settings(&[SHIPPED, text]).unwrap().loader, Some(expected));
        }
        let more = "recycle_fallback = false\nrequire_message = true\ncheck_runner = \"bubblewrap\"\nupgrade_check = \"/opt/check\"\n\
                    data = \"/data\"\nconfiguration = \"/data/config\"\n";
        let more = settings(&[SHIPPED, more]).unwrap();
        assert_eq!((more.recycle_fallback, more.check_runner), (Some(false), Some(CheckRunner::Bubblewrap)));
        assert!(more.require_message);
        assert_eq!(more.upgrade_check, Path::new("/opt/check"));
        assert_eq!(more.data.as_deref(), Some(Path::new("/data")));
        assert_eq!(more.configuration.as_deref(), Some(Path::new("/data/config")));
    }

    #[test]
    fn refusals_name_file_key_and_what_was_expected() {
        let cases: [(&[&str], &[&str]); 23] = [
            (&[SHIPPED, "recycle = true"], &["1.toml", "recycle", "expected one of"]),
            (&[SHIPPED, "recycle_fallback = 1"], &["1.toml", "recycle_fallback", "boolean"]),
            (&[SHIPPED, "data = \"data\""], &["1.toml", "data", "absolute"]),
            (&[SHIPPED, "configuration = \"/a/..\""], &["1.toml", "configuration", "absolute"]),
            (&[SHIPPED, "upgrade_check = \"check\""], &["1.toml", "upgrade_check", "absolute"]),
            (&[SHIPPED, "check_runner = \"docker\""], &["1.toml", "check_runner", "bubblewrap"]),
            (&[SHIPPED, "loader = {}"], &["1.toml", "kind"]),
            (&[SHIPPED, "loader = {kind = \"lilo\"}"], &["1.toml", "lilo", "systemd-boot"]),
            (&[SHIPPED, "loader = {kind = \"grub\", variables = \"/v\"}"], &["1.toml", "variables"]),
            (
                &[SHIPPED, "loader = {kind = \"grub\", environment = \"grubenv\"}"],
                &["loader.environment", "absolute"],
            ),
            (&[SHIPPED, "loader = {kind = \"systemd-boot\", variables = \"v\"}"], &["loader.variables"]),
            (&[SHIPPED, "loader = {kind = \"systemd-boot\", program = \"p\"}"], &["loader.program"]),
            (&[SHIPPED, "compatible = 3"], &["1.toml", "compatible", "string"]),
            (&[SHIPPED, "slot = [{id = 1, label = \"A\", device = \"/d\", size = 1}]"], &["1.toml", "size"]),
            (&["compatible = \"x\""], &["keyring", "set nowhere"]),
            (&[SHIPPED, "compatible = \"\""], &["1.toml", "compatible", "1 to 128"]),
            (&[SHIPPED, "hardware = \" x\""], &["1.toml", "hardware"]),
            (&[SHIPPED, "state = \"state.json\""], &["1.toml", "state", "absolute"]),
            (&[SHIPPED, "esp = \"/a/../b\""], &["1.toml", "esp", ".."]),
            (&[SHIPPED, "stall_timeout_s = 0"], &["1.toml", "stall_timeout_s", "1 to 86400"]),
            (&[SHIPPED, "slot = []"], &["1.toml", "slot", "at least one"]),
            (&[SHIPPED, "slot = [{id = 0, label = \"A\", device = \"/d\"}]"], &["slot[0].id", "1 to 9"]),
            (&["not toml"], &["0.toml"]),
        ];
        for (files, words) in cases {
            let text = refusal(files);
            for word in words {
                assert!(text.contains(word), "{word:?} is not in {text:?}");
            }
        }
    }

    #[test]
    fn slots_share_neither_number_nor_label_nor_device() {
        let slot = |id: u32, label: &str, device: &str| {
            format!("[[slot]]\nid = {id}\nlabel = \"{label}\"\ndevice = \"{device}\"\n")
        };
        let first = slot(1, "A", "/dev/a");
        for (second, key) in [
            (slot(1, "B", "/dev/b"), "slot[1].id"),
            (slot(2, "A", "/dev/b"), "slot[1].label"),
            (slot(2, "B", "/dev/a"), "slot[1].device"),
        ] {
            let text = refusal(&[SHIPPED, &format!("{first}{second}")]);
            assert!(text.contains(key), "{text}");
        }
    }

    #[test]
    fn files_are_limited_and_must_exist_when_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("slotd.toml");
        let absent = read_settings(std::slice::from_ref(&file)).unwrap_err();
        assert!(matches!(absent, SettingsError::Read { .. }));
        let limit = usize::try_from(FILE_LIMIT).unwrap();
        let mut text = SHIPPED.to_owned();
        text.push_str(&"#".repeat(limit - text.len()));
        std::fs::write(&file, &text).unwrap();
        assert!(read_settings(std::slice::from_ref(&file)).is_ok());
        text.push('#');
        std::fs::write(&file, &text).unwrap();
        assert!(matches!(read_settings(&[file]), Err(SettingsError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(text in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut inputs = Inputs::default();
            if let Ok(fragment) = parse_fragment(Path::new("x"), &text) {
                inputs.merge(Path::new("x"), fragment);
                let _ = inputs.validate();
            }
        }
    }
}
