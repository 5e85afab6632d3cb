//! Frames of a clip, one after the other.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use ffmpeg_next as ffmpeg;

use ffmpeg::codec::packet::side_data::Type as SideData;
use ffmpeg::codec::threading;
use ffmpeg::format::context::Input;
use ffmpeg::format::stream::Disposition;
use ffmpeg::{Packet, Rational, Rescale, media};

use super::ffi::{self, Picture};
use super::rgb::{Orientation, ToRgb};
use super::{Frame, VideoLimits};
use crate::codec::{CodecError, Rgb8Image};

/// What the header of a clip says; none of it is relied on for reading.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoInfo {
    /// FFmpeg's name of the container, such as `matroska,webm`.
    pub container: String,
    /// FFmpeg's name of the codec, such as `h264`.
    pub codec: String,
    /// Columns of the upright picture.
    pub width: u32,
    /// Rows of the upright picture.
    pub height: u32,
    /// Frames a second on average; `None` if unknown.
    pub fps: Option<f64>,
}

/// Reads a clip from its start: an iterator of frames, upright RGB, in presentation order.
///
/// Where the data cannot be read on, the reader stops: what follows would be guesses until the next key frame. Frames
/// before that count, and [`damage`](Self::damage) says why there are no more; it also tells of frames that FFmpeg gave
/// whole but patched from their neighbours, of times that fall, and of a clip that ends long before its container says.
/// A clip without a single frame gives an error instead. `nth` and `step_by` decode the frames they pass over, but spend nothing on their colours.
pub struct VideoReader {
    input: Input,
    decoder: ffmpeg::decoder::Video,
    stream: usize,
    time_base: Rational,
    orientation: Orientation,
    info: VideoInfo,
    limits: VideoLimits,
    picture: Picture,
    to_rgb: ToRgb,
    state: State,
    n_frames: u64,
    last_time_us: Option<i64>,
    /// First frame that FFmpeg had to patch, and how many there were.
    patched: Option<(u64, u64)>,
    /// First frame that came after one of a later time, and how many there were.
    fell: Option<(u64, u64)>,
    stopped: Option<ffmpeg::Error>,
    /// Where the packets begin and end so far, in units of the stream.
    packets: Option<(i64, i64)>,
    /// What the container says of its length, in seconds.
    stated_seconds: Option<f64>,
    /// Where the clip ended, in seconds, if that is clearly before `stated_seconds`.
    cut_at: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    /// The file is at its end, the decoder still holds frames.
    Draining,
    Done,
}

impl VideoReader {
    /// Opens a file, with the default limits.
    ///
    /// # Errors
    /// [`CodecError::Io`] if the file cannot be read at all; [`CodecError::Empty`]; [`CodecError::NotAVideo`] if no
    /// container format is recognised or the container lacks its index; [`CodecError::NoVideoStream`];
    /// [`CodecError::Unsupported`] if FFmpeg has no decoder for it; [`CodecError::TooLarge`]; [`CodecError::OutOfMemory`].
    pub fn open(path: &Path) -> Result<VideoReader, CodecError> {
        VideoReader::open_with(path, VideoLimits::default())
    }

    /// Opens a file, with limits.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(path: &Path, limits: VideoLimits) -> Result<VideoReader, CodecError> {
        ffi::init().map_err(|error| CodecError::Library {
            library: "FFmpeg",
            reason: error.to_string(),
        })?;
        let start = first_bytes(path)?;
        let not_a_video = |error| CodecError::NotAVideo {
            reason: if start.get(4..8) == Some(b"ftyp") {
                format!("an MP4 file without a readable index, perhaps cut short ({error})")
            } else {
                format!("starts with \"{}\" ({error})", start.escape_ascii())
            },
        };
        let input = ffi::open_input(path).map_err(|error| refusal(error, not_a_video))?;
        let container = input.format().name().to_owned();
        // The cover picture of a sound file is a video stream to FFmpeg.
        let is_clip =
            |stream: &ffmpeg::Stream<'_>| !stream.disposition().contains(Disposition::ATTACHED_PIC);
        let Some(stream) = input.streams().best(media::Type::Video).filter(is_clip) else {
            return Err(CodecError::NoVideoStream { container });
        };
        let (index, time_base, rate) =
            (stream.index(), stream.time_base(), stream.avg_frame_rate());
        let orientation = stream
            .side_data()
            .find(|data| data.kind() == SideData::DisplayMatrix)
            .map(|data| Orientation::from_display_matrix(data.data()))
            .unwrap_or_default();
        let codec = stream.parameters().id();
        let stated_seconds = ffi::stated_seconds(&input, &stream);
        let no_decoder = |error| CodecError::Unsupported {
            format: codec.name().to_owned(),
            reason: format!("no decoder: {error}"),
        };
        let unsupported = |error| refusal(error, no_decoder);
        let mut context =
            ffmpeg::codec::Context::from_parameters(stream.parameters()).map_err(unsupported)?;
        context.set_threading(threading::Config {
            kind: threading::Type::None,
            count: 1,
            ..threading::Config::default()
        });
        let (width, height) = ffi::prepare_decoder(&mut context, time_base, limits.max_pixels);
        check_size(width, height, &limits)?;
        let decoder = context.decoder().video().map_err(unsupported)?;
        let (width, height) = orientation.size(width, height);
        let fps = (rate.numerator() > 0 && rate.denominator() > 0).then(|| f64::from(rate));
        Ok(VideoReader {
            info: VideoInfo {
                container,
                codec: codec.name().to_owned(),
                width,
                height,
                fps,
            },
            input,
            decoder,
            stream: index,
            time_base,
            orientation,
            limits,
            picture: Picture(ffmpeg::frame::Video::empty()),
            to_rgb: ToRgb::default(),
            state: State::Reading,
            n_frames: 0,
            last_time_us: None,
            patched: None,
            fell: None,
            stopped: None,
            packets: None,
            stated_seconds,
            cut_at: None,
        })
    }

    /// What the header says.
    pub fn info(&self) -> &VideoInfo {
        &self.info
    }

    /// Frames decoded so far, those passed over included.
    pub fn n_frames(&self) -> u64 {
        self.n_frames
    }

    /// What is wrong with the frames so far, and why there are no more; `None` for a sound clip.
    pub fn damage(&self) -> Option<String> {
        let patched = self
            .patched
            .map(|(first, n)| format!("{n} frames patched, the first is frame {first}"));
        let fell = self.fell.map(|(first, n)| {
            format!("{n} frames timed before their predecessors, the first is frame {first}")
        });
        let stopped = self.stopped.map(|error| {
            format!(
                "no more after frame {}: {error}",
                self.n_frames.saturating_sub(1)
            )
        });
        let cut = self
            .cut_at
            .zip(self.stated_seconds)
            .map(|(end, stated)| format!("ends at {end:.1} s, the container says {stated:.1} s"));
        let parts: Vec<String> = [patched, fell, stopped, cut]
            .into_iter()
            .flatten()
            .collect();
        (!parts.is_empty())
            .then(|| format!("damaged {} clip: {}", self.info.codec, parts.join("; ")))
    }

    /// Decodes the next frame into `image`, whose memory is reused, and returns its time in microseconds; `None` at the
    /// end of the clip.
    ///
    /// # Errors
    /// [`CodecError::Corrupt`] if not a single frame decodes, [`CodecError::TooManyFrames`], [`CodecError::TooLarge`],
    /// [`CodecError::OutOfMemory`], [`CodecError::Unsupported`] if the pixel format has no conversion. The clip is over
    /// after an error.
    pub fn read_into(&mut self, image: &mut Rgb8Image) -> Result<Option<i64>, CodecError> {
        let Some(time_us) = self.advance()? else {
            return Ok(None);
        };
        let converted = self
            .to_rgb
            .convert(&self.picture.0, self.orientation, image);
        converted.inspect_err(|_| self.state = State::Done)?;
        Ok(Some(time_us))
    }

    /// Decodes the next frame without converting it and returns its time in microseconds; `None` at the end.
    ///
    /// # Errors
    /// As [`read_into`](Self::read_into).
    pub fn skip_frame(&mut self) -> Result<Option<i64>, CodecError> {
        self.advance()
    }

    fn advance(&mut self) -> Result<Option<i64>, CodecError> {
        let found = self
            .decode_next()
            .inspect_err(|_| self.state = State::Done)?;
        if found {
            return Ok(Some(self.time_us()));
        }
        self.state = State::Done;
        Ok(None)
    }

    /// Brings the next frame into `self.picture`; false at the end or at damage.
    fn decode_next(&mut self) -> Result<bool, CodecError> {
        while self.state != State::Done {
            match self.decoder.receive_frame(&mut self.picture.0) {
                Ok(()) => {
                    if self.n_frames >= self.limits.max_frames {
                        return Err(CodecError::TooManyFrames {
                            limit: self.limits.max_frames,
                        });
                    }
                    check_size(
                        self.picture.0.width(),
                        self.picture.0.height(),
                        &self.limits,
                    )?;
                    if self.picture.0.is_corrupt()
                        || !self.picture.0.decode_error_flags().is_empty()
                    {
                        let (first, n) = self.patched.unwrap_or((self.n_frames, 0));
                        self.patched = Some((first, n + 1));
                    }
                    self.n_frames += 1;
                    return Ok(true);
                }
                Err(ffmpeg::Error::Eof) => return self.end(None),
                Err(ffmpeg::Error::Other {
                    errno: libc::EAGAIN,
                }) if self.state == State::Reading => {}
                Err(error) => return self.end(Some(error)),
            }
            if let Err(error) = self.feed() {
                return self.end(Some(error));
            }
        }
        Ok(false)
    }

    /// Gives the decoder the next packet of the stream, or word that there are no more.
    fn feed(&mut self) -> Result<(), ffmpeg::Error> {
        loop {
            let mut packet = Packet::empty(); // a new one each time: reading does not free what it overwrites
            match packet.read(&mut self.input) {
                Ok(()) if packet.stream() != self.stream => {}
                Ok(()) => {
                    if let Some(start) = packet.pts() {
                        let end = start.saturating_add(packet.duration().max(0));
                        let (first, last) = self.packets.unwrap_or((start, end));
                        self.packets = Some((first.min(start), last.max(end)));
                    }
                    return self.decoder.send_packet(&packet);
                }
                Err(ffmpeg::Error::Eof) => {
                    self.state = State::Draining;
                    return self.decoder.send_eof();
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn end(&mut self, error: Option<ffmpeg::Error>) -> Result<bool, CodecError> {
        self.state = State::Done;
        match error {
            None if self.n_frames == 0 => Err(CodecError::Corrupt {
                format: self.info.codec.clone(),
                reason: "no frame in the clip".to_owned(),
            }),
            None => {
                let packets = self.packets.zip(self.stated_seconds);
                self.cut_at = packets.and_then(|((first, last), stated)| {
                    let unit = f64::from(self.time_base);
                    end_if_cut(first as f64 * unit, last as f64 * unit, stated)
                });
                Ok(false)
            }
            Some(error) if self.n_frames == 0 || is_out_of_memory(error) => {
                let no_frame = |error| CodecError::Corrupt {
                    format: self.info.codec.clone(),
                    reason: format!("no frame decodes: {error}"),
                };
                Err(refusal(error, no_frame))
            }
            Some(error) => {
                self.stopped = Some(error);
                Ok(false)
            }
        }
    }

    /// Time of the frame in `self.picture`.
    fn time_us(&mut self) -> i64 {
        let tagged = self
            .picture
            .0
            .timestamp()
            .map(|time| time.rescale(self.time_base, Rational(1, 1_000_000)));
        let (time_us, fell) = next_time(tagged, self.last_time_us, self.info.fps);
        if fell {
            // The frame itself is counted already.
            let (first, n) = self.fell.unwrap_or((self.n_frames.saturating_sub(1), 0));
            self.fell = Some((first, n + 1));
        }
        self.last_time_us = Some(time_us);
        time_us
    }
}

/// Where a clip with packets from `first` to `last` ends, in seconds, if that is clearly before what its container says:
/// FFmpeg takes the end of some cut files, Matroska above all, for the end of the clip. Sound may go on for a while after
/// the last frame.
fn end_if_cut(first: f64, last: f64, stated: f64) -> Option<f64> {
    // A clip that does not begin at 0 is as long as it lasts, or to where it ends, whichever is more.
    let end = last.max(last - first);
    let missing = stated - end;
    (missing > 1.0 && missing > 0.1 * stated).then_some(end)
}

/// Time of the frame after the one at `last`, and whether its tag is earlier than that: times never fall within a clip.
/// A frame without a tag (raw streams) comes one average frame after its predecessor.
fn next_time(tagged: Option<i64>, last: Option<i64>, fps: Option<f64>) -> (i64, bool) {
    // FFmpeg's mark of a time that does not fit.
    match (tagged.filter(|&time| time != i64::MIN), last) {
        (Some(time), Some(last)) => (time.max(last), time < last),
        (Some(time), None) => (time, false),
        (None, None) => (0, false),
        (None, Some(last)) => {
            let step = fps.map_or(40_000, |fps| (1e6 / fps).round() as i64);
            (last.saturating_add(step), false)
        }
    }
}

impl Iterator for VideoReader {
    type Item = Result<Frame, CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut image = Rgb8Image::default();
        let time_us = self.read_into(&mut image).transpose()?;
        Some(time_us.map(|time_us| Frame { time_us, image }))
    }

    fn nth(&mut self, n: usize) -> Option<Self::Item> {
        for _ in 0..n {
            match self.skip_frame() {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        self.next()
    }
}

fn is_out_of_memory(error: ffmpeg::Error) -> bool {
    matches!(
        error,
        ffmpeg::Error::Other {
            errno: libc::ENOMEM
        }
    )
}

/// What a failed call says of the clip. For want of memory it says nothing: a clip must not lose frames to that unseen.
pub(super) fn refusal(
    error: ffmpeg::Error,
    otherwise: impl FnOnce(ffmpeg::Error) -> CodecError,
) -> CodecError {
    if is_out_of_memory(error) {
        CodecError::OutOfMemory { library: "FFmpeg" }
    } else {
        otherwise(error)
    }
}

/// The start of the file, for messages; also makes sure that there is a file with something in it.
fn first_bytes(path: &Path) -> Result<Vec<u8>, CodecError> {
    let io = |error: std::io::Error| CodecError::Io {
        reason: error.to_string(),
    };
    let mut start = Vec::new();
    File::open(path)
        .map_err(io)?
        .take(12)
        .read_to_end(&mut start)
        .map_err(io)?;
    if start.is_empty() {
        Err(CodecError::Empty)
    } else {
        Ok(start)
    }
}

fn check_size(width: u32, height: u32, limits: &VideoLimits) -> Result<(), CodecError> {
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(CodecError::TooLarge {
            width: width.into(),
            height: height.into(),
            limit: limits.max_pixels,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clip_is_cut_if_much_is_missing() {
        assert_eq!(end_if_cut(0.0, 5.0, 10.1), Some(5.0));
        assert_eq!(end_if_cut(-2.0, 3.0, 10.0), Some(5.0));
        for (first, last, stated) in [
            (0.0, 10.0, 10.1),
            (0.0, 1.0, 1.9),
            (0.0, 95.0, 100.0),
            (50.0, 60.0, 10.0),
            (0.0, 7.0, 5.0),
        ] {
            assert_eq!(end_if_cut(first, last, stated), None);
        }
    }

    #[test]
    fn times_neither_fall_nor_overflow() {
        assert_eq!(next_time(Some(7), None, None), (7, false));
        assert_eq!(next_time(Some(7), Some(7), None), (7, false));
        assert_eq!(next_time(Some(3), Some(7), None), (7, true));
        assert_eq!(
            next_time(Some(i64::MIN), Some(7), Some(50.0)),
            (20_007, false)
        );
        assert_eq!(
            next_time(None, Some(i64::MAX - 1), Some(1e-9)),
            (i64::MAX, false)
        );
        assert_eq!(next_time(None, None, None), (0, false));
    }
}
