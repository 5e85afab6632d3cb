//! Data sets of the Hugging Face hub: files by their names, and the hub's own way of listing them.
//!
//! Source: the hub's API, `GET /api/datasets/{repository}/tree/{revision}/{path}`, whose pages follow each other by
//! `Link` headers, and `GET /datasets/{repository}/resolve/{revision}/{path}` for the files.

use std::collections::VecDeque;
use std::fmt;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::http::{HttpBuilder, HttpStore};
use object_store::path::Path;
use object_store::{
    ClientOptions, CopyOptions, GetOptions, GetResult, HeaderMap, HeaderValue, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, RetryConfig,
};
use serde::Deserialize;

use super::address::HubAddress;
use super::backend::has_certificates;
use super::options::{Environment, StoreOptions};
use crate::error::Error;

/// Where the hub is, unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";

/// A revision of a data set. Its paths are those of the repository.
#[derive(Debug)]
pub(super) struct Hub {
    files: HttpStore,
    client: reqwest::Client,
    /// The address that lists, to which a `/` and a path may be added.
    tree: reqwest::Url,
    has_token: bool,
}

/// An entry of a listing.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
}

impl Hub {
    /// # Errors
    /// [`Error::Settings`] if `HF_ENDPOINT` or `HF_TOKEN` cannot be used.
    pub fn open(
        address: &HubAddress,
        client: ClientOptions,
        retry: RetryConfig,
        options: &StoreOptions,
        environment: &Environment,
    ) -> crate::Result<Self> {
        let settings = |reason: String| Error::Settings { reason };
        let endpoint = environment.get("HF_ENDPOINT").unwrap_or(ENDPOINT);
        let endpoint = endpoint.trim_end_matches('/');
        let token = environment.get("HF_TOKEN");
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| settings("HF_TOKEN holds characters that no token has".to_owned()))?;
            value.set_sensitive(true);
            headers.insert("authorization", value);
        }
        let HubAddress {
            repository,
            revision,
            ..
        } = address;
        let parse = |url: String| {
            reqwest::Url::parse(&url)
                .ok()
                .filter(|url| url.has_host() && url.username().is_empty())
                .ok_or_else(|| {
                    settings("HF_ENDPOINT is not an address such as https://host".to_owned())
                })
        };
        let tree = parse(format!(
            "{endpoint}/api/datasets/{repository}/tree/{revision}"
        ))?;
        let files = parse(format!(
            "{endpoint}/datasets/{repository}/resolve/{revision}"
        ))?;
        let is_plain = tree.scheme() == "http";
        let files = HttpBuilder::new()
            .with_url(files)
            .with_client_options(
                client
                    .with_allow_http(is_plain)
                    .with_default_headers(headers.clone()),
            )
            .with_retry(retry)
            .build()
            .map_err(|e| settings(e.to_string()))?;
        let mut lister = reqwest::Client::builder()
            .connect_timeout(options.connect_timeout())
            .read_timeout(options.stall_timeout())
            .https_only(!is_plain)
            .default_headers(headers);
        if !has_certificates() {
            lister = lister.tls_certs_only([]);
        }
        let client = lister.build().map_err(|e| settings(e.to_string()))?;
        Ok(Hub {
            files,
            client,
            tree,
            has_token: token.is_some(),
        })
    }

    /// Whether it asks in somebody's name.
    pub fn has_token(&self) -> bool {
        self.has_token
    }
}

/// A page of a listing, and the address of the next one.
async fn page(
    client: &reqwest::Client,
    url: reqwest::Url,
) -> Result<(Vec<ObjectMeta>, Option<reqwest::Url>)> {
    let lost = |error: reqwest::Error| failed(error.without_url());
    let origin = url.origin();
    let reply = client.get(url).send().await.map_err(lost)?;
    if reply.status() == reqwest::StatusCode::NOT_FOUND {
        return Ok((Vec::new(), None)); // no such folder: as in any store, nothing begins so
    }
    let reply = reply.error_for_status().map_err(lost)?;
    let next = next_page(reply.headers());
    if next.as_ref().is_some_and(|next| next.origin() != origin) {
        // It would be told the token.
        return Err(failed("the next page of a list lies on another host"));
    }
    let body = reply.bytes().await.map_err(lost)?;
    let entries: Vec<Entry> = serde_json::from_slice(&body).map_err(failed)?;
    let mut files = Vec::with_capacity(entries.len());
    for entry in entries.into_iter().filter(|entry| entry.kind == "file") {
        files.push(ObjectMeta {
            location: Path::parse(&entry.path)?,
            last_modified: Default::default(),
            size: entry.size,
            e_tag: Some(entry.oid),
            version: None,
        });
    }
    Ok((files, next))
}

/// The address in a header `Link: <address>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<reqwest::Url> {
    let links = headers.get("link")?.to_str().ok()?;
    let next = links
        .split(',')
        .find(|link| link.contains("rel=\"next\""))?;
    let (_, address) = next.split_once('<')?;
    reqwest::Url::parse(address.split_once('>')?.0).ok()
}

fn failed(
    error: impl Into<Box<dyn std::error::Error + Send + Sync + 'static>>,
) -> object_store::Error {
    object_store::Error::Generic {
        store: "hf",
        source: error.into(),
    }
}

impl fmt::Display for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hf")
    }
}

fn read_only(operation: &str) -> object_store::Error {
    object_store::Error::NotImplemented {
        operation: operation.to_owned(),
        implementer: "hf".to_owned(),
    }
}

#[async_trait]
impl ObjectStore for Hub {
    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(path, options).await
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let mut url = self.tree.clone();
        if let (Some(prefix), Ok(mut parts)) = (prefix, url.path_segments_mut()) {
            parts.extend(prefix.parts().map(|part| part.as_ref().to_owned()));
        }
        url.query_pairs_mut().append_pair("recursive", "true");
        let state = (self.client.clone(), VecDeque::new(), Some(url));
        futures::stream::try_unfold(state, |(client, mut ready, mut next)| async move {
            loop {
                if let Some(object) = ready.pop_front() {
                    return Ok(Some((object, (client, ready, next))));
                }
                let Some(url) = next.take() else {
                    return Ok(None);
                };
                let (files, following) = page(&client, url).await?;
                ready.extend(files);
                next = following;
            }
        })
        .boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(read_only("listing a folder alone"))
    }

    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        Err(read_only("writing"))
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(read_only("writing"))
    }

    fn delete_stream(
        &self,
        _: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        futures::stream::once(async { Err(read_only("deleting")) }).boxed()
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(read_only("copying"))
    }
}
