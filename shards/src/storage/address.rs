//! What the name of a place means.

use crate::error::{Error, Result};

/// What an address may begin with, for messages.
pub(crate) const SCHEMES: &str = "a path or an address that begins with file://, s3://, gs://, az://, http://, https:// or hf://datasets/";

/// Whether an address is that of a store at the other end of a line, and not of a disk.
pub fn is_remote(uri: &str) -> bool {
    uri.split_once("://")
        .is_some_and(|(scheme, _)| scheme != "file")
}

/// Checks that an address names a place and holds no name, password or signature; opens nothing. What is written down
/// before it is opened, such as a configuration, is checked by this first.
///
/// # Errors
/// [`Error::UnsupportedStore`] or [`Error::BadPath`], without what may be a secret.
pub fn check_address(uri: &str) -> Result<()> {
    Address::parse(uri).map(drop)
}

/// A place, by the kind of store it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    /// A path of this machine, absolute or not.
    Path(String),
    /// The path in a `file://` address, still with its `%` escapes.
    FileUrl(String),
    S3(BucketAddress),
    Gcs(BucketAddress),
    Azure(BucketAddress),
    /// The address itself.
    Http(String),
    Hub(HubAddress),
}

/// A bucket or container, and what the names of the objects begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BucketAddress {
    pub bucket: String,
    pub prefix: String,
}

/// `hf://datasets/OWNER/NAME@REVISION/PREFIX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HubAddress {
    /// `OWNER/NAME`, or `NAME` alone for the few that have no owner.
    pub repository: String,
    /// Branch, tag or commit, with `/` as `%2F`.
    pub revision: String,
    pub prefix: String,
}

impl Address {
    /// # Errors
    /// [`Error::UnsupportedStore`] for an unknown scheme, [`Error::BadPath`].
    pub fn parse(uri: &str) -> Result<Self> {
        let bad = |reason: &str| Error::BadPath {
            path: without_secrets(uri),
            reason: reason.to_owned(),
        };
        if uri.is_empty() {
            return Err(bad("an empty path"));
        }
        let Some((scheme, rest)) = uri.split_once("://") else {
            return Ok(Address::Path(uri.to_owned()));
        };
        let bucket = |what: &str| -> Result<BucketAddress> {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            // No store has other names, and a secret key with a `/` in it would pass for a name and a path.
            let usual = |c: char| c.is_ascii_alphanumeric() || "-_.$".contains(c);
            if bucket.is_empty() || !bucket.chars().all(usual) {
                return Err(bad(&format!("expected {scheme}://{what}/path")));
            }
            Ok(BucketAddress {
                bucket: bucket.to_owned(),
                prefix: prefix.trim_end_matches('/').to_owned(),
            })
        };
        match scheme {
            "file" if rest.starts_with('/') => Ok(Address::FileUrl(rest.to_owned())),
            "file" => Err(bad("expected file:// and an absolute path")),
            "s3" => Ok(Address::S3(bucket("bucket")?)),
            "gs" => Ok(Address::Gcs(bucket("bucket")?)),
            "az" => Ok(Address::Azure(bucket("container")?)),
            "http" | "https" => {
                let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
                if host.is_empty() {
                    return Err(bad("expected a host"));
                }
                let after_name = host.rsplit_once(']').map_or(host, |(_, after)| after); // of IPv6
                let port = after_name.rsplit_once(':').map_or("", |(_, port)| port);
                if host.contains('@') || !port.chars().all(|c| c.is_ascii_digit()) {
                    return Err(bad("a name and password in an address end up in logs"));
                }
                if rest.contains(['?', '#']) {
                    return Err(bad("an address with ? or # cannot hold a set"));
                }
                Ok(Address::Http(uri.trim_end_matches('/').to_owned()))
            }
            "hf" => {
                let expected =
                    "expected hf://datasets/OWNER/NAME, then perhaps @REVISION and /path";
                let rest = rest
                    .strip_prefix("datasets/")
                    .ok_or_else(|| bad(expected))?;
                hub(rest).ok_or_else(|| bad(expected))
            }
            _ => Err(Error::UnsupportedStore {
                uri: without_secrets(uri),
                scheme: scheme.to_owned(),
            }),
        }
    }
}

/// The parts after `datasets/`. A revision ends the repository's name; without one, it is the first two parts.
fn hub(rest: &str) -> Option<Address> {
    let rest = rest.trim_end_matches('/');
    let (repository, revision, prefix) = match rest.split_once('@') {
        Some((repository, rest)) => {
            let (revision, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            (repository.to_owned(), revision, prefix.to_owned())
        }
        None => {
            let mut parts = rest.splitn(3, '/');
            let repository = format!("{}/{}", parts.next()?, parts.next()?);
            let prefix = parts.next().unwrap_or_default().to_owned();
            (repository, "main", prefix)
        }
    };
    let is_name = |part: &str| {
        let usual = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && part.chars().all(usual) && !part.chars().all(|c| c == '.')
    };
    let is_revision = revision.split("%2F").all(is_name);
    let names: Vec<&str> = repository.split('/').collect();
    (is_revision && names.len() <= 2 && names.into_iter().all(is_name)).then(|| {
        Address::Hub(HubAddress {
            repository,
            revision: revision.to_owned(),
            prefix,
        })
    })
}

/// An address without what may be a secret: a name and password before the host, and a query.
pub(super) fn without_secrets(uri: &str) -> String {
    match uri.split_once("://") {
        Some((scheme, rest)) => {
            let rest = rest.split(['?', '#']).next().unwrap_or_default();
            // A password may have a `/` in it; before the `@` of a revision there is no `:`.
            let place = match rest.rsplit_once('@') {
                Some((before, place)) if scheme != "hf" || before.contains(':') => place,
                _ => rest,
            };
            format!("{scheme}://{place}")
        }
        None => uri.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let bucket = |bucket: &str, prefix: &str| BucketAddress {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        };
        let hub = |repository: &str, revision: &str, prefix: &str| {
            Address::Hub(HubAddress {
                repository: repository.to_owned(),
                revision: revision.to_owned(),
                prefix: prefix.to_owned(),
            })
        };
        for (uri, expected) in [
            ("a/b", Address::Path("a/b".to_owned())),
            ("C:\\data", Address::Path("C:\\data".to_owned())),
            ("file:///a%20b", Address::FileUrl("/a%20b".to_owned())),
            ("s3://bucket", Address::S3(bucket("bucket", ""))),
            ("s3://bucket/", Address::S3(bucket("bucket", ""))),
            (
                "s3://b.c/a set/%41?#",
                Address::S3(bucket("b.c", "a set/%41?#")),
            ),
            ("gs://b/p/q/", Address::Gcs(bucket("b", "p/q"))),
            ("az://c/p", Address::Azure(bucket("c", "p"))),
            ("http://h:80/a/", Address::Http("http://h:80/a".to_owned())),
            ("hf://datasets/o/n", hub("o/n", "main", "")),
            ("hf://datasets/o/n/p/q/", hub("o/n", "main", "p/q")),
            ("hf://datasets/o/n@v1.0/p", hub("o/n", "v1.0", "p")),
            (
                "hf://datasets/n@refs%2Fconvert%2Fparquet/p",
                hub("n", "refs%2Fconvert%2Fparquet", "p"),
            ),
        ] {
            assert_eq!(Address::parse(uri).unwrap(), expected, "{uri}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_its_secrets() {
        for uri in [
            "",
            "file://relative",
            "s3://",
            "s3:///path",
            "s3://key:secret@bucket/path",
            "s3://key:the/secret@bucket/path",
            "s3://the+secret/key@bucket/path",
            "https://name:the/secret@host/path",
            "ftp://name:the/secret@host/path",
            "hf://name:the/secret@datasets/o/n",
            "ftp://name:secret@host/path?secret",
            "http://",
            "https://name:secret@host/path",
            "https://host/path?X-Amz-Signature=secret",
            "hf://models/o/n",
            "hf://datasets/o",
            "hf://datasets/o/../x",
            "hf://datasets/o/n@/x",
            "hf://datasets/o/n@a?secret/x",
        ] {
            let message = Address::parse(uri).unwrap_err().to_string();
            assert!(!message.contains("secret"), "{message}");
        }
    }
}
