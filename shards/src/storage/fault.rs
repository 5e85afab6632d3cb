//! Why a store did not do what it was asked to, in words that say what to change. Replies of stores are never quoted
//! whole: some repeat the headers of the request, and with them secrets.

use std::error::Error as StdError;

use object_store::client::{HttpError, HttpErrorKind};

/// Longest message of a store that is passed on, in characters.
const MESSAGE_CHARS: usize = 300;

/// How the client begins to speak of a reply that is an error, of one whose body is, and of one that points nowhere.
const STATUS: &str = "Server returned non-2xx status code: ";
const ERROR_BODY: &str = "Server returned error response: ";
const REDIRECT: &str = "Received redirect without LOCATION";

/// What went wrong, by what can be done about it.
#[derive(Debug)]
pub(super) enum Fault {
    /// There is no such object.
    Missing,
    /// The object ends before the range begins.
    PastEnd,
    /// Trouble of the moment: asking again may help.
    Passing(String),
    /// The store understood and refuses.
    Refused(String),
    /// Somebody else wrote the object first.
    Conflict,
    /// Anything else.
    Other(std::io::Error),
}

impl Fault {
    pub fn of(error: &object_store::Error) -> Self {
        let mut inner: Option<&(dyn StdError + 'static)> = Some(error);
        let mut last = inner;
        while let Some(cause) = inner {
            if let Some(http) = cause.downcast_ref::<HttpError>() {
                return Fault::Passing(transport(http));
            }
            if let Some(web) = cause.downcast_ref::<reqwest::Error>() {
                return match web.status() {
                    Some(status) => Self::of_reply(status.as_u16(), ""),
                    None => Fault::Passing(innermost(web)),
                };
            }
            last = Some(cause);
            inner = cause.source();
        }
        // The client keeps the type of its failed requests to itself, so what a store answered comes as text.
        let said = last.map(ToString::to_string).unwrap_or_default();
        match (Self::of_text(&said), error) {
            // Not the object is missing then, but whoever was asked for credentials on the way has none.
            (Some(Fault::Missing), object_store::Error::Generic { .. }) => {
                return Fault::Refused(words(404, &said));
            }
            (Some(fault), _) => return fault,
            (None, _) => {}
        }
        match error {
            object_store::Error::NotFound { .. } => Fault::Missing,
            object_store::Error::AlreadyExists { .. }
            | object_store::Error::Precondition { .. } => Fault::Conflict,
            _ => Fault::Other(system(error, last)),
        }
    }

    fn of_text(said: &str) -> Option<Self> {
        if let Some(reply) = said.strip_prefix(STATUS) {
            let status = reply.get(..3)?.parse().ok()?;
            return Some(Self::of_reply(status, reply));
        }
        if let Some(reply) = said.strip_prefix(ERROR_BODY) {
            return Some(Fault::Passing(words(500, reply)));
        }
        let region = "the bucket lies in another region than the one asked: set AWS_REGION";
        said.starts_with(REDIRECT)
            .then(|| Fault::Refused(region.to_owned()))
    }

    fn of_reply(status: u16, body: &str) -> Self {
        let missing_bucket = ["NoSuchBucket", "ContainerNotFound"];
        match status {
            404 if element(body, "Code").is_some_and(|code| missing_bucket.contains(&code)) => {
                Fault::Refused(words(status, body))
            }
            404 => Fault::Missing,
            416 => Fault::PastEnd,
            409 | 412 => Fault::Conflict,
            408 | 429 | 500..=599 => Fault::Passing(words(status, body)),
            _ => Fault::Refused(words(status, body)),
        }
    }
}

/// What an error code of S3, Google's or Azure's store asks its reader to do.
fn advice(code: &str) -> Option<&'static str> {
    Some(match code {
        "InvalidAccessKeyId" | "NotSignedUp" => {
            "the access key id is not known there: wrong credentials, or those of another store"
        }
        "SignatureDoesNotMatch" => "the secret key does not belong to the access key id",
        "AuthenticationFailed" => "the credentials are wrong, or this machine's clock is",
        "InvalidToken" | "TokenRefreshRequired" => {
            "the session token is not valid: get new credentials"
        }
        "ExpiredToken" | "ExpiredTokenException" => {
            "the session token has expired: get new credentials"
        }
        "AccessDenied" | "AuthorizationFailure" | "AuthorizationPermissionMismatch" => {
            "access denied: these credentials may not do this, or the bucket wants the requester to pay \
             (AWS_REQUEST_PAYER=requester)"
        }
        "NoSuchBucket" | "ContainerNotFound" => "there is no such bucket",
        "InvalidBucketName" => "no bucket can have this name",
        "PermanentRedirect"
        | "TemporaryRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException"
        | "AuthorizationQueryParametersError" => {
            "the bucket lies in another region than the one asked: set AWS_REGION"
        }
        "RequestTimeTooSkewed" | "RequestExpired" => {
            "this machine's clock is wrong: the store allows for a few minutes"
        }
        "SlowDown" | "ServerBusy" | "TooManyRequests" => "the store wants fewer requests",
        "EntityTooLarge" => "the object is larger than the store takes",
        _ => return None,
    })
}

/// A reply in words: what to do, then the store's own code and message.
fn words(status: u16, body: &str) -> String {
    let code = element(body, "Code");
    let mut said = match code {
        Some(code) => format!("status {status}, {code}"),
        None => format!("status {status}"),
    };
    if let Some(message) = element(body, "Message") {
        let message: String = message.chars().take(MESSAGE_CHARS).collect();
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        said.push_str(&format!(": {message}"));
    }
    for name in ["Region", "Endpoint", "ServerTime"] {
        if let Some(value) = element(body, name) {
            said.push_str(&format!(", {name} {value}"));
        }
    }
    let without_code = match status {
        301 | 307 | 308 => {
            Some("the bucket lies in another region than the one asked: set AWS_REGION")
        }
        401 | 403 => Some("access denied: wrong credentials, or not theirs to do"),
        _ => None,
    };
    match code.and_then(advice).or(without_code) {
        Some(advice) => format!("{advice} [{said}]"),
        None => format!("the store answered with {said}"),
    }
}

/// The text of an XML element without attributes or children.
fn element<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let text = text.trim();
    (!text.is_empty() && !text.contains('<')).then_some(text)
}

fn transport(error: &HttpError) -> String {
    let what = match error.kind() {
        HttpErrorKind::Connect => "no connection",
        HttpErrorKind::Timeout => "no answer in time",
        HttpErrorKind::Decode => "an answer that is not understood or was cut off",
        _ => "the connection broke",
    };
    let said = innermost(error);
    match said.contains("UnknownIssuer") {
        true => format!("{what} ({said}: this machine has no certificate that vouches for it)"),
        false => format!("{what} ({said})"),
    }
}

/// What the last of a chain of errors says: the others say it again or say less.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

/// The system's own reason, out of what a store wraps around it.
fn system(error: &object_store::Error, last: Option<&(dyn StdError + 'static)>) -> std::io::Error {
    let mut inner: Option<&(dyn StdError + 'static)> = Some(error);
    let mut system = None;
    while let Some(cause) = inner {
        system = cause.downcast_ref::<std::io::Error>().or(system);
        inner = cause.source();
    }
    match system {
        Some(system) => match system.raw_os_error() {
            Some(code) => std::io::Error::from_raw_os_error(code),
            None => std::io::Error::new(system.kind(), system.to_string()),
        },
        None => std::io::Error::other(last.map_or_else(|| error.to_string(), ToString::to_string)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(code: &str, more: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>Some  words.</Message>{more}</Error>"
        )
    }

    #[test]
    fn replies_are_told_apart_and_say_what_to_change() {
        for (status, code, more, expected) in [
            (
                403,
                "InvalidAccessKeyId",
                "<AWSAccessKeyId>secret</AWSAccessKeyId>",
                "access key id is not known",
            ),
            (
                403,
                "SignatureDoesNotMatch",
                "<CanonicalRequest>secret</CanonicalRequest>",
                "secret key does not belong",
            ),
            (
                403,
                "RequestTimeTooSkewed",
                "<ServerTime>2030-01-01</ServerTime>",
                "ServerTime 2030-01-01",
            ),
            (
                400,
                "AuthorizationHeaderMalformed",
                "<Region>eu-west-1</Region>",
                "Region eu-west-1",
            ),
            (
                301,
                "PermanentRedirect",
                "<Endpoint>b.s3-x.amazonaws.com</Endpoint>",
                "another region",
            ),
            (404, "NoSuchBucket", "", "no such bucket"),
            (
                400,
                "ExpiredToken",
                "<Token-0>secret</Token-0>",
                "has expired",
            ),
            (403, "AccessDenied", "", "access denied"),
            (
                400,
                "Unheard",
                "",
                "answered with status 400, Unheard: Some words.",
            ),
        ] {
            let body = reply(code, more);
            let Fault::Refused(reason) = Fault::of_reply(status, &body) else {
                panic!("{code} is refused")
            };
            assert!(
                reason.contains(expected) && reason.contains(code),
                "{reason}"
            );
            assert!(
                !reason.contains("secret<") && !reason.contains(">secret"),
                "{reason}"
            );
        }
        assert!(
            matches!(Fault::of_reply(403, ""), Fault::Refused(reason) if reason.contains("access denied"))
        );
        assert!(matches!(Fault::of_reply(404, ""), Fault::Missing));
        assert!(matches!(
            Fault::of_reply(404, &reply("NoSuchKey", "")),
            Fault::Missing
        ));
        assert!(matches!(Fault::of_reply(416, ""), Fault::PastEnd));
        assert!(matches!(Fault::of_reply(412, ""), Fault::Conflict));
        for status in [408, 429, 500, 503] {
            assert!(matches!(
                Fault::of_reply(status, "garbage <Code"),
                Fault::Passing(_)
            ));
        }
    }
}
