"""What writers of GGUF files share: the package's writer, announced tensors, and the order of rows."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jettison.formats.gguf_types import row_bytes
from jettison.graph.gguf.checkpoint import rotary_order
from jettison.graph.gguf.container import require_gguf
from jettison.graph.gguf.outline import FileTensor


def open_writer(path: Path, architecture: str, metadata: Mapping[str, Any]) -> Any:
    """Return the package's writer of a file, with its metadata. Whole numbers become uint32, others float32."""
    writer = require_gguf().GGUFWriter(path, architecture)
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in metadata.items():
        (writer.add_array if isinstance(value, list) else add[type(value)])(key, value)
    return writer


def add_info(writer: Any, name: str, shape: tuple[int, ...], kind: str) -> None:
    """Announce a tensor of a type to the writer."""
    size = math.prod(shape[:-1]) * row_bytes(kind, shape[-1])
    number = require_gguf().GGMLQuantizationType[kind]
    writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=number)


def begin(writer: Any) -> None:
    """Write the header. The data of the tensors follow in the order in which they were announced."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def in_file_order(rows: torch.Tensor, part: FileTensor) -> torch.Tensor:
    """Put rows in the file's order, which pairs neighbours for the rotary positions where the model pairs halves."""
    if part.heads is None:
        return rows
    result = torch.empty_like(rows)
    result[torch.from_numpy(rotary_order(len(rows), part.heads, part.name))] = rows
    return result
