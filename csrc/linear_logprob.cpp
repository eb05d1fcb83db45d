// Row kernels of the log-prob op. A block lies in cache after its matrix product; each is read once or twice here.
//
// Statistics per token: the maximum m of its logits z, s = sum exp(z - m), u = sum exp(z - m) (z - m), and the target's
// logit. The recurrence that merges blocks here also merges vocabulary shards in Python.
#include "linear_logprob.h"
#include "simd_math.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace synpro {
namespace {

constexpr int64_t kRowsPerTask = 16;

struct RowStats {
  float maximum, sumexp, weighted;
};

// What one token's row of gradients needs: dL/dlogit = p (constant - grad_entropy (z - m)) (+ target at the target).
struct RowGrad {
  float maximum, inverse, constant, grad_entropy, target;
};

// Merge `count` entries of one token into its running statistics.
SYNPRO_SIMD void merge_row(const float* row, int64_t count, float scale, RowStats& stats) {
  float block_max = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : block_max)
  for (int64_t v = 0; v < count; ++v) block_max = row[v] > block_max ? row[v] : block_max;
  // A NaN loses every comparison above; it still reaches the sums below.
  const float maximum = std::max(stats.maximum, block_max * scale);
  const bool all_masked = maximum == -std::numeric_limits<float>::infinity();
  const float origin = all_masked ? 0.0f : maximum;
  float sumexp = 0.0f, weighted = 0.0f;
#pragma omp simd reduction(+ : sumexp, weighted)
  for (int64_t v = 0; v < count; ++v) {
    const float shifted = row[v] * scale - origin;
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

SYNPRO_SIMD void differentiate_row(float* row, int64_t count, float scale, RowGrad g) {
#pragma omp simd
  for (int64_t v = 0; v < count; ++v) {
    const float shifted = row[v] * scale - g.maximum;
    row[v] = exp_nonpositive(shifted) * g.inverse * (g.constant - g.grad_entropy * clamp_log(shifted));
  }
}

// The same where the row holds tanh(product / softcap): times 1 - tanh^2.
SYNPRO_SIMD void differentiate_capped_row(float* row, int64_t count, float scale, RowGrad g) {
#pragma omp simd
  for (int64_t v = 0; v < count; ++v) {
    const float shifted = row[v] * scale - g.maximum;
    const float slope = 1.0f - row[v] * row[v];
    row[v] = exp_nonpositive(shifted) * g.inverse * (g.constant - g.grad_entropy * clamp_log(shifted)) * slope;
  }
}

void check_block(const at::Tensor& block, const at::Tensor& column) {
  TORCH_CHECK(block.dim() == 2 && block.scalar_type() == at::kFloat && block.stride(1) == 1,
              "linear_logprob: expected an fp32 block [C, B] with contiguous rows");
  TORCH_CHECK(column.is_contiguous() && column.scalar_type() == at::kLong && column.numel() == block.size(0),
              "linear_logprob: expected contiguous int64 columns [C]");
}

float* row_pointer(at::Tensor& values, const at::Tensor& block) {
  TORCH_CHECK(values.is_contiguous() && values.scalar_type() == at::kFloat && values.numel() == block.size(0),
              "linear_logprob: expected contiguous fp32 statistics [C]");
  return values.mutable_data_ptr<float>();
}

}  // namespace

void merge_logits_(const at::Tensor& block, at::Tensor maximum, at::Tensor sumexp, at::Tensor weighted,
                   at::Tensor target_logit, const at::Tensor& column, int64_t start, double scale_) {
  check_block(block, column);
  const int64_t tokens = block.size(0), count = block.size(1), stride = block.stride(0);
  const float scale = static_cast<float>(scale_);
  const float* logits = block.const_data_ptr<float>();
  const int64_t* wanted = column.const_data_ptr<int64_t>();
  float *m = row_pointer(maximum, block), *s = row_pointer(sumexp, block);
  float *u = row_pointer(weighted, block), *zt = row_pointer(target_logit, block);
  at::parallel_for(0, tokens, kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = logits + t * stride;
      RowStats stats{m[t], s[t], u[t]};
      merge_row(row, count, scale, stats);
      m[t] = stats.maximum, s[t] = stats.sumexp, u[t] = stats.weighted;
      const int64_t place = wanted[t] - start;
      if (place >= 0 && place < count) zt[t] = row[place] * scale;
    }
  });
}

void differentiate_logits_(at::Tensor block, const at::Tensor& coefficients, const at::Tensor& column, int64_t start,
                           double scale_, bool capped) {
  check_block(block, column);
  const int64_t tokens = block.size(0), count = block.size(1), stride = block.stride(0);
  TORCH_CHECK(coefficients.is_contiguous() && coefficients.scalar_type() == at::kFloat &&
                  coefficients.numel() == 5 * tokens,
              "linear_logprob: expected contiguous fp32 coefficients [C, 5]");
  const float scale = static_cast<float>(scale_);
  const float* packed = coefficients.const_data_ptr<float>();
  const int64_t* wanted = column.const_data_ptr<int64_t>();
  float* logits = block.mutable_data_ptr<float>();
  at::parallel_for(0, tokens, kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* p = packed + t * 5;
      const RowGrad g{p[0], p[1], p[2], p[3], p[4]};
      float* row = logits + t * stride;
      const int64_t place = wanted[t] - start;
      const bool here = place >= 0 && place < count;
      const float at_target = here ? row[place] : 0.0f;
      if (capped) {
        differentiate_capped_row(row, count, scale, g);
      } else {
        differentiate_row(row, count, scale, g);
      }
      if (here) row[place] += capped ? g.target * (1.0f - at_target * at_target) : g.target;
    }
  });
}

}  // namespace synpro
