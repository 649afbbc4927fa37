"""NeMo's model families with SoLoPO, and their way from and to Hugging Face.

NeMo finds importers and exporters by the exact class, so each class registers its own; the weight
mappings are NeMo's.
"""

from __future__ import annotations

from typing import Any

from nemo.collections import llm
from nemo.collections.llm.gpt.model.llama import HFLlamaExporter, HFLlamaImporter
from nemo.collections.llm.gpt.model.qwen2 import HFQwen2Exporter, HFQwen2Importer
from nemo.lightning import io

from solopo_nemo.model.mixin import SoLoPOMixin


class SoLoQwen2Model(SoLoPOMixin, llm.Qwen2Model):
    """Qwen2 and Qwen2.5."""


class SoLoLlamaModel(SoLoPOMixin, llm.LlamaModel):
    """Llama 2, 3 and 3.x."""


@io.model_importer(SoLoQwen2Model, "hf")
class _Qwen2Importer(HFQwen2Importer):
    def init(self) -> SoLoQwen2Model:
        return SoLoQwen2Model(self.config, tokenizer=self.tokenizer)


@io.model_exporter(SoLoQwen2Model, "hf")
class _Qwen2Exporter(HFQwen2Exporter):
    pass


@io.model_importer(SoLoLlamaModel, "hf")
class _LlamaImporter(HFLlamaImporter):
    def init(self) -> SoLoLlamaModel:
        return SoLoLlamaModel(self.config, tokenizer=self.tokenizer)


@io.model_exporter(SoLoLlamaModel, "hf")
class _LlamaExporter(HFLlamaExporter):
    pass


FAMILIES: dict[str, Any] = {"qwen2": SoLoQwen2Model, "llama": SoLoLlamaModel}
"""Model class by Hugging Face ``model_type``."""
