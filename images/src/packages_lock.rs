//! Which Debian packages the root is made of, and which were expected: `images/packages.lock`.
//!
//! What was installed is told by apt's signed index, as `apt-cache show` prints it: apt has compared each package with the
//! SHA-256 there. Mirrors keep the newest version only, so another version is told and not refused, unless the build is
//! asked to be `--locked`. The same version with other bytes is always refused: Debian never does that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use slotd::domain::manifest::Sha256Hex;

use crate::package;

/// First lines of the list.
const HEADER: &str = "\
# Debian packages of the appliance's root: name=version=SHA-256 of the package. `cargo xtask image lock` writes this file
# anew from apt's index.
";
/// How many differences a message lists.
const SHOWN: usize = 20;

/// A binary package of the root.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DebianPackage {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// Name and version of the source that it was built from.
    pub source: (String, String),
    /// SHA-256 of the package. None: from no archive, ours.
    pub sha256: Option<Sha256Hex>,
}

/// What `apt-cache show` prints of every installed package, by name. Ours may come from no archive; no other may.
pub fn parse_index(text: &str) -> anyhow::Result<Vec<DebianPackage>> {
    let mut packages: BTreeMap<String, DebianPackage> = BTreeMap::new();
    for stanza in text.split("\n\n").filter(|stanza| !stanza.trim().is_empty()) {
        let fields: BTreeMap<&str, &str> = stanza
            .lines()
            .filter(|line| !line.starts_with([' ', '\t']))
            .filter_map(|line| line.split_once(": "))
            .collect();
        let field = |key: &str| {
            let value = fields.get(key).map(|value| value.trim().to_owned());
            value.with_context(|| format!("apt's index: no {key} in {:?}", stanza.lines().next()))
        };
        let (name, version) = (field("Package")?, field("Version")?);
        let sha256 = fields.get("SHA256").map(|hash| Sha256Hex::try_from(hash.trim().to_owned()));
        let sha256 = sha256.transpose().map_err(anyhow::Error::msg).with_context(|| name.clone())?;
        ensure!(
            sha256.is_some() || name == package::NAME,
            "{name} {version} has no SHA-256 in apt's index: it comes from no archive"
        );
        // `Source: glibc (2.41-12)`: left out when it is the same, the version too.
        let source = fields.get("Source").map_or(name.as_str(), |source| source.trim());
        let source = source.split_once(" (").map_or_else(
            || (source.to_owned(), version.clone()),
            |(name, version)| (name.to_owned(), version.trim_end_matches(')').to_owned()),
        );
        let found = DebianPackage {
            name: name.clone(),
            version,
            architecture: field("Architecture")?,
            source,
            sha256,
        };
        if let Some(before) = packages.insert(name, found.clone()) {
            ensure!(before == found, "apt's index: {} twice: {before:?}, {found:?}", found.name);
        }
    }
    ensure!(!packages.is_empty(), "apt's index names no package");
    Ok(packages.into_values().collect())
}

/// The expected packages: version and SHA-256 by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lock(BTreeMap<String, (String, Sha256Hex)>);

impl Lock {
    /// Where the list lies in the sources.
    pub fn path() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("packages.lock")
    }

    /// The committed list.
    pub fn committed() -> anyhow::Result<Self> {
        let path = Self::path();
        let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads a list: lines `name=version=sha256`; `#` begins a remark.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut packages = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.starts_with('#')) {
            let [name, version, hash] = line.split('=').collect::<Vec<_>>()[..] else {
                bail!("line {number}: {line:?}; expected name=version=sha256");
            };
            ensure!(
                !name.is_empty() && !version.is_empty(),
                "line {number}: {line:?}; expected a name and a version"
            );
            let hash = Sha256Hex::try_from(hash.to_owned());
            let hash = hash.map_err(anyhow::Error::msg).with_context(|| format!("line {number}"))?;
            let twice = packages.insert(name.to_owned(), (version.to_owned(), hash)).is_some();
            ensure!(!twice, "line {number}: {name} a second time");
        }
        Ok(Self(packages))
    }

    /// The list of these packages; ours is not in it.
    pub fn of(packages: &[DebianPackage]) -> Self {
        let line = |p: &DebianPackage| Some((p.name.clone(), (p.version.clone(), p.sha256?)));
        Self(packages.iter().filter_map(line).collect())
    }

    /// The text of the list, sorted by name.
    pub fn render(&self) -> String {
        let lines = self.0.iter().map(|(name, (version, hash))| format!("{name}={version}={hash}\n"));
        HEADER.to_owned() + &lines.collect::<String>()
    }

    /// What is other than expected.
    pub fn compare(&self, packages: &[DebianPackage]) -> Differences {
        let found = Self::of(packages).0;
        let names: BTreeSet<&String> = self.0.keys().chain(found.keys()).collect();
        let differ = |name: &&String| self.0.get(*name) != found.get(*name);
        let difference = |name: &String| Difference {
            name: name.clone(),
            expected: self.0.get(name).cloned(),
            found: found.get(name).cloned(),
        };
        Differences(names.into_iter().filter(differ).map(difference).collect())
    }
}

/// One package that is other than expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its name.
    pub name: String,
    /// Version and SHA-256 of the list.
    pub expected: Option<(String, Sha256Hex)>,
    /// Version and SHA-256 of what was installed.
    pub found: Option<(String, Sha256Hex)>,
}

impl Difference {
    /// The same version, other bytes.
    fn is_altered(&self) -> bool {
        matches!((&self.expected, &self.found), (Some((one, _)), Some((two, _))) if one == two)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.expected, &self.found) {
            (Some((version, expected)), Some((same, found))) if version == same => {
                write!(f, "{} {version}: expected SHA-256 {expected}, found {found}", self.name)
            }
            (Some((expected, _)), Some((found, _))) => {
                write!(f, "{}: expected {expected}, found {found}", self.name)
            }
            (Some((expected, _)), None) => write!(f, "{}: expected {expected}, not installed", self.name),
            (None, Some((found, _))) => write!(f, "{}: not expected, found {found}", self.name),
            (None, None) => write!(f, "{}: nothing", self.name),
        }
    }
}

/// All packages that are other than expected, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences(pub Vec<Difference>);

impl Differences {
    /// Refuses altered packages always, and any difference when the build is locked.
    pub fn judge(&self, locked: bool) -> anyhow::Result<()> {
        let altered: Vec<String> =
            self.0.iter().filter(|one| one.is_altered()).map(ToString::to_string).collect();
        ensure!(
            altered.is_empty(),
            "packages of an expected version have other bytes; do not use this mirror:\n  {}",
            altered.join("\n  ")
        );
        ensure!(
            !locked || self.0.is_empty(),
            "{self}\nthe build is locked: use a mirror that has these versions, or write the list anew with \
             `cargo xtask image lock`"
        );
        Ok(())
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} packages differ from images/packages.lock", self.0.len())?;
        for difference in self.0.iter().take(SHOWN) {
            write!(f, "\n  {difference}")?;
        }
        match self.0.len().checked_sub(SHOWN) {
            Some(more @ 1..) => write!(f, "\n  and {more} more"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "Package: libc6\nSource: glibc (2.41-12)\nVersion: 2.41-12+b1\nArchitecture: amd64\n\
        Description: GNU C Library\n SHA256: no field\nSHA256: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n\n\
        Package: adduser\nVersion: 1:3.152\nArchitecture: all\nSHA256: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\n\n";

    fn packages() -> Vec<DebianPackage> {
        parse_index(INDEX).unwrap()
    }

    #[test]
    fn index_is_read() {
        let [adduser, libc] = packages().try_into().unwrap();
        assert_eq!((adduser.name.as_str(), adduser.version.as_str()), ("adduser", "1:3.152"));
        assert_eq!(adduser.source, ("adduser".to_owned(), "1:3.152".to_owned()));
        assert_eq!(libc.source, ("glibc".to_owned(), "2.41-12".to_owned()));
        assert_eq!(libc.sha256.unwrap().to_string(), "a".repeat(64));
    }

    #[test]
    fn only_ours_may_come_from_no_archive() {
        let one = |name: &str| format!("Package: {name}\nVersion: 1\nArchitecture: amd64\n");
        assert_eq!(parse_index(&one("sps-agent")).unwrap()[0].sha256, None);
        let error = parse_index(&one("openssl")).unwrap_err().to_string();
        assert!(error.contains("openssl 1 has no SHA-256"), "{error}");
        assert!(parse_index("").is_err());
        assert!(parse_index("Package: x\nSHA256: 1\n").is_err());
    }

    #[test]
    fn list_is_read_as_it_was_written() {
        let lock = Lock::of(&packages());
        let text = lock.render();
        assert_eq!(Lock::parse(&text).unwrap(), lock);
        assert!(text.ends_with(&format!(
            "adduser=1:3.152={}\nlibc6=2.41-12+b1={}\n",
            "b".repeat(64),
            "a".repeat(64)
        )));
        for wrong in ["libc6", "libc6=2", "libc6=2=xyz", "=1=", "a=1=b=c", ""] {
            assert!(Lock::parse(&format!("{wrong}\n")).is_err(), "{wrong:?}");
        }
        let twice = format!("x=1={0}\nx=2={0}\n", "a".repeat(64));
        assert!(Lock::parse(&twice).unwrap_err().to_string().contains("line 2: x a second time"));
    }

    #[test]
    fn another_version_is_told_and_refused_when_locked() {
        let mut newer = packages();
        newer[1].version = "2.41-13".into();
        newer[1].sha256 = Some(Sha256Hex([1; 32]));
        newer[0].name = "addgroup".into();
        let differences = Lock::of(&packages()).compare(&newer);
        let said = differences.to_string();
        assert_eq!(
            said,
            "3 packages differ from images/packages.lock\n  addgroup: not expected, found 1:3.152\n  \
             adduser: expected 1:3.152, not installed\n  libc6: expected 2.41-12+b1, found 2.41-13"
        );
        differences.judge(false).unwrap();
        assert!(differences.judge(true).is_err());
        Lock::of(&packages()).compare(&packages()).judge(true).unwrap();
    }

    #[test]
    fn other_bytes_of_a_version_are_always_refused() {
        let mut altered = packages();
        altered[1].sha256 = Some(Sha256Hex([1; 32]));
        for locked in [false, true] {
            let error = Lock::of(&packages()).compare(&altered).judge(locked).unwrap_err().to_string();
            assert!(error.contains("libc6 2.41-12+b1: expected SHA-256 aaaa"), "{error}");
        }
    }

    #[test]
    fn committed_list_is_in_order_and_names_no_mirror() {
        let text = fs::read_to_string(Lock::path()).unwrap();
        let lock = Lock::committed().unwrap();
        assert_eq!(lock.render(), text, "write it with `cargo xtask image lock`");
        assert!(lock.0.contains_key("systemd") && lock.0.contains_key("linux-image-amd64"));
        assert!(!text.contains("://"));
    }
}
