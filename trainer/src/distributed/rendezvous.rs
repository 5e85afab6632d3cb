//! How the ranks get NCCL's id from rank 0 where no MPI carries it: over TCP, at torchrun's `MASTER_ADDR` and
//! `MASTER_PORT`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::World;
use crate::error::{Error, Result};

/// Bytes of NCCL's id.
pub(super) const ID_BYTES: usize = 128;

/// What a rank sends first, before its rank and the number of ranks, so that a stranger gets no id.
const GREETING: [u8; 8] = *b"pairquet";

/// Between two tries to reach rank 0, or to find a rank at the door.
const NAP: Duration = Duration::from_millis(20);

/// How long a rank that is connected may take for its greeting or the id.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where rank 0 listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meeting {
    pub host: String,
    pub port: u16,
}

impl Meeting {
    /// `None` if the environment names no place.
    ///
    /// # Errors
    /// [`Error::Ranks`] for an address without a port, a port without an address, or what is no port.
    #[cfg(feature = "nccl")]
    pub fn from_env() -> Result<Option<Meeting>> {
        Meeting::from_lookup(&|name| std::env::var(name).ok())
    }

    /// `lookup` reads one variable; what is set to nothing counts as not set.
    fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Option<Meeting>> {
        let set = |name| lookup(name).filter(|value: &String| !value.is_empty());
        let (host, port) = match (set("MASTER_ADDR"), set("MASTER_PORT")) {
            (Some(host), Some(port)) => (host, port),
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(half("MASTER_ADDR", "MASTER_PORT")),
            (None, Some(_)) => return Err(half("MASTER_PORT", "MASTER_ADDR")),
        };
        // torchrun's agent may listen on the port itself; the next one is ours then.
        let taken = set("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
        let parsed = port.parse::<u16>().ok();
        let parsed = parsed.and_then(|port| port.checked_add(u16::from(taken)));
        let port = parsed.filter(|port| *port > 0).ok_or_else(|| {
            Error::Ranks(format!(
                "MASTER_PORT is {port:?}, expected a port from 1 to {}",
                u16::MAX - u16::from(taken)
            ))
        })?;
        Ok(Some(Meeting { host, port }))
    }
}

fn half(name: &str, missing: &str) -> Error {
    Error::Ranks(format!(
        "{name} is set and {missing} is not, expected both or neither"
    ))
}

/// Hands rank 0's `id` to every rank, and returns it; the others bring `None`.
///
/// # Errors
/// [`Error::Ranks`] naming the ranks that did not come, or the place where rank 0 was not found, in time.
pub(super) fn share(
    world: World,
    at: &Meeting,
    id: Option<[u8; ID_BYTES]>,
    patience: Duration,
) -> Result<[u8; ID_BYTES]> {
    let deadline = Instant::now() + patience;
    match id {
        Some(id) => hand_out(world, at, &id, deadline).map(|()| id),
        None => fetch(world, at, deadline),
    }
}

fn hand_out(world: World, at: &Meeting, id: &[u8; ID_BYTES], deadline: Instant) -> Result<()> {
    let any = [
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, at.port)),
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, at.port)),
    ];
    let listener = TcpListener::bind(&any[..]).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    let listener = listener.map_err(|error| {
        Error::Ranks(format!(
            "rank 0 cannot listen on MASTER_PORT {}: {error}",
            at.port
        ))
    })?;
    let mut waiting: Vec<usize> = (1..world.size).collect();
    while !waiting.is_empty() {
        // A stranger, or a rank whose connection broke, is sent away; a rank comes again.
        let served = listener.accept().ok().and_then(|(mut stream, _)| {
            let rank = greeted(&mut stream, world).ok()?;
            stream.write_all(id).ok()?;
            Some(rank)
        });
        match served {
            Some(rank) => waiting.retain(|other| *other != rank),
            None if Instant::now() > deadline => {
                return Err(Error::Ranks(format!(
                    "rank 0 waited in vain at port {} for ranks {waiting:?} of {}",
                    at.port, world.size
                )));
            }
            None => sleep(NAP),
        }
    }
    Ok(())
}

/// The rank that greets.
fn greeted(stream: &mut TcpStream, world: World) -> std::io::Result<usize> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut greeting = [[0; 8]; 3];
    stream.read_exact(greeting.as_flattened_mut())?;
    let [word, rank, size] = greeting;
    let size = u64::from_le_bytes(size) as usize;
    if word != GREETING || size != world.size {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    Ok(u64::from_le_bytes(rank) as usize)
}

fn fetch(world: World, at: &Meeting, deadline: Instant) -> Result<[u8; ID_BYTES]> {
    let ask = || -> std::io::Result<[u8; ID_BYTES]> {
        let mut stream = TcpStream::connect((at.host.as_str(), at.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let numbers = [world.rank as u64, world.size as u64].map(u64::to_le_bytes);
        stream.write_all([GREETING, numbers[0], numbers[1]].as_flattened())?;
        let mut id = [0; ID_BYTES];
        stream.read_exact(&mut id)?;
        Ok(id)
    };
    loop {
        match ask() {
            Ok(id) => return Ok(id),
            Err(error) if Instant::now() > deadline => {
                return Err(Error::Ranks(format!(
                    "rank {} found no rank 0 of {} at {}:{}: {error}",
                    world.rank, world.size, at.host, at.port
                )));
            }
            Err(_) => sleep(NAP), // it may not listen yet
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(rank: usize, size: usize) -> World {
        World {
            rank,
            size,
            local_rank: rank,
            local_size: size,
        }
    }

    /// A port that was free a moment ago.
    fn meeting() -> Meeting {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Meeting {
            host: "127.0.0.1".to_owned(),
            port: listener.local_addr().unwrap().port(),
        }
    }

    #[test]
    fn every_rank_gets_the_id_and_a_stranger_does_not() {
        let (at, id) = (meeting(), std::array::from_fn(|i| i as u8));
        let long = Duration::from_secs(30);
        std::thread::scope(|scope| {
            let (at, share) = (&at, |rank, id| share(world(rank, 3), &at, id, long));
            let second = scope.spawn(move || share(2, None));
            let first = scope.spawn(move || share(0, Some(id)));
            let stranger = scope.spawn(move || {
                while TcpStream::connect(("127.0.0.1", at.port)).is_err() {
                    sleep(NAP);
                }
                fetch(world(1, 2), at, Instant::now()).unwrap_err()
            });
            stranger.join().unwrap();
            assert!(share(1, None).unwrap() == id);
            assert!(second.join().unwrap().unwrap() == id);
            first.join().unwrap().unwrap();
        });
    }

    #[test]
    fn ranks_that_do_not_come_are_named() {
        let (at, short) = (meeting(), Duration::from_millis(50));
        let message = share(world(0, 3), &at, Some([7; ID_BYTES]), short).unwrap_err();
        assert!(
            message.to_string().contains("ranks [1, 2] of 3"),
            "{message}"
        );
        let message = share(world(1, 3), &at, None, short).unwrap_err();
        let place = format!("rank 1 found no rank 0 of 3 at 127.0.0.1:{}", at.port);
        assert!(message.to_string().contains(&place), "{message}");
    }

    #[test]
    fn the_place_comes_from_the_environment() {
        let at = |address: &str, port: &str, agent: &str| {
            Meeting::from_lookup(&|name| {
                let value = match name {
                    "MASTER_ADDR" => address,
                    "MASTER_PORT" => port,
                    _ => agent,
                };
                Some(value.to_owned())
            })
        };
        let host = "node7".to_owned();
        let place = |port| {
            let host = host.clone();
            Some(Meeting { host, port })
        };
        assert_eq!(at("node7", "29500", "").unwrap(), place(29500));
        assert_eq!(at("node7", "29500", "True").unwrap(), place(29501));
        assert_eq!(at("", "", "").unwrap(), None);
        for (wrong, part) in [
            (at("node7", "", ""), "MASTER_PORT is not"),
            (at("", "29500", ""), "MASTER_ADDR is not"),
            (at("node7", "65535", "True"), "\"65535\""),
            (at("node7", "0", ""), "\"0\""),
            (at("node7", "http", ""), "\"http\""),
        ] {
            let message = wrong.unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
