"""The prepared dataset: validated, tokenized, stored on disk and memory-mapped."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import datasets
import pyarrow
import tokenizers
import transformers
from datasets.arrow_writer import ArrowWriter

from solopo_nemo.data.lengths import Lengths, compression_rate
from solopo_nemo.data.noted import BATCH, NotedEncoder
from solopo_nemo.data.rows import data_files
from solopo_nemo.data.template_date import pinned_date
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.tokenizer_files import tokenizer_state
from solopo_nemo.data.triplets import (
    Needs,
    Triplet,
    answer_column,
    answer_columns,
    read_triplets,
    sequence_columns,
)
from solopo_nemo.data.vocabulary import check_tokenizer, require_token
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.json_files import json_hash, write_json
from solopo_nemo.runtime.output import write_json_line
from solopo_nemo.runtime.progress import with_progress
from solopo_nemo.runtime.warn import warn_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TooLong = Literal["error", "drop"]

FORMAT = 7
"""Version of the encoding. Increase it with every code change that yields other token ids, columns or checks for the
same file, tokenizer and settings. Datasets of an older version are then prepared again."""
_ARROW, _SUMMARY, _DROPPED = "samples.arrow", "summary.json", "dropped.jsonl"

logger = logging.getLogger("solopo_nemo")


@dataclass(frozen=True)
class PreparedDataset:
    """A tokenized dataset on disk.

    Attributes:
        path: Folder of the dataset.
        dataset: Memory-mapped rows: `id` (string), and the fields that the objective needs (lists of int32 token ids;
            `~id`, a negative number, is an answer's token that is not scored). Where a sample has several rejected
            answers there are the columns `rejected_2`, `rejected_3`, ..., empty in a sample with fewer.
        summary: Content of `summary.json`: counts (`in` = `kept` + `dropped`), token statistics, rho, hashes, and the
            date that the chat template printed.
    """

    path: Path
    dataset: datasets.Dataset
    summary: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Hash of the samples' ids and token ids."""
        return str(self.summary["fingerprint"])


def prepare_dataset(
    path: Path | str,
    tokenizer: PreTrainedTokenizerBase,
    needs: Needs,
    max_tokens: int,
    too_long: TooLong,
    out_dir: Path | str,
    tokenizer_id: str,
    *,
    vocab_size: int,
    template_kwargs: dict[str, Any] | None = None,
    score: str = "assistant",
    template_mismatch: str = "error",
    trained: str | None = None,
    known: Path | None = None,
    states: list[Any] | None = None,
) -> PreparedDataset:
    """Read, validate and tokenize a dataset, or reuse an earlier result with the same inputs.

    The whole file is validated before the first sample is tokenized. Sequences are never truncated: a sample with a
    sequence longer than `max_tokens` stops the run, or is dropped and listed in `dropped.jsonl`.

    Args:
        path: A source that `read_triplets` accepts.
        tokenizer: Tokenizer of the policy.
        needs: Sequences that the objective uses.
        max_tokens: Maximum tokens of prompt plus response, for every sequence.
        too_long: `error` stops at a longer sample, `drop` drops it.
        out_dir: Output folder, written atomically.
        tokenizer_id: Name of the tokenizer, for the summary.
        vocab_size: Rows of the policy's embedding; every token id must be smaller.
        template_kwargs: Keyword arguments of the chat template.
        score: Turns of an answer that are scored; see `Turns`.
        template_mismatch: `error` stops where the template rewrites earlier turns of an answer, `warn` goes on.
        trained: Fingerprint of the data on which the run in progress was trained. Other token ids than these, and than
            those of `out_dir`, are refused. Empty if it is not known; None without a run in progress.
        known: Folder of the earlier result; None is `out_dir`.
        states: Sizes and times of the files at `path`. If they equal those of the earlier result, no file is read.

    Raises:
        UserError: A row is bad or too long, a token id exceeds the vocabulary, no sample remains, the token ids differ
            from those of the run in progress, or `out_dir` contains other files.
    """
    path, out_dir = Path(path), Path(out_dir)
    check_tokenizer(tokenizer, vocab_size, f"the tokenizer of {tokenizer_id}")
    encoder = TripletEncoder(tokenizer, template_kwargs, score=score)
    known = known or out_dir
    earlier = _earlier(known)
    unchanged = earlier is not None and states is not None and earlier.summary.get("states") == states
    files = earlier.summary["files"] if earlier and unchanged else _hash_files(path)
    inputs = _hash_inputs(files, encoder, needs, max_tokens, too_long, template_mismatch)
    if earlier is not None and earlier.summary.get("inputs") == inputs:
        largest = earlier.summary["largest_id"]
        require_token(largest["id"], tokenizer, vocab_size, largest["where"])
        if not unchanged and known == out_dir:
            earlier.summary["states"] = states
            write_json(out_dir / _SUMMARY, earlier.summary)
        return earlier
    if earlier is None and out_dir.is_dir() and {f.name for f in out_dir.iterdir()} - {_ARROW, _SUMMARY, _DROPPED}:
        raise UserError(f"{out_dir}: holds other files: give an empty or new folder for the tokenized data")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    # a fixed name, so that the next run removes the leftovers of an interrupted one
    temporary = out_dir.with_name(f".{out_dir.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        summary: dict[str, Any] = {
            "inputs": inputs,
            "files": files,
            "states": states,
            "source": str(path),
            "tokenizer": tokenizer_id,
        }
        summary |= {"sequences": list(needs.sequences), "max_tokens": max_tokens, "too_long": too_long}
        summary["date"] = pinned_date(tokenizer)
        noted = NotedEncoder(encoder, needs, vocab_size, template_mismatch)
        summary |= _write(path, noted, needs, max_tokens, too_long, temporary)
        summary["fingerprint"] = _fingerprint(temporary, earlier, trained, path)
        write_json(temporary / _SUMMARY, summary)
        shutil.rmtree(out_dir, ignore_errors=True)
        temporary.rename(out_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load_prepared(out_dir)


def load_prepared(out_dir: Path | str) -> PreparedDataset:
    """Open the output of `prepare_dataset`, memory-mapped.

    Raises:
        UserError: The folder contains no prepared dataset.
    """
    out_dir = Path(out_dir)
    require(_is_prepared(out_dir), f"{out_dir}: no prepared data set in it: run the recipe's data preparation first")
    summary = json.loads((out_dir / _SUMMARY).read_text(encoding="utf-8"))
    return PreparedDataset(out_dir, datasets.Dataset.from_file(str(out_dir / _ARROW)), summary)


def prepared_date(out_dir: Path) -> str | None:
    """The date that the chat template printed in the prompts of a prepared dataset; None if it printed none."""
    earlier = _earlier(out_dir)
    return earlier.summary.get("date") if earlier else None


def _earlier(out_dir: Path) -> PreparedDataset | None:
    """The earlier result in a folder; None where there is none, or a damaged one, which is made again."""
    try:
        found = load_prepared(out_dir) if _is_prepared(out_dir) else None
        return found if found is None or isinstance(found.summary, dict) else None
    except (ValueError, OSError, pyarrow.ArrowException) as error:
        warn_once(f"{out_dir}: damaged ({' '.join(str(error).split())}): the data are tokenized again")
        return None


def _is_prepared(out_dir: Path) -> bool:
    return (out_dir / _SUMMARY).is_file() and (out_dir / _ARROW).is_file()


def _write(
    path: Path, encoder: NotedEncoder, needs: Needs, max_tokens: int, too_long: TooLong, folder: Path
) -> dict[str, Any]:
    total = more = 0
    for triplet in with_progress(read_triplets(path, needs), "validating"):
        total, more = total + 1, max(more, len(triplet.more_rejected))
    columns = [*needs.columns, *(answer_column("rejected", index + 1) for index in range(more))]
    token_ids = datasets.Sequence(datasets.Value("int32"))
    features = datasets.Features({"id": datasets.Value("string")} | dict.fromkeys(columns, token_ids))
    lengths = {column: Lengths() for column in columns}
    context = 0
    kept = 0
    with (
        ArrowWriter(path=str(folder / _ARROW), features=features, writer_batch_size=BATCH) as writer,
        (folder / _DROPPED).open("w", encoding="utf-8") as dropped,
    ):
        for triplet, ids in with_progress(encoder(path), "tokenizing", total):
            if _fits(triplet, ids, needs, max_tokens, too_long, dropped):
                encoder.note(triplet, ids)
                writer.write({"id": triplet.id, **{column: ids.get(column, []) for column in columns}})
                kept += 1
                for column, own in ids.items():
                    lengths[column].add(len(own))
                    context += min(own) < 0 and sum(i < 0 for i in own)
        require(kept > 0, f"{path}: none of the {total} samples fits data.max_tokens={max_tokens}: raise it")
        writer.finalize()
    encoder.report(path, kept)
    return {
        "in": total,
        "kept": kept,
        "dropped": total - kept,
        "tokens": {column: collected.statistics() for column, collected in lengths.items()},
        "rho": compression_rate(lengths["prompt_short"], lengths["prompt_long"]) if len(needs.prompts) == 2 else None,
        "largest_id": encoder.largest,
        **({"context_tokens": context} if context else {}),
        "special_text": len(encoder.special),
        "same_answers": len(encoder.equal),
    }


def _fits(
    triplet: Triplet, ids: dict[str, list[int]], needs: Needs, max_tokens: int, too_long: TooLong, dropped: IO[str]
) -> bool:
    """True if every sequence of a sample fits `max_tokens`. A sample that does not fit is listed in `dropped`."""
    tokens = {
        name: len(ids[prompt]) + max(len(ids[column]) for column in answer_columns(ids, response))
        for name, (prompt, response) in ((name, sequence_columns()[name]) for name in needs.sequences)
    }
    name = max(tokens, key=lambda key: tokens[key])
    if tokens[name] <= max_tokens:
        return True
    reason = f"{name} has {tokens[name]} tokens, more than data.max_tokens={max_tokens}"
    if too_long == "error":
        raise UserError(
            f"{triplet.where}: sample {triplet.id!r}: {reason}: raise it, or data.too_long=drop leaves the sample out"
        )
    write_json_line(dropped, {"id": triplet.id, "where": triplet.where, "tokens": tokens[name], "reason": reason})
    return False


def _fingerprint(folder: Path, earlier: PreparedDataset | None, trained: str | None, path: Path) -> str:
    """Return the hash of the written samples. For the token ids of an earlier result, return its fingerprint."""
    content = _hash_content(datasets.Dataset.from_file(str(folder / _ARROW)))
    if earlier is None:
        return content
    if _hash_content(earlier.dataset) == content:
        return earlier.fingerprint
    if trained is not None and content != trained:
        raise UserError(
            f"{path}: other token ids than this run was trained on ({earlier.path}): the data, the tokenizer or this "
            "program has changed since; choose another output_dir, or trainer.resume=never to put that run aside"
        )
    return content


def _hash_content(samples: datasets.Dataset) -> str:
    digest = hashlib.sha256()
    for name in samples.column_names:
        lengths, values = hashlib.sha256(), hashlib.sha256()
        for chunk in samples.data.column(name).chunks:
            if name == "id":
                values.update("".join(map(json.dumps, chunk.to_pylist())).encode())
            else:
                lengths.update(chunk.value_lengths().to_numpy().tobytes())
                values.update(chunk.flatten().to_numpy().tobytes())
        digest.update(f"{name} {lengths.hexdigest()} {values.hexdigest()}\n".encode())
    return digest.hexdigest()


def _hash_files(path: Path) -> str:
    digest = hashlib.sha256()
    for file in data_files(path):
        with file.open("rb") as stream:
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _hash_inputs(files: str, encoder: TripletEncoder, needs: Needs, *settings: Any) -> str:
    state = [FORMAT, files, needs.sequences, *settings, tokenizers.__version__, transformers.__version__]
    state += [tokenizer_state(encoder.tokenizer), encoder.template.switches, encoder.score]
    return json_hash(state, sort_keys=True)
