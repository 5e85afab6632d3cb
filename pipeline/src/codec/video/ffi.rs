//! The FFmpeg calls that `ffmpeg-next` does not wrap, or wraps with a panic.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

use ffmpeg_next as ffmpeg;

use ffmpeg::ffi;
use ffmpeg::format::Pixel;
use ffmpeg::format::context::Input;
use ffmpeg::format::stream::Stream;
use ffmpeg::software::scaling;
use ffmpeg::util::frame;
use ffmpeg::{Dictionary, Error, Rational};

/// Sets FFmpeg up, once: error numbers get their texts, and nothing is written to stderr.
pub(super) fn init() -> Result<(), Error> {
    static ONCE: OnceLock<Result<(), Error>> = OnceLock::new();
    *ONCE.get_or_init(|| {
        ffmpeg::util::log::set_level(ffmpeg::util::log::Level::Quiet);
        ffmpeg::init()
    })
}

/// The path as FFmpeg's "file" protocol takes it. Without the prefix, a name with a colon could ask for another protocol.
pub(super) fn file_url(path: &Path) -> Result<CString, Error> {
    CString::new([b"file:", path.as_os_str().as_bytes()].concat()).map_err(|_| Error::Other {
        errno: libc::EINVAL,
    })
}

/// Opens a file on disk and finds its streams. Unlike `ffmpeg-next`'s own, takes names that are not UTF-8, and nothing
/// but files: a playlist cannot send the reader to the network.
pub(super) fn open_input(path: &Path) -> Result<Input, Error> {
    let url = file_url(path)?;
    let mut options = Dictionary::new();
    options.set("protocol_whitelist", "file");
    // SAFETY: `url` outlives the call. `avformat_open_input` takes the options over through `raw_options` and leaves
    // there those it did not know, which `Dictionary::own` frees. It frees the context itself when it fails; after
    // that, `Input` owns it and closes it.
    unsafe {
        let mut context = ptr::null_mut();
        let mut raw_options = options.disown();
        let opened = ffi::avformat_open_input(
            &mut context,
            url.as_ptr(),
            ptr::null_mut(),
            &mut raw_options,
        );
        drop(Dictionary::own(raw_options));
        if opened < 0 {
            return Err(Error::from(opened));
        }
        let mut input = Input::wrap(context);
        match ffi::avformat_find_stream_info(input.as_mut_ptr(), ptr::null_mut()) {
            found if found < 0 => Err(Error::from(found)),
            _ => Ok(input),
        }
    }
}

/// How long the stream is, or else the whole file, as the container says; `None` if it does not say. FFmpeg's guess from
/// the bit rate does not count.
pub(super) fn stated_seconds(input: &Input, stream: &Stream<'_>) -> Option<f64> {
    // SAFETY: the context is live and was opened; the field is a plain enum that users may read.
    let method = unsafe { (*input.as_ptr()).duration_estimation_method };
    if method == ffi::AVDurationEstimationMethod::AVFMT_DURATION_FROM_BITRATE {
        return None;
    }
    let of_stream = stream.duration() as f64 * f64::from(stream.time_base());
    let of_file = input.duration() as f64 / f64::from(ffi::AV_TIME_BASE);
    [of_stream, of_file]
        .into_iter()
        .find(|&seconds| seconds > 0.0)
}

/// Tells the decoder the unit of its packets' times, and the most pixels to allocate a frame for. Returns the width and
/// height that the header promises, 0 if it makes no promise.
pub(super) fn prepare_decoder(
    context: &mut ffmpeg::codec::Context,
    time_base: Rational,
    max_pixels: u64,
) -> (u32, u32) {
    // SAFETY: the context is live and not opened yet; all fields are plain numbers that users may set or read.
    let (width, height) = unsafe {
        (*context.as_mut_ptr()).pkt_timebase = time_base.into();
        (*context.as_mut_ptr()).max_pixels = i64::try_from(max_pixels).unwrap_or(i64::MAX);
        ((*context.as_ptr()).width, (*context.as_ptr()).height)
    };
    (
        u32::try_from(width).unwrap_or(0),
        u32::try_from(height).unwrap_or(0),
    )
}

/// What decides how a frame becomes RGB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    pub format: Pixel,
    pub width: u32,
    pub height: u32,
    /// One of FFmpeg's `SWS_CS_` numbers.
    pub matrix: i32,
    /// 0 to 255 for luma rather than 16 to 235.
    pub full_range: bool,
}

/// A conversion to packed RGB of the same size, with its output buffer.
pub(super) struct Scaler {
    context: scaling::Context,
    output: frame::Video,
}

// SAFETY: both are plain heap objects of FFmpeg without ties to a thread, owned by this struct alone.
unsafe impl Send for Scaler {}

impl Scaler {
    pub fn new(source: &Source) -> Result<Scaler, Error> {
        let (width, height) = (source.width, source.height);
        let flags = scaling::Flags::BILINEAR;
        let mut context = scaling::Context::get(
            source.format,
            width,
            height,
            Pixel::RGB24,
            width,
            height,
            flags,
        )?;
        let neutral = 1 << 16; // contrast and saturation are 16.16 fixed point
        // SAFETY: the context is live. The tables are static ones of the library, four numbers each, never null. The
        // status says only that a conversion without a matrix (grey or RGB input) has no use for one.
        unsafe {
            let from = ffi::sws_getCoefficients(source.matrix);
            let to = ffi::sws_getCoefficients(ffi::SWS_CS_DEFAULT as libc::c_int);
            let range = libc::c_int::from(source.full_range);
            ffi::sws_setColorspaceDetails(
                context.as_mut_ptr(),
                from,
                range,
                to,
                1,
                0,
                neutral,
                neutral,
            );
        }
        Ok(Scaler {
            context,
            output: new_frame(Pixel::RGB24, width, height)?,
        })
    }

    /// Converts, and lends rows of packed RGB: (bytes from row to row, bytes). Rows are padded, because the vector code
    /// of swscale may write past the last pixel.
    pub fn run(&mut self, picture: &frame::Video) -> Result<(usize, &[u8]), Error> {
        self.context.run(picture, &mut self.output)?;
        Ok((self.output.stride(0), self.output.data(0)))
    }
}

/// A frame with memory for its pixels; `ffmpeg-next`'s own constructor does not look whether there was any.
pub(super) fn new_frame(format: Pixel, width: u32, height: u32) -> Result<frame::Video, Error> {
    let frame = frame::Video::new(format, width, height);
    // SAFETY: the frame pointer is null (then nothing is read) or live.
    let allocated = unsafe { !frame.as_ptr().is_null() && !(*frame.as_ptr()).data[0].is_null() };
    if allocated {
        Ok(frame)
    } else {
        Err(Error::Other {
            errno: libc::ENOMEM,
        })
    }
}

/// A frame that decoders fill, allowed to move between threads.
pub(super) struct Picture(pub frame::Video);

// SAFETY: an AVFrame is a heap object without ties to a thread; its buffers are reference-counted atomically.
unsafe impl Send for Picture {}
