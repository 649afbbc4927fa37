"""llama.cpp's server with its OpenAI-compatible interface, over a small Hugging Face model, for tests.

Run as a process of its own: it prints its port when it listens, and serves until it is killed.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
import xllamacpp
from safetensors.numpy import load_file


def write_gguf(folder: Path, out: Path) -> None:
    """Convert a Qwen2 folder, weights in fp32."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(out, "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])

    special = {token["content"] for token in tokenizer["added_tokens"]}
    ids = tokenizer["model"]["vocab"]
    tokens = sorted(ids, key=ids.__getitem__)
    types = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    unused = range(len(tokens), config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    # of llama.cpp's splitting rules the one that keeps the digits of a number together, as the tokenizer does
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, *(f"[unused {number}]" for number in unused)])
    writer.add_token_types([*types, *(gguf.TokenType.UNUSED for _ in unused)])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        own_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert own_name is not None, name
        writer.add_tensor(own_name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def serving(model: Path, requests: Path, *options: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a server, give it and its port when it listens, and end it.

    Args:
        model: GGUF file.
        requests: folder that does not exist yet; see ``--requests``.
        *options: the others.
    """
    command = [sys.executable, __file__, str(model), "--requests", str(requests), *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path, help="GGUF file, or a Qwen2 folder, which is converted")
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--context", type=int, required=True, help="tokens of a slot")
    parser.add_argument("--slots", type=int, required=True, help="answers at once, and largest n of a request")
    parser.add_argument("--key", help="refuse requests with any other")
    parser.add_argument("--requests", type=Path, help="new folder that gets a file for each prompt asked")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        path = arguments.model
        if path.is_dir():
            path = Path(folder) / "model.gguf"
            write_gguf(arguments.model, path)
        server = xllamacpp.Server(_parameters(arguments, path))
    print(server.listening_address.rpartition(":")[2], flush=True)
    signal.pause()


def _parameters(arguments: argparse.Namespace, path: Path) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.model_alias = {arguments.name}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = arguments.port
    parameters.n_ctx = arguments.context * arguments.slots
    parameters.n_parallel = arguments.slots
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.api_keys = [arguments.key] if arguments.key else []
    if arguments.requests:
        arguments.requests.mkdir()
        parameters.path_prompts_log_dir = str(arguments.requests)
    parameters.fit_params = parameters.warmup = parameters.ui = False
    return parameters


if __name__ == "__main__":
    main()
