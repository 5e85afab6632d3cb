//! MATLAB's files, with elements that are compressed and such that are not.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use trainer::eval::mat::read;

use super::Target;
use crate::made;

pub(super) const TARGET: Target = Target {
    name: "mat",
    run,
    seeds: || {
        let elements = [
            matrix("viewpoint", 4, &[65, 66]),
            matrix("pos_img", 6, &[1, 2]),
        ]
        .concat();
        let with = |first: u8| [&[first], elements.as_slice()].concat();
        vec![with(0), with(1), with(2)]
    },
    rounds: 6000,
};

/// The first byte says how the rest lies in a file: as it is, the other way round, or compressed. A changed stream of
/// deflate fails its checksum, and what it holds would hardly be met.
fn run(input: &[u8]) {
    let Some((&first, elements)) = input.split_first() else {
        return;
    };
    drop(read(input, "pos_img"));
    let order = match first & 1 {
        0 => [0, 1, b'I', b'M'],
        _ => [1, 0, b'M', b'I'],
    };
    let mut file = [[b' '; 124].as_slice(), &order].concat();
    match first & 2 {
        0 => file.extend(elements),
        _ => {
            let packed = compressed(elements);
            let numbers = [15, packed.len() as u32];
            file.extend(
                numbers
                    .map(|n| match first & 1 {
                        0 => n.to_le_bytes(),
                        _ => n.to_be_bytes(),
                    })
                    .concat(),
            );
            file.extend(packed);
        }
    }
    for name in ["pos_img", "", "none"] {
        if let Ok(array) = read(&file, name) {
            assert_eq!(array.dims.iter().product::<usize>(), array.values.len());
        }
    }
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    made(encoder.write_all(bytes));
    made(encoder.finish())
}

/// An array of a row, of doubles stored as bytes.
fn matrix(name: &str, class: u32, values: &[u8]) -> Vec<u8> {
    let words = |words: [u32; 2]| words.map(u32::to_le_bytes).concat();
    let body = [
        element(6, &words([class, 0])),
        element(5, &words([1, values.len() as u32])),
        element(1, name.as_bytes()),
        element(2, values),
    ];
    element(14, &body.concat())
}

fn element(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = [kind, data.len() as u32].map(u32::to_le_bytes).concat();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}
