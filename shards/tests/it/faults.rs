//! Stores at the other end of a bad line, and stores that refuse.

use std::time::{Duration, Instant};

use bucket::{Fault, Line, Proxy, Rates, Request, Server};
use shards::{Environment, Error, Store, StoreOptions};

use crate::support::noise;

/// Impatient enough for tests.
fn options() -> StoreOptions {
    StoreOptions {
        connect_timeout_ms: 500,
        stall_timeout_ms: 300,
        patience_ms: 5_000,
        first_patience_ms: 5_000,
        part_bytes: 5 << 20,
        ..StoreOptions::default()
    }
}

fn open(environment: Vec<(String, String)>, options: &StoreOptions) -> Store {
    let environment: Environment = environment.into_iter().collect();
    Store::open_with("s3://sets/set", options, &environment).unwrap()
}

/// A server with an object `data`, a proxy in front of it, and a store behind the proxy.
fn behind_a_proxy() -> (Vec<u8>, Server, Proxy, Store) {
    let server = Server::start().unwrap();
    let proxy = Proxy::start(server.address()).unwrap();
    let bytes = noise(7, 3 << 20);
    let direct = open(server.environment(), &options());
    direct.put_atomic("data", &bytes).unwrap();
    let store = open(proxy.environment(), &options());
    (bytes, server, proxy, store)
}

#[test]
fn the_same_bytes_come_through_a_bad_line() {
    let (bytes, _server, proxy, store) = behind_a_proxy();
    let rates = Rates {
        errors: 0.1,
        slow_downs: 0.05,
        resets: 0.1,
        truncations: 0.1,
        stalls: 0.0,
    };
    proxy.set_plan(rates.plan(1));
    for start in (0..bytes.len()).step_by(150_000) {
        let end = (start + 200_000).min(bytes.len());
        let part = store.read_range("data", start as u64..end as u64).unwrap();
        assert!(part == bytes[start..end], "bytes {start}..{end}");
    }
    assert!(store.read("data").unwrap() == bytes);
    let requests = proxy.take_traffic().requests;
    assert!(requests > 25, "faults happened: {requests} requests");
}

#[test]
fn what_is_written_over_a_bad_line_is_what_was_meant() {
    use std::io::Write;
    let (_, server, proxy, store) = behind_a_proxy();
    let rates = Rates {
        errors: 0.1,
        slow_downs: 0.1,
        ..Rates::default()
    };
    proxy.set_plan(rates.plan(3));
    let bytes = noise(8, 23 << 20);
    let mut writer = store.create("written").unwrap();
    writer.write_all(&bytes).unwrap();
    writer.commit().unwrap();
    let direct = open(server.environment(), &options());
    assert!(direct.read("written").unwrap() == bytes);
}

#[test]
fn a_writer_holds_a_bounded_number_of_parts() {
    use std::io::Write;
    let (_, _server, proxy, _) = behind_a_proxy();
    let options = StoreOptions {
        parts_in_flight: 2,
        ..options()
    };
    proxy.set_line(Line {
        latency: Duration::from_millis(20),
        bytes_per_s: Some(200 << 20),
    });
    let store = open(proxy.environment(), &options);
    let mut writer = store.create("written").unwrap();
    let piece = noise(9, 1 << 20);
    let (mut written, mut most_waiting) = (0, 0);
    for _ in 0..40 {
        writer.write_all(&piece).unwrap();
        written += piece.len() as u64;
        let arrived = proxy.traffic().request_bytes;
        most_waiting = most_waiting.max(written - arrived);
    }
    writer.commit().unwrap();
    let traffic = proxy.take_traffic();
    assert!(traffic.request_bytes > 40 << 20, "{traffic:?}");
    assert_eq!(traffic.most_at_once, 2, "{traffic:?}");
    // Two parts on their way, and the one that is being filled.
    assert!(
        most_waiting <= 3 * options.part_bytes as u64,
        "{most_waiting}"
    );
}

/// Of a request that is given up, a server may have all it needs: the part would come after the others were thrown away.
#[test]
fn a_dropped_writer_lets_its_parts_arrive_before_they_are_thrown_away() {
    use std::io::Write;
    let (_, server, proxy, _) = behind_a_proxy();
    let patient = StoreOptions {
        stall_timeout_ms: 10_000,
        ..options()
    };
    let store = open(proxy.environment(), &patient);
    proxy.set_line(Line {
        latency: Duration::from_millis(200),
        bytes_per_s: None,
    });
    let mut writer = store.create("dropped").unwrap();
    writer.write_all(&noise(5, 11 << 20)).unwrap();
    proxy.take_traffic();
    drop(writer);
    let arrived = proxy.traffic().request_bytes;
    assert!(arrived >= 10 << 20, "{arrived} bytes of two parts");
    let last = proxy.take_log().pop().unwrap();
    assert_eq!(last.method, "DELETE", "{last:?}");
    assert_eq!(server.unfinished().unwrap(), [""; 0]);
}

#[test]
fn a_body_that_breaks_off_is_resumed_and_not_begun_anew() {
    let (bytes, _server, proxy, store) = behind_a_proxy();
    for fault in [Fault::Reset, Fault::Truncate] {
        let wanted = fault.clone();
        let first = proxy.take_log().last().map_or(0, |last| last.number + 1);
        proxy.set_plan(Box::new(move |request| match request.number {
            n if n == first => wanted.clone(),
            _ => Fault::None,
        }));
        proxy.take_traffic();
        assert!(store.read_range("data", 0..3 << 20).unwrap() == bytes);
        let traffic = proxy.take_traffic();
        assert_eq!(traffic.requests, 2, "{fault:?}");
        let twice = traffic.reply_bytes - (3 << 20);
        assert!(twice < 1 << 20, "{fault:?}: {twice} bytes came twice");
    }
}

#[test]
fn a_stall_costs_about_the_time_out() {
    let (bytes, _server, proxy, store) = behind_a_proxy();
    assert!(store.read_range("data", 0..10).unwrap() == bytes[..10]);
    proxy.set_plan(Box::new(|request| match request.number {
        1 => Fault::Stall,
        _ => Fault::None,
    }));
    let start = Instant::now();
    assert!(store.read_range("data", 0..1 << 20).unwrap() == bytes[..1 << 20]);
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(300), "{took:?}");
    assert!(took < Duration::from_millis(3000), "{took:?}"); // and not the patience
}

#[test]
fn garbage_and_silence_are_asked_again() {
    let (bytes, _server, proxy, store) = behind_a_proxy();
    proxy.set_plan(Box::new(|request| match request.number % 3 {
        0 => Fault::Garbage,
        1 => Fault::HangUp,
        _ => Fault::None,
    }));
    assert!(store.read_range("data", 5..500).unwrap() == bytes[5..500]);
    assert_eq!(store.size("data").unwrap(), bytes.len() as u64);
}

#[test]
fn parts_of_two_versions_are_never_put_together() {
    let (bytes, _server, proxy, store) = behind_a_proxy();
    assert!(store.read_range("data", 0..100).unwrap() == bytes[..100]);
    let is_second_half = |request: &Request| request.header("range") == Some("bytes=100-199");
    proxy.set_plan(Box::new(move |request| match is_second_half(request) {
        true => Fault::WrongEtag,
        false => Fault::None,
    }));
    let error = store.read_range("data", 100..200).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::Changed { .. }), "{message}");
    assert!(
        message.contains("s3://sets/set/data, bytes 100..200") && message.contains("another"),
        "{message}"
    );
    // In the middle of a body: the rest is of another object, so nothing of either is used.
    let first = proxy.take_log().len() as u64;
    proxy.set_plan(Box::new(move |request| match request.number == first {
        true => Fault::Reset,
        false => Fault::WrongEtag,
    }));
    let error = store.read_range("data", 0..2_000_000).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    // What this program writes itself is no surprise to it.
    proxy.set_plan(Box::new(|_| Fault::None));
    store.put_atomic("data", b"new").unwrap();
    assert!(store.read_range("data", 0..3).unwrap() == b"new".as_slice());
}

#[test]
fn a_store_that_is_gone_is_given_up_after_the_patience_with_object_range_and_cause() {
    let (_, server, proxy, _) = behind_a_proxy();
    let options = StoreOptions {
        patience_ms: 1_000,
        first_patience_ms: 400,
        ..options()
    };
    let store = open(proxy.environment(), &options);
    store.read_range("data", 0..10).unwrap();
    let environment = proxy.environment();
    drop((proxy, server));
    for (store, patience) in [(store, 1_000), (open(environment, &options), 400)] {
        let start = Instant::now();
        let error = store.read_range("data", 10..20).unwrap_err();
        let took = start.elapsed().as_millis();
        let message = error.to_string();
        assert!(error.is_store_gone(), "{message}");
        assert!(
            message.starts_with("reading s3://sets/set/data, bytes 10..20: no connection")
                && message.contains("Connection refused")
                && message.contains("given up after"),
            "{message}"
        );
        let tolerance = 3_000; // the last attempt may end late, on a busy machine very late
        assert!(
            (patience / 3..patience + tolerance).contains(&took),
            "{took} ms for {patience}"
        );
    }
}

#[test]
fn a_server_that_only_fails_is_gone_and_one_that_refuses_is_not_asked_twice() {
    let (_, _server, proxy, _) = behind_a_proxy();
    let options = StoreOptions {
        patience_ms: 700,
        ..options()
    };
    let store = open(proxy.environment(), &options);
    proxy.set_plan(Box::new(|_| Fault::refusal(503, "SlowDown")));
    let error = store.read("data").unwrap_err();
    assert!(
        error.is_store_gone() && error.to_string().contains("fewer requests"),
        "{error}"
    );
    for (status, code, expected) in [
        (403, "RequestTimeTooSkewed", "clock"),
        (400, "AuthorizationHeaderMalformed", "region"),
        (301, "PermanentRedirect", "region"),
        (403, "AccessDenied", "denied"),
        (404, "NoSuchBucket", "bucket"),
    ] {
        proxy.set_plan(Box::new(move |_| Fault::refusal(status, code)));
        proxy.take_traffic();
        for result in [
            store.read("data").map(drop),
            store.read_range("data", 0..1).map(drop),
            store.put_atomic("data", b"").map(drop),
            store.list("").map(drop),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Refused { .. }), "{code}: {error}");
            assert!(error.to_string().contains(expected), "{code}: {error}");
        }
        assert_eq!(proxy.take_traffic().requests, 4, "{code}");
        if status != 404 {
            let error = store.size("data").unwrap_err().to_string();
            assert!(error.contains(expected), "{code}: {error}");
        }
    }
}

#[test]
fn wrong_keys_buckets_and_settings_are_told_apart_without_secrets() {
    let server = Server::start().unwrap();
    let secret = "a-secret-of-somebody";
    let with = |changes: &[(&str, &str)]| -> Environment {
        let mut environment = server.environment();
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        environment.extend(changes.iter().map(owned));
        environment.into_iter().collect()
    };
    let fails = |uri: &str, environment: &Environment| -> String {
        let opened = Store::open_with(uri, &options(), environment);
        let error = opened.and_then(|store| store.read("x")).unwrap_err();
        let message = error.to_string();
        assert!(!message.contains(secret), "{message}");
        message
    };
    let uri = "s3://sets/set";
    assert!(fails(uri, &with(&[])).ends_with("not found"));
    let unknown = fails(uri, &with(&[("AWS_ACCESS_KEY_ID", "AKNOBODY")]));
    assert!(
        unknown.contains("access key id is not known")
            && unknown.contains("keys of the environment"),
        "{unknown}"
    );
    let wrong = fails(uri, &with(&[("AWS_SECRET_ACCESS_KEY", secret)]));
    assert!(wrong.contains("SignatureDoesNotMatch"), "{wrong}");
    let public = fails(uri, &with(&[("AWS_SKIP_SIGNATURE", "true")]));
    assert!(
        public.contains("denied") && public.contains("unsigned"),
        "{public}"
    );
    let half = fails(uri, &with(&[("AWS_SECRET_ACCESS_KEY", "")]));
    assert!(half.contains("AWS_SECRET_ACCESS_KEY lacks"), "{half}");
    let nobody = fails(
        uri,
        &with(&[
            ("AWS_ACCESS_KEY_ID", ""),
            ("AWS_SECRET_ACCESS_KEY", ""),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]),
    );
    assert!(nobody.contains("AWS_SKIP_SIGNATURE=true"), "{nobody}");
    let endpoint = fails(uri, &with(&[("AWS_ENDPOINT_URL_S3", "localhost:9000")]));
    assert!(endpoint.contains("AWS_ENDPOINT_URL_S3"), "{endpoint}");
    let plain = fails("http://user:a-secret-of-somebody@host/set", &with(&[]));
    assert!(plain.contains("password"), "{plain}");
}

#[test]
fn credentials_come_from_profiles_and_public_buckets_need_none() {
    let server = Server::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let config = format!(
        "[profile test]\nregion = {}\nendpoint_url = {}\ns3 =\n  addressing_style = path\n",
        bucket::REGION,
        server.endpoint()
    );
    let credentials = format!(
        "[test]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        bucket::ACCESS_KEY,
        bucket::SECRET_KEY
    );
    std::fs::write(path("config"), config).unwrap();
    std::fs::write(path("credentials"), credentials).unwrap();
    let environment: Environment = [
        ("AWS_PROFILE", "test".to_owned()),
        ("AWS_CONFIG_FILE", path("config")),
        ("AWS_SHARED_CREDENTIALS_FILE", path("credentials")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
    .collect();
    let store = Store::open_with("s3://sets/set", &options(), &environment).unwrap();
    store.put_atomic("x", b"1").unwrap();
    assert!(store.read("x").unwrap() == b"1".as_slice());

    let public = Server::start_public().unwrap();
    let environment: Environment = [
        ("S3_ENDPOINT_URL", public.endpoint()),
        ("AWS_SKIP_SIGNATURE", "true".to_owned()),
        ("AWS_REQUEST_PAYER", "requester".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
    .collect();
    let store = Store::open_with("s3://sets", &options(), &environment).unwrap();
    store.put_atomic("x", b"2").unwrap();
    assert!(store.read("x").unwrap() == b"2".as_slice());
}

#[test]
fn every_kind_of_address_opens_without_asking_anybody() {
    let environment: Environment = [
        ("GOOGLE_SKIP_SIGNATURE", "true"),
        ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
        ("AZURE_SKIP_SIGNATURE", "true"),
        ("AWS_SKIP_SIGNATURE", "true"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into_iter()
    .collect();
    for uri in [
        "s3://bucket/set",
        "gs://bucket/set",
        "az://container/set",
        "http://host/set",
        "https://host/set",
        "hf://datasets/owner/name",
    ] {
        let store = Store::open_with(uri, &options(), &environment).unwrap();
        assert_eq!(store.full_path("x"), format!("{uri}/x"));
        assert!(store.folder().is_none());
    }
}

/// What answers for the role of a machine or container, as Amazon's do.
fn role(path: &str, keys: &str) -> Option<Fault> {
    let body = match path {
        "/latest/api/token" => "a-session-token",
        "/latest/meta-data/iam/security-credentials/" => "the-role",
        "/latest/meta-data/iam/security-credentials/the-role" | "/container" => keys,
        _ => return None,
    };
    Some(Fault::Reply {
        status: 200,
        headers: Vec::new(),
        body: body.to_owned(),
    })
}

#[test]
fn credentials_come_from_the_roles_of_containers_and_machines() {
    let server = Server::start().unwrap();
    let proxy = Proxy::start(server.address()).unwrap();
    let keys = format!(
        r#"{{"Code":"Success","Type":"AWS-HMAC","LastUpdated":"2026-01-01T00:00:00Z","AccessKeyId":"{}",
        "SecretAccessKey":"{}","Token":"a-token","Expiration":"2999-01-01T00:00:00Z"}}"#,
        bucket::ACCESS_KEY,
        bucket::SECRET_KEY
    );
    proxy.set_plan(Box::new(move |request| {
        role(&request.path, &keys).unwrap_or(Fault::None)
    }));
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "container-token").unwrap();
    let container = [
        (
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            format!("{}/container", proxy.endpoint()),
        ),
        (
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            token.to_str().unwrap().to_owned(),
        ),
    ];
    let machine = [("AWS_METADATA_ENDPOINT", proxy.endpoint())];
    for role in [container.as_slice(), machine.as_slice()] {
        let mut environment = proxy.environment();
        environment.retain(|(name, _)| !name.contains("KEY"));
        environment.extend(role.iter().map(|(n, v)| (n.to_string(), v.clone())));
        let store = open(environment, &options());
        store.put_atomic("x", b"1").unwrap();
        assert!(store.read("x").unwrap() == b"1".as_slice());
    }
    // A machine without a role: soon said, and what to do.
    proxy.set_plan(Box::new(|_| Fault::refusal(404, "NotFound")));
    let mut environment = proxy.environment();
    environment.retain(|(name, _)| !name.contains("KEY"));
    environment.push(("AWS_METADATA_ENDPOINT".to_owned(), proxy.endpoint()));
    let error = open(environment, &options()).read("x").unwrap_err();
    let message = error.to_string();
    assert!(message.contains("AWS_SKIP_SIGNATURE=true"), "{message}");
}
