//! Objects that can only be read: a request costs what its range does, whatever the object's size.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use s3s::dto::{
    ETag, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, StreamingBlob,
    Timestamp,
};
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};

/// A folder whose folders are buckets.
pub(crate) struct Reader {
    root: PathBuf,
}

/// A file, and what is said of it beside its bytes.
struct Object {
    file: File,
    len: u64,
    modified: Timestamp,
    etag: ETag,
}

impl Reader {
    pub(crate) fn new(root: &Path) -> Self {
        Reader {
            root: root.to_owned(),
        }
    }

    fn open(&self, bucket: &str, key: &str) -> S3Result<Object> {
        if key.split('/').any(|part| part == "..") {
            return Err(s3_error!(NoSuchKey));
        }
        let path = self.root.join(bucket).join(key);
        let file = File::open(path).map_err(|e| s3_error!(e, NoSuchKey))?;
        let describe = || -> io::Result<(u64, std::time::SystemTime)> {
            let metadata = file.metadata()?;
            Ok((metadata.len(), metadata.modified()?))
        };
        let (len, modified) = describe().map_err(|e| s3_error!(e, InternalError))?;
        let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Object {
            file,
            len,
            modified: modified.into(),
            etag: ETag::Strong(format!("{len:x}-{:x}", since.as_nanos())),
        })
    }
}

#[async_trait::async_trait]
impl S3 for Reader {
    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let GetObjectInput {
            bucket, key, range, ..
        } = request.input;
        let object = self.open(&bucket, &key)?;
        let len = object.len;
        let part = range.map_or(Ok(0..len), |range| range.check(len))?;
        let mut bytes = vec![0; (part.end - part.start) as usize];
        let read = object.file.read_exact_at(&mut bytes, part.start);
        read.map_err(|e| s3_error!(e, InternalError))?;
        let place = || format!("bytes {}-{}/{len}", part.start, part.end - 1);
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(bytes.len() as i64),
            content_range: range.map(|_| place()),
            body: Some(StreamingBlob::from(Body::from(Bytes::from(bytes)))),
            e_tag: Some(object.etag),
            last_modified: Some(object.modified),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let object = self.open(&request.input.bucket, &request.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(object.len as i64),
            e_tag: Some(object.etag),
            last_modified: Some(object.modified),
            ..HeadObjectOutput::default()
        }))
    }
}
