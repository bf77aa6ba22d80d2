"""Writes image classifiers as ONNX files, and compares such a file with the model in ONNX Runtime.

- The number of images per run is free; height and width are those of the example.
- Weights and activations are float32, whatever the model's type. Batch normalizations are folded into convolutions.
- A weight packed on an integer grid is stored as int8 with one scale per group, before ``DequantizeLinear``: one byte
  for each weight, also for fewer bits. A weight on a table of values (nf4) is stored as float32, which a note says.
- The exporter is the one of PyTorch that traces (``dynamo=False``). It needs no package beside onnx.
- onnx and onnxruntime are in the extra ``onnx``. This is no format of checkpoints: Jettison does not read such files.
"""

import importlib
import io
import math
import os
import warnings
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import write_atomic
from jettison.core.progress import say
from jettison.encodings.quantized import unpack, zero_points
from jettison.encodings.uniform import UniformGrid
from jettison.graph.folding import fold_batch_norms, logits_of
from jettison.graph.modules import PackedConv2d, PackedLinear, TiledLinear

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

OPSET = 17  # the first with LayerNormalization
MOST_BYTES = 2_000_000_000  # of parameters: a file of protobuf has at most 2 GB
INPUT, OUTPUT = "pixels", "logits"


def write_onnx(model: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Write an image classifier as one ONNX file with the input ``pixels`` and the output ``logits``.

    model: of transformers, or any module that maps pixels to logits; packed modules are stored as int8. It is not
        changed, and is written in eval mode.
    example: (images, channels, height, width) pixels, of the size that the file will take.
    Raises UsageError if onnx is not installed or the model is too large, and JettisonError if the model cannot be
    traced or the file cannot be written.
    """
    required("onnx")
    model, example = _prepared(model, example)
    _check_bytes(model)
    axes = {INPUT: {0: "images"}, OUTPUT: {0: "images"}}
    names = {"input_names": [INPUT], "output_names": [OUTPUT], "dynamic_axes": axes}

    def write(temporary: Path) -> None:
        file = io.BytesIO()
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # of values that become constants, and of the exporter's age
                torch.onnx.export(_Logits(model), (example,), file, opset_version=OPSET, dynamo=False, **names)
        except JettisonError:
            raise
        except Exception as error:  # the exporter raises exceptions of many classes
            reason = str(error).strip().partition("\n")[0]
            raise JettisonError(f"the model cannot be written as ONNX: {reason or type(error).__name__}") from error
        temporary.write_bytes(file.getbuffer())

    write_atomic(path, write)


@torch.no_grad()
def check_onnx(path: Path, model: nn.Module, inputs: torch.Tensor) -> float:
    """Run an ONNX file in ONNX Runtime on the CPU, and return the largest difference of its logits to the model's.

    inputs: (images, channels, height, width) pixels.
    Raises UsageError if onnxruntime is not installed, and JettisonError if the file cannot be opened or run.
    """
    theirs = run_onnx(open_onnx(path), inputs)  # (images, classes)
    modes = [(module, module.training) for module in model.modules()]
    try:
        ours = logits_of(model.eval(), _like(model, inputs)).double().cpu()
    finally:
        for module, training in modes:
            module.training = training
    difference = (theirs.double() - ours).abs().max()
    return float(difference) if bool(torch.isfinite(theirs).all() == torch.isfinite(ours).all()) else math.inf


def open_onnx(path: Path, threads: int | None = None) -> "InferenceSession":
    """Open an ONNX file in ONNX Runtime on the CPU, with all optimizations of the graph.

    threads: of one operator; None means as many as PyTorch uses. Operators run one after another.
    Raises UsageError if onnxruntime is not installed, and JettisonError if the file cannot be opened.
    """
    engine = required("onnxruntime")
    options = engine.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads or torch.get_num_threads(), 1
    options.graph_optimization_level = engine.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors, not warnings
    # Threads stop when a run ends, so that they do not slow down what runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Weights are dequantized when the file is opened, and then multiplied as float32 like the model's own.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return engine.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the exceptions of onnxruntime have no common class
        raise JettisonError(f"cannot open {path}: {str(error).partition(chr(10))[0]}") from error


def run_onnx(session: "InferenceSession", inputs: torch.Tensor) -> torch.Tensor:
    """Return the first output of an ONNX model for a tensor. Raises JettisonError if it does not run."""
    try:
        return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.float().numpy()})[0])
    except Exception as error:
        raise JettisonError(f"the ONNX model does not run: {str(error).partition(chr(10))[0]}") from error


def required(package: str) -> ModuleType:
    """Import onnx or onnxruntime. Raises UsageError that names the extra if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UsageError(f"{package} is not installed: pip install 'jettison[onnx]'") from error


def _like(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return inputs on the device and in the type of a model's first floating-point tensor."""
    floats = (tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
    return inputs.to(next(floats, inputs))


def _prepared(model: nn.Module, example: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    """Return a copy of a model in float32 on the CPU, folded and with modules that ONNX can express."""
    model = deepcopy(model).cpu()
    for path, module in list(model.named_modules()):
        if isinstance(module, TiledLinear):
            model = _replaced(model, path, module.packed())
    example = example.detach().cpu().float()
    model = fold_batch_norms(model.float(), example)
    tables = []
    for path, module in list(model.named_modules()):
        if isinstance(module, PackedLinear | PackedConv2d):
            if not isinstance(module.grid, UniformGrid):
                tables.append(path)
            kind = _Conv2d if isinstance(module, PackedConv2d) else _Linear
            model = _replaced(model, path, kind(module))
    if tables:
        say(f"note: {len(tables)} weights on a table of values are stored as float32, such as {tables[0]}")
    return model.eval(), example


def _replaced(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put a module in place of another one. Returns the model, which is the module itself if the path is empty."""
    if not path:
        return module
    model.set_submodule(path, module)
    return model


def _check_bytes(model: nn.Module) -> None:
    nbytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if nbytes > MOST_BYTES:
        raise UsageError(f"the weights have {nbytes:,} bytes; an ONNX file takes at most {MOST_BYTES:,}")


class _Logits(nn.Module):
    """Maps pixels to logits alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return logits_of(self.model, pixels)


class _Dequantize(torch.autograd.Function):
    """(codes − zero) · scale, which becomes the operator ``DequantizeLinear``.

    codes: (groups, width) int8. scale: (groups,) float32. zero: (groups,) int8.
    """

    @staticmethod
    def forward(context: Any, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        return (codes.float() - zero.float().unsqueeze(1)) * scale.unsqueeze(1)  # (groups, width)

    @staticmethod
    def symbolic(graph: Any, codes: Any, scale: Any, zero: Any) -> Any:
        """Return the node of the graph. Its type tells the exporter the shape."""
        node = graph.op("DequantizeLinear", codes, scale, zero, axis_i=0)
        sizes = codes.type().sizes()
        return node.setType(scale.type().with_sizes(sizes)) if sizes else node


class _Weight(nn.Module):
    """A packed weight as ONNX stores it. Calling it returns the float32 weight in the shape of its module."""

    def __init__(self, packed: PackedLinear | PackedConv2d):
        super().__init__()
        self.shape = tuple(packed.weight.shape)
        if not isinstance(packed.grid, UniformGrid):
            self.register_buffer("dense", packed.weight.float())
            return
        rows, columns, grid = len(packed.weight_packed), math.prod(self.shape[1:]), packed.grid
        middle, scale = grid.zero_code, packed.scale.float()  # scale: (rows, groups)
        codes = unpack(packed.weight_packed, grid.bits, columns).short() - middle
        zero = torch.zeros_like(scale)
        if packed.weight_zero_point is not None:
            zero = zero_points(packed.weight_zero_point, grid, rows) - middle
        self.register_buffer("codes", codes.view(scale.numel(), -1).to(torch.int8))  # (rows · groups, width)
        self.register_buffer("scale", scale.flatten())
        self.register_buffer("zero", zero.flatten().to(torch.int8))

    def forward(self) -> torch.Tensor:
        if hasattr(self, "dense"):
            return self.dense
        return _Dequantize.apply(self.codes, self.scale, self.zero).view(self.shape)


class _Linear(nn.Module):
    """A packed linear as ONNX stores it."""

    def __init__(self, packed: PackedLinear):
        super().__init__()
        self.stored, self.bias = _Weight(packed), packed.bias

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized weight. The code of some models reads it."""
        return self.stored()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class _Conv2d(nn.Module):
    """A packed convolution as ONNX stores it."""

    def __init__(self, packed: PackedConv2d):
        super().__init__()
        self.stored, self.bias, self.settings = _Weight(packed), packed.bias, packed._settings
        for name, value in vars(packed).items():  # the code of some models reads stride, kernel_size, ...
            if isinstance(value, int | tuple | str) and name not in vars(self):
                setattr(self, name, value)

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized weight. The code of some models reads its type."""
        return self.stored()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight, self.bias, **self.settings)
