//! Credentials stay where they were given: nothing that a run writes or says holds one, right or wrong.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bucket::{Fault, HubRow, Proxy, SECRET_KEY, Server, write_hub_parquet};

use crate::support::{demo_set, pairquet, shard_bytes, text, tree, utf8};
use crate::train::train_args;

/// What must not be found, besides the bucket's own [`SECRET_KEY`].
const SESSION_TOKEN: &str = "Sess10n+T0ken/9f2c==Kq7w";
const WRONG_KEY: &str = "wr0ng/Secret+Key8e1d=Zt4x";
const WRONG_SESSION: &str = "wr0ng+Sess10n/5b7aPd3m";
const HF_TOKEN: &str = "hf_DistinctiveTokenXq81Lm";
const WRONG_HF_TOKEN: &str = "hf_WrongTokenBv52Nk0s";
const PASSWORD: &str = "P4ss+word/in&Address7Gh2";
const SIGNATURE: &str = "a91fPresignedSignature%2Fe07c";
const IN_CONFIG: &str = "Secret/put+IntoAConfig6Wd9";
const AZURE_KEY: &str = "QXp1cmVLZXk+ZGlzdGluY3Q/aXZl";
const AZURE_SAS: &str = "sv=2024-01-01&sig=SasS1gn4tureYu3%3D";
const PRIVATE_KEY: &str = "MIIEvQIBADANBgkqhkiG9w0PrivateKeyTr5";
const SECRETS: [&str; 12] = [
    SECRET_KEY,
    SESSION_TOKEN,
    WRONG_KEY,
    WRONG_SESSION,
    HF_TOKEN,
    WRONG_HF_TOKEN,
    PASSWORD,
    SIGNATURE,
    IN_CONFIG,
    AZURE_KEY,
    AZURE_SAS,
    PRIVATE_KEY,
];

/// Bytes by which a form is recognised before all of it is compared.
const BEGINNING: usize = 8;

/// The ways in which a secret may be written.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let percent = |keep: &dyn Fn(u8) -> bool, digits: &dyn Fn(u8) -> String| -> String {
        let byte = |byte: u8| match keep(byte) {
            true => char::from(byte).to_string(),
            false => digits(byte),
        };
        secret.bytes().map(byte).collect()
    };
    let (upper, lower) = (
        |byte: u8| format!("%{byte:02X}"),
        |byte: u8| format!("%{byte:02x}"),
    );
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let mut forms = vec![
        secret.to_owned(),
        percent(&unreserved, &upper),
        percent(&unreserved, &lower),
        percent(&|_| false, &upper),
        secret.bytes().map(|byte| format!("{byte:02x}")).collect(),
    ];
    // Base64 of a text that the secret is a part of, wherever it begins there; the ends depend on the neighbours.
    for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
        for before in 0..3 {
            let coded = engine.encode([&b"   "[..before], secret.as_bytes()].concat());
            let known = before.div_ceil(3) * 4..coded.len() - 2;
            forms.push(coded[known].to_owned());
        }
    }
    let mut forms: Vec<Vec<u8>> = forms.into_iter().map(String::into_bytes).collect();
    forms.push(secret.encode_utf16().flat_map(u16::to_le_bytes).collect());
    forms
}

/// Everything that the runs said, by the command that said it.
struct Watch {
    /// Working folder of every run; all that they write lies below, and what is given to them beside it.
    work: PathBuf,
    home: PathBuf,
    said: Vec<(String, Vec<u8>)>,
    /// What should have failed, with a sentence of its own, and did not.
    accepted: Vec<String>,
}

impl Watch {
    fn run(&mut self, environment: &[(String, String)], args: &[&str]) -> Output {
        let output = self.program(environment, args).output().unwrap();
        let stderr = text(&output.stderr);
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
        for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            self.said
                .push((format!("{name} of {args:?}"), bytes.clone()));
        }
        output
    }

    /// As talkative as it gets, in an environment with secrets for every kind of store.
    fn program(&self, environment: &[(String, String)], args: &[&str]) -> Command {
        let mut command = pairquet();
        command.args(args).current_dir(&self.work).env_clear();
        command
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", &self.home)
            .env("NO_PROXY", "127.0.0.1")
            .env("RUST_LOG", "trace")
            .env("RUST_BACKTRACE", "full")
            .env("AWS_SESSION_TOKEN", SESSION_TOKEN)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("HF_TOKEN", HF_TOKEN)
            .env("AZURE_STORAGE_ACCOUNT_NAME", "account")
            .env("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY)
            .env("AZURE_STORAGE_SAS_TOKEN", AZURE_SAS)
            .env("GOOGLE_SERVICE_ACCOUNT_KEY", service_account())
            .envs(environment.iter().cloned());
        command
    }

    fn succeeds(&mut self, environment: &[(String, String)], args: &[&str]) {
        let output = self.run(environment, args);
        assert!(
            output.status.success(),
            "{args:?}: {}",
            text(&output.stderr)
        );
    }

    fn fails(&mut self, environment: &[(String, String)], args: &[&str]) {
        let output = self.run(environment, args);
        if !matches!(output.status.code(), Some(1 | 2)) || output.stderr.is_empty() {
            self.accepted
                .push(format!("{args:?}: {}", text(&output.stderr)));
        }
    }

    /// Where secrets are found among what was said and all files below the folders.
    fn leaks(&self, folders: &[&Path]) -> Vec<String> {
        let written = folders.iter().flat_map(|folder| {
            let files = tree(folder).into_iter();
            files.map(|(path, bytes)| {
                let path = folder.join(path);
                // A name is written too.
                let all = [path.to_string_lossy().as_bytes(), b"\n", &bytes[..]].concat();
                (path.display().to_string(), all)
            })
        });
        // By how they begin, so that every byte is looked at once and not for each form.
        let mut wanted: HashMap<[u8; BEGINNING], Vec<(&str, Vec<u8>)>> = HashMap::new();
        for secret in SECRETS {
            for form in forms(secret) {
                let beginning = *form.first_chunk().expect("a long form");
                wanted.entry(beginning).or_default().push((secret, form));
            }
        }
        let mut leaks = BTreeSet::new();
        for (place, bytes) in self.said.iter().cloned().chain(written) {
            for (at, beginning) in bytes.windows(BEGINNING).enumerate() {
                for (secret, form) in wanted.get(beginning).into_iter().flatten() {
                    if bytes[at..].starts_with(form) {
                        leaks.insert(format!("{secret} in {place}"));
                    }
                }
            }
        }
        leaks.into_iter().collect()
    }
}

fn service_account() -> String {
    format!(
        r#"{{"type": "service_account", "private_key_id": "1", "client_email": "a@b", "private_key": "{PRIVATE_KEY}"}}"#
    )
}

/// The variables of `environment`, with one set to something else.
fn with(environment: &[(String, String)], name: &str, value: &str) -> Vec<(String, String)> {
    let others = environment.iter().filter(|(known, _)| known != name);
    others
        .cloned()
        .chain([(name.to_owned(), value.to_owned())])
        .collect()
}

/// A bucket with the demo's images, filled by the program itself.
#[test]
fn nothing_that_is_said_or_written_holds_a_credential() {
    let dir = tempfile::tempdir().unwrap();
    let [work, home, given] = ["work", "home", "given"].map(|name| dir.path().join(name));
    for folder in [&work, &home, &given] {
        fs::create_dir(folder).unwrap();
    }
    let mut watch = Watch {
        work: work.clone(),
        home: home.clone(),
        said: Vec::new(),
        accepted: Vec::new(),
    };
    let server = Server::start().unwrap();
    let keys = server.environment();
    let raw = demo_set().join("raw/images");

    // Keys in the environment: a conversion of two splits, and all that reads it.
    for split in ["train", "val"] {
        let args = ["convert", "imagenet", utf8(&raw), SET, "--split", split];
        watch.succeeds(&keys, &[&args[..], &["--shard-size", "256KiB"]].concat());
    }
    watch.succeeds(&keys, &["--json", "inspect", SET, "--sheet", "sheet.png"]);
    watch.succeeds(&keys, &["verify", SET]);
    let train = train_on(SET, "run");
    let train: Vec<&str> = train.iter().map(String::as_str).collect();
    watch.succeeds(&keys, &train);
    watch.succeeds(&keys, &[&train[..], &["--print-config"]].concat());
    let knn = ["eval", "knn", "-c", "run", "--data"];
    watch.succeeds(&keys, &[&knn[..], &[SET]].concat());
    watch.succeeds(&keys, &["export", "run", "exported", "--to", "hf"]);
    let compare = compare_config(&given, SET, "");
    let compared = ["compare", utf8(&compare), "--out", "compared"];
    watch.succeeds(&keys, &compared);

    // Keys in the files of a profile.
    fs::create_dir(home.join(".aws")).unwrap();
    let config = format!(
        "[profile lab]\nregion = {}\nendpoint_url = {}\n",
        bucket::REGION,
        server.endpoint()
    );
    fs::write(home.join(".aws/config"), config).unwrap();
    let section = |name: &str, secret: &str, session: &str| {
        let key = bucket::ACCESS_KEY;
        format!(
            "[{name}]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\naws_session_token = {session}\n"
        )
    };
    let credentials = [
        section("lab", SECRET_KEY, SESSION_TOKEN),
        section("wrong", WRONG_KEY, WRONG_SESSION),
        format!("[broken]\naws_secret_access_key {WRONG_KEY}\n= {PASSWORD}\n"),
    ];
    fs::write(home.join(".aws/credentials"), credentials.concat()).unwrap();
    let profile = |name: &str| vec![("AWS_PROFILE".to_owned(), name.to_owned())];
    watch.succeeds(&profile("lab"), &["inspect", SET]);
    watch.succeeds(&profile("lab"), &["verify", SET]);
    let endpoint = [
        ("AWS_ENDPOINT_URL".to_owned(), server.endpoint()),
        ("AWS_REGION".to_owned(), bucket::REGION.to_owned()),
    ];
    for name in ["wrong", "broken", "none"] {
        let environment = [&profile(name)[..], &endpoint].concat();
        watch.fails(&environment, &["inspect", SET]);
    }

    // Wrong ones, and a store that refuses.
    let proxy = Proxy::start(server.address()).unwrap();
    let wrong = with(&keys, "AWS_SECRET_ACCESS_KEY", WRONG_KEY);
    for environment in [
        wrong.clone(),
        with(&keys, "AWS_ACCESS_KEY_ID", "AKNOBODY"),
        with(&wrong, "AWS_SESSION_TOKEN", WRONG_SESSION),
    ] {
        watch.fails(&environment, &["inspect", SET]);
        watch.fails(&environment, &train);
    }
    watch.fails(&wrong, &["verify", SET]);
    watch.fails(&wrong, &["convert", "imagenet", utf8(&raw), OTHER_SET]);
    watch.fails(&wrong, &[&knn[..], &[SET]].concat());
    watch.fails(&wrong, &["compare", utf8(&compare), "--out", "refused"]);
    proxy.set_plan(Box::new(|_| Fault::refusal(403, "ExpiredToken")));
    watch.fails(&proxy.environment(), &["inspect", SET]);
    watch.fails(&proxy.environment(), &train);

    // Where nobody should write one: addresses, presigned addresses, configs, overrides, endpoints.
    let host = server.address();
    for (n, address) in [
        format!("s3://AKIDEXAMPLE:{PASSWORD}@sets/set"),
        format!("s3://{PASSWORD}@sets/set"),
        format!("http://name:{PASSWORD}@{host}/sets/set"),
        format!("https://{host}/sets/set?X-Amz-Credential=AKID&X-Amz-Signature={SIGNATURE}"),
        format!("http://{host}/sets/set#{SIGNATURE}"),
        format!("hf://datasets/owner/name@v1?token={SIGNATURE}/set"),
        format!("hf://name:{PASSWORD}@datasets/owner/name"),
        format!("gs://name:{PASSWORD}@sets/set"),
        format!("az://sets?sig={SIGNATURE}"),
        format!("ftp://name:{PASSWORD}@{host}/set"),
    ]
    .iter()
    .enumerate()
    {
        let address = address.as_str();
        let train = train_on(address, "refused");
        let train: Vec<&str> = train.iter().map(String::as_str).collect();
        watch.fails(&keys, &train);
        if n % 3 > 0 {
            continue; // they are all read by the same function
        }
        watch.fails(&keys, &["inspect", address]);
        watch.fails(&keys, &["verify", address]);
        watch.fails(&keys, &["convert", "imagenet", utf8(&raw), address]);
        watch.fails(&keys, &["convert", "images", address, "out"]);
        watch.fails(&keys, &["convert", "finish", address]);
        watch.fails(&keys, &[&knn[..], &[address]].concat());
        watch.fails(&keys, &[&train[..], &["--print-config"]].concat());
        watch.fails(&keys, &[&["order"], &train[1..2], &train[4..]].concat());
        let compare = compare_config(&given, address, "");
        watch.fails(&keys, &["compare", utf8(&compare), "--out", "refused"]);
    }
    for option in ["data.store.aws_secret_access_key", "data.secret", "secret"] {
        let set = format!("{option}={IN_CONFIG}");
        watch.fails(&keys, &[&train[..], &["--set", &set]].concat());
        let config = given.join("train.toml");
        let line = format!("{option} = \"{IN_CONFIG}\"\n[data]\npath = \"{SET}\"\n");
        fs::write(&config, line).unwrap();
        watch.fails(&keys, &["train", utf8(&config), "--out", "refused"]);
        let compare = compare_config(&given, SET, &format!("train.{option} = \"{IN_CONFIG}\"\n"));
        watch.fails(&keys, &["compare", utf8(&compare), "--out", "refused"]);
    }
    let config = given.join("torn.toml");
    fs::write(&config, format!("secret = \"{IN_CONFIG}\n")).unwrap();
    watch.fails(&keys, &["train", utf8(&config), "--out", "refused"]);
    for endpoint in [
        format!("http://name:{PASSWORD}@{host}"),
        format!("http://{host}?X-Amz-Signature={SIGNATURE}"),
        format!("name:{PASSWORD}"),
    ] {
        let environment = with(&keys, "AWS_ENDPOINT_URL", &endpoint);
        watch.fails(&environment, &["inspect", SET]);
        let environment = [("HF_ENDPOINT".to_owned(), endpoint)];
        watch.fails(&environment, &["inspect", "hf://datasets/owner/name"]);
    }

    // Stores that are not there: with all their credentials they cannot be reached.
    for (name, value, set) in [
        (
            "AZURE_STORAGE_ENDPOINT",
            "http://127.0.0.1:9",
            "az://sets/set",
        ),
        ("GOOGLE_BASE_URL", "http://127.0.0.1:9", "gs://sets/set"),
    ] {
        watch.fails(&[(name.to_owned(), value.to_owned())], &["inspect", set]);
    }

    the_hub(&mut watch);

    assert!(watch.said.len() > 180, "{} outputs", watch.said.len());
    let folder = server.folder().to_path_buf();
    let leaks = watch.leaks(&[&work, &folder]);
    assert!(leaks.is_empty(), "{}", leaks.join("\n"));
    let accepted = &watch.accepted;
    assert!(accepted.is_empty(), "{}", accepted.join("\n"));
    for written in [
        "run/config.toml",
        "run/tensorboard",
        "compared/report.html",
        "cache",
    ] {
        assert!(work.join(written).exists(), "{written} was looked through");
    }
    assert!(shard_bytes(&folder).len() > 3);
}

const SET: &str = "s3://sets/set";
const OTHER_SET: &str = "s3://sets/other";

/// A run of two steps with a cache and everything that a run writes.
fn train_on(set: &str, out: &str) -> Vec<String> {
    let mut args = train_args("cropmae", Path::new(out), 1);
    args.retain(|arg| arg != "--quiet");
    for value in [
        format!("data.path={set}"),
        "data.order=blocks".to_owned(),
        "data.cache={dir=\"cache\", max_bytes=67108864}".to_owned(),
        "optim.max_steps=2".to_owned(),
        "run.pictures_every=1".to_owned(),
    ] {
        args.extend(["--set".to_owned(), value]);
    }
    args
}

/// A comparison of one method, evaluated by its neighbours.
fn compare_config(given: &Path, set: &str, first: &str) -> PathBuf {
    let path = given.join("compare.toml");
    let text = format!(
        r#"{first}
name = "tiny"
question = "Who knows?"
seeds = [0]
evaluations = 1
budget = {{ steps = 2 }}
[train]
device = "cpu"
data = {{ path = "{set}", views = "crop_pair", size = 32, batch_size = 8, threads = 1 }}
model = {{ encoder = "vit_ti16", patch_size = 8, embed_dim = 48, depth = 2, num_heads = 3, decoder_embed_dim = 32, decoder_depth = 1, decoder_num_heads = 4, mask_ratio = 0.5 }}
optim = {{ lr = 1e-3 }}
[train.eval]
knn = {{ data = "{set}" }}
[[method]]
name = "CropMAE"
"#
    );
    fs::write(&path, text).unwrap();
    path
}

/// A set of the hub, with a token that is right and one that is wrong.
fn the_hub(watch: &mut Watch) {
    let server = Server::start_public().unwrap();
    let proxy = Proxy::start(server.address()).unwrap();
    let root = server.folder().parent().unwrap();
    let folder = root.join("datasets/owner/name/resolve/main");
    fs::create_dir_all(&folder).unwrap();
    let picture = tree(&demo_set().join("raw/images")).into_values().next();
    let row = |label| HubRow {
        bytes: picture.clone(),
        path: None,
        label: Some(label),
    };
    let file = folder.join("train-00000-of-00001.parquet");
    write_hub_parquet(&file, &[row(0), row(1)], 2, &["a", "b"]).unwrap();
    let size = fs::metadata(&file).unwrap().len();
    let elsewhere = server.endpoint();
    proxy.set_plan(Box::new(move |request| {
        if request.header("authorization") != Some(&format!("Bearer {HF_TOKEN}")) {
            return Fault::refusal(401, "Unauthorized");
        }
        match request.path.contains("/tree/") {
            true => Fault::Reply {
                status: 200,
                headers: Vec::new(),
                body: format!(
                    r#"[{{"type":"file","path":"train-00000-of-00001.parquet","size":{size},"oid":"x"}}]"#
                ),
            },
            // The files are elsewhere, where the token has no business.
            false => Fault::Reply {
                status: 302,
                headers: vec![("location".to_owned(), format!("{elsewhere}{}", request.path))],
                body: String::new(),
            },
        }
    }));
    let hub = "hf://datasets/owner/name";
    let right = vec![("HF_ENDPOINT".to_owned(), proxy.endpoint())];
    watch.succeeds(&right, &["inspect", hub]);
    watch.succeeds(&right, &["convert", "images", hub, "from-hub"]);
    let wrong = with(&right, "HF_TOKEN", WRONG_HF_TOKEN);
    watch.fails(&wrong, &["inspect", hub]);
    watch.fails(&wrong, &["convert", "images", hub, "not-from-hub"]);
}

/// The search itself finds every form, or the test above could not fail.
#[test]
fn a_credential_is_found_however_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let clean = Watch {
        work: dir.path().to_path_buf(),
        home: dir.path().to_path_buf(),
        said: vec![("nothing".to_owned(), b"a text without any".to_vec())],
        accepted: Vec::new(),
    };
    assert!(clean.leaks(&[dir.path()]).is_empty());
    let encode = |text: &str| STANDARD_NO_PAD.encode(text);
    for written in [
        format!("key {SECRET_KEY}."),
        format!(
            "?token={}",
            SESSION_TOKEN
                .replace('+', "%2B")
                .replace('/', "%2F")
                .replace('=', "%3D")
        ),
        format!("Basic {}", encode(&format!("name:{PASSWORD}"))),
        encode(&format!("n:{PASSWORD}.")),
        encode(PASSWORD),
    ] {
        let path = dir.path().join("file");
        fs::write(&path, &written).unwrap();
        assert_eq!(clean.leaks(&[dir.path()]).len(), 1, "{written}");
    }
}
