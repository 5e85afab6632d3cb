//! Which process of how many this is, as the launcher's environment says.

use crate::error::{Error, Result};

/// This process among those of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct World {
    /// This process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// This process among those of its machine, from 0; picks the GPU.
    pub local_rank: usize,
    /// Processes on this machine, as far as the launcher tells; all of them where it does not.
    pub local_size: usize,
}

/// The variables of one launcher.
struct Convention {
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
    local_size: &'static str,
}

/// torchrun, OpenMPI's mpirun, and the mpirun of MPICH and Intel.
const LAUNCHERS: [Convention; 3] = [
    Convention {
        rank: "RANK",
        size: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_size: "LOCAL_WORLD_SIZE",
    },
    Convention {
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    Convention {
        rank: "PMI_RANK",
        size: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_size: "MPI_LOCALNRANKS",
    },
];

/// Reads one variable; what is set to nothing counts as not set.
type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

impl World {
    /// A run of one process.
    pub const SINGLE: World = World {
        rank: 0,
        size: 1,
        local_rank: 0,
        local_size: 1,
    };

    /// Reads this process's environment.
    ///
    /// torchrun's variables (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`), OpenMPI's and PMI's must agree where several are set.
    /// Slurm's (`SLURM_PROCID`, `SLURM_NTASKS`, `SLURM_LOCALID`) count only without them, since they describe what surrounds
    /// another launcher, or, for the place on the machine, where they give the same rank and size: `srun --mpi=pmi2` sets
    /// no others for it. Without any this is the only process.
    ///
    /// # Errors
    /// [`Error::Ranks`] naming the variables that are missing, no numbers, out of range, or contradict each other.
    pub fn from_env() -> Result<World> {
        World::from_lookup(&|name| std::env::var(name).ok())
    }

    fn from_lookup(lookup: Lookup) -> Result<World> {
        let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let mut found: Option<(&Convention, World)> = None;
        for convention in &LAUNCHERS {
            let Some(world) = convention.read(&set)? else {
                continue;
            };
            if let Some((other, before)) = found {
                if (before.rank, before.size) != (world.rank, world.size) {
                    return Err(Error::Ranks(format!(
                        "{}={} {}={} and {}={} {}={} contradict each other, expected the same rank and size",
                        other.rank,
                        before.rank,
                        other.size,
                        before.size,
                        convention.rank,
                        world.rank,
                        convention.size,
                        world.size,
                    )));
                }
            } else {
                found = Some((convention, world));
            }
        }
        match found {
            Some((_, world)) => Ok(world),
            None => Ok(slurm(&set)?.unwrap_or(World::SINGLE)),
        }
    }

    /// Checks that ranks are below their numbers.
    fn checked(self, names: &Convention) -> Result<World> {
        for (name, rank, of, size) in [
            (names.rank, self.rank, names.size, self.size),
            (names.local_rank, self.local_rank, names.size, self.size),
            (
                names.local_rank,
                self.local_rank,
                names.local_size,
                self.local_size,
            ),
        ] {
            if rank >= size {
                return Err(Error::Ranks(format!(
                    "{name} is {rank}, expected less than {of}, which is {size}"
                )));
            }
        }
        Ok(self)
    }
}

impl Convention {
    /// `None` if neither rank nor size is set.
    fn read(&self, set: Lookup) -> Result<Option<World>> {
        let (rank, size) = (number(set, self.rank)?, number(set, self.size)?);
        let (local_rank, local_size) =
            (number(set, self.local_rank)?, number(set, self.local_size)?);
        let (rank, size) = match (rank, size) {
            (Some(rank), Some(size)) => (rank, size),
            (None, None) => {
                // OpenMPI and PMI always set all of theirs; a lone LOCAL_RANK is somebody's mistake.
                return match local_rank {
                    Some(value) => Err(half_set(self.local_rank, value, self.rank)),
                    None => Ok(None),
                };
            }
            (Some(rank), None) => return Err(half_set(self.rank, rank, self.size)),
            (None, Some(size)) => return Err(half_set(self.size, size, self.rank)),
        };
        // Slurm's own mistakes are not this launcher's.
        let task = slurm(set).ok().flatten();
        let task = task.filter(|task| (task.rank, task.size) == (rank, size));
        let (slurm_rank, slurm_size) = task.map_or((0, size), |t| (t.local_rank, t.local_size));
        let world = World {
            rank,
            size,
            local_rank: local_rank.unwrap_or(slurm_rank),
            local_size: local_size.unwrap_or(slurm_size),
        };
        world.checked(self).map(Some)
    }
}

/// Slurm's view of this task.
///
/// `srun` sets the number of tasks of its step. A batch script has `SLURM_PROCID=0` without being a task: without
/// `SLURM_NTASKS` it is a run of one process; with it the ranks that it promises will be missed when they do not come.
fn slurm(set: Lookup) -> Result<Option<World>> {
    let names = Convention {
        rank: "SLURM_PROCID",
        size: "SLURM_NTASKS",
        local_rank: "SLURM_LOCALID",
        local_size: "SLURM_STEP_TASKS_PER_NODE",
    };
    let Some(rank) = number(set, names.rank)? else {
        return Ok(None); // `salloc` sets the number of tasks alone
    };
    let size = match number(set, "SLURM_STEP_NUM_TASKS")? {
        Some(size) => Some(size),
        None => number(set, names.size)?,
    };
    let size = match (size, rank) {
        (Some(size), _) => size,
        (None, 0) => return Ok(None),
        (None, rank) => return Err(half_set(names.rank, rank, names.size)),
    };
    let world = World {
        rank,
        size,
        local_rank: number(set, names.local_rank)?.unwrap_or(0),
        local_size: set(names.local_size)
            .and_then(|text| most_per_node(&text))
            .unwrap_or(size),
    };
    world.checked(&names).map(Some)
}

/// The largest count in Slurm's `2(x3),1`: two tasks on each of three nodes, one on the next.
fn most_per_node(text: &str) -> Option<usize> {
    let counts = text
        .split(',')
        .map(|part| part.split('(').next()?.parse().ok());
    counts.collect::<Option<Vec<usize>>>()?.into_iter().max()
}

fn number(set: Lookup, name: &str) -> Result<Option<usize>> {
    let Some(text) = set(name) else {
        return Ok(None);
    };
    text.trim().parse().map(Some).map_err(|_| {
        Error::Ranks(format!(
            "{name} is {text:?}, expected a number of at least 0"
        ))
    })
}

fn half_set(name: &str, value: usize, missing: &str) -> Error {
    Error::Ranks(format!(
        "{name} is {value} and {missing} is not set, expected both or neither"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(variables: &[(&str, &str)]) -> Result<World> {
        World::from_lookup(&|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn of(rank: usize, size: usize, local_rank: usize, local_size: usize) -> World {
        World {
            rank,
            size,
            local_rank,
            local_size,
        }
    }

    const TORCHRUN: [(&str, &str); 4] = [
        ("RANK", "5"),
        ("WORLD_SIZE", "8"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "4"),
    ];

    #[test]
    fn every_launcher_is_understood() {
        assert_eq!(world(&[]).unwrap(), World::SINGLE);
        assert_eq!(world(&TORCHRUN).unwrap(), of(5, 8, 1, 4));
        assert_eq!(
            world(&[("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "")]).unwrap(),
            of(1, 2, 0, 2)
        );
        let openmpi = [
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        assert_eq!(world(&openmpi).unwrap(), of(3, 4, 1, 2));
        let pmi = [
            ("PMI_RANK", "1"),
            ("PMI_SIZE", "2"),
            ("MPI_LOCALRANKID", "1"),
        ];
        assert_eq!(world(&pmi).unwrap(), of(1, 2, 1, 2));
        let slurm = [
            ("SLURM_PROCID", "6"),
            ("SLURM_NTASKS", "7"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_STEP_TASKS_PER_NODE", "2(x3),1"),
        ];
        assert_eq!(world(&slurm).unwrap(), of(6, 7, 0, 2));
    }

    #[test]
    fn a_batch_script_or_an_allocation_is_no_task() {
        assert_eq!(world(&[("SLURM_NTASKS", "8")]).unwrap(), World::SINGLE);
        assert_eq!(world(&[("SLURM_PROCID", "0")]).unwrap(), World::SINGLE);
        let step = [
            ("SLURM_PROCID", "1"),
            ("SLURM_NTASKS", "8"),
            ("SLURM_STEP_NUM_TASKS", "2"),
        ];
        assert_eq!(world(&step).unwrap(), of(1, 2, 0, 2));
    }

    #[test]
    fn a_launcher_inside_of_slurm_speaks_for_itself() {
        let mut variables = TORCHRUN.to_vec();
        variables.extend([("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2")]);
        assert_eq!(world(&variables).unwrap(), of(5, 8, 1, 4));
    }

    #[test]
    fn slurm_fills_in_what_pmi2_leaves_out_of_the_same_tasks() {
        let pmi2 = [("PMI_RANK", "5"), ("PMI_SIZE", "8")];
        let with_slurm = |rank, size| {
            let slurm = [
                ("SLURM_PROCID", rank),
                ("SLURM_NTASKS", size),
                ("SLURM_LOCALID", "1"),
                ("SLURM_STEP_TASKS_PER_NODE", "4(x2)"),
            ];
            world(&[&pmi2[..], &slurm].concat()).unwrap()
        };
        assert_eq!(with_slurm("5", "8"), of(5, 8, 1, 4));
        assert_eq!(with_slurm("1", "2"), of(5, 8, 0, 8)); // around another launcher
    }

    #[test]
    fn half_set_wrong_and_contradicting_variables_are_named() {
        /// Variables, and what the message says.
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
        let cases: [Case; 9] = [
            (&[("RANK", "1")], &["RANK is 1", "WORLD_SIZE is not set"]),
            (&[("WORLD_SIZE", "2")], &["WORLD_SIZE is 2", "RANK is not"]),
            (&[("LOCAL_RANK", "0")], &["LOCAL_RANK is 0", "RANK is not"]),
            (
                &[("PMI_RANK", "0")],
                &["PMI_RANK is 0", "PMI_SIZE is not set"],
            ),
            (
                &[("SLURM_PROCID", "1")],
                &["SLURM_PROCID is 1", "SLURM_NTASKS is not set"],
            ),
            (
                &[("RANK", "one"), ("WORLD_SIZE", "2")],
                &["RANK is \"one\"", "number"],
            ),
            (
                &[("RANK", "2"), ("WORLD_SIZE", "2")],
                &["RANK is 2", "WORLD_SIZE, which is 2"],
            ),
            (
                &[("RANK", "0"), ("WORLD_SIZE", "0")],
                &["RANK is 0", "WORLD_SIZE, which is 0"],
            ),
            (
                &[
                    ("RANK", "0"),
                    ("WORLD_SIZE", "2"),
                    ("OMPI_COMM_WORLD_RANK", "1"),
                    ("OMPI_COMM_WORLD_SIZE", "2"),
                ],
                &["RANK=0 WORLD_SIZE=2", "OMPI_COMM_WORLD_RANK=1"],
            ),
        ];
        for (variables, parts) in cases {
            let message = world(variables).unwrap_err().to_string();
            for part in parts {
                assert!(message.contains(part), "{variables:?}: {message}");
            }
        }
        let agreeing = [
            ("RANK", "1"),
            ("WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
        ];
        assert_eq!(world(&agreeing).unwrap().rank, 1);
    }
}
