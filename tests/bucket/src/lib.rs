//! A bucket for tests and benches: an S3 server in the process, and a proxy in front of it that breaks things.
//!
//! [`Server`] keeps its objects as files in a temporary folder and checks signatures; one that only reads is for taking
//! times. [`Proxy`] speaks HTTP/1.1 with whoever asks, forwards each request over a connection of its own, and does to the
//! reply what its plan says; it counts requests and bytes. Both listen on a free port of the loopback interface and end
//! when dropped. [`write_hub_parquet`] makes sets for them as others have them.

mod hub;
mod proxy;
mod reader;
mod server;

pub use hub::{HubRow, write_hub_parquet};
pub use proxy::{Fault, Line, Plan, Proxy, Rates, Request, Traffic};
pub use server::{ACCESS_KEY, BUCKET, REGION, SECRET_KEY, Server, environment};
