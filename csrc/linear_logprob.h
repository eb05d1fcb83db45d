// Shared pieces of the CPU log-prob op: block sizes, the logits of one block, argument checks.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <optional>
#include <tuple>

namespace synpro {

// One block of logits lives at a time: kTokenBlock * kVocabBlock floats (2 MiB), near the size of a core's L2 cache.
constexpr int64_t kTokenBlock = 512;
constexpr int64_t kVocabBlock = 1024;

// How raw products become logits z = scale * f(product + bias); f is tanh(. / softcap) or the identity.
struct LogitMap {
  double softcap;  // 0: none
  float scale;     // 1 / temperature, times softcap where there is one

  LogitMap(double temperature, double softcap_)
      : softcap(softcap_), scale(static_cast<float>((softcap_ > 0 ? softcap_ : 1.0) / temperature)) {}
};

inline void check_inputs(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& target) {
  TORCH_CHECK(hidden.dim() == 2 && weight.dim() == 2 && hidden.size(1) == weight.size(1),
              "linear_logprob: expected hidden [T, H] and weight [V, H]");
  TORCH_CHECK(target.dim() == 1 && target.size(0) == hidden.size(0) && target.scalar_type() == at::kLong,
              "linear_logprob: expected int64 target [T]");
}

// Rows [start, start + length) of `source` as contiguous fp32; no copy where they already are.
inline at::Tensor float_rows(const at::Tensor& source, int64_t start, int64_t length) {
  return source.narrow(0, start, length).to(at::kFloat).contiguous();
}

// Write f(hidden_TH weight_VH^T + bias) of one block into `out` [t, v], still without LogitMap::scale.
inline void block_logits(at::Tensor& out, const at::Tensor& hidden, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias, const LogitMap& map) {
  at::mm_out(out, hidden, weight.t());
  if (bias.has_value()) out.add_(*bias);
  if (map.softcap > 0) out.div_(map.softcap).tanh_();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> linear_logprob_stats(
    const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& target, const std::optional<at::Tensor>& bias,
    double temperature, double softcap);

std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_logprob_grad(
    const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& target, const std::optional<at::Tensor>& bias,
    const at::Tensor& maximum, const at::Tensor& sumexp, const at::Tensor& entropy, const at::Tensor& grad_logprob,
    const at::Tensor& grad_logsumexp, const at::Tensor& grad_entropy, double temperature, double softcap,
    bool need_hidden, bool need_weight);

}  // namespace synpro
