//! Who works on what, and for how long already: a stage that stands still is named.
//!
//! Whatever may wait without end (a store that does not answer, a rank that hangs, a disk that blocks) says when it begins
//! and ends a piece of work. A [`Watch`] looks at these stamps from a thread of its own and speaks of pieces that take too
//! long. The stamps decide nothing: order, results and speed are those of a process without a watch.
//!
//! There is one list of tasks for the process, as there is one log: whoever speaks to the person stands many layers above
//! the work, and several loaders may run at once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a piece of work may take before it is spoken of.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at the stamps; less where the patience is shorter than some of them.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Pieces of work of one stage that are named in a sentence; the others are counted.
const NAMED: usize = 3;

static PROCESS: LazyLock<Tasks> = LazyLock::new(Tasks::default);

/// Work of one thread at one stage, piece after piece.
pub struct Task(Arc<Slot>);

struct Slot {
    stage: &'static str,
    tasks: Tasks,
    /// When the piece in hand was begun, in milliseconds of [`Tasks::now`]; 0 between two pieces.
    begun: AtomicU64,
    /// Number of the piece in hand.
    number: AtomicU64,
    /// A piece in words, by its number; called by the watch alone.
    name: Box<dyn Fn(u64) -> String + Send + Sync>,
}

/// A piece of work in hand, done when dropped.
pub struct Busy<'a>(&'a Slot);

/// A single piece of work in hand, done when dropped.
pub struct Once(Task);

impl Task {
    /// A task of the calling thread; idle.
    ///
    /// * `stage`: such as `reading`.
    /// * `name`: a piece of work in words, by its number; reads nothing and waits for nothing.
    pub fn new(stage: &'static str, name: impl Fn(u64) -> String + Send + Sync + 'static) -> Self {
        PROCESS.task(stage, name)
    }

    /// Begins a piece of work.
    pub fn begin(&mut self, number: u64) -> Busy<'_> {
        let slot = &*self.0;
        slot.number.store(number, Ordering::Relaxed);
        // After the number: who sees this stamp sees that number too.
        slot.begun.store(slot.tasks.now(), Ordering::Release);
        Busy(slot)
    }
}

/// A single piece of work, begun; for what is done seldom.
///
/// * `stage`: such as `checkpoint`.
/// * `what`: the piece in words.
#[must_use = "the work is done when this is dropped"]
pub fn busy(stage: &'static str, what: impl Into<String>) -> Once {
    let what = what.into();
    let task = Task::new(stage, move |_| what.clone());
    task.0.begun.store(task.0.tasks.now(), Ordering::Release);
    Once(task)
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.begun.store(0, Ordering::Release);
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Task").field(&self.0.stage).finish()
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Once").field(&self.0).finish()
    }
}

/// The tasks that there are. Clones share them.
#[derive(Clone)]
struct Tasks {
    origin: Instant,
    slots: Arc<Mutex<Vec<Weak<Slot>>>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            slots: Arc::default(),
        }
    }
}

impl Tasks {
    fn task(
        &self,
        stage: &'static str,
        name: impl Fn(u64) -> String + Send + Sync + 'static,
    ) -> Task {
        let slot = Arc::new(Slot {
            stage,
            tasks: self.clone(),
            begun: AtomicU64::new(0),
            number: AtomicU64::new(0),
            name: Box::new(name),
        });
        let mut slots = self.slots();
        // Those that have ended make room, so that the list is as long as the work is wide.
        if slots.len() == slots.capacity() {
            slots.retain(|slot| slot.strong_count() > 0);
        }
        slots.push(Arc::downgrade(&slot));
        Task(slot)
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Weak<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds since the list was made, and one more, so that no moment is 0.
    fn now(&self) -> u64 {
        self.origin.elapsed().as_millis() as u64 + 1
    }

    /// The pieces of work that have taken longer than `patience`, longest first, by stage.
    fn standing(&self, patience: Duration) -> BTreeMap<&'static str, Vec<Standing>> {
        let alive: Vec<Arc<Slot>> = self.slots().iter().filter_map(Weak::upgrade).collect();
        let now = self.now();
        let mut standing: BTreeMap<_, Vec<Standing>> = BTreeMap::new();
        for slot in alive {
            let begun = slot.begun.load(Ordering::Acquire);
            let waited = Duration::from_millis(now.saturating_sub(begun));
            if begun > 0 && waited >= patience {
                standing
                    .entry(slot.stage)
                    .or_default()
                    .push(Standing { waited, slot });
            }
        }
        for pieces in standing.values_mut() {
            pieces.sort_by_key(|piece| std::cmp::Reverse(piece.waited));
        }
        standing
    }

    fn watch(
        &self,
        patience: Duration,
        say: impl FnMut(&str) + Send + 'static,
    ) -> std::io::Result<Watch> {
        let (stop, stopped) = channel::<()>();
        let mut observer = Observer {
            tasks: self.clone(),
            patience,
            told: BTreeMap::new(),
            say,
        };
        let every = LOOK_EVERY.min(patience / 4);
        let thread = std::thread::Builder::new()
            .name("stall-watch".into())
            .spawn(move || {
                while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                    observer.look();
                }
            })?;
        Ok(Watch {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

/// A piece of work that takes too long.
struct Standing {
    waited: Duration,
    slot: Arc<Slot>,
}

/// A thread that speaks of stages that stand still, until dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts the thread.
    ///
    /// * `patience`: how long a piece of work may take before it is spoken of; a second sentence follows at twice the time, a third at four
    ///   times, and so on.
    /// * `say`: gets a sentence; called on the thread.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(
        patience: Duration,
        say: impl FnMut(&str) + Send + 'static,
    ) -> std::io::Result<Self> {
        PROCESS.watch(patience, say)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing to lose: a panic in it was in what it called.
            let _ = thread.join();
        }
    }
}

/// What was said of a stage.
struct Told {
    /// When the stage is spoken of again.
    next: Duration,
    waited: Duration,
}

struct Observer<S> {
    tasks: Tasks,
    patience: Duration,
    told: BTreeMap<&'static str, Told>,
    say: S,
}

impl<S: FnMut(&str)> Observer<S> {
    fn look(&mut self) {
        let standing = self.tasks.standing(self.patience);
        let say = &mut self.say;
        self.told.retain(|stage, told| {
            let stands = standing.contains_key(stage);
            if !stands {
                let seconds = told.waited.as_secs_f64();
                say(&format!("stage {stage} goes on, after {seconds:.0} s"));
            }
            stands
        });
        for (stage, pieces) in &standing {
            let waited = pieces[0].waited;
            let told = self.told.entry(stage).or_insert(Told {
                next: self.patience,
                waited,
            });
            told.waited = waited;
            if waited >= told.next {
                told.next = 2 * waited;
                say(&sentence(stage, pieces));
            }
        }
    }
}

fn sentence(stage: &str, pieces: &[Standing]) -> String {
    let seconds = pieces[0].waited.as_secs_f64();
    let named = pieces
        .iter()
        .take(NAMED)
        .map(|Standing { slot, .. }| (slot.name)(slot.number.load(Ordering::Relaxed)));
    let mut text = format!(
        "waiting {seconds:.0} s for stage {stage}: {}",
        named.collect::<Vec<_>>().join("; ")
    );
    if pieces.len() > NAMED {
        text.push_str(&format!("; and {} more", pieces.len() - NAMED));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(40);

    fn watched() -> (Tasks, Watch, Receiver<String>) {
        let tasks = Tasks::default();
        let (say, said) = channel();
        let watch = tasks.watch(PATIENCE, move |line| drop(say.send(line.to_owned())));
        (tasks, watch.unwrap(), said)
    }

    #[test]
    fn what_stands_still_is_named_at_growing_intervals_and_said_to_go_on() {
        let (tasks, watch, said) = watched();
        let mut reading = tasks.task("reading", |number| format!("shard {number}"));
        let mut idle = tasks.task("decoding", |_| "nothing".into());
        drop(idle.begin(1));
        let busy = reading.begin(7);
        let began = Instant::now();
        let mut times = Vec::new();
        for _ in 0..3 {
            let line = said.recv().unwrap();
            assert!(line.starts_with("waiting "), "{line}");
            assert!(line.ends_with("for stage reading: shard 7"), "{line}");
            times.push(began.elapsed());
        }
        // Stamps are whole milliseconds.
        let earliest = [PATIENCE, 2 * PATIENCE, 4 * PATIENCE];
        let early = |(time, at): (&Duration, Duration)| *time + Duration::from_millis(2) < at;
        assert!(!times.iter().zip(earliest).any(early), "{times:?}");
        drop(busy);
        let line = said.recv().unwrap();
        assert!(line.starts_with("stage reading goes on, after"), "{line}");
        drop(watch);
        assert_eq!(said.iter().count(), 0, "nothing else was said");
    }

    #[test]
    fn work_that_moves_is_not_spoken_of() {
        let (tasks, watch, said) = watched();
        let mut task = tasks.task("reading", |number| number.to_string());
        let until = Instant::now() + 5 * PATIENCE;
        let mut number = 0;
        while Instant::now() < until {
            number += 1;
            let _busy = task.begin(number);
        }
        drop(watch);
        // On a machine that stops this thread for so long, that is said, and that it goes on.
        let lines: Vec<_> = said.iter().collect();
        assert!(lines.len() <= 2, "{lines:?}");
    }

    #[test]
    fn many_of_one_stage_are_one_sentence() {
        let tasks = Tasks::default();
        let mut all: Vec<_> = (0..5)
            .map(|_| tasks.task("reading", |number| format!("shard {number}")))
            .collect();
        let busy: Vec<_> = (1..).zip(&mut all).map(|(i, task)| task.begin(i)).collect();
        let standing = tasks.standing(Duration::ZERO);
        let text = sentence("reading", &standing["reading"]);
        assert!(text.ends_with("; and 2 more"), "{text}");
        assert_eq!(text.matches("shard").count(), NAMED, "{text}");
        drop(busy);
        assert!(tasks.standing(Duration::ZERO).is_empty());
    }

    #[test]
    fn tasks_that_have_ended_are_forgotten() {
        let tasks = Tasks::default();
        for number in 0..10_000 {
            drop(tasks.task("reading", move |_| number.to_string()));
        }
        assert!(tasks.slots().len() < 100);
    }
}
