//! The manual pages of `spsctl`, made from its command line: `docs/man/`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use clap::CommandFactory;
use clap_mangen::Man;
use roff::{Roff, roman};
use spsctl::cli::Cli;

use crate::workspace;

/// Where the pages are, from the root of the workspace.
const DIRECTORY: &str = "docs/man";
/// How the crate `roff` lets an apostrophe be one.
const APOSTROPHE: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";

/// Writes every page and removes the ones that no command has any more.
pub(crate) fn write() -> Result<()> {
    let directory = workspace::root().join(DIRECTORY);
    std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let pages = pages()?;
    for name in committed()?.keys().filter(|name| !pages.contains_key(*name)) {
        std::fs::remove_file(directory.join(name)).with_context(|| name.clone())?;
    }
    for (name, page) in &pages {
        std::fs::write(directory.join(name), page).with_context(|| name.clone())?;
    }
    println!("{} pages in {DIRECTORY}", pages.len());
    Ok(())
}

/// Every page by its file name, as the code gives it. Nothing of the machine or the day is in them.
fn pages() -> Result<BTreeMap<String, String>> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = BTreeMap::new();
    add(&command, "spsctl", None, &mut pages)?;
    Ok(pages)
}

/// The page of a command and those of the commands in it.
fn add(
    command: &clap::Command,
    name: &str,
    parent: Option<&str>,
    pages: &mut BTreeMap<String, String>,
) -> Result<()> {
    pages.insert(format!("{name}.1"), page(command, name, parent)?);
    for part in command.get_subcommands() {
        add(part, &format!("{name}-{}", part.get_name()), Some(name), pages)?;
    }
    Ok(())
}

/// One page. `clap_mangen` renders what clap knows; the text after the help is laid out here, because it has
/// paragraphs, examples and tables.
fn page(command: &clap::Command, name: &str, parent: Option<&str>) -> Result<String> {
    let man = Man::new(command.clone());
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (headed, plain): (Vec<_>, Vec<_>) = after.split("\n\n").partition(|block| heading(block).is_some());

    let mut page = Vec::new();
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    let mut details = Roff::new();
    for paragraph in plain.iter().filter(|paragraph| !paragraph.is_empty()) {
        details.control("PP", []).text([roman(paragraph.replace('\n', " "))]);
    }
    details.to_writer(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut rest = Roff::new();
    for (title, lines) in headed.iter().filter_map(|block| heading(block)) {
        rest.control("SH", [title.to_uppercase().as_str()]).control("nf", []);
        for line in lines.lines() {
            rest.text([roman(line)]);
        }
        rest.control("fi", []);
    }
    if let Some(parent) = parent {
        rest.control("SH", ["SEE ALSO"]).text([roman(format!("{parent}(1)"))]);
    }
    rest.to_writer(&mut page)?;
    Ok(tidy(name, &String::from_utf8(page)?))
}

/// The sections as one page: the title line, which has no date so that no day changes it; the apostrophe defined
/// once instead of before each section; no break beside an empty line, which is one.
fn tidy(name: &str, sections: &str) -> String {
    let (title, version) = (name.replace('-', "\\-"), env!("CARGO_PKG_VERSION"));
    let mut page = format!("{APOSTROPHE}.TH {title} 1 \"\" \"spsctl {version}\" \"SPS agent\"\n");
    let sections = sections.replace(APOSTROPHE, "");
    let lines: Vec<&str> = sections.lines().map(str::trim_end).collect();
    for (index, line) in lines.iter().enumerate() {
        let beside = |other: Option<usize>| {
            other.and_then(|other| lines.get(other)).is_some_and(|other| other.is_empty())
        };
        if *line == ".br" && (beside(index.checked_sub(1)) || beside(index.checked_add(1))) {
            continue;
        }
        page.push_str(line);
        page.push('\n');
    }
    page
}

/// A block of help that is a heading and indented lines.
fn heading(block: &str) -> Option<(&str, &str)> {
    let (title, lines) = block.split_once('\n')?;
    let title = title.strip_suffix(':')?;
    lines.lines().all(|line| line.starts_with("  ")).then_some((title, lines))
}

/// Every page by its file name, as it is in the sources.
fn committed() -> Result<BTreeMap<String, String>> {
    let directory = workspace::root().join(DIRECTORY);
    let mut pages = BTreeMap::new();
    for entry in std::fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            bail!("{} is no name of a page", path.display())
        };
        pages.insert(name.to_owned(), std::fs::read_to_string(&path).with_context(|| name.to_owned())?);
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;

    #[test]
    fn committed_pages_are_those_of_the_code() {
        let (code, committed) = (pages().unwrap(), committed().unwrap());
        let differ: Vec<_> = code
            .keys()
            .chain(committed.keys())
            .filter(|name| code.get(*name) != committed.get(*name))
            .collect();
        assert!(differ.is_empty(), "run `cargo xtask man`, then commit: {differ:?}");
        assert_eq!(code, pages().unwrap(), "rendering is not the same twice");
    }

    #[test]
    fn every_command_has_a_page_with_its_help() {
        let pages = pages().unwrap();
        for name in ["spsctl", "spsctl-upgrade", "spsctl-state-reset", "spsctl-doctor"] {
            assert!(pages.contains_key(&format!("{name}.1")), "{name}");
        }
        let install = &pages["spsctl-install.1"];
        for text in
            [".SH EXAMPLES\n.nf\n  spsctl install firmware.iso\n", "\\-\\-stall\\-timeout", "no_proxy"]
        {
            assert!(install.contains(text), "{text:?} is not in\n{install}");
        }
        // Every roff reads ASCII alike.
        assert!(pages.values().all(|page| page.is_ascii()));
    }

    #[test]
    fn groff_has_nothing_to_warn_of() {
        let directory = tempfile::tempdir().unwrap();
        for (name, page) in pages().unwrap() {
            let file = directory.path().join(&name);
            std::fs::write(&file, page).unwrap();
            let mut groff = process::command("groff");
            let output = groff.args(["-man", "-Tascii", "-ww", "-z"]).arg(&file).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "{name}: {said}");
        }
    }
}
