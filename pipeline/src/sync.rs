//! What threads wait with, by one name, so that `tests/loom` can put a model checker's in its place.

pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
