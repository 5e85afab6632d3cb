//! Where the time goes: training and waiting for data, apart from checkpoints and pictures.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Weight of the past in the time per step that the remaining time is reckoned from.
const SMOOTHING: f64 = 0.95;

/// Pairs and seconds over some steps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pairs: u64,
    seconds: f64,
    waiting_s: f64,
}

impl Tally {
    /// 0 before the first step.
    pub fn pairs_per_s(&self) -> f64 {
        if self.seconds > 0.0 {
            self.pairs as f64 / self.seconds
        } else {
            0.0
        }
    }

    /// 0 before the first step.
    pub fn data_wait_pct(&self) -> f64 {
        if self.seconds > 0.0 {
            100.0 * self.waiting_s / self.seconds
        } else {
            0.0
        }
    }

    fn add(&mut self, pairs: u64, seconds: f64, waiting_s: f64) {
        self.pairs += pairs;
        self.seconds += seconds;
        self.waiting_s += waiting_s;
    }
}

/// Times steps; what happens between [`Clock::end_step`] and [`Clock::begin_step`] does not count.
#[derive(Debug)]
pub(super) struct Clock {
    step_began: Instant,
    waited: Duration,
    window: Tally,
    session: Tally,
    step_s: Option<f64>,
    steps_left: u64,
}

impl Clock {
    pub fn start() -> Self {
        let (window, session) = Default::default();
        Self {
            step_began: Instant::now(),
            waited: Duration::ZERO,
            window,
            session,
            step_s: None,
            steps_left: 0,
        }
    }

    pub fn begin_step(&mut self) {
        self.step_began = Instant::now();
        self.waited = Duration::ZERO;
    }

    /// Does `work` and counts its time as waiting for data.
    pub fn waiting<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = work();
        self.waited += began.elapsed();
        result
    }

    pub fn end_step(&mut self, pairs: u64, steps_left: u64) {
        let seconds = self.step_began.elapsed().as_secs_f64();
        self.window.add(pairs, seconds, self.waited.as_secs_f64());
        self.session.add(pairs, seconds, self.waited.as_secs_f64());
        self.step_s = Some(self.step_s.map_or(seconds, |past| {
            SMOOTHING * past + (1.0 - SMOOTHING) * seconds
        }));
        self.steps_left = steps_left;
    }

    /// Since the window was last cleared.
    pub fn window(&self) -> Tally {
        self.window
    }

    pub fn clear_window(&mut self) {
        self.window = Tally::default();
    }

    /// Since the program started to train.
    pub fn session(&self) -> Tally {
        self.session
    }

    /// Seconds to the end at the present rate.
    pub fn eta_s(&self) -> f64 {
        self.step_s.unwrap_or_default() * self.steps_left as f64
    }
}

/// Seconds since 1970.
pub(super) fn unix_time_s() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_count_steps_and_nothing_between_them() {
        let mut clock = Clock::start();
        assert_eq!((clock.session().pairs_per_s(), clock.eta_s()), (0.0, 0.0));
        for left in [1, 0] {
            std::thread::sleep(Duration::from_millis(60));
            clock.begin_step();
            clock.waiting(|| std::thread::sleep(Duration::from_millis(10)));
            std::thread::sleep(Duration::from_millis(10));
            clock.end_step(8, left);
        }
        let session = clock.session();
        assert_eq!(session.pairs, 16);
        assert!(
            session.seconds < 0.1 && session.waiting_s >= 0.02,
            "{session:?}"
        );
        assert_eq!(clock.eta_s(), 0.0);
        clock.clear_window();
        assert_eq!(clock.window().pairs_per_s(), 0.0);
    }
}
