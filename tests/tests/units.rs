//! What systemd, D-Bus, polkit and the journal are told must be what the code says.
#![expect(clippy::unwrap_used, reason = "a test that cannot read its input fails here")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use roxmltree::{Document, Node, ParsingOptions};
use sps_base::{dbus, journal};

const CATALOG: &str = "systemd/catalog/sps.catalog";
const BUS_POLICY: &str = "systemd/dbus-1/system.d/org.spsagent.Slots1.conf";
const ACTIVATION: &str = "systemd/dbus-1/system-services/org.spsagent.Slots1.service";
const POLKIT: &str = "systemd/polkit-1/actions/org.spsagent.slots1.policy";

/// Interfaces that the bus library serves beside those of the contract.
const STANDARD: [&str; 4] = [
    "org.freedesktop.DBus.Introspectable",
    "org.freedesktop.DBus.ObjectManager",
    "org.freedesktop.DBus.Peer",
    "org.freedesktop.DBus.Properties",
];

fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(relative)
}

fn read(relative: &str) -> String {
    let path = path(relative);
    std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display())).unwrap()
}

fn xml(text: &str) -> Document<'_> {
    Document::parse_with_options(text, ParsingOptions { allow_dtd: true, ..Default::default() }).unwrap()
}

fn elements<'a>(document: &'a Document<'_>, tag: &'a str) -> impl Iterator<Item = Node<'a, 'a>> {
    document.descendants().filter(move |n| n.has_tag_name(tag))
}

/// The catalog's entries as (id, body).
fn catalog_entries(text: &str) -> Vec<(&str, String)> {
    let mut entries: Vec<(&str, String)> = Vec::new();
    for line in text.lines() {
        if let Some(id) = line.strip_prefix("-- ") {
            entries.push((id, String::new()));
        } else if let Some((_, body)) = entries.last_mut() {
            body.push_str(line);
            body.push('\n');
        }
    }
    entries
}

#[test]
fn every_event_has_a_catalog_entry_and_every_entry_an_event() {
    let text = read(CATALOG);
    let entries = catalog_entries(&text);
    let in_catalog: BTreeSet<&str> = entries.iter().map(|(id, _)| *id).collect();
    let in_code: BTreeSet<&str> = journal::ALL.iter().map(|(_, id)| *id).collect();
    assert_eq!(in_code.len(), journal::ALL.len(), "two events share a MESSAGE_ID");
    assert_eq!(in_catalog.len(), entries.len(), "two entries share a MESSAGE_ID");
    assert_eq!(in_catalog, in_code);
    for (id, body) in &entries {
        assert!(id.len() == 32 && id.bytes().all(|b| b"0123456789abcdef".contains(&b)), "{id}");
        assert!(body.starts_with("Subject: "), "{id} has no subject");
        assert!(body.contains("\n\nWhat to do: "), "{id} does not say what to do");
        assert!(body.split("\n\n").count() >= 3, "{id} explains nothing");
    }
}

#[test]
fn catalog_names_only_fields_that_entries_carry() {
    let text = read(CATALOG);
    let fields: BTreeSet<&str> = text.split('@').skip(1).step_by(2).collect();
    assert_eq!(fields, BTreeSet::from(["ERROR", "REASON", "SLOT", "VERSION"]));
}

#[test]
fn journalctl_compiles_the_catalog_and_lists_every_event() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("usr/lib/systemd/catalog");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::create_dir_all(root.path().join("var/lib/systemd/catalog")).unwrap();
    std::fs::copy(path(CATALOG), directory.join("sps.catalog")).unwrap();
    let journalctl = |action: &str| {
        let out = Command::new("journalctl").arg("--root").arg(root.path()).arg(action).output().unwrap();
        assert!(out.status.success(), "{action}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    journalctl("--update-catalog");
    let listed = journalctl("--list-catalog");
    let listed: BTreeSet<&str> = listed.lines().filter_map(|l| l.split(' ').next()).collect();
    assert_eq!(listed, journal::ALL.iter().map(|(_, id)| *id).collect());
}

#[test]
fn bus_policy_denies_by_default_and_names_the_interfaces_of_the_contract() {
    let (contract, policy) = (dbus::SLOTS1_XML, read(BUS_POLICY));
    let (contract, policy) = (xml(contract), xml(&policy));
    let mut expected: BTreeSet<&str> =
        elements(&contract, "interface").map(|n| n.attribute("name").unwrap()).collect();
    expected.extend(STANDARD);

    for rule in elements(&policy, "allow").chain(elements(&policy, "deny")) {
        for name in ["own", "send_destination", "receive_sender"] {
            let Some(value) = rule.attribute(name) else { continue };
            assert_eq!(value, dbus::SLOTS1_NAME, "{rule:?}");
        }
    }
    let group = |attribute: &str, value: &str| {
        let found = elements(&policy, "policy").find(|n| n.attribute(attribute) == Some(value));
        found.unwrap().children().filter(Node::is_element).collect::<Vec<_>>()
    };
    let default = group("context", "default");
    assert!(default.iter().all(|rule| rule.has_tag_name("deny")), "the default policy allows something");
    let denied: BTreeSet<&str> = default.iter().flat_map(|r| r.attributes().map(|a| a.name())).collect();
    assert_eq!(denied, BTreeSet::from(["own", "receive_sender", "send_destination"]));
    for (attribute, value) in [("group", "sps-admin"), ("user", "sps-agent")] {
        let rules = group(attribute, value);
        assert!(rules.iter().all(|r| r.attribute("own").is_none()), "{value} may own the name");
        let sends = rules.iter().filter(|r| r.attribute("send_destination").is_some());
        let named: BTreeSet<&str> = sends.map(|r| r.attribute("send_interface").unwrap_or("*")).collect();
        assert_eq!(named, expected, "{attribute} {value}");
    }
    assert_eq!(elements(&policy, "policy").count(), 4, "who is the new policy for?");
}

#[test]
fn polkit_actions_are_those_of_the_code_and_ask_for_an_administrator() {
    let text = read(POLKIT);
    let policy = xml(&text);
    let declared: Vec<&str> =
        elements(&policy, "action").map(|action| action.attribute("id").unwrap()).collect();
    assert_eq!(declared, dbus::ACTIONS);
    for tag in ["allow_any", "allow_inactive", "allow_active"] {
        let values: Vec<_> = elements(&policy, tag).map(|n| n.text().unwrap()).collect();
        assert_eq!(values, vec!["auth_admin"; dbus::ACTIONS.len()], "{tag}");
    }
    for note in elements(&policy, "annotate") {
        assert_eq!(note.attribute("key"), Some("org.freedesktop.policykit.owner"));
        assert_eq!(note.text(), Some("unix-user:sps-agent"));
    }
}

#[test]
fn bus_activation_starts_the_unit() {
    let text = read(ACTIVATION);
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    assert_eq!(value("Name"), Some(dbus::SLOTS1_NAME));
    let unit = value("SystemdService").unwrap();
    assert!(path("systemd").join(unit).is_file(), "no unit {unit}");
}

#[test]
fn accounts_named_by_the_policies_are_created() {
    let accounts = read("systemd/sysusers.d/sps.conf");
    let declared: BTreeSet<(&str, &str)> = accounts
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?))
        })
        .collect();
    let bus = read(BUS_POLICY);
    let bus = xml(&bus);
    for policy in elements(&bus, "policy") {
        if let Some(group) = policy.attribute("group") {
            assert!(declared.contains(&("g", group)), "group {group}");
        }
        if let Some(user) = policy.attribute("user").filter(|user| *user != "root") {
            assert!(declared.contains(&("u", user)), "user {user}");
        }
    }
}

/// The bus daemon itself reads the policy and enforces it: a caller it does not name reaches nothing.
#[test]
fn bus_daemon_accepts_the_policy() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus");
    let config = directory.path().join("bus.conf");
    let complaints = directory.path().join("stderr");
    let text = format!(
        "<busconfig><type>system</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>\
         <policy context=\"default\"><allow user=\"*\"/><deny own=\"*\"/>\
         <allow send_destination=\"org.freedesktop.DBus\"/><allow receive_sender=\"org.freedesktop.DBus\"/></policy>\
         <include>{}</include></busconfig>",
        socket.display(),
        path(BUS_POLICY).display()
    );
    std::fs::write(&config, text).unwrap();
    let mut daemon = Command::new("dbus-daemon")
        .arg(format!("--config-file={}", config.display()))
        .args(["--nofork", "--nopidfile", "--print-address"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::fs::File::create(&complaints).unwrap())
        .spawn()
        .unwrap();
    // The address is printed once the configuration was accepted and the socket listens.
    let mut address = String::new();
    let mut stdout = std::io::BufReader::new(daemon.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut stdout, &mut address).unwrap();
    let own = Command::new("dbus-send")
        .arg(format!("--bus={}", address.trim()))
        .args(["--print-reply", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus"])
        .args(["org.freedesktop.DBus.RequestName", "string:org.spsagent.Slots1", "uint32:0"])
        .output();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let complaints = std::fs::read_to_string(complaints).unwrap();
    assert!(address.starts_with("unix:"), "dbus-daemon refused the policy: {complaints}");
    let own = own.unwrap();
    let reply = String::from_utf8_lossy(&own.stdout).into_owned() + &String::from_utf8_lossy(&own.stderr);
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    if root {
        assert!(reply.contains("uint32 1"), "root may not own the name: {reply}");
    } else {
        assert!(reply.contains("AccessDenied"), "anybody may own the name: {reply}");
    }
}
