"""Weight quantization. One file per method in ``methods/``. Weights that are zero stay zero."""

from jettison.quantize.methods import caldera, gptaq, gptq, hqq, rtn

__all__ = ["caldera", "gptaq", "gptq", "hqq", "rtn"]
