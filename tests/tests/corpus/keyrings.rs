//! The keyring of the running firmware and its clock, through the whole engine.

use std::path::Path;
use std::process::Command;

use slotd::store::{InstallRequest, SlotWord, Store, Trust};
use sps_base::error::ErrorKind;
use sps_images::Pki;
use system_tests::lab::{KeyringFiles, read_keyring};

use crate::firmware::{Firmware, NOW, sign, stage};
use crate::judge::{Bench, install, memory};

const YEAR: u64 = 365 * 86_400;

/// The appliance with slot 2 filled, started again with this keyring and clock.
fn restarted(keyring: Result<KeyringFiles, String>, now: fn() -> u64) -> Bench {
    let filled = Bench::new();
    install(&filled.store, memory(&stage().iso), &InstallRequest::default()).unwrap();
    Bench::on(filled.recorder.media(), |all, _| {
        all.keyring = keyring.map(|(roots, crls)| Trust::Files(roots, crls));
        all.environment.now = now;
    })
}

fn words(store: &Store) -> Vec<SlotWord> {
    store.slots().iter().filter(|view| view.id.get() > 0).map(|view| view.state).collect()
}

fn keyring() -> KeyringFiles {
    read_keyring(&stage().pki().keyring_dir()).unwrap()
}

/// 8.0.3, over what slot 2 holds.
fn next(bench: &Bench, firmware: &Firmware) -> Result<(), slotd::store::Failure> {
    let request = InstallRequest { replace: true, ..InstallRequest::default() };
    install(&bench.store, memory(&firmware.iso()), &request).map(drop)
}

/// Refused as `Untrusted` in these words, and nothing was written.
fn refuses(bench: &Bench, firmware: &Firmware, text: &str) {
    let before = (bench.recorder.log().len(), bench.recorder.media().digest());
    let failure = next(bench, firmware).unwrap_err();
    assert!(
        failure.kind == ErrorKind::Untrusted && failure.message.contains(text),
        "{failure:?}, not {text:?}"
    );
    assert_eq!((bench.recorder.log().len(), bench.recorder.media().digest()), before);
}

/// CRLs of root and intermediate, made at `from` (YYMMDD), the intermediate's with these serial numbers.
fn lists(pki: &Path, from: &str, revoked: &[u32]) -> Vec<(String, Vec<u8>)> {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let make = |issuer: &str, certificate: &Path, revoked: &[u32]| {
        let line = |serial: &u32| format!("R\t450101000000Z\t{from}000000Z\t{serial:02X}\tunknown\t/CN=x\n");
        std::fs::write(path("index"), revoked.iter().map(line).collect::<String>()).unwrap();
        std::fs::write(path("number"), "05\n").unwrap();
        let config = format!(
            "[ca]\ndefault_ca=x\n[x]\ndatabase={}\ncrlnumber={}\ndefault_md=sha256\ncrl_extensions=e\n[e]\nauthorityKeyIdentifier=keyid\n",
            path("index").display(),
            path("number").display()
        );
        std::fs::write(path("cnf"), config).unwrap();
        let out = Command::new("openssl")
            .args([
                "ca",
                "-gencrl",
                "-crl_lastupdate",
                &format!("{from}000000Z"),
                "-crl_nextupdate",
                "440101000000Z",
            ])
            .arg("-config")
            .arg(path("cnf"))
            .arg("-keyfile")
            .arg(pki.join(format!("{issuer}.key")))
            .arg("-cert")
            .arg(certificate)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        (format!("{issuer}.crl"), out.stdout)
    };
    let root = make("root", &pki.join("keyring/root.pem"), &[]);
    vec![root, make("intermediate", &pki.join("intermediate.pem"), revoked)]
}

#[test]
fn lists_made_after_an_install_leave_its_slot_good_and_revoke_its_signer() {
    let pki = stage().path("pki");
    let later = || NOW + YEAR;
    // The lists of a firmware that is newer than what both slots hold.
    let newer = |revoked: &[u32]| Ok((keyring().0, lists(&pki, "260701", revoked)));
    let bench = restarted(newer(&[]), later);
    assert_eq!(words(&bench.store), [SlotWord::Verified, SlotWord::Verified], "the fallback stays one");
    next(&bench, &stage().other).unwrap();
    // The signer is the third certificate of this PKI.
    let bench = restarted(newer(&[3]), later);
    assert_eq!(words(&bench.store), [SlotWord::Bad, SlotWord::Bad]);
    assert!(bench.store.slots()[2].reason.contains("revoked"), "{}", bench.store.slots()[2].reason);
    // Nothing runs that the keyring trusts, so no slot is spared from being the running one: nothing is written.
    let failure = next(&bench, &stage().other).unwrap_err();
    println!("{failure:?}");
    assert!(
        [ErrorKind::Untrusted, ErrorKind::SlotInUse, ErrorKind::NoEmptySlot].contains(&failure.kind),
        "{failure:?}"
    );
}

#[test]
fn a_dead_clock_is_floored_by_what_runs_and_a_clock_of_the_future_trusts_nothing_new() {
    // 1970: the firmware that runs was built in 2026, so it is that time at least.
    let dead = restarted(Ok(keyring()), || 0);
    assert_eq!(words(&dead.store), [SlotWord::Verified, SlotWord::Verified]);
    next(&dead, &stage().other).unwrap();
    dead.assert_installed(&stage().other, "dead clock");
    let far = restarted(Ok(keyring()), || NOW + 100 * YEAR);
    assert_eq!(words(&far.store), [SlotWord::Verified, SlotWord::Verified], "what is there stays good");
    refuses(&far, &stage().other, "no root of the keyring is valid at 2126");
}

#[test]
fn a_keyring_that_is_none_trusts_nothing_and_changes_nothing() {
    let root = keyring().0.remove(0);
    let cases: [(&str, Result<KeyringFiles, String>, &str); 5] = [
        ("empty", Ok((vec![], vec![])), "the keyring has no root certificate"),
        ("unreadable", Err("keyring /etc/slotd/keyring: Permission denied".into()), "Permission denied"),
        (
            "no certificate",
            Ok((vec![("x.pem".into(), b"x".to_vec())], vec![])),
            "keyring file x.pem: found none",
        ),
        ("duplicate", Ok((vec![root.clone(), root.clone()], vec![])), "hold the same root; remove one"),
        ("empty CRL", Ok((vec![root], vec![("x.crl".into(), vec![])])), "keyring file x.crl: found none"),
    ];
    for (name, keyring, text) in cases {
        let bench = restarted(keyring, || NOW);
        assert_eq!(words(&bench.store), [SlotWord::Bad, SlotWord::Bad], "{name}");
        refuses(&bench, &stage().other, text);
    }
}

#[test]
fn a_firmware_that_adds_a_root_and_one_that_drops_it() {
    let second = Pki::open_or_create(stage().path("second-pki"), "second").unwrap();
    let manifest = stage().other.manifest.render();
    let signature = sign(&second, manifest.as_bytes());
    let under_new = stage().other.with_file("manifest.p7s", signature);
    let (old, new) = (keyring(), read_keyring(&second.keyring_dir()).unwrap());
    let both = ([&old.0[..], &new.0].concat(), [&old.1[..], &new.1].concat());
    // The keyring of what runs counts.
    let bench = restarted(Ok(old), || NOW);
    refuses(&bench, &under_new, "has no chain to a trusted root");
    let bench = restarted(Ok(both), || NOW);
    assert_eq!(words(&bench.store), [SlotWord::Verified, SlotWord::Verified]);
    next(&bench, &under_new).unwrap();
    assert_eq!(words(&bench.store), [SlotWord::Verified, SlotWord::Verified]);
    // The firmware that drops the old root runs from slot 2: what the old root signed is no way back.
    let hash = under_new.manifest.root.verity.root_hash;
    let bench = Bench::on(bench.recorder.media(), |all, _| {
        all.keyring = Ok(Trust::Files(new.0, new.1));
        all.environment.cmdline = format!("quiet roothash={hash} ro");
    });
    assert_eq!(words(&bench.store), [SlotWord::Bad, SlotWord::Verified]);
    let reason = &bench.store.slots()[1].reason;
    assert!(reason.contains("untrusted") && reason.contains("no chain to a trusted root"), "{reason}");
}
