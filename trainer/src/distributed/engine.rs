//! What a communication library does for a run, and the thread on which it does it.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use candle_core::Tensor;
use pipeline::stall;

use crate::error::{Error, Result};

/// How long a rank that gives up waits for the library to tell the others before it just ends.
const ABORT_PATIENCE: Duration = Duration::from_secs(10);

/// Collective operations: every rank calls the same ones in the same order with tensors of the same shape and type.
///
/// An engine lives on one thread and need not be able to move between threads. Dropping it leaves, in peace
/// where the library can, for which it may wait until the others do the same.
pub(super) trait Engine {
    /// The sum over the ranks, element by element; the same bits on every rank.
    ///
    /// * `values`: contiguous f32 on the run's device.
    fn all_reduce_sum(&mut self, values: &Tensor) -> Result<Tensor>;

    /// The ranks' tensors `[n, ..]` one after the other, `[size * n, ..]`.
    ///
    /// * `rows`: contiguous f32 or u8 on the run's device.
    fn all_gather(&mut self, rows: &Tensor) -> Result<Tensor>;

    /// Rank 0's tensor; what the others bring gives the shape alone.
    ///
    /// * `values`: contiguous u8 on the run's device.
    fn broadcast(&mut self, values: &Tensor) -> Result<Tensor>;

    /// Ends the processes of all ranks, this one included, as far as the library can.
    fn abort(&mut self);
}

type Work = Box<dyn FnOnce(&mut dyn Engine) + Send>;

enum Request {
    /// With what it is, for whoever waits for it.
    Do(&'static str, Work),
    Leave(Sender<()>),
}

/// The communication thread's end of the queue of requests, which it serves in order.
///
/// One thread alone calls the library, so that it needs no thread safety of its own, and ranks that ask in the same
/// order cannot wait for each other in a circle.
#[derive(Debug)]
pub(super) struct Queue {
    requests: Sender<Request>,
}

/// The result of a request that may still be under way.
#[derive(Debug)]
pub(super) struct Pending<T> {
    reply: Receiver<Result<T>>,
}

impl<T> Pending<T> {
    /// Waits for it.
    ///
    /// # Errors
    /// What the library reported.
    pub fn wait(self) -> Result<T> {
        self.reply.recv().map_err(|_| thread_ended())?
    }
}

impl Queue {
    /// Starts the thread and, on it, the engine.
    ///
    /// # Errors
    /// What `start` reports.
    pub fn start(
        start: impl FnOnce() -> Result<Box<dyn Engine>> + Send + 'static,
    ) -> Result<Queue> {
        let (requests, inbox) = channel();
        let (started, outcome) = channel();
        let serve = move || {
            let joining = stall::busy("communication", "joining the other ranks");
            let engine = match start() {
                Ok(engine) => engine,
                Err(error) => return drop(started.send(Err(error))),
            };
            drop(joining);
            if started.send(Ok(())).is_ok() {
                serve(engine, &inbox);
            }
        };
        std::thread::Builder::new()
            .name("communication".to_owned())
            .spawn(serve)
            .map_err(|source| {
                Error::Ranks(format!("the communication thread did not start: {source}"))
            })?;
        outcome.recv().map_err(|_| thread_ended())??;
        Ok(Queue { requests })
    }

    /// Puts `work` in the queue; `what` names it to whoever waits for it too long.
    pub fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut dyn Engine) -> Result<T> + Send + 'static,
    ) -> Pending<T> {
        let (sender, reply) = channel();
        let work: Work = Box::new(move |engine| drop(sender.send(work(engine))));
        // If the thread has ended, so has the other end of the reply, which says so.
        drop(self.requests.send(Request::Do(what, work)));
        Pending { reply }
    }

    /// Leaves in peace once everything asked for is done; waits for the others to do so too, where the library does.
    pub fn leave(&self) -> Result<()> {
        let (sender, reply) = channel();
        drop(self.requests.send(Request::Leave(sender)));
        reply.recv().map_err(|_| thread_ended())
    }

    /// Has the library end all ranks. Returns if it cannot, or does not in time.
    pub fn abort(&self) {
        let (sender, reply) = channel::<()>();
        let work: Work = Box::new(move |engine| {
            engine.abort();
            drop(sender);
        });
        drop(self.requests.send(Request::Do("giving up", work)));
        let (Ok(()) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)) =
            reply.recv_timeout(ABORT_PATIENCE);
    }
}

fn serve(mut engine: Box<dyn Engine>, inbox: &Receiver<Request>) {
    while let Ok(request) = inbox.recv() {
        match request {
            Request::Do(what, work) => {
                let _busy = stall::busy("communication", what);
                work(engine.as_mut());
            }
            Request::Leave(done) => {
                drop(engine);
                let _ = done.send(()); // nobody may be waiting for it any more
                return;
            }
        }
    }
    // Everyone who could ask is gone without having left: a failure. Leaving in peace would wait for ranks that may wait
    // for this one.
    std::mem::forget(engine);
}

fn thread_ended() -> Error {
    Error::Ranks("the communication thread has ended, as after an earlier error".to_owned())
}
