//! What a conversion is going to do, written down before it starts, so that a later run can go on with the same.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use shards::{ClassName, Kind, hex};

use super::source::{Listing, Place};

/// Version of the files in the work folder.
const WORK_VERSION: u32 = 1;

/// `.pairquet/plan-<split>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    pub version: u32,
    pub kind: Kind,
    pub split: String,
    /// The options that change the result.
    pub options: Map<String, Value>,
    pub source: SourceDigest,
    pub class_names: Vec<ClassName>,
    /// The libraries that decode the items, where what they give depends on their version: for clips.
    pub decoder: Option<String>,
    /// What the number of shards was computed from, in bytes.
    pub estimated_bytes: u64,
    pub n_shards: u64,
    /// What the listing left out.
    pub notes: Vec<String>,
}

/// Tells one source list from another: keys, sizes and labels, not contents and not places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceDigest {
    pub sha256: String,
    pub items: u64,
    pub bytes: u64,
}

impl SourceDigest {
    pub fn of(listing: &Listing) -> Self {
        let mut hasher = Sha256::new();
        for item in &listing.items {
            let present = !matches!(item.place, Place::Absent(_) | Place::Broken(_));
            let line = format!(
                "{}\0{}\0{:?}\0{}\0{present}\n",
                item.key, item.extension, item.label, item.bytes
            );
            hasher.update(line.as_bytes());
        }
        Self {
            sha256: hex(&hasher.finalize()),
            items: listing.items.len() as u64,
            bytes: listing.items.iter().map(|item| item.bytes).sum(),
        }
    }
}

impl Plan {
    pub fn new(
        kind: Kind,
        split: &str,
        options: Map<String, Value>,
        listing: &Listing,
        decoder: Option<String>,
        estimated_bytes: u64,
        n_shards: u64,
    ) -> Self {
        Self {
            version: WORK_VERSION,
            kind,
            split: split.to_owned(),
            options,
            source: SourceDigest::of(listing),
            class_names: listing.classes.clone(),
            decoder,
            estimated_bytes,
            n_shards,
            notes: listing.notes.clone(),
        }
    }

    /// Names the work of this plan: records made under another plan are not taken for this one's.
    pub fn identity(&self) -> String {
        let parts = (
            (self.version, self.kind, &self.split),
            sorted(&self.options),
            &self.source,
            &self.class_names,
            &self.decoder,
            self.n_shards,
        );
        // Strings, numbers and maps with string keys always have a JSON form.
        let text = serde_json::to_string(&parts).unwrap_or_default();
        hex(&Sha256::digest(text.as_bytes()))
    }

    /// What a run wants that this plan, made earlier, did not; `None` if they agree.
    ///
    /// The number of shards is not compared: it was estimated from a few items, and what the first run found counts.
    pub fn differences(&self, wanted: &Wanted<'_>) -> Option<String> {
        let mut differences = Vec::new();
        if self.version != WORK_VERSION {
            differences.push(format!(
                "work folder of version {}, this program writes {WORK_VERSION}",
                self.version
            ));
        }
        if self.kind != wanted.kind {
            differences
                .push(format!("it holds {:?}, not {:?}", self.kind, wanted.kind).to_lowercase());
        }
        if self.decoder.as_deref() != wanted.decoder {
            differences.push(format!(
                "its clips were decoded by {}, this machine has {}",
                self.decoder.as_deref().unwrap_or("nothing"),
                wanted.decoder.unwrap_or("nothing")
            ));
        }
        let names: std::collections::BTreeSet<&String> =
            self.options.keys().chain(wanted.options.keys()).collect();
        for name in names {
            let (then, now) = (self.options.get(name), wanted.options.get(name));
            if then != now {
                let show =
                    |value: Option<&Value>| value.map_or("not set".to_owned(), Value::to_string);
                differences.push(format!("{name} was {} and is {}", show(then), show(now)));
            }
        }
        if self.source != *wanted.source {
            let show =
                |source: &SourceDigest| format!("{} items of {} bytes", source.items, source.bytes);
            differences.push(format!(
                "the source list was {} ({}) and is {} ({})",
                show(&self.source),
                &self.source.sha256.get(..8).unwrap_or_default(),
                show(wanted.source),
                &wanted.source.sha256.get(..8).unwrap_or_default(),
            ));
        } else if self.class_names != wanted.class_names {
            differences.push("the names of the classes differ".to_owned());
        }
        (!differences.is_empty()).then(|| differences.join("; "))
    }
}

/// What a run wants to do, to be compared with an earlier plan.
pub(crate) struct Wanted<'a> {
    pub kind: Kind,
    pub options: &'a Map<String, Value>,
    pub source: &'a SourceDigest,
    pub class_names: &'a [ClassName],
    pub decoder: Option<&'a str>,
}

/// In the order of the names, whatever features `serde_json` was built with.
fn sorted(options: &Map<String, Value>) -> std::collections::BTreeMap<&String, &Value> {
    options.iter().collect()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use serde_json::json;

    use super::*;
    use crate::convert::source::Item;

    fn listing(bytes: u64) -> Listing {
        let place = Place::File(Path::new("a.jpg").into());
        let item = Item {
            key: "a".into(),
            extension: ".jpg".into(),
            label: Some(3),
            place,
            bytes,
        };
        Listing::new(PathBuf::from("src"), vec![], vec![item], vec![], vec![]).unwrap()
    }

    fn plan() -> Plan {
        let options = json!({"short_side": 256}).as_object().unwrap().clone();
        Plan::new(Kind::Images, "train", options, &listing(5), None, 100, 1)
    }

    #[test]
    fn what_differs_is_said() {
        let plan = plan();
        let same = Wanted {
            kind: plan.kind,
            options: &plan.options,
            source: &plan.source,
            class_names: &[],
            decoder: None,
        };
        assert_eq!(plan.differences(&same), None);
        let options = json!({"quality": 90}).as_object().unwrap().clone();
        let source = SourceDigest::of(&listing(6));
        let other = Wanted {
            kind: Kind::Clips,
            options: &options,
            source: &source,
            class_names: &[],
            decoder: Some("libavcodec 61.3.100"),
        };
        let text = plan.differences(&other).unwrap();
        for part in [
            "short_side was 256 and is not set",
            "quality was not set and is 90",
            "6 bytes",
            "clips",
            "this machine has libavcodec 61.3.100",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_plan_reads_back_and_keeps_its_identity() {
        let plan = plan();
        let text = serde_json::to_string(&plan).unwrap();
        let back: Plan = serde_json::from_str(&text).unwrap();
        assert_eq!(back, plan);
        assert_eq!(back.identity(), plan.identity());
        let other = Plan {
            n_shards: 2,
            ..plan.clone()
        };
        assert_ne!(other.identity(), plan.identity());
        let same_work = Plan {
            notes: vec!["x".into()],
            ..plan.clone()
        };
        assert_eq!(same_work.identity(), plan.identity());
    }
}
