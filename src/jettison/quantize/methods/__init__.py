"""One file per method: a pure function under ``@quantizer``."""

from jettison.quantize.methods.caldera import caldera
from jettison.quantize.methods.gptaq import gptaq
from jettison.quantize.methods.gptq import gptq
from jettison.quantize.methods.hqq import hqq
from jettison.quantize.methods.rtn import rtn

__all__ = ["caldera", "gptaq", "gptq", "hqq", "rtn"]
