//! The bodies of replies, in memory that goes back to the system as soon as nobody needs it.

use bytes::Bytes;
use futures::TryStreamExt;
use memmap2::MmapMut;
use object_store::{GetResult, Result};

/// A body of at least so many bytes gets pages of its own. An allocator keeps what many threads free, each thread's by itself:
/// with row groups that came to several times what was in use.
const LARGE_BYTES: u64 = 1 << 20;

/// The body of a reply to a request for so many bytes; it may turn out to have fewer.
pub(super) async fn collect(reply: GetResult, n_bytes: u64) -> Result<Bytes> {
    let pages = (n_bytes >= LARGE_BYTES).then(|| usize::try_from(n_bytes).ok());
    // Without pages, as without memory, the allocator is asked.
    let Some(mut pages) = pages.flatten().and_then(|n| MmapMut::map_anon(n).ok()) else {
        return reply.bytes().await;
    };
    let (mut body, mut end) = (reply.into_stream(), 0);
    while let Some(chunk) = body.try_next().await? {
        let Some(room) = pages.get_mut(end..end + chunk.len()) else {
            return Err(object_store::Error::Generic {
                store: "reply",
                source: format!("more than the {n_bytes} bytes asked for").into(),
            });
        };
        room.copy_from_slice(&chunk);
        end += chunk.len();
    }
    Ok(Bytes::from_owner(pages).slice(..end))
}
