use std::io::Write;

use super::*;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn model(path: &Path) -> Result<(NamedTensors, Vec<String>)> {
    let mut file = PthFile::open(path)?;
    let id = file
        .pickle()
        .entry(file.pickle().root(), "model")
        .unwrap_or(file.pickle().root());
    file.tensors(id)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap()
        .into_iter()
        .map(f32::to_bits)
        .collect()
}

#[test]
fn reads_everything_that_torch_save_writes() {
    for name in ["odd.pth", "odd_protocol4.pth", "odd_legacy.pth"] {
        let (tensors, others) = model(&data(name)).unwrap();
        assert!(others.is_empty());
        let names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[0], "base", "{name}: the file's order is kept");
        assert_eq!(names[13], "ein ungewöhnlicher Name.0/ω");
        let get = |key: &str| &tensors.iter().find(|(name, _)| name == key).unwrap().1;
        let expect = |key: &str, dtype: DType, shape: &[usize], expected: &[f64]| {
            assert_eq!(get(key).dtype(), dtype, "{name} {key}");
            assert_eq!(get(key).dims(), shape, "{name} {key}");
            assert_eq!(values(get(key)), expected, "{name} {key}");
        };
        let base: Vec<f64> = (0..24).map(f64::from).collect();
        expect("base", DType::F32, &[4, 6], &base);
        let transposed: Vec<f64> = (0..24).map(|i| f64::from(i % 4 * 6 + i / 4)).collect();
        expect("transposed", DType::F32, &[6, 4], &transposed);
        expect(
            "every_second_column",
            DType::F32,
            &[3, 3],
            &[6., 8., 10., 12., 14., 16., 18., 20., 22.],
        );
        expect("expanded", DType::F32, &[3, 2], &[0.0; 6]);
        let cube: Vec<f64> = (0..24).map(|i| f64::from(i / 6 + i % 6 * 4)).collect();
        expect("cube", DType::F32, &[4, 2, 3], &cube);
        expect("f16", DType::F16, &[3], &[0.5, -1.5, 65504.0]);
        expect("bf16", DType::BF16, &[3], &[0.5, -1.5, 65536.0]);
        expect("f64", DType::F64, &[2], &[0.1, 1e300]);
        expect("i64", DType::I64, &[2], &[-(2f64.powi(40)), 7.0]);
        expect("bool", DType::U8, &[3], &[1.0, 0.0, 1.0]);
        expect("scalar", DType::F32, &[], &[3.25]);
        expect("empty", DType::F32, &[0, 5], &[]);
        expect("parameter", DType::F32, &[2], &[1.0, 2.0]);
        expect("ein ungewöhnlicher Name.0/ω", DType::F32, &[1], &[9.0]);
    }
}

#[test]
fn other_entries_are_named_and_not_made() {
    let mut file = PthFile::open(&data("odd.pth")).unwrap();
    let (tensors, others) = file.tensors(file.pickle().root()).unwrap();
    assert!(tensors.is_empty());
    assert_eq!(
        others,
        ["model", "args", "recipe", "names", "dtype", "7", "big"]
    );
}

/// Reads `bytes` as a file, and every tensor in it.
fn read(bytes: &[u8]) -> Result<(NamedTensors, Vec<String>)> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    model(file.path())
}

#[test]
fn truncated_files_are_errors() {
    for name in ["odd.pth", "odd_legacy.pth"] {
        let whole = std::fs::read(data(name)).unwrap();
        for n in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
            assert!(read(&whole[..n]).is_err(), "{name} cut to {n} bytes");
        }
    }
}

#[test]
fn damaged_bytes_never_panic() {
    for name in ["odd.pth", "odd_legacy.pth"] {
        let whole = std::fs::read(data(name)).unwrap();
        for i in (0..whole.len()).step_by(3) {
            for change in [0xff, 0x01, 0x80] {
                let mut bytes = whole.clone();
                bytes[i] ^= change;
                drop(read(&bytes));
            }
        }
    }
}

/// A zip with one storage of eight f32 and one tensor, described by the arguments' opcodes.
fn with_tensor(args: &[u8]) -> Vec<u8> {
    let mut pickle =
        b"}X\x05\x00\x00\x00model}X\x01\x00\x00\x00tctorch._utils\n_rebuild_tensor_v2\n".to_vec();
    pickle.extend(args);
    pickle.extend(b"Rss.");
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("a/data.pkl", pickle.as_slice()), ("a/data/0", &[0; 32])] {
        zip.start_file(name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn args(numel: &[u8], offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let mut args =
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
            .to_vec();
    args.extend(numel);
    args.extend(b"tQ");
    args.extend(offset);
    for sizes in [shape, strides] {
        args.push(b'(');
        args.extend(sizes);
        args.push(b't');
    }
    args.extend(b"\x89}t");
    args
}

#[test]
fn a_tensor_cannot_reach_past_its_storage() {
    let huge = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
    let (n, zero) = (b"K\x08", b"K\x00");
    assert!(read(&with_tensor(&args(n, zero, b"K\x02K\x04", b"K\x04K\x01"))).is_ok());
    // a stride nobody walks along may be anything
    assert!(
        read(&with_tensor(&args(
            n,
            zero,
            b"K\x01K\x08",
            &[huge.as_slice(), b"K\x01"].concat()
        )))
        .is_ok()
    );
    let cases: [(&str, Vec<u8>); 12] = [
        ("offset", args(n, b"K\x01", b"K\x08", b"K\x01")),
        ("huge offset", args(n, huge, b"K\x01", b"K\x01")),
        ("shape", args(n, zero, b"K\x09", b"K\x01")),
        ("stride", args(n, zero, b"K\x02", b"K\x08")),
        ("huge stride", args(n, b"K\x01", b"K\x03", huge)),
        (
            "negative stride",
            args(n, b"K\x07", b"K\x02", b"J\xff\xff\xff\xff"),
        ),
        (
            "negative shape",
            args(n, zero, b"J\xff\xff\xff\xff", b"K\x01"),
        ),
        ("huge shape", args(n, zero, huge, zero)),
        (
            "huge product",
            args(n, zero, &[huge.as_slice(), huge].concat(), b"K\x00K\x00"),
        ),
        ("ranks", args(n, zero, b"K\x02K\x04", b"K\x04")),
        ("storage's length", args(b"K\x09", zero, b"K\x08", b"K\x01")),
        // 2^31 elements of one value: more than a file of a few hundred bytes may ask for
        ("growth", args(n, zero, b"J\xff\xff\xff\x7f", zero)),
    ];
    for (what, args) in cases {
        let problem = read(&with_tensor(&args))
            .err()
            .unwrap_or_else(|| panic!("{what} was accepted"))
            .to_string();
        assert!(problem.contains("tensor t"), "{what}: {problem}");
    }
    for args in [
        b")".as_slice(),
        b"N",
        b"(K\x01K\x02K\x03K\x04t",
        b"((K\x01tQK\x00))t",
    ] {
        assert!(read(&with_tensor(args)).is_err());
    }
}

#[test]
fn what_is_written_for_torch_reads_back() {
    let weight = Tensor::from_vec(
        vec![0.5f32, -0.0, f32::NAN, 4.0, 5.0, 6.0],
        (2, 3),
        &Device::Cpu,
    )
    .unwrap();
    let scalar = Tensor::new(7f32, &Device::Cpu).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let tensors = [("b.weight", &weight), ("a", &scalar)];
    crate::exchange::torch_file::write(file.path(), tensors.into_iter(), Some(12)).unwrap();
    let mut file = PthFile::open(file.path()).unwrap();
    let root = file.pickle().root();
    assert_eq!(
        file.pickle()
            .entry(root, "epoch")
            .and_then(|id| file.pickle().size(id)),
        Some(12)
    );
    let (read, others) = file
        .tensors(file.pickle().entry(root, "model").unwrap())
        .unwrap();
    assert!(others.is_empty());
    for ((name, tensor), (expected_name, expected)) in read.iter().zip(tensors) {
        assert_eq!(
            (name.as_str(), tensor.dims()),
            (expected_name, expected.dims())
        );
        assert_eq!(bits(tensor), bits(expected));
    }
}
