//! Two independent crops of one picture, each flipped on its own (Multi-View MAE): a [`Single`] drawn twice.
//!
//! Source: Ji, Han and Rhee 2023 say only that two views are made from one image; MAE's crop (area 0.2-1) is taken.

use crate::views::SampleKey;
use crate::views::single::{Single, ViewDraw};

/// Draws both views.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MultiView {
    /// How each of them is drawn.
    pub each: Single,
}

impl MultiView {
    /// The draws of both views of a picture of `width` by `height` px.
    pub fn draw(&self, key: SampleKey, width: u32, height: u32) -> [ViewDraw; 2] {
        self.each.draw(key, width, height)
    }
}
