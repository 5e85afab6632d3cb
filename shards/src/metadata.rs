//! What a shard says of itself in its key-value metadata.

use std::collections::{BTreeMap, HashMap};

use parquet::file::metadata::KeyValue;
use serde_json::{Map, Value, json};

use crate::schema::{ClassName, Column, FORMAT_VERSION, Kind};
use crate::writer::ShardSpec;

/// What `image.bytes` holds: an encoded still picture a row (`pairquet.payload`).
pub const PAYLOAD: &str = "encoded_image";

/// Metadata key of the format version, a decimal number.
pub const META_FORMAT: &str = "pairquet.format";
/// Metadata key of the kind, `images` or `clips`.
pub const META_KIND: &str = "pairquet.kind";
/// Metadata key of the split's name.
pub const META_SPLIT: &str = "pairquet.split";
/// Metadata key of the payload, see [`PAYLOAD`].
pub const META_PAYLOAD: &str = "pairquet.payload";
/// Metadata key of the conversion's options, a JSON object.
pub const META_OPTIONS: &str = "pairquet.options";
/// Metadata key that Hugging Face `datasets` reads its features from.
pub const META_HUGGINGFACE: &str = "huggingface";

/// The file's key-value metadata, in a fixed order.
pub(crate) fn key_values(spec: &ShardSpec) -> Vec<KeyValue> {
    let pairs = [
        (META_FORMAT, FORMAT_VERSION.to_string()),
        (META_KIND, spec.kind.as_str().to_owned()),
        (META_SPLIT, spec.split.clone()),
        (META_PAYLOAD, PAYLOAD.to_owned()),
        (META_OPTIONS, text(Value::Object(spec.options.clone()))),
        (
            META_HUGGINGFACE,
            text(huggingface(spec.kind, &spec.class_names)),
        ),
    ];
    pairs
        .into_iter()
        .map(|(key, value)| KeyValue::new(key.to_owned(), value))
        .collect()
}

/// JSON with sorted keys: the order of a `serde_json::Map` depends on features that another crate may switch on, and a
/// shard's bytes must not.
fn text(value: Value) -> String {
    sorted(value).to_string()
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<String, Value> = fields
                .into_iter()
                .map(|(key, value)| (key, sorted(value)))
                .collect();
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

/// What `datasets` needs to show pictures and class names.
fn huggingface(kind: Kind, class_names: &[ClassName]) -> Value {
    let value = |dtype: &str| json!({"dtype": dtype, "_type": "Value"});
    let mut features = Map::new();
    for &column in Column::of(kind) {
        let feature = match column {
            Column::ImageBytes => {
                features.insert("image".to_owned(), json!({"_type": "Image"}));
                continue;
            }
            Column::ImagePath => continue,
            Column::Label if class_names.is_empty() => value("int64"),
            Column::Label => json!({"names": unique_names(class_names), "_type": "ClassLabel"}),
            Column::Key | Column::Clip => value("string"),
            Column::TimeUs => value("int64"),
            Column::Crc32c => value("uint32"),
            Column::Frame | Column::NFrames | Column::Width | Column::Height => value("int32"),
        };
        features.insert(column.path().to_owned(), feature);
    }
    json!({"info": {"features": features}})
}

/// Readable names, made unique with the class's id where several classes share one: a `ClassLabel` refuses repeats.
fn unique_names(class_names: &[ClassName]) -> Vec<String> {
    let mut uses: HashMap<&str, usize> = HashMap::new();
    for class in class_names {
        *uses.entry(&class.name).or_default() += 1;
    }
    let unique = |class: &ClassName| match uses.get(class.name.as_str()) {
        _ if class.name.is_empty() => class.id.clone(),
        Some(1) => class.name.clone(),
        _ => format!("{} ({})", class.name, class.id),
    };
    class_names.iter().map(unique).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_classes_are_unique_for_datasets() {
        let class = |id: &str, name: &str| ClassName {
            id: id.to_owned(),
            name: name.to_owned(),
        };
        let names = unique_names(&[
            class("n1", "crane"),
            class("n2", "tench"),
            class("n3", "crane"),
            class("n4", ""),
        ]);
        assert_eq!(names, ["crane (n1)", "tench", "crane (n3)", "n4"]);
    }
}
