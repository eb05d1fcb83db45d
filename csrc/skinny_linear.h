// y = x W^T for a few rows of x: a decoding step's products, whose time is that of reading the weights (CPU).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace synpro {

// x [..., K], weight [N, K] and bias [N] or none, all fp32 or all bf16; the result is [..., N] in their dtype, or in fp32 as it
// was summed where `wide`. A row does not depend on the others. most_lanes: floats of the widest registers that may be used (16,
// 8 or 4), for tests.
at::Tensor skinny_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, bool wide,
                         int64_t most_lanes);

}  // namespace synpro
