//! Jobs as a client sees them: started, shown, signalled, cancelled, limited; and the daemon's own life.
#![expect(clippy::unwrap_used, reason = "a broken test bench fails here")]

use std::collections::HashMap;
use std::io::PipeWriter;

use futures_util::StreamExt;
use sps_base::dbus::{JobProxy, ManagerProxy, SLOTS1_NAME, SLOTS1_PATH};
use system_tests::bus::{Appliance, DEADLINE, Layout};
use system_tests::firmware::Workshop;
use zbus::fdo::{ObjectManagerProxy, PropertiesProxy};
use zbus::names::InterfaceName;
use zbus::wire::{OwnedObjectPath, OwnedVariant, Variant};

const JOB: &str = "org.spsagent.Slots1.Job";

/// One that trusts a keyring, as an install needs it.
fn appliance() -> anyhow::Result<Appliance> {
    let keyring = Some(Workshop::shared()?.keyring());
    Appliance::with(Layout { keyring, ..Layout::default() })
}

/// Starts an install whose image has no byte yet.
async fn install(connection: &zbus::Connection, slot: u32) -> zbus::Result<(OwnedObjectPath, PipeWriter)> {
    let (image, rest) = std::io::pipe().unwrap();
    let manager = ManagerProxy::new(connection).await?;
    let options = HashMap::from([("slot", Variant::from(slot))]);
    let job = manager.install(std::os::fd::OwnedFd::from(image).into(), options).await?;
    Ok((job, rest))
}

fn error_name<T: std::fmt::Debug>(result: zbus::Result<T>) -> String {
    match result.unwrap_err() {
        zbus::Error::MethodError(name, _, _) => name.to_string(),
        other => other.to_string(),
    }
}

async fn properties<'a>(connection: &'a zbus::Connection, path: &'a OwnedObjectPath) -> PropertiesProxy<'a> {
    PropertiesProxy::builder(connection).destination(SLOTS1_NAME).path(path).build().await.unwrap()
}

async fn all(connection: &zbus::Connection, path: &OwnedObjectPath) -> HashMap<String, OwnedVariant> {
    let object = properties(connection, path).await;
    object.get_all(InterfaceName::try_from(JOB).unwrap()).await.unwrap()
}

fn text(properties: &HashMap<String, OwnedVariant>, name: &str) -> String {
    properties[name].try_clone().unwrap().try_into().unwrap()
}

/// Waits for the signal that tells the end of a job; answers its state and error name.
async fn end(connection: &zbus::Connection, path: &OwnedObjectPath) -> (String, String) {
    let object = properties(connection, path).await;
    let mut changes = object.receive_properties_changed().await.unwrap();
    // Subscribed first, then looked: an end in between is not missed.
    loop {
        let now = all(connection, path).await;
        if text(&now, "State") != "running" {
            let (name, _): (String, String) = now["Error"].try_clone().unwrap().try_into().unwrap();
            return (text(&now, "State"), name);
        }
        tokio::time::timeout(DEADLINE, changes.next()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_job_is_announced_shown_cancelled_and_stays_listed() {
    let appliance = appliance().unwrap();
    let connection = appliance.connect().await.unwrap();
    let objects = ObjectManagerProxy::builder(&connection).destination(SLOTS1_NAME).path(SLOTS1_PATH);
    let objects = objects.build().await.unwrap();
    let mut added = objects.receive_interfaces_added().await.unwrap();
    let (path, _image) = install(&connection, 1).await.unwrap();
    let signal = tokio::time::timeout(DEADLINE, added.next()).await.unwrap().unwrap();
    assert_eq!(signal.args().unwrap().object_path().as_str(), path.as_str());

    let shown = all(&connection, &path).await;
    assert_eq!(text(&shown, "State"), "running");
    assert_eq!(text(&shown, "Kind"), "install");
    assert_eq!(text(&shown, "Sender"), connection.unique_name().unwrap().as_str());
    assert_eq!(u32::try_from(&shown["Slot"]).unwrap(), 1);
    assert!(u64::try_from(&shown["StartedAt"]).unwrap() > 1_600_000_000);
    assert_eq!(u64::try_from(&shown["FinishedAt"]).unwrap(), 0);

    let job = JobProxy::builder(&connection).path(&path).build().await.unwrap();
    job.cancel().await.unwrap();
    let ended = end(&connection, &path).await;
    assert_eq!(ended, ("cancelled".to_owned(), "org.spsagent.Error.Cancelled".to_owned()));
    assert_eq!(error_name(job.cancel().await), "org.spsagent.Error.InvalidArgument");
    assert!(u64::try_from(&all(&connection, &path).await["FinishedAt"]).unwrap() > 1_600_000_000);
    // The slot is free again.
    install(&connection, 1).await.unwrap();
}

#[tokio::test]
async fn an_image_that_ends_at_once_fails_its_job() {
    let appliance = appliance().unwrap();
    let connection = appliance.connect().await.unwrap();
    let (path, image) = install(&connection, 2).await.unwrap();
    drop(image);
    let ended = end(&connection, &path).await;
    assert_eq!(ended, ("failed".to_owned(), "org.spsagent.Error.MediaCorrupt".to_owned()));
}

#[tokio::test]
async fn one_install_at_a_time() {
    let appliance = appliance().unwrap();
    let connection = appliance.connect().await.unwrap();
    let (path, image) = install(&connection, 1).await.unwrap();
    for slot in [1, 2] {
        assert_eq!(error_name(install(&connection, slot).await), "org.spsagent.Error.SlotBusy");
    }
    drop(image);
    assert_eq!(end(&connection, &path).await.0, "failed");
    install(&connection, 2).await.unwrap();
}

#[tokio::test]
async fn another_user_may_not_cancel() {
    let appliance = appliance().unwrap();
    let connection = appliance.connect().await.unwrap();
    let (path, _image) = install(&connection, 1).await.unwrap();
    let output = appliance.call_as_nobody(&path, "org.spsagent.Slots1.Job.Cancel", &[]).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("org.spsagent.Error.NotAuthorized"), "{errors}");
    assert_eq!(text(&all(&connection, &path).await, "State"), "running");
}

#[tokio::test]
async fn a_stop_cancels_jobs_tells_it_and_ends_with_success() {
    let mut appliance = appliance().unwrap();
    let connection = appliance.connect().await.unwrap();
    let (_path, _image) = install(&connection, 1).await.unwrap();
    let (mut appliance, status) = tokio::task::spawn_blocking(move || {
        let status = appliance.stop_slotd().unwrap();
        (appliance, status)
    })
    .await
    .unwrap();
    assert!(status.success(), "{status}\n{}", appliance.log());
    assert!(appliance.log().contains("cancelled"), "{}", appliance.log());
    appliance.wait_notified("STOPPING=1").unwrap();
    appliance.start_slotd().unwrap();
}

#[test]
fn the_watchdog_is_fed_while_the_loop_turns() {
    let environment = vec![("WATCHDOG_USEC".to_owned(), "200000".to_owned())];
    let mut appliance = Appliance::with(Layout { environment, ..Layout::default() }).unwrap();
    appliance.wait_notified("WATCHDOG=1").unwrap();
    appliance.wait_notified("WATCHDOG=1").unwrap();
}

#[test]
fn a_lost_bus_ends_the_daemon_with_an_error() {
    let mut appliance = appliance().unwrap();
    appliance.stop_bus().unwrap();
    let status = appliance.wait_slotd_end().unwrap();
    assert_eq!(status.code(), Some(1), "{}", appliance.log());
    assert!(appliance.log().contains("is closed"), "{}", appliance.log());
}

#[test]
fn a_wrong_configuration_stops_the_start_and_names_the_key() {
    let mut appliance = Appliance::without_slotd(Layout::default()).unwrap();
    std::fs::write(appliance.path("slotd.toml"), "compatible = \"sps\"\nrecycle = true\n").unwrap();
    let error = appliance.start_slotd().unwrap_err().to_string();
    assert!(error.contains("recycle") && error.contains("slotd.toml"), "{error}");
}
