//! Pixels to patches, and rows of tokens put together and taken apart.
//!
//! Letters: B batch, N patches, K kept patches, P values of a patch, D width.

use candle_core::{DType, Result, Tensor, bail};

use super::buffer::{Launch, Output, address, address_mut, none, type_code};
use super::node::{Keeps, node};

/// Bytes `[.., H, W, 3]` to planes `[.., 3, H, W]` of `dtype`: `(byte / 255 - mean) / std` of each channel.
pub(crate) fn normalise(
    bytes: &Tensor,
    mean: [f32; 3],
    std: [f32; 3],
    dtype: DType,
) -> Result<Tensor> {
    let &[ref pictures @ .., height, width, 3] = bytes.dims() else {
        bail!("pictures are {:?}, expected [.., H, W, 3]", bytes.dims())
    };
    let n_pictures: usize = pictures.iter().product();
    let shape = [pictures, &[3, height, width]].concat();
    let channels = |values: &[f32; 3]| Tensor::new(values, bytes.device());
    let (mean, std) = (channels(&mean)?, channels(&std)?);
    let mut planes = Output::new(shape, dtype, bytes.device())?;
    let out = planes.address()?;
    let planes = planes.into_tensor();
    let code = type_code(&planes)?;
    let (bytes_in, mean, std) = (address(bytes)?, address(&mean)?, address(&std)?);
    Launch::on(bytes.device())?.run("normalisation of pictures", |kernels, stream| {
        // SAFETY: both have three values for each pixel of each picture.
        unsafe {
            (kernels.pairquet_normalise)(
                code,
                bytes_in,
                out,
                n_pictures as i64,
                (height * width) as i64,
                mean,
                std,
                stream,
            )
        }
    })?;
    Ok(planes)
}

/// Planes `[B, 3, H, W]`, whole pictures of which may lie apart (one view of several), to patches `[B, N, P]` with
/// values in (row, column, channel) order. Takes no gradient.
pub(crate) fn patchify(planes: &Tensor, side: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = planes.dims4()?;
    if planes.stride()[1..] != [height * width, width, 1] {
        return patchify(&planes.contiguous()?, side);
    }
    let sample_stride = planes.stride()[0];
    let (rows, columns) = (height / side, width / side);
    let shape = (batch, rows * columns, channels * side * side);
    let mut patches = Output::new(shape, planes.dtype(), planes.device())?;
    let (code, out) = (type_code(planes)?, patches.address()?);
    let first = address(&planes.narrow(0, 0, 1)?)?;
    Launch::on(planes.device())?.run("patches", |kernels, stream| {
        // SAFETY: a sample's three planes lie together from its multiple of the stride on, as was checked.
        unsafe {
            (kernels.pairquet_patches)(
                code,
                first,
                sample_stride as i64,
                out,
                batch as i64,
                rows as i64,
                columns as i64,
                side as i64,
                stream,
            )
        }
    })?;
    Ok(patches.into_tensor())
}

/// The class token before `tokens` `[B, K, D]`, and positions `[1 or B, 1 + K, D]` added; `class` and positions in f32.
pub(crate) fn class_in_front(
    tokens: &Tensor,
    class: &Tensor,
    positions: &Tensor,
) -> Result<Tensor> {
    let (batch, kept, width) = tokens.dims3()?;
    let stride = match positions.dims() {
        [1, ..] => 0,
        _ => (1 + kept) * width,
    };
    let mut y = Output::new((batch, 1 + kept, width), tokens.dtype(), tokens.device())?;
    let (code, out) = (type_code(tokens)?, y.address()?);
    let (from, first, places) = (address(tokens)?, address(class)?, address(positions)?);
    Launch::on(tokens.device())?.run("class token", |kernels, stream| {
        // SAFETY: shapes were checked by the caller; a table for all samples is read with stride 0.
        unsafe {
            (kernels.pairquet_class_in_front)(
                code,
                from,
                first,
                places,
                stride as i64,
                out,
                batch as i64,
                kept as i64,
                width as i64,
                stream,
            )
        }
    })?;
    let class_shape = class.shape().clone();
    node(
        "class-in-front",
        &[tokens, class],
        y,
        Keeps::Nothing,
        move |_, dy| {
            let dclass = sum_first_rows(dy)?.reshape(&class_shape)?;
            Ok(vec![
                Some(dy.narrow(1, 1, kept)?.contiguous()?),
                Some(dclass),
            ])
        },
    )
}

/// Over the samples of `[B, 1 + K, D]`, its row 0, in f32.
fn sum_first_rows(dy: &Tensor) -> Result<Tensor> {
    let (batch, rows, width) = dy.dims3()?;
    let mut sum = Output::new(width, DType::F32, dy.device())?;
    let (code, from, out) = (type_code(dy)?, address(dy)?, sum.address()?);
    Launch::on(dy.device())?.run("sum of rows", |kernels, stream| {
        // SAFETY: one row of `width` elements in each sample.
        unsafe {
            (kernels.pairquet_sum_rows)(
                code,
                from,
                batch as i64,
                (rows * width) as i64,
                width as i64,
                out,
                stream,
            )
        }
    })?;
    Ok(sum.into_tensor())
}

/// Kept tokens `[B, 1 + K, D]` back in their places (`places` `[B, N]`: K or more for a removed one), the mask token in
/// all others, positions `[1, 1 + N, D]` added; mask token and positions in f32.
pub(crate) fn restore(
    tokens: &Tensor,
    mask_token: &Tensor,
    positions: &Tensor,
    places: &[u32],
) -> Result<Tensor> {
    let (batch, with_class, width) = tokens.dims3()?;
    let (kept, n) = (with_class - 1, places.len() / batch.max(1));
    let places = Tensor::from_slice(places, (batch, n), tokens.device())?;
    let mut y = Output::new((batch, 1 + n, width), tokens.dtype(), tokens.device())?;
    let (code, out) = (type_code(tokens)?, y.address()?);
    let (from, mask, table, ids) = (
        address(tokens)?,
        address(mask_token)?,
        address(positions)?,
        address(&places)?,
    );
    Launch::on(tokens.device())?.run("restored tokens", |kernels, stream| {
        // SAFETY: shapes were checked by the caller, and a place beyond the kept tokens is not read.
        unsafe {
            (kernels.pairquet_restore_forward)(
                code,
                from,
                mask,
                table,
                ids,
                out,
                batch as i64,
                n as i64,
                kept as i64,
                width as i64,
                stream,
            )
        }
    })?;
    let mask_shape = mask_token.shape().clone();
    let like = tokens.detach();
    node(
        "restore",
        &[tokens, mask_token],
        y,
        Keeps::Nothing,
        move |_, dy| {
            let launch = Launch::on(dy.device())?;
            let new = |shape: &[usize]| Output::new(shape, DType::F32, dy.device());
            let mut partial = new(&[launch.chunks(batch * (1 + n)), width])?;
            let (mut dtokens, mut dmask) = (Output::like(&like)?, new(&[width])?);
            let (code, dy, ids) = (type_code(dy)?, address(dy)?, address(&places)?);
            let (dtokens_out, partial_out, dmask_out) =
                (dtokens.address()?, partial.address()?, dmask.address()?);
            launch.run("restored tokens' backward", |kernels, stream| {
                // SAFETY: as forward; the scratch has the kernel's number of chunks.
                unsafe {
                    (kernels.pairquet_restore_backward)(
                        code,
                        dy,
                        ids,
                        dtokens_out,
                        partial_out,
                        dmask_out,
                        batch as i64,
                        n as i64,
                        kept as i64,
                        width as i64,
                        stream,
                    )
                }
            })?;
            let dmask = dmask.into_tensor().reshape(&mask_shape)?;
            Ok(vec![Some(dtokens.into_tensor()), Some(dmask)])
        },
    )
}

/// Some rows of `x` `[.., D]`, which differ from each other: `[rows, D]`.
pub(crate) fn select_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or(1);
    let n_rows = rows.len();
    let rows = Tensor::from_slice(rows, n_rows, x.device())?;
    let mut y = Output::new((n_rows, width), x.dtype(), x.device())?;
    copy_rows(x, address(&rows)?, none(), y.address()?, (n_rows, width))?;
    let shape = x.shape().clone();
    node("select-rows", &[x], y, Keeps::Nothing, move |_, dy| {
        let dx = Tensor::zeros(&shape, dy.dtype(), dy.device())?;
        copy_rows(
            dy,
            none(),
            address(&rows)?,
            address_mut(&dx)?,
            (n_rows, width),
        )?;
        Ok(vec![Some(dx)])
    })
}

fn copy_rows(
    x: &Tensor,
    from_rows: *const u32,
    to_rows: *const u32,
    y: *mut std::ffi::c_void,
    (rows, width): (usize, usize),
) -> Result<()> {
    let (code, x_in) = (type_code(x)?, address(x)?);
    Launch::on(x.device())?.run("rows", |kernels, stream| {
        // SAFETY: the rows were checked by the caller to be inside of both.
        unsafe {
            (kernels.pairquet_copy_rows)(
                code,
                x_in,
                from_rows,
                to_rows,
                y,
                rows as i64,
                width as i64,
                stream,
            )
        }
    })
}
