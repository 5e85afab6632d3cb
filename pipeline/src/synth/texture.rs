//! Patterns of objects and grounds.

/// What an object is painted with. Coordinates are the object's own, so the pattern moves and turns with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Texture {
    Striped,
    Checked,
    Dotted,
    Clouded,
}

impl Texture {
    pub const ALL: [Texture; 4] = [
        Texture::Striped,
        Texture::Checked,
        Texture::Dotted,
        Texture::Clouded,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Texture::Striped => "striped",
            Texture::Checked => "checked",
            Texture::Dotted => "dotted",
            Texture::Clouded => "clouded",
        }
    }

    /// Share of the second colour at a point of the object, 0 to 1.
    pub fn at(self, u: f64, v: f64, seed: u32) -> f64 {
        let odd = |cells: f64| f64::from(u8::from(cells.floor().rem_euclid(2.0) == 1.0));
        match self {
            Texture::Striped => odd(v * 2.7 + 0.5),
            Texture::Checked => odd((u * 2.0).floor() + (v * 2.0).floor()),
            Texture::Dotted => {
                let (du, dv) = (
                    (u * 2.2).rem_euclid(1.0) - 0.5,
                    (v * 2.2).rem_euclid(1.0) - 0.5,
                );
                f64::from(u8::from(du * du + dv * dv < 0.09))
            }
            Texture::Clouded => clouds(u * 2.0, v * 2.0, seed),
        }
    }
}

/// Smooth noise, 0 to 1, with features of about one unit and finer ones at a third of the strength.
pub(super) fn clouds(x: f64, y: f64, seed: u32) -> f64 {
    (0.75 * value_noise(x, y, seed)
        + 0.25 * value_noise(x * 3.1 + 17.0, y * 3.1 + 5.0, seed ^ 0x9e37))
    .clamp(0.0, 1.0)
}

/// Random values at whole coordinates, blended smoothly between them.
fn value_noise(x: f64, y: f64, seed: u32) -> f64 {
    let (column, row) = (x.floor(), y.floor());
    let smooth = |t: f64| t * t * (3.0 - 2.0 * t);
    let (s, t) = (smooth(x - column), smooth(y - row));
    let corner = |dx: i64, dy: i64| lattice(column as i64 + dx, row as i64 + dy, seed);
    let upper = corner(0, 0) * (1.0 - s) + corner(1, 0) * s;
    let lower = corner(0, 1) * (1.0 - s) + corner(1, 1) * s;
    upper * (1.0 - t) + lower * t
}

/// A random value in `[0, 1)` for a lattice point. Source: the finaliser of MurmurHash3, twice.
pub(super) fn lattice(x: i64, y: i64, seed: u32) -> f64 {
    let mix = |mut h: u32| {
        h = (h ^ h >> 16).wrapping_mul(0x85eb_ca6b);
        h = (h ^ h >> 13).wrapping_mul(0xc2b2_ae35);
        h ^ h >> 16
    };
    let hash = mix(mix(x as u32 ^ seed)
        .wrapping_add(y as u32)
        .wrapping_mul(0x9e37_79b1));
    f64::from(hash) / (f64::from(u32::MAX) + 1.0)
}
