// Row kernels of linear_distill. Blocks lie in cache after their matrix products; each row is read twice for its norms, and once, with
// its teachers' rows, for its slopes.
#include "linear_distill.h"
#include "simd_math.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace synpro {
namespace {

constexpr int64_t kRowsPerTask = 16;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

struct RowNorms {
  float maximum, tempered, sumexp;
};

// What a token's row of slopes needs; see the header.
struct RowSlopes {
  float maximum, log_tempered, of_tempered, of_plain;
  float taught_maximum, scale, log_scale;
  float inverse_temperature, pull;
};

template <bool kBoth>
SYNPRO_INLINE void fold(const float* row, int64_t count, float inverse_temperature, RowNorms& norms) {
  float top = kNothing;
#pragma omp simd reduction(max : top)
  for (int64_t v = 0; v < count; ++v) top = row[v] > top ? row[v] : top;
  // A NaN loses every comparison above; it still reaches the sums below.
  const float maximum = std::max(norms.maximum, top);
  const float origin = maximum == kNothing ? 0.0f : maximum;
  float tempered = 0.0f, sumexp = 0.0f;
#pragma omp simd reduction(+ : tempered, sumexp)
  for (int64_t v = 0; v < count; ++v) {
    const float shifted = row[v] - origin;
    tempered += exp_nonpositive(shifted * inverse_temperature);
    if (kBoth) sumexp += exp_nonpositive(shifted);
  }
  // A sum of nothing may be moved by any shift; -inf minus -inf would be NaN.
  const float shift = norms.maximum == kNothing ? 0.0f : norms.maximum - origin;
  tempered += norms.tempered * std::exp(shift * inverse_temperature);
  if (kBoth) sumexp += norms.sumexp * std::exp(shift);
  norms = {maximum, tempered, sumexp};
}

SYNPRO_SIMD void fold_row(const float* row, int64_t count, float inverse_temperature, bool both, RowNorms& norms) {
  if (both) {
    fold<true>(row, count, inverse_temperature, norms);
  } else {
    fold<false>(row, count, inverse_temperature, norms);
  }
}

SYNPRO_SIMD void mix_row(const float* row, float* into, int64_t count, float inverse_temperature, float maximum, float scale,
                         bool first) {
  if (first) {
#pragma omp simd
    for (int64_t v = 0; v < count; ++v) into[v] = exp_nonpositive((row[v] - maximum) * inverse_temperature) * scale;
  } else {
#pragma omp simd
    for (int64_t v = 0; v < count; ++v) into[v] += exp_nonpositive((row[v] - maximum) * inverse_temperature) * scale;
  }
}

template <bool kOthers, bool kTempered>
SYNPRO_INLINE float slopes(float* row, const float* taught, const float* others, int64_t count, const RowSlopes& g) {
  float divergence = 0.0f;
#pragma omp simd reduction(+ : divergence)
  for (int64_t v = 0; v < count; ++v) {
    const float z = row[v] - g.maximum, expected = (taught[v] - g.taught_maximum) * g.inverse_temperature;
    const float tempered = kTempered ? z * g.inverse_temperature : z;
    float q = exp_nonpositive(expected) * g.scale, log_q = expected + g.log_scale;
    if (kOthers) {
      q += others[v];
      log_q = log_positive(q);
    }
    const float term = q * (log_q - (tempered - g.log_tempered));
    // 0 log 0 is 0; NaN is not 0, and shows.
    divergence += q == 0.0f ? 0.0f : term;
    const float e = exp_nonpositive(z);
    const float slope = kTempered ? exp_nonpositive(tempered) * g.of_tempered + e * g.of_plain : e * (g.of_tempered + g.of_plain);
    row[v] = slope - g.pull * q;
  }
  return divergence;
}

SYNPRO_SIMD float slopes_row(float* row, const float* taught, const float* others, int64_t count, const RowSlopes& g) {
  const bool tempered = g.inverse_temperature != 1.0f;
  if (others != nullptr)
    return tempered ? slopes<true, true>(row, taught, others, count, g) : slopes<true, false>(row, taught, others, count, g);
  return tempered ? slopes<false, true>(row, taught, others, count, g) : slopes<false, false>(row, taught, others, count, g);
}

void check_block(const at::Tensor& block, const at::Tensor& like) {
  TORCH_CHECK(block.dim() == 2 && block.scalar_type() == at::kFloat && block.is_contiguous() && block.sizes() == like.sizes(),
              "linear_distill: expected contiguous fp32 blocks [C, B], all alike");
}

void check_column(const at::Tensor& column, const at::Tensor& block) {
  TORCH_CHECK(column.is_contiguous() && column.scalar_type() == at::kLong && column.numel() == block.size(0),
              "linear_distill: expected contiguous int64 columns [C]");
}

void check_numbers(const at::Tensor& values, const at::Tensor& block, int64_t each) {
  TORCH_CHECK(values.is_contiguous() && values.scalar_type() == at::kFloat && values.numel() == each * block.size(0),
              "linear_distill: expected contiguous fp32 numbers [C, ", each, "]");
}

template <typename Run>
void each_row(int64_t rows, Run run) {
  at::parallel_for(0, rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) run(row);
  });
}

}  // namespace

void distill_norms_(const at::Tensor& block, at::Tensor maximum, at::Tensor tempered, at::Tensor sumexp, at::Tensor target_logit,
                    const at::Tensor& column, int64_t start, double inverse_temperature, bool both) {
  check_block(block, block);
  check_column(column, block);
  for (const at::Tensor* values : {&maximum, &tempered, &sumexp, &target_logit}) check_numbers(*values, block, 1);
  const int64_t count = block.size(1);
  const float *logits = block.const_data_ptr<float>(), by = static_cast<float>(inverse_temperature);
  const int64_t* wanted = column.const_data_ptr<int64_t>();
  float *m = maximum.mutable_data_ptr<float>(), *cool = tempered.mutable_data_ptr<float>();
  float *plain = sumexp.mutable_data_ptr<float>(), *of_target = target_logit.mutable_data_ptr<float>();
  each_row(block.size(0), [&](int64_t t) {
    const float* row = logits + t * count;
    RowNorms norms{m[t], cool[t], plain[t]};
    fold_row(row, count, by, both, norms);
    m[t] = norms.maximum, cool[t] = norms.tempered, plain[t] = norms.sumexp;
    const int64_t place = wanted[t] - start;
    if (place >= 0 && place < count) of_target[t] = row[place];
  });
}

void distill_mix_(const at::Tensor& block, const at::Tensor& teacher, at::Tensor into, double inverse_temperature, bool first) {
  check_block(block, block);
  check_block(into, block);
  check_numbers(teacher, block, 3);
  const int64_t count = block.size(1);
  const float *logits = block.const_data_ptr<float>(), *packed = teacher.const_data_ptr<float>();
  const float by = static_cast<float>(inverse_temperature);
  float* to = into.mutable_data_ptr<float>();
  each_row(block.size(0), [&](int64_t t) {
    mix_row(logits + t * count, to + t * count, count, by, packed[3 * t], packed[3 * t + 1], first);
  });
}

void distill_differentiate_(at::Tensor block, const at::Tensor& taught, const std::optional<at::Tensor>& others,
                            const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& column, int64_t start,
                            double inverse_temperature, double pull, double label, at::Tensor divergence) {
  check_block(block, block);
  check_block(taught, block);
  if (others.has_value()) check_block(*others, block);
  check_column(column, block);
  check_numbers(student, block, 4);
  check_numbers(teacher, block, 3);
  check_numbers(divergence, block, 1);
  const int64_t count = block.size(1);
  const float *of_student = student.const_data_ptr<float>(), *of_teacher = teacher.const_data_ptr<float>();
  const float *expected = taught.const_data_ptr<float>(), *before = others ? others->const_data_ptr<float>() : nullptr;
  const int64_t* wanted = column.const_data_ptr<int64_t>();
  float *logits = block.mutable_data_ptr<float>(), *parts = divergence.mutable_data_ptr<float>();
  each_row(block.size(0), [&](int64_t t) {
    const float *p = of_student + 4 * t, *k = of_teacher + 3 * t;
    const RowSlopes g{p[0], p[1], p[2], p[3], k[0], k[1], k[2], static_cast<float>(inverse_temperature), static_cast<float>(pull)};
    const int64_t at = t * count, place = wanted[t] - start;
    parts[t] += slopes_row(logits + at, expected + at, before == nullptr ? nullptr : before + at, count, g);
    if (place >= 0 && place < count) logits[at + place] -= static_cast<float>(label);
  });
}

}  // namespace synpro
