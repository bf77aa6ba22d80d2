"""Weight quantization. One file per method in ``methods/``; ``clip`` finds ranges for all of them."""

from jettison.quantize.methods import gptaq, gptq, hqq, rtn

__all__ = ["gptaq", "gptq", "hqq", "rtn"]
