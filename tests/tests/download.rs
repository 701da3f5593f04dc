//! `spsctl install URL` with the real slotd: what breaks on the way is taken up again, in the same run or the next.
#![expect(clippy::unwrap_used, reason = "a broken test bench fails here")]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};

use system_tests::bus::{Appliance, Layout};
use system_tests::client::spsctl;
use system_tests::firmware::Workshop;

/// Serves `file` by ranges; each connection of the list ends after so many bytes, the later ones do not.
fn serve(file: Vec<u8>, ends: &'static [usize]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let number = AtomicUsize::new(0);
    std::thread::spawn(move || {
        for mut socket in listener.incoming().map_while(Result::ok) {
            let mut from = 0;
            for line in BufReader::new(&socket).lines().map_while(Result::ok).take_while(|l| !l.is_empty()) {
                let range = line.to_ascii_lowercase();
                if let Some(range) = range.strip_prefix("range: bytes=") {
                    from = range.trim_end_matches('-').parse().unwrap();
                }
            }
            let end = ends.get(number.fetch_add(1, Ordering::Relaxed)).copied().unwrap_or(usize::MAX);
            let (last, total) = (file.len() - 1, file.len());
            let (status, range) = if from > 0 {
                ("206 Partial Content", format!("Content-Range: bytes {from}-{last}/{total}\r\n"))
            } else {
                ("200 OK", String::new())
            };
            let length = total - from;
            // A client that has seen enough hangs up.
            let _ = write!(
                socket,
                "HTTP/1.1 {status}\r\n{range}ETag: \"one\"\r\nContent-Length: {length}\r\n\r\n"
            )
            .and_then(|()| socket.write_all(&file[from..from + length.min(end)]));
        }
    });
    address
}

fn appliance() -> Appliance {
    let keyring = Some(Workshop::shared().unwrap().keyring());
    Appliance::with(Layout { keyring, slot_size: 24 << 20, ..Layout::default() }).unwrap()
}

fn image() -> Vec<u8> {
    std::fs::read(Workshop::shared().unwrap().sample("8.0.1", 9).unwrap().iso).unwrap()
}

// rows: A5
#[test]
fn an_image_is_installed_from_a_url_over_broken_connections() {
    let address = serve(image(), &[1_000_001, 3_000_000, 77]);
    let appliance = appliance();
    let done = spsctl(&appliance, &["install", &format!("http://{address}/x.iso")]);
    assert_eq!(done.code, 0, "{}", done.errors);
    assert_eq!(done.json["job"]["result"]["version"], "8.0.1");
    assert_eq!(done.json["job"]["result"]["bytes_kept"], 0);
}

#[test]
fn a_download_that_was_given_up_goes_on_with_the_command_it_printed() {
    // The first connection brings 7 MiB, and with no retry there is no second one.
    let address = serve(image(), &[7 << 20]);
    let appliance = appliance();
    let url = format!("http://{address}/x.iso");
    let failed = spsctl(&appliance, &["install", &url, "--retries", "0", "--transaction", "t"]);
    assert_eq!(failed.refusal(), (4, "Download"), "{}", failed.errors);
    assert_eq!(failed.json["job"]["error"]["name"], "MediaCorrupt");

    let command = failed.json["resume"]["command"].as_str().unwrap();
    let words: Vec<_> = command.split(' ').skip_while(|word| *word != "install").collect();
    assert_eq!(words[..4], ["install", &url, "--retries", "0"]);
    assert_eq!(words[6], "--offset", "{command}");
    let resumed = spsctl(&appliance, &words);
    assert_eq!(resumed.code, 0, "{}", resumed.errors);
    assert!(resumed.json["job"]["result"]["bytes_kept"].as_u64().unwrap() > 0, "{}", resumed.json);
}
