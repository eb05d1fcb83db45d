// The small ops between products, each in one pass over its rows (CPU). most_lanes: floats of the widest
// registers that may be used (16, 8 or 4), for tests.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace synpro {

// x [..., H] over the root of its mean square plus eps, times weight [H]; fp32 or bf16, both alike; sums are fp32.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, int64_t most_lanes);

// silu(gate) up of [..., 2 F], gates first; [..., F]. fp32 or bf16.
at::Tensor swiglu(const at::Tensor& gate_up, int64_t most_lanes);

// Of rms_norm the gradients of x and of weight. Those of the weight are summed in blocks of rows, whatever the threads.
std::tuple<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                                                     double eps, int64_t most_lanes);

// Pairs i and h / 2 + i of each head of x [S, B, n, h] turned by the angles whose fp32 cos and sin [S, B or 1, h] are given, or back.
at::Tensor rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool back, int64_t most_lanes);

// Of swiglu the gradient of gate_up.
at::Tensor swiglu_backward(const at::Tensor& grad, const at::Tensor& gate_up, int64_t most_lanes);

// Queries, keys and values of `mixed` [B, n (r + 2) h]: queries and keys normed, where weights are given, and turned by the angles
// [B, h]; key and value of row b go to place time[b] of page page[b] of [P, n, T, h]; returns the queries [B, n, r, h]. means: of
// the squares of all queries and of all keys, fp32 [B, 2], where they are of more than is here.
at::Tensor store_heads(const at::Tensor& mixed, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& key,
                       const at::Tensor& value, const at::Tensor& page, const at::Tensor& time,
                       const std::optional<at::Tensor>& query_weight, const std::optional<at::Tensor>& key_weight,
                       const std::optional<at::Tensor>& means, double eps, bool by_head, int64_t most_lanes);

}  // namespace synpro
