//! The S3 server.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::S3;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

use crate::reader::Reader;

/// The one bucket there is.
pub const BUCKET: &str = "sets";
/// Whose signature counts.
pub const ACCESS_KEY: &str = "AKIDEXAMPLE";
/// The secret of that signature.
pub const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
/// The region to sign for.
pub const REGION: &str = "eu-test-1";

/// An S3 server with one bucket, [`BUCKET`].
pub struct Server {
    address: SocketAddr,
    folder: PathBuf,
    // In this order: no task writes into a folder that is being removed.
    _runtime: Runtime,
    root: TempDir,
}

impl Server {
    /// Starts a server that wants requests signed with [`ACCESS_KEY`] and [`SECRET_KEY`].
    ///
    /// # Errors
    /// The operating system's error.
    pub fn start() -> io::Result<Self> {
        Self::start_with(full(true))
    }

    /// Starts a server that anybody may use.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn start_public() -> io::Result<Self> {
        Self::start_with(full(false))
    }

    /// Starts a server as [`Server::start`] does, which only answers reads of objects: what a request takes depends on its
    /// range alone, where the other server hashes the whole object for each. So this is the one to take times with.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn start_reader() -> io::Result<Self> {
        Self::start_with(|root| Ok(service(Reader::new(root), true)))
    }

    fn start_with(service: impl FnOnce(&Path) -> io::Result<S3Service>) -> io::Result<Self> {
        let root = TempDir::new()?;
        let folder = root.path().join(BUCKET);
        std::fs::create_dir(&folder)?;
        let service = service(root.path())?;
        let runtime = runtime()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        runtime.spawn(serve(listener, service));
        Ok(Server {
            address,
            folder,
            _runtime: runtime,
            root,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as an address of a store.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The folder in which the objects of the bucket are files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The parts it keeps, in files of their own, of objects that nobody has put together or thrown away.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn unfinished(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.root.path())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.contains("upload_id") {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// The variables with which a program finds this server and may use it.
    pub fn environment(&self) -> Vec<(String, String)> {
        environment(&self.endpoint())
    }
}

/// A service that does all that S3 does, over the folders in a folder.
fn full(is_signed: bool) -> impl FnOnce(&Path) -> io::Result<S3Service> {
    move |root| {
        let files = FileSystem::new(root).map_err(|e| io::Error::other(format!("{e:?}")))?;
        Ok(service(files, is_signed))
    }
}

fn service(backend: impl S3, is_signed: bool) -> S3Service {
    let mut service = S3ServiceBuilder::new(backend);
    if is_signed {
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    }
    service.build()
}

/// The variables with which a program finds a server, or a proxy before it, and may use it. Nothing else of the machine
/// it runs on plays a part.
pub fn environment(endpoint: &str) -> Vec<(String, String)> {
    [
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_REGION", REGION),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_CONFIG_FILE", "/nonexistent"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// A runtime of its own, so that whoever is tested cannot starve it by blocking theirs.
pub(crate) fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("bucket")
        .enable_all()
        .build()
}

async fn serve(listener: TcpListener, service: S3Service) {
    while let Ok((socket, _)) = listener.accept().await {
        // Without this a small reply waits 40 ms for the acknowledgement of its own head.
        if socket.set_nodelay(true).is_err() {
            continue;
        }
        let service = service.clone();
        tokio::spawn(async move {
            let connection = auto::Builder::new(TokioExecutor::new());
            // A client that goes away is its own business.
            let _ = connection
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}
