// The row kernels of linear_distill: what is done to blocks of logits between the matrix products (CPU, fp32).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace synpro {

// Fold a block [C, B] into each token's maximum m, sum of exp((z - m) inverse_temperature) and, where `both`, of exp(z - m), in
// place; `column` is the target's place among this rank's columns, of which `start` is the block's first one.
void distill_norms_(const at::Tensor& block, at::Tensor maximum, at::Tensor tempered, at::Tensor sumexp, at::Tensor target_logit,
                    const at::Tensor& column, int64_t start, double inverse_temperature, bool both);

// Add c exp((l - m) inverse_temperature) of a teacher's block of logits to `into`, or write it there where it is the `first`; `into`
// may be the block. teacher [C, 3]: m, c, log c.
void distill_mix_(const at::Tensor& block, const at::Tensor& teacher, at::Tensor into, double inverse_temperature, bool first);

// Turn the student's block into the loss's slopes, in place, and add each token's part of KL(q || p') to `divergence`. q is what
// `taught`, the last teacher's logits, makes of the mean, and `others`, what those before it made. student [C, 4]: m, the log of the
// tempered sum, and what the two exponentials are multiplied by; pull: of q; label: what the target's own slope is lowered by.
void distill_differentiate_(at::Tensor block, const at::Tensor& taught, const std::optional<at::Tensor>& others,
                            const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& column, int64_t start,
                            double inverse_temperature, double pull, double label, at::Tensor divergence);

}  // namespace synpro
