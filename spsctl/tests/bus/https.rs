//! A web server and a proxy that do as a test tells them, with certificates made by openssl.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A request, as far as it matters.
pub(crate) struct Request {
    /// The first line and the headers.
    pub(crate) head: String,
    /// Which request of this server it is, from 0.
    pub(crate) number: usize,
}

impl Request {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    /// The first byte of an open range.
    pub(crate) fn range(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// An answer.
pub(crate) struct Reply {
    /// Status line after the version, then headers, each line ended.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// How many bytes of the body are sent.
    pub(crate) sent: usize,
    /// Nothing more is sent and the connection stays.
    pub(crate) stall: bool,
}

impl Reply {
    /// A status and headers, without a body.
    pub(crate) fn bare(head: &str) -> Self {
        Self { head: format!("{head}\r\nContent-Length: 0\r\n"), body: Vec::new(), sent: 0, stall: false }
    }

    /// The file, or the rest of it where `from` is above 0.
    pub(crate) fn file(file: &[u8], from: usize, headers: &str) -> Self {
        let body = file[from..].to_vec();
        let (length, last, total) = (body.len(), file.len() - 1, file.len());
        let head = if from > 0 {
            format!("206 Partial Content\r\nContent-Range: bytes {from}-{last}/{total}\r\n{headers}")
        } else {
            format!("200 OK\r\n{headers}")
        };
        Self { head: format!("{head}Content-Length: {length}\r\n"), body, sent: length, stall: false }
    }

    /// The same, ended after so many bytes.
    pub(crate) fn cut(mut self, sent: usize) -> Self {
        self.sent = sent.min(self.body.len());
        self
    }
}

type Behaviour = dyn Fn(&Request) -> Reply + Send + Sync;

/// A server on a port of its own; it ends with the process.
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Site {
    /// With TLS, as `localhost`.
    pub(crate) fn https(behaviour: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(Some(certificates().config.clone()), Arc::new(behaviour))
    }

    /// Without TLS.
    pub(crate) fn http(behaviour: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(None, Arc::new(behaviour))
    }

    fn start(tls: Option<Arc<ServerConfig>>, behaviour: Arc<Behaviour>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let log = Arc::clone(&requests);
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (tls, behaviour, log) = (tls.clone(), Arc::clone(&behaviour), Arc::clone(&log));
                // A client that does not like what it sees goes away; what it says then is seen elsewhere.
                thread::spawn(move || {
                    let end = socket.try_clone()?;
                    match tls {
                        Some(config) => {
                            let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
                            answer(&mut StreamOwned::new(connection, socket), &log, &*behaviour)?;
                        }
                        None => answer(&mut &socket, &log, &*behaviour)?,
                    }
                    end.shutdown(Shutdown::Both)
                });
            }
        });
        Self { address, requests }
    }

    /// The address of a file on it.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    /// Heads of the requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn answer(
    stream: &mut (impl Read + Write),
    log: &Mutex<Vec<String>>,
    behaviour: &Behaviour,
) -> std::io::Result<()> {
    let head = read_head(stream)?;
    let number = {
        let mut log = log.lock().unwrap();
        log.push(head.clone());
        log.len() - 1
    };
    let reply = behaviour(&Request { head, number });
    stream.write_all(format!("HTTP/1.1 {}\r\n", reply.head).as_bytes())?;
    stream.write_all(&reply.body[..reply.sent])?;
    stream.flush()?;
    if reply.stall {
        // Until the client gives up.
        let _ = stream.read(&mut [0]);
    }
    Ok(())
}

/// Up to the empty line.
fn read_head(stream: &mut impl Read) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// A proxy that knows CONNECT alone: its address, and what it was asked for.
pub(crate) fn connect_proxy() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let log = Arc::clone(&asked);
    thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                let head = read_head(&mut client)?;
                log.lock().unwrap().push(head.clone());
                let target = head.split(' ').nth(1).unwrap_or_default().replace("localhost", "127.0.0.1");
                let server = TcpStream::connect(target)?;
                client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
                let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
                thread::spawn(move || std::io::copy(&mut from, &mut to));
                let done = std::io::copy(&mut &server, &mut client);
                client.shutdown(Shutdown::Both)?;
                done
            });
        }
    });
    (address, asked)
}

/// An authority, and a server's certificate that it signed.
pub(crate) struct Certificates {
    directory: tempfile::TempDir,
    config: Arc<ServerConfig>,
}

impl Certificates {
    /// The authority.
    pub(crate) fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// An authority that signed nothing.
    pub(crate) fn other_ca(&self) -> PathBuf {
        self.directory.path().join("other.pem")
    }
}

/// The certificates of this run.
pub(crate) fn certificates() -> &'static Certificates {
    static MADE: OnceLock<Certificates> = OnceLock::new();
    MADE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        authority(path, "ca");
        authority(path, "other");
        openssl(
            path,
            "req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
             -CA ca.pem -CAkey ca.key -keyout server.key -out server.pem \
             -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE",
        );
        let chain = CertificateDer::pem_file_iter(path.join("server.pem")).unwrap().map(Result::unwrap);
        let key = PrivateKeyDer::from_pem_file(path.join("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.collect(), key)
            .unwrap();
        Certificates { directory, config: Arc::new(config) }
    })
}

fn authority(path: &Path, name: &str) {
    openssl(
        path,
        &format!(
            "req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} \
             -keyout {name}.key -out {name}.pem -addext keyUsage=critical,keyCertSign"
        ),
    );
}

fn openssl(directory: &Path, arguments: &str) {
    let mut command = Command::new("openssl");
    let output = command.current_dir(directory).args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
