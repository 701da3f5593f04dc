//! The worst days: firmware that starts and never says it is well, lost settings, lost images, lost state.

use std::fs;

use system_tests::bus::Appliance;
use system_tests::client::Client;
use system_tests::loader::environment::Loss;
use system_tests::loader::{Mishaps, Outcome};

use crate::{appliance, firmware, install, pick, select, selected, upgraded, with_both};

fn lose(loss: Loss) -> Mishaps {
    Mishaps { lose: Some(loss), ..Mishaps::default() }
}

fn boots(appliance: &Appliance, slot: u32) -> u32 {
    let state = appliance.state().unwrap().unwrap();
    state.boots.iter().find(|(id, _)| id.get() == slot).map_or(0, |(_, count)| *count)
}

/// Starts the default three times without a word from it; the next start is another's.
fn default_dies(appliance: &mut Appliance) {
    for count in 1..=3 {
        let report = appliance.restart().unwrap();
        assert_eq!((report.running(), report.entries()), (Some(1), vec!["sps-slot-1"]));
        assert_eq!(boots(appliance, 1), count);
    }
    let report = appliance.restart().unwrap();
    assert_eq!(report.entries(), ["sps-slot-1", "sps-slot-2"], "{report:?}");
    assert_eq!(report.codes(), [Some(10), Some(0)]);
    assert!(report.starts[0].said.contains("too often"), "{report:?}");
    assert_eq!((report.running(), report.starts[1].trial), (Some(2), true));
}

#[tokio::test]
async fn a_default_that_never_says_it_is_well_gives_way_to_the_other_firmware() {
    let (mut appliance, client) = with_both().await;
    default_dies(&mut appliance);
    assert_eq!(client.selection().await, (2, 1, 1, true, false, 1));
    let last = client.last_upgrade().await;
    assert_eq!((last.text("outcome"), last.text("kind")), ("trial".into(), "fallback".into()));
    assert_eq!(last.text("who"), "slotboot");
    assert!(last.text("message").contains("slot 1 was started 3 times"), "{last:?}");
    client.confirm().await.unwrap();
    assert_eq!(client.selection().await, (2, 2, 2, false, true, 1));
    assert_eq!(client.outcome().await.0, "confirmed");
    assert_eq!(appliance.restart().unwrap().running(), Some(2));
}

#[tokio::test]
async fn a_sign_of_health_sets_the_count_back() {
    let (mut appliance, client) = with_both().await;
    for _ in 0..5 {
        assert_eq!(appliance.restart().unwrap().running(), Some(1));
        client.confirm().await.unwrap();
        assert_eq!(boots(&appliance, 1), 0);
    }
}

#[tokio::test]
async fn when_neither_firmware_is_well_recovery_starts_and_stays() {
    let (mut appliance, client) = with_both().await;
    default_dies(&mut appliance);
    for _ in 0..2 {
        let report = appliance.restart().unwrap();
        assert_eq!(report.entries(), ["sps-slot-1", "sps-recovery"], "{report:?}");
        assert_eq!(report.outcome, Outcome::Recovery);
        assert_eq!(client.manager().await.get::<u32>("Booted"), 0);
    }
    let (outcome, reason) = client.outcome().await;
    assert!(outcome == "failed" && reason.contains("slot 1 was started 3 times"), "{outcome}: {reason}");
    // By hand too: it has had its chances.
    let report = appliance.restart_with(&pick("sps-slot-1")).unwrap();
    assert_eq!(report.outcome, Outcome::Recovery, "{report:?}");
    // Whoever has removed the cause selects it again from there.
    select(&client, 1).await;
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
    client.confirm().await.unwrap();
    assert_eq!(client.selection().await, (1, 1, 1, false, true, 0));
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
}

#[tokio::test]
async fn a_pick_in_the_menu_is_told_and_never_becomes_the_default() {
    let (mut appliance, client) = with_both().await;
    let report = appliance.restart_with(&pick("sps-slot-2")).unwrap();
    assert_eq!((report.running(), report.starts[0].trial), (Some(2), false));
    assert_eq!(client.selection().await, (2, 1, 1, false, false, 1));
    assert!(
        client.warnings().await.contains("no trial: it was started by hand"),
        "{}",
        client.warnings().await
    );
    assert!(!client.last_upgrade().await.has("outcome"));
    assert_eq!(client.reject("no").await.unwrap_err().name, "InvalidArgument");
    assert_eq!(boots(&appliance, 2), 1);
    client.confirm().await.unwrap();
    assert_eq!(boots(&appliance, 2), 0);
    assert_eq!(client.selection().await, (2, 1, 1, false, false, 1));
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
}

#[tokio::test]
async fn lost_settings_are_written_again() {
    for loss in [Loss::Zeros, Loss::Garbage, Loss::Settings] {
        let (mut appliance, client) = with_both().await;
        // The loader takes what it finds first, which is not what was confirmed.
        let report = appliance.restart_with(&lose(loss)).unwrap();
        assert_eq!((report.running(), report.starts[0].chosen_by.as_str()), (Some(2), "highest"), "{loss:?}");
        assert_eq!(client.selection().await, (2, 1, 1, false, false, 1), "{loss:?}");
        assert_eq!(appliance.grubenv("saved_entry").unwrap(), "sps-slot-1");
        assert_eq!(appliance.reboot().unwrap().running(), Some(1));
        assert_eq!(client.selection().await, (1, 1, 1, false, true, 2));
        assert_eq!(client.warnings().await, "");
    }
}

#[tokio::test]
async fn a_selection_that_is_lost_with_the_settings_is_told_at_once() {
    let (mut appliance, client) = upgraded().await;
    for loss in [Loss::Zeros, Loss::Garbage, Loss::Settings] {
        select_older(&client).await;
        // The highest name is the default here.
        assert_eq!(appliance.restart_with(&lose(loss)).unwrap().running(), Some(2));
        assert_eq!(client.selection().await, (2, 2, 2, false, true, 1), "{loss:?}");
        let (outcome, reason) = client.outcome().await;
        assert!(
            outcome == "failed" && reason.contains("it was not started"),
            "{loss:?}: {outcome}, {reason}"
        );
    }
}

#[tokio::test]
async fn a_selection_that_starts_although_the_settings_are_lost_is_its_trial() {
    for loss in [Loss::Zeros, Loss::Garbage, Loss::Settings] {
        let (mut appliance, client) = selected().await;
        let report = appliance.restart_with(&lose(loss)).unwrap();
        assert_eq!((report.running(), report.starts[0].chosen_by.as_str()), (Some(2), "highest"));
        assert!(report.starts[0].trial);
        assert_eq!(client.selection().await, (2, 1, 1, true, false, 1), "{loss:?}");
        client.confirm().await.unwrap();
        assert_eq!(client.selection().await, (2, 2, 2, false, true, 1), "{loss:?}");
        assert_eq!(appliance.reboot().unwrap().running(), Some(2));
    }
}

async fn select_older(client: &Client) {
    client.revert("try the older one", &[]).await.unwrap();
    assert_eq!(client.selection().await.2, 1);
}

#[tokio::test]
async fn a_lost_boot_image_of_the_default_leads_to_recovery_which_puts_it_back() {
    let (mut appliance, client) = with_both().await;
    appliance.power_cut().unwrap();
    assert!(appliance.lose_boot_image("sps-slot-1.efi").unwrap());
    let report = appliance.power_on(&Mishaps::default()).unwrap();
    assert_eq!((report.outcome, report.entries()), (Outcome::Recovery, vec!["sps-slot-1"]));
    assert!(report.reason.contains("no such boot image"), "{}", report.reason);
    assert_eq!(client.word(1).await, "verified");
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
    assert_eq!(client.selection().await, (1, 1, 1, false, true, 2));
}

#[tokio::test]
async fn the_recovery_image_is_listed_verified_and_neither_tested_nor_deleted() {
    let (appliance, client) = appliance().await;
    let shown = client.slot(0).await;
    assert_eq!((shown.text("State"), shown.text("Version")), ("verified".to_owned(), "8.0.1".to_owned()));
    assert_eq!(client.verified(0, "full").await.text("State"), "done");
    for refusal in [client.test(0, &[]).await.map(drop), client.activate(0, "").await, client.delete(0).await]
    {
        let refusal = refusal.unwrap_err();
        assert_eq!(refusal.name, "InvalidArgument", "{}", refusal.message);
    }
    // One bit of it flips.
    let image = appliance.path("esp/EFI/Linux/sps-recovery-8.0.1.efi");
    let mut bytes = fs::read(&image).unwrap();
    bytes[4097] ^= 1;
    fs::write(&image, bytes).unwrap();
    let job = client.verified(0, "quick").await;
    assert_eq!(job.ended().0, "failed", "{job:?}");
    assert_eq!(job.error().name, "SlotBad");
    assert_eq!(client.word(0).await, "bad");
}

#[tokio::test]
async fn without_recovery_too_the_other_firmware_puts_a_lost_boot_image_back() {
    let (mut appliance, client) = with_both().await;
    appliance.power_cut().unwrap();
    assert!(appliance.lose_boot_image("sps-slot-1.efi").unwrap());
    assert!(appliance.lose_boot_image("sps-recovery-8.0.1.efi").unwrap());
    let report = appliance.power_on(&Mishaps::default()).unwrap();
    assert_eq!(report.outcome, Outcome::Nothing, "{report:?}");
    let report = appliance.power_on(&pick("sps-slot-2")).unwrap();
    assert_eq!(report.running(), Some(2));
    assert_eq!(client.selection().await, (2, 1, 1, false, false, 1));
    assert_eq!((client.word(1).await, client.word(0).await), ("verified".into(), "verified".into()));
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
}

#[tokio::test]
async fn with_a_lost_state_boot_goes_on_and_a_reset_adopts_the_default() {
    let (mut appliance, client) = selected().await;
    appliance.power_cut().unwrap();
    appliance.lose_state().unwrap();
    // What was selected starts, as the loader was told; nobody knows any more that it is a trial.
    let report = appliance.power_on(&Mishaps::default()).unwrap();
    assert_eq!((report.running(), report.starts[0].trial), (Some(2), false));
    assert_eq!(client.selection().await, (2, 1, 1, false, false, 1));
    assert!(client.warnings().await.contains("The state is lost"), "{}", client.warnings().await);
    assert_eq!(client.confirm().await.unwrap_err().name, "Device");
    assert_eq!(appliance.state().unwrap(), None);
    for _ in 0..4 {
        assert_eq!(appliance.restart().unwrap().running(), Some(1));
    }
    assert_eq!(appliance.state().unwrap(), None);
    assert_eq!(client.activate(2, "").await.unwrap_err().name, "Device");
    client.reset_state("the state partition was replaced").await.unwrap();
    assert_eq!(client.selection().await, (1, 1, 1, false, true, 2));
    assert_eq!(client.warnings().await, "");
    select(&client, 2).await;
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
}

#[tokio::test]
async fn a_reset_in_what_is_not_the_default_adopts_nothing() {
    let (mut appliance, client) = with_both().await;
    appliance.power_cut().unwrap();
    appliance.lose_state().unwrap();
    assert_eq!(appliance.power_on(&pick("sps-slot-2")).unwrap().running(), Some(2));
    client.reset_state("a test").await.unwrap();
    assert_eq!(client.selection().await, (2, 1, 1, false, false, 1));
    // The default confirms itself when it runs.
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
    assert!(!client.manager().await.get::<bool>("Confirmed"));
    assert!(client.warnings().await.contains("not confirmed yet"), "{}", client.warnings().await);
    client.confirm().await.unwrap();
    assert_eq!(client.selection().await, (1, 1, 1, false, true, 2));
}

/// Found by fuzzing: an operator had to mend the settings by hand.
#[tokio::test]
async fn a_reset_makes_settings_anew_that_cannot_be_read() {
    for loss in [Loss::Zeros, Loss::Garbage] {
        let (mut appliance, client) = appliance().await;
        appliance.power_cut().unwrap();
        appliance.lose_state().unwrap();
        assert_eq!(appliance.power_on(&lose(loss)).unwrap().running(), Some(1));
        assert!(client.warnings().await.contains("settings cannot be used"), "{}", client.warnings().await);
        client.reset_state("both were lost").await.unwrap();
        assert_eq!(client.selection().await, (1, 1, 1, false, true, 0), "{loss:?}");
        assert_eq!(appliance.grubenv("saved_entry").unwrap(), "sps-slot-1");
        assert_eq!(client.warnings().await, "");
        install(&client, &firmware("8.0.2"), 2).await;
    }
}

#[tokio::test]
async fn a_damaged_default_panics_until_slotboot_starts_the_other_one() {
    let (mut appliance, client) = with_both().await;
    appliance.power_cut().unwrap();
    crate::flip(&appliance.path("slot-1"), 1 << 20);
    for _ in 0..3 {
        let report = appliance.power_on(&Mishaps::default()).unwrap();
        assert_eq!((report.outcome, report.entries()), (Outcome::Panic, vec!["sps-slot-1"]));
    }
    let report = appliance.power_on(&Mishaps::default()).unwrap();
    assert_eq!((report.running(), report.entries()), (Some(2), vec!["sps-slot-1", "sps-slot-2"]));
    client.confirm().await.unwrap();
    assert_eq!(client.selection().await, (2, 2, 2, false, true, 1));
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
    let job = client.verified(1, "full").await;
    assert_eq!(job.ended(), ("failed".into(), "SlotBad".into()));
    assert_eq!(client.manager().await.get::<u32>("Fallback"), 0);
}

#[tokio::test]
async fn with_one_firmware_only_a_default_that_dies_ends_in_recovery() {
    let (mut appliance, client) = appliance().await;
    for _ in 0..3 {
        assert_eq!(appliance.restart().unwrap().running(), Some(1));
    }
    let report = appliance.restart().unwrap();
    assert_eq!((report.outcome, report.entries()), (Outcome::Recovery, vec!["sps-slot-1", "sps-recovery"]));
    // From recovery another firmware is installed.
    install(&client, &firmware("8.0.2"), 2).await;
}

#[tokio::test]
async fn from_recovery_a_damaged_default_is_replaced() {
    let (mut appliance, client) = appliance().await;
    appliance.power_cut().unwrap();
    crate::flip(&appliance.path("slot-1"), 1 << 20);
    for _ in 0..3 {
        assert_eq!(appliance.power_on(&Mishaps::default()).unwrap().outcome, Outcome::Panic);
    }
    assert_eq!(appliance.power_on(&Mishaps::default()).unwrap().outcome, Outcome::Recovery);
    assert_eq!(client.verified(1, "full").await.ended(), ("failed".into(), "SlotBad".into()));
    let over = [("slot", 1_u32.into()), ("repair", true.into())];
    let job = client.install_file(&firmware("8.0.1").iso, &over).await;
    assert_eq!(job.ended(), ("done".to_owned(), String::new()), "{:?}", job.error());
    // Its count stands; a selection begins a new one.
    select(&client, 1).await;
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
    client.confirm().await.unwrap();
    assert_eq!(client.selection().await, (1, 1, 1, false, true, 0));
}
