//! The way back to an earlier firmware.

use crate::{firmware, install, layout, select, special, upgraded, with};

#[tokio::test]
async fn a_revert_is_a_trial_of_the_earlier_firmware() {
    let (mut appliance, client) = upgraded().await;
    client.revert("the new one is slow", &[]).await.unwrap();
    assert_eq!(client.selection().await, (2, 2, 1, false, true, 1));
    let last = client.last_upgrade().await;
    for (name, value) in [
        ("outcome", "selected"),
        ("kind", "revert"),
        ("version", "8.0.1"),
        ("from_version", "8.0.2"),
        ("message", "the new one is slow"),
    ] {
        assert_eq!(last.text(name), value, "{name}");
    }
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
    assert_eq!(client.selection().await, (1, 2, 2, true, false, 2));
    // Not confirmed: the newer one is back.
    assert_eq!(appliance.restart().unwrap().running(), Some(2));
    assert_eq!(client.outcome().await.0, "failed");

    client.revert("again", &[("slot", 1_u32.into())]).await.unwrap();
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
    client.confirm().await.unwrap();
    assert_eq!(client.selection().await, (1, 1, 1, false, true, 2));
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
}

#[tokio::test]
async fn a_revert_names_the_configuration_that_comes_back() {
    let (mut appliance, client) = upgraded().await;
    let old = firmware("8.0.1").manifest.root.verity.root_hash.to_string();
    crate::write_head(&appliance, &old, "000007");
    // A reboot shows it; nobody tells slotd of a new revision.
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
    let date = client.slot(1).await.text("Configuration");
    assert!(date.ends_with('Z') && date.len() == 20, "{date:?}");
    assert_eq!(client.slot(2).await.text("Configuration"), "");

    let refusal = client.revert("slow", &[]).await.unwrap_err();
    assert_eq!(refusal.name, "InvalidArgument");
    let day = &date[..10];
    assert!(
        refusal.message.contains(&date) && refusal.message.contains("accept_config"),
        "{}",
        refusal.message
    );
    let other = client.revert("slow", &[("accept_config", "2020-01-01".into())]).await.unwrap_err();
    assert_eq!(other.name, "InvalidArgument", "{}", other.message);
    assert_eq!(client.selection().await.2, 2);
    client.revert("slow", &[("accept_config", day.to_owned().into())]).await.unwrap();
    assert_eq!(client.selection().await.2, 1);
    client.deactivate(1).await.unwrap();
    client.revert("slow", &[("accept_config", date.clone().into())]).await.unwrap();
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
    client.confirm().await.unwrap();
    assert_eq!(client.manager().await.get::<u32>("Default"), 1);
}

#[tokio::test]
async fn a_firmware_may_forbid_the_way_back_below_an_epoch() {
    let newer = special("revoking", "8.0.2", |spec| (spec.security_epoch, spec.revoked_below) = (2, 2));
    let (mut appliance, client) = with(layout(), &firmware("8.0.1")).await;
    install(&client, &newer, 2).await;
    select(&client, 2).await;
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
    client.confirm().await.unwrap();
    let refusal = client.revert("slow", &[]).await.unwrap_err();
    assert_eq!(refusal.name, "EpochTooOld");
    assert!(refusal.message.contains("takes nothing below 2 back"), "{}", refusal.message);
    // The floor has risen with it.
    assert_eq!(client.manager().await.get::<u32>("SecurityEpoch"), 2);
    client.delete(1).await.unwrap();
    let job = client.install_file(&firmware("8.0.3").iso, &[]).await;
    assert_eq!(job.ended(), ("failed".into(), "EpochTooOld".into()));
}

#[tokio::test]
async fn an_epoch_alone_does_not_forbid_it() {
    let newer = special("epoch", "8.0.2", |spec| spec.security_epoch = 2);
    let (mut appliance, client) = with(layout(), &firmware("8.0.1")).await;
    install(&client, &newer, 2).await;
    select(&client, 2).await;
    assert_eq!(appliance.reboot().unwrap().running(), Some(2));
    client.confirm().await.unwrap();
    client.revert("slow", &[]).await.unwrap();
    assert_eq!(appliance.reboot().unwrap().running(), Some(1));
    client.confirm().await.unwrap();
    assert_eq!(client.selection().await, (1, 1, 1, false, true, 2));
    assert_eq!(client.manager().await.get::<u32>("SecurityEpoch"), 2);
}
