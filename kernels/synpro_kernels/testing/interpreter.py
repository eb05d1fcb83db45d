"""Makes Triton's interpreter (TRITON_INTERPRET=1) right for bf16, so that kernels are tested on CPU tensors.

The interpreter holds bf16 as uint16 and then computes with the bit patterns: dots, sums and products of bf16 are
silently wrong, and casts truncate. `install()` puts a builder in place that decodes to fp32 before every operation and
rounds to nearest even after it.

Right with it, for bf16: tl.dot (fp32 accumulation), + - * /, comparisons, tl.where, tl.maximum, tl.minimum and
tl.clamp (they skip NaN in every dtype, as the hardware does), tl.fma, tl.full, casts from and to floats and integers
(NaN stays NaN), tl.max, tl.min, tl.argmax, tl.cumsum, tl.reduce with one's own function, TensorDescriptor loads and
stores.

Not modelled, or still wrong:
- tl.sum of bf16 adds in fp32 and rounds once; a GPU rounds after every addition. Write `tl.sum(x.to(tl.float32))`.
- fp64 and wide integers reach bf16 through fp32 (rounded twice); casts between fp8 and bf16 are left to Triton.
- input_precision "tf32" multiplies in full fp32; tl.fma rounds twice; sums are added in numpy's order.
- bf16 atomic arithmetic raises (Triton would add bit patterns); fp32 atomics run one by one, so no race ever shows.
- libdevice and inline assembly raise; @triton.autotune with several configurations fails for want of a driver.
- A load outside its tensor may read foreign memory or end the process; tl.device_print shows bf16 as its bits.
- What a GPU would refuse is accepted: dots below 16, too much shared memory, broken alignment promises.
"""

import os
from typing import Any

import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, TensorHandle, np

_BF16_NAN = 0x7FC0


def install() -> None:
    """Mend the interpreter of this process; a second call changes nothing. RuntimeError unless TRITON_INTERPRET is "1".

    To be called before the first kernel runs, and the variable must be set before the first kernel is decorated.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError('TRITON_INTERPRET must be "1" before kernels are imported; they are compiled otherwise')
    np.seterr(all="ignore")  # a GPU does not warn of overflow, of 0 / 0, or of NaN on its way to an integer
    # The instance is shared by every interpreted function, and some already hold it: it changes its class instead.
    interpreter.interpreter_builder.__class__ = _Builder
    interpreter.InterpreterBuilder = _Builder
    interpreter.ReduceOps = _ReduceOps


def _is_bf16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _values(handle: TensorHandle) -> Any:
    """The handle's array, decoded to fp32 where it holds the bits of bf16."""
    return (handle.data.astype(np.uint32) << 16).view(np.float32) if _is_bf16(handle) else handle.data


def _bf16(values: Any) -> TensorHandle:
    """Numbers of any type, rounded to the nearest bf16 (ties to even) and held as its bits."""
    numbers = np.asarray(values).astype(np.float32)
    bits = numbers.view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return TensorHandle(np.where(np.isnan(numbers), _BF16_NAN, nearest).astype(np.uint16), tl.bfloat16)


class _Builder(InterpreterBuilder):
    """Triton's interpreting builder, which leaves bf16 to this class and everything else as it was."""

    def get_bf16(self, value: float) -> TensorHandle:
        return _bf16([value])

    def cast_impl(self, src: TensorHandle, dst_type: Any) -> TensorHandle:
        if dst_type.scalar == tl.bfloat16:
            return _bf16(_values(src))
        return super().cast_impl(TensorHandle(_values(src), tl.float32) if _is_bf16(src) else src, dst_type)

    # Some versions of Triton bind these past cast_impl.
    create_fp_ext = create_fp_trunc = create_si_to_fp = create_ui_to_fp = cast_impl

    def binary_op(self, lhs: TensorHandle, rhs: TensorHandle, op: Any) -> TensorHandle:
        if not _is_bf16(lhs):
            return super().binary_op(lhs, rhs, op)
        result = op(_values(lhs), _values(rhs))
        return TensorHandle(result, tl.int1) if result.dtype == np.bool_ else _bf16(result)

    def create_fma(self, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
        return _bf16(_values(x) * _values(y) + _values(z)) if _is_bf16(x) else super().create_fma(x, y, z)

    def create_maxnumf(self, lhs: TensorHandle, rhs: TensorHandle) -> TensorHandle:
        return self.binary_op(lhs, rhs, np.fmax)

    def create_minnumf(self, lhs: TensorHandle, rhs: TensorHandle) -> TensorHandle:
        return self.binary_op(lhs, rhs, np.fmin)

    def create_clampf(self, arg: TensorHandle, lo: TensorHandle, hi: TensorHandle, propagate_nans: Any) -> TensorHandle:
        if propagate_nans != interpreter._ir.PROPAGATE_NAN.NONE:
            return super().create_clampf(arg, lo, hi, propagate_nans)
        return self.binary_op(self.binary_op(arg, lo, np.fmax), hi, np.fmin)

    def create_dot(self, a: TensorHandle, b: TensorHandle, d: TensorHandle, *precision: Any) -> TensorHandle:
        if not _is_bf16(a):
            return super().create_dot(a, b, d, *precision)
        product = np.matmul(_values(a), _values(b)) + d.data
        return TensorHandle(product.astype(d.data.dtype), d.dtype.scalar)

    def create_descriptor_load(self, desc: Any, indices: Any, *cache: Any) -> TensorHandle:
        loaded = super().create_descriptor_load(desc, indices, *cache)
        if _is_bf16(loaded) and desc.padding == interpreter._ir.PADDING_OPTION.PAD_NAN:
            _, inside = desc.materialize_pointers(indices)
            loaded.data = np.where(inside, loaded.data, np.uint16(_BF16_NAN))
        return loaded

    def create_atomic_rmw(self, operation: Any, ptr: Any, val: TensorHandle, *rest: Any) -> TensorHandle:
        if _is_bf16(val) and operation != interpreter._ir.ATOMIC_OP.XCHG:
            raise NotImplementedError("bf16 atomics: the interpreter would compute with the bit patterns")
        return super().create_atomic_rmw(operation, ptr, val, *rest)


class _ReduceOps(ReduceOps):
    """tl.sum of bf16; the other reductions are promoted to fp32 by Triton before they come here."""

    def sum(self, input: Any) -> Any:
        if not _is_bf16(input.handle):
            return super().sum(input)
        total = np.sum(_values(input.handle), axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(_bf16(total).data, input.dtype)
