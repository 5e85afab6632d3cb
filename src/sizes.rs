//! Sizes as people write and read them.

/// Parses `256MiB`, `64 MB`, `1.5GiB` or a plain count of bytes.
///
/// # Errors
/// A sentence that names the text and what was expected.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is not a size, expected for example 256MiB, 64MB or 1048576");
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..digits].parse().map_err(|_| bad())?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1u64,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return Err(bad()),
    };
    let bytes = number * unit as f64;
    if bytes < 1.0 || bytes > (1u64 << 50) as f64 {
        return Err(format!(
            "`{text}` is out of range, expected 1 byte to 1024 TiB"
        ));
    }
    Ok(bytes as u64)
}

/// `bytes` in the largest binary unit that keeps it above 1, for example `33.7 MiB`.
pub fn human_bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_written() {
        assert_eq!(parse_bytes("256MiB"), Ok(256 << 20));
        assert_eq!(parse_bytes("64 MB"), Ok(64_000_000));
        assert_eq!(parse_bytes("1.5g"), Ok(3 << 29));
        assert_eq!(parse_bytes("1048576"), Ok(1 << 20));
    }

    #[test]
    fn nonsense_is_named() {
        for text in ["", "MiB", "12 parsecs", "-1", "0", "1e30", "9999999TiB"] {
            let message = parse_bytes(text).unwrap_err();
            assert!(message.contains(&format!("`{text}`")), "{message}");
        }
    }
}
