//! Stores that can only be read: web servers, and the Hugging Face hub.

use bucket::{Fault, Proxy, Server};
use shards::{Environment, Error, Kind, ShardSet, Store, StoreOptions, verify_in};

use crate::support::*;

fn options() -> StoreOptions {
    StoreOptions {
        patience_ms: 1_000,
        ..StoreOptions::default()
    }
}

/// Copies a set to a folder of the server, which any web client can then read.
fn copy(from: &tempfile::TempDir, to: &std::path::Path) -> Vec<String> {
    std::fs::create_dir_all(to).unwrap();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(from.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    names
}

#[test]
fn a_set_is_read_from_a_web_server_and_nothing_else_is_possible_there() {
    let server = Server::start_public().unwrap();
    copy(&set(Kind::Images, 2, 20), &server.folder().join("a set"));
    let uri = format!("{}/sets/a%20set/", server.endpoint());
    let store = Store::open_with(&uri, &options(), &Environment::default()).unwrap();
    let set = ShardSet::open_in(store.clone(), "train").unwrap();
    for n in 0..40 {
        assert!(set.picture(n, 0).unwrap() == picture(n));
    }
    assert!(verify_in(&store, &mut |_| ()).unwrap().is_clean());
    assert!(!store.exists("none").unwrap());
    for result in [
        store.put_atomic("x", b"").map(drop),
        store.create("x").map(drop),
        store.delete("manifest.json").map(drop),
        store.list("").map(drop),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::CannotDo { .. }), "{error}");
        assert!(error.to_string().contains("a%20set"), "{error}");
    }
}

#[test]
fn a_set_is_read_from_the_hub() {
    let server = Server::start_public().unwrap();
    let proxy = Proxy::start(server.address()).unwrap();
    let root = server.folder().parent().unwrap();
    let names = copy(
        &set(Kind::Clips, 2, 10),
        &root.join("datasets/owner/name/resolve/v1/a/set"),
    );
    // The list comes in two pages, as the hub's do.
    let endpoint = proxy.endpoint();
    let entry =
        |name: &String| format!(r#"{{"type":"file","path":"a/set/{name}","size":7,"oid":"x"}}"#);
    let page = |entries: &[String], next: &str| Fault::Reply {
        status: 200,
        headers: match next {
            "" => Vec::new(),
            next => vec![(
                "link".to_owned(),
                format!("<{endpoint}{next}>; rel=\"next\""),
            )],
        },
        body: format!("[{}]", entries.join(",")),
    };
    let mut entries: Vec<String> = names.iter().map(entry).collect();
    entries.push(r#"{"type":"directory","path":"a/set/b","oid":"x"}"#.to_owned());
    let tree = "/api/datasets/owner/name/tree/v1/a/set";
    let first = page(&entries[..1], "/second");
    let second = page(&entries[1..], "");
    // Files are elsewhere, where the token has no business.
    let elsewhere = server.endpoint();
    proxy.set_plan(Box::new(move |request| {
        if request.header("authorization") != Some("Bearer a-token") {
            return Fault::refusal(401, "Unauthorized");
        }
        match request.path.as_str() {
            path if path == format!("{tree}?recursive=true") => first.clone(),
            "/second" => second.clone(),
            path if path.contains("/tree/") => Fault::refusal(404, "EntryNotFound"),
            path => Fault::Reply {
                status: 302,
                headers: vec![("location".to_owned(), format!("{elsewhere}{path}"))],
                body: String::new(),
            },
        }
    }));
    let environment = |token: &str| -> Environment {
        [
            ("HF_ENDPOINT", proxy.endpoint()),
            ("HF_TOKEN", token.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .collect()
    };
    let open =
        |uri: &str, token: &str| Store::open_with(uri, &options(), &environment(token)).unwrap();
    let uri = "hf://datasets/owner/name@v1/a/set";
    let store = open(uri, "a-token");
    let set = ShardSet::open_in(store.clone(), "train").unwrap();
    assert!(set.picture(3, 0).unwrap() == frame_picture(3, 0));
    let listed = store.list("").unwrap();
    assert_eq!(
        listed,
        names.iter().map(|n| (n.clone(), 7)).collect::<Vec<_>>()
    );
    assert!(store.list("none/").unwrap().is_empty());
    assert!(matches!(
        store.put_atomic("x", b""),
        Err(Error::CannotDo { .. })
    ));
    assert!(matches!(store.read("none"), Err(Error::NotFound { .. })));
    // Without the token, and with another.
    for token in ["", "another-token"] {
        let store = open(uri, token);
        for error in [
            store.read("manifest.json").unwrap_err().to_string(),
            store.list("").unwrap_err().to_string(),
        ] {
            assert!(
                error.contains("access denied") && error.contains("HF_TOKEN"),
                "{error}"
            );
            assert!(!error.contains("another-token"), "{error}");
        }
    }
}
