//! The D-Bus contract against the running slotd: what it says of itself, what it answers, whom it lets in.
#![expect(clippy::unwrap_used, reason = "a broken test bench fails here")]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::StreamExt as _;
use roxmltree::{Document, Node, ParsingOptions};
use sps_base::dbus::{
    JobProxy, ManagerProxy, SLOTS1_NAME, SLOTS1_PATH, SLOTS1_XML, SlotProxy, TAINT_PATH, Taint1Proxy,
    slot_path,
};
use sps_base::slot::SlotId;
use system_tests::bus::{Appliance, Layout};
use system_tests::firmware::Workshop;
use zbus::fdo::{IntrospectableProxy, ObjectManagerProxy, PropertiesProxy};
use zbus::names::InterfaceName;
use zbus::wire::Variant;

/// Methods, properties and signals of one interface, each with all that a client can depend on.
#[derive(Debug, Default, PartialEq, Eq)]
struct Interface {
    members: BTreeMap<String, Vec<(String, String, String)>>,
    properties: BTreeMap<String, (String, String)>,
}

fn interfaces(xml: &str) -> BTreeMap<String, Interface> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = Document::parse_with_options(xml, options).unwrap();
    let root = document.root_element();
    let own = root.children().filter(|node| node.has_tag_name("interface"));
    own.map(|node| (attribute(node, "name"), interface(node))).collect()
}

fn attribute(node: Node<'_, '_>, name: &str) -> String {
    node.attribute(name).unwrap_or_default().to_owned()
}

fn interface(node: Node<'_, '_>) -> Interface {
    let mut found = Interface::default();
    for member in node.children().filter(Node::is_element) {
        let name = attribute(member, "name");
        match member.tag_name().name() {
            "property" => {
                found.properties.insert(name, (attribute(member, "type"), attribute(member, "access")));
            }
            kind => {
                let arguments = member.children().filter(|child| child.has_tag_name("arg"));
                let arguments = arguments.map(|arg| {
                    let default = if kind == "signal" { "out" } else { "in" };
                    let direction = arg.attribute("direction").unwrap_or(default).to_owned();
                    (attribute(arg, "name"), attribute(arg, "type"), direction)
                });
                found.members.insert(format!("{kind} {name}"), arguments.collect());
            }
        }
    }
    found
}

async fn introspect(connection: &zbus::Connection, path: &str) -> BTreeMap<String, Interface> {
    let object =
        IntrospectableProxy::builder(connection).destination(SLOTS1_NAME).path(path).build().await.unwrap();
    interfaces(&object.introspect().await.unwrap())
}

/// One that trusts a keyring, as an install needs it.
fn appliance() -> anyhow::Result<Appliance> {
    let keyring = Some(Workshop::shared()?.keyring());
    Appliance::with(Layout { keyring, ..Layout::default() })
}

/// An install that waits for the bytes of its image; dropping the second value ends the image.
async fn waiting_install(connection: &zbus::Connection, slot: u32) -> (String, std::io::PipeWriter) {
    let (image, rest) = std::io::pipe().unwrap();
    let manager = ManagerProxy::new(connection).await.unwrap();
    let options = HashMap::from([("slot", Variant::from(slot))]);
    let job = manager.install(std::os::fd::OwnedFd::from(image).into(), options).await.unwrap();
    (job.to_string(), rest)
}

#[tokio::test]
async fn live_introspection_is_the_reviewed_contract() {
    let appliance = appliance().unwrap();
    let connection = appliance.connect().await.unwrap();
    let (job, _image) = waiting_install(&connection, 1).await;
    let reviewed = interfaces(SLOTS1_XML);
    let mut compared = BTreeSet::new();
    let paths = [SLOTS1_PATH.to_owned(), TAINT_PATH.to_owned(), job].into_iter();
    let slots = [0, 1, 2].map(|id| slot_path(SlotId::new(id).unwrap()));
    for path in paths.chain(slots) {
        for (name, live) in introspect(&connection, &path).await {
            if name.starts_with("org.spsagent.") {
                assert_eq!(Some(&live), reviewed.get(&name), "{name} at {path}");
                compared.insert(name);
            }
        }
    }
    assert_eq!(compared, reviewed.keys().cloned().collect());
    let manager = introspect(&connection, SLOTS1_PATH).await;
    assert!(manager.contains_key("org.freedesktop.DBus.ObjectManager"));
}

#[tokio::test]
async fn every_property_has_a_value_of_its_type() {
    let appliance = appliance().unwrap();
    let connection = appliance.connect().await.unwrap();
    let (job, _image) = waiting_install(&connection, 2).await;
    let reviewed = interfaces(SLOTS1_XML);
    for (path, name) in [
        (SLOTS1_PATH, "org.spsagent.Slots1.Manager"),
        ("/org/spsagent/slots1/slot/0", "org.spsagent.Slots1.Slot"),
        ("/org/spsagent/slots1/slot/2", "org.spsagent.Slots1.Slot"),
        (&job, "org.spsagent.Slots1.Job"),
    ] {
        let object = PropertiesProxy::builder(&connection).destination(SLOTS1_NAME).path(path);
        let object = object.build().await.unwrap();
        let all = object.get_all(InterfaceName::try_from(name).unwrap()).await.unwrap();
        let live: BTreeMap<_, _> =
            all.iter().map(|(name, value)| (name.clone(), value.value_signature().to_string())).collect();
        let expected: BTreeMap<_, _> =
            reviewed[name].properties.iter().map(|(name, (kind, _))| (name.clone(), kind.clone())).collect();
        assert_eq!(live, expected, "{path}");
    }
}

#[tokio::test]
async fn the_object_manager_lists_slots_jobs_and_the_taint_record() {
    let appliance = appliance().unwrap();
    let connection = appliance.connect().await.unwrap();
    let (job, _image) = waiting_install(&connection, 1).await;
    let objects = ObjectManagerProxy::builder(&connection).destination(SLOTS1_NAME).path(SLOTS1_PATH);
    let objects = objects.build().await.unwrap().get_managed_objects().await.unwrap();
    let listed: BTreeSet<_> = objects
        .iter()
        .filter(|(_, interfaces)| !interfaces.is_empty())
        .map(|(path, _)| path.to_string())
        .collect();
    let slots = [0, 1, 2].map(|id| slot_path(SlotId::new(id).unwrap()));
    assert_eq!(listed, slots.into_iter().chain([job, TAINT_PATH.to_owned()]).collect());
}

/// Name and message of a D-Bus error.
fn refusal<T: std::fmt::Debug>(result: zbus::Result<T>) -> (String, String) {
    match result.unwrap_err() {
        zbus::Error::MethodError(name, message, _) => (name.to_string(), message.unwrap_or_default()),
        zbus::Error::FDO(error) => (zbus::DBusError::name(&*error).to_string(), error.to_string()),
        other => (String::new(), other.to_string()),
    }
}

#[tokio::test]
async fn unknown_and_mistyped_options_are_refused_by_name_and_start_nothing() {
    let appliance = appliance().unwrap();
    let connection = appliance.connect().await.unwrap();
    let manager = ManagerProxy::new(&connection).await.unwrap();
    for (option, value) in [("colour", Variant::from("red")), ("slot", Variant::from("1"))] {
        let image = std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let (name, message) = refusal(manager.install(image.into(), HashMap::from([(option, value)])).await);
        assert_eq!(name, "org.spsagent.Error.InvalidArgument");
        assert!(message.contains(option), "{message}");
    }
    let slot = SlotProxy::builder(&connection).path("/org/spsagent/slots1/slot/1").build().await.unwrap();
    let (name, message) = refusal(slot.verify("deep", HashMap::new()).await);
    assert_eq!(name, "org.spsagent.Error.InvalidArgument");
    assert!(message.contains("quick or full"), "{message}");
    let options = HashMap::from([("sheduled", Variant::from(true))]);
    let (name, message) = refusal(slot.verify("full", options).await);
    assert_eq!(name, "org.spsagent.Error.InvalidArgument");
    assert!(message.contains("sheduled"), "{message}");
    let job = JobProxy::builder(&connection).path("/org/spsagent/slots1/job/1").build().await.unwrap();
    let (name, _) = refusal(job.cancel().await);
    assert_eq!(name, "org.freedesktop.DBus.Error.UnknownObject");
}

#[tokio::test]
async fn a_lost_state_is_in_the_taint_record_and_so_is_its_reset() {
    let mut appliance = appliance().unwrap();
    let connection = appliance.connect().await.unwrap();
    let manager = ManagerProxy::new(&connection).await.unwrap();
    let taint = Taint1Proxy::new(&connection).await.unwrap();
    // Nothing has happened, and nothing was written.
    assert_eq!((manager.taint_count().await.unwrap(), taint.list(0, 9).await.unwrap()), (0, Vec::new()));
    appliance.stop_slotd().unwrap();
    let settings = appliance.path("slotd.toml");
    let text = std::fs::read_to_string(&settings).unwrap();
    std::fs::write(&settings, format!("data = {:?}\n{text}", appliance.path("data"))).unwrap();
    std::fs::create_dir(appliance.path("data")).unwrap();
    let state = std::fs::metadata(appliance.path("state")).unwrap().len();
    std::fs::write(appliance.path("state"), vec![0; usize::try_from(state).unwrap()]).unwrap();
    for _ in 0..2 {
        appliance.start_slotd().unwrap();
        let records = taint.list(0, 9).await.unwrap();
        let told: Vec<_> =
            records.iter().map(|record| (record.1.as_str(), record.2.as_str(), record.4)).collect();
        assert_eq!(told, [("state-lost", "state", 1)]);
        assert_eq!(manager.taint_count().await.unwrap(), 1);
        appliance.stop_slotd().unwrap();
    }
    appliance.start_slotd().unwrap();
    let mut changes = taint.receive_changed().await.unwrap();
    manager.reset_state("in a test").await.unwrap();
    let told = tokio::time::timeout(std::time::Duration::from_secs(20), changes.next()).await.unwrap();
    assert!(told.is_some());
    let records = taint.list(1, 9).await.unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].1.as_str(), records[0].3.as_str(), records[0].4), ("state-reset", "in a test", 2));
    assert_eq!((manager.taint_count().await.unwrap(), taint.list(2, 9).await.unwrap()), (2, Vec::new()));
    // The log is gone: that is not an empty one.
    appliance.stop_slotd().unwrap();
    std::fs::remove_dir_all(appliance.path("data/taint")).unwrap();
    appliance.start_slotd().unwrap();
    assert_eq!(manager.taint_count().await.unwrap(), 3);
    assert_eq!(taint.list(0, 9).await.unwrap()[0].1, "log-lost");
}
