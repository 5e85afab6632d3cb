//! Reconstructions as a picture: one row a sample, with what the model saw, what was hidden, what it made.
//!
//! Columns: the whole view (where there are two views), the target view, the target with its hidden
//! patches grey, and the same with the prediction in their place. With normalised targets the prediction
//! is brought back by the mean and deviation of the true patch, so colours are the target's and only the
//! structure is the model's.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use crate::device::{IMAGENET_MEAN, IMAGENET_STD};
use crate::error::{Error, Result};
use crate::loss::NORM_PIX_EPS;

/// Level of a hidden patch, of 255.
const GREY: u8 = 128;

/// White pixels between pictures.
const GAP_PX: usize = 4;

/// What the picture is made from; letters: B samples, V views, N patches, P = `patch_size`² x 3.
#[derive(Debug)]
pub struct Reconstructions<'a> {
    /// `[B, V, 3, size, size]`, normalised as the model got them.
    pub views: &'a [f32],
    /// V.
    pub n_views: usize,
    /// Side of a view in pixels.
    pub size: usize,
    /// `[B, N, P]`, P in the order row, column, channel.
    pub pred: &'a [f32],
    /// `[B, N]`, 1 for hidden patches.
    pub mask: &'a [f32],
    /// Which view is predicted.
    pub target_view: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Whether the targets were normalised by each patch's mean and deviation.
    pub norm_pix_loss: bool,
}

/// 8-bit RGB, rows from the top.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Pixels across.
    pub width: usize,
    /// Pixels down.
    pub height: usize,
    /// `height * width * 3` bytes.
    pub data: Vec<u8>,
}

impl Reconstructions<'_> {
    /// Draws every sample.
    pub fn render(&self) -> Picture {
        let view_len = 3 * self.size * self.size;
        let sample_len = self.n_views * view_len;
        let n_samples = self.views.len() / sample_len.max(1);
        let n_columns = if self.n_views > 1 { 4 } else { 3 };
        let mut picture = Picture::white(
            n_columns * (self.size + GAP_PX) + GAP_PX,
            n_samples * (self.size + GAP_PX) + GAP_PX,
        );
        for (row, sample) in self.views.chunks_exact(sample_len).enumerate() {
            let target = &sample[self.target_view * view_len..][..view_len];
            let (masked, made) = self.paste(row, target);
            let other = (self.target_view + 1) % self.n_views;
            let whole =
                (self.n_views > 1).then(|| self.pixels(&sample[other * view_len..][..view_len]));
            let columns = whole.into_iter().chain([self.pixels(target), masked, made]);
            for (column, pixels) in columns.enumerate() {
                let place = |index: usize| GAP_PX + index * (self.size + GAP_PX);
                picture.put(place(column), place(row), self.size, &pixels);
            }
        }
        picture
    }

    /// The target with grey, and with predicted, patches where the mask is set.
    fn paste(&self, row: usize, target: &[f32]) -> (Vec<u8>, Vec<u8>) {
        let (p, grid) = (self.patch_size, self.size / self.patch_size);
        let patch_len = p * p * 3;
        let mut masked = self.pixels(target);
        let mut made = masked.clone();
        let mut truth = vec![0.0; patch_len];
        for patch in 0..grid * grid {
            if self.mask[row * grid * grid + patch] == 0.0 {
                continue;
            }
            let (top, left) = (patch / grid * p, patch % grid * p);
            let pixel = |i: usize| ((top + i / 3 / p) * self.size + left + i / 3 % p, i % 3);
            for (i, value) in truth.iter_mut().enumerate() {
                let (at, channel) = pixel(i);
                *value = target[channel * self.size * self.size + at];
            }
            let (mean, deviation) = if self.norm_pix_loss {
                mean_and_deviation(&truth)
            } else {
                (0.0, 1.0)
            };
            let pred = &self.pred[(row * grid * grid + patch) * patch_len..][..patch_len];
            for (i, &value) in pred.iter().enumerate() {
                let (at, channel) = pixel(i);
                made[at * 3 + channel] = to_byte(value * deviation + mean, channel);
                masked[at * 3 + channel] = GREY;
            }
        }
        (masked, made)
    }

    /// Normalised planes as interleaved bytes.
    fn pixels(&self, planes: &[f32]) -> Vec<u8> {
        let plane = self.size * self.size;
        (0..plane * 3)
            .map(|i| to_byte(planes[i % 3 * plane + i / 3], i % 3))
            .collect()
    }
}

/// Mean and deviation of a patch as the loss has them: over all its pixels and channels, unbiased, with
/// [`NORM_PIX_EPS`] inside the root.
fn mean_and_deviation(patch: &[f32]) -> (f32, f32) {
    let n = patch.len() as f32;
    let mean = patch.iter().sum::<f32>() / n;
    let variance = patch
        .iter()
        .map(|value| (value - mean).powi(2))
        .sum::<f32>()
        / (n - 1.0);
    (mean, (variance + NORM_PIX_EPS as f32).sqrt())
}

fn to_byte(normalised: f32, channel: usize) -> u8 {
    ((normalised * IMAGENET_STD[channel] + IMAGENET_MEAN[channel]) * 255.0).round() as u8
}

impl Picture {
    fn white(width: usize, height: usize) -> Self {
        Self {
            width,
            height,
            data: vec![255; width * height * 3],
        }
    }

    fn put(&mut self, left: usize, top: usize, size: usize, pixels: &[u8]) {
        for (y, row) in pixels.chunks_exact(size * 3).enumerate() {
            self.data[((top + y) * self.width + left) * 3..][..size * 3].copy_from_slice(row);
        }
    }

    /// Writes the picture as a PNG file.
    pub fn write_png(&self, path: &Path) -> Result<()> {
        let failed = |source| Error::Png {
            path: path.into(),
            source,
        };
        let file = BufWriter::new(File::create(path).map_err(Error::io(path))?);
        let mut encoder = png::Encoder::new(file, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().map_err(failed)?;
        writer.write_image_data(&self.data).map_err(failed)?;
        writer.finish().map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 8;
    const PATCH: usize = 4;

    /// One sample of two views with some structure.
    fn views() -> Vec<f32> {
        (0..2 * 3 * SIZE * SIZE)
            .map(|i| ((i * 7 % 23) as f32 - 11.0) / 10.0)
            .collect()
    }

    /// The patches of view 1, as the loss sees them.
    fn patches(views: &[f32], norm: bool) -> Vec<f32> {
        let target = &views[3 * SIZE * SIZE..];
        let mut out = Vec::new();
        for patch in 0..4 {
            let mut values = Vec::new();
            for i in 0..PATCH * PATCH * 3 {
                let (y, x) = (
                    patch / 2 * PATCH + i / 3 / PATCH,
                    patch % 2 * PATCH + i / 3 % PATCH,
                );
                values.push(target[i % 3 * SIZE * SIZE + y * SIZE + x]);
            }
            let (mean, deviation) = if norm {
                mean_and_deviation(&values)
            } else {
                (0.0, 1.0)
            };
            out.extend(values.iter().map(|value| (value - mean) / deviation));
        }
        out
    }

    fn column(picture: &Picture, index: usize) -> Vec<u8> {
        let left = GAP_PX + index * (SIZE + GAP_PX);
        (0..SIZE)
            .flat_map(|y| {
                picture.data[((GAP_PX + y) * picture.width + left) * 3..][..SIZE * 3].to_vec()
            })
            .collect()
    }

    #[test]
    fn a_perfect_prediction_gives_the_target_back() {
        let views = views();
        for norm_pix_loss in [false, true] {
            let pred = patches(&views, norm_pix_loss);
            let mask = [1.0, 0.0, 1.0, 1.0];
            let picture = Reconstructions {
                views: &views,
                n_views: 2,
                size: SIZE,
                pred: &pred,
                mask: &mask,
                target_view: 1,
                patch_size: PATCH,
                norm_pix_loss,
            }
            .render();
            assert_eq!(picture.width, 4 * (SIZE + GAP_PX) + GAP_PX);
            assert_eq!(
                column(&picture, 1),
                column(&picture, 3),
                "norm_pix_loss {norm_pix_loss}"
            );
            let masked = column(&picture, 2);
            assert_eq!(masked[..3], [GREY; 3]);
            assert_eq!(
                masked[PATCH * 3..][..3],
                column(&picture, 1)[PATCH * 3..][..3],
                "patch 1 was seen"
            );
        }
    }

    #[test]
    fn a_single_view_has_three_columns_and_the_file_is_a_png() {
        let views = &views()[..3 * SIZE * SIZE];
        let pred = vec![0.0; 4 * PATCH * PATCH * 3];
        let picture = Reconstructions {
            views,
            n_views: 1,
            size: SIZE,
            pred: &pred,
            mask: &[1.0; 4],
            target_view: 0,
            patch_size: PATCH,
            norm_pix_loss: true,
        }
        .render();
        assert_eq!(picture.width, 3 * (SIZE + GAP_PX) + GAP_PX);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step.png");
        picture.write_png(&path).unwrap();
        assert!(std::fs::read(path).unwrap().starts_with(b"\x89PNG"));
    }
}
