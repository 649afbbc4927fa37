"""NeMo models: the mixin, the model classes, the strategy, and conversion from and to Hugging Face."""

from solopo_nemo.nemo_model import compat as compat
