//! From an address to the clients that speak with what is there. The only file that knows the makes of stores.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};

use super::address::HubAddress;
use super::hub::Hub;
use super::options::{Environment, StoreOptions};
use super::profile::Profile;
use crate::error::{Error, Result};

/// Retries within one attempt of a read, which resume a body where it broke off; whole attempts are the caller's.
const READ_RETRIES: usize = 3;

/// The slowest line that parts are still written over, in bytes a second: silence is allowed for as long as a part
/// takes there, because a store says nothing before it has all of it.
const SLOWEST_WRITE: u64 = 128 << 10;

/// Longest search for the role of a machine, where nothing else says who asks.
const INSTANCE_PATIENCE: Duration = Duration::from_secs(3);

/// The addresses of S3-compatible stores, the first that is set counts.
const ENDPOINTS: [&str; 4] = [
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "S3_ENDPOINT_URL",
    "AWS_ENDPOINT",
];

/// An opened store.
pub(super) struct Backend {
    /// For reading: short silences, few retries within an attempt.
    pub reads: Arc<dyn ObjectStore>,
    /// For writing, if that is possible: long silences, and all the patience, because a part cannot be begun anew.
    pub writes: Option<Arc<dyn ObjectStore>>,
    /// Whether it can say what it holds.
    pub can_list: bool,
    /// Who asks, and where, for messages: no secrets.
    pub identity: String,
    /// Which store it is, whoever asks: the same for the same objects.
    pub namespace: String,
}

/// How one of the two clients waits.
struct Manner {
    client: ClientOptions,
    retry: RetryConfig,
}

impl Manner {
    fn reading(options: &StoreOptions) -> Self {
        Manner {
            client: client(options, options.stall_timeout()),
            retry: RetryConfig {
                backoff: BackoffConfig {
                    init_backoff: Duration::from_millis(50),
                    max_backoff: Duration::from_millis(400),
                    base: 2.0,
                },
                max_retries: READ_RETRIES,
                retry_timeout: options.patience(),
            },
        }
    }

    fn writing(options: &StoreOptions) -> Self {
        let part = Duration::from_secs(options.part_bytes as u64 / SLOWEST_WRITE);
        Manner {
            client: client(options, options.stall_timeout() + part),
            retry: RetryConfig {
                backoff: BackoffConfig {
                    init_backoff: Duration::from_millis(50),
                    max_backoff: Duration::from_secs(5),
                    base: 2.0,
                },
                max_retries: usize::MAX,
                retry_timeout: options.patience(),
            },
        }
    }
}

fn client(options: &StoreOptions, stall: Duration) -> ClientOptions {
    // No limit on a whole request: how long 16 MiB take is the line's business.
    ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(options.connect_timeout())
        .with_read_timeout(stall)
        .with_no_system_certificates(!has_certificates())
}

/// Whether this machine has certificates of those who vouch for others. Clients cannot be built without, unless they
/// are told, and a bucket behind plain HTTP needs none. Makes the process ready for TLS besides.
pub(super) fn has_certificates() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        // Whoever was first in the process has chosen the library; any will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        reqwest::Client::builder().build().is_ok()
    })
}

fn settings(error: object_store::Error) -> Error {
    // What a builder refuses is a setting, and it names the setting.
    let reason = match error {
        object_store::Error::Generic { source, .. } => source.to_string(),
        other => other.to_string(),
    };
    Error::Settings { reason }
}

/// A bucket of S3 or of what speaks like it.
pub(super) fn s3(
    bucket: &str,
    options: &StoreOptions,
    environment: &Environment,
) -> Result<Backend> {
    let profile = Profile::read(environment)?;
    let place = S3Place::new(bucket, environment, &profile)?;
    let build = |manner: Manner| -> Result<(Arc<dyn ObjectStore>, String)> {
        let mut builder = AmazonS3Builder::new()
            .with_client_options(manner.client)
            .with_retry(manner.retry);
        for (name, value) in environment.beginning("AWS_") {
            let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() else {
                continue; // one of the many that concern other services
            };
            if !is_decided_here(&key) {
                builder = builder.with_config(key, value);
            }
        }
        builder = place.apply(builder, bucket);
        let (builder, who) = with_credentials(builder, environment, &profile)?;
        Ok((Arc::new(builder.build().map_err(settings)?), who))
    };
    let (reads, who) = build(Manner::reading(options))?;
    let (writes, _) = build(Manner::writing(options))?;
    Ok(Backend {
        reads,
        writes: Some(writes),
        can_list: true,
        identity: format!("{who}, {place}"),
        namespace: format!(
            "s3 {} {bucket}",
            place.endpoint.as_deref().unwrap_or(&place.region)
        ),
    })
}

/// Settings that several sources have a say in.
fn is_decided_here(key: &AmazonS3ConfigKey) -> bool {
    use AmazonS3ConfigKey as Key;
    matches!(
        key,
        Key::Bucket
            | Key::Endpoint
            | Key::S3Endpoint
            | Key::Region
            | Key::DefaultRegion
            | Key::VirtualHostedStyleRequest
            | Key::AccessKeyId
            | Key::SecretAccessKey
            | Key::Token
            | Key::SkipSignature
    )
}

/// Where a bucket is.
struct S3Place {
    endpoint: Option<String>,
    region: String,
    /// Whether the bucket is part of the host's name, and not of the path.
    is_virtual: bool,
}

impl S3Place {
    fn new(bucket: &str, environment: &Environment, profile: &Profile) -> Result<Self> {
        let named = ENDPOINTS
            .iter()
            .find_map(|&name| Some((name.to_owned(), environment.get(name)?)));
        let of_profile = || {
            let endpoint = profile.s3_endpoint()?;
            Some((
                format!("endpoint_url of profile {:?}", profile.name),
                endpoint,
            ))
        };
        let is_virtual = match environment.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST") {
            Some(_) => environment.is_on("AWS_VIRTUAL_HOSTED_STYLE_REQUEST"),
            None => profile.get("s3.addressing_style") == Some("virtual"),
        };
        let endpoint = named
            .or_else(of_profile)
            .map(|(name, endpoint)| -> Result<String> {
                let endpoint = endpoint.trim_end_matches('/');
                let (scheme, host) = endpoint
                    .split_once("://")
                    .filter(|(scheme, host)| {
                        ["http", "https"].contains(scheme)
                            && !host.is_empty()
                            && !host.contains(['@', '?', '#'])
                    })
                    .ok_or_else(|| Error::Settings {
                        reason: format!("{name} is not an address such as http://host:9000"),
                    })?;
                Ok(
                    match is_virtual && !host.starts_with(&format!("{bucket}.")) {
                        true => format!("{scheme}://{bucket}.{host}"),
                        false => endpoint.to_owned(),
                    },
                )
            })
            .transpose()?;
        let region = environment
            .get("AWS_REGION")
            .or_else(|| environment.get("AWS_DEFAULT_REGION"))
            .or_else(|| profile.get("region"));
        Ok(S3Place {
            endpoint,
            region: region.unwrap_or("us-east-1").to_owned(),
            is_virtual,
        })
    }

    fn apply(&self, builder: AmazonS3Builder, bucket: &str) -> AmazonS3Builder {
        let builder = builder
            .with_bucket_name(bucket)
            .with_region(&self.region)
            .with_virtual_hosted_style_request(self.is_virtual);
        match &self.endpoint {
            Some(endpoint) if endpoint.starts_with("http://") => {
                builder.with_endpoint(endpoint).with_allow_http(true)
            }
            Some(endpoint) => builder.with_endpoint(endpoint),
            None => builder,
        }
    }
}

impl std::fmt::Display for S3Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "region {}", self.region)?;
        match &self.endpoint {
            Some(endpoint) => write!(f, ", endpoint {endpoint}"),
            None => Ok(()),
        }
    }
}

/// The first that is there: the environment's keys, the profile, a web identity, a container's role, the machine's.
fn with_credentials(
    builder: AmazonS3Builder,
    environment: &Environment,
    profile: &Profile,
) -> Result<(AmazonS3Builder, String)> {
    if environment.is_on("AWS_SKIP_SIGNATURE") {
        let builder = builder.with_skip_signature(true);
        return Ok((builder, "unsigned (AWS_SKIP_SIGNATURE)".to_owned()));
    }
    let pair = |key: Option<&str>, secret: Option<&str>, names: [&str; 2], place: &str| {
        let both = key.zip(secret);
        if both.is_none() && (key.is_some() || secret.is_some()) {
            let missing = names[usize::from(key.is_some())];
            return Err(Error::Settings {
                reason: format!("{missing} lacks in {place}, where the other half of the pair is"),
            });
        }
        Ok(both.map(|(key, secret)| (key.to_owned(), secret.to_owned())))
    };
    let with_pair = |(key, secret): (String, String), token: Option<&str>| {
        let signed = builder
            .clone()
            .with_access_key_id(key)
            .with_secret_access_key(secret);
        match token {
            Some(token) => signed.with_token(token),
            None => signed,
        }
    };
    let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    let [key, secret] = keys.map(|name| environment.get(name));
    if let Some(both) = pair(key, secret, keys, "the environment")? {
        let signed = with_pair(both, environment.get("AWS_SESSION_TOKEN"));
        return Ok((signed, "signed with the keys of the environment".to_owned()));
    }
    let of_profile = format!("profile {:?}", profile.name);
    let keys = ["aws_access_key_id", "aws_secret_access_key"];
    let [key, secret] = keys.map(|name| profile.get(name));
    if let Some(both) = pair(key, secret, keys, &of_profile)? {
        let signed = with_pair(both, profile.get("aws_session_token"));
        return Ok((signed, format!("signed with the keys of {of_profile}")));
    }
    let role = profile.get("role_arn");
    if let Some((role, token)) = role.zip(profile.get("web_identity_token_file")) {
        let mut signed = builder
            .with_config(AmazonS3ConfigKey::RoleArn, role)
            .with_config(AmazonS3ConfigKey::WebIdentityTokenFile, token);
        if let Some(session) = profile.get("role_session_name") {
            signed = signed.with_config(AmazonS3ConfigKey::RoleSessionName, session);
        }
        return Ok((
            signed,
            format!("signed as the web identity of {of_profile}"),
        ));
    }
    let by_others = [
        "credential_process",
        "sso_session",
        "sso_start_url",
        "role_arn",
    ];
    if let Some(key) = by_others.iter().find(|key| profile.get(key).is_some()) {
        return Err(Error::Settings {
            reason: format!(
                "{of_profile} gets its keys by {key}, which only the AWS tools do: \
                 put them into the environment with `aws configure export-credentials --format env`"
            ),
        });
    }
    if let (Some(_), Some(role)) = (
        environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"),
        environment.get("AWS_ROLE_ARN"),
    ) {
        return Ok((builder, format!("signed as the web identity {role}")));
    }
    let is_set = |name| environment.get(name).is_some();
    if is_set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        || is_set("AWS_CONTAINER_CREDENTIALS_FULL_URI")
            && is_set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
    {
        return Ok((builder, "signed with the role of the container".to_owned()));
    }
    let nobody = format!(
        "neither the environment nor {of_profile} has keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, \
         or AWS_SKIP_SIGNATURE=true for a public bucket"
    );
    if environment.is_on("AWS_EC2_METADATA_DISABLED") {
        return Err(Error::Settings { reason: nobody });
    }
    let role = builder
        .clone()
        .with_retry(RetryConfig {
            max_retries: 1,
            retry_timeout: INSTANCE_PATIENCE,
            ..RetryConfig::default()
        })
        .build()
        .map_err(settings)?;
    let signed = builder.with_credentials(role.credentials().clone());
    Ok((
        signed,
        format!("signed with the role of this machine, as {nobody}"),
    ))
}

/// A bucket of Google Cloud Storage.
pub(super) fn gcs(
    bucket: &str,
    options: &StoreOptions,
    environment: &Environment,
) -> Result<Backend> {
    let build = |manner: Manner| -> Result<Arc<dyn ObjectStore>> {
        let mut builder = GoogleCloudStorageBuilder::new()
            .with_client_options(manner.client)
            .with_retry(manner.retry);
        if let Some(path) = environment.get("SERVICE_ACCOUNT") {
            builder = builder.with_service_account_path(path);
        }
        for (name, value) in environment.beginning("GOOGLE_") {
            if let Ok(key) = name.to_ascii_lowercase().parse::<GoogleConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        let built = builder.with_bucket_name(bucket).build();
        Ok(Arc::new(built.map_err(settings)?))
    };
    Ok(Backend {
        reads: build(Manner::reading(options))?,
        writes: Some(build(Manner::writing(options))?),
        can_list: true,
        namespace: format!("gs {bucket}"),
        identity: match environment.is_on("GOOGLE_SKIP_SIGNATURE") {
            true => "unsigned (GOOGLE_SKIP_SIGNATURE)".to_owned(),
            false => "with the credentials that GOOGLE_* and the gcloud tools leave".to_owned(),
        },
    })
}

/// A container of Azure Blob Storage.
pub(super) fn azure(
    container: &str,
    options: &StoreOptions,
    environment: &Environment,
) -> Result<Backend> {
    let build = |manner: Manner| -> Result<Arc<dyn ObjectStore>> {
        let mut builder = MicrosoftAzureBuilder::new()
            .with_client_options(manner.client)
            .with_retry(manner.retry);
        for (name, value) in environment.beginning("AZURE_") {
            if let Ok(key) = name.to_ascii_lowercase().parse::<AzureConfigKey>() {
                let is_plain = key == AzureConfigKey::Endpoint && value.starts_with("http://");
                builder = builder.with_config(key, value);
                if is_plain {
                    let allow = AzureConfigKey::Client(ClientConfigKey::AllowHttp);
                    builder = builder.with_config(allow, "true");
                }
            }
        }
        let built = builder.with_container_name(container).build();
        Ok(Arc::new(built.map_err(settings)?))
    };
    let account = environment.get("AZURE_STORAGE_ACCOUNT_NAME");
    Ok(Backend {
        reads: build(Manner::reading(options))?,
        writes: Some(build(Manner::writing(options))?),
        can_list: true,
        namespace: format!("az {} {container}", account.unwrap_or_default()),
        identity: match account {
            Some(account) => format!("account {account}, with the credentials of AZURE_*"),
            None => "with the credentials of AZURE_*".to_owned(),
        },
    })
}

/// Files behind a web server, which can be read and not listed.
pub(super) fn http(url: &str, options: &StoreOptions) -> Result<Backend> {
    let Manner { client, retry } = Manner::reading(options);
    let built = HttpBuilder::new()
        .with_url(url)
        .with_client_options(client.with_allow_http(url.starts_with("http://")))
        .with_retry(retry)
        .build();
    Ok(Backend {
        reads: Arc::new(built.map_err(settings)?),
        writes: None,
        can_list: false,
        identity: "a web server".to_owned(),
        namespace: url.to_owned(),
    })
}

/// A data set of the Hugging Face hub.
pub(super) fn hub(
    address: &HubAddress,
    options: &StoreOptions,
    environment: &Environment,
) -> Result<Backend> {
    let Manner { client, retry } = Manner::reading(options);
    let hub = Hub::open(address, client, retry, options, environment)?;
    let identity = match hub.has_token() {
        true => "with the token of HF_TOKEN",
        false => "without a token (HF_TOKEN is not set)",
    };
    Ok(Backend {
        identity: identity.to_owned(),
        namespace: format!("hf {} {}", address.repository, address.revision),
        reads: Arc::new(hub),
        writes: None,
        can_list: true,
    })
}
