//! Raw data in, shards out; shards in, batches of view pairs out.
