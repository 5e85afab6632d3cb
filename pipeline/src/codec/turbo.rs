//! Safe wrapper of the few TurboJPEG calls needed for decoding.
//!
//! The `turbojpeg` crate's own decompressor turns every warning of libjpeg-turbo into an error, in the header too, and
//! hides whether the pixels are there all the same. Pillow ignores those warnings, so we have to tell them apart.
#![allow(unsafe_code)]

use std::ffi::CStr;

use turbojpeg::raw;

use super::CropBox;
use super::work::MAX_SCANS;

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

/// What the header of a JPEG file says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub width: u32,
    pub height: u32,
    /// Four channels of ink.
    pub is_cmyk: bool,
    /// The picture is refined by several scans, and guessed between the blocks where scans are missing.
    pub is_progressive: bool,
    /// Columns of the smallest unit that can be left out when decoding a part; `None` where only the whole decodes.
    pub mcu_width: Option<u32>,
}

impl Header {
    /// Bytes of memory for each pixel of the whole picture: what comes out, and what the library keeps meanwhile.
    pub fn pixel_bytes(&self) -> u64 {
        let channels = if self.is_cmyk { 4 } else { 3 };
        let ink = if self.is_cmyk { 4 } else { 0 };
        // A progressive picture's coefficients, of 16 bits each, are kept from scan to scan.
        let kept = if self.is_progressive { 2 * channels } else { 0 };
        3 + ink + kept
    }
}

/// A TurboJPEG decompressor for one picture.
///
/// libjpeg keeps quantisation and Huffman tables from one picture to the next, so a damaged file without tables would
/// decode differently after different predecessors. A fresh handle has no memory, and with the header read it costs less
/// than a microsecond, a thousandth of a decode: nothing is gained by keeping one.
pub(super) struct Decompressor(raw::tjhandle);

impl Decompressor {
    /// A handle that has read nothing.
    pub fn new() -> Result<Decompressor, String> {
        // SAFETY: tj3Init takes a plain number and returns a handle or null.
        let handle = unsafe { raw::tj3Init(raw::TJINIT_TJINIT_DECOMPRESS as libc::c_int) };
        let this = Decompressor(handle);
        if handle.is_null() {
            return Err(this.message());
        }
        this.set(raw::TJPARAM_TJPARAM_SCANLIMIT, MAX_SCANS as libc::c_int)?;
        this.set(raw::TJPARAM_TJPARAM_SAVEMARKERS, 0)?; // colour profiles are not wanted
        Ok(this)
    }

    /// Reads the header of `bytes`.
    pub fn open(self, bytes: &[u8]) -> Result<Opened<'_>, String> {
        // SAFETY: the handle is live, and pointer and length are those of a slice that outlives the call.
        let status =
            unsafe { raw::tj3DecompressHeader(self.0, bytes.as_ptr(), bytes.len() as raw::size_t) };
        self.ending(status)?;
        let colorspace = self.get(raw::TJPARAM_TJPARAM_COLORSPACE);
        let (Ok(width @ 1..), Ok(height @ 1..)) = (
            u32::try_from(self.get(raw::TJPARAM_TJPARAM_JPEGWIDTH)),
            u32::try_from(self.get(raw::TJPARAM_TJPARAM_JPEGHEIGHT)),
        ) else {
            return Err("no picture in the file, only tables".to_owned());
        };
        let is_cmyk = [raw::TJCS_TJCS_CMYK, raw::TJCS_TJCS_YCCK]
            .iter()
            .any(|&cmyk| cmyk as libc::c_int == colorspace);
        let is_lossless = self.get(raw::TJPARAM_TJPARAM_LOSSLESS) != 0;
        let header = Header {
            width,
            height,
            is_cmyk,
            is_progressive: self.get(raw::TJPARAM_TJPARAM_PROGRESSIVE) != 0,
            mcu_width: self.mcu_width().filter(|_| !is_cmyk && !is_lossless),
        };
        Ok(Opened {
            turbo: self,
            bytes,
            header,
        })
    }

    fn mcu_width(&self) -> Option<u32> {
        match self.get(raw::TJPARAM_TJPARAM_SUBSAMP) {
            raw::TJSAMP_TJSAMP_GRAY
            | raw::TJSAMP_TJSAMP_444
            | raw::TJSAMP_TJSAMP_440
            | raw::TJSAMP_TJSAMP_441 => Some(8),
            raw::TJSAMP_TJSAMP_422 | raw::TJSAMP_TJSAMP_420 => Some(16),
            raw::TJSAMP_TJSAMP_411 => Some(32),
            _ => None,
        }
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

/// A decompressor that has read the header of a picture.
pub(super) struct Opened<'a> {
    turbo: Decompressor,
    bytes: &'a [u8],
    header: Header,
}

impl Opened<'_> {
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Bounds the work that a small file can ask for: scans, and what the library keeps between them.
    pub fn limit(&mut self, max_scans: u64, memory_bytes: u64) -> Result<(), String> {
        let number = |n: u64| libc::c_int::try_from(n).unwrap_or(libc::c_int::MAX);
        let mebibytes = memory_bytes.div_ceil(1 << 20);
        let (scans, memory) = (
            raw::TJPARAM_TJPARAM_SCANLIMIT,
            raw::TJPARAM_TJPARAM_MAXMEMORY,
        );
        self.turbo.set(scans, number(max_scans))?;
        self.turbo.set(memory, number(mebibytes))
    }

    /// Decodes the whole picture into `pixels`, which must be exactly as long as its pixels.
    pub fn decode(self, layout: Layout, pixels: &mut [u8]) -> Result<Ending, String> {
        let whole = CropBox::whole(self.header.width, self.header.height);
        self.fill(layout, whole, pixels)
    }

    /// Decodes the RGB pixels of `area` of the picture reduced to one `scale`th (1, 2, 4 or 8) of its size.
    ///
    /// * `area`: within the reduced picture, its left edge on a multiple of the reduced [`Header::mcu_width`].
    pub fn decode_part(
        self,
        area: CropBox,
        scale: u32,
        pixels: &mut [u8],
    ) -> Result<Ending, String> {
        if area.width == 0 || area.height == 0 {
            return Err("a part without pixels".to_owned()); // to the library, 0 is the rest of the picture
        }
        let denom = libc::c_int::try_from(scale).map_err(|error| error.to_string())?;
        let factor = raw::tjscalingfactor { num: 1, denom };
        let [x, y, w, h] = [area.x, area.y, area.width, area.height]
            .map(|side| libc::c_int::try_from(side).unwrap_or(-1)); // refused by the library
        // SAFETY: the handle is live, the other arguments are plain numbers, checked by the library.
        let status = unsafe {
            match raw::tj3SetScalingFactor(self.turbo.0, factor) {
                0 => raw::tj3SetCroppingRegion(self.turbo.0, raw::tjregion { x, y, w, h }),
                failed => failed,
            }
        };
        if status != 0 {
            return Err(self.turbo.message());
        }
        self.fill(Layout::Rgb, area, pixels)
    }

    fn fill(self, layout: Layout, area: CropBox, pixels: &mut [u8]) -> Result<Ending, String> {
        let (format, channels) = match layout {
            Layout::Rgb => (raw::TJPF_TJPF_RGB, 3),
            Layout::Cmyk => (raw::TJPF_TJPF_CMYK, 4),
        };
        let CropBox { width, height, .. } = area;
        if pixels.len() != width as usize * height as usize * channels {
            return Err(format!(
                "{} bytes for {width} x {height} pixels of {channels}",
                pixels.len()
            ));
        }
        // SAFETY: the handle is live; `bytes` and `pixels` outlive the call. The library writes width * height *
        // channels bytes (pitch 0: no padding), the length checked above: the whole picture as the header of these very
        // bytes has it, which cannot have changed meanwhile, or the cropping region that was accepted.
        let status = unsafe {
            raw::tj3Decompress8(
                self.turbo.0,
                self.bytes.as_ptr(),
                self.bytes.len() as raw::size_t,
                pixels.as_mut_ptr(),
                0,
                format,
            )
        };
        self.turbo.ending(status)
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

/// Every kind of file that libjpeg-turbo writes, for tests.
#[cfg(test)]
pub(super) mod encode {
    use super::*;

    /// Encodes with parameters of TurboJPEG; `pixels` are RGB, or CMYK if the colour space asked for is.
    pub fn encode(
        width: u32,
        height: u32,
        pixels: &[u8],
        params: &[(raw::TJPARAM, libc::c_int)],
    ) -> Vec<u8> {
        let is_cmyk = params.iter().any(|&(param, value)| {
            param == raw::TJPARAM_TJPARAM_COLORSPACE && value as u32 >= raw::TJCS_TJCS_CMYK
        });
        let (format, channels) = if is_cmyk {
            (raw::TJPF_TJPF_CMYK, 4)
        } else {
            (raw::TJPF_TJPF_RGB, 3)
        };
        assert_eq!(pixels.len(), width as usize * height as usize * channels);
        // SAFETY: plain numbers.
        let turbo =
            Decompressor(unsafe { raw::tj3Init(raw::TJINIT_TJINIT_COMPRESS as libc::c_int) });
        for &(param, value) in params {
            turbo.set(param, value).unwrap();
        }
        let (mut buffer, mut len) = (std::ptr::null_mut(), 0);
        // SAFETY: the handle is live, the pixels are as many as said, and the library allocates the buffer, whose length
        // it writes; it is copied and freed before anything else happens to it.
        unsafe {
            let status = raw::tj3Compress8(
                turbo.0,
                pixels.as_ptr(),
                width as libc::c_int,
                0,
                height as libc::c_int,
                format,
                &mut buffer,
                &mut len,
            );
            assert_eq!(status, 0, "{}", turbo.message());
            let bytes = std::slice::from_raw_parts(buffer, len as usize).to_vec();
            raw::tj3Free(buffer.cast());
            bytes
        }
    }
}
