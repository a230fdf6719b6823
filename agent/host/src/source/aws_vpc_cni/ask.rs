//! One GET request to a server on this machine, bounded in time and size.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use headroom_core::time::NodeTime;

use super::DEFAULT_SERVER;
use crate::bounded::shown;
use crate::clock;

/// The longest answer taken: ten times what ipamd says of the largest instance.
const ANSWER_LIMIT: u64 = 16 << 20;
/// More headers than any answer has.
const HEADERS_LIMIT: usize = 64;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// On an address.
    Tcp(SocketAddr),
    /// On a socket file.
    Unix(PathBuf),
}

impl Default for Server {
    fn default() -> Self {
        Self::Tcp(DEFAULT_SERVER.parse().expect("it is an address and a port"))
    }
}

impl FromStr for Server {
    type Err = String;

    /// `ADDRESS:PORT` or `unix:/PATH`, as in ipamd's `INTROSPECTION_BIND_ADDRESS`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(PathBuf::from(path))),
            Some(_relative) => Err("a socket's path begins with `/`".to_owned()),
            None => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_other| format!("`{}` is neither ADDRESS:PORT nor unix:/PATH", shown(text.as_bytes()))),
        }
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// Nobody listens.
    #[error("nobody listens at {0}; is aws-node running, without DISABLE_INTROSPECTION?")]
    Nobody(Server),
    /// It took too long.
    #[error("{0} did not answer in time")]
    Late(Server),
    /// Another error.
    #[error("{server} could not be asked ({text})")]
    Failed {
        /// Who.
        server: Server,
        /// What went wrong.
        text: String,
    },
    /// Bytes that are no answer.
    #[error("what {server} answers {bad}")]
    Bad {
        /// Who.
        server: Server,
        /// What is wrong with it.
        bad: BadResponse,
    },
}

/// What is wrong with an answer. The text continues a sentence that has named the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadResponse {
    /// Not HTTP.
    #[error("is not HTTP")]
    NotHttp,
    /// An error of the server.
    #[error("is the status {0}")]
    Status(u16),
    /// More than is taken.
    #[error("is longer than {ANSWER_LIMIT} bytes")]
    TooLong,
    /// Something that nobody asked for.
    #[error("has the transfer encoding `{0}`, which was not asked for")]
    Encoded(String),
}

impl Server {
    /// Asks for a path, until `deadline`.
    ///
    /// # Errors
    /// Nobody who listens, no answer in time, an answer that is none.
    pub fn get(&self, path: &str, deadline: NodeTime) -> Result<Vec<u8>, NoAnswer> {
        // HTTP/1.0: the answer ends with the connection and comes in one piece.
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n\r\n");
        let answer = match self {
            Self::Tcp(address) => {
                let stream =
                    TcpStream::connect_timeout(address, left(deadline)).map_err(|error| self.failed(&error))?;
                self.exchange(&stream, |wait| stream.set_read_timeout(Some(wait)), &request, deadline)
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(|error| self.failed(&error))?;
                self.exchange(&stream, |wait| stream.set_read_timeout(Some(wait)), &request, deadline)
            }
        }?;
        let bad = |bad| NoAnswer::Bad { server: self.clone(), bad };
        body(&answer).map(<[u8]>::to_vec).map_err(bad)
    }

    /// Sends a request and reads to the end. Every read may take what is left of the time: a trickle does not prolong it.
    fn exchange<'a, S>(
        &self,
        mut stream: &'a S,
        set_wait: impl Fn(Duration) -> io::Result<()>,
        request: &str,
        deadline: NodeTime,
    ) -> Result<Vec<u8>, NoAnswer>
    where
        &'a S: Read + Write,
    {
        let failed = |error| self.failed(&error);
        stream.write_all(request.as_bytes()).map_err(failed)?;
        let mut answer = Vec::new();
        let mut part = [0; 16 << 10];
        loop {
            if clock::node_time() >= deadline {
                return Err(NoAnswer::Late(self.clone()));
            }
            set_wait(left(deadline)).map_err(failed)?;
            match stream.read(&mut part) {
                Ok(0) => return Ok(answer),
                Ok(length) => answer.extend_from_slice(part.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
            if u64::try_from(answer.len()).unwrap_or(u64::MAX) > ANSWER_LIMIT {
                return Err(NoAnswer::Bad { server: self.clone(), bad: BadResponse::TooLong });
            }
        }
    }

    fn failed(&self, error: &io::Error) -> NoAnswer {
        use io::ErrorKind::{ConnectionRefused, NotFound, TimedOut, WouldBlock};
        match error.kind() {
            ConnectionRefused | NotFound => NoAnswer::Nobody(self.clone()),
            TimedOut | WouldBlock => NoAnswer::Late(self.clone()),
            _other => NoAnswer::Failed { server: self.clone(), text: error.to_string() },
        }
    }
}

/// What is left until a moment; never zero, which would mean for ever.
fn left(deadline: NodeTime) -> Duration {
    deadline.since(clock::node_time()).max(Duration::from_millis(1))
}

/// The body of an answer to a request of HTTP/1.0.
///
/// # Errors
/// Bytes that are not HTTP, and answers that are none.
pub fn body(answer: &[u8]) -> Result<&[u8], BadResponse> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_LIMIT];
    let mut response = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = response.parse(answer) else { return Err(BadResponse::NotHttp) };
    if let Some(status) = response.code.filter(|status| *status != 200) {
        return Err(BadResponse::Status(status));
    }
    let encoding = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("transfer-encoding"));
    if let Some(header) = encoding.filter(|header| !header.value.eq_ignore_ascii_case(b"identity")) {
        return Err(BadResponse::Encoded(shown(header.value)));
    }
    Ok(answer.get(head..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_follows_the_head() {
        assert_eq!(body(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{}").unwrap(), b"{}");
        assert_eq!(body(b"HTTP/1.1 404 Not Found\r\n\r\nno"), Err(BadResponse::Status(404)));
        assert_eq!(body(b"220 mail.example ESMTP\r\n"), Err(BadResponse::NotHttp));
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nContent-"), Err(BadResponse::NotHttp));
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
        assert_eq!(body(chunked), Err(BadResponse::Encoded("chunked".to_owned())));
    }

    #[test]
    fn servers_are_named_as_ipamd_names_them() {
        assert_eq!("127.0.0.1:61679".parse(), Ok(Server::default()));
        assert_eq!("unix:/run/ipamd.sock".parse(), Ok(Server::Unix("/run/ipamd.sock".into())));
        assert!("unix:ipamd.sock".parse::<Server>().unwrap_err().contains("begins with"));
        assert!("localhost".parse::<Server>().unwrap_err().contains("ADDRESS:PORT"));
    }
}
