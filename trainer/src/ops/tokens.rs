//! Sequences of tokens: the class token goes in front, removed tokens come back, some rows are taken out.
//!
//! Letters: B batch, N tokens that there are at the end, K tokens that there are, D width.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::kernels;
use super::storage::{slice, tensor_like, with_slice};

/// Arguments: tokens `[B, K, D]`, the class token `[1, 1, D]` and positions `[1 or B, 1 + K, D]`, which take no gradient;
/// result `[B, 1 + K, D]`.
pub(super) struct ClassInFront;

impl CustomOp3 for ClassInFront {
    fn name(&self) -> &'static str {
        "class-in-front"
    }

    fn cpu_fwd(
        &self,
        tokens: &CpuStorage,
        tokens_layout: &Layout,
        class: &CpuStorage,
        class_layout: &Layout,
        positions: &CpuStorage,
        positions_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, n, width) = tokens_layout.shape().dims3()?;
        let (tokens, class, positions) = (
            slice(tokens, tokens_layout)?,
            slice(class, class_layout)?,
            slice(positions, positions_layout)?,
        );
        let size = (1 + n) * width;
        if class.len() != width || ![size, batch * size].contains(&positions.len()) {
            bail!("class token or positions do not fit {batch} x {n} tokens of {width}");
        }
        let mut y = vec![0f32; batch * size];
        y.par_chunks_exact_mut(size)
            .zip(tokens.par_chunks_exact(n * width))
            .enumerate()
            .for_each(|(b, (y, tokens))| {
                let positions = &positions[b * size % positions.len()..][..size];
                kernels::add(class, &positions[..width], &mut y[..width]);
                kernels::add(tokens, &positions[width..], &mut y[width..]);
            });
        Ok((CpuStorage::F32(y), (batch, 1 + n, width).into()))
    }

    fn bwd(
        &self,
        tokens: &Tensor,
        class: &Tensor,
        _positions: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_, n, width) = tokens.dims3()?;
        let (dtokens, dclass) = with_slice(dy, |dy| {
            let mut dtokens = vec![0f32; tokens.elem_count()];
            let samples = dy.par_chunks_exact((1 + n) * width);
            dtokens
                .par_chunks_exact_mut(n * width)
                .zip(samples)
                .for_each(|(dtokens, dy)| dtokens.copy_from_slice(&dy[width..]));
            let mut dclass = vec![0f32; width];
            for dy in dy.chunks_exact((1 + n) * width) {
                kernels::add_rows(&dy[..width], &mut dclass);
            }
            Ok((dtokens, dclass))
        })?;
        Ok((
            Some(tensor_like(dtokens, tokens)?),
            Some(tensor_like(dclass, class)?),
            None,
        ))
    }
}

/// Arguments: tokens `[B, 1 + K, D]`, the mask token `[1, 1, D]` and positions `[1, 1 + N, D]`, which take no gradient;
/// result `[B, 1 + N, D]`.
pub(super) struct Restore {
    /// `[B, N]`: the place of each token among the kept ones; K or more for a removed one.
    pub places: Vec<u32>,
}

impl Restore {
    /// Of sample `b`.
    fn places(&self, b: usize, n: usize) -> &[u32] {
        &self.places[b * n..][..n]
    }

    fn n(&self, batch: usize, positions: usize, width: usize) -> Result<usize> {
        let n = self.places.len() / batch.max(1);
        if n * batch != self.places.len() || positions != (1 + n) * width {
            bail!(
                "{} places of {batch} samples, {positions} values of positions",
                self.places.len()
            );
        }
        Ok(n)
    }
}

impl CustomOp3 for Restore {
    fn name(&self) -> &'static str {
        "restore"
    }

    fn cpu_fwd(
        &self,
        tokens: &CpuStorage,
        tokens_layout: &Layout,
        mask_token: &CpuStorage,
        mask_token_layout: &Layout,
        positions: &CpuStorage,
        positions_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, with_class, width) = tokens_layout.shape().dims3()?;
        let (tokens, mask_token, positions) = (
            slice(tokens, tokens_layout)?,
            slice(mask_token, mask_token_layout)?,
            slice(positions, positions_layout)?,
        );
        let n = self.n(batch, positions.len(), width)?;
        let mut y = vec![0f32; batch * (1 + n) * width];
        y.par_chunks_exact_mut((1 + n) * width)
            .zip(tokens.par_chunks_exact(with_class * width))
            .enumerate()
            .for_each(|(b, (y, tokens))| {
                let mut rows = y.chunks_exact_mut(width).zip(positions.chunks_exact(width));
                if let Some((y, position)) = rows.next() {
                    kernels::add(&tokens[..width], position, y);
                }
                for ((y, position), &place) in rows.zip(self.places(b, n)) {
                    let start = (1 + place as usize) * width;
                    let token = tokens.get(start..start + width).unwrap_or(mask_token);
                    kernels::add(token, position, y);
                }
            });
        Ok((CpuStorage::F32(y), (batch, 1 + n, width).into()))
    }

    fn bwd(
        &self,
        tokens: &Tensor,
        mask_token: &Tensor,
        positions: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (batch, with_class, width) = tokens.dims3()?;
        let n = self.n(batch, positions.elem_count(), width)?;
        let (dtokens, dmask) = with_slice(dy, |dy| {
            let mut dtokens = vec![0f32; tokens.elem_count()];
            // One sum for each sample, so that the total does not depend on the number of threads.
            let sums: Vec<Vec<f32>> = dtokens
                .par_chunks_exact_mut(with_class * width)
                .zip(dy.par_chunks_exact((1 + n) * width))
                .enumerate()
                .map(|(b, (dtokens, dy))| {
                    let mut dmask = vec![0f32; width];
                    dtokens[..width].copy_from_slice(&dy[..width]);
                    let rows = dy[width..].chunks_exact(width);
                    for (dy, &place) in rows.zip(self.places(b, n)) {
                        let start = (1 + place as usize) * width;
                        match dtokens.get_mut(start..start + width) {
                            Some(dtoken) => dtoken.copy_from_slice(dy),
                            None => kernels::add_rows(dy, &mut dmask),
                        }
                    }
                    dmask
                })
                .collect();
            let mut dmask = vec![0f32; width];
            sums.iter()
                .for_each(|sum| kernels::add_rows(sum, &mut dmask));
            Ok((dtokens, dmask))
        })?;
        Ok((
            Some(tensor_like(dtokens, tokens)?),
            Some(tensor_like(dmask, mask_token)?),
            None,
        ))
    }
}

/// Argument: `[.., D]`; result: some of its rows, `[rows, D]`.
pub(super) struct SelectRows {
    /// Different from each other.
    pub rows: Vec<u32>,
}

/// Rows of one task.
const ROWS: usize = 64;

impl CustomOp1 for SelectRows {
    fn name(&self) -> &'static str {
        "select-rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = layout.dims().last().copied().unwrap_or(1);
        let x = slice(x, layout)?;
        let mut y = vec![0f32; self.rows.len() * width];
        y.par_chunks_mut(ROWS * width)
            .zip(self.rows.par_chunks(ROWS))
            .for_each(|(y, rows)| {
                for (y, &row) in y.chunks_exact_mut(width).zip(rows) {
                    y.copy_from_slice(&x[row as usize * width..][..width]);
                }
            });
        Ok((CpuStorage::F32(y), (self.rows.len(), width).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let width = dy.dim(1)?;
        let dx = with_slice(dy, |dy| {
            let mut dx = vec![0f32; x.elem_count()];
            for (dy, &row) in dy.chunks_exact(width).zip(&self.rows) {
                dx[row as usize * width..][..width].copy_from_slice(dy);
            }
            Ok(dx)
        })?;
        Ok(Some(tensor_like(dx, x)?))
    }
}

/// Images `[B, 3, H, W]`, however they lie in memory, to patches `[B, N, P]`, rows of patches and of pixels before
/// columns, channels last. Images take no gradient.
pub(super) struct Patchify {
    pub patch_size: usize,
}

impl CustomOp1 for Patchify {
    fn name(&self) -> &'static str {
        "patchify"
    }

    fn cpu_fwd(&self, images: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let p = self.patch_size;
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let (CpuStorage::F32(images), &[of_sample, of_channel, of_row, 1]) =
            (images, layout.stride())
        else {
            bail!("patchify takes f32 images whose rows are contiguous");
        };
        let (rows, columns) = (height / p, width / p);
        let values = p * p * channels;
        let mut y = vec![0f32; batch * rows * columns * values];
        y.par_chunks_exact_mut(columns * values)
            .enumerate()
            .for_each(|(i, patches)| {
                let (sample, patch_row) = (i / rows, i % rows);
                for row in 0..p {
                    for channel in 0..channels {
                        let start = layout.start_offset()
                            + sample * of_sample
                            + channel * of_channel
                            + (patch_row * p + row) * of_row;
                        let pixels = images[start..start + columns * p].chunks_exact(p);
                        for (patch, pixels) in patches.chunks_exact_mut(values).zip(pixels) {
                            let line = patch[row * p * channels..][..p * channels].iter_mut();
                            for (value, &pixel) in line.skip(channel).step_by(channels).zip(pixels)
                            {
                                *value = pixel;
                            }
                        }
                    }
                }
            });
        Ok((CpuStorage::F32(y), (batch, rows * columns, values).into()))
    }
}
