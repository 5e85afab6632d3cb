//! The proxy that breaks things.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::server::runtime;

/// Longest head of a request or reply, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// Bytes passed on at a time.
const CHUNK: usize = 32 << 10;

/// The shortest time that a timer waits.
const GRAIN: Duration = Duration::from_millis(1);

/// How long a stall lasts, if nobody hangs up before.
const STALL: Duration = Duration::from_secs(600);

/// What becomes of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing bad.
    None,
    /// A reply of the proxy's own; the server never hears of the request.
    Reply {
        /// Such as 200.
        status: u16,
        /// Headers besides the length.
        headers: Vec<(String, String)>,
        /// The whole body.
        body: String,
    },
    /// The connection is reset in the middle of the reply's body, or after half of its head if there is none.
    Reset,
    /// The connection is closed in the middle of the reply's body, as if that were its end.
    Truncate,
    /// The reply gets another etag.
    WrongEtag,
    /// The reply stops in the middle of its body, and the connection stays open.
    Stall,
    /// The connection is closed without a word.
    HangUp,
    /// Something that is not HTTP comes back.
    Garbage,
}

/// A request, before it is forwarded.
#[derive(Debug, Clone)]
pub struct Request {
    /// How many came before it.
    pub number: u64,
    /// `GET` and the like.
    pub method: String,
    /// Path and query, with their `%` escapes.
    pub path: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(header, _)| header == name)?;
    Some(&found.1)
}

/// Says what becomes of a request.
pub type Plan = Box<dyn Fn(&Request) -> Fault + Send + Sync>;

/// How often something bad happens, as shares of all requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    /// Replies with status 500.
    pub errors: f64,
    /// Replies with status 503 and `SlowDown`.
    pub slow_downs: f64,
    /// [`Fault::Reset`].
    pub resets: f64,
    /// [`Fault::Truncate`].
    pub truncations: f64,
    /// [`Fault::Stall`].
    pub stalls: f64,
}

impl Rates {
    /// A plan by these rates. What happens to a request depends on the seed and its number alone.
    pub fn plan(self, seed: u64) -> Plan {
        Box::new(move |request| {
            let mut draw = uniform(seed, request.number);
            let faults = [
                (self.errors, Fault::refusal(500, "InternalError")),
                (self.slow_downs, Fault::refusal(503, "SlowDown")),
                (self.resets, Fault::Reset),
                (self.truncations, Fault::Truncate),
                (self.stalls, Fault::Stall),
            ];
            for (rate, fault) in faults {
                if draw < rate {
                    return fault;
                }
                draw -= rate;
            }
            Fault::None
        })
    }
}

impl Fault {
    /// What S3 answers when it refuses, with this status and code.
    pub fn refusal(status: u16, code: &str) -> Self {
        Fault::Reply {
            status,
            headers: Vec::new(),
            body: format!("<Error><Code>{code}</Code><Message>made up</Message></Error>"),
        }
    }
}

/// In [0, 1), by a mixer of 64 bits.
fn uniform(seed: u64, number: u64) -> f64 {
    let mut x = seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for _ in 0..3 {
        x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    }
    (x >> 11) as f64 / (1_u64 << 53) as f64
}

/// The line between a client and the server.
#[derive(Debug, Clone, Copy, Default)]
pub struct Line {
    /// Added to each request.
    pub latency: Duration,
    /// Shared by all connections; without a limit if `None`.
    pub bytes_per_s: Option<u64>,
}

/// What went through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests, also those that failed.
    pub requests: u64,
    /// Bytes of the bodies of replies.
    pub reply_bytes: u64,
    /// Bytes of the bodies of requests.
    pub request_bytes: u64,
    /// Most requests that were being answered at the same time.
    pub most_at_once: u64,
}

/// Stands between a client and a server.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _runtime: Runtime,
}

struct Shared {
    upstream: SocketAddr,
    plan: RwLock<Arc<Plan>>,
    line: RwLock<Line>,
    next_number: AtomicU64,
    traffic: Mutex<Traffic>,
    /// Requests that are being answered.
    at_once: AtomicU64,
    /// When the line has carried all that it was given.
    free_at: Mutex<Instant>,
    log: Mutex<Vec<Request>>,
}

impl Proxy {
    /// Starts a proxy that does nothing bad yet.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn start(upstream: SocketAddr) -> io::Result<Self> {
        let runtime = runtime()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let plan: Plan = Box::new(|_| Fault::None);
        let shared = Arc::new(Shared {
            upstream,
            plan: RwLock::new(Arc::new(plan)),
            line: RwLock::default(),
            next_number: AtomicU64::new(0),
            traffic: Mutex::default(),
            at_once: AtomicU64::new(0),
            free_at: Mutex::new(Instant::now()),
            log: Mutex::default(),
        });
        let serving = shared.clone();
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(serving.clone(), client));
            }
        });
        Ok(Proxy {
            address,
            shared,
            _runtime: runtime,
        })
    }

    /// Where it listens, as an address of a store.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The variables with which a program finds the server through it.
    pub fn environment(&self) -> Vec<(String, String)> {
        crate::environment(&self.endpoint())
    }

    /// What becomes of requests from now on.
    pub fn set_plan(&self, plan: Plan) {
        *write(&self.shared.plan) = Arc::new(plan);
    }

    /// How the line is from now on.
    pub fn set_line(&self, line: Line) {
        *write(&self.shared.line) = line;
    }

    /// What went through since the start, or the last call of [`Proxy::take_traffic`].
    pub fn traffic(&self) -> Traffic {
        *lock(&self.shared.traffic)
    }

    /// What went through since the start, or the last call.
    pub fn take_traffic(&self) -> Traffic {
        std::mem::take(&mut *lock(&self.shared.traffic))
    }

    /// The requests that came since the start, or the last call.
    pub fn take_log(&self) -> Vec<Request> {
        std::mem::take(&mut *lock(&self.shared.log))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(held: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    held.write().unwrap_or_else(PoisonError::into_inner)
}

fn read<T: Clone>(held: &RwLock<T>) -> T {
    held.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The first line and the headers of a request or reply, and what came after them.
struct Head {
    first: String,
    headers: Vec<(String, String)>,
    rest: BytesMut,
}

impl Head {
    /// Reads a head; `None` if the connection ends before one begins.
    async fn read(from: &mut TcpStream, mut rest: BytesMut) -> io::Result<Option<Self>> {
        let end = loop {
            if let Some(at) = rest.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            if rest.len() > MAX_HEAD {
                return Err(io::Error::other("a head without an end"));
            }
            if from.read_buf(&mut rest).await? == 0 {
                return Ok(None);
            }
        };
        let head = rest.split_to(end + 4);
        let text = String::from_utf8_lossy(&head[..end]).into_owned();
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default().to_owned();
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        Ok(Some(Head {
            first,
            headers: lines.filter_map(header).collect(),
            rest,
        }))
    }

    fn get(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    fn content_length(&self) -> Option<u64> {
        self.get("content-length")?.parse().ok()
    }

    fn bytes(&self) -> Bytes {
        let headers = self.headers.iter();
        let headers: String = headers.map(|(n, v)| format!("{n}: {v}\r\n")).collect();
        Bytes::from(format!("{}\r\n{headers}\r\n", self.first))
    }
}

/// A request that is being answered, until this is dropped.
struct Busy<'a>(&'a AtomicU64);

impl<'a> Busy<'a> {
    fn new(shared: &'a Shared) -> Self {
        let at_once = shared.at_once.fetch_add(1, Ordering::Relaxed) + 1;
        let mut traffic = lock(&shared.traffic);
        traffic.most_at_once = traffic.most_at_once.max(at_once);
        Busy(&shared.at_once)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers the requests of one connection.
async fn serve(shared: Arc<Shared>, mut client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut rest = BytesMut::new();
    // Kept for the next request, as the client keeps its own.
    let mut upstream = None;
    while let Some(mut request) = Head::read(&mut client, rest).await? {
        rest = std::mem::take(&mut request.rest);
        let fault = shared.judge(&request);
        let _busy = Busy::new(&shared);
        tokio::time::sleep(read(&shared.line).latency).await;
        match &fault {
            Fault::HangUp => return Ok(()),
            Fault::Garbage => {
                shared
                    .take_body(&mut client, &request, &mut rest, None)
                    .await?;
                return client.write_all(b"what is HTTP?\r\n\r\n").await;
            }
            Fault::Reply {
                status,
                headers,
                body,
            } => {
                shared
                    .take_body(&mut client, &request, &mut rest, None)
                    .await?;
                let headers = headers.iter().map(|(n, v)| format!("{n}: {v}\r\n"));
                let head = format!(
                    "HTTP/1.1 {status} made up\r\n{}content-length: {}\r\n\r\n",
                    headers.collect::<String>(),
                    body.len()
                );
                client.write_all(head.as_bytes()).await?;
                if !request.first.starts_with("HEAD") {
                    client.write_all(body.as_bytes()).await?;
                }
                continue;
            }
            _ => {}
        }
        let mut server = match upstream.take() {
            Some(server) => server,
            None => TcpStream::connect(shared.upstream).await?,
        };
        server.set_nodelay(true)?;
        request.headers.retain(|(name, _)| name != "connection");
        // Replies with a part of an object say how long they are; others may end with the connection.
        let keeps = request.get("range").is_some();
        if !keeps {
            request.headers.push(("connection".into(), "close".into()));
        }
        server.write_all(&request.bytes()).await?;
        shared
            .take_body(&mut client, &request, &mut rest, Some(&mut server))
            .await?;
        let is_head = request.first.starts_with("HEAD");
        if !shared
            .answer(&mut client, &mut server, fault, is_head)
            .await?
        {
            return Ok(());
        }
        upstream = keeps.then_some(server);
    }
    Ok(())
}

impl Shared {
    fn judge(&self, head: &Head) -> Fault {
        let mut words = head.first.split(' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let request = Request {
            number: self.next_number.fetch_add(1, Ordering::Relaxed),
            method: word(),
            path: word(),
            headers: head.headers.clone(),
        };
        lock(&self.traffic).requests += 1;
        let fault = read(&self.plan)(&request);
        lock(&self.log).push(request);
        fault
    }

    /// Takes the body of a request from the client, and gives it to the server if there is one.
    async fn take_body(
        &self,
        client: &mut TcpStream,
        request: &Head,
        rest: &mut BytesMut,
        mut server: Option<&mut TcpStream>,
    ) -> io::Result<()> {
        let mut missing = request.content_length().unwrap_or(0);
        while missing > 0 {
            if rest.is_empty() {
                rest.reserve(CHUNK);
                if client.read_buf(rest).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            let n = (rest.len() as u64).min(missing);
            let chunk = rest.split_to(n as usize);
            missing -= n;
            lock(&self.traffic).request_bytes += n;
            self.carry(n).await;
            if let Some(server) = &mut server {
                server.write_all(&chunk).await?;
            }
        }
        Ok(())
    }

    /// Passes a reply on; says whether the connection can take another request.
    async fn answer(
        &self,
        client: &mut TcpStream,
        server: &mut TcpStream,
        fault: Fault,
        is_head: bool,
    ) -> io::Result<bool> {
        let Some(mut reply) = Head::read(server, BytesMut::new()).await? else {
            return Ok(false);
        };
        let length = if is_head {
            Some(0)
        } else {
            reply.content_length()
        };
        reply.headers.retain(|(name, _)| name != "connection");
        if length.is_none() {
            reply.headers.push(("connection".into(), "close".into()));
        }
        if fault == Fault::WrongEtag {
            reply.headers.retain(|(name, _)| name != "etag");
            reply.headers.push(("etag".into(), "\"another\"".into()));
        }
        let head = reply.bytes();
        let cuts = matches!(fault, Fault::Reset | Fault::Truncate | Fault::Stall);
        // Where it stops: in the middle of the body, or of the head if there is no body to speak of.
        let stop = cuts.then(|| length.unwrap_or(2) / 2);
        if stop == Some(0) {
            client.write_all(&head[..head.len() / 2]).await?;
            return self.stop(client, &fault).await;
        }
        client.write_all(&head).await?;
        let mut sent = 0;
        let mut rest = reply.rest;
        while length.is_none_or(|length| sent < length) {
            if rest.is_empty() {
                rest.reserve(CHUNK);
                if server.read_buf(&mut rest).await? == 0 {
                    break;
                }
            }
            let take = stop.map_or(rest.len() as u64, |stop| {
                (stop - sent).min(rest.len() as u64)
            });
            let chunk = rest.split_to(take as usize);
            sent += take;
            lock(&self.traffic).reply_bytes += take;
            self.carry(take).await;
            client.write_all(&chunk).await?;
            if stop == Some(sent) {
                return self.stop(client, &fault).await;
            }
        }
        Ok(length == Some(sent))
    }

    async fn stop(&self, client: &mut TcpStream, fault: &Fault) -> io::Result<bool> {
        match fault {
            Fault::Stall => {
                // Until the client hangs up, which is all it can do.
                let _ = tokio::time::timeout(STALL, client.read_u8()).await;
            }
            // A connection with unsent data that is dropped with this set ends with a reset and not with an end.
            Fault::Reset => client.set_zero_linger()?,
            _ => {}
        }
        Ok(false)
    }

    /// Waits as long as the line takes for so many bytes.
    async fn carry(&self, bytes: u64) {
        let Some(rate) = read(&self.line).bytes_per_s else {
            return;
        };
        let until = {
            let mut free_at = lock(&self.free_at);
            let start = (*free_at).max(Instant::now());
            *free_at = start + Duration::from_secs_f64(bytes as f64 / rate as f64);
            *free_at
        };
        // A shorter wait than the timer's grain would become that long; what is not waited for now is later.
        if until > Instant::now() + GRAIN {
            tokio::time::sleep_until(until.into()).await;
        }
    }
}
