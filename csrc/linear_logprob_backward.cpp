// Rematerialising backward of the log-prob op: each block of logits is computed again, turned into its gradient in place,
// and multiplied out. Never holds more than one block of [tokens, vocab].
#include "linear_logprob.h"
#include "simd_math.h"

#include <ATen/Parallel.h>

#include <cmath>

namespace synpro {
namespace {

// What one token's logit gradient needs: dL/dz = p * (constant - grad_entropy * (z - m)) (+ grad_logprob at the target).
struct RowGrad {
  float maximum, inverse_sum, constant, grad_entropy;
};

// Turn f(product + bias) of one token into dL/dproduct, without the target's own term.
SYNPRO_SIMD void differentiate_row(float* row, int64_t count, float scale, RowGrad g) {
#pragma omp simd
  for (int64_t v = 0; v < count; ++v) {
    const float shifted = row[v] * scale - g.maximum;
    row[v] = exp_nonpositive(shifted) * g.inverse_sum * (g.constant - g.grad_entropy * clamp_log(shifted));
  }
}

// The chain rule of the soft cap and the temperature: `tanh_row` holds tanh((product + bias) / softcap).
void apply_softcap_slope(float* grad, const float* tanh_row, int64_t count) {
  for (int64_t v = 0; v < count; ++v) grad[v] *= 1.0f - tanh_row[v] * tanh_row[v];
}

RowGrad row_grad(float maximum, float sumexp, float entropy, float grad_logprob, float grad_logsumexp,
                 float grad_entropy) {
  // d entropy / dz = -p (log p + entropy), with log p = (z - m) - log s.
  const float constant = grad_logsumexp - grad_logprob - grad_entropy * (entropy - std::log(sumexp));
  return {maximum, 1.0f / sumexp, constant, grad_entropy};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_logprob_grad(
    const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& target, const std::optional<at::Tensor>& bias,
    const at::Tensor& maximum, const at::Tensor& sumexp, const at::Tensor& entropy, const at::Tensor& grad_logprob,
    const at::Tensor& grad_logsumexp, const at::Tensor& grad_entropy, double temperature, double softcap,
    bool need_hidden, bool need_weight) {
  check_inputs(hidden, weight, target);
  const int64_t tokens = hidden.size(0), width = hidden.size(1), vocab = weight.size(0);
  const LogitMap map(temperature, softcap);
  const float slope = static_cast<float>(1.0 / temperature);
  const auto options = hidden.options().dtype(at::kFloat);
  const at::Tensor inputs = float_rows(hidden, 0, tokens), targets = target.contiguous();
  const at::Tensor rows = at::stack({maximum, sumexp, entropy, grad_logprob, grad_logsumexp, grad_entropy}, 1);
  TORCH_CHECK(rows.scalar_type() == at::kFloat, "linear_logprob: expected fp32 statistics and gradients");
  const float* packed = rows.const_data_ptr<float>();
  const int64_t* wanted = targets.const_data_ptr<int64_t>();

  at::Tensor grad_hidden = need_hidden ? at::zeros({tokens, width}, options) : at::empty({0}, options);
  at::Tensor grad_weight = need_weight ? at::empty(weight.sizes(), weight.options()) : at::empty({0}, options);
  at::Tensor grad_bias = bias.has_value() ? at::zeros({vocab}, options) : at::empty({0}, options);
  const int64_t block_size = std::min(tokens, kTokenBlock) * std::min(vocab, kVocabBlock);
  at::Tensor buffer = at::empty({block_size}, options);
  at::Tensor tanh_buffer = at::empty({map.softcap > 0 ? block_size : 0}, options);
  const bool direct = need_weight && weight.scalar_type() == at::kFloat;
  at::Tensor staging = need_weight && !direct ? at::empty({std::min(vocab, kVocabBlock), width}, options) : at::Tensor();

  for (int64_t v0 = 0; v0 < vocab; v0 += kVocabBlock) {
    const int64_t nv = std::min(kVocabBlock, vocab - v0);
    const at::Tensor weight_block = float_rows(weight, v0, nv);
    std::optional<at::Tensor> bias_block;
    if (bias.has_value()) bias_block = float_rows(*bias, v0, nv);
    at::Tensor grad_block;
    if (need_weight) grad_block = (direct ? grad_weight.narrow(0, v0, nv) : staging.narrow(0, 0, nv)).zero_();
    for (int64_t t0 = 0; t0 < tokens; t0 += kTokenBlock) {
      const int64_t nt = std::min(kTokenBlock, tokens - t0);
      const at::Tensor input_block = inputs.narrow(0, t0, nt);
      at::Tensor logits = buffer.narrow(0, 0, nt * nv).view({nt, nv});
      block_logits(logits, input_block, weight_block, bias_block, map);
      if (map.softcap > 0) tanh_buffer.narrow(0, 0, nt * nv).view({nt, nv}).copy_(logits);
      float* block = logits.mutable_data_ptr<float>();
      const float* tanh_block = map.softcap > 0 ? tanh_buffer.const_data_ptr<float>() : nullptr;
      at::parallel_for(0, nt, 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const float* p = packed + (t0 + i) * 6;
          RowGrad g = row_grad(p[0], p[1], p[2], p[3], p[4], p[5]);
          g.inverse_sum *= slope;
          float* row = block + i * nv;
          differentiate_row(row, nv, map.scale, g);
          const int64_t column = wanted[t0 + i] - v0;
          if (column >= 0 && column < nv) row[column] += p[3] * slope;
          if (tanh_block != nullptr) apply_softcap_slope(row, tanh_block + i * nv, nv);
        }
      });
      if (need_hidden) grad_hidden.narrow(0, t0, nt).addmm_(logits, weight_block);
      if (need_weight) grad_block.addmm_(logits.t(), input_block);
      if (bias.has_value()) grad_bias.narrow(0, v0, nv).add_(logits.sum(0));
    }
    if (need_weight && !direct) grad_weight.narrow(0, v0, nv).copy_(grad_block);
  }
  return {grad_hidden, grad_weight, grad_bias};
}

}  // namespace synpro
