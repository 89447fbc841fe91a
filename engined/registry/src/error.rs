//! What goes wrong between here and a registry, and the fault it becomes.

use std::fmt;
use std::time::Duration;

use strata_fault::{Fault, GrpcCode, Layer, code};

use crate::digest::Digest;
use crate::document::DocumentError;

/// The cause of an error that another crate raised.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The registry asks callers to come back later.
pub const REGISTRY_RATE_LIMITED: &str = "REGISTRY_RATE_LIMITED";
/// The registry failed, or did not keep to the protocol.
pub const REGISTRY_FAILED: &str = "REGISTRY_FAILED";
/// The image is not made for the wanted platform.
pub const PLATFORM_NOT_FOUND: &str = "PLATFORM_NOT_FOUND";

/// What was attempted, on what, and why it did not work.
#[derive(Debug)]
pub struct Error {
    attempt: String,
    problem: Problem,
}

impl Error {
    /// What was attempted on what, and what came of it.
    pub fn new(attempt: impl Into<String>, problem: Problem) -> Error {
        Error { attempt: attempt.into(), problem }
    }

    /// Why it did not work.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// The same, for one who wants to keep it.
    pub fn into_problem(self) -> Problem {
        self.problem
    }

    /// The form that leaves the program.
    pub fn fault(&self) -> Fault {
        let fault = Fault::new(Layer::Registry, "pull", self.problem.code(), &self.attempt).caused_by(&self.problem);
        let fault = match self.problem.hint() {
            Some(hint) => fault.hint(hint),
            None => fault,
        };
        match self.problem {
            Problem::RateLimited { .. } => fault.grpc(GrpcCode::ResourceExhausted),
            Problem::Platform { .. } => fault.grpc(GrpcCode::NotFound),
            _ => fault,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.attempt)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.problem)
    }
}

/// Why a request came to nothing.
#[derive(Debug)]
pub enum Problem {
    /// No connection, no name, no TLS.
    Connect {
        /// `host:port`.
        host: String,
        /// The certificate or the protocol was bad: trying again changes nothing.
        tls: bool,
        /// The reason.
        source: Cause,
    },
    /// The connection broke.
    Broken {
        /// `host:port`.
        host: String,
        /// The reason.
        source: Cause,
    },
    /// Nothing, or next to nothing, came for that long.
    Stalled {
        /// `host:port`.
        host: String,
        /// So long.
        waited: Duration,
    },
    /// Credentials are wanted, or were not accepted.
    Unauthorized {
        /// `host:port`.
        host: String,
        /// Whether some were given.
        given: bool,
        /// The registry's words.
        said: String,
    },
    /// The registry knows the caller and says no.
    Forbidden {
        /// The registry's words.
        said: String,
    },
    /// There is no such thing.
    NotFound {
        /// The registry's words.
        said: String,
    },
    /// Too many requests.
    RateLimited {
        /// The registry's words.
        said: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// Any other status.
    Status {
        /// `500`.
        status: u16,
        /// The registry's words.
        said: String,
    },
    /// An answer that the protocol does not have.
    Protocol(String),
    /// A redirect or a token server that must not be followed.
    Unsafe(String),
    /// Other bytes than promised.
    Digest {
        /// As promised.
        expected: Digest,
        /// Of what came.
        actual: Digest,
    },
    /// More or fewer bytes than promised.
    Size {
        /// As promised.
        expected: u64,
        /// What came, or was announced; one more than promised if nobody counted further.
        actual: u64,
    },
    /// More bytes than a document may have.
    TooLarge {
        /// The bound.
        limit: u64,
    },
    /// The document cannot be used.
    Document(DocumentError),
    /// No image for the platform.
    Platform {
        /// Wanted.
        wanted: String,
        /// What there is.
        offered: String,
    },
    /// Local set-up: certificates, credentials.
    Setup(Cause),
}

impl Problem {
    /// Whether the same request may well work a little later.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Problem::Connect { tls, .. } => !tls,
            Problem::Broken { .. } | Problem::Stalled { .. } | Problem::RateLimited { .. } => true,
            Problem::Status { status, .. } => matches!(status, 408 | 425 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Whether the other side was asked with TLS and does not speak it, or is not there.
    pub(crate) fn is_no_tls(&self) -> bool {
        match self {
            Problem::Connect { tls: true, source, .. } => crate::transport::is_no_tls(&**source),
            Problem::Connect { tls: false, .. } => true,
            _ => false,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Problem::Connect { .. } | Problem::Broken { .. } | Problem::Stalled { .. } => code::REGISTRY_UNREACHABLE,
            Problem::Unauthorized { .. } | Problem::Forbidden { .. } => code::REGISTRY_UNAUTHORIZED,
            Problem::NotFound { .. } => code::IMAGE_NOT_FOUND,
            Problem::RateLimited { .. } => REGISTRY_RATE_LIMITED,
            Problem::Status { .. } | Problem::Protocol(_) | Problem::Unsafe(_) | Problem::Setup(_) => REGISTRY_FAILED,
            Problem::Digest { .. } => code::DIGEST_MISMATCH,
            Problem::Size { .. } => code::SIZE_MISMATCH,
            Problem::TooLarge { .. } | Problem::Document(_) => code::MANIFEST_INVALID,
            Problem::Platform { .. } => PLATFORM_NOT_FOUND,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Problem::Connect { host, tls: true, .. } => Some(format!(
                "if {host} is meant to be spoken to without verified TLS, list it under [registry] insecure"
            )),
            Problem::Connect { host, .. } => Some(format!("is {host} the right address, and is the registry running?")),
            Problem::Unauthorized { host, given: false, .. } => Some(format!("log in first: docker login {host}")),
            Problem::Unauthorized { host, .. } => Some(format!("the stored credentials for {host} are not accepted")),
            Problem::NotFound { .. } => {
                Some("check the name and the tag; a private repository may need a login".into())
            }
            Problem::Digest { .. } | Problem::Size { .. } => {
                Some("the registry, or something between here and it, sends other content than it promised".into())
            }
            Problem::RateLimited { .. } => Some("wait, or log in to get a higher limit".into()),
            _ => None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Problem::*;
        match self {
            Connect { host, .. } => write!(f, "connect to {host}"),
            Broken { host, .. } => write!(f, "the connection to {host} broke"),
            Stalled { host, waited } => write!(f, "{host} sent nothing of use for {} s", waited.as_secs()),
            Unauthorized { host, given: false, said } => write!(f, "{host} wants credentials{}", Said(said)),
            Unauthorized { host, said, .. } => write!(f, "{host} does not accept the credentials{}", Said(said)),
            Forbidden { said } => write!(f, "the registry does not allow it (403{})", Said(said)),
            NotFound { said } => write!(f, "the registry does not have it (404{})", Said(said)),
            RateLimited { said, .. } => write!(f, "the registry takes no more requests for now (429{})", Said(said)),
            Status { status, said } => write!(f, "the registry answered {status}{}", Said(said)),
            Protocol(what) => write!(f, "the registry does not keep to the protocol: {what}"),
            Unsafe(what) => f.write_str(what),
            Digest { expected, actual } => write!(f, "the digest of what came is {actual}, not {expected}"),
            Size { expected, actual } if *actual == expected + 1 => write!(f, "more than {expected} bytes came"),
            Size { expected, actual } => write!(f, "{actual} bytes came, not {expected}"),
            TooLarge { limit } => write!(f, "it has more than {limit} bytes"),
            Document(error) => write!(f, "{error}"),
            Platform { wanted, offered } => write!(f, "there is no image for {wanted}, only for {offered}"),
            Setup(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Problem {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Problem::Connect { source, .. } | Problem::Broken { source, .. } => Some(&**source),
            // These two are shown by their own words above, so the chain goes on below them.
            Problem::Document(error) => error.source(),
            Problem::Setup(error) => error.source(),
            _ => None,
        }
    }
}

/// `: words`, or nothing.
struct Said<'a>(&'a str);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_has_the_whole_chain() {
        let refused = std::io::Error::from_raw_os_error(111);
        let problem = Problem::Connect { host: "localhost:5000".into(), tls: false, source: Box::new(refused) };
        let fault = Error::new("fetch the manifest of localhost:5000/x:latest", problem).fault();
        assert_eq!(
            (fault.layer, fault.step.as_str(), fault.code.as_str()),
            (Layer::Registry, "pull", code::REGISTRY_UNREACHABLE)
        );
        assert_eq!(fault.message, "fetch the manifest of localhost:5000/x:latest");
        assert_eq!(fault.causes, ["connect to localhost:5000", "Connection refused (os error 111)"]);
        assert!(fault.hint.unwrap().contains("localhost:5000"));
    }

    #[test]
    fn the_registrys_words_follow() {
        let said = |said: &str| Problem::NotFound { said: said.into() }.to_string();
        assert_eq!(said("manifest unknown"), "the registry does not have it (404: manifest unknown)");
        assert_eq!(said(""), "the registry does not have it (404)");
    }
}
