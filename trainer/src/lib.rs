//! Batches in, numbers out: models, optimisation, checkpoints and metrics on candle.
