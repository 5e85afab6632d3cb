//! What a sample becomes: drawn first (which frames, which boxes, which flips), then cut from the decoded pictures, of
//! which only the part that the drawn boxes need is decoded.
//!
//! Reading order: [`crop_box`] (where a crop lies), [`resize`] (crop, then resize, and the flip) and `resample` (one axis of it), [`augment`] (colour),
//! [`single`], [`crop_pair`], [`frame_pair`], [`multi_view`], [`centre`] (the five kinds), [`rand_augment`], and [`Views`], which
//! picks one.
//!
//! - Every draw is a pure function of a [`SampleKey`] and the sizes of the pictures; drawing needs no pixel.
//! - Parts of pictures give the views of whole pictures, bit for bit, unless `data.decode` allows a reduced decode.
//! - View 0 is the whole view `f1`, view 1 the masked view `f2`.

pub mod augment;
pub mod centre;
pub mod crop_box;
pub mod crop_pair;
pub mod frame_pair;
pub mod multi_view;
pub mod rand_augment;
mod resample;
pub mod resize;
pub mod single;

pub use crop_box::{CropBox, CropSampler};
pub use resize::{CropResizer, Mirror, RgbRef, resize_short_side};

use crate::codec::PicturePart;
use crate::config::{
    AugmentConfig, DataConfig, DecodeKind, Interpolation, RandAugmentConfig, ViewsKind,
};
use crate::error::{Error, Result};
use crate::rng::{Purpose, SampleRng};
use crop_pair::{CropPair, CropPairDraw, OtherCrop};
use frame_pair::FramePair;
use multi_view::MultiView;
use single::{Single, ViewDraw};

/// What the randomness of one sample in one epoch hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleKey {
    /// The run's seed.
    pub seed: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// Index in the split x repeated sampling + repetition.
    pub sample: u64,
}

impl SampleKey {
    /// The sample's random numbers for `purpose`.
    pub fn rng(self, purpose: Purpose) -> SampleRng {
        SampleRng::new(self.seed, self.epoch, self.sample, purpose)
    }
}

/// Cuts square views of one size; keep one for each thread.
#[derive(Debug)]
pub struct Renderer {
    resizer: CropResizer,
    size: u32,
    interpolation: Interpolation,
    blur_scratch: Vec<f32>,
    /// A whole picture resized, of which a view is the middle.
    resized: Vec<u8>,
    /// A view as it was before a change.
    before: Vec<u8>,
}

impl Renderer {
    /// For views of `size` by `size` px.
    pub fn new(size: u32, interpolation: Interpolation) -> Self {
        Self {
            resizer: CropResizer::new(),
            size,
            interpolation,
            blur_scratch: Vec::new(),
            resized: Vec::new(),
            before: Vec::new(),
        }
    }

    /// Side of the views in px.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Cuts `crop` out of `picture` and resizes it into `out`, `[S, S, 3]`.
    ///
    /// # Errors
    /// As [`CropResizer::resize_crop`].
    pub fn cut(
        &mut self,
        picture: RgbRef<'_>,
        crop: CropBox,
        mirror: Mirror,
        out: &mut [u8],
    ) -> Result<()> {
        let size = (self.size, self.size);
        self.resizer
            .resize_mirrored(picture, crop, size, self.interpolation, mirror, out)
    }
}

/// The frames of a sample that are needed, in the order of the views.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frames {
    /// One picture, of which every view is cut.
    One(u32),
    /// Two frames of a clip, a view each.
    Two([u32; 2]),
}

impl Frames {
    /// The frames' indices.
    pub fn as_slice(&self) -> &[u32] {
        match self {
            Self::One(frame) => std::slice::from_ref(frame),
            Self::Two(frames) => frames,
        }
    }
}

/// What was drawn for a sample: the boxes of its pictures, in px, that become its views, and their flips.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// Two crops of one picture.
    CropPair(CropPairDraw),
    /// One crop of both frames.
    FramePair(ViewDraw),
    /// One crop.
    Single(ViewDraw),
    /// Two independent crops of one picture.
    MultiView([ViewDraw; 2]),
    /// The middle of the whole picture, whose box this is.
    Centre(CropBox),
}

impl Draw {
    /// The boxes cut out of a picture itself; twice the same where there is only one.
    fn boxes(&self) -> [CropBox; 2] {
        match self {
            Self::CropPair(draw) => match draw.other {
                OtherCrop::InPicture(other) => [draw.global, other],
                OtherCrop::InGlobalView(_) | OtherCrop::Same => [draw.global; 2],
            },
            Self::FramePair(draw) | Self::Single(draw) => [draw.crop; 2],
            Self::MultiView([one, two]) => [one.crop, two.crop],
            Self::Centre(whole) => [*whole; 2],
        }
    }

    /// The part of a picture that must be decoded.
    ///
    /// For two boxes this is their union. Decoding them one by one would read the entropy-coded rows above the lower end
    /// of the higher box twice, and these take most of the time of a decode: with crops of a tenth of the area, the
    /// smallest that anyone draws, both ways are level at best.
    pub fn needed(&self) -> CropBox {
        let [one, two] = self.boxes();
        one.union(&two)
    }

    /// By how much pictures may be reduced in decoding, 1, 2, 4 or 8, with every box still no smaller than a view of
    /// `size` px.
    pub fn reduction(&self, size: u32) -> u32 {
        let shortest = self.boxes().map(|crop| crop.width.min(crop.height));
        let times = shortest[0].min(shortest[1]) / size.max(1);
        [8, 4, 2].into_iter().find(|&n| n <= times).unwrap_or(1)
    }
}

/// The views that a configuration asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Views {
    kind: Kind,
    decode: DecodeKind,
    size: u32,
    interpolation: Interpolation,
    augment: [AugmentConfig; 2],
    rand_augment: Option<RandAugmentConfig>,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    CropPair(CropPair),
    FramePair(FramePair),
    Single(Single),
    MultiView(MultiView),
    Centre,
}

impl Views {
    /// As the configuration says; it is taken to be valid.
    pub fn new(config: &DataConfig) -> Self {
        let sampler = |area| CropSampler {
            sampler: config.sampler,
            area,
            aspect: config.aspect,
        };
        let single = |area| Single {
            crop: sampler(area),
            flip_p: config.flip_p,
        };
        let kind = match config.views {
            ViewsKind::CropPair => Kind::CropPair(CropPair {
                strategy: config.strategy,
                global: sampler(config.global_area),
                local: sampler(config.local_area),
                flip_p: config.flip_p,
            }),
            ViewsKind::FramePair => Kind::FramePair(FramePair {
                min_gap: config.min_gap,
                max_gap: config.max_gap,
                shared: single(config.frame_area),
            }),
            ViewsKind::Single => Kind::Single(single(config.view_area)),
            ViewsKind::MultiView => Kind::MultiView(MultiView {
                each: single(config.view_area),
            }),
            ViewsKind::Centre => Kind::Centre,
        };
        let augment = [config.augment_f1, config.augment_f2];
        Self {
            kind,
            decode: config.decode,
            size: config.size,
            interpolation: config.interpolation,
            augment,
            rand_augment: config.rand_augment,
        }
    }

    /// Views a sample becomes.
    pub fn n_views(&self) -> usize {
        if matches!(self.kind, Kind::Single(_) | Kind::Centre) {
            1
        } else {
            2
        }
    }

    /// Encoded pictures that one visit of a sample needs.
    pub fn pictures_per_sample(&self) -> u64 {
        if self.needs_clips() { 2 } else { 1 }
    }

    /// Bytes of all views of one sample, `[V, S, S, 3]`.
    pub fn sample_bytes(&self) -> usize {
        self.n_views() * self.view_bytes()
    }

    fn view_bytes(&self) -> usize {
        self.size as usize * self.size as usize * 3
    }

    /// Whether samples must be clips.
    pub fn needs_clips(&self) -> bool {
        matches!(self.kind, Kind::FramePair(_))
    }

    /// A renderer for one thread.
    pub fn renderer(&self) -> Renderer {
        Renderer::new(self.size, self.interpolation)
    }

    /// Which frames of a sample of `n_frames` (1 for a still picture) are needed; `None` if it has too few.
    pub fn frames(&self, key: SampleKey, n_frames: u32) -> Option<Frames> {
        match &self.kind {
            Kind::FramePair(pair) => pair
                .draw_frames(&mut key.rng(Purpose::Frames), n_frames)
                .map(Frames::Two),
            _ if n_frames == 0 => None,
            _ => Some(Frames::One(frame_pair::draw_frame(key, n_frames))),
        }
    }

    /// The draws for pictures of `width` by `height` px.
    pub fn draw(&self, key: SampleKey, width: u32, height: u32) -> Draw {
        match &self.kind {
            Kind::CropPair(pair) => Draw::CropPair(pair.draw(key, width, height, self.size)),
            Kind::FramePair(pair) => Draw::FramePair(pair.draw(key, width, height)),
            Kind::Single(single) => {
                let [draw] = single.draw(key, width, height);
                Draw::Single(draw)
            }
            Kind::MultiView(views) => Draw::MultiView(views.draw(key, width, height)),
            Kind::Centre => Draw::Centre(CropBox::whole(width, height)),
        }
    }

    /// By how much the sample's pictures are to be reduced in decoding: 1 but for [`DecodeKind::Fast`], and never for an
    /// evaluation's views.
    pub fn reduction(&self, draw: &Draw) -> u32 {
        match (self.decode, draw) {
            (DecodeKind::Exact, _) | (_, Draw::Centre(_)) => 1,
            (DecodeKind::Fast, _) => draw.reduction(self.size),
        }
    }

    /// Cuts all views of a sample out of its decoded pictures, which are those of [`Self::frames`] in their order, and
    /// hold at least what the draw [needs](Draw::needed).
    ///
    /// * `out`: `[V, S, S, 3]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the pictures are not as many as asked for, if the frames of a pair differ in size, or if
    /// `out` has another length.
    pub fn render(
        &self,
        key: SampleKey,
        draw: &Draw,
        pictures: &[PicturePart],
        renderer: &mut Renderer,
        out: &mut [u8],
    ) -> Result<()> {
        let [first, rest @ ..] = pictures else {
            return Err(wrong_pictures("none"));
        };
        if out.len() != self.sample_bytes() {
            return Err(Error::Invalid {
                name: "out",
                value: format!("{} bytes", out.len()),
                expected: format!(
                    "the {} bytes of {} views",
                    self.sample_bytes(),
                    self.n_views()
                ),
            });
        }
        let (f1, f2) = out.split_at_mut(self.view_bytes());
        match (&self.kind, draw) {
            (Kind::CropPair(pair), Draw::CropPair(draw)) => {
                pair.render(&draw.within(first), first.into(), renderer, f1, f2)?;
            }
            (_, Draw::FramePair(draw)) => {
                let [second] = rest else {
                    return Err(wrong_pictures("one frame"));
                };
                let ((w1, h1), (w2, h2)) = (first.size(), second.size());
                if (w1, h1) != (w2, h2) {
                    return Err(wrong_pictures(&format!("{w1}x{h1} and {w2}x{h2} px")));
                }
                draw.within(first).render(first.into(), renderer, f1)?;
                draw.within(second).render(second.into(), renderer, f2)?;
            }
            (_, Draw::Single(draw)) => {
                draw.within(first).render(first.into(), renderer, f1)?;
            }
            (_, Draw::MultiView([one, two])) => {
                one.within(first).render(first.into(), renderer, f1)?;
                two.within(first).render(first.into(), renderer, f2)?;
            }
            (_, Draw::Centre(_)) => centre::render(first, renderer, f1)?,
            (_, Draw::CropPair(_)) => return Err(wrong_pictures("those of a crop pair")),
        }
        if let Some(changes) = &self.rand_augment {
            let mut rng = key.rng(Purpose::RandAugment);
            for view in out.chunks_exact_mut(self.view_bytes()) {
                let (width, scratch) = (self.size as usize, &mut renderer.before);
                rand_augment::rand_augment(changes, &mut rng, view, width, scratch);
            }
        }
        if self.augment.iter().any(|changes| !changes.is_off()) {
            let mut rng = key.rng(Purpose::Augment);
            let views = out.chunks_exact_mut(self.view_bytes());
            for (changes, view) in self.augment.iter().zip(views) {
                augment::augment(changes, &mut rng, view, &mut renderer.blur_scratch);
            }
        }
        Ok(())
    }
}

fn wrong_pictures(found: &str) -> Error {
    Error::Invalid {
        name: "pictures of a sample",
        value: found.to_owned(),
        expected: "the frames asked for, all of one size".to_owned(),
    }
}
