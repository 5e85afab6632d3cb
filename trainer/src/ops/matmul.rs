//! Products of f32 matrices that are views into slices.
//!
//! The result is made of tiles of 12 x 32 that stay in registers while the inner dimension passes by: each element is one
//! chain of fused multiply-adds over at most [`INNER_BLOCK`] inner steps, and those blocks are added up in their order. So
//! an element has the same bits for any number of threads, any size of the matrices around it, and any processor with
//! fused multiply-adds.
//!
//! With [`Precision::Bf16`] both factors are rounded to bf16 and products summed in f32: by the processor's instruction for
//! pairs where it has one (AVX512-BF16, twice the rate), else as f32 (the same but for the order of sums within pairs).
//!
//! Letters: M rows, K inner dimension, N columns of a product.
#![allow(unsafe_code)] // Kernels compiled for processor features over raw pointers; `run` checks all sizes before.

use std::cell::{Cell, RefCell};
#[cfg(target_arch = "x86_64")]
use std::io::Write;
#[cfg(target_arch = "x86_64")]
use std::mem::MaybeUninit;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Rows of a tile.
const TILE_ROWS: usize = 12;

/// Columns of a tile, and of a panel of the right factor.
const TILE_COLUMNS: usize = 32;

/// Inner steps between two visits to the result: a panel of as many and its rows' share of the left factor fit in the
/// first- and second-level caches.
const INNER_BLOCK: usize = 512;

/// Rows of one task: their part of the left factor stays in a second-level cache.
const TASK_ROWS: usize = 7 * TILE_ROWS;

/// Products below this number of multiply-adds are not worth a second thread.
const WORTH_THREADS: usize = 1 << 18;

/// What the factors of a product are rounded to; sums are f32 always.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Nothing is rounded.
    #[default]
    F32,
    /// What the tensor cores of a GPU make of f32: 11 bits of precision and the range of f32. A CPU rounds nothing.
    Tf32,
    /// 8 bits of precision and the range of f32, so that neither loss nor gradients have to be scaled.
    Bf16,
}

thread_local! {
    static PRECISION: Cell<Precision> = const { Cell::new(Precision::F32) };
    /// The packed left and right factors of the product at hand.
    static LEFT: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    static RIGHT: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// The precision that operations made on this thread take on.
pub fn precision() -> Precision {
    PRECISION.get()
}

/// Runs `f` with another [`precision`].
pub fn with_precision<T>(precision: Precision, f: impl FnOnce() -> T) -> T {
    let before = PRECISION.replace(precision);
    let result = f();
    PRECISION.set(before);
    result
}

/// Threads of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The caller's alone.
    One,
    /// The whole rayon pool.
    All,
}

/// What the product is added to.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    Zero,
    /// A row that is the same for all.
    Bias(&'a [f32]),
}

/// How a product is made.
#[derive(Clone, Copy)]
pub(crate) struct Manner {
    /// What it is multiplied with.
    pub factor: f32,
    pub threads: Threads,
    pub precision: Precision,
    /// Whether the inner dimension is one chain from first to last.
    pub one_chain: bool,
}

impl Manner {
    /// On all threads, the product itself.
    pub fn of(precision: Precision) -> Manner {
        Manner {
            factor: 1.0,
            threads: Threads::All,
            precision,
            one_chain: false,
        }
    }
}

/// A matrix inside a slice: element (row, column) is at `row * row_stride + column * column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix whose rows are `row_stride` apart.
    pub fn new(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> View<'a> {
        View {
            data,
            rows,
            columns,
            row_stride,
            column_stride: 1,
        }
    }

    /// The transpose.
    pub fn t(self) -> View<'a> {
        View {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn is_inside(&self) -> bool {
        self.rows == 0
            || self.columns == 0
            || (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride
                < self.data.len()
    }
}

/// A row-major matrix to write: rows `row_stride` apart in `data`.
pub(crate) struct ViewMut<'a> {
    /// From the first element on.
    pub data: &'a mut [f32],
    /// At least the number of columns.
    pub row_stride: usize,
}

/// `out = start + factor * a b`.
pub(crate) fn multiply(a: View, b: View, out: ViewMut, start: Start, manner: Manner) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert_eq!(k, b.rows, "inner dimensions of a product");
    let written = View::new(out.data, m, n, out.row_stride);
    assert!(
        a.is_inside() && b.is_inside() && written.is_inside(),
        "a matrix reaches out of its slice"
    );
    assert!(out.row_stride >= n, "rows of the result overlap");
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), n, "length of a bias");
    }
    if m == 0 || n == 0 {
        return;
    }
    match (manner.precision, Level::of_this_processor()) {
        (Precision::F32 | Precision::Tf32, level) => run::<f32>(a, b, out, start, manner, level),
        (Precision::Bf16, Level::Avx512 { bf16: true }) => {
            run::<Pair>(a, b, out, start, manner, Level::Avx512 { bf16: true });
        }
        (Precision::Bf16, level) => run::<Rounded>(a, b, out, start, manner, level),
    }
}

/// Which kernels the processor runs.
#[derive(Clone, Copy, PartialEq)]
enum Level {
    Avx512 { bf16: bool },
    Avx2,
    Plain,
}

/// Bounds the kernels from above, to test those of other processors: `avx2`, `avx512` (without bf16) or `plain`. A bound
/// that this processor cannot keep is warned of once.
const KERNELS: &str = "PAIRQUET_KERNELS";

impl Level {
    #[cfg(target_arch = "x86_64")]
    fn of_this_processor() -> Level {
        static LEVEL: std::sync::OnceLock<Level> = std::sync::OnceLock::new();
        *LEVEL.get_or_init(|| {
            let wanted = std::env::var(KERNELS).unwrap_or_default();
            let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let has_avx512 = has_avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bw");
            if let Some(problem) = problem_with(&wanted, has_avx2, has_avx512) {
                let _ = writeln!(std::io::stderr(), "warning: {problem}");
            }
            let bf16 = is_x86_feature_detected!("avx512bf16") && wanted != "avx512";
            match wanted.as_str() {
                "plain" => Level::Plain,
                "avx2" if has_avx2 => Level::Avx2,
                _ if has_avx512 => Level::Avx512 { bf16 },
                _ if has_avx2 => Level::Avx2,
                _ => Level::Plain,
            }
        })
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn of_this_processor() -> Level {
        Level::Plain
    }
}

/// What is wrong with a bound on the kernels: unknown, or more than the processor has. Nothing is no bound.
#[cfg(target_arch = "x86_64")]
fn problem_with(wanted: &str, has_avx2: bool, has_avx512: bool) -> Option<String> {
    let levels = [("plain", true), ("avx2", has_avx2), ("avx512", has_avx512)];
    let there = levels.iter().filter(|(_, has)| *has);
    let there: Vec<&str> = there.map(|(name, _)| *name).collect();
    (!wanted.is_empty() && !there.contains(&wanted)).then(|| {
        format!(
            "{KERNELS} is {wanted:?}, expected one that this processor has: {}; taking the best of them",
            there.join(", ")
        )
    })
}

/// What packed factors hold: one value of the inner dimension, or several that a processor multiplies at once. All have
/// the size of an f32.
trait Element: Copy + Default + Send + Sync + 'static {
    /// Values of the inner dimension in one element.
    const INNER: usize;
    /// Whether a row-major left factor holds such elements already.
    const IS_F32: bool;
    /// Of `INNER` values; the second is 0 where there is one alone or none any more.
    fn of(first: f32, second: f32) -> u32;
}

impl Element for f32 {
    const INNER: usize = 1;
    const IS_F32: bool = true;

    #[inline(always)]
    fn of(first: f32, _: f32) -> u32 {
        first.to_bits()
    }
}

/// An f32 with the precision of a bf16.
#[derive(Clone, Copy, Default)]
struct Rounded;

impl Element for Rounded {
    const INNER: usize = 1;
    const IS_F32: bool = false;

    #[inline(always)]
    fn of(first: f32, _: f32) -> u32 {
        bf16_bits(first) << 16
    }
}

/// Two bf16, the first in the low half.
#[derive(Clone, Copy, Default)]
struct Pair;

impl Element for Pair {
    const INNER: usize = 2;
    const IS_F32: bool = false;

    #[inline(always)]
    fn of(first: f32, second: f32) -> u32 {
        bf16_bits(first) | bf16_bits(second) << 16
    }
}

/// Rounded to nearest, ties to even; NaN stays NaN.
#[inline(always)]
fn bf16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
    if value.is_nan() {
        (bits >> 16) | 0x40
    } else {
        rounded
    }
}

/// One stretch of the inner dimension.
#[derive(Clone, Copy)]
struct Stretch {
    first: usize,
    len: usize,
}

impl Stretch {
    fn steps<E: Element>(self) -> usize {
        self.len.div_ceil(E::INNER)
    }
}

/// Stretches of about equal length, each but the last of a whole number of elements.
fn stretches<E: Element>(k: usize, one_chain: bool) -> Vec<Stretch> {
    let n = if one_chain {
        1
    } else {
        k.div_ceil(INNER_BLOCK).max(1)
    };
    let len = k.div_ceil(n).next_multiple_of(E::INNER);
    let starts = (0..n).map(|i| (i * len).min(k));
    let stretch = |first: usize| Stretch {
        first,
        len: len.min(k - first),
    };
    let found: Vec<Stretch> = starts
        .map(stretch)
        .filter(|stretch| stretch.len > 0)
        .collect();
    match found.is_empty() {
        true => vec![stretch(0)], // an empty sum is still written
        false => found,
    }
}

/// A checked product on its way through the tasks.
struct Job<'a> {
    a: View<'a>,
    n: usize,
    start: Start<'a>,
    factor: f32,
    row_stride: usize,
    stretches: &'a [Stretch],
    /// Of each stretch, of each panel of columns: `[steps, 32]`.
    right: &'a [u32],
    level: Level,
}

fn run<E: Element>(a: View, b: View, out: ViewMut, start: Start, manner: Manner, level: Level) {
    let (m, n) = (a.rows, b.columns);
    let stretches = stretches::<E>(a.columns, manner.one_chain);
    let is_alone = manner.threads == Threads::One || m * n * a.columns < WORTH_THREADS;
    let n_panels = n.div_ceil(TILE_COLUMNS);
    let steps: usize = stretches.iter().map(|stretch| stretch.steps::<E>()).sum();
    let mut right = RIGHT.take();
    right.resize(right.len().max(steps * n_panels * TILE_COLUMNS), 0);
    let packed = &mut right[..steps * n_panels * TILE_COLUMNS];

    // Panels of all stretches, one after the other.
    let mut panels = Vec::with_capacity(stretches.len() * n_panels);
    let mut rest = packed;
    for &stretch in &stretches {
        for panel in 0..n_panels {
            let (one, others) = rest.split_at_mut(stretch.steps::<E>() * TILE_COLUMNS);
            panels.push((stretch, panel * TILE_COLUMNS, one));
            rest = others;
        }
    }
    let pack = |(stretch, column, panel): (Stretch, usize, &mut [u32])| {
        pack_right::<E>(b, stretch, column, panel, level);
    };
    match is_alone {
        true => panels.into_iter().for_each(pack),
        false => panels.into_par_iter().for_each(pack),
    }

    let job = Job {
        a,
        n,
        start,
        factor: manner.factor,
        row_stride: out.row_stride,
        stretches: &stretches,
        right: &right[..steps * n_panels * TILE_COLUMNS],
        level,
    };
    let data = &mut out.data[..(m - 1) * out.row_stride + n];
    let task = |(i, rows): (usize, &mut [f32])| job.rows::<E>(i * TASK_ROWS, rows);
    match is_alone {
        true => data
            .chunks_mut(TASK_ROWS * out.row_stride)
            .enumerate()
            .for_each(task),
        false => data
            .par_chunks_mut(TASK_ROWS * out.row_stride)
            .enumerate()
            .for_each(task),
    }
    RIGHT.set(right);
}

/// Packs 32 columns of a stretch of the right factor, `[steps, 32]`; missing columns are 0.
fn pack_right<E: Element>(
    b: View,
    stretch: Stretch,
    column: usize,
    panel: &mut [u32],
    level: Level,
) {
    let source = Source {
        data: &b.data[column * b.column_stride + stretch.first * b.row_stride..],
        len: stretch.len,
        lanes: TILE_COLUMNS.min(b.columns - column),
        inner_stride: b.row_stride,
        lane_stride: b.column_stride,
    };
    if source.lanes < TILE_COLUMNS {
        panel.fill(0);
    }
    source.pack_for::<E, TILE_COLUMNS>(panel, level);
}

/// A stretch of the inner dimension of some rows of the left factor, or columns of the right one: its lanes.
#[derive(Clone, Copy)]
struct Source<'a> {
    data: &'a [f32],
    len: usize,
    lanes: usize,
    inner_stride: usize,
    lane_stride: usize,
}

impl Source<'_> {
    /// [`Source::pack`] compiled for the processor.
    fn pack_for<E: Element, const LANES: usize>(self, out: &mut [u32], level: Level) {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")]
            fn avx512<E: Element, const LANES: usize>(source: Source, out: &mut [u32]) {
                source.pack::<E, LANES>(out);
            }
            #[target_feature(enable = "avx2,fma")]
            fn avx2<E: Element, const LANES: usize>(source: Source, out: &mut [u32]) {
                source.pack::<E, LANES>(out);
            }
            match level {
                // SAFETY: this level is given only to processors with these features.
                Level::Avx512 { .. } => return unsafe { avx512::<E, LANES>(self, out) },
                // SAFETY: as above.
                Level::Avx2 => return unsafe { avx2::<E, LANES>(self, out) },
                Level::Plain => {}
            }
        }
        let _ = level;
        self.pack::<E, LANES>(out);
    }

    /// `[steps, LANES]`, an element holding values that follow each other in the inner dimension. With no lanes, each lane
    /// is left as it lies, `[lanes, steps]`.
    #[inline(always)]
    fn pack<E: Element, const LANES: usize>(self, out: &mut [u32]) {
        let steps = self.len.div_ceil(E::INNER);
        if LANES == 0 {
            for (lane, out) in out
                .chunks_exact_mut(steps.max(1))
                .take(self.lanes)
                .enumerate()
            {
                let values = &self.data[lane * self.lane_stride..][..self.len];
                if E::INNER == 1 {
                    for (out, &value) in out.iter_mut().zip(values) {
                        *out = E::of(value, 0.0);
                    }
                    continue;
                }
                let (pairs, rest) = values.as_chunks::<2>();
                for (out, &[first, second]) in out.iter_mut().zip(pairs) {
                    *out = E::of(first, second);
                }
                if let (Some(out), Some(&first)) = (out.last_mut(), rest.first()) {
                    *out = E::of(first, 0.0);
                }
            }
        } else if self.lane_stride == 1 {
            for (step, out) in out.chunks_exact_mut(LANES).enumerate() {
                let i = step * E::INNER;
                let first = &self.data[i * self.inner_stride..];
                let has_second = E::INNER == 2 && i + 1 < self.len;
                let second = &self.data[(i + usize::from(has_second)) * self.inner_stride..];
                let of =
                    |first: f32, second: f32| E::of(first, if has_second { second } else { 0.0 });
                // Of known length where all lanes are there, so that a copy is no call.
                if self.lanes == LANES
                    && let (Some(first), Some(second), Some(out)) = (
                        first.first_chunk::<LANES>(),
                        second.first_chunk::<LANES>(),
                        out.first_chunk_mut::<LANES>(),
                    )
                {
                    for (out, (&first, &second)) in out.iter_mut().zip(first.iter().zip(second)) {
                        *out = of(first, second);
                    }
                    continue;
                }
                let values = first[..self.lanes].iter().zip(&second[..self.lanes]);
                for (out, (&first, &second)) in out.iter_mut().zip(values) {
                    *out = of(first, second);
                }
            }
        } else {
            // Blocks of 8 x 8 are turned over in registers; then what is left at both ends, one by one.
            const SIDE: usize = 8;
            let (whole_steps, whole_lanes) = match self.inner_stride {
                1 => (self.len / E::INNER / SIDE * SIDE, self.lanes / SIDE * SIDE),
                _ => (0, 0),
            };
            for step in (0..whole_steps).step_by(SIDE) {
                for lane in (0..whole_lanes).step_by(SIDE) {
                    let mut block = [[0u32; SIDE]; SIDE];
                    for i in 0..SIDE {
                        let start = (lane + i) * self.lane_stride + step * E::INNER;
                        let values =
                            self.data[start..start + SIDE * E::INNER].chunks_exact(E::INNER);
                        for (row, values) in block.iter_mut().zip(values) {
                            row[i] = E::of(values[0], values[E::INNER - 1]);
                        }
                    }
                    for (i, row) in block.iter().enumerate() {
                        out[(step + i) * LANES + lane..][..SIDE].copy_from_slice(row);
                    }
                }
            }
            for lane in 0..self.lanes {
                let value = |i: usize| self.data[lane * self.lane_stride + i * self.inner_stride];
                let first = if lane < whole_lanes { whole_steps } else { 0 };
                for step in first..steps {
                    let i = step * E::INNER;
                    let second = match E::INNER == 1 || i + 1 == self.len {
                        true => 0.0,
                        false => value(i + 1),
                    };
                    out[step * LANES + lane] = E::of(value(i), second);
                }
            }
        }
    }
}

/// Rows of the left factor over a stretch, in groups of 12: in a group, row r of step s is at
/// `r * row_stride + s * step_stride`.
#[derive(Clone, Copy)]
struct Left<'a> {
    data: &'a [u32],
    group_stride: usize,
    row_stride: usize,
    step_stride: usize,
}

impl Job<'_> {
    /// Rows from `first` on of the product into `out`.
    fn rows<E: Element>(&self, first: usize, out: &mut [f32]) {
        let n_rows = TASK_ROWS.min(self.a.rows - first);
        let mut scratch = LEFT.take();
        let mut right = self.right;
        for (i, &stretch) in self.stretches.iter().enumerate() {
            let steps = stretch.steps::<E>();
            let left = self.left::<E>(first, n_rows, stretch, &mut scratch);
            for column in (0..self.n).step_by(TILE_COLUMNS) {
                let (panel, others) = right.split_at(steps * TILE_COLUMNS);
                right = others;
                for row in (0..n_rows).step_by(TILE_ROWS) {
                    let tile = Tile {
                        left: &left.data[row / TILE_ROWS * left.group_stride..],
                        row_stride: left.row_stride,
                        step_stride: left.step_stride,
                        steps,
                        panel,
                    };
                    let target = Target {
                        out: &mut out[row * self.row_stride + column..],
                        row_stride: self.row_stride,
                        height: TILE_ROWS.min(n_rows - row),
                        width: TILE_COLUMNS.min(self.n - column),
                        factor: self.factor,
                        start: match (i, self.start) {
                            (0, Start::Zero) => None,
                            (0, Start::Bias(bias)) => Some(&bias[column..]),
                            (_, _) => None,
                        },
                        adds: i > 0,
                    };
                    tile.multiply::<E>(self.level, target);
                }
            }
        }
        LEFT.set(scratch);
    }

    /// The left factor as it is where the kernels can read it so, else packed.
    fn left<'b, E: Element>(
        &'b self,
        first: usize,
        n_rows: usize,
        stretch: Stretch,
        scratch: &'b mut Vec<u32>,
    ) -> Left<'b> {
        let View {
            data,
            row_stride,
            column_stride,
            ..
        } = self.a;
        let data = &data[first * row_stride + stretch.first * column_stride..];
        let steps = stretch.steps::<E>();
        if E::IS_F32 && column_stride == 1 && n_rows.is_multiple_of(TILE_ROWS) {
            return Left {
                data: as_bits(data),
                group_stride: TILE_ROWS * row_stride,
                row_stride,
                step_stride: 1,
            };
        }
        let size = n_rows.next_multiple_of(TILE_ROWS) * steps;
        scratch.resize(scratch.len().max(size), 0);
        let packed = &mut scratch[..size];
        packed[n_rows / TILE_ROWS * TILE_ROWS * steps..].fill(0); // rows that are missing at the end
        let mut source = Source {
            data,
            len: stretch.len,
            lanes: n_rows,
            inner_stride: column_stride,
            lane_stride: row_stride,
        };
        if column_stride == 1 {
            source.pack_for::<E, 0>(packed, self.level);
            return Left {
                data: packed,
                group_stride: TILE_ROWS * steps,
                row_stride: steps,
                step_stride: 1,
            };
        }
        let groups = packed.chunks_exact_mut((TILE_ROWS * steps).max(1));
        for (group, out) in groups.enumerate() {
            let row = group * TILE_ROWS;
            source.data = &data[row * row_stride..];
            source.lanes = TILE_ROWS.min(n_rows - row);
            source.pack_for::<E, TILE_ROWS>(out, self.level);
        }
        Left {
            data: packed,
            group_stride: TILE_ROWS * steps,
            row_stride: 1,
            step_stride: TILE_ROWS,
        }
    }
}

/// Where the sums of a tile go.
struct Target<'a> {
    out: &'a mut [f32],
    row_stride: usize,
    height: usize,
    width: usize,
    factor: f32,
    /// A bias to begin with.
    start: Option<&'a [f32]>,
    /// Whether the sums are added to what is there.
    adds: bool,
}

impl Target<'_> {
    #[inline(always)]
    fn store(self, sums: &Sums) {
        for (row, sums) in sums.iter().enumerate().take(self.height) {
            let out = &mut self.out[row * self.row_stride..][..self.width];
            if self.adds {
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out += self.factor * sum;
                }
            } else if let Some(bias) = self.start {
                for (out, (sum, bias)) in out.iter_mut().zip(sums.iter().zip(bias)) {
                    *out = self.factor * sum + bias;
                }
            } else {
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = self.factor * sum;
                }
            }
        }
    }
}

/// The same values as their bits.
fn as_bits(values: &[f32]) -> &[u32] {
    // SAFETY: both types have the same size and alignment, and every pattern of bits is a value of either.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// 12 rows of the left factor and 32 columns of the right one over a stretch.
struct Tile<'a> {
    left: &'a [u32],
    row_stride: usize,
    step_stride: usize,
    steps: usize,
    /// `[steps, 32]`.
    panel: &'a [u32],
}

type Sums = [[f32; TILE_COLUMNS]; TILE_ROWS];

impl Tile<'_> {
    fn multiply<E: Element>(&self, level: Level, target: Target) {
        if self.steps == 0 {
            return target.store(&[[0.0; TILE_COLUMNS]; TILE_ROWS]);
        }
        let last = (TILE_ROWS - 1) * self.row_stride + (self.steps - 1) * self.step_stride;
        assert!(
            last < self.left.len() && self.panel.len() == self.steps * TILE_COLUMNS,
            "a tile reaches out of its factors"
        );
        #[cfg(target_arch = "x86_64")]
        match level {
            // SAFETY: this level is given only to processors with these features, pairs only to those with bf16; all
            // reads are below the lengths that were just checked.
            Level::Avx512 { .. } if E::INNER == 2 => return unsafe { self.pairs_avx512(target) },
            // SAFETY: as above.
            Level::Avx512 { .. } => return unsafe { self.avx512(target) },
            // SAFETY: as above.
            Level::Avx2 => return unsafe { self.avx2(target) },
            Level::Plain => {}
        }
        let _ = level;
        // A processor of this family without AVX2 has no fused multiply-add, which would be a function call.
        match cfg!(target_arch = "x86_64") {
            true => self.parts::<4, 8>(target, |a, b, sum| sum + a * b),
            false => self.parts::<4, 8>(target, f32::mul_add),
        }
    }

    /// The tile in parts of `R` rows and `C` columns, whose sums the registers hold.
    #[inline(always)]
    fn parts<const R: usize, const C: usize>(
        &self,
        target: Target,
        add: impl Fn(f32, f32, f32) -> f32,
    ) {
        let mut sums = [[0f32; TILE_COLUMNS]; TILE_ROWS];
        for row in (0..TILE_ROWS).step_by(R) {
            for column in (0..TILE_COLUMNS).step_by(C) {
                let mut part = [[0f32; C]; R];
                for (step, right) in self.panel.chunks_exact(TILE_COLUMNS).enumerate() {
                    let right = &right[column..column + C];
                    for (r, part) in part.iter_mut().enumerate() {
                        let at = (row + r) * self.row_stride + step * self.step_stride;
                        let left = f32::from_bits(self.left[at]);
                        for (sum, &right) in part.iter_mut().zip(right) {
                            *sum = add(left, f32::from_bits(right), *sum);
                        }
                    }
                }
                for (sums, part) in sums[row..row + R].iter_mut().zip(&part) {
                    sums[column..column + C].copy_from_slice(part);
                }
            }
        }
        target.store(&sums);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2(&self, target: Target) {
        self.parts::<6, 16>(target, f32::mul_add);
    }

    /// # Safety
    /// The factors must be as long as [`Tile::multiply`] checks.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512(&self, target: Target) {
        use std::arch::x86_64::{
            _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
        };
        let (left, panel): (*const f32, *const f32) =
            (self.left.as_ptr().cast(), self.panel.as_ptr().cast());
        let mut lanes = [[_mm512_setzero_ps(); 2]; TILE_ROWS];
        // SAFETY: rows below 12 and steps below `steps` lie inside, as the caller checked; so do all columns of a panel.
        unsafe {
            let thirds: [*const f32; 4] =
                std::array::from_fn(|i| left.add(3 * i * self.row_stride));
            for step in 0..self.steps {
                let at = step * self.step_stride;
                let right = panel.add(step * TILE_COLUMNS);
                let right = [_mm512_loadu_ps(right), _mm512_loadu_ps(right.add(16))];
                for (row, lanes) in lanes.iter_mut().enumerate() {
                    let left = _mm512_set1_ps(*thirds[row / 3].add(at + row % 3 * self.row_stride));
                    lanes[0] = _mm512_fmadd_ps(left, right[0], lanes[0]);
                    lanes[1] = _mm512_fmadd_ps(left, right[1], lanes[1]);
                }
            }
            let mut sums = MaybeUninit::<Sums>::uninit();
            let rows: *mut [f32; TILE_COLUMNS] = sums.as_mut_ptr().cast();
            for (row, lanes) in lanes.iter().enumerate() {
                let sums: *mut f32 = rows.add(row).cast();
                _mm512_storeu_ps(sums, lanes[0]);
                _mm512_storeu_ps(sums.add(16), lanes[1]);
            }
            // SAFETY: all 12 rows were just written.
            target.store(sums.assume_init_ref());
        }
    }

    /// # Safety
    /// As [`Tile::avx512`].
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn pairs_avx512(&self, target: Target) {
        use std::arch::x86_64::{
            __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32,
            _mm512_setzero_ps, _mm512_storeu_ps,
        };
        /// The same bits as pairs of bf16.
        fn pairs(bits: __m512i) -> __m512bh {
            // SAFETY: both are 512 bits without meaning of their own.
            unsafe { std::mem::transmute(bits) }
        }
        let (left, panel): (*const i32, *const i32) =
            (self.left.as_ptr().cast(), self.panel.as_ptr().cast());
        let mut lanes = [[_mm512_setzero_ps(); 2]; TILE_ROWS];
        // SAFETY: rows below 12 and steps below `steps` lie inside, as the caller checked; so do all columns of a panel.
        unsafe {
            let thirds: [*const i32; 4] =
                std::array::from_fn(|i| left.add(3 * i * self.row_stride));
            for step in 0..self.steps {
                let at = step * self.step_stride;
                let right = panel.add(step * TILE_COLUMNS);
                let right = [
                    pairs(_mm512_loadu_si512(right.cast())),
                    pairs(_mm512_loadu_si512(right.add(16).cast())),
                ];
                for (row, lanes) in lanes.iter_mut().enumerate() {
                    let left = *thirds[row / 3].add(at + row % 3 * self.row_stride);
                    let left = pairs(_mm512_set1_epi32(left));
                    lanes[0] = _mm512_dpbf16_ps(lanes[0], left, right[0]);
                    lanes[1] = _mm512_dpbf16_ps(lanes[1], left, right[1]);
                }
            }
            let mut sums = MaybeUninit::<Sums>::uninit();
            let rows: *mut [f32; TILE_COLUMNS] = sums.as_mut_ptr().cast();
            for (row, lanes) in lanes.iter().enumerate() {
                let sums: *mut f32 = rows.add(row).cast();
                _mm512_storeu_ps(sums, lanes[0]);
                _mm512_storeu_ps(sums.add(16), lanes[1]);
            }
            // SAFETY: all 12 rows were just written.
            target.store(sums.assume_init_ref());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        let value =
            |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32;
        (0..n).map(|i| value(i) / (1 << 23) as f32 - 1.0).collect()
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_bound_that_does_not_hold_is_named() {
        for fits in ["", "plain", "avx2"] {
            assert_eq!(problem_with(fits, true, false), None);
        }
        for wrong in ["avx512", "AVX2", "sse"] {
            let problem = problem_with(wrong, true, false).unwrap();
            assert!(problem.contains(&format!("{wrong:?}")), "{problem}");
            assert!(problem.contains("has: plain, avx2;"), "{problem}");
        }
    }

    /// Every layout of both factors, sizes around those of tiles and stretches, against sums in f64.
    #[test]
    fn views_multiply_as_matrices() {
        let sizes = [
            (1, 1, 1),
            (12, 5, 32),
            (13, 512, 33),
            (90, 1030, 70),
            (3, 0, 2),
            (200, 37, 100),
        ];
        for (m, k, n) in sizes {
            for (a_transposed, b_transposed) in
                [(false, false), (true, false), (false, true), (true, true)]
            {
                let (a, b) = (values((m + 3) * (k + 3), 1), values((k + 3) * (n + 3), 2));
                let view = |data, rows, columns, transposed| match transposed {
                    true => View::new(data, columns, rows, rows + 3).t(),
                    false => View::new(data, rows, columns, columns + 3),
                };
                let (a, b) = (view(&a, m, k, a_transposed), view(&b, k, n, b_transposed));
                let at = |view: &View, row: usize, column: usize| {
                    f64::from(view.data[row * view.row_stride + column * view.column_stride])
                };
                let bias = values(n, 3);
                for precision in [Precision::F32, Precision::Bf16] {
                    let manner = Manner {
                        factor: 0.5,
                        ..Manner::of(precision)
                    };
                    let mut out = vec![7f32; m * (n + 2)];
                    let view = ViewMut {
                        data: &mut out,
                        row_stride: n + 2,
                    };
                    multiply(a, b, view, Start::Bias(&bias), manner);
                    let tolerance = if precision == Precision::F32 {
                        1e-6
                    } else {
                        6e-3
                    };
                    for (row, out) in out.chunks_exact(n + 2).enumerate() {
                        assert_eq!(out[n..], [7.0, 7.0], "between the rows");
                        for (column, &got) in out[..n].iter().enumerate() {
                            let terms = (0..k).map(|i| at(&a, row, i) * at(&b, i, column));
                            let (sum, size) = terms.fold((0.0, 1.0), |(sum, size), term| {
                                (sum + term, size + term.abs())
                            });
                            let gap = (f64::from(got) - f64::from(bias[column]) - 0.5 * sum).abs();
                            assert!(
                                gap <= tolerance * size,
                                "{m} x {k} x {n} {precision:?}: {gap:e} of {size}"
                            );
                        }
                    }
                }
            }
        }
    }

    /// The kernels of other processors give the same bits; pairs of bf16 alone are summed in another order.
    #[test]
    fn all_kernels_agree() {
        let (m, k, n) = (100, 700, 65);
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        let (a, b) = (View::new(&a, m, k, k), View::new(&b, k, n, n));
        let with = |level: Level| {
            let product = |rounded: bool| {
                let mut out = vec![0f32; m * n];
                let view = ViewMut {
                    data: &mut out,
                    row_stride: n,
                };
                match rounded {
                    true => {
                        run::<Rounded>(a, b, view, Start::Zero, Manner::of(Precision::Bf16), level)
                    }
                    false => run::<f32>(a, b, view, Start::Zero, Manner::of(Precision::F32), level),
                }
                out
            };
            (product(false), product(true))
        };
        let best = Level::of_this_processor();
        let (exact, rounded) = with(best);
        let gap = |a: &[f32], b: &[f32]| {
            a.iter()
                .zip(b)
                .map(|(a, b)| (a - b).abs())
                .fold(0f32, f32::max)
        };
        if best != Level::Plain {
            let avx2 = with(Level::Avx2);
            assert!(gap(&exact, &avx2.0) == 0.0 && gap(&rounded, &avx2.1) == 0.0);
        }
        let plain = with(Level::Plain);
        assert!(gap(&exact, &plain.0) < 1e-4 && gap(&rounded, &plain.1) < 1e-4);
        if best == (Level::Avx512 { bf16: true }) {
            let mut out = vec![0f32; m * n];
            let view = ViewMut {
                data: &mut out,
                row_stride: n,
            };
            run::<Pair>(a, b, view, Start::Zero, Manner::of(Precision::Bf16), best);
            assert!(gap(&rounded, &out) < 1e-4);
        }
        assert!(gap(&exact, &rounded) > 1e-3, "rounding shows");
    }

    #[test]
    fn bf16_is_rounded_to_nearest() {
        for (value, want) in [
            (1.0, 1.0),
            (1.003_906_3, 1.0),
            (1.003_907, 1.007_812_5),
            (-3.3, -3.296_875),
            (f32::INFINITY, f32::INFINITY),
        ] {
            assert_eq!(f32::from_bits(bf16_bits(value) << 16), want, "{value}");
        }
        assert!(f32::from_bits(bf16_bits(f32::NAN) << 16).is_nan());
    }

    #[test]
    #[should_panic(expected = "out of its slice")]
    fn reaching_out_is_caught() {
        let data = [0.0; 5];
        let mut out = [0.0; 4];
        let a = View::new(&data, 2, 3, 3);
        let b = View::new(&data, 3, 1, 1);
        let view = ViewMut {
            data: &mut out,
            row_stride: 1,
        };
        multiply(a, b, view, Start::Zero, Manner::of(Precision::F32));
    }
}
