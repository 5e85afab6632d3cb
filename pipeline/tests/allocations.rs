//! Memory that a loader in its steady state takes for each pair, thread by thread.
//!
//! Counted are the allocations and reallocations that Rust code makes in the whole process. libjpeg-turbo's own memory is
//! not among them: for each picture it takes some twenty small blocks from the C library, and gives them back.

// Counting is what this test is about; and helpers of tests are outside of test functions to clippy.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use pipeline::config::{DataConfig, ViewsKind};
use pipeline::convert::{self, ImagenetOptions, KineticsOptions};
use pipeline::loader::{Loader, LoaderState, Rank};
use pipeline::stop::Stop;
use pipeline::synth::{self, SynthOptions};

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of threads that compute, and of all others.
static COMPUTING: AtomicU64 = AtomicU64::new(0);
static OTHERS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether this thread is one of the loader's computing threads; unknown before its first allocation.
    static IS_COMPUTING: Cell<Option<bool>> = const { Cell::new(None) };
}

fn count() {
    // A thread that ends has no such memory any more, and computes nothing.
    let is_computing = IS_COMPUTING.try_with(|is_computing| {
        let known = is_computing.get().unwrap_or_else(|| {
            let mut name = [0u8; 16];
            // SAFETY: the name is written into the 16 bytes that are its greatest length.
            unsafe {
                libc::pthread_getname_np(
                    libc::pthread_self(),
                    name.as_mut_ptr().cast(),
                    name.len(),
                );
            }
            name.starts_with(b"views-")
        });
        // A new thread allocates before it has its name.
        if known {
            is_computing.set(Some(true));
        }
        known
    });
    let counter = match is_computing {
        Ok(true) => &COMPUTING,
        _ => &OTHERS,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the promises of the caller are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the promises of the caller are passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the promises of the caller are passed on.
        unsafe { System.realloc(memory, layout, new_size) }
    }
}

/// Allocations that come by the batch: its places, its rows.
const BY_THE_BATCH: f64 = 4.0;

/// Allocations for each pair: of the computing threads, and of all others.
fn per_pair(config: &DataConfig) -> [f64; 2] {
    let mut loader = Loader::new(config, 1, Rank::SINGLE, LoaderState::default()).unwrap();
    let mut take = |n_batches: usize| {
        for _ in 0..n_batches {
            let batch = loader.next_batch().unwrap();
            loader.recycle(batch);
        }
    };
    // Until every thread's memory has met the largest crop, and each of them was seen at work.
    take(60);
    let read = || [&COMPUTING, &OTHERS].map(|counter| counter.load(Ordering::Relaxed));
    let before = read();
    assert!(before[0] > 0, "computing threads are told from others");
    take(40);
    let after = read();
    let n_pairs = (40 * config.batch_size) as f64;
    [0, 1].map(|which| (after[which] - before[which]) as f64 / n_pairs)
}

#[test]
fn a_pair_costs_next_to_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (images, clips) = (dir.path().join("images"), dir.path().join("clips"));
    let options = SynthOptions {
        n_classes: 2,
        images_per_class: 20,
        clips_per_class: 2,
        frames: 20,
        size: 64,
        ..SynthOptions::default()
    };
    synth::write_images(&images, &options).unwrap();
    synth::write_clips(&clips, &options).unwrap();
    let [image_set, clip_set] =
        ["image-set", "clip-set"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    convert::imagenet(
        &images,
        &image_set,
        &ImagenetOptions::default(),
        &(),
        &Stop::new(),
    )
    .unwrap();
    convert::kinetics(
        &clips,
        &clip_set,
        &KineticsOptions::default(),
        &(),
        &Stop::new(),
    )
    .unwrap();
    let base = DataConfig {
        batch_size: 16,
        size: 32,
        threads: 2,
        repeated_sampling: 8,
        ..DataConfig::default()
    };
    let cases = [
        (ViewsKind::CropPair, image_set.clone()),
        (ViewsKind::MultiView, image_set),
        (ViewsKind::FramePair, clip_set),
    ];
    for (views, path) in cases {
        let config = DataConfig {
            path,
            views,
            ..base.clone()
        };
        let [computing, others] = per_pair(&config);
        println!("{views:?}: {computing:.2} where views are made, {others:.2} elsewhere");
        // What there is comes by the batch, not by the pair.
        assert!(computing < 0.1, "{views:?}: {computing} allocations a pair");
        let all = computing + others;
        assert!(
            all <= 2.0 + BY_THE_BATCH,
            "{views:?}: {all} allocations a pair"
        );
    }
}
