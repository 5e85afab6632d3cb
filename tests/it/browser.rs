//! The report in a browser: headless Chromium opens it as a reader would.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::text;

/// What happened while a page was open.
pub struct Visit {
    /// What the page wrote to its console, errors first of all.
    pub console: Vec<String>,
    /// What the page asked the network for; the browser's own business is left out.
    pub requests: Vec<String>,
    /// The page's picture, as a PNG file.
    pub screenshot: PathBuf,
}

/// The colour scheme that the reader's system prefers.
#[derive(Clone, Copy, PartialEq)]
pub enum Scheme {
    Light,
    Dark,
}

/// Opens a page. `None`, said aloud, where there is no Chromium.
pub fn open(page: &Path, scheme: Scheme, dir: &Path) -> Option<Visit> {
    let name = match scheme {
        Scheme::Light => "light",
        Scheme::Dark => "dark",
    };
    let (log, screenshot) = (
        dir.join(format!("{name}.netlog.json")),
        dir.join(format!("{name}.png")),
    );
    let preferred = match scheme {
        Scheme::Light => 1,
        Scheme::Dark => 0,
    };
    let visited = Command::new("timeout")
        .args(["60", "chromium"])
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            "--window-size=1200,1600",
        ])
        .arg(format!("--blink-settings=preferredColorScheme={preferred}"))
        .arg(format!("--user-data-dir={}", dir.join(name).display()))
        .arg(format!("--log-net-log={}", log.display()))
        .arg(format!("--screenshot={}", screenshot.display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    if visited.status.code() == Some(127) {
        use std::io::Write as _;
        writeln!(
            std::io::stderr(),
            "SKIPPED: no chromium here: the report was opened by nothing"
        )
        .expect("standard error");
        return None;
    }
    let said = text(&visited.stderr);
    assert!(visited.status.success(), "{said}");
    let log: Value = serde_json::from_slice(&fs::read(&log).unwrap()).unwrap();
    let requests = log["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| &event["params"])
        .filter(|params| params["initiator"].is_string())
        .filter(|params| params["initiator"] != "not an origin")
        .map(|params| params["url"].to_string())
        .collect();
    let console = said
        .lines()
        .filter(|line| line.contains("CONSOLE"))
        .map(str::to_owned)
        .collect();
    Some(Visit {
        console,
        requests,
        screenshot,
    })
}

/// Mean brightness of a picture, 0 to 255.
pub fn brightness(png: &Path) -> f64 {
    let decoder = png::Decoder::new(std::io::BufReader::new(fs::File::open(png).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut pixels).unwrap();
    let bytes = &pixels[..frame.buffer_size()];
    bytes.iter().map(|&byte| f64::from(byte)).sum::<f64>() / bytes.len() as f64
}

/// Without it the tests with a report could not fail.
#[test]
fn what_a_page_must_not_do_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.html");
    fs::write(
        &page,
        "<!doctype html><img src=\"http://127.0.0.1:9/x.png\"><script>missing()</script>",
    )
    .unwrap();
    let Some(visit) = open(&page, Scheme::Light, dir.path()) else {
        return;
    };
    assert!(
        visit.requests.iter().any(|url| url.contains("/x.png")),
        "{:?}",
        visit.requests
    );
    assert!(
        visit.console.iter().any(|line| line.contains("missing")),
        "{:?}",
        visit.console
    );
}
