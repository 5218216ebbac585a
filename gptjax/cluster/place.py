"""Which process of a run this is: from the flags, or from the variables that a launcher sets."""

import os
import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from jax._src.clusters import ClusterEnv  # private: JAX's own detection, before it connects

from configs.errors import UserError

_PORTS = range(61440, 65536)  # those that JAX chooses from, too


class Place(NamedTuple):
    """A process among those of a run."""

    process: int
    processes: int
    coordinator: str  # HOST:PORT of process 0
    local_devices: list[int] | None  # of the visible GPUs; []: all; None: JAX_LOCAL_DEVICE_IDS

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port of the coordinator."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


class _Launcher(NamedTuple):
    """What starts processes, and the environment variables in which it numbers them."""

    name: str
    started: str  # is set in the processes that it starts
    processes: str = ""  # how many there are
    process: str = ""  # which one this is
    local_process: str = ""  # which one of those on this host
    on_hosts: str = ""  # how many on each host, as "8(x2),4"; or on this one
    host: str = ""  # which host this is; "" where `on_hosts` is of this one
    known_to_jax: str = ""  # is set where JAX finds the coordinator

    def number(self, name: str, env: Mapping[str, str]) -> int | None:
        return int(env[name]) if name in env else None

    def on_this_host(self, env: Mapping[str, str]) -> int:
        """Returns the number of processes on this host; 1 where the launcher does not say it."""
        counts: list[int] = []
        for count, hosts in re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get(self.on_hosts, "1")):
            counts += [int(count)] * int(hosts or 1)
        return counts[self.number(self.host, env) or 0]


_LAUNCHERS = (  # mpirun and srun can start each other: the first one counts, as in JAX
    _Launcher(
        "mpirun (Open MPI)",
        started="OMPI_COMM_WORLD_RANK",
        processes="OMPI_COMM_WORLD_SIZE",
        process="OMPI_COMM_WORLD_RANK",
        local_process="OMPI_COMM_WORLD_LOCAL_RANK",
        on_hosts="OMPI_COMM_WORLD_LOCAL_SIZE",
        known_to_jax="OMPI_MCA_orte_hnp_uri",  # not set by Open MPI 5
    ),
    _Launcher(
        "srun (SLURM)",
        started="SLURM_STEP_NODELIST",  # not set in the script of sbatch, as the others are
        processes="SLURM_NTASKS",
        process="SLURM_PROCID",
        local_process="SLURM_LOCALID",
        on_hosts="SLURM_STEP_TASKS_PER_NODE",
        host="SLURM_NODEID",
        known_to_jax="SLURM_STEP_NODELIST",
    ),
    _Launcher(
        "mpiexec (MPICH, Intel MPI)",
        started="PMI_RANK",
        processes="PMI_SIZE",
        process="PMI_RANK",
        local_process="MPI_LOCALRANKID",
        on_hosts="MPI_LOCALNRANKS",
    ),
    _Launcher("a launcher with PMIx", started="PMIX_RANK", process="PMIX_RANK"),
    _Launcher(
        "a Kubernetes Indexed Job",
        started="JOB_COMPLETION_INDEX",
        process="JOB_COMPLETION_INDEX",
        known_to_jax="KUBERNETES_SERVICE_HOST",
    ),
)


def find_place(
    coordinator: str, processes: int | None, process: int | None, join_seconds: int
) -> Place | None:
    """Returns the place of this process; None for a run of one process.

    `coordinator` ("" or None where it is not given), `processes` and `process` are the flags; what
    is not given is taken from the launcher's variables, or from JAX, which finds the
    coordinator under SLURM and Open MPI 4, and both in a Kubernetes Job with its Python package.

    Raises UserError, with what to type, if one of several cannot be told from the others.
    """
    env = os.environ
    given = bool(coordinator) or processes is not None or process is not None
    if processes == 1 and not process:
        return None
    launcher = next((each for each in _LAUNCHERS if each.started in env), None)
    if launcher is None and not given:
        _refuse_slurm_without_srun(env)
        return None
    address: str | None = coordinator or None
    if launcher is not None:
        if processes is None:
            processes = launcher.number(launcher.processes, env)
        if process is None:
            process = launcher.number(launcher.process, env)
        if processes == 1:
            return None
        address = address or _same_host(launcher, processes, env)
        if None in (address, processes) and launcher.known_to_jax in env:
            address, processes, process = _ask_jax(address, processes, process, join_seconds)
    if address is None or processes is None or process is None:
        raise UserError(_what_to_type(launcher, address, processes, process))
    if not re.fullmatch(r"(\[[^][]+\]|[^][:]+):[1-9]\d{0,4}", address):
        raise UserError(f"--coordinator={address} must be HOST:PORT, such as node1:61440.")
    if not process < processes:
        raise UserError(
            f"--process={process} must be below --processes={processes}: the first is process 0."
        )
    return Place(process, processes, address, _local_devices(launcher, env))


def _refuse_slurm_without_srun(env: Mapping[str, str]) -> None:
    n_tasks = int(env.get("SLURM_NTASKS", 1))
    if n_tasks > 1:
        raise UserError(
            f"SLURM has reserved {n_tasks} tasks (SLURM_NTASKS), and this process was not started "
            f"by srun: it would train alone. Write srun before the command: srun gptjax train "
            f"...; or, to train alone, add --processes=1."
        )


def _same_host(launcher: _Launcher, processes: int | None, env: Mapping[str, str]) -> str | None:
    """Returns the coordinator of processes that are all on this host, where JAX finds none."""
    if launcher.known_to_jax in env or launcher.on_hosts not in env:
        return None
    if launcher.on_this_host(env) != processes:
        return None
    job = env.get("PMIX_NAMESPACE", "")  # of Open MPI: differs from one mpirun to another
    return f"localhost:{_PORTS[zlib.crc32(job.encode()) % len(_PORTS)]}"


def _ask_jax(
    address: str | None, processes: int | None, process: int | None, seconds: int
) -> tuple[str | None, int | None, int | None]:
    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(
            address, processes, process, [], None, seconds
        )
    except Exception as error:  # of Kubernetes: no rights to read the Job, no headless service
        raise UserError(
            f"JAX cannot find the other processes: {error}\nOr give the three flags "
            f"--coordinator=HOST:PORT --processes=N --process=I, which need nothing of it."
        ) from error
    return found[:3]


def _what_to_type(
    launcher: _Launcher | None, address: str | None, processes: int | None, process: int | None
) -> str:
    values = {"--coordinator=HOST:PORT": address, "--processes=N": processes}
    values |= {"--process=I": process}
    missing = " ".join(flag for flag, value in values.items() if value is None)
    reason = (
        "--coordinator, --processes and --process belong together"
        if launcher is None
        else f"this is one of several processes of {launcher.name}, which does not say it all"
    )
    return (
        f"{reason}: add {missing} (HOST: where process 0 runs; PORT: a free one there; N: how many "
        f"processes there are; I: which one this is, from 0). To train alone, give only "
        f"--processes=1."
    )


def _local_devices(launcher: _Launcher | None, env: Mapping[str, str]) -> list[int] | None:
    """Returns the GPUs of this process: all that it sees, or one each where all see all of them."""
    if "JAX_LOCAL_DEVICE_IDS" in env:
        return None
    if launcher is None or launcher.local_process not in env:
        return []
    n_here = launcher.on_this_host(env)
    visible = env.get("CUDA_VISIBLE_DEVICES")
    is_bound = visible is not None and len(visible.split(",")) < n_here  # each sees its own only
    return [] if n_here == 1 or is_bound else [int(env[launcher.local_process])]
