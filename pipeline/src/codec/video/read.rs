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
/// whole but patched from their neighbours. A clip without a single frame gives an error instead. `nth` and `step_by` decode the frames they pass over, but spend nothing on their colours.
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
    stopped: Option<ffmpeg::Error>,
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
    /// [`CodecError::Unsupported`] if FFmpeg has no decoder for it; [`CodecError::TooLarge`].
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
        let input = ffi::open_input(path).map_err(|error| CodecError::NotAVideo {
            reason: if start.get(4..8) == Some(b"ftyp") {
                format!("an MP4 file without a readable index, perhaps cut short ({error})")
            } else {
                format!("starts with \"{}\" ({error})", start.escape_ascii())
            },
        })?;
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
        let unsupported = |error| CodecError::Unsupported {
            format: codec.name().to_owned(),
            reason: format!("no decoder: {error}"),
        };
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
            stopped: None,
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
            .map(|(first, n)| format!("{n} patched, the first is frame {first}"));
        let stopped = self.stopped.map(|error| {
            format!(
                "no more after frame {}: {error}",
                self.n_frames.saturating_sub(1)
            )
        });
        let parts: Vec<String> = patched.into_iter().chain(stopped).collect();
        (!parts.is_empty())
            .then(|| format!("damaged {} frames: {}", self.info.codec, parts.join("; ")))
    }

    /// Decodes the next frame into `image`, whose memory is reused, and returns its time in microseconds; `None` at the
    /// end of the clip.
    ///
    /// # Errors
    /// [`CodecError::Corrupt`] if not a single frame decodes, [`CodecError::TooManyFrames`], [`CodecError::TooLarge`],
    /// [`CodecError::Unsupported`] if the pixel format has no conversion. The clip is over after an error.
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
        let mut packet = Packet::empty();
        loop {
            match packet.read(&mut self.input) {
                Ok(()) if packet.stream() != self.stream => {}
                Ok(()) => return self.decoder.send_packet(&packet),
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
            None => Ok(false),
            Some(error) if self.n_frames == 0 => Err(CodecError::Corrupt {
                format: self.info.codec.clone(),
                reason: format!("no frame decodes: {error}"),
            }),
            Some(error) => {
                self.stopped = Some(error);
                Ok(false)
            }
        }
    }

    /// Time of the frame in `self.picture`. A frame without one (raw streams) comes one average frame after its
    /// predecessor.
    fn time_us(&mut self) -> i64 {
        let tagged = self
            .picture
            .0
            .timestamp()
            .map(|time| time.rescale(self.time_base, Rational(1, 1_000_000)));
        let time_us = tagged.unwrap_or_else(|| match self.last_time_us {
            None => 0,
            Some(last) => {
                last + self
                    .info
                    .fps
                    .map_or(40_000, |fps| (1e6 / fps).round() as i64)
            }
        });
        self.last_time_us = Some(time_us);
        time_us
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
