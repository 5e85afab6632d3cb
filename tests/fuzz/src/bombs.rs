//! Small files that ask for more than any machine has.

use std::io::{Cursor, Write};

use flate2::Compression;
use flate2::write::ZlibEncoder;
use image::{DynamicImage, ImageFormat, RgbImage};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, ParquetMetaDataWriter};
use pipeline::codec::{Chroma, encode_jpeg, write_video};

use crate::made;
use crate::repair;
use crate::targets;

/// A file: what it is called, and its bytes.
pub type File = (&'static str, Vec<u8>);

/// Pictures of far more pixels than bytes. The PNGs really hold them.
pub fn pictures() -> Vec<File> {
    let jpeg = made(encode_jpeg(&targets::picture(16, 16), 80, Chroma::Halved));
    let sized = |format, at: usize, size: &[u8]| {
        let mut bytes = still(format);
        bytes[at..at + size.len()].copy_from_slice(size);
        bytes
    };
    let mut gif = sized(ImageFormat::Gif, 6, &[0xff; 4]);
    // The frame's own size, behind its place.
    if let Some(frame) = gif.windows(5).position(|five| five == [0x2c, 0, 0, 0, 0]) {
        gif[frame + 5..frame + 9].fill(0xff);
    }
    vec![
        ("jpeg-60000.jpg", with_jpeg_size(jpeg.clone(), 60_000)),
        ("jpeg-16000.jpg", with_jpeg_size(jpeg, 16_000)),
        ("png-30000.png", png_of_zeros(30_000)),
        ("png-16000.png", png_of_zeros(16_000)),
        ("gif-65535.gif", gif),
        (
            "bmp-65535.bmp",
            sized(ImageFormat::Bmp, 18, &[0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0]),
        ),
        ("tiff-65535.tif", tiff()),
        // Behind RIFF, its size, WEBP, VP8L, its size and a signature: 14 bits of width and 14 of height, less one.
        (
            "webp-16383.webp",
            sized(ImageFormat::WebP, 21, &[0xfe, 0xbf, 0xff, 0x0f]),
        ),
    ]
}

fn still(format: ImageFormat) -> Vec<u8> {
    let picture = RgbImage::from_raw(9, 7, targets::picture(9, 7).data);
    let picture = DynamicImage::from(made(picture.ok_or("9 x 7 pixels")));
    let mut bytes = Cursor::new(Vec::new());
    made(picture.write_to(&mut bytes, format));
    bytes.into_inner()
}

/// Width and height in the frame's header (SOF0).
fn with_jpeg_size(mut jpeg: Vec<u8>, side: u16) -> Vec<u8> {
    let at = jpeg.windows(2).position(|two| two == [0xff, 0xc0]);
    let at = made(at.ok_or("a frame's header")) + 5;
    let [high, low] = side.to_be_bytes();
    jpeg[at..at + 4].copy_from_slice(&[high, low, high, low]);
    jpeg
}

/// One bit a pixel, all black.
fn png_of_zeros(side: u32) -> Vec<u8> {
    let mut header = [side.to_be_bytes(), side.to_be_bytes()].concat();
    header.extend([1, 0, 0, 0, 0]);
    let row = vec![0; 1 + side.div_ceil(8) as usize];
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::best());
    for _ in 0..side {
        made(packed.write_all(&row));
    }
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [
        (b"IHDR", header),
        (b"IDAT", made(packed.finish())),
        (b"IEND", Vec::new()),
    ] {
        png.extend((data.len() as u32).to_be_bytes());
        png.extend(kind);
        png.extend(data);
        png.extend([0; 4]);
    }
    repair::png(&mut png);
    png
}

/// 65535 x 65535 of grey in one strip that is not there.
fn tiff() -> Vec<u8> {
    let mut bytes = b"II*\0\x08\0\0\0".to_vec();
    let entries: [(u16, u32); 8] = [
        (256, 65_535),     // width
        (257, 65_535),     // height
        (258, 8),          // bits
        (259, 1),          // no compression
        (262, 1),          // 0 is black
        (273, 8),          // where the strip is
        (278, 65_535),     // its rows
        (279, 4294836225), // its bytes
    ];
    bytes.extend((entries.len() as u16).to_le_bytes());
    for (tag, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(4u16.to_le_bytes()); // 32 bits
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([0; 4]);
    bytes
}

/// A row group of 2^40 rows, and one of 2^30 that take no bytes.
pub fn parquet() -> Vec<File> {
    vec![
        ("rows-2-to-the-40.parquet", with_rows(1 << 40)),
        ("rows-2-to-the-30.parquet", with_rows(1 << 30)),
    ]
}

/// Schemas of Parquet files with fewer columns than they claim, and of groups in groups.
pub fn schemas() -> Vec<File> {
    let deep = [vec![1; 20_000], vec![0]].concat();
    let wide = [vec![1; 1500], vec![20_000], vec![0; 20_000]].concat();
    vec![
        ("columns-2-to-the-31.parquet", with_schema(&[i32::MAX])),
        ("groups-in-groups.parquet", with_schema(&deep)),
        ("columns-in-groups.parquet", with_schema(&wide)),
    ]
}

/// A file that is a schema alone, of elements with so many children.
fn with_schema(children: &[i32]) -> Vec<u8> {
    fn put(out: &mut Vec<u8>, mut rest: u32) {
        while rest > 0x7f {
            out.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }
    // Fields 1, a version, and 2, a list of structures.
    let mut footer = vec![0x15, 2, 0x19, 0xfc];
    put(&mut footer, children.len() as u32);
    for &n in children {
        // An element's type if it is a column, its repetition, name and number of children.
        footer.extend(match n {
            0 => [0x15, 2, 0x25, 0].as_slice(),
            _ => &[0x35, 0],
        });
        footer.extend([0x18, 1, b'x', 0x15]);
        put(&mut footer, (n as u32) << 1);
        footer.push(0);
    }
    // 3, rows, and 4, row groups: none.
    footer.extend([0x16, 0, 0x19, 0x0c, 0]);
    let length = (footer.len() as u32).to_le_bytes();
    [b"PAR1", footer.as_slice(), &length, b"PAR1"].concat()
}

fn with_rows(n_rows: i64) -> Vec<u8> {
    let seeds = (made(crate::target("foreign")).seeds)();
    let file = &seeds[0];
    let trailer = made(file.last_chunk::<8>().ok_or("a trailer"));
    let length = u32::from_le_bytes([trailer[0], trailer[1], trailer[2], trailer[3]]) as usize;
    let start = file.len() - 8 - length;
    let metadata = made(ParquetMetaDataReader::decode_metadata(
        &file[start..start + length],
    ));
    let groups = metadata.row_groups().iter().map(|group| {
        let builder = group.clone().into_builder().set_num_rows(n_rows);
        made(builder.build())
    });
    let lying = ParquetMetaData::new(metadata.file_metadata().clone(), groups.collect());
    let mut bytes = file[..start].to_vec();
    made(ParquetMetaDataWriter::new(&mut bytes, &lying).finish());
    bytes
}

/// PyTorch's format of old, with a tensor of 2^32 values made of one.
pub fn pth() -> Vec<File> {
    let mut bytes = include_bytes!("../../../trainer/tests/data/odd_legacy.pth").to_vec();
    // A shape of (3, 2) with strides of 0.
    let shape = b"K\x03K\x02\x86";
    let strides = b"K\x00K\x00\x86";
    let places: Vec<usize> = (0..bytes.len())
        .filter(|&at| bytes[at..].starts_with(shape))
        .filter(|&at| {
            bytes[at..bytes.len().min(at + 24)]
                .windows(strides.len())
                .any(|w| w == strides)
        })
        .collect();
    let at = made(places.first().copied().ok_or("an expanded tensor"));
    bytes.splice(at..at + 2, *b"J\xff\xff\xff\x7f");
    vec![("expanded.pth", bytes)]
}

/// A clip whose tables claim 10^9 frames.
pub fn videos() -> Vec<File> {
    let dir = made(tempfile::tempdir());
    let path = dir.path().join("a.mp4");
    made(write_video(
        &path,
        25,
        (0..5).map(|_| targets::picture(64, 48)),
    ));
    let mut mp4 = made(std::fs::read(&path));
    // The tables of times and sizes: version and flags, for sizes one size for all, then the number of entries.
    for (kind, behind) in [(b"stts", 8), (b"stsz", 12)] {
        let at = mp4.windows(4).position(|four| four == kind);
        let at = made(at.ok_or("a table of the clip's frames")) + behind;
        mp4[at..at + 4].copy_from_slice(&1_000_000_000u32.to_be_bytes());
    }
    vec![("claims.mp4", mp4)]
}

/// A compressed array of a quarter of a GiB of zeros.
pub fn mat() -> Vec<File> {
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::fast());
    for _ in 0..256 {
        made(packed.write_all(&vec![0; 1 << 20]));
    }
    let packed = made(packed.finish());
    let mut bytes = vec![b' '; 124];
    bytes.extend([0, 1, b'I', b'M', 15, 0, 0, 0]);
    bytes.extend((packed.len() as u32).to_le_bytes());
    bytes.extend(packed);
    vec![("zeros.mat", bytes)]
}

/// A tar with names that lead out of it and links, beside one picture.
pub fn tars() -> Vec<File> {
    vec![("leads-out.tar", targets::odd_tar())]
}
