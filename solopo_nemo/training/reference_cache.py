"""Reference log-probabilities on disk, keyed by a hash of everything that they depend on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from solopo_nemo.runtime.errors import UserError

Scores = dict[str, dict[str, float | list[float]]]
"""Summed log-probabilities in nats by sample id and sequence name; a list for several rejected responses."""


def cache_key(weights_hash: str, data_fingerprint: str, sequences: tuple[str, ...], precision: str) -> dict[str, Any]:
    """The key of a cache: everything that a reference log-probability depends on.

    Args:
        weights_hash: hash of the contents of the reference policy's weights.
        data_fingerprint: hash of the token ids of the data (see ``prepare_dataset``).
        sequences: names of the scored sequences.
        precision: ``bf16`` or ``fp32``.
    """
    return {
        "weights": weights_hash,
        "data": data_fingerprint,
        "sequences": list(sequences),
        "precision": precision,
        "normalization": "sum of response log-probabilities, nats",
    }


class ReferenceCache:
    """A cache of reference log-probabilities: one folder for each key, one line of JSON for each sample.

    Samples are appended, so that an interrupted scoring can be resumed.

    Args:
        root: folder of all caches.
        key: see :func:`cache_key`.
    """

    def __init__(self, root: Path, key: dict[str, Any]) -> None:
        text = json.dumps(key, sort_keys=True, indent=2)
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.file = self.folder / "scores.jsonl"
        self.key = key

    def read(self) -> Scores:
        """The scores of all complete lines. A line that a kill has cut short is ignored."""
        scores: Scores = {}
        if self.file.is_file():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                scores[row.pop("id")] = row
        return scores

    def incomplete(self, missing: int) -> UserError:
        """The error for a resumed run whose cache lacks the scores of some samples.

        Args:
            missing: number of these samples.
        """
        return UserError(
            f"{self.file}: the reference scores of this run are incomplete ({missing} samples missing) and its policy "
            "has moved on: run tools/cache_reference.py with the overrides of the run, then resume"
        )

    def append(self, scores: Scores) -> None:
        """Appends scored samples. Only one process may call it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "key.json").write_text(json.dumps(self.key, sort_keys=True, indent=2) + "\n")
        with self.file.open("a+b") as stream:
            if stream.tell():
                stream.seek(-1, 2)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")  # ends a line that a kill has cut short
            for i, row in scores.items():
                stream.write(json.dumps({"id": i, **row}).encode() + b"\n")
