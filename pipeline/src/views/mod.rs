//! What a sample becomes: drawn first (which frames, which boxes, which flips), then cut from the decoded pictures.
//!
//! Reading order: [`crop_box`] (where a crop lies), [`resize`] (crop, then resize), [`augment`] (flip and colour),
//! [`single`], [`crop_pair`], [`frame_pair`], [`multi_view`] (the four kinds), and [`Views`], which picks one.
//!
//! - Every draw is a pure function of a [`SampleKey`] and the sizes of the pictures; drawing needs no pixel.
//! - View 0 is the whole view `f1`, view 1 the masked view `f2`.

pub mod augment;
pub mod crop_box;
pub mod crop_pair;
pub mod frame_pair;
pub mod multi_view;
pub mod resize;
pub mod single;

pub use crop_box::{CropBox, CropSampler};
pub use resize::{CropResizer, RgbRef, resize_short_side};

use crate::codec::Rgb8Image;
use crate::config::{AugmentConfig, DataConfig, Interpolation, ViewsKind};
use crate::error::{Error, Result};
use crate::rng::{Purpose, SampleRng};
use crop_pair::CropPair;
use frame_pair::FramePair;
use multi_view::MultiView;
use single::Single;

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
}

impl Renderer {
    /// For views of `size` by `size` px.
    pub fn new(size: u32, interpolation: Interpolation) -> Self {
        Self {
            resizer: CropResizer::new(),
            size,
            interpolation,
            blur_scratch: Vec::new(),
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
    pub fn cut(&mut self, picture: RgbRef<'_>, crop: CropBox, out: &mut [u8]) -> Result<()> {
        self.resizer
            .resize_crop(picture, crop, self.size, self.size, self.interpolation, out)
    }

    /// Mirrors the view if asked to.
    pub fn flip_if(&self, flip: bool, view: &mut [u8]) {
        if flip {
            augment::flip_horizontal(view, self.size);
        }
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

/// The views that a configuration asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Views {
    kind: Kind,
    size: u32,
    interpolation: Interpolation,
    augment: [AugmentConfig; 2],
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    CropPair(CropPair),
    FramePair(FramePair),
    Single(Single),
    MultiView(MultiView),
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
        };
        let augment = [config.augment_f1, config.augment_f2];
        Self {
            kind,
            size: config.size,
            interpolation: config.interpolation,
            augment,
        }
    }

    /// Views a sample becomes.
    pub fn n_views(&self) -> usize {
        if matches!(self.kind, Kind::Single(_)) {
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

    /// Cuts all views of a sample out of its decoded pictures, which are those of [`Self::frames`] in their order.
    ///
    /// * `out`: `[V, S, S, 3]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the pictures are not as many as asked for, if the frames of a pair differ in size, or if
    /// `out` has another length.
    pub fn render(
        &self,
        key: SampleKey,
        pictures: &[Rgb8Image],
        renderer: &mut Renderer,
        out: &mut [u8],
    ) -> Result<()> {
        let [first, rest @ ..] = pictures else {
            return Err(wrong_pictures("none"));
        };
        let (width, height) = (first.width, first.height);
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
        match &self.kind {
            Kind::CropPair(pair) => {
                let draw = pair.draw(key, width, height, self.size);
                pair.render(&draw, first.into(), renderer, f1, f2)?;
            }
            Kind::FramePair(pair) => {
                let [second] = rest else {
                    return Err(wrong_pictures("one frame"));
                };
                if (second.width, second.height) != (width, height) {
                    let sizes =
                        format!("{width}x{height} and {}x{} px", second.width, second.height);
                    return Err(wrong_pictures(&sizes));
                }
                let draw = pair.draw(key, width, height);
                draw.render(first.into(), renderer, f1)?;
                draw.render(second.into(), renderer, f2)?;
            }
            Kind::Single(single) => {
                let [draw] = single.draw(key, width, height);
                draw.render(first.into(), renderer, f1)?;
            }
            Kind::MultiView(views) => {
                let [one, two] = views.draw(key, width, height);
                one.render(first.into(), renderer, f1)?;
                two.render(first.into(), renderer, f2)?;
            }
        }
        if self.augment.iter().any(|changes| !changes.is_off()) {
            let mut rng = key.rng(Purpose::Augment);
            for (changes, view) in self.augment.iter().zip([f1, f2]) {
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
