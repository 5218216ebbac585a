"""Which process of a run this is, under the variables that launchers set, and what is refused."""

import os
import sys

import pytest

from configs.errors import UserError
from gptjax.cluster.place import Place, find_place

# What `srun -n 4` set in its third task on the second of two nodes (SLURM 22.05), what `mpirun`
# (Open MPI 4.1, and 5.0 on one host) sets in its second process, and MPICH's `mpiexec`.
SLURM = {
    "SLURM_JOB_ID": "8195",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "node[007-008]",
    "SLURM_STEP_TASKS_PER_NODE": "1,3",
}
MPI_4 = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
MPI_5 = {name: value for name, value in MPI_4.items() if "orte" not in name}
MPI_5 |= {"PMIX_NAMESPACE": "prterun-node1-77@1", "PMIX_RANK": "1"}
MPICH = {"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
JOB = {"JOB_COMPLETION_INDEX": "5", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture
def place(monkeypatch):
    """Calls `find_place` with these variables of a launcher, and no others."""

    def find(env, coordinator="", processes=None, process=None):
        with monkeypatch.context() as patch:
            for name in list(os.environ):
                if name.startswith(
                    ("SLURM_", "OMPI_", "PMI", "MPI_", "JOB_", "KUBE", "CUDA_", "JAX_L")
                ):
                    patch.delenv(name)
            for name, value in env.items():
                patch.setenv(name, value)
            return find_place(coordinator, processes, process, 1)

    return find


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "1"},
        SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        MPI_4 | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_a_run_of_one_process(place, env):
    assert place(env) is None


@pytest.mark.parametrize("env", [{}, SLURM, MPI_4, MPI_5, MPICH, JOB, {"SLURM_NTASKS": "4"}])
def test_alone_by_request(place, env):
    assert place(env, processes=1) is None
    assert place(env, "node1:1234", 1, 0) is None


def test_three_flags_need_no_launcher(place):
    assert place({}, "node1:1234", 4, 3) == Place(3, 4, "node1:1234", [])
    assert place({}, "[fe80::1]:1234", 2, 0).address == ("fe80::1", 1234)


@pytest.mark.parametrize("env", [SLURM, MPI_4, MPI_5, MPICH, JOB])
def test_flags_come_before_the_launcher(place, env):
    found = place(env, "node1:1234", 9, 8)
    assert found[:3] == (8, 9, "node1:1234")


def test_what_jax_finds(place):
    assert place(SLURM) == Place(2, 4, "node007:61443", [1])  # 61440 + 8195 % 4096
    port = 61440 + 1531576320 // 4096 % 4096
    assert place(MPI_4) == Place(1, 2, f"10.96.0.1:{port}", [1])


def test_open_mpi_5_on_one_host_and_on_several(place):
    first = place(MPI_5)
    assert first[:2] == (1, 2) and first.address[0] == "localhost"
    assert first == place(MPI_5)
    other = place(MPI_5 | {"PMIX_NAMESPACE": "prterun-node1-78@1"})
    assert other.address[1] != first.address[1]  # two runs on one machine
    several = MPI_5 | {"OMPI_COMM_WORLD_SIZE": "16"}
    with pytest.raises(UserError, match="Open MPI.*add --coordinator=HOST:PORT .HOST"):
        place(several)
    assert place(several, "node1:1234") == Place(1, 16, "node1:1234", [1])


def test_launchers_that_say_only_a_part(place):
    with pytest.raises(UserError, match="MPICH.*add --coordinator=HOST:PORT .HOST"):
        place(MPICH)
    assert place(MPICH, "node1:1234") == Place(3, 4, "node1:1234", [1])
    with pytest.raises(UserError, match="PMIx.*add --coordinator=HOST:PORT --processes=N .HOST"):
        place({"PMIX_RANK": "3"})
    assert place({"PMIX_RANK": "3"}, "node1:1234", 4) == Place(3, 4, "node1:1234", [])
    index = {"JOB_COMPLETION_INDEX": "5"}
    with pytest.raises(UserError, match="Kubernetes.*add --coordinator=HOST:PORT --processes=N "):
        place(index)
    assert place(JOB, "train-0.train:1234", 8) == Place(5, 8, "train-0.train:1234", [])


def test_a_kubernetes_job_without_its_python_package_is_refused(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.warns(UserWarning, match="kubernetes"), pytest.raises(UserError, match="add --coo"):
        place(JOB)


def test_several_tasks_without_srun_are_refused(place):
    batch = {k: v for k, v in SLURM.items() if "STEP" not in k} | {"SLURM_PROCID": "0"}
    with pytest.raises(UserError, match="reserved 4 tasks.*srun gptjax train"):
        place(batch)
    with pytest.raises(UserError, match="belong together: add --process=I "):
        place(batch, "node1:1234", 4)  # not its SLURM_PROCID, which is 0 for all


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("node1:1234",), "belong together: add --processes=N --process=I .HOST"),
        (("", 2, 1), "add --coordinator=HOST:PORT .HOST"),
        (("node1:1234", 2, 2), "--process=2 must be below --processes=2"),
        (("node1", 2, 0), "--coordinator=node1 must be HOST:PORT"),
        (("node1:0", 2, 0), "must be HOST:PORT"),
        (("fe80::1:1234", 2, 0), "must be HOST:PORT"),
        (("node1:1234", 1, 1), "--process=1 must be below --processes=1"),
    ],
)
def test_flags_that_do_not_say_it(place, flags, message):
    with pytest.raises(UserError, match=message):
        place({}, *flags)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, [1]),  # three on this node, which see all of its GPUs
        ({"CUDA_VISIBLE_DEVICES": "4,5,6"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "5"}, []),  # --gpus-per-task=1: each sees its own
        ({"SLURM_NODEID": "0", "SLURM_LOCALID": "0"}, []),  # the only one on its node has all
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, [1]),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": "0"}, []),
        ({"JAX_LOCAL_DEVICE_IDS": "0,1"}, None),  # JAX reads it
    ],
)
def test_the_gpus_of_a_process(place, env, expected):
    assert place(SLURM | env, "node1:1234").local_devices == expected
