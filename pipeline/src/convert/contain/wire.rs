//! Messages between a converting thread and its worker: a head of fixed size, then as many bytes as it says.
//!
//! | bytes | of the head |
//! | --- | --- |
//! | 0 | kind, see [`Kind`] |
//! | 1..5 | length of the body, little-endian |
//! | 5..9 | CRC-32C of bytes 0..5 and the body, little-endian |

use std::io::{self, ErrorKind, Read, Write};

use crate::codec::video::library_versions;

const HEAD_BYTES: usize = 9;

/// Most bytes of a body: no JPEG of as many pixels as a frame may have is longer.
const MAX_BODY_BYTES: u32 = 1 << 29;

/// Memory taken on a head's word alone, in bytes; more only as the body arrives.
const TRUSTED_BYTES: u32 = 1 << 20;

/// What a body holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Worker, first thing: [`greeting`].
    Hello = 0x50,
    /// Host: [`Start`](super::worker::Start) as JSON.
    Start,
    /// Host: path of a clip, as the system's bytes.
    Clip,
    /// Worker: time in microseconds `i64`, width and height `i32`, little-endian, then the JPEG.
    Frame,
    /// Worker: one more frame was passed over; nothing.
    Passed,
    /// Worker, last thing of a clip: [`Ending`](crate::convert::clip_frames::Ending) as JSON.
    Ending,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Hello,
        Self::Start,
        Self::Clip,
        Self::Frame,
        Self::Passed,
        Self::Ending,
    ];
}

/// What a worker of the same program, with the same libraries, says first.
pub(super) fn greeting() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("pairquet clips {version}, {}", library_versions())
}

/// Sends one message, its body in pieces, with a single write.
pub(super) fn send(to: &mut impl Write, kind: Kind, body: &[&[u8]]) -> io::Result<()> {
    let n_bytes: usize = body.iter().map(|piece| piece.len()).sum();
    let length = u32::try_from(n_bytes)
        .ok()
        .filter(|&length| length <= MAX_BODY_BYTES)
        .ok_or_else(|| invalid(format!("a message of {n_bytes} bytes")))?;
    let mut message = Vec::with_capacity(HEAD_BYTES + n_bytes);
    message.push(kind as u8);
    message.extend(length.to_le_bytes());
    let mut crc = crc32c::crc32c(&message);
    for piece in body {
        crc = crc32c::crc32c_append(crc, piece);
    }
    message.extend(crc.to_le_bytes());
    for piece in body {
        message.extend_from_slice(piece);
    }
    to.write_all(&message)
}

/// Receives one message.
///
/// # Errors
/// [`ErrorKind::InvalidData`] for what is no message, [`ErrorKind::UnexpectedEof`] at the end, and those of `from`.
pub(super) fn receive(from: &mut impl Read) -> io::Result<(Kind, Vec<u8>)> {
    let mut head = [0; HEAD_BYTES];
    from.read_exact(&mut head)?;
    let [kind, l0, l1, l2, l3, c0, c1, c2, c3] = head;
    let (length, crc) = (
        u32::from_le_bytes([l0, l1, l2, l3]),
        u32::from_le_bytes([c0, c1, c2, c3]),
    );
    let known = Kind::ALL.into_iter().find(|&known| known as u8 == kind);
    let kind = known.ok_or_else(|| invalid(format!("a message of kind {kind:#04x}")))?;
    if length > MAX_BODY_BYTES {
        return Err(invalid(format!("a message of {length} bytes")));
    }
    let mut body = Vec::with_capacity(length.min(TRUSTED_BYTES) as usize);
    from.take(u64::from(length)).read_to_end(&mut body)?;
    if body.len() < length as usize {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    if crc32c::crc32c_append(crc32c::crc32c(&head[..5]), &body) != crc {
        return Err(invalid(format!(
            "a message of {length} bytes with a wrong checksum"
        )));
    }
    Ok((kind, body))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        send(&mut bytes, Kind::Frame, &[&body[..1], &body[1..]]).unwrap();
        bytes
    }

    fn kind_of_error(bytes: &[u8]) -> ErrorKind {
        receive(&mut &bytes[..]).unwrap_err().kind()
    }

    #[test]
    fn what_is_sent_arrives() {
        let bytes = [message(b"first"), message(b"2")].concat();
        let mut from = bytes.as_slice();
        assert_eq!(
            receive(&mut from).unwrap(),
            (Kind::Frame, b"first".to_vec())
        );
        assert_eq!(receive(&mut from).unwrap(), (Kind::Frame, b"2".to_vec()));
        assert_eq!(
            receive(&mut from).unwrap_err().kind(),
            ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn every_flipped_bit_is_found_and_every_cut() {
        let whole = message(b"a frame");
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // A longer length is waited for, in vain.
            let expected = [ErrorKind::InvalidData, ErrorKind::UnexpectedEof];
            assert!(expected.contains(&kind_of_error(&bytes)), "bit {bit}");
        }
        for end in 0..whole.len() {
            assert_eq!(kind_of_error(&whole[..end]), ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn a_length_out_of_reason_is_refused_before_it_is_allocated() {
        for length in [MAX_BODY_BYTES + 1, u32::MAX] {
            let mut bytes = vec![Kind::Frame as u8];
            bytes.extend(length.to_le_bytes());
            bytes.extend([0; 4]);
            let error = receive(&mut bytes.as_slice()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            assert!(error.to_string().contains(&length.to_string()), "{error}");
        }
    }
}
