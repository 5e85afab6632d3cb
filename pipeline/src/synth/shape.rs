//! Outlines of the objects.

/// What an object is seen as from afar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Disc,
    Square,
    Triangle,
    Ring,
    Cross,
    Diamond,
}

impl Shape {
    pub const ALL: [Shape; 6] = [
        Shape::Disc,
        Shape::Square,
        Shape::Triangle,
        Shape::Ring,
        Shape::Cross,
        Shape::Diamond,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Shape::Disc => "disc",
            Shape::Square => "square",
            Shape::Triangle => "triangle",
            Shape::Ring => "ring",
            Shape::Cross => "cross",
            Shape::Diamond => "diamond",
        }
    }

    /// Whether a point lies inside; all shapes fit into the circle of radius 1 around 0 or the square around that.
    pub fn contains(self, u: f64, v: f64) -> bool {
        let square_distance = u * u + v * v;
        match self {
            Shape::Disc => square_distance < 0.85,
            Shape::Square => u.abs() < 0.78 && v.abs() < 0.78,
            Shape::Triangle => v < 0.65 && v > 1.8 * u.abs() - 0.95,
            Shape::Ring => (0.22..0.95).contains(&square_distance),
            Shape::Cross => u.abs().min(v.abs()) < 0.36 && u.abs().max(v.abs()) < 0.95,
            Shape::Diamond => u.abs() + 0.75 * v.abs() < 0.9,
        }
    }
}
