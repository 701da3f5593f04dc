//! Everything that scenarios are recorded on, and all of them by name.

use anyhow::Context as _;

use super::appliance::Appliance;
use super::case::Replay;
use super::selection::ground::{Ground, Loader};
use super::selection::list;
use super::{data, faults, scenarios};

/// The appliances of both tables.
#[derive(Debug)]
pub struct Stage {
    /// Of the first table.
    pub appliance: Appliance,
    /// Of the second, under each boot loader.
    pub grounds: Vec<Ground>,
}

impl Stage {
    /// Makes their firmware.
    pub fn new() -> anyhow::Result<Self> {
        let work = tempfile::tempdir()?;
        let appliance = Appliance::new(work.path())?;
        let ground = |(name, loader)| {
            let work = work.path().join(name);
            std::fs::create_dir(&work)?;
            Ground::new(&work, loader)
        };
        let loaders = [("grub", Loader::Grub), ("systemd-boot", Loader::SystemdBoot)];
        Ok(Self { appliance, grounds: loaders.into_iter().map(ground).collect::<anyhow::Result<_>>()? })
    }

    /// Every scenario's name.
    pub fn names(&self) -> Vec<String> {
        let first = scenarios::ALL.iter().map(|(name, _)| (*name).to_owned());
        let of = |ground: &Ground| {
            list::all(ground).into_iter().map(|(name, _)| ground.named(name)).collect::<Vec<_>>()
        };
        let data = data::ALL.iter().map(|(name, _)| (*name).to_owned());
        first.chain(self.grounds.iter().flat_map(of)).chain(data).collect()
    }

    /// Records a scenario by its name, or the one that a fault is planted in, with that fault.
    pub fn record(&self, name: &str, fault: Option<&str>) -> anyhow::Result<Box<dyn Replay + '_>> {
        match fault {
            None => self.scenario(name),
            Some(fault) => self.faulty(fault),
        }
    }

    fn scenario(&self, name: &str) -> anyhow::Result<Box<dyn Replay + '_>> {
        if let Some((_, make)) = scenarios::ALL.iter().find(|(known, _)| *known == name) {
            return Ok(Box::new(make(&self.appliance)?));
        }
        if let Some((_, make)) = data::ALL.iter().find(|(known, _)| *known == name) {
            return Ok(Box::new(make(&self.appliance)?));
        }
        let mut all =
            self.grounds.iter().flat_map(|ground| list::all(ground).into_iter().map(move |s| (ground, s)));
        let known = all.find(|(ground, (known, _))| ground.named(known) == name);
        let (ground, (_, make)) = known.with_context(|| format!("no scenario {name:?}; see --list"))?;
        Ok(Box::new(make(ground)?))
    }

    fn faulty(&self, name: &str) -> anyhow::Result<Box<dyn Replay + '_>> {
        if let Some(fault) = faults::ALL.iter().find(|fault| format!("{fault:?}") == name) {
            return Ok(Box::new(fault.planted(&self.appliance)?));
        }
        if let Some(fault) = data::faults::FAULTS.iter().find(|fault| format!("{fault:?}") == name) {
            return Ok(Box::new(fault.planted(&self.appliance)?));
        }
        let mut all =
            self.grounds.iter().flat_map(|ground| list::faults(ground).into_iter().map(move |f| (ground, f)));
        let known = all.find(|(ground, fault)| ground.named(&format!("{fault:?}")) == name);
        let (ground, fault) = known.with_context(|| format!("no fault {name:?}"))?;
        Ok(Box::new(fault.planted(ground)?))
    }
}
