"""Run a program on several ranks, by the mpiexec beside this Python."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

MPIEXEC = pathlib.Path(sys.executable).parent / "mpiexec"
HERE = pathlib.Path(__file__).parents[2]


def require_mpi():
    """Skip, in one line, where there is no MPI."""
    missing = [name for name in ("mpi4py",) if importlib.util.find_spec(name) is None]
    missing += [] if MPIEXEC.exists() else ["mpiexec"]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} here: pip install 'gpuconv[mpi]'")


def run_ranks(count, *arguments, timeout=120, expected=0, **environment):
    """The output of `python ARGUMENTS` on so many ranks of one thread each."""
    require_mpi()
    paths = [str(HERE), str(HERE / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]
    environment = {"GPUCONV_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **environment}
    command = [MPIEXEC, "-n", str(count), sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}
    )
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr
