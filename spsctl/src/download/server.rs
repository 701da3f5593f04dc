//! One server and one file on it: the request, and what its answer says of the file.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use ureq::http::{HeaderMap, Response, StatusCode, Uri, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, BodyReader};

use super::error::DownloadError;
use super::proxy::{self, Environment};
use crate::cli::DownloadArgs;
use crate::error::CtlError;

/// How long a server may send nothing, where nothing else is asked for.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Redirects that are followed.
const REDIRECTS: u32 = 5;
/// Most bytes of a file of certificates.
const CA_LIMIT: u64 = 4 << 20;

/// A file on a server, and how it is asked for.
pub struct Server {
    uri: Uri,
    host: String,
    agent: Agent,
    stall: Duration,
    retries: Option<u32>,
}

/// What tells one version of a file from another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    etag: Option<String>,
    modified: Option<String>,
    /// Size of the whole file.
    pub(super) total: Option<u64>,
}

/// An answer that can be read.
pub(super) struct Reply {
    pub(super) identity: Identity,
    pub(super) body: BodyReader<'static>,
    /// Bytes at the start of the body that were asked to be left out and were not.
    pub(super) skip: u64,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Server {
    /// Reads the URL and everything that the connection needs; nothing is sent yet.
    pub fn new(url: &str, args: &DownloadArgs, environment: &Environment) -> Result<Self, CtlError> {
        let uri = parse(url)?;
        let host = uri.authority().map(ToString::to_string).unwrap_or_default();
        let plain = uri.scheme_str() == Some("http");
        let stall = args.stall_timeout.unwrap_or(STALL_TIMEOUT);
        let (roots, proxy) = if plain {
            (RootCerts::new_with_certs(&[]), None)
        } else {
            (
                roots(args.ca.as_deref())?,
                proxy::choose(args.proxy.as_deref(), environment, uri.host().unwrap_or_default())?,
            )
        };
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(roots)
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .proxy(proxy)
            .https_only(!plain)
            .max_redirects(if plain { 0 } else { REDIRECTS })
            .http_status_as_error(false)
            .max_idle_connections(0)
            .user_agent(concat!("spsctl/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(stall))
            .timeout_connect(Some(stall))
            .timeout_send_request(Some(stall))
            .timeout_recv_response(Some(stall))
            .timeout_per_read(Some(stall))
            .timeout_per_write(Some(stall))
            .build()
            .new_agent();
        Ok(Self { uri, host, agent, stall, retries: args.retries })
    }

    /// Host and port, for people.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Attempts in a row that were asked for.
    pub(super) fn retries(&self) -> Option<u32> {
        self.retries
    }

    /// Asks for the file from byte `at` on; with `known`, for the same file as before.
    pub(super) fn get(&self, at: u64, known: Option<&Identity>) -> Result<Reply, DownloadError> {
        let mut request = self.agent.get(&self.uri);
        if at > 0 {
            request = request.header(header::RANGE, format!("bytes={at}-"));
            if let Some(validator) = known.and_then(Identity::validator) {
                request = request.header(header::IF_RANGE, validator);
            }
        }
        let response = request.call().map_err(|error| self.broken(error))?;
        let (identity, skip) = self.judge(&response, at)?;
        if let Some(known) = known {
            self.compare(known, &identity)?;
        }
        let body = response.into_body().into_with_config().limit(u64::MAX).reader();
        Ok(Reply { identity, body, skip })
    }

    /// The error of a request or of a body.
    pub(super) fn broken(&self, source: ureq::Error) -> DownloadError {
        let host = self.host.clone();
        match source {
            ureq::Error::Timeout(_) => DownloadError::Stalled { host, seconds: self.stall.as_secs() },
            ureq::Error::RequireHttpsOnly(_) => DownloadError::Downgrade { host },
            // Its text holds the URL.
            ureq::Error::BadUri(_) => self.unusable("it redirects to something that is no URL"),
            source => DownloadError::Request { host, source },
        }
    }

    fn unusable(&self, what: &str) -> DownloadError {
        DownloadError::Answer { host: self.host.clone(), what: what.to_owned() }
    }

    /// What an answer holds: which file, and how much of it that was not asked for.
    fn judge(&self, response: &Response<Body>, at: u64) -> Result<(Identity, u64), DownloadError> {
        let headers = response.headers();
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut identity =
            Identity { etag: text(header::ETAG), modified: text(header::LAST_MODIFIED), total: None };
        if text(header::CONTENT_ENCODING).is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
            return Err(self.unusable("the image is compressed on the way, which was not asked for"));
        }
        match response.status() {
            StatusCode::OK => {
                identity.total = response.body().content_length();
                Ok((identity, at))
            }
            StatusCode::PARTIAL_CONTENT => match content_range(headers) {
                Some((first, total)) if at > 0 && first == at => {
                    identity.total = total;
                    Ok((identity, 0))
                }
                _ => Err(self.unusable("it is not the part that was asked for")),
            },
            StatusCode::RANGE_NOT_SATISFIABLE if at > 0 => {
                let size = unsatisfied(headers);
                Err(size.map_or_else(
                    || self.refused(response.status()),
                    |size| DownloadError::TooShort { at, size },
                ))
            }
            status => Err(self.refused(status)),
        }
    }

    fn refused(&self, status: StatusCode) -> DownloadError {
        let may_pass = status.is_server_error()
            || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
        DownloadError::Status { host: self.host.clone(), status: status.to_string(), may_pass }
    }

    /// Refuses to put two files together.
    fn compare(&self, before: &Identity, now: &Identity) -> Result<(), DownloadError> {
        let changed = |what, before: &dyn ToString, now: &dyn ToString| DownloadError::Changed {
            host: self.host.clone(),
            what,
            before: before.to_string(),
            now: now.to_string(),
        };
        match (&before.etag, &now.etag) {
            (Some(a), Some(b)) if a != b => return Err(changed("ETag", a, b)),
            _ => {}
        }
        match (&before.modified, &now.modified) {
            (Some(a), Some(b)) if a != b => return Err(changed("date", a, b)),
            _ => {}
        }
        match (before.total, now.total) {
            (Some(a), Some(b)) if a != b => Err(changed("size", &a, &b)),
            _ => Ok(()),
        }
    }
}

impl Identity {
    /// What `If-Range` takes (RFC 9110, 13.1.5): a strong `ETag`, else the date.
    fn validator(&self) -> Option<&str> {
        self.etag.as_deref().filter(|etag| !etag.starts_with("W/")).or(self.modified.as_deref())
    }
}

/// `Content-Range: bytes FIRST-LAST/TOTAL` (RFC 9110, 14.4), TOTAL being `*` where it is not known.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let first = range.split_once('-')?.0.trim().parse().ok()?;
    Some((first, if total == "*" { None } else { Some(total.parse().ok()?) }))
}

/// `Content-Range: bytes */TOTAL`.
fn unsatisfied(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes */")?.parse().ok()
}

/// The URL, where it may be used.
fn parse(url: &str) -> Result<Uri, CtlError> {
    let usage = |what: &str| CtlError::Usage(what.to_owned());
    let uri: Uri = url.parse().map_err(|_| usage("this is no URL; expected https://HOST/PATH"))?;
    let authority = uri.authority().filter(|authority| !authority.host().is_empty());
    let authority = authority.ok_or_else(|| usage("the URL names no host; expected https://HOST/PATH"))?;
    if authority.as_str().contains('@') {
        return Err(usage("a URL with a user name or a password is refused: other users could see it"));
    }
    match uri.scheme_str() {
        Some("https") => Ok(uri),
        Some("http") if is_loopback(authority.host()) => Ok(uri),
        Some("http") => {
            Err(usage("http is refused: everybody on the way could see and change it; use https"))
        }
        _ => Err(usage("only https URLs are downloaded; a file with such a name is given as ./NAME")),
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// Who may vouch for a server: those in the file and no others, else those of the system.
fn roots(file: Option<&Path>) -> Result<RootCerts, CtlError> {
    let ders = if let Some(file) = file {
        read_ca(file)?
    } else {
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            let why = found.errors.first().map_or_else(|| "none was found".to_owned(), ToString::to_string);
            return Err(DownloadError::NoRoots { why }.into());
        }
        found.certs
    };
    let roots: Vec<_> = ders.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    Ok(RootCerts::new_with_certs(&roots))
}

fn read_ca(file: &Path) -> Result<Vec<CertificateDer<'static>>, CtlError> {
    let usage = |what: String| CtlError::Usage(format!("--ca {}: {what}", file.display()));
    let mut pem = Vec::new();
    File::open(file)
        .and_then(|open| open.take(CA_LIMIT).read_to_end(&mut pem))
        .map_err(|error| usage(format!("cannot read it: {error}")))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| usage(format!("a certificate in it cannot be read: {error}")))?;
    let mut store = rustls::RootCertStore::empty();
    for certificate in &certificates {
        let added = store.add(certificate.clone());
        added.map_err(|error| usage(format!("a certificate in it cannot be used: {error}")))?;
    }
    if certificates.is_empty() {
        return Err(usage("there is no certificate in it; expected PEM".to_owned()));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_and_this_machine() {
        for good in
            ["https://example.com/x.iso", "http://localhost/x", "http://127.0.0.2:8/x", "http://[::1]/x"]
        {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in [
            "http://example.com/x",
            "http://127.0.0.1.example.com/x",
            "ftp://example.com/x",
            "https://",
            "https:///x",
        ] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn password_in_a_url_is_refused_and_not_repeated() {
        let error = parse("https://me:secret@example.com/x").unwrap_err().to_string();
        assert!(error.contains("is refused") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn content_ranges() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, text.parse().unwrap());
            (content_range(&headers), unsatisfied(&headers))
        };
        assert_eq!(of("bytes 5-9/10"), (Some((5, Some(10))), None));
        assert_eq!(of("bytes 5-9/*"), (Some((5, None)), None));
        assert_eq!(of("bytes */10"), (None, Some(10)));
        for wrong in ["", "items 5-9/10", "bytes 5-9", "bytes x-9/10", "bytes 5-9/x", "bytes -1-9/10"] {
            assert_eq!(of(wrong), (None, None), "{wrong}");
        }
    }

    #[test]
    fn weak_validators_do_not_serve_for_parts() {
        let identity = |etag: &str, modified: Option<&str>| Identity {
            etag: Some(etag.to_owned()),
            modified: modified.map(str::to_owned),
            total: None,
        };
        assert_eq!(identity("\"a\"", Some("date")).validator(), Some("\"a\""));
        assert_eq!(identity("W/\"a\"", Some("date")).validator(), Some("date"));
        assert_eq!(identity("W/\"a\"", None).validator(), None);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test writes what the program reads")]
    fn ca_file_must_hold_certificates() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.pem");
        let message = || read_ca(&file).unwrap_err().to_string();
        assert!(message().contains("cannot read it"), "{}", message());
        std::fs::write(&file, "nothing").unwrap();
        assert!(message().contains("no certificate"), "{}", message());
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(message().contains("cannot be used"), "{}", message());
    }
}
