// Draws from softmax rows without writing them (CPU, fp32).
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace synpro {

// Of each row of logits [B, V] the column whose slice of the cumulative softmax(logits / temperature) holds uniform [B] fp64, and
// the log of its probability: int64 [B], fp32 [B]. A row that is not finite gives NaN.
std::tuple<at::Tensor, at::Tensor> draw_tokens(const at::Tensor& logits, const at::Tensor& uniform, double temperature);

}  // namespace synpro
