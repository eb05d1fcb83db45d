// Log-prob statistics of a linear output layer, one block of logits at a time (CPU, fp32 arithmetic).
//
// Returns per token what a vocabulary shard knows: the maximum m of its logits, s = sum exp(z - m),
// u = sum exp(z - m) (z - m), and the target's logit (0 where the target is in another shard). The online recurrence that
// merges blocks here also merges shards in Python: log-sum-exp = m + log s, entropy = log s - u / s.
#include "linear_logprob.h"
#include "simd_math.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <limits>

namespace synpro {
namespace {

struct RowStats {
  float maximum, sumexp, weighted;
};

// Merge `count` products of one token into its running statistics.
SYNPRO_SIMD void merge_row(const float* products, int64_t count, float scale, RowStats& stats) {
  float block_max = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : block_max)
  for (int64_t v = 0; v < count; ++v) block_max = products[v] > block_max ? products[v] : block_max;
  // A NaN loses every comparison above; it still reaches the sums below.
  const float maximum = std::max(stats.maximum, block_max * scale);
  const bool all_masked = maximum == -std::numeric_limits<float>::infinity();
  const float origin = all_masked ? 0.0f : maximum;
  float sumexp = 0.0f, weighted = 0.0f;
#pragma omp simd reduction(+ : sumexp, weighted)
  for (int64_t v = 0; v < count; ++v) {
    const float shifted = products[v] * scale - origin;
    const float e = exp_nonpositive(shifted);
    sumexp += e;
    weighted += e * clamp_log(shifted);
  }
  if (stats.sumexp > 0) {
    const float shift = stats.maximum - maximum;
    const float decay = std::exp(shift);
    // decay == 0 forgets the past; without the test a shift of -inf would make it NaN.
    if (decay > 0) {
      weighted += decay * (stats.weighted + stats.sumexp * shift);
      sumexp += decay * stats.sumexp;
    }
  } else if (std::isnan(stats.sumexp)) {
    sumexp = weighted = stats.sumexp;
  }
  stats = {maximum, sumexp, weighted};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> linear_logprob_stats(
    const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& target, const std::optional<at::Tensor>& bias,
    double temperature, double softcap) {
  check_inputs(hidden, weight, target);
  const int64_t tokens = hidden.size(0), vocab = weight.size(0);
  const LogitMap map(temperature, softcap);
  const auto options = hidden.options().dtype(at::kFloat);
  at::Tensor maximum = at::full({tokens}, -std::numeric_limits<float>::infinity(), options);
  at::Tensor sumexp = at::zeros({tokens}, options), weighted = at::zeros({tokens}, options);
  at::Tensor target_logit = at::zeros({tokens}, options);
  float *m = maximum.mutable_data_ptr<float>(), *s = sumexp.mutable_data_ptr<float>();
  float *u = weighted.mutable_data_ptr<float>(), *zt = target_logit.mutable_data_ptr<float>();
  const at::Tensor targets = target.contiguous(), inputs = float_rows(hidden, 0, tokens);
  const int64_t* wanted = targets.const_data_ptr<int64_t>();
  at::Tensor buffer = at::empty({std::min(tokens, kTokenBlock) * std::min(vocab, kVocabBlock)}, options);

  for (int64_t v0 = 0; v0 < vocab; v0 += kVocabBlock) {
    const int64_t nv = std::min(kVocabBlock, vocab - v0);
    const at::Tensor weight_block = float_rows(weight, v0, nv);
    std::optional<at::Tensor> bias_block;
    if (bias.has_value()) bias_block = float_rows(*bias, v0, nv);
    for (int64_t t0 = 0; t0 < tokens; t0 += kTokenBlock) {
      const int64_t nt = std::min(kTokenBlock, tokens - t0);
      at::Tensor logits = buffer.narrow(0, 0, nt * nv).view({nt, nv});
      block_logits(logits, inputs.narrow(0, t0, nt), weight_block, bias_block, map);
      const float* block = logits.const_data_ptr<float>();
      at::parallel_for(0, nt, 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t t = t0 + i, column = wanted[t] - v0;
          const float* row = block + i * nv;
          RowStats stats{m[t], s[t], u[t]};
          merge_row(row, nv, map.scale, stats);
          m[t] = stats.maximum, s[t] = stats.sumexp, u[t] = stats.weighted;
          if (column >= 0 && column < nv) zt[t] = row[column] * map.scale;
        }
      });
    }
  }
  return {maximum, sumexp, weighted, target_logit};
}

}  // namespace synpro
