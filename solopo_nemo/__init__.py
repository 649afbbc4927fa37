"""Short-to-Long Preference Optimization (SoLoPO, arXiv 2505.11166) for NeMo and Megatron-core."""

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solopo_nemo.nemo_model.mixin import SoLoPOMixin

warnings.filterwarnings("ignore", message="The pynvml package is deprecated")  # torch/cuda/__init__.py:64, on import

__all__ = ["SoLoPOMixin"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import the mixin when it is asked for: NeMo takes many seconds, which tools without a model do not pay."""
    if name == "SoLoPOMixin":
        from solopo_nemo.nemo_model.mixin import SoLoPOMixin

        return SoLoPOMixin
    raise AttributeError(name)
