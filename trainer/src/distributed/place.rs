//! Where a process stands among the ranks of a training, as whoever launched it says, and whether all ranks are about to
//! do the same.

use std::rc::Rc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use simclr_ground::error::{Context, Error, Result};
use simclr_ground::files::digest;
use simclr_ground::position::Share;
use tch::Device;

use super::{RankInfo, Rendezvous, World};

/// The library that ranks on GPUs need, where the loader looks for libraries.
const NCCL: &str = "libsimclr_nccl.so";

/// The names that one launcher gives to a rank's place.
struct Names {
    launcher: &'static str,
    rank: &'static str,
    world: &'static str,
    local_rank: &'static str,
    local_world: &'static str,
}

const TORCH: Names = Names {
    launcher: "torchrun",
    rank: "RANK",
    world: "WORLD_SIZE",
    local_rank: "LOCAL_RANK",
    local_world: "LOCAL_WORLD_SIZE",
};

const OTHERS: [Names; 3] = [
    // Of a job step: a batch script has SLURM_PROCID too, and is no rank.
    Names {
        launcher: "Slurm",
        rank: "SLURM_PROCID",
        world: "SLURM_STEP_NUM_TASKS",
        local_rank: "SLURM_LOCALID",
        local_world: "SLURM_STEP_TASKS_PER_NODE",
    },
    Names {
        launcher: "Open MPI",
        rank: "OMPI_COMM_WORLD_RANK",
        world: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_world: "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    Names {
        launcher: "MPICH",
        rank: "PMI_RANK",
        world: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_world: "MPI_LOCALNRANKS",
    },
];

/// This process's place, from the variables `get` knows; `None` if it was started alone.
///
/// # Errors
/// If some of a launcher's variables are there and others are not, or one makes no sense.
pub fn place(get: impl Fn(&str) -> Option<String>) -> Result<Option<RankInfo>> {
    let names = match () {
        () if get(TORCH.rank).is_some() || get(TORCH.world).is_some() => &TORCH,
        // Slurm's `srun` tells each step its number; other launchers give ranks to those they start, and to no one else.
        () => match OTHERS.iter().find(|names| get(names.rank).is_some() && get(names.world).is_some()) {
            Some(names) if names.launcher != "Slurm" || get("SLURM_STEP_ID").is_some() => names,
            _ => return Ok(None),
        },
    };
    let missing = |name: &str| {
        let all = [TORCH.rank, TORCH.world, "MASTER_ADDR", "MASTER_PORT"].join(", ");
        Error::input(format!("{name} is not set; {} must set {all}", names.launcher))
    };
    let number = |name: &str| {
        let text = get(name).ok_or_else(|| missing(name))?;
        // Slurm writes `2(x3),1`: take the first machine's.
        let digits: &str = text.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse::<u32>().map_err(|_| Error::input(format!("invalid value {text:?} for {name}: expected a number")))
    };
    let (rank, world) = (number(names.rank)?, number(names.world)?);
    if rank >= world {
        let (a, b) = (names.rank, names.world);
        return Err(Error::input(format!("invalid value {rank} for {a}: expected a rank below {b} ({world})")));
    }
    // Kubernetes' PyTorchJob gives each process a machine of its own, and no place there.
    let local_rank = if get(names.local_rank).is_some() { number(names.local_rank)? } else { 0 };
    let local_world = number(names.local_world).unwrap_or(local_rank + 1);
    let job = get("SLURM_JOB_ID").filter(|_| names.launcher == "Slurm").and_then(|job| job.parse::<u64>().ok());
    let first_machine = get("SLURM_STEP_NODELIST").or_else(|| get("SLURM_JOB_NODELIST"));
    let host = match get("MASTER_ADDR") {
        Some(host) => host,
        None if job.is_some() => first_of(&first_machine.ok_or_else(|| missing("SLURM_JOB_NODELIST"))?),
        None if local_world == world => "127.0.0.1".into(),
        None => return Err(missing("MASTER_ADDR")),
    };
    let port = match (get("MASTER_PORT"), job) {
        (Some(port), _) => port.parse().map_err(|_| {
            Error::input(format!("invalid value {port:?} for MASTER_PORT: expected a port between 1 and 65535"))
        })?,
        // Jobs on one machine get ports of their own.
        (None, Some(job)) => 15_000 + (job % 15_000) as u16,
        (None, None) => return Err(missing("MASTER_PORT")),
    };
    let launcher_keeps_store = get("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True");
    let restarts = get("TORCHELASTIC_RESTART_COUNT").and_then(|count| count.parse().ok()).unwrap_or(0);
    let told_by = format!("{} says so: {} = {rank}, {} = {world}", names.launcher, names.rank, names.world);
    Ok(Some(RankInfo { rank, world, local_rank, local_world, host, port, launcher_keeps_store, restarts, told_by }))
}

/// The first machine of Slurm's list: `gpu[03-07,9],login` begins with `gpu03`.
fn first_of(list: &str) -> String {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (name, rest) = list.split_at(end);
    let number: String = rest.strip_prefix('[').unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
    format!("{name}{number}")
}

/// The share of each batch that is a place's.
pub fn share(place: Option<&RankInfo>) -> Share {
    place.map_or(Share::ALL, |place| Share { rank: place.rank, world: place.world })
}

/// What a rank is about to do; equal on all of them.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Intent<C> {
    world: u32,
    program: String,
    plan: String,
    config: C,
}

/// Joins the other ranks, once it is certain that all are about to do the same: the same program, plan and configuration,
/// of which `differences` lists the keys that must agree and do not.
///
/// # Errors
/// If they are not: names the ranks and what differs. If one does not come.
pub fn join<C: Clone + Serialize + DeserializeOwned>(
    rendezvous: &Rc<Rendezvous>,
    config: &C,
    plan_digest: &str,
    device: Device,
    differences: impl Fn(&C, &C) -> Vec<String>,
) -> Result<Rc<World>> {
    let program = std::env::current_exe().and_then(std::fs::read).context("cannot read this program")?;
    let world = rendezvous.place().world;
    let own = Intent { world, program: digest(&program), plan: plan_digest.to_owned(), config: config.clone() };
    let text = serde_json::to_string(&own).expect("an intent is plain data");
    let all = rendezvous.exchange("intent", &text)?;
    let all: Vec<Option<Intent<C>>> = all.iter().map(|text| serde_json::from_str(text).ok()).collect();
    let found = disagreements(&all, differences);
    if !found.is_empty() {
        return Err(Error::input(format!("ranks disagree: {}", found.join("; "))));
    }
    Ok(World::join(rendezvous.clone(), device, NCCL.as_ref())?)
}

/// In what ranks differ from rank 0, and which; what is unreadable comes from another program.
fn disagreements<C>(all: &[Option<Intent<C>>], differences: impl Fn(&C, &C) -> Vec<String>) -> Vec<String> {
    let short = |digest: &str| digest[..16].to_owned();
    let mut found: Vec<(String, Vec<usize>)> = Vec::new();
    for (rank, intent) in all.iter().enumerate().skip(1) {
        let differs = match (&all[0], intent) {
            (Some(first), Some(other)) => {
                let programs = (first.program != other.program)
                    .then(|| format!("program {} vs rank 0's {}", short(&other.program), short(&first.program)));
                let worlds =
                    (first.world != other.world).then(|| format!("world size {} vs {}", other.world, first.world));
                let mut keys = differences(&other.config, &first.config);
                if keys.is_empty() && first.plan != other.plan {
                    keys.push(format!("other data: plan {} vs rank 0's {}", short(&other.plan), short(&first.plan)));
                }
                programs.into_iter().chain(worlds).chain(keys).collect()
            }
            (None, None) => vec![],
            _ => vec!["another version of this program".to_owned()],
        };
        for what in differs {
            match found.iter_mut().find(|(known, _)| *known == what) {
                Some((_, ranks)) => ranks.push(rank),
                None => found.push((what, vec![rank])),
            }
        }
    }
    let list = |ranks: &[usize]| ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let told = |(what, ranks): (String, Vec<usize>)| match ranks.len() {
        1 => format!("rank {} has {what}", list(&ranks)),
        _ => format!("ranks {} have {what}", list(&ranks)),
    };
    found.into_iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<RankInfo>> {
        place(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn launchers_say_where_a_process_stands() {
        assert_eq!(of(&[("PATH", "/bin")]).unwrap(), None);
        let torchrun = [
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("MASTER_ADDR", "10.0.0.1"),
            ("MASTER_PORT", "29500"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
        ];
        let wanted = RankInfo {
            rank: 5,
            world: 8,
            local_rank: 1,
            local_world: 4,
            host: "10.0.0.1".into(),
            port: 29500,
            launcher_keeps_store: true,
            restarts: 2,
            told_by: "torchrun says so: RANK = 5, WORLD_SIZE = 8".into(),
        };
        assert_eq!(of(&torchrun).unwrap(), Some(wanted.clone()));
        let slurm = [
            ("SLURM_STEP_ID", "0"),
            ("SLURM_JOB_ID", "100042"),
            ("SLURM_PROCID", "5"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_TASKS_PER_NODE", "4(x2)"),
            ("SLURM_STEP_NODELIST", "gpu[03-04]"),
        ];
        let placed = of(&slurm).unwrap().unwrap();
        assert_eq!((placed.host.as_str(), placed.port), ("gpu03", 25_042));
        let own = RankInfo { launcher_keeps_store: false, restarts: 0, ..wanted.clone() };
        assert_eq!(placed.told_by, "Slurm says so: SLURM_PROCID = 5, SLURM_STEP_NUM_TASKS = 8");
        assert_eq!(RankInfo { host: own.host.clone(), port: own.port, told_by: own.told_by.clone(), ..placed }, own);
        assert_eq!(of(&slurm[1..]).unwrap(), None, "a batch script is no rank");
        let job = [("RANK", "3"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "r50-master-0"), ("MASTER_PORT", "23456")];
        let placed = of(&job).unwrap().unwrap();
        assert_eq!((placed.rank, placed.local_rank, placed.local_world), (3, 0, 1));
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("MASTER_PORT", "29501"),
        ];
        assert_eq!(of(&mpi).unwrap().unwrap().host, "127.0.0.1");
        assert_eq!(first_of("a,b"), "a");
        assert_eq!(first_of("login"), "login");
    }

    #[test]
    fn variables_that_are_missing_or_wrong_are_named() {
        let fails = |variables: &[(&str, &str)], wanted: &str| {
            let message = of(variables).unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        };
        fails(&[("RANK", "0")], "WORLD_SIZE is not set");
        fails(&[("WORLD_SIZE", "2")], "RANK is not set");
        fails(&[("RANK", "2"), ("WORLD_SIZE", "2")], "invalid value 2 for RANK: expected a rank below WORLD_SIZE (2)");
        fails(&[("RANK", "x"), ("WORLD_SIZE", "2")], "invalid value \"x\" for RANK");
        let two = [("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("MASTER_PORT", "1"), ("MASTER_ADDR", "h")];
        fails(&[&two[..2], &[("LOCAL_RANK", "")]].concat(), "invalid value \"\" for LOCAL_RANK");
        fails(&two[..4], "MASTER_ADDR is not set");
        fails(&[&two[..3], &two[4..]].concat(), "MASTER_PORT is not set");
        fails(
            &[&two[..3], &[("MASTER_ADDR", "h"), ("MASTER_PORT", "99999")]].concat(),
            "invalid value \"99999\" for MASTER_PORT",
        );
    }

    #[test]
    fn disagreements_name_ranks_and_keys() {
        let digest = "0123456789abcdef0123456789abcdef";
        let intent = |batch: u32, program: &str| {
            Some(Intent { world: 4, program: program.into(), plan: digest.into(), config: batch })
        };
        let keys = |one: &u32, other: &u32| match one == other {
            true => vec![],
            false => vec![format!("batch.size: {one} vs {other}")],
        };
        let same = || intent(64, digest);
        assert!(disagreements(&[same(), same()], keys).is_empty());
        let other = || intent(32, digest);
        let found = disagreements(&[same(), other(), same(), other()], keys).join("; ");
        assert!(found.starts_with("ranks 1, 3 have batch.size: 32 vs 64"), "{found}");
        let found = disagreements(&[same(), intent(64, &digest.replace('0', "f")), None], keys).join("; ");
        assert!(found.contains("rank 1 has program f123") && found.contains("rank 2 has another version"), "{found}");
    }
}
