//! Installs the package into a copy of the Debian tree, looks at what systemd says of it there, and removes it again.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use sps_images::BuildDirs;
use sps_images::tool::Tool;

use crate::build;

/// Runs a shell script in the tree, with what programs of a system expect to be mounted: tree, script. As in a build of an
/// image no systemd runs there. `/dev` has no console.
const ENTER: &str = r#"
tree=$1
mount --rbind /dev "$tree/dev"
mount -t proc proc "$tree/proc"
mount -t tmpfs tmpfs "$tree/run"
exec chroot "$tree" sh -euc "$2"
"#;

/// Files with their content, mode and owner, links with their target, of everything but what dpkg keeps for itself, logs
/// and caches. The script takes the package with each call, as apt does, and prints what is there before, in between and
/// after.
const SCRIPT: &str = r#"
list() {
    find / -xdev \( -path /proc -o -path /dev -o -path /run -o -path /var/lib/dpkg -o -path /var/log \
        -o -path /var/cache -o -path /tmp -o -path /boot -o -path /usr/lib/modules \) -prune \
        -o \( -type f -printf "$1 %m %U:%G %p %s %T@\n" -o -printf "$1 %m %U:%G %p %l\n" \)
}
export DEBIAN_FRONTEND=noninteractive
unset DPKG_ROOT
list before
dpkg --install /package.deb >&2
list installed
echo "show $(dpkg-query -W -f '${db:Status-Abbrev}' sps-agent)"
getent passwd sps-agent | sed 's/^/show /'
getent group sps-admin | sed 's/^/show /'
for unit in slotd sps-boot-report sps-health sps-trial; do
    echo "show $unit $(systemctl is-enabled $unit.service || true)"
done
systemd-analyze verify --man=no slotd.service sps-boot-report.service sps-health.service sps-trial.service 2>&1 |
    sed 's/^/verify /'
# Installed over itself, an edited file of the operator stays, and what it enabled goes with it in the end.
echo '# mine' >> /etc/sps/slotd.toml
systemctl enable slotd.service sps-trial.service >&2
mkdir -p /var/lib/sps
echo report > /var/lib/sps/report
dpkg --install /package.deb >&2
tail -n 1 /etc/sps/slotd.toml | sed 's/^/show /'
dpkg --remove sps-agent >&2
list removed
dpkg --purge sps-agent >&2
list purged
dpkg-query -W -f 'show ${db:Status-Abbrev}\n' sps-agent 2>/dev/null || echo show gone
"#;

/// Needs the Debian tree, as the test of its image does: `SPS_DEBIAN_TREE` names it.
#[test]
fn a_debian_system_takes_it_and_gives_it_up_again() {
    let Some(tree) = std::env::var_os("SPS_DEBIAN_TREE") else {
        eprintln!("skipped: SPS_DEBIAN_TREE is not set; it names <build directory>/debian13");
        return;
    };
    let tree = Path::new(&tree);
    let dirs = BuildDirs::new(tree.parent().unwrap()).unwrap();
    let work = dirs.work().unwrap();
    let copy = work.path().join("root");
    Tool::new("cp", "coreutils")
        .args(["--archive", "--reflink=auto", "--no-target-directory"])
        .args([tree, &copy])
        .run()
        .unwrap();
    std::fs::copy(build(work.path()), copy.join("package.deb")).unwrap();
    let said = Tool::new("unshare", "util-linux")
        .args(["--mount", "--pid", "--fork", "--propagation", "private", "sh", "-euc", ENTER, "sh"])
        .arg(&copy)
        .arg(SCRIPT)
        .deadline(Duration::from_secs(120))
        .run()
        .unwrap();
    let lists = Lists::of(&said.stdout);

    assert_eq!(lists.verified, Vec::<&str>::new(), "systemd-analyze verify");
    assert_eq!(lists.shown[0], "ii ");
    assert!(lists.shown[1].starts_with("sps-agent:x:"), "{:?}", lists.shown);
    assert!(lists.shown[2].starts_with("sps-admin:x:"), "{:?}", lists.shown);
    assert_eq!(
        lists.shown[3..],
        [
            "slotd disabled",
            "sps-boot-report disabled",
            "sps-health disabled",
            "sps-trial disabled",
            "# mine",
            "gone"
        ]
    );

    // Users stay; so does the configuration until the package is purged.
    let installed = lists.differ("before", "installed");
    let ours: Vec<&str> = crate::CONTENTS
        .lines()
        .filter_map(|line| line.rsplit_once(" .").map(|(_, path)| path.trim_end_matches('/')))
        .collect();
    let foreign: Vec<&&str> =
        installed.iter().filter(|path| !ours.contains(path) && !ELSEWHERE.contains(path)).collect();
    assert_eq!(foreign, Vec::<&&str>::new(), "installation changes something else");
    let mut left: Vec<&str> = lists.differ("before", "removed");
    left.retain(|path| !ELSEWHERE.contains(path));
    assert_eq!(
        left,
        [
            "/etc/sps",
            "/etc/sps/slotd.toml",
            "/etc/systemd/system/multi-user.target.wants/slotd.service",
            "/etc/systemd/system/sysinit.target.wants/sps-trial.service",
            "/var/lib/sps",
            "/var/lib/sps/report"
        ],
        "what removing leaves"
    );
    let mut left: Vec<&str> = lists.differ("before", "purged");
    left.retain(|path| !ELSEWHERE.contains(path));
    assert_eq!(left, Vec::<&str>::new(), "what purging leaves");
}

/// What has our user and our group in it, and what systemd makes of all catalogs.
const ELSEWHERE: [&str; 9] = [
    "/etc/group",
    "/etc/group-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/passwd",
    "/etc/passwd-",
    "/etc/shadow",
    "/etc/shadow-",
    "/var/lib/systemd/catalog/database",
];

/// What the script printed.
struct Lists<'a> {
    /// By list and path.
    files: BTreeMap<&'a str, BTreeMap<&'a str, &'a str>>,
    shown: Vec<&'a str>,
    verified: Vec<&'a str>,
}

impl<'a> Lists<'a> {
    fn of(said: &'a str) -> Self {
        let mut lists = Self { files: BTreeMap::new(), shown: Vec::new(), verified: Vec::new() };
        for line in said.lines() {
            let (list, rest) = line.split_once(' ').unwrap();
            match list {
                "show" => lists.shown.push(rest),
                "verify" => lists.verified.push(rest),
                _ => {
                    let path = rest.split(' ').nth(2).unwrap();
                    lists.files.entry(list).or_default().insert(path, rest);
                }
            }
        }
        lists
    }

    /// Paths that are in one list only, or not the same in both.
    fn differ(&self, one: &str, two: &str) -> Vec<&'a str> {
        let (one, two) = (&self.files[one], &self.files[two]);
        assert!(one.len() > 1000, "only {} files in the tree", one.len());
        let mut paths: Vec<&str> =
            one.keys().chain(two.keys()).copied().filter(|path| one.get(path) != two.get(path)).collect();
        paths.sort_unstable();
        paths.dedup();
        paths
    }
}
