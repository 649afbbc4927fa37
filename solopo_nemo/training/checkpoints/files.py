"""Checkpoints of a run on disk, and their verification.

A checkpoint is a NeMo checkpoint (``weights``, ``context``) with an ``hf`` folder (configuration and tokenizer), the
random-number states of each rank (``rng``) and a manifest of all files, which is written last. Its name has the step.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.json_files import write_json

PREFIX = "step_"
MANIFEST = "manifest.json"
CONVERSION = "conversion.json"
"""The record of ``tools/convert.py`` in the checkpoints that it writes."""
_BLOCK = 1 << 22
_SMALL = 1 << 20
"""Largest size in bytes of the files that are compared with the manifest at every start."""

logger = logging.getLogger("solopo_nemo")


@dataclass(frozen=True)
class FileRecord:
    """The entry of a file in a manifest: size in bytes and SHA-256."""

    size: int
    sha256: str


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix(PREFIX))


def saved_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a folder, oldest first."""
    found = [p for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of)


def last_saved(folder: Path) -> str:
    """A phrase about the newest checkpoint, for messages."""
    saved = saved_checkpoints(folder)
    return f"the last good checkpoint is of step {step_of(saved[-1])}" if saved else "nothing has been saved yet"


def record_file(
    path: Path, progress: Progress | None = None, entries: Iterable[tuple[int, int]] = (), written: bool = True
) -> FileRecord:
    """Computes size and hash of a file in one pass. Memory: twice the longest entry.

    Args:
        path: the file.
        progress: shows the bytes that are read.
        entries: offset and length in bytes of the entries that the file must have. An entry that ``torch.save`` wrote
            is an archive, and is checked against its checksums.
        written: whether the file has just been written. It is then flushed to the disk and read back from it.

    Raises:
        OSError: the file cannot be read.
        ValueError: an entry is missing, or has another checksum.
    """
    digest, size = hashlib.sha256(), 0

    def read(stream: BinaryIO, length: int) -> bytes:
        nonlocal size
        block = stream.read(length)
        digest.update(block)
        size += len(block)
        if progress is not None:
            progress.advance(progress.task_ids[0], len(block))
        return block

    with path.open("rb") as stream:
        if written:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # drops the page cache of the file
        for offset, length in sorted(entries):
            while size < offset and read(stream, min(_BLOCK, offset - size)):
                pass
            entry = read(stream, length)
            if size != offset + length:
                raise ValueError(f"{path.name} ends within an entry")
            _check_archive(path.name, entry)
        while read(stream, _BLOCK):
            pass
    return FileRecord(size, digest.hexdigest())


def _check_archive(name: str, entry: bytes) -> None:
    if entry[:2] != b"PK":  # torch.save writes an archive with checksums; other entries are plain bytes
        return
    try:
        damaged = zipfile.ZipFile(io.BytesIO(entry)).testzip()
    except zipfile.BadZipFile as error:
        damaged = str(error)
    if damaged:
        raise ValueError(f"{name}: an entry reads back with another checksum ({damaged})")


def write_manifest(checkpoint: Path, files: dict[str, FileRecord]) -> None:
    """Writes the manifest of a checkpoint, and flushes it and the folders to the disk."""
    write_json(checkpoint / MANIFEST, {name: vars(record) for name, record in sorted(files.items())}, indent=1)
    for folder in (*(p for p in checkpoint.rglob("*") if p.is_dir()), checkpoint):
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Flushes the directory entries of a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_damage(checkpoint: Path, rank: int | None = 0, ranks: int = 1) -> str | None:
    """The first difference between the files of a checkpoint and its manifest, in words; None if there is none.

    Sizes, and contents of files up to 1 MiB, are always compared. The contents of the other files, nearly all bytes,
    are split over the ranks: 100 GB at 2 GB/s take 50 s, divided by the number of ranks.

    Args:
        checkpoint: folder of the checkpoint.
        rank: compares the files that ranks with this number modulo ``ranks`` wrote, which it most likely loads. None
            compares no large file.
        ranks: number of ranks that compare.
    """
    try:
        listed = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): FileRecord(**record) for name, record in listed.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, record in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != record.size:
            return f"{name} has {path.stat().st_size} bytes, {record.size} were written"

    def own(name: str) -> bool:
        writer = re.match(r"weights/__(\d+)_", name)
        return rank is not None and int(writer[1] if writer else 0) % ranks == rank

    return _find_changed(checkpoint, {n: record for n, record in files.items() if record.size <= _SMALL or own(n)})


def _find_changed(checkpoint: Path, files: dict[str, FileRecord]) -> str | None:
    columns = (TextColumn(f"checking {checkpoint.name}"), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task("", total=sum(record.size for record in files.values()))

        def changed(name: str) -> str | None:
            try:
                same = record_file(checkpoint / name, progress, written=False) == files[name]
            except OSError as error:
                return f"{name} cannot be read ({error.strerror})"
            return None if same else f"{name} has other contents than were written"

        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            return next(filter(None, pool.map(changed, files)), None)


def check_origin(
    checkpoint: Path,
    key: str,
    trusted: bool,
    vouch: str = "model.trust_checkpoint=true",
    rank: int | None = 0,
) -> None:
    """Refuses a checkpoint that another program may have written, and a damaged one.

    Loading a NeMo checkpoint unpickles ``weights/.metadata`` (torch's ``FileSystemReader``) and calls the functions
    that ``context/io.json`` names (NeMo's ``load_context``), so that it can run any code.

    Args:
        checkpoint: folder of the checkpoint.
        key: configuration key that names it, for messages.
        trusted: whether the user trusts it.
        vouch: the setting by which the user trusts it, for messages.
        rank: see :func:`find_damage`.

    Raises:
        UserError: the checkpoint is neither this project's nor trusted, or it is damaged.
    """
    if (checkpoint / MANIFEST).is_file():
        if damage := find_damage(checkpoint, rank):
            raise damaged(checkpoint, key, damage)
    elif not trusted and not (checkpoint / CONVERSION).is_file():
        raise UserError(
            f"{key}={checkpoint}: this tool did not write this checkpoint, and loading a NeMo checkpoint runs any code "
            f"that its files name (weights/.metadata, context/io.json); if you trust it: {vouch}"
        )
    logger.info("%s: loading a NeMo checkpoint unpickles files and builds what they name", checkpoint)


def damaged(checkpoint: Path, key: str, damage: str) -> UserError:
    """The error for a damaged checkpoint that the user named."""
    return UserError(f"{key}={checkpoint}: the checkpoint is damaged ({damage}); name another one")


def put_damaged_aside(checkpoints: list[Path], only_look: bool = False, rank: int | None = 0) -> list[Path]:
    """Renames damaged checkpoints, from the newest one to the first intact one.

    Args:
        checkpoints: the checkpoints of one folder, oldest first.
        only_look: whether to rename none.
        rank: see :func:`find_damage`.

    Returns:
        The checkpoints up to the first intact one, oldest first.

    Raises:
        UserError: all checkpoints are damaged.
    """
    good = list(checkpoints)
    while good:
        damage = find_damage(good[-1], rank)
        if damage is None:
            return good
        checkpoint = good.pop()
        if only_look:
            logger.warning("%s: %s: it will be put aside", checkpoint, damage)
        else:
            put_aside(checkpoint, damage)
    if checkpoints:
        raise no_good_one(checkpoints[0].parent)
    return []


def put_aside(checkpoint: Path, damage: str) -> None:
    """Renames a damaged checkpoint, and logs a warning.

    Args:
        checkpoint: the checkpoint.
        damage: the damage in words.
    """
    aside = checkpoint.with_name(f"damaged_{checkpoint.name}")
    number = 1
    while aside.exists():
        number += 1
        aside = checkpoint.with_name(f"damaged_{checkpoint.name}_{number}")
    checkpoint.rename(aside)
    logger.warning("%s: %s: put aside as %s", checkpoint, damage, aside.name)


def no_good_one(folder: Path) -> UserError:
    """The error for a run whose checkpoints are all damaged."""
    return UserError(
        f"{folder}: every checkpoint is damaged (see the warnings above): bring one back from a "
        "copy, or trainer.resume=never starts anew"
    )


def remove_leftovers(folder: Path) -> None:
    """Removes temporary folders of killed saves and removals. No save may be in progress."""
    for path in (p for p in folder.glob(f".{PREFIX}*") if p.is_dir()):
        shutil.rmtree(path, ignore_errors=True)


def remove_checkpoints(checkpoints: Iterable[Path]) -> None:
    """Removes checkpoints. Each is renamed first, so that a kill leaves no partial checkpoint under a valid name."""
    for checkpoint in checkpoints:
        hidden = checkpoint.with_name(f".{checkpoint.name}.removed")
        shutil.rmtree(hidden, ignore_errors=True)
        checkpoint.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
