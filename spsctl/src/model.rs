//! What slotd tells, as plain values; the derived JSON is the one of `docs/spsctl-json.md`.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::Value;
use sps_base::dbus::{Properties, TaintEntry};
use sps_base::error::ERROR_PREFIX;
use zbus::wire::Variant;

use crate::error::CtlError;

/// The properties of `org.spsagent.Slots1.Manager`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Running slot; none when the system came from no slot.
    pub booted: Option<u32>,
    /// Slot that the boot loader starts unless told otherwise.
    pub default: Option<u32>,
    /// Slot that the next start is for.
    pub after_reboot: Option<u32>,
    /// The running firmware was selected for this one start and is not confirmed yet.
    pub trial: bool,
    /// The running firmware has proven itself healthy.
    pub confirmed: bool,
    /// Slot to go back to.
    pub fallback: Option<u32>,
    /// How the last selection went.
    pub last_upgrade: Option<LastUpgrade>,
    /// Boot loader that is driven: grub, systemd-boot, or none.
    pub loader: Option<String>,
    /// Product.
    pub compatible: Option<String>,
    /// Lowest epoch that may be installed.
    pub security_epoch: u32,
    /// Slots that an install may use.
    pub empty_slots: u32,
    /// Records of the taint log.
    pub taint_count: u32,
    /// direct, cached or impossible.
    pub readback: Option<String>,
    /// checked or none.
    pub revocation: Option<String>,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// How the last selection went. What slotd does not know is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LastUpgrade {
    /// selected, trial, confirmed, failed or withdrawn.
    pub outcome: String,
    /// upgrade, revert or fallback.
    pub kind: Option<String>,
    /// The slot that was selected.
    pub slot: Option<u32>,
    /// Its version.
    pub version: Option<String>,
    /// The version that ran before.
    pub from_version: Option<String>,
    /// Hex.
    pub root_hash: Option<String>,
    /// The operator's message.
    pub message: Option<String>,
    /// Who asked for it.
    pub who: Option<String>,
    /// Unix seconds.
    #[serde(serialize_with = "time_json")]
    pub selected_at: Option<u64>,
    /// Unix seconds.
    #[serde(serialize_with = "time_json")]
    pub ended_at: Option<u64>,
    /// Why it failed or was withdrawn.
    pub reason: Option<String>,
}

/// The properties of `org.spsagent.Slots1.Slot`. What is not there is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// Number.
    pub id: u32,
    /// Label.
    pub label: Option<String>,
    /// empty, writing, verified or bad.
    pub state: String,
    /// Why writing or bad.
    pub reason: Option<String>,
    /// Version.
    pub version: Option<String>,
    /// Boot firmware.
    pub boot_version: Option<String>,
    /// RFC 3339.
    pub build_date: Option<String>,
    /// Hex.
    pub root_hash: Option<String>,
    /// Epoch of the firmware in it.
    pub security_epoch: u32,
    /// Capacity in bytes.
    pub size: u64,
    /// Unix seconds.
    #[serde(serialize_with = "time_json")]
    pub installed_at: Option<u64>,
    /// Unix seconds.
    #[serde(serialize_with = "time_json")]
    pub verified_at: Option<u64>,
    /// installed, quick or full.
    pub verified_how: Option<String>,
    /// Date of the configuration that this firmware would start with, RFC 3339.
    pub configuration: Option<String>,
    /// Runs now.
    pub current: bool,
    /// Runs after the next reboot.
    pub after_reboot: bool,
}

/// A record of what the firmware did not foresee.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Taint {
    /// From 1; one that is missing was lost.
    pub number: u64,
    /// What it is called.
    pub id: String,
    /// What has happened: state-lost and so on.
    pub cause: String,
    /// What it happened to.
    pub place: String,
    /// In one sentence.
    pub detail: Option<String>,
    /// Unix seconds.
    #[serde(serialize_with = "time_json")]
    pub at: Option<u64>,
    /// Unix seconds.
    #[serde(serialize_with = "time_json")]
    pub cleared_at: Option<u64>,
}

impl From<TaintEntry> for Taint {
    fn from((id, cause, place, detail, number, at, cleared_at): TaintEntry) -> Self {
        let time = |seconds: u64| Some(seconds).filter(|seconds| *seconds != 0);
        let detail = Some(detail).filter(|detail| !detail.is_empty());
        Self { number, id, cause, place, detail, at: time(at), cleared_at: time(cleared_at) }
    }
}

/// How a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JobError {
    /// D-Bus name; the contract's without its prefix.
    pub name: String,
    /// slotd's words.
    pub message: String,
}

/// The properties of `org.spsagent.Slots1.Job`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Job {
    /// Number, the end of the object's path.
    pub number: u64,
    /// install, verify or test.
    pub kind: String,
    /// The slot it works on.
    pub slot: u32,
    /// queued, running, done, failed or cancelled.
    pub state: String,
    /// What it is doing.
    pub phase: Option<String>,
    /// Bytes done.
    pub bytes_done: u64,
    /// Bytes to do; none while unknown.
    pub bytes_total: Option<u64>,
    /// Where a resumed transfer may start.
    pub next_offset: u64,
    /// Why it failed or was cancelled.
    pub error: Option<JobError>,
    /// What came out of it.
    pub result: BTreeMap<String, Value>,
    /// Who started it.
    pub sender: Option<String>,
    /// Unix seconds.
    #[serde(serialize_with = "time_json")]
    pub started_at: Option<u64>,
    /// Unix seconds.
    #[serde(serialize_with = "time_json")]
    pub finished_at: Option<u64>,
}

impl Job {
    /// Whether nothing more will happen.
    pub fn is_over(&self) -> bool {
        matches!(self.state.as_str(), "done" | "failed" | "cancelled")
    }

    /// Why the job did not do what it was asked for: its error, or a verification that found damage.
    pub fn problem(&self) -> Option<CtlError> {
        let named = |name: &str, message: &str| {
            let name = if name.contains('.') { name.to_owned() } else { format!("{ERROR_PREFIX}{name}") };
            CtlError::from_name(&name, message, format!("job {}", self.number))
        };
        if let Some(error) = &self.error {
            return Some(named(&error.name, &error.message));
        }
        match self.state.as_str() {
            "cancelled" => Some(named("Cancelled", &format!("job {} was cancelled", self.number))),
            "failed" => Some(named("Device", &format!("job {} failed without saying why", self.number))),
            "done" if self.result.get("healthy") == Some(&Value::Bool(false)) => {
                let summary = self.result.get("summary").and_then(Value::as_str).unwrap_or("no summary");
                Some(named("SlotBad", &format!("slot {} is not healthy: {summary}", self.slot)))
            }
            "done" if self.result.get("exit_code").is_some_and(|code| code != 0) => {
                let summary = self.result.get("test_summary").and_then(Value::as_str).unwrap_or_default();
                let last = summary.lines().last().unwrap_or("no summary");
                Some(named("TestFailed", &format!("slot {} cannot take over: {last}", self.slot)))
            }
            _ => None,
        }
    }
}

/// Reads the manager's properties.
pub fn summary(values: &Properties) -> Result<Summary, CtlError> {
    let fields = Fields { object: "Manager", values };
    Ok(Summary {
        booted: fields.slot("Booted")?,
        default: fields.slot("Default")?,
        after_reboot: fields.slot("AfterReboot")?,
        trial: fields.bool("Trial")?,
        confirmed: fields.bool("Confirmed")?,
        fallback: fields.slot("Fallback")?,
        last_upgrade: last_upgrade(&fields.dictionary("LastUpgrade")?),
        loader: fields.text("Loader")?,
        compatible: fields.text("Compatible")?,
        security_epoch: fields.u32("SecurityEpoch")?,
        empty_slots: fields.u32("EmptySlots")?,
        taint_count: fields.u32("TaintCount")?,
        readback: fields.text("Readback")?,
        revocation: fields.text("Revocation")?,
        warnings: fields.texts("Warnings")?,
    })
}

/// The last selection; none when there was none. A key that is not there is not known.
fn last_upgrade(values: &BTreeMap<String, Value>) -> Option<LastUpgrade> {
    let number = |key: &str| values.get(key).and_then(Value::as_u64).filter(|number| *number != 0);
    let text = |key: &str| {
        values.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    Some(LastUpgrade {
        outcome: text("outcome")?,
        kind: text("kind"),
        slot: number("slot").and_then(|slot| u32::try_from(slot).ok()),
        version: text("version"),
        from_version: text("from_version"),
        root_hash: text("root_hash"),
        message: text("message"),
        who: text("who"),
        selected_at: number("selected_at"),
        ended_at: number("ended_at"),
        reason: text("reason"),
    })
}

/// Reads a slot's properties.
pub fn slot(path: &str, values: &Properties) -> Result<Slot, CtlError> {
    let fields = Fields { object: path, values };
    Ok(Slot {
        id: fields.u32("Id")?,
        label: fields.text("Label")?,
        state: fields.string("State")?,
        reason: fields.text("Reason")?,
        version: fields.text("Version")?,
        boot_version: fields.text("BootVersion")?,
        build_date: fields.text("BuildDate")?,
        root_hash: fields.text("RootHash")?,
        security_epoch: fields.u32("SecurityEpoch")?,
        size: fields.u64("Size")?,
        installed_at: fields.nonzero("InstalledAt")?,
        verified_at: fields.nonzero("VerifiedAt")?,
        verified_how: fields.text("VerifiedHow")?,
        configuration: fields.text("Configuration")?,
        current: fields.bool("Current")?,
        after_reboot: fields.bool("AfterReboot")?,
    })
}

/// Reads a job's properties.
pub fn job(number: u64, values: &Properties) -> Result<Job, CtlError> {
    let object = format!("job {number}");
    let fields = Fields { object: &object, values };
    Ok(Job {
        number,
        kind: fields.string("Kind")?,
        slot: fields.u32("Slot")?,
        state: fields.string("State")?,
        phase: fields.text("Phase")?,
        bytes_done: fields.u64("BytesDone")?,
        bytes_total: fields.nonzero("BytesTotal")?,
        next_offset: fields.u64("NextOffset")?,
        error: fields.error("Error")?,
        result: fields.dictionary("Result")?,
        sender: fields.text("Sender")?,
        started_at: fields.nonzero("StartedAt")?,
        finished_at: fields.nonzero("FinishedAt")?,
    })
}

/// Typed reading of one object's properties.
struct Fields<'a> {
    object: &'a str,
    values: &'a Properties,
}

impl<'a> Fields<'a> {
    fn malformed(&self, property: &'static str) -> CtlError {
        CtlError::Malformed { object: self.object.to_owned(), property }
    }

    fn get(&self, name: &'static str) -> Result<&'a Variant<'static>, CtlError> {
        self.values.get(name).map(|value| &**value).ok_or_else(|| self.malformed(name))
    }

    fn bool(&self, name: &'static str) -> Result<bool, CtlError> {
        match self.get(name)? {
            Variant::Bool(value) => Ok(*value),
            _ => Err(self.malformed(name)),
        }
    }

    fn u32(&self, name: &'static str) -> Result<u32, CtlError> {
        match self.get(name)? {
            Variant::U32(value) => Ok(*value),
            _ => Err(self.malformed(name)),
        }
    }

    fn u64(&self, name: &'static str) -> Result<u64, CtlError> {
        match self.get(name)? {
            Variant::U64(value) => Ok(*value),
            _ => Err(self.malformed(name)),
        }
    }

    /// A slot's number, 0 being none.
    fn slot(&self, name: &'static str) -> Result<Option<u32>, CtlError> {
        Ok(Some(self.u32(name)?).filter(|slot| *slot != 0))
    }

    fn nonzero(&self, name: &'static str) -> Result<Option<u64>, CtlError> {
        Ok(Some(self.u64(name)?).filter(|value| *value != 0))
    }

    fn string(&self, name: &'static str) -> Result<String, CtlError> {
        match self.get(name)? {
            Variant::Str(text) => Ok(text.as_str().to_owned()),
            _ => Err(self.malformed(name)),
        }
    }

    fn text(&self, name: &'static str) -> Result<Option<String>, CtlError> {
        Ok(Some(self.string(name)?).filter(|text| !text.is_empty()))
    }

    fn texts(&self, name: &'static str) -> Result<Vec<String>, CtlError> {
        let Variant::Array(array) = self.get(name)? else { return Err(self.malformed(name)) };
        let text = |item: &Variant<'_>| match item {
            Variant::Str(text) => Ok(text.as_str().to_owned()),
            _ => Err(self.malformed(name)),
        };
        array.inner().iter().map(text).collect()
    }

    fn error(&self, name: &'static str) -> Result<Option<JobError>, CtlError> {
        let Variant::Structure(pair) = self.get(name)? else { return Err(self.malformed(name)) };
        let [Variant::Str(error), Variant::Str(message)] = pair.fields() else {
            return Err(self.malformed(name));
        };
        if error.is_empty() {
            return Ok(None);
        }
        let name = error.strip_prefix(ERROR_PREFIX).unwrap_or(error).to_owned();
        Ok(Some(JobError { name, message: message.as_str().to_owned() }))
    }

    fn dictionary(&self, name: &'static str) -> Result<BTreeMap<String, Value>, CtlError> {
        let Variant::Dict(dict) = self.get(name)? else { return Err(self.malformed(name)) };
        dict.iter()
            .map(|(key, value)| match key {
                Variant::Str(key) => Ok((key.as_str().to_owned(), variant_json(value))),
                _ => Err(self.malformed(name)),
            })
            .collect()
    }
}

/// A D-Bus value as JSON: structures become arrays, dictionaries objects, descriptors null.
pub fn variant_json(value: &Variant<'_>) -> Value {
    match value {
        Variant::U8(n) => (*n).into(),
        Variant::Bool(b) => (*b).into(),
        Variant::I16(n) => (*n).into(),
        Variant::U16(n) => (*n).into(),
        Variant::I32(n) => (*n).into(),
        Variant::U32(n) => (*n).into(),
        Variant::I64(n) => (*n).into(),
        Variant::U64(n) => (*n).into(),
        Variant::F64(n) => (*n).into(),
        Variant::Str(text) => text.as_str().into(),
        Variant::Signature(signature) => signature.to_string().into(),
        Variant::ObjectPath(path) => path.as_str().into(),
        Variant::Variant(inner) => variant_json(inner),
        Variant::Array(array) => array.inner().iter().map(variant_json).collect(),
        Variant::Structure(structure) => structure.fields().iter().map(variant_json).collect(),
        Variant::Dict(dict) => {
            Value::Object(dict.iter().map(|(key, value)| (key_text(key), variant_json(value))).collect())
        }
        Variant::Fd(_) => Value::Null,
    }
}

fn key_text(key: &Variant<'_>) -> String {
    match variant_json(key) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// Unix seconds as RFC 3339 in UTC; the number itself when it is beyond what the calendar holds.
pub fn rfc3339(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(|| format!("@{seconds}"), |time| time.to_string())
}

#[expect(clippy::ref_option, reason = "serde gives the field by reference")]
fn time_json<S: Serializer>(time: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(rfc3339).serialize(serializer)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::HashMap;
    use zbus::wire::OwnedVariant;

    fn owned(value: impl Into<Variant<'static>>) -> OwnedVariant {
        value.into().try_into_owned().unwrap()
    }

    fn job_values() -> Properties {
        let result: HashMap<&str, Variant<'_>> = HashMap::from([
            ("healthy", Variant::from(false)),
            ("summary", Variant::from("2 of 10 blocks are bad")),
            ("extents", Variant::from(vec![(4_u64, 2_u64)])),
            ("owners", Variant::from(vec!["file /usr/bin/x"])),
            ("missed_chance", Variant::from(0.25_f64)),
        ]);
        HashMap::from([
            ("Kind".to_owned(), owned("verify")),
            ("Slot".to_owned(), owned(2_u32)),
            ("Phase".to_owned(), owned("")),
            ("BytesDone".to_owned(), owned(40_960_u64)),
            ("BytesTotal".to_owned(), owned(0_u64)),
            ("NextOffset".to_owned(), owned(0_u64)),
            ("State".to_owned(), owned("done")),
            ("Error".to_owned(), owned(("", ""))),
            ("Result".to_owned(), owned(result)),
            ("Sender".to_owned(), owned(":1.7")),
            ("StartedAt".to_owned(), owned(1_780_000_000_u64)),
            ("FinishedAt".to_owned(), owned(0_u64)),
        ])
    }

    #[test]
    fn job_becomes_documented_json() {
        let job = job(7, &job_values()).unwrap();
        assert_eq!(
            serde_json::to_value(&job).unwrap(),
            json!({
                "number": 7, "kind": "verify", "slot": 2, "state": "done", "phase": null,
                "bytes_done": 40960, "bytes_total": null, "next_offset": 0, "error": null,
                "result": {
                    "healthy": false, "summary": "2 of 10 blocks are bad", "extents": [[4, 2]],
                    "owners": ["file /usr/bin/x"], "missed_chance": 0.25
                },
                "sender": ":1.7", "started_at": "2026-05-28T20:26:40Z", "finished_at": null
            })
        );
    }

    #[test]
    fn unhealthy_slot_is_slot_bad() {
        let problem = job(7, &job_values()).unwrap().problem().unwrap();
        assert_eq!(problem.exit_code(), 21);
        assert_eq!(problem.to_string(), "slot 2 is not healthy: 2 of 10 blocks are bad");
    }

    #[test]
    fn job_error_loses_its_prefix_and_keeps_its_code() {
        let mut values = job_values();
        values.insert("State".to_owned(), owned("failed"));
        values.insert("Error".to_owned(), owned(("org.spsagent.Error.MediaCorrupt", "at byte 9")));
        let job = job(7, &values).unwrap();
        assert_eq!(job.error.as_ref().unwrap().name, "MediaCorrupt");
        assert_eq!(job.problem().unwrap().exit_code(), 15);
        values.insert("Error".to_owned(), owned(("org.other.Error", "what")));
        assert_eq!(super::job(7, &values).unwrap().problem().unwrap().exit_code(), 1);
    }

    #[test]
    fn property_of_another_type_is_named() {
        let mut values = job_values();
        values.insert("Slot".to_owned(), owned("two"));
        let error = job(7, &values).unwrap_err();
        assert_eq!(
            error.to_string(),
            "job 7: property Slot is missing or has another type than the contract gives it"
        );
        values.remove("Slot");
        assert!(job(7, &values).is_err());
    }

    #[test]
    fn manager_without_booted_slot_has_none() {
        let upgrade: HashMap<&str, Variant<'_>> = HashMap::from([
            ("outcome", Variant::from("selected")),
            ("slot", Variant::from(2_u32)),
            ("message", Variant::from("")),
            ("selected_at", Variant::from(1_780_000_000_u64)),
            ("ended_at", Variant::from(0_u64)),
        ]);
        let values: Properties = HashMap::from([
            ("Booted".to_owned(), owned(0_u32)),
            ("Default".to_owned(), owned(1_u32)),
            ("AfterReboot".to_owned(), owned(2_u32)),
            ("Trial".to_owned(), owned(false)),
            ("Confirmed".to_owned(), owned(true)),
            ("Fallback".to_owned(), owned(0_u32)),
            ("LastUpgrade".to_owned(), owned(upgrade)),
            ("Loader".to_owned(), owned("grub")),
            ("Compatible".to_owned(), owned("sps-1")),
            ("SecurityEpoch".to_owned(), owned(3_u32)),
            ("EmptySlots".to_owned(), owned(1_u32)),
            ("TaintCount".to_owned(), owned(2_u32)),
            ("Readback".to_owned(), owned("direct")),
            ("Revocation".to_owned(), owned("checked")),
            ("Warnings".to_owned(), owned(vec!["state was lost"])),
        ]);
        assert_eq!(
            serde_json::to_value(summary(&values).unwrap()).unwrap(),
            json!({
                "booted": null, "default": 1, "after_reboot": 2, "trial": false, "confirmed": true,
                "fallback": null, "loader": "grub",
                "last_upgrade": {
                    "outcome": "selected", "kind": null, "slot": 2, "version": null, "from_version": null,
                    "root_hash": null, "message": null, "who": null, "selected_at": "2026-05-28T20:26:40Z",
                    "ended_at": null, "reason": null
                },
                "compatible": "sps-1", "security_epoch": 3, "empty_slots": 1, "taint_count": 2,
                "readback": "direct", "revocation": "checked", "warnings": ["state was lost"]
            })
        );
    }

    #[test]
    fn time_beyond_the_calendar_is_still_shown() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(u64::MAX), "@18446744073709551615");
    }
}
