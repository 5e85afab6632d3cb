//! Safe wrapper of the few TurboJPEG calls needed for decoding.
//!
//! The `turbojpeg` crate's own decompressor turns every warning of libjpeg-turbo into an error, in the header too, and
//! hides whether the pixels are there all the same. Pillow ignores those warnings, so we have to tell them apart.
#![allow(unsafe_code)]

use std::ffi::CStr;

use turbojpeg::raw;

/// What libjpeg-turbo calls the pixel layouts we ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// 3 bytes a pixel.
    Rgb,
    /// 4 bytes a pixel, as stored: Adobe's files hold 255 minus the amount of ink.
    Cmyk,
}

/// How a call ended that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nothing to report.
    Clean,
    /// The data has a defect that libjpeg-turbo worked around; its first warning.
    Warned(String),
}

/// Size and colours of a JPEG file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub width: u32,
    pub height: u32,
    /// Four channels of ink.
    pub is_cmyk: bool,
}

/// A TurboJPEG decompressor for one picture.
///
/// libjpeg keeps quantisation and Huffman tables from one picture to the next, so a damaged file without tables would
/// decode differently after different predecessors. A fresh handle costs microseconds and has no memory.
pub(super) struct Decompressor(raw::tjhandle);

impl Decompressor {
    /// `max_scans` bounds the work that a small progressive file can ask for.
    pub fn new(max_scans: i32) -> Result<Decompressor, String> {
        // SAFETY: tj3Init takes a plain number and returns a handle or null.
        let handle = unsafe { raw::tj3Init(raw::TJINIT_TJINIT_DECOMPRESS as libc::c_int) };
        let this = Decompressor(handle);
        if handle.is_null() {
            return Err(this.message());
        }
        this.set(raw::TJPARAM_TJPARAM_SCANLIMIT, max_scans)?;
        this.set(raw::TJPARAM_TJPARAM_SAVEMARKERS, 0)?; // colour profiles are not wanted
        Ok(this)
    }

    /// Reads the header.
    pub fn header(&mut self, bytes: &[u8]) -> Result<Header, String> {
        // SAFETY: the handle is live, and pointer and length are those of a slice that outlives the call.
        let status =
            unsafe { raw::tj3DecompressHeader(self.0, bytes.as_ptr(), bytes.len() as raw::size_t) };
        self.ending(status)?;
        let colorspace = self.get(raw::TJPARAM_TJPARAM_COLORSPACE);
        match (
            u32::try_from(self.get(raw::TJPARAM_TJPARAM_JPEGWIDTH)),
            u32::try_from(self.get(raw::TJPARAM_TJPARAM_JPEGHEIGHT)),
        ) {
            (Ok(width), Ok(height)) if width > 0 && height > 0 => Ok(Header {
                width,
                height,
                is_cmyk: [raw::TJCS_TJCS_CMYK, raw::TJCS_TJCS_YCCK]
                    .iter()
                    .any(|&cmyk| cmyk as libc::c_int == colorspace),
            }),
            _ => Err("no picture in the file, only tables".to_owned()),
        }
    }

    /// Decodes all rows into `pixels`, which must be exactly as long as `header` (of the same `bytes`) asks for.
    pub fn decode(
        &mut self,
        bytes: &[u8],
        header: &Header,
        layout: Layout,
        pixels: &mut [u8],
    ) -> Result<Ending, String> {
        let (format, channels) = match layout {
            Layout::Rgb => (raw::TJPF_TJPF_RGB, 3),
            Layout::Cmyk => (raw::TJPF_TJPF_CMYK, 4),
        };
        let read = self.header(bytes)?;
        if (read.width, read.height) != (header.width, header.height)
            || pixels.len() != read.width as usize * read.height as usize * channels
        {
            return Err(format!(
                "{} bytes for {} x {} pixels of {channels}",
                pixels.len(),
                read.width,
                read.height
            ));
        }
        // SAFETY: the handle is live; `bytes` and `pixels` outlive the call. With scaling and cropping at their
        // defaults the library writes width * height * channels bytes (pitch 0: no padding), the length checked above
        // against the header of these very bytes.
        let status = unsafe {
            raw::tj3Decompress8(
                self.0,
                bytes.as_ptr(),
                bytes.len() as raw::size_t,
                pixels.as_mut_ptr(),
                0,
                format,
            )
        };
        self.ending(status)
    }

    /// Tells warnings from failures. The library's error code cannot: it stays at "warning" when a failure follows a
    /// warning. Its message can: the first warning, unless a failure overwrote it.
    fn ending(&self, status: libc::c_int) -> Result<Ending, String> {
        if status == 0 {
            return Ok(Ending::Clean);
        }
        let message = self.message();
        if WARNINGS.iter().any(|start| message.starts_with(start)) {
            Ok(Ending::Warned(message))
        } else {
            Err(message)
        }
    }

    fn set(&self, param: raw::TJPARAM, value: libc::c_int) -> Result<(), String> {
        // SAFETY: the handle is live, the rest are plain numbers.
        match unsafe { raw::tj3Set(self.0, param as libc::c_int, value) } {
            0 => Ok(()),
            _ => Err(self.message()),
        }
    }

    fn get(&self, param: raw::TJPARAM) -> libc::c_int {
        // SAFETY: the handle is live, the parameter a plain number.
        unsafe { raw::tj3Get(self.0, param as libc::c_int) }
    }

    fn message(&self) -> String {
        // SAFETY: takes a live handle or null and returns a terminated string that lasts until the next call.
        unsafe { CStr::from_ptr(raw::tj3GetErrorStr(self.0)) }
            .to_string_lossy()
            .into_owned()
    }
}

impl Drop for Decompressor {
    fn drop(&mut self) {
        // SAFETY: the handle is null (then nothing happens) or live, and never used again.
        unsafe { raw::tj3Destroy(self.0) }
    }
}

/// How the messages of libjpeg-turbo's warnings begin.
///
/// Source: libjpeg-turbo, `jerror.h`, the messages named `JWRN_`.
const WARNINGS: [&str; 7] = [
    "Unknown Adobe color transform code",
    "Inconsistent progression sequence",
    "Premature end of JPEG file",
    "Warning: unknown JFIF revision number",
    "Invalid SOS parameters for sequential JPEG",
    "Application transferred too many scanlines",
    "Corrupt JPEG data: ",
];
