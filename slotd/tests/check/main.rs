//! The real helper in the real sandbox (bwrap), on real EROFS images. Mounting needs root.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests make their own files and processes"
)]

mod firmware;
mod systemd;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use firmware::Firmware;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use slotd::check::{self, Check, CheckError, CheckReport, Outcome, Request, Runner};
use slotd::device::device_mapper::Verity;
use slotd::domain::manifest::Sha256Hex;

const BWRAP: &str = "/usr/bin/bwrap";
const PASSED: Outcome = Outcome::Passed;
const FAILED: Outcome = Outcome::Failed;

/// One test at a time: the limit of processes counts all of the unprivileged user, and one test drops a bomb.
static TURN: Mutex<()> = Mutex::new(());

/// Says why, where images cannot be mounted.
fn can_mount() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    println!("skipped: mounting an image needs root");
    false
}

fn request(image: PathBuf, size: u64) -> Request {
    Request {
        helper: PathBuf::from(env!("CARGO_BIN_EXE_upgrade-check")),
        image,
        size,
        verity: Some(Verity { root_hash: Sha256Hex([7; 32]), salt: "00".to_owned(), hash_offset: size }),
        deadline: Duration::from_secs(60),
        environment: vec![("SPS_FROM_VERSION".to_owned(), "2.1.0".to_owned())],
    }
}

fn run_request(request: &Request) -> Result<CheckReport, CheckError> {
    let runner = Runner::Bubblewrap { program: PathBuf::from(BWRAP) };
    check::run(&runner, request, &AtomicBool::new(false))
}

fn run_within(firmware: &Firmware, seconds: u64) -> Vec<Check> {
    let (image, size) = firmware.pack();
    let request = Request { deadline: Duration::from_secs(seconds), ..request(image, size) };
    run_request(&request).unwrap().checks
}

fn run(firmware: &Firmware) -> Vec<Check> {
    run_within(firmware, 60)
}

fn brief(check: &Check) -> (&str, Outcome, &str) {
    (&check.name, check.result, &check.detail)
}

#[test]
fn verdicts_come_in_name_order_with_message_and_hint() {
    if !can_mount() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let firmware = Firmware::new()
        .check("20-disk", "echo looking\necho 'the disk is too small'\necho 'hint: replace it'\nexit 1")
        .check("10-version", "echo \"comes from $SPS_FROM_VERSION\"")
        .file("README", "no program", 0o644)
        .check("30-crash", "kill -SEGV $$");
    fs::create_dir(firmware.path("usr/lib/sps/upgrade-checks.d/15-directory")).unwrap();
    let (image, size) = firmware.pack();
    let report = run_request(&request(image, size)).unwrap();
    // Through a block device: tests/tests/vm.rs.
    assert_eq!(report.verity, "none: the slot is a file, and dm-verity needs a block device");
    let found: Vec<_> = report.checks.iter().map(brief).collect();
    assert_eq!(
        found,
        [
            ("10-version", PASSED, "comes from 2.1.0"),
            ("20-disk", FAILED, "the disk is too small"),
            ("30-crash", FAILED, "was ended by signal 11, SIGSEGV"),
        ]
    );
    assert_eq!(report.checks[1].hint, "replace it");
}

#[test]
fn a_firmware_without_checks_has_none() {
    if !can_mount() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let firmware = Firmware::new();
    fs::remove_dir_all(firmware.path("usr/lib/sps")).unwrap();
    assert_eq!(run(&firmware), []);
}

#[test]
fn a_program_has_no_rights_no_network_and_no_view_of_the_host() {
    if !can_mount() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    assert_contained(|request| run_request(request).unwrap());
}

/// What a program sees and may do, whoever started the helper.
fn assert_contained(run: impl Fn(&Request) -> CheckReport) {
    let host = tempfile::tempdir().unwrap();
    let secret = host.path().join("secret");
    fs::write(&secret, "of the host").unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // A descriptor that is handed down by mistake.
    let leaked = fs::File::open(&secret).unwrap();
    fcntl(&leaked, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let firmware = Firmware::new()
        .check("10-user", "id; echo \"$(id -u) $(id -g) $(id -G)\"")
        .check("20-status", "while read k v; do case $k in Cap*|NoNewPrivs:) s=\"$s $v\";; esac; done </proc/self/status; echo $s")
        .check("30-net", "n=''; while read a b; do n=\"$n $a\"; done </proc/net/dev; echo $n")
        .file("31-connect", &format!("#!/bin/bash\n(echo x >/dev/tcp/127.0.0.1/{port}) && echo reached && exit 0; echo 'no way out'; exit 1\n"), 0o755)
        .check("40-write", "echo x >/etc/x || echo x >/usr/x || echo x >/dev/x || echo x >/proc/sys/kernel/hostname; e=$?; echo ended $e; exit $e")
        .check("41-tmp", "echo kept >/tmp/file && cat /tmp/file")
        .check("42-tmp", "ls -A /tmp; echo \"left: $(ls -A /tmp)\"")
        .check("50-shadow", "cat /etc/shadow; cat $SPS_SECRET; cat /proc/1/environ /proc/1/root/etc/passwd; exit 1")
        .check("51-roots", "echo \"$(ls -A / | while read n; do echo -n \"$n,\"; done)\"")
        .check("60-descriptors", "echo $(ls /proc/self/fd)")
        .check("70-environment", "s=''; for n in $(cat /proc/self/environ | while read -r x; do echo $x; done); do s=\"$s$n\"; done; echo ${#s} $HOME$USER$SHELL$CARGO$SUDO_USER.")
        .check("80-devices", "echo $(ls /dev)")
        .check("90-mounts", "s=; while read d m r; do s=\"$s$m \"; done </proc/self/mounts; echo $s");
    fs::write(firmware.path("etc/shadow"), "of the firmware").unwrap();
    fs::set_permissions(firmware.path("etc/shadow"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();
    let (image, size) = firmware.pack();
    let mut request = request(image, size);
    request.environment.push(("SPS_SECRET".to_owned(), secret.display().to_string()));
    let report = run(&request);
    let of = |name: &str| report.checks.iter().find(|check| check.name == name).unwrap();
    assert_eq!(of("10-user").detail, "65534 65534 65534");
    let none = "0000000000000000";
    assert_eq!(of("20-status").detail, format!("{none} {none} {none} {none} {none} 1"));
    assert_eq!(of("30-net").detail, "Inter-| face lo:");
    assert_eq!(brief(of("31-connect")), ("31-connect", FAILED, "no way out"));
    assert_eq!(of("40-write").result, FAILED, "{:?}", of("40-write"));
    assert_eq!(of("41-tmp").detail, "kept");
    assert_eq!(of("42-tmp").detail, "left:", "/tmp is fresh for each program");
    let seen = format!("{:?}", of("50-shadow"));
    assert!(!seen.contains("of the host") && !seen.contains("of the firmware"), "{seen}");
    assert_eq!(of("51-roots").detail, roots(&firmware));
    assert_eq!(of("60-descriptors").detail, "0 1 2 3", "3 is ls's own");
    assert!(of("70-environment").detail.ends_with(" ."), "{:?}", of("70-environment"));
    assert_eq!(of("80-devices").detail, "full null random urandom zero");
    let devices = "/dev/null /dev/zero /dev/full /dev/random /dev/urandom";
    assert_eq!(of("90-mounts").detail, format!("/ /dev {devices} /proc /tmp"));
}

/// What lies in the image's root, as `ls` shows it.
fn roots(firmware: &Firmware) -> String {
    let listed = Command::new("ls").arg("-A").arg(firmware.path("")).env("LANG", "C").output().unwrap();
    String::from_utf8(listed.stdout).unwrap().replace('\n', ",")
}

#[test]
fn what_hangs_is_ended_and_the_next_check_still_runs() {
    if !can_mount() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let firmware = Firmware::new()
        .check("10-child", "sleep 600 & sleep 600 & echo 'left two behind'")
        .check("20-hang", "echo started; trap '' TERM INT HUP; sleep 600; sleep 600")
        .check("30-late", "echo never");
    let start = Instant::now();
    let checks = run_within(&firmware, 2);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let found: Vec<_> = checks.iter().map(brief).collect();
    assert_eq!(found[0], ("10-child", PASSED, "left two behind"));
    assert!(checks[1].detail.starts_with("did not end within 1 s: started"), "{checks:?}");
    assert_eq!(found[2], ("30-late", FAILED, "was not run: the 2 s for all checks were over"));
}

#[test]
fn floods_forks_and_shots_at_the_parent_end_there() {
    if !can_mount() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let firmware = Firmware::new()
        .check("10-flood", "dd if=/dev/zero bs=1M count=200 2>/dev/null; dd if=/dev/zero bs=1M count=50 >&2; echo; echo end")
        .check("20-bomb", "f() { f | f & }; f; f; f; sleep 1; echo survived")
        .check("21-bomb", "n=0; while sleep 300 & do n=$((n+1)); [ $n -gt 500 ] && echo 'no limit' && exit 1; done; exit 1")
        .check("30-kill", "kill -9 -1; kill -9 1; kill -9 $PPID; echo alive")
        .check("31-disk", "dd if=/dev/zero of=/tmp/x bs=1M count=100 2>/dev/null; ls -l /tmp/x | { read a b c d size e; echo $size; }")
        .check("32-memory", "dd if=/dev/zero of=/dev/null bs=2000M count=1 2>/dev/null && echo had it && exit 1; echo refused")
        .check("40-last", "echo ran");
    let start = Instant::now();
    let checks = run_within(&firmware, 30);
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    let of = |name: &str| checks.iter().find(|check| check.name == name).unwrap();
    assert_eq!(brief(of("10-flood")), ("10-flood", PASSED, "end"));
    assert_eq!(of("21-bomb").result, FAILED);
    assert_ne!(of("21-bomb").detail, "no limit");
    // A program may shoot what is its own, itself included, and nothing above it.
    assert_eq!(of("30-kill").detail, "alive");
    assert!(of("31-disk").detail.parse::<u64>().unwrap() <= 16 << 20, "{:?}", of("31-disk"));
    assert_eq!(of("32-memory").detail, "refused");
    assert_eq!(brief(of("40-last")), ("40-last", PASSED, "ran"));
}

#[test]
fn names_are_shown_in_one_printable_line_and_programs_are_counted() {
    if !can_mount() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let checks = run(&Firmware::new().check("10-\u{1b}[2J\nx", "printf 'a\\033[31mred\\n'"));
    assert_eq!(brief(&checks[0]), ("10-\u{fffd}[2J\u{fffd}x", PASSED, "a\u{fffd}[31mred"));

    let many = (0..65).fold(Firmware::new(), |firmware, n| firmware.check(&format!("{n:02}"), "echo ran"));
    let checks = run(&many);
    assert_eq!(checks.len(), 1);
    assert_eq!(
        (checks[0].result, checks[0].detail.as_str()),
        (FAILED, "holds 65 programs; at most 64 may be there")
    );
    fs::remove_file(many.path("usr/lib/sps/upgrade-checks.d/00")).unwrap();
    let checks = run(&many);
    assert_eq!((checks.len(), checks[63].detail.as_str()), (64, "ran"));
}

#[test]
fn a_program_that_cannot_start_has_failed() {
    if !can_mount() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let checks = run(&Firmware::new().file("10-interpreter", "#!/no/such\n", 0o755).file(
        "20-closed",
        "#!/bin/sh\n",
        0o700,
    ));
    assert!(checks.iter().all(|check| check.result == FAILED), "{checks:?}");
    assert!(checks[0].detail.starts_with("cannot be started: No such file"), "{checks:?}");
    assert!(checks[1].detail.starts_with("cannot be started: Permission denied"), "{checks:?}");
}

#[test]
fn what_is_no_firmware_is_refused_before_it_is_mounted() {
    if !can_mount() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    fs::write(&image, vec![7; 1 << 20]).unwrap();
    let error = run_request(&request(image.clone(), 1 << 20)).unwrap_err();
    assert!(matches!(&error, CheckError::Helper { .. }), "{error}");
    assert!(error.to_string().contains("/image is no EROFS"), "{error}");

    let (image, size) = Firmware::new().pack();
    let error = run_request(&request(image, size)).unwrap_err();
    assert!(matches!(error, CheckError::Image { .. }), "{error}");

    let firmware = Firmware::new();
    let (image, size) = firmware.pack();
    let error = run_request(&request(image, size - 4096)).unwrap_err();
    assert!(error.to_string().contains("were verified"), "{error}");

    fs::remove_dir(firmware.path("tmp")).unwrap();
    let (image, size) = firmware.pack();
    let error = run_request(&request(image, size)).unwrap_err();
    assert!(error.to_string().contains("no directory /tmp"), "{error}");
}

#[test]
fn a_cancelled_check_leaves_nothing_behind() {
    if !can_mount() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (seconds, cancel) = ("424242", AtomicBool::new(false));
    let firmware = Firmware::new().check("10-hang", &format!("sleep {seconds} & sleep {seconds}"));
    let (image, size) = firmware.pack();
    let request = request(image, size);
    let runner = Runner::Bubblewrap { program: PathBuf::from(BWRAP) };
    let result = std::thread::scope(|scope| {
        let checking = scope.spawn(|| check::run(&runner, &request, &cancel));
        wait_until("the program runs", || processes_with(seconds) > 0);
        assert!(
            !fs::read_to_string("/proc/mounts").unwrap().contains("erofs"),
            "the mount is visible outside"
        );
        cancel.store(true, Ordering::Relaxed);
        checking.join().unwrap()
    });
    assert!(matches!(result, Err(CheckError::Cancelled)), "{result:?}");
    wait_until("the programs are gone", || processes_with(seconds) == 0);
}

fn wait_until(what: &str, reached: impl Fn() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < Duration::from_secs(20), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Processes with this word on their command line.
fn processes_with(word: &str) -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.split(|byte| *byte == 0).any(|found| found == word.as_bytes())).count()
}
