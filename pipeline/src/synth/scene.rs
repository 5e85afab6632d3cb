//! What moves where, and the pixels of it.

use super::shape::Shape;
use super::texture::{Texture, clouds, lattice};
use super::{SynthOptions, number};
use crate::codec::Rgb8Image;
use crate::rng::{Purpose, SampleRng};

/// What a scene is made for; the same class and number give other scenes for other kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SynthKind {
    /// One picture, of varying format; one object.
    Image,
    /// A clip at 4:3; one object.
    Clip,
    /// Frames with masks at 4:3; two objects.
    Sequence,
}

/// A frame and where its objects are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynthFrame {
    /// The picture, with its number along the upper edge.
    pub image: Rgb8Image,
    /// `[height, width]`: 0 ground (and the number's blocks), 1 the first object, 2 the second. A pixel belongs to what
    /// covers most of it, at a tie to the lower number.
    pub mask: Vec<u8>,
}

/// Objects and a ground, drifting.
#[derive(Debug, Clone)]
pub struct Scene {
    width: u32,
    height: u32,
    ground: Ground,
    /// The first is in front.
    objects: Vec<Object>,
    grain: Grain,
}

#[derive(Debug, Clone)]
struct Ground {
    seed: u32,
    colours: [Colour; 2],
    /// Features across the short side.
    frequency: f64,
    /// Short sides a frame.
    drift: (f64, f64),
}

/// Noise of a camera: another one in each value of each frame.
#[derive(Debug, Clone)]
struct Grain {
    seed: u32,
    /// Standard deviation in levels, before values are cut to 0 to 255.
    deviation: f64,
}

#[derive(Debug, Clone)]
struct Object {
    shape: Shape,
    texture: Texture,
    seed: u32,
    colours: [Colour; 2],
    /// Half the diameter, in short sides.
    radius: f64,
    start: (f64, f64),
    /// Short sides a frame.
    speed: (f64, f64),
    turn: f64,
    /// Turns a frame.
    turn_speed: f64,
}

type Colour = [f64; 3];

/// Samples a pixel, along each side.
const SAMPLES: u32 = 2;

/// A library's root may differ from machine to machine in the last bit.
const ROOT_OF_6: f64 = 2.449_489_742_783_178;

/// Bright colours for objects.
const BRIGHT: [Colour; 8] = [
    [235.0, 70.0, 60.0],
    [250.0, 200.0, 50.0],
    [70.0, 200.0, 90.0],
    [60.0, 130.0, 235.0],
    [215.0, 90.0, 215.0],
    [245.0, 140.0, 40.0],
    [90.0, 220.0, 225.0],
    [240.0, 240.0, 230.0],
];

/// Muted colours for grounds, dark and light by turns.
const MUTED: [Colour; 6] = [
    [30.0, 44.0, 62.0],
    [150.0, 136.0, 104.0],
    [38.0, 66.0, 44.0],
    [156.0, 132.0, 150.0],
    [62.0, 50.0, 40.0],
    [124.0, 150.0, 164.0],
];

/// Shape and texture of a class: neighbouring numbers differ in both.
pub(super) fn looks(class: u32) -> (Shape, Texture) {
    let (n_shapes, n_textures) = (Shape::ALL.len(), Texture::ALL.len());
    let class = class as usize % (n_shapes * n_textures);
    (
        Shape::ALL[class % n_shapes],
        Texture::ALL[(class + class / n_shapes) % n_textures],
    )
}

impl Scene {
    /// The scene number `index` of a class.
    pub fn new(options: &SynthOptions, kind: SynthKind, class: u32, index: u32) -> Scene {
        let sample = u64::from(class) << 32 | u64::from(index);
        let mut rng = SampleRng::new(options.seed, kind as u64, sample, Purpose::Synth);
        let even = |side: f64| (side / 2.0).round() as u32 * 2;
        let short = f64::from(options.size);
        let (width, height) = match kind {
            SynthKind::Image => {
                let long = even(short * (1.0 + 0.25 * rng.below(3) as f64));
                if rng.bool(0.7) {
                    (long, options.size)
                } else {
                    (options.size, long)
                }
            }
            SynthKind::Clip | SynthKind::Sequence => (even(short * 4.0 / 3.0), options.size),
        };
        let first = rng.below(MUTED.len() as u64) as usize;
        let other = (first + 1 + 2 * rng.below(MUTED.len() as u64 / 2) as usize) % MUTED.len();
        let ground = Ground {
            seed: rng.next_u32(),
            colours: [MUTED[first], MUTED[other]],
            frequency: rng.uniform(3.0, 5.0),
            drift: (rng.uniform(-0.004, 0.004), rng.uniform(-0.004, 0.004)),
        };
        let extent = (f64::from(width) / short, f64::from(height) / short);
        let mut objects = vec![Object::new(class, extent, &mut rng)];
        if kind == SynthKind::Sequence {
            let other = (class + 1 + rng.below(u64::from(super::MAX_CLASSES) - 1) as u32)
                % super::MAX_CLASSES;
            objects.push(Object::new(other, extent, &mut rng));
        }
        let grain = Grain {
            seed: rng.next_u32(),
            deviation: f64::from(options.grain),
        };
        Scene {
            width,
            height,
            ground,
            objects,
            grain,
        }
    }

    /// Columns and rows of the frames.
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// The frame at a time; `frame` is also the number written into the pixels.
    pub fn render(&self, frame: u32) -> SynthFrame {
        let short = f64::from(self.width.min(self.height));
        let extent = (
            f64::from(self.width) / short,
            f64::from(self.height) / short,
        );
        let poses: Vec<Pose> = self
            .objects
            .iter()
            .map(|object| object.pose(frame, extent))
            .collect();
        let mut image = Rgb8Image::new(self.width, self.height);
        let mut mask = vec![0u8; (self.width * self.height) as usize];
        let step = 1.0 / f64::from(SAMPLES);
        let n_samples = SAMPLES * SAMPLES;
        for (i, (pixel, label)) in image.data.chunks_exact_mut(3).zip(&mut mask).enumerate() {
            let (column, row) = (i as u32 % self.width, i as u32 / self.width);
            let (mut sum, mut covered) = ([0.0; 3], [0u32; 3]);
            let mut ground = None; // smooth enough for one sample
            for sample in 0..n_samples {
                let x = (f64::from(column) + (f64::from(sample % SAMPLES) + 0.5) * step) / short;
                let y = (f64::from(row) + (f64::from(sample / SAMPLES) + 0.5) * step) / short;
                let hit = self.objects.iter().zip(&poses).zip(1usize..).find_map(
                    |((object, pose), label)| {
                        let (u, v) = pose.to_object(x, y);
                        object
                            .shape
                            .contains(u, v)
                            .then(|| (label, object.colour(u, v)))
                    },
                );
                let (label, colour) = hit.unwrap_or_else(|| {
                    (
                        0,
                        *ground.get_or_insert_with(|| self.ground.colour(x, y, frame)),
                    )
                });
                covered[label] += 1;
                (0..3).for_each(|c| sum[c] += colour[c]);
            }
            (0..3).for_each(|c| {
                let grain = self.grain.at(i as u32 * 3 + c as u32, frame);
                pixel[c] = (sum[c] / f64::from(n_samples) + grain).round() as u8;
            });
            *label = (0u8..3)
                .rev()
                .max_by_key(|&label| covered[usize::from(label)])
                .unwrap_or(0);
        }
        number::draw(&mut image, frame);
        mask[..(number::strip_rows(self.height) * self.width) as usize].fill(0);
        SynthFrame { image, mask }
    }
}

impl Ground {
    fn colour(&self, x: f64, y: f64, frame: u32) -> Colour {
        let time = f64::from(frame);
        let (x, y) = (x + self.drift.0 * time, y + self.drift.1 * time);
        let share = clouds(x * self.frequency, y * self.frequency, self.seed);
        // Stretched, because noise keeps to the middle of its range.
        blend(&self.colours, (share * 1.8 - 0.4).clamp(0.0, 1.0))
    }
}

impl Grain {
    /// Levels to add to a value: the sum of two uniform numbers, whose deviation is the root of 1/6.
    fn at(&self, value: u32, frame: u32) -> f64 {
        if self.deviation == 0.0 {
            return 0.0;
        }
        let uniform = |seed| lattice(i64::from(value), i64::from(frame), seed);
        let sum = uniform(self.seed) + uniform(self.seed ^ 0x9e37_79b9);
        (sum - 1.0) * self.deviation * ROOT_OF_6
    }
}

impl Object {
    fn new(class: u32, extent: (f64, f64), rng: &mut SampleRng) -> Object {
        let (shape, texture) = looks(class);
        let first = rng.below(BRIGHT.len() as u64) as usize;
        let other = (first + 1 + rng.below(BRIGHT.len() as u64 - 1) as usize) % BRIGHT.len();
        let direction = unit_vector(rng.unit_f64());
        let speed = rng.uniform(0.008, 0.02);
        Object {
            shape,
            texture,
            seed: rng.next_u32(),
            colours: [BRIGHT[first], BRIGHT[other]],
            radius: rng.uniform(0.2, 0.32),
            start: (rng.uniform(0.0, extent.0), rng.uniform(0.0, extent.1)),
            speed: (direction.0 * speed, direction.1 * speed),
            turn: rng.unit_f64(),
            turn_speed: rng.uniform(-0.006, 0.006),
        }
    }

    /// Where the object is at a time: straight ahead, thrown back by the edges before it is half outside.
    fn pose(&self, frame: u32, extent: (f64, f64)) -> Pose {
        let time = f64::from(frame);
        let margin = 0.6 * self.radius;
        let bounce = |start: f64, speed: f64, low: f64, high: f64| {
            let span = high - low;
            let travelled = (start + speed * time - low).rem_euclid(2.0 * span);
            low + travelled.min(2.0 * span - travelled)
        };
        Pose {
            x: bounce(self.start.0, self.speed.0, margin, extent.0 - margin),
            // The number's blocks take about a tenth at the top.
            y: bounce(self.start.1, self.speed.1, margin + 0.1, extent.1 - margin),
            axis: unit_vector((self.turn + self.turn_speed * time).rem_euclid(1.0)),
            radius: self.radius,
        }
    }

    fn colour(&self, u: f64, v: f64) -> Colour {
        blend(&self.colours, self.texture.at(u, v, self.seed))
    }
}

struct Pose {
    x: f64,
    y: f64,
    axis: (f64, f64),
    radius: f64,
}

impl Pose {
    /// A point of the picture, in the object's own coordinates.
    fn to_object(&self, x: f64, y: f64) -> (f64, f64) {
        let (dx, dy) = ((x - self.x) / self.radius, (y - self.y) / self.radius);
        (
            self.axis.0 * dx + self.axis.1 * dy,
            self.axis.0 * dy - self.axis.1 * dx,
        )
    }
}

fn blend(colours: &[Colour; 2], share: f64) -> Colour {
    std::array::from_fn(|c| colours[0][c] * (1.0 - share) + colours[1][c] * share)
}

/// Cosine and sine of an angle in turns, 0 to 1, by their series: a library's may differ from machine to machine in the
/// last bit, and with it a pixel.
fn unit_vector(turns: f64) -> (f64, f64) {
    let quarter = (turns * 4.0).round();
    let a = (turns - quarter / 4.0) * std::f64::consts::TAU; // at most an eighth of a turn
    let square = a * a;
    let cos =
        1.0 - square / 2.0 * (1.0 - square / 12.0 * (1.0 - square / 30.0 * (1.0 - square / 56.0)));
    let sin = a
        * (1.0
            - square / 6.0 * (1.0 - square / 20.0 * (1.0 - square / 42.0 * (1.0 - square / 72.0))));
    match quarter.rem_euclid(4.0) as u32 {
        0 => (cos, sin),
        1 => (-sin, cos),
        2 => (-cos, -sin),
        _ => (sin, -cos),
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame_number;
    use super::*;

    fn options() -> SynthOptions {
        SynthOptions {
            seed: 5,
            size: 64,
            ..SynthOptions::default()
        }
    }

    #[test]
    fn scenes_depend_on_their_key_alone() {
        let render = |kind, class, index| Scene::new(&options(), kind, class, index).render(3);
        let base = render(SynthKind::Clip, 1, 2);
        assert_eq!(base, render(SynthKind::Clip, 1, 2));
        for other in [
            render(SynthKind::Clip, 1, 3),
            render(SynthKind::Clip, 2, 2),
            render(SynthKind::Sequence, 1, 2),
        ] {
            assert_ne!(base, other);
        }
        let reseeded = SynthOptions {
            seed: 6,
            ..options()
        };
        assert_ne!(base, Scene::new(&reseeded, SynthKind::Clip, 1, 2).render(3));
    }

    #[test]
    fn pixels_never_change() {
        let frame = Scene::new(&options(), SynthKind::Sequence, 1, 2).render(7);
        let fnv = |bytes: &[u8]| {
            bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &b| {
                (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
            })
        };
        assert_eq!(
            (fnv(&frame.image.data), fnv(&frame.mask)),
            (10_899_777_199_063_181_722, 6_850_700_458_322_806_027)
        );
    }

    #[test]
    fn grain_is_new_in_each_frame_and_as_strong_as_asked() {
        let render = |grain, frame| {
            let options = SynthOptions { grain, ..options() };
            Scene::new(&options, SynthKind::Sequence, 1, 2).render(frame)
        };
        let (plain, grainy, later) = (render(0, 7), render(12, 7), render(12, 8));
        assert_eq!(grainy.mask, plain.mask);
        assert_eq!(frame_number(&render(120, 7).image), Some(7));
        let differences = |a: &Rgb8Image, b: &Rgb8Image| -> Vec<f64> {
            let middle = |v: &u8| (60..196).contains(v);
            (a.data.iter().zip(&b.data).filter(|(a, _)| middle(a)))
                .map(|(a, b)| f64::from(*b) - f64::from(*a))
                .collect()
        };
        let deviation = |values: &[f64]| {
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt()
        };
        let measured = deviation(&differences(&plain.image, &grainy.image));
        assert!((11.7..12.3).contains(&measured), "{measured}");
        assert!(deviation(&differences(&grainy.image, &later.image)) > 14.0);
    }

    #[test]
    fn masks_say_where_the_objects_are() {
        for class in 0..super::super::MAX_CLASSES {
            let scene = Scene::new(&options(), SynthKind::Sequence, class, 0);
            let (width, height) = scene.size();
            for frame in [0, 30, 60] {
                let SynthFrame { image, mask } = scene.render(frame);
                assert_eq!(
                    (image.data.len(), mask.len()),
                    ((width * height * 3) as usize, (width * height) as usize)
                );
                assert_eq!(frame_number(&image), Some(frame));
                let share =
                    |label| mask.iter().filter(|&&l| l == label).count() as f64 / mask.len() as f64;
                assert!(
                    (0.01..0.3).contains(&share(1)),
                    "class {class} frame {frame}: {}",
                    share(1)
                );
                assert!(mask.iter().all(|&label| label <= 2));
            }
        }
    }

    #[test]
    fn objects_move_and_stay_in_the_picture() {
        let scene = Scene::new(&options(), SynthKind::Clip, 0, 0);
        let centre = |frame| {
            let mask = scene.render(frame).mask;
            let inside = mask
                .iter()
                .enumerate()
                .filter(|(_, label)| **label == 1)
                .map(|(i, _)| i as u32);
            let n = inside.clone().count() as f64;
            assert!(n > 50.0);
            let mean = |f: fn(u32, u32) -> u32| {
                inside
                    .clone()
                    .map(|i| f64::from(f(i, scene.width)))
                    .sum::<f64>()
                    / n
            };
            (mean(|i, w| i % w), mean(|i, w| i / w))
        };
        let (a, b, c) = (centre(0), centre(1), centre(20));
        let distance = |a: (f64, f64), b: (f64, f64)| (a.0 - b.0).abs() + (a.1 - b.1).abs();
        assert!(
            distance(a, b) < 4.0 && distance(a, c) > 4.0,
            "{a:?} {b:?} {c:?}"
        );
        centre(4000);
    }

    #[test]
    fn series_are_sines() {
        for i in 0..=100 {
            let turns = f64::from(i) / 100.0;
            let (cos, sin) = unit_vector(turns);
            let (expected_sin, expected_cos) = (turns * std::f64::consts::TAU).sin_cos();
            assert!(
                (cos - expected_cos).abs() < 1e-6 && (sin - expected_sin).abs() < 1e-6,
                "{turns}"
            );
        }
    }

    #[test]
    fn class_names_are_distinct() {
        let names: std::collections::BTreeSet<String> = (0..super::super::MAX_CLASSES)
            .map(|class| options().class_name(class))
            .collect();
        assert_eq!(names.len() as u32, super::super::MAX_CLASSES);
    }
}
