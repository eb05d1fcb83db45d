// y = x W^T for a few rows of x: a decoding step's products, whose time is that of reading the weights (CPU).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace synpro {

// x [B, K] and weight [N, K], both fp32 or both bf16, and bias [N] fp32 or none; the result is fp32 [B, N], sums too. A row does
// not depend on the others. most_lanes: floats of the widest registers that may be used (16, 8 or 4), for tests.
at::Tensor skinny_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         int64_t most_lanes);

}  // namespace synpro
