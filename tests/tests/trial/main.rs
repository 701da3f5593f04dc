//! From one firmware to the next and back, over real processes: slotd, slotboot, the bus, GRUB's tool, veritysetup, and a
//! simulated loader that reads only what a loader could.
#![expect(clippy::unwrap_used, reason = "a broken test bench fails here")]

mod counting;
mod loader;
mod refusals;
mod revert;
mod slotboot;
mod upgrade;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use sps_images::{Built, FirmwareSpec};
use system_tests::bus::{Appliance, Layout};
use system_tests::client::Client;
use system_tests::firmware::Workshop;
use system_tests::loader::{Cut, Mishaps};

/// A bootable firmware of this version, built once.
fn firmware(version: &str) -> Built {
    special(version, version, |_| {})
}

/// The same, changed.
fn special(name: &str, version: &str, change: impl FnOnce(&mut FirmwareSpec)) -> Built {
    let build = |workshop: &Workshop| {
        let mut spec = workshop.spec(version, 2)?;
        change(&mut spec);
        workshop.build_bootable(&spec, &format!("boot-{name}.iso"))
    };
    Workshop::shared().unwrap().once(name, build).unwrap()
}

fn layout() -> Layout {
    let keyring = Some(Workshop::shared().unwrap().keyring());
    Layout { keyring, slot_size: 16 << 20, ..Layout::default() }
}

/// 8.0.1 runs from slot 1 and is confirmed; slot 2 is empty.
async fn appliance() -> (Appliance, Client) {
    with(layout(), &firmware("8.0.1")).await
}

async fn with(layout: Layout, running: &Built) -> (Appliance, Client) {
    let appliance = Appliance::installed(layout, &running.iso).unwrap();
    let client = Client::of(&appliance).await;
    assert_eq!(client.selection().await, (1, 1, 1, false, true, 0));
    (appliance, client)
}

/// The same with 8.0.2 in slot 2.
async fn with_both() -> (Appliance, Client) {
    let (appliance, client) = appliance().await;
    install(&client, &firmware("8.0.2"), 2).await;
    (appliance, client)
}

/// The same with 8.0.2 tested and selected.
async fn selected() -> (Appliance, Client) {
    let (appliance, client) = with_both().await;
    select(&client, 2).await;
    assert_eq!(client.selection().await, (1, 1, 2, false, true, 0));
    (appliance, client)
}

/// The same with 8.0.2 confirmed in slot 2.
async fn upgraded() -> (Appliance, Client) {
    let (mut appliance, client) = selected().await;
    assert_eq!(appliance.reboot().unwrap().running(), Some(2), "{}", appliance.log());
    client.confirm().await.unwrap();
    assert_eq!(client.selection().await, (2, 2, 2, false, true, 1));
    (appliance, client)
}

async fn install(client: &Client, built: &Built, into: u32) {
    let job = client.install_file(&built.iso, &[]).await;
    assert_eq!(job.ended(), ("done".to_owned(), String::new()), "{:?}", job.error());
    assert_eq!(job.result().get::<u32>("slot"), into);
}

async fn select(client: &Client, slot: u32) {
    let job = client.tested(slot, &[]).await;
    assert_eq!(job.result().get::<i32>("exit_code"), 0, "{job:?}");
    client.activate(slot, "new release").await.unwrap();
}

fn cut(cut: Cut) -> Mishaps {
    Mishaps { cut: Some(cut), ..Mishaps::default() }
}

fn pick(entry: &str) -> Mishaps {
    Mishaps { pick: Some(entry.to_owned()), ..Mishaps::default() }
}

fn locked() -> Mishaps {
    Mishaps { locked: true, ..Mishaps::default() }
}

/// Turns one bit of a file.
fn flip(file: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// Gives the firmware of this root hash a configuration generation whose newest revision is this one.
fn write_head(appliance: &Appliance, root_hash: &str, revision: &str) {
    let generation = appliance.path("configuration").join(root_hash);
    fs::create_dir_all(&generation).unwrap();
    fs::write(generation.join("HEAD"), format!("{revision}\n")).unwrap();
}
