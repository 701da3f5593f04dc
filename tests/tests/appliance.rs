//! The appliance as it ships, in QEMU with UEFI firmware.

use system_tests::vm::appliance::Builder;
use system_tests::vm::direct::build_dirs;
use system_tests::vm::machine::Hardware;

#[test]
fn it_boots() {
    let work = tempfile::Builder::new()
        .prefix("appliance-")
        .tempdir_in(build_dirs().unwrap().base().join("work"))
        .unwrap();
    let builder = Builder::new(build_dirs().unwrap(), work.path()).unwrap();
    let old = builder.firmware("8.0.1", |_| Ok(())).unwrap();
    let disk = builder.disk(&old).unwrap();
    let hardware = Hardware::new(&disk).unwrap();
    let mut machine = hardware.power_on(&[]).unwrap();
    println!("login after {:?}", machine.login().unwrap_or_else(|e| panic!("{e:#}")));
    for command in [
        "systemd-analyze time",
        "systemctl --failed --no-legend",
        "systemctl is-system-running --wait",
        "spsctl status",
        "cat /proc/mounts",
    ] {
        println!("# {command}\n{:?}", machine.run(command));
    }
    println!("{}", machine.said());
}
