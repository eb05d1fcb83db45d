// The row kernels of the log-prob op: what is done to a block of logits between the matrix products (CPU, fp32).
#pragma once

#include <ATen/core/Tensor.h>

namespace synpro {

// Fold a block [C, B] into each token's running statistics, in place. Logits are `scale` times the block's entries;
// `column` is the target's place in the vocabulary shard, of which `start` is the block's first column.
void merge_logits_(const at::Tensor& block, at::Tensor maximum, at::Tensor sumexp, at::Tensor weighted,
                   at::Tensor target_logit, const at::Tensor& column, int64_t start, double scale);

// Turn a block [C, B] into dL/dproduct, in place. `coefficients` [C, 5]: m, slope / s, constant, g_entropy, slope g_logprob.
// `capped`: the block's entries are tanh(product / softcap), whose derivative belongs to the result.
void differentiate_logits_(at::Tensor block, const at::Tensor& coefficients, const at::Tensor& column, int64_t start,
                           double scale, bool capped);

}  // namespace synpro
