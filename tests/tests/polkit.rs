//! Every verb that changes something × who asks × how polkit is: the real polkitd with the shipped actions and rules.
#![expect(clippy::unwrap_used, reason = "a broken test bench fails here")]

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use sps_base::error::ErrorKind;
use system_tests::bus::{Appliance, Layout, program, wait_for};
use system_tests::firmware::Workshop;
use system_tests::polkitd::{Caller, Polkitd, reachable};

/// Verb, and what `spsctl` is asked for it. None of them can succeed here; the question is only who is heard.
const VERBS: [(&str, &[&str]); 12] = [
    ("install", &["install", "-"]),
    ("repair", &["install", "-", "--slot", "1", "--repair"]),
    ("verify", &["verify", "1"]),
    ("delete", &["delete", "1"]),
    ("test", &["test", "1"]),
    ("activate", &["activate", "1"]),
    ("deactivate", &["deactivate", "1"]),
    ("cancel", &["cancel", "1"]),
    ("revert", &["revert", "--reason", "x"]),
    ("confirm", &["confirm"]),
    ("reject", &["reject", "--reason", "x"]),
    ("reset-state", &["state", "reset", "--reason", "x"]),
];

struct Bench {
    appliance: Appliance,
    spsctl: PathBuf,
    /// An install that waits for its image, so that there is a job to cancel.
    waiting: Child,
}

impl Bench {
    fn new() -> Self {
        let keyring = Some(Workshop::shared().unwrap().keyring());
        let appliance = Appliance::with(Layout { keyring, ..Layout::default() }).unwrap();
        let spsctl = reachable(&program("spsctl").unwrap(), &appliance.path("")).unwrap();
        let mut waiting = Caller::Root.command(&spsctl);
        waiting.args(["--bus", &appliance.address(), "install", "-"]);
        let waiting =
            waiting.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for("a job", || Ok(appliance.log().contains("job 1: install").then_some(()))).unwrap();
        Self { appliance, spsctl, waiting }
    }

    fn polkitd(&self) -> Polkitd {
        Polkitd::start(&self.appliance.address(), &self.appliance.path("")).unwrap()
    }

    /// Which verbs are not refused to each of these callers. All are asked at once: a polkit that does not answer costs
    /// its deadline only once.
    fn heard(&self, callers: &[Caller]) -> Vec<Vec<&'static str>> {
        let ask = |caller: &Caller| VERBS.map(|(verb, words)| (*caller, verb, self.ask(*caller, words)));
        let asked: Vec<_> = callers.iter().map(ask).collect();
        let heard = asked.into_iter().map(|all| {
            let heard = all
                .into_iter()
                .filter_map(|(caller, verb, child)| is_heard(caller, verb, child).then_some(verb));
            heard.collect()
        });
        heard.collect()
    }

    fn ask(&self, caller: Caller, words: &[&str]) -> Child {
        let mut command = caller.command(Path::new(&self.spsctl));
        command.args(["--bus", &self.appliance.address()]).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.waiting.kill();
        let _ = self.waiting.wait();
    }
}

/// Whether slotd has taken the call up: it answers something else than `NotAuthorized`.
fn is_heard(caller: Caller, verb: &str, child: Child) -> bool {
    let output = child.wait_with_output().unwrap();
    let (code, text) = (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned());
    let refused = code == Some(i32::from(ErrorKind::NotAuthorized.exit_code()));
    assert_eq!(refused, text.contains("is not allowed to you"), "{caller:?} {verb}: {code:?} {text}");
    // 2 is a wrong command line, 3 a bus that cannot be reached: nobody was asked.
    assert!(!matches!(code, None | Some(2 | 3)), "{caller:?} {verb} was not asked: {code:?} {text}");
    !refused
}

fn all() -> Vec<&'static str> {
    VERBS.iter().map(|(verb, _)| *verb).collect()
}

#[test]
fn polkit_decides_verb_by_verb() {
    let bench = Bench::new();
    let _polkitd = bench.polkitd();
    let everyday = ["install", "verify", "delete", "test", "activate", "deactivate", "cancel"];
    let agent = [&["install", "repair"], &everyday[1..], &["revert"]].concat();
    let heard = bench.heard(&[Caller::Nobody, Caller::Admin, Caller::Agent, Caller::Root]);
    assert_eq!(
        heard,
        [vec![], everyday.to_vec(), agent, all()],
        "nobody, admin (a repair needs a password), agent, root"
    );
}

#[test]
fn without_a_living_polkit_only_root_is_heard() {
    let bench = Bench::new();
    let polkitd = bench.polkitd();
    polkitd.freeze().unwrap();
    let callers = [Caller::Admin, Caller::Nobody, Caller::Root];
    assert_eq!(bench.heard(&callers), [vec![], vec![], all()], "polkit is slow");
    polkitd.end().unwrap();
    assert_eq!(bench.heard(&callers), [vec![], vec![], all()], "polkit is dead");
}
