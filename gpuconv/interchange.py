"""Arrays of other libraries: brought in as NumPy's or CuPy's, and given back as their own.

PyTorch's tensors, JAX's arrays, and whatever has `__dlpack__`, `__cuda_array_interface__` or
`__array__`. Memory is shared, not copied, where the layout and the type allow it. Such an array can
only exist once its library is imported, so nothing is imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from gpuconv.errors import DeviceError, one_line

HOST = (1, 3)  # DLPack's types of devices: memory of the CPU, pinned memory
GPU = (2, 13)  # a CUDA device, managed memory
NOTHING: Any = ()  # isinstance(x, NOTHING) is False


class Library(NamedTuple):
    """A library's arrays. bring(x): as an array of NumPy or CuPy. give(result): back again.

    inside(x): within, kernels run where the library orders its own work on x.
    """

    name: str
    bring: Callable[[Any], Any]
    give: Callable[[Any], Any]
    inside: Callable[[Any], AbstractContextManager[Any]] = lambda x: nullcontext()


def library_of(x: Any) -> Library | None:
    """Whose array x is; None for NumPy's plain arrays, for numbers and for what is no array."""
    if type(x) is np.ndarray or isinstance(x, np.generic | type | list | tuple):
        return None
    for library, module, name in ((TORCH, "torch", "Tensor"), (JAX, "jax", "Array")):
        if isinstance(x, getattr(sys.modules.get(module), name, NOTHING)):
            return library
    if isinstance(x, getattr(sys.modules.get("gpuconv.autograd.tensor"), "Tensor", NOTHING)):
        return OURS
    known = ("__dlpack__", "__cuda_array_interface__", "__array__")
    return OTHER if any(hasattr(x, name) for name in known) else None


def bring(x: Any, what: str = "the array") -> Any:
    """x as an array of NumPy, or of CuPy where it is on a GPU; itself if it is no library's array.

    Half precision of other libraries (bfloat16) becomes float32.
    Raises TypeError, one line that begins with `what`, for an array that cannot be taken.
    """
    library = library_of(x)
    if library is None:
        return x
    try:
        array = library.bring(x)
    except (MemoryError, DeviceError):
        raise
    except Exception as error:  # each library has errors of its own
        known = isinstance(error, _Refusal)
        detail = "" if known else f"is no array that can be taken ({type(x).__name__}): "
        raise TypeError(f"{what} {detail}{one_line(error)[:200]}") from None
    # ml_dtypes' bfloat16, as JAX has it, is none of NumPy's types
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


class _Refusal(TypeError):
    """What is wrong with an array, as the end of a sentence that its name begins."""


# ---- PyTorch -------------------------------------------------------------------------------------


def _from_torch(x: Any) -> Any:
    torch = sys.modules["torch"]
    if x.requires_grad and torch.is_grad_enabled():
        raise _Refusal(
            "requires a gradient, which PyTorch would lose here: use gpuconv.torch, or give "
            "x.detach()"
        )
    if x.layout != torch.strided or x.is_quantized:
        kind = "quantized" if x.is_quantized else str(x.layout).removeprefix("torch.")
        raise _Refusal(f"is a tensor of layout {kind}: convert it to a dense one")
    x = x.detach().resolve_conj().resolve_neg()
    if x.dtype == torch.bfloat16:
        x = x.float()
    if x.is_cuda:
        return _cuda().borrowed(x)
    if x.device.type != "cpu":
        raise _Refusal(f"is on PyTorch's device {x.device}: move it to the CPU or a CUDA device")
    return x.numpy()


def _to_torch(result: Any) -> Any:
    torch = sys.modules["torch"]
    if not isinstance(result, np.ndarray):
        return torch.from_dlpack(result)
    if not result.flags.writeable or min(result.strides, default=0) < 0:
        result = result.copy()
    return torch.from_numpy(result)


def _in_torch(x: Any) -> AbstractContextManager[Any]:
    """On PyTorch's current stream: its memory is reused in the order of that stream."""
    if not x.is_cuda:
        return nullcontext()
    torch = sys.modules["torch"]
    return _cuda().on_stream(torch.cuda.current_stream(x.device).cuda_stream, x.device.index)


# ---- JAX, and all others -------------------------------------------------------------------------


def _from_jax(x: Any) -> Any:
    if isinstance(x, sys.modules["jax"].core.Tracer):
        raise _Refusal(
            "is traced by JAX (jit, grad or vmap) and has no values: call this outside, or by "
            "jax.pure_callback"
        )
    (platform,) = {device.platform for device in x.devices()}
    return _cuda().borrowed(x) if platform in ("gpu", "cuda") else np.asarray(x)


def _to_jax(result: Any) -> Any:
    numpy = sys.modules["jax"].numpy
    return numpy.asarray(result) if isinstance(result, np.ndarray) else numpy.from_dlpack(result)


def _from_tensor(x: Any) -> Any:
    if x.requires_grad:
        raise _Refusal("is a Tensor that requires a gradient: use gpuconv.nn.functional, or .data")
    return x.data


def _from_other(x: Any) -> Any:
    if isinstance(x, np.ma.MaskedArray):
        raise _Refusal("is a masked array: give x.filled(...), which says what counts")
    if isinstance(x, np.ndarray):
        return np.asarray(x)  # a view without the subclass
    if hasattr(x, "__dlpack_device__"):
        device = int(x.__dlpack_device__()[0])
        if device in GPU:
            return _cuda().borrowed(x)
        if device not in HOST:
            raise _Refusal(f"is on DLPack's device {device}: move it to the CPU or a CUDA device")
        try:
            return np.from_dlpack(x)
        except (BufferError, RuntimeError, TypeError, ValueError):  # a type that DLPack lacks
            if not hasattr(x, "__array__"):
                raise
    return _cuda().borrowed(x) if hasattr(x, "__cuda_array_interface__") else np.asarray(x)


def _cuda() -> Any:
    from gpuconv.cuda.runtime import runtime  # late: NumPy's arrays need none of it

    return runtime("cuda")


def _itself(result: Any) -> Any:
    return result


TORCH = Library("PyTorch", _from_torch, _to_torch, _in_torch)
JAX = Library("JAX", _from_jax, _to_jax)
OURS = Library("gpuconv", _from_tensor, _itself)
OTHER = Library("another library", _from_other, _itself)
