//! Tars of pictures, and tars in them: what is listed, and the bytes of each member.

use pipeline::convert::{ImagenetOptions, survey};
use tar::{Builder, EntryType, Header};

use super::Target;
use crate::made;
use crate::{repair, scratch};

pub(super) const TARGET: Target = Target {
    name: "tar",
    run,
    seeds: || {
        let inner = archive(&[("x.JPEG", b"inner"), ("n01/y.JPEG", &[7; 600])]);
        let long = format!("c/{}.JPEG", "l".repeat(120));
        let outer = archive(&[
            ("a/b.JPEG", b"plain"),
            ("n01.tar", &inner),
            (&long, b"long"),
        ]);
        vec![inner, outer, odd(), extended()]
    },
    rounds: 3000,
};

fn run(input: &[u8]) {
    let mut bytes = input.to_vec();
    repair::tar(&mut bytes);
    let path = scratch::file("hostile.tar", &bytes);
    let Ok(found) = survey(&path, &ImagenetOptions::default()) else {
        return;
    };
    for number in 0..found.n_items() {
        let name = found.name(number).unwrap_or_default();
        let leads_out = name.starts_with('/') || name.split('/').any(|part| part == "..");
        assert!(!leads_out, "{name:?} leads out of the archive");
        drop(found.read(number));
    }
}

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        made(builder.append_data(&mut header, name, *bytes));
    }
    made(builder.into_inner())
}

/// Members that are no files, and names that lead out, beside one picture.
pub(crate) fn odd() -> Vec<u8> {
    members(&[
        (EntryType::Regular, "../../x.JPEG", b""),
        (EntryType::Regular, "/y.JPEG", b""),
        (EntryType::Symlink, "a/link.JPEG", b""),
        (EntryType::Link, "a/hard.JPEG", b""),
        (EntryType::Fifo, "a/fifo.JPEG", b""),
        (EntryType::Regular, "a/good.JPEG", b""),
    ])
}

/// Members that say more of the next one, or of themselves.
fn extended() -> Vec<u8> {
    members(&[
        (EntryType::XHeader, "pax", b"9 size=3\n"),
        (EntryType::Regular, "a/x.JPEG", b"123"),
        (EntryType::GNULongName, "long", b"a/long.JPEG\0"),
        (EntryType::Regular, "a/short.JPEG", b"1"),
        (EntryType::GNUSparse, "a/sparse.JPEG", b""),
    ])
}

fn members(members: &[(EntryType, &str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, contents) in members {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(contents.len() as u64);
        header.set_cksum();
        made(builder.append(&header, *contents));
    }
    made(builder.into_inner())
}
