"""Weight quantization. One file per method in ``methods/``; ``clip`` finds ranges for all of them."""

from jettison.quantize.methods import caldera, gptaq, gptq, hqq, rtn

__all__ = ["caldera", "gptaq", "gptq", "hqq", "rtn"]
