//! What lies on disk and in the bucket: the shard format, its writer and reader, the manifest, and storage.
