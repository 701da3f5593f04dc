//! `install URL` against a real server.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::fake::{Part, Stage};
use super::https::{Reply, Request, Site, certificates, connect_proxy};
use super::jobs::press_ctrl_c_at;
use super::spsctl;

const TAG: &str = "ETag: \"one\"\r\n";

/// Bytes that repeat nowhere, so that a part in the wrong place shows.
fn image(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()
    };
    (0..size.div_ceil(8)).flat_map(|_| next()).take(size).collect()
}

/// `install URL` with the test's authority.
fn install(stage: &Stage, url: &str, options: &[&str]) -> Command {
    let ca = certificates().ca();
    let mut command = spsctl(stage, &["install", url, "--transaction", "t-1", "--ca", ca.to_str().unwrap()]);
    command.args(options);
    command
}

fn run(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

fn arrived(stage: &Stage) -> Vec<u8> {
    stage.seen(|seen| seen.image.clone())
}

/// No install was asked for.
fn untouched(stage: &Stage) -> bool {
    stage.seen(|seen| seen.options.is_empty())
}

/// Serves `file` with ranges; what is sent of the n-th answer is `sent(n)`.
fn serve(
    file: Vec<u8>,
    headers: &'static str,
    sent: impl Fn(usize) -> usize + Send + Sync + 'static,
) -> Site {
    Site::https(move |request| {
        Reply::file(&file, request.range().unwrap_or(0), headers).cut(sent(request.number))
    })
}

// rows: A5
#[test]
fn image_arrives_whole() {
    let file = image(3 << 20);
    let site = serve(file.clone(), TAG, |_| usize::MAX);
    let stage = Stage::new(Part::Succeed);
    let (code, progress) = run(&mut install(&stage, &site.url("/x.iso"), &["--slot", "2"]));
    assert_eq!(code, Some(0), "{progress}");
    assert!(progress.starts_with("the image has 3.0 MiB\n"), "{progress}");
    assert_eq!(arrived(&stage), file);
    assert_eq!(stage.seen(|seen| seen.options["slot"].clone()), "uint32 2");
    assert_eq!(site.requests().len(), 1);
    assert!(site.requests()[0].starts_with("GET /x.iso HTTP/1.1\r\n"), "{:?}", site.requests());
}

#[test]
fn authorities_of_the_system_count_without_the_option() {
    let file = image(1000);
    let site = serve(file.clone(), TAG, |_| usize::MAX);
    let stage = Stage::new(Part::Succeed);
    let mut command = spsctl(&stage, &["install", &site.url("/x.iso")]);
    // Where an operator puts the system's authorities.
    command.env("SSL_CERT_FILE", certificates().ca()).env_remove("SSL_CERT_DIR");
    assert_eq!(run(&mut command).0, Some(0));
    assert_eq!(arrived(&stage), file);
}

#[test]
fn connection_cut_at_any_byte_goes_on_from_there() {
    let file = image(2 << 20);
    let many = &[300_001, 0, 65_537, 1, 700_000, 123_456, 400_003][..];
    let few = &[300_001, 700_000][..];
    let date = "Last-Modified: Thu, 28 May 2026 20:26:40 GMT\r\n";
    for (headers, pieces) in [(TAG, many), (date, few), ("", few)] {
        let site = serve(file.clone(), headers, move |n| pieces.get(n).copied().unwrap_or(usize::MAX));
        let stage = Stage::new(Part::Succeed);
        let (code, progress) = run(&mut install(&stage, &site.url("/x.iso"), &[]));
        assert_eq!(code, Some(0), "{progress}");
        assert_eq!(arrived(&stage), file);
        let requests = site.requests();
        assert_eq!(requests.len(), pieces.len() + 1);
        let mut at = 0;
        for (request, piece) in requests.iter().zip(pieces) {
            let expected = if at == 0 { None } else { Some(format!("bytes={at}-")) };
            let request = Request { head: request.clone(), number: 0 };
            assert_eq!(request.header("range"), expected.as_deref());
            let validator = headers.trim().split_once(": ").map(|(_, value)| value).filter(|_| at > 0);
            assert_eq!(request.header("if-range"), validator);
            at += piece;
        }
        assert!(
            progress.contains("the connection ended")
                || progress.contains("; trying again from byte 300001\n")
        );
    }
}

#[test]
fn server_without_ranges_sends_again_and_only_the_new_part_is_handed_on() {
    let file = image(400_000);
    let served = file.clone();
    let site = Site::https(move |request| {
        Reply::file(&served, 0, TAG).cut(if request.number == 0 { 150_000 } else { usize::MAX })
    });
    let stage = Stage::new(Part::Succeed);
    let (code, progress) = run(&mut install(&stage, &site.url("/x.iso"), &[]));
    assert_eq!(code, Some(0), "{progress}");
    assert_eq!(arrived(&stage), file);
}

#[test]
fn file_that_changed_is_not_put_together() {
    type Second = fn(&[u8], usize) -> Reply;
    let cases: [(&str, &str, Second); 4] = [
        // As RFC 9110 has it: If-Range does not fit, so the new file comes whole.
        (TAG, "ETag was \"one\" and is \"two\"", |file, _| Reply::file(file, 0, "ETag: \"two\"\r\n")),
        (TAG, "ETag was \"one\" and is \"two\"", |file, from| Reply::file(file, from, "ETag: \"two\"\r\n")),
        ("Last-Modified: then\r\n", "date was then and is now", |file, from| {
            Reply::file(file, from, "Last-Modified: now\r\n")
        }),
        ("", "size was 400000 and is 300000", |file, from| Reply::file(&file[..300_000], from, "")),
    ];
    for (headers, why, second) in cases {
        let file = image(400_000);
        let site = Site::https(move |request| match request.range() {
            None => Reply::file(&file, 0, headers).cut(150_000),
            Some(from) => second(&file, from),
        });
        let stage = Stage::new(Part::Fail);
        let (code, complaint) = run(&mut install(&stage, &site.url("/x.iso"), &[]));
        assert_eq!(code, Some(4), "{complaint}");
        assert!(
            complaint.contains("was replaced during the download") && complaint.contains(why),
            "{complaint}"
        );
        assert_eq!(arrived(&stage).len(), 150_000);
        assert_eq!(site.requests().len(), 2);
    }
}

#[test]
fn download_that_fails_prints_the_command_that_goes_on() {
    let site = serve(image(400_000), TAG, |n| if n == 0 { 100_000 } else { 0 });
    let stage = Stage::new(Part::Fail);
    let url = site.url("/x.iso?a&b");
    let Output { status, stdout, .. } =
        install(&stage, &url, &["--retries", "2", "--json"]).output().unwrap();
    assert_eq!(status.code(), Some(4));
    let document: Value = serde_json::from_slice(&stdout).unwrap();
    assert_eq!(document["error"]["name"], "Download");
    let message = document["error"]["message"].as_str().unwrap();
    let start = "the download stopped at byte 100000 and 2 further attempts brought nothing: ";
    assert!(message.starts_with(start), "{message}");
    assert_eq!(document["resume"]["transaction_id"], "t-1");
    assert_eq!(document["resume"]["offset"], json!(null));
    let ca = certificates().ca();
    let expected = format!(
        "spsctl --bus {} install '{url}' --ca {} --retries 2 --transaction t-1 --offset 4096",
        stage.address,
        ca.display()
    );
    assert_eq!(document["resume"]["command"], expected);
    assert_eq!(site.requests().len(), 3);
}

#[test]
fn offset_downloads_the_rest_only() {
    let file = image(400_000);
    let site = serve(file.clone(), TAG, |_| usize::MAX);
    let stage = Stage::new(Part::Succeed);
    let (code, _) = run(&mut install(&stage, &site.url("/x.iso"), &["--offset", "300000"]));
    assert_eq!(code, Some(0));
    assert_eq!(arrived(&stage), file[300_000..]);
    assert_eq!(stage.seen(|seen| seen.options["offset"].clone()), "uint64 300000");
    // Past the end there is nothing, whether the server says so or sends everything.
    for reply in ["416 Range Not Satisfiable\r\nContent-Range: bytes */1000", "200 OK"] {
        let site = Site::https(move |_| Reply::bare(reply));
        let stage = Stage::new(Part::Fail);
        let (code, complaint) = run(&mut install(&stage, &site.url("/x.iso"), &["--offset", "300000"]));
        assert_eq!(code, Some(4), "{complaint}");
        assert!(complaint.contains("there is nothing at byte 300000"), "{complaint}");
    }
}

#[test]
fn server_that_is_not_trusted_is_refused_at_once() {
    let site = serve(image(1000), TAG, |_| usize::MAX);
    let stage = Stage::new(Part::Succeed);
    let other = certificates().other_ca();
    let ca = certificates().ca();
    let by_address = format!("https://127.0.0.1:{}/x.iso", site.address.port());
    for (url, ca, why) in
        [(site.url("/x.iso"), &other, "UnknownIssuer"), (by_address, &ca, "not valid for name")]
    {
        let (code, complaint) = run(&mut spsctl(&stage, &["install", &url, "--ca", ca.to_str().unwrap()]));
        assert_eq!(code, Some(4), "{complaint}");
        assert!(
            complaint.starts_with("error: cannot download from ") && complaint.contains(why),
            "{complaint}"
        );
        assert_eq!(complaint.lines().count(), 1);
    }
    assert!(untouched(&stage) && site.requests().is_empty());
}

#[test]
fn answers_without_an_image_begin_no_install() {
    for (reply, why) in [
        ("404 Not Found", "answers 404 Not Found"),
        ("503 Service Unavailable", "answers 503 Service Unavailable"),
        ("302 Found\r\nLocation: http://localhost/x.iso", "redirects to a URL that is not https"),
        ("302 Found\r\nLocation: /again", "too many redirects"),
        ("200 OK\r\nContent-Encoding: gzip", "compressed on the way"),
        ("206 Partial Content\r\nContent-Range: bytes 5-9/10", "not the part that was asked for"),
    ] {
        let site = Site::https(move |_| Reply::bare(reply));
        let stage = Stage::new(Part::Succeed);
        let (code, complaint) = run(&mut install(&stage, &site.url("/x.iso?token=secret"), &[]));
        assert_eq!(code, Some(4), "{reply}: {complaint}");
        assert!(complaint.contains(why) && !complaint.contains("secret"), "{reply}: {complaint}");
        assert!(untouched(&stage), "{reply}");
    }
}

#[test]
fn redirects_within_https_are_followed_by_each_part() {
    let file = image(400_000);
    let served = file.clone();
    let site = Site::https(move |request| {
        if request.head.starts_with("GET /latest ") {
            return Reply::bare("307 Temporary Redirect\r\nLocation: /x.iso");
        }
        let sent = if request.number == 1 { 150_000 } else { usize::MAX };
        Reply::file(&served, request.range().unwrap_or(0), TAG).cut(sent)
    });
    let stage = Stage::new(Part::Succeed);
    let (code, progress) = run(&mut install(&stage, &site.url("/latest"), &[]));
    assert_eq!(code, Some(0), "{progress}");
    assert_eq!(arrived(&stage), file);
    assert_eq!(site.requests().len(), 4);
}

#[test]
fn stalled_server_meets_its_deadline() {
    let begin = Instant::now();
    // Before the answer: nothing has begun.
    let site = Site::https(|_| Reply { stall: true, ..Reply::file(&[0; 1000], 0, TAG).cut(0) });
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stage = Stage::new(Part::Fail);
    let unanswered = format!("https://localhost:{}/x.iso", silent.local_addr().unwrap().port());
    let (code, complaint) = run(&mut install(&stage, &unanswered, &["--stall-timeout", "1"]));
    assert_eq!(code, Some(4));
    assert!(complaint.ends_with(" sent nothing for 1 s\n") && untouched(&stage), "{complaint}");
    // In the middle: the install ends, too.
    let (code, complaint) =
        run(&mut install(&stage, &site.url("/x.iso"), &["--stall-timeout", "1", "--retries", "0"]));
    assert_eq!(code, Some(4));
    assert!(complaint.contains(" sent nothing for 1 s\n"), "{complaint}");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

#[test]
fn ctrl_c_does_not_wait_for_a_server_that_is_silent() {
    let begin = Instant::now();
    let site = Site::https(|_| Reply { stall: true, ..Reply::file(&[0; 1000], 0, TAG).cut(10) });
    let stage = Stage::new(Part::Cancellable);
    let (url, ca) = (site.url("/x.iso"), certificates().ca());
    let line = ["install", &url, "--ca", ca.to_str().unwrap(), "--stall-timeout", "600"];
    let (code, rest) = press_ctrl_c_at(&stage, &line, &["slot 2: writing"]);
    assert_eq!(code, Some(26), "{rest}");
    assert!(rest.ends_with("error: cancelled by its caller\n"), "{rest}");
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
}

#[test]
fn refusal_of_slotd_ends_the_download() {
    let site = serve(image(4 << 20), TAG, |_| usize::MAX);
    let stage = Stage::new(Part::Refuse);
    let (code, complaint) = run(&mut install(&stage, &site.url("/x.iso"), &[]));
    assert_eq!(code, Some(15), "{complaint}");
    assert!(complaint.contains("error: firmware.erofs: byte 9 differs\n"), "{complaint}");
    assert_eq!(site.requests().len(), 1);
}

#[test]
fn proxy_of_the_command_line_and_of_the_environment() {
    let file = image(1000);
    let site = serve(file.clone(), TAG, |_| usize::MAX);
    let (proxy, asked) = connect_proxy();
    let proxy = format!("http://{proxy}");
    let url = site.url("/x.iso");
    let connect = format!("CONNECT localhost:{} HTTP/1.1\r\n", site.address.port());

    let stage = Stage::new(Part::Succeed);
    let (code, complaint) = run(&mut install(&stage, &url, &["--proxy", &proxy]));
    assert_eq!(code, Some(0), "{complaint}");
    assert_eq!(arrived(&stage), file);
    assert_eq!(run(install(&stage, &url, &[]).env("https_proxy", &proxy)).0, Some(0));
    let heard = asked.lock().unwrap().clone();
    assert!(heard.len() == 2 && heard.iter().all(|head| head.starts_with(&connect)), "{heard:?}");

    // Nobody answers at this proxy, which is not asked for this host.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dead = format!("http://{closed}");
    assert_eq!(run(install(&stage, &url, &[]).env("HTTPS_PROXY", &dead)).0, Some(4));
    assert_eq!(
        run(install(&stage, &url, &[]).env("https_proxy", &dead).env("no_proxy", "localhost")).0,
        Some(0)
    );
}

#[test]
fn http_is_taken_from_this_machine_and_leads_nowhere_else() {
    let file = image(1000);
    let served = file.clone();
    let site = Site::http(move |request| {
        if request.head.starts_with("GET /x.iso ") {
            Reply::file(&served, 0, TAG)
        } else {
            Reply::bare("302 Found\r\nLocation: http://example.com/x.iso")
        }
    });
    let stage = Stage::new(Part::Succeed);
    let url = |path: &str| format!("http://{}{path}", site.address);
    assert_eq!(run(&mut spsctl(&stage, &["install", &url("/x.iso")])).0, Some(0));
    assert_eq!(arrived(&stage), file);
    let (code, complaint) = run(&mut spsctl(&stage, &["install", &url("/away")]));
    assert_eq!(code, Some(4));
    assert!(complaint.contains("answers 302 Found"), "{complaint}");
}
