//! The image that is handed over, and how a cut install goes on.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use zbus::wire::Variant;

use crate::cli::{DownloadArgs, InstallArgs};
use crate::client::Options;
use crate::error::CtlError;
use crate::model::Job;

/// Opens the image, `-` being standard input. Only what slotd could not see itself is refused here.
pub fn open(file: &Path) -> Result<OwnedFd, CtlError> {
    if file.as_os_str() == "-" {
        return open_stdin();
    }
    let usage = |what: String| CtlError::Usage(format!("{}: {what}", file.display()));
    let image = File::open(file).map_err(|error| usage(format!("cannot open it: {error}")))?;
    let metadata = image.metadata().map_err(|error| usage(format!("cannot look at it: {error}")))?;
    if metadata.is_dir() {
        return Err(usage("this is a directory; name the ISO in it".to_owned()));
    }
    Ok(image.into())
}

fn open_stdin() -> Result<OwnedFd, CtlError> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        let what = "standard input is a terminal; send the image through a pipe or name a file";
        return Err(CtlError::Usage(what.to_owned()));
    }
    stdin
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| CtlError::System { doing: "cannot hand over standard input", source })
}

/// The URL to download from, where the argument is one. What is meant for a URL is refused with anything else.
pub fn url(args: &InstallArgs) -> Result<Option<&str>, CtlError> {
    let is_url = |text: &str| {
        text.split_once("://").is_some_and(|(scheme, _)| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        })
    };
    let url = args.file.to_str().filter(|text| is_url(text));
    let usage = |what: &str| Err(CtlError::Usage(what.to_owned()));
    match url {
        Some(_) if args.detach => {
            usage("--detach: a URL is downloaded by spsctl itself, which has to stay for it")
        }
        None if args.download != DownloadArgs::default() => {
            usage("--proxy, --ca, --stall-timeout and --retries are for a URL")
        }
        url => Ok(url),
    }
}

/// The options of `Manager.Install`.
pub fn options<'a>(args: &'a InstallArgs, transaction: &'a str) -> Options<'a> {
    let mut options = Options::from([("transaction_id", Variant::from(transaction))]);
    if let Some(slot) = args.slot {
        options.insert("slot", slot.get().into());
    }
    if args.replace {
        options.insert("replace", true.into());
    }
    if args.repair {
        options.insert("repair", true.into());
    }
    if let Some(hash) = &args.manifest_sha256 {
        options.insert("manifest_sha256", hash.as_str().into());
    }
    if let Some(offset) = args.offset {
        options.insert("offset", offset.into());
    }
    options
}

/// The transaction's name: the one given, or one made of time and process, so that every install can be resumed.
pub fn transaction(args: &InstallArgs, now: jiff::Timestamp, process: u32) -> String {
    match &args.transaction {
        Some(name) => name.clone(),
        None => format!("{}-{process}", now.strftime("%Y%m%dT%H%M%S.%3fZ")),
    }
}

/// Byte from which on a pipe has to send the image to resume; `None` for a file, which slotd reads again itself.
pub fn resume_offset(args: &InstallArgs, job: Option<&Job>) -> Option<u64> {
    let known = job.map_or(0, |job| job.next_offset);
    (args.file.as_os_str() == "-").then_some(known)
}

/// The command that resumes a cut install.
pub fn resume_command(args: &InstallArgs, bus: Option<&str>, transaction: &str, job: Option<&Job>) -> String {
    let mut words = vec!["spsctl".to_owned()];
    if let Some(bus) = bus {
        words.extend(["--bus".to_owned(), quote(bus)]);
    }
    words.extend(["install".to_owned(), quote_file(&args.file)]);
    if let Some(slot) = args.slot {
        words.extend(["--slot".to_owned(), slot.to_string()]);
    }
    for (is, option) in [(args.replace, "--replace"), (args.repair, "--repair")] {
        if is {
            words.push(option.to_owned());
        }
    }
    if let Some(hash) = &args.manifest_sha256 {
        words.extend(["--manifest-sha256".to_owned(), hash.clone()]);
    }
    words.extend(download_words(&args.download));
    words.extend(["--transaction".to_owned(), transaction.to_owned()]);
    // From a server, too, the rest is enough.
    let from_url = matches!(url(args), Ok(Some(_)));
    let known = from_url.then(|| job.map_or(0, |job| job.next_offset)).or(resume_offset(args, job));
    match (known, args.offset) {
        (Some(0), _) | (None, None) => {}
        // A file that begins at this byte of the image still does.
        (Some(offset), _) | (None, Some(offset)) => words.extend(["--offset".to_owned(), offset.to_string()]),
    }
    words.join(" ")
}

fn download_words(args: &DownloadArgs) -> Vec<String> {
    let path = |file: &std::path::PathBuf| quote(&file.to_string_lossy());
    let options = [
        ("--proxy", args.proxy.as_deref().map(quote)),
        ("--ca", args.ca.as_ref().map(path)),
        ("--stall-timeout", args.stall_timeout.map(|limit| limit.as_secs().to_string())),
        ("--retries", args.retries.map(|retries| retries.to_string())),
    ];
    let given = options.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value?]));
    given.flatten().collect()
}

/// A file name for a shell, and never one that reads as an option.
fn quote_file(file: &Path) -> String {
    let text = file.to_string_lossy();
    if text.starts_with('-') && text != "-" { quote(&format!("./{text}")) } else { quote(&text) }
}

/// A word for a shell.
pub fn quote(word: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "_-./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(harmless) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn args(line: &[&str]) -> InstallArgs {
        let line = ["spsctl", "install"].iter().chain(line);
        match crate::cli::Cli::try_parse_from(line).unwrap().command {
            crate::cli::Command::Install(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn cut_at(next_offset: u64) -> Job {
        Job { next_offset, ..Job::default() }
    }

    #[test]
    fn resume_of_a_file_reads_it_again() {
        let args = args(&["my image's.iso", "--slot", "2", "--replace"]);
        assert_eq!(
            resume_command(&args, Some("unix:path=/run/x"), "t-1", Some(&cut_at(4096))),
            r"spsctl --bus unix:path=/run/x install 'my image'\''s.iso' --slot 2 --replace --transaction t-1"
        );
    }

    #[test]
    fn resume_of_a_pipe_needs_the_rest_only() {
        let args = args(&["-", "--transaction", "t", "--offset", "17"]);
        assert_eq!(
            resume_command(&args, None, "t", Some(&cut_at(4096))),
            "spsctl install - --transaction t --offset 4096"
        );
        // Nothing is known when slotd died: from the start, which always works.
        assert_eq!(resume_command(&args, None, "t", None), "spsctl install - --transaction t");
    }

    #[test]
    fn resume_of_a_url_downloads_the_rest_only() {
        let args = args(&[
            "https://example.com/a?b&c",
            "--ca",
            "my ca.pem",
            "--proxy",
            "http://p:1",
            "--stall-timeout",
            "5",
        ]);
        assert_eq!(
            resume_command(&args, None, "t", Some(&cut_at(4096))),
            "spsctl install 'https://example.com/a?b&c' --proxy http://p:1 --ca 'my ca.pem' --stall-timeout 5 \
             --transaction t --offset 4096"
        );
        assert_eq!(resume_offset(&args, Some(&cut_at(4096))), None);
    }

    #[test]
    fn urls_and_files_are_told_apart() {
        for (word, is_url) in [
            ("https://example.com/x.iso", true),
            ("ftp://example.com/x.iso", true),
            ("./https://example.com/x.iso", false),
            ("x.iso", false),
            ("-", false),
        ] {
            assert_eq!(url(&args(&[word])).unwrap().is_some(), is_url, "{word}");
        }
        assert_eq!(url(&args(&["https://x/y", "--detach"])).unwrap_err().exit_code(), 2);
        assert_eq!(url(&args(&["x.iso", "--retries", "1"])).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn options_hold_what_was_asked_and_no_more() {
        let minimal = args(&["x.iso"]);
        assert_eq!(options(&minimal, "t").into_keys().collect::<Vec<_>>(), ["transaction_id"]);
        let full = args(&[
            "x.iso",
            "--slot",
            "3",
            "--replace",
            "--repair",
            "--transaction",
            "t",
            "--offset",
            "9",
            "--manifest-sha256",
            &"0".repeat(64),
        ]);
        let options = options(&full, "t");
        assert_eq!(options.get("slot"), Some(&Variant::U32(3)));
        assert_eq!(options.get("offset"), Some(&Variant::U64(9)));
        assert_eq!(options.get("replace"), Some(&Variant::Bool(true)));
        assert_eq!(options.len(), 6);
    }

    #[test]
    fn made_up_transaction_fits_the_contract() {
        let now = jiff::Timestamp::from_millisecond(1_780_000_000_123).unwrap();
        let name = transaction(&args(&["x.iso"]), now, u32::MAX);
        assert_eq!(name, "20260528T202640.123Z-4294967295");
        assert_eq!(transaction(&args(&["x.iso", "--transaction", "mine"]), now, 1), "mine");
    }

    #[test]
    fn directories_and_missing_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let message = open(directory.path()).unwrap_err();
        assert!(message.to_string().ends_with("this is a directory; name the ISO in it"), "{message}");
        assert_eq!(open(&directory.path().join("none.iso")).unwrap_err().exit_code(), 2);
    }
}
