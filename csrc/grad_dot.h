// Shared pieces of the CPU gradient-dot ops: block sizes, conversions, dot products of rows.
#pragma once

#include "simd_math.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace synpro {

// Block [start, start + length) of `source` along `dim`, as fp32 with unit inner stride; no copy where it already is.
inline at::Tensor float_block(const at::Tensor& source, int64_t dim, int64_t start, int64_t length) {
  at::Tensor block = source.narrow(dim, start, length).to(at::kFloat);
  return block.stride(-1) == 1 || block.size(-1) <= 1 ? block : block.contiguous();
}

at::Tensor grad_dot_tokens(const at::Tensor& x, const at::Tensor& grad_out, const at::Tensor& direction,
                           const std::optional<at::Tensor>& scale, bool over_inputs);

at::Tensor formed_dot(const at::Tensor& gradient, const at::Tensor& direction);

at::Tensor grad_dot_prefix(const at::Tensor& x, const at::Tensor& grad_out, const at::Tensor& direction,
                           at::IntArrayRef boundaries, at::Tensor& accumulator);

}  // namespace synpro
