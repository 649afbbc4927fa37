"""Environment variables: rank, world size and job id of torchrun and Slurm, and the folders of caches."""

from __future__ import annotations

import getpass
import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from solopo_nemo.runtime.errors import UserError

# torch reads it at its first allocation: tensors of 2 MiB and more are placed on huge pages, which are cheaper to map
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# torch/cuda/__init__.py:64 warns in every process that imports it, also in those that Megatron starts
os.environ.setdefault("PYTHONWARNINGS", "ignore:The pynvml package is deprecated")

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
_RANK_PREFIXES = ("SLURM_", "TORCHELASTIC_", "PMI", "OMPI_", "SOLOPO_")
_START = "SOLOPO_START"

logger = logging.getLogger("solopo_nemo")


def started_as_rank() -> bool:
    """Whether this process is one rank of a job that ``torchrun`` or Slurm's ``srun`` started."""
    return "RANK" in os.environ or ("SLURM_PROCID" in os.environ and _number("SLURM_NTASKS", default=1) > 1)


def rank() -> int:
    """Global rank of this process; 0 outside a job."""
    return _number("RANK", "SLURM_PROCID")


def world_size() -> int:
    """Number of ranks of the job; 1 outside a job."""
    return _number("WORLD_SIZE", "SLURM_NTASKS", default=1)


def local_world_size() -> int:
    """Number of ranks of the job on this host."""
    per_node = os.environ.get("SLURM_NTASKS_PER_NODE", "1").split("(")[0]
    return int(os.environ.get("LOCAL_WORLD_SIZE", per_node))


def start_here(name: str) -> None:
    """Marks the environment of the ranks that this process will start.

    Args:
        name: :func:`job_token` of these ranks.
    """
    os.environ[_START] = name


def started_here() -> bool:
    """Whether the recipe itself, and not ``torchrun`` or Slurm, started this rank."""
    return _START in os.environ and "RANK" in os.environ


def provide_home() -> None:
    """Sets the cache folders of libraries if the home folder is missing or cannot be written, and logs where they are.

    Call it before a library is imported: some read their variables at import, and NeMo fails without a home folder.
    ``HOME`` stays as it is if the folder exists, because files in it may be read.

    Raises:
        UserError: the folder for temporary files cannot be written either.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # containers may run as a user id that has no entry in the user database
        os.environ["LOGNAME"] = str(os.getuid())
    home = Path(os.environ.get("HOME") or "~")
    with suppress(RuntimeError):
        home = home.expanduser()
    places = {"HOME": ""}
    if home.is_absolute() and home.is_dir():
        places = {"XDG_CACHE_HOME": "cache", "MPLCONFIGDIR": "matplotlib", "TRITON_CACHE_DIR": "triton"}
        if os.access(home, os.W_OK) or places.keys() <= os.environ.keys():
            return
        for name, there in (("XDG_CACHE_HOME", home / ".cache"), ("HF_HOME", home / ".cache" / "huggingface")):
            if there.is_dir() and (name == "HF_HOME" or os.access(there, os.W_OK)):
                os.environ.setdefault(name, str(there))
    named = f"HOME={home}" if home.is_absolute() else "the home folder (HOME is not set)"
    try:
        folder = Path(tempfile.gettempdir()) / f"solopo-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(0, "another user's folder")
    except OSError as error:
        raise UserError(
            f"{named} cannot be written, and neither can the folder for temporary files ({error.strerror}): set "
            "HOME to a folder that can"
        ) from None
    if rank() == 0:
        logger.warning("%s cannot be written: caches are in %s; set HOME to a folder of your own", named, folder)
    for name, below in places.items():
        if name == "HOME":
            os.environ[name] = str(folder)
        os.environ.setdefault(name, str(folder / below))


def _number(*names: str, default: int = 0) -> int:
    for name in names:
        if name in os.environ:
            try:
                return int(os.environ[name])
            except ValueError:
                raise UserError(f"{name}={os.environ[name]!r} in the environment: must be a number") from None
    return default


def job_token() -> str:
    """An id of this start of the job: the same on all its ranks, and different after a restart."""
    if _START in os.environ:
        return os.environ[_START]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return f"{os.environ['TORCHELASTIC_RUN_ID']}-{os.environ.get('MASTER_PORT')}-{restart}"
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "MASTER_PORT")
    return "-".join(os.environ.get(name, "0") for name in names)


def restarted() -> bool:
    """Whether the scheduler restarted this job: a requeued Slurm job, or a restart by ``torchrun``."""
    counts = (os.environ.get(name, "0") for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    return any(count != "0" for count in counts)


def without_ranks() -> dict[str, str]:
    """This process's environment without the variables that make a process a rank of this job."""
    return {
        key: value
        for key, value in os.environ.items()
        if key not in _RANK_VARIABLES and not key.startswith(_RANK_PREFIXES)
    }
