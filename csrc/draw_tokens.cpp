// Draws from softmax rows: a pass for the largest logit, one for the sums of blocks of exponentials, and the block that is hit.
#include "draw_tokens.h"
#include "simd_math.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace synpro {
namespace {

constexpr int64_t kBlock = 256;

SYNPRO_SIMD float largest(const float* row, int64_t count) {
  float found = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : found)
  for (int64_t v = 0; v < count; ++v) found = row[v] > found ? row[v] : found;
  return found;
}

// fp64, so that borders between columns do not move: fp32 over a vocabulary would lose whole columns.
SYNPRO_SIMD double block_sum(const float* row, int64_t count, float top, float scale) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t v = 0; v < count; ++v) sum += static_cast<double>(exp_nonpositive((row[v] - top) * scale));
  return sum;
}

struct Drawn {
  int64_t column;
  float logprob;
};

Drawn draw_row(const float* row, int64_t count, float scale, double uniform, std::vector<double>& sums) {
  const float top = largest(row, count);
  double total = 0.0;
  for (int64_t start = 0, block = 0; start < count; start += kBlock, ++block) {
    sums[block] = block_sum(row + start, std::min(kBlock, count - start), top, scale);
    total += sums[block];
  }
  if (!std::isfinite(top) || !std::isfinite(total)) return {0, std::numeric_limits<float>::quiet_NaN()};
  // uniform < 1, but its product with the total may round up to it.
  const double target = std::min(uniform * total, std::nextafter(total, 0.0));
  double before = 0.0;
  int64_t block = 0, last = (count - 1) / kBlock;
  while (block < last && before + sums[block] <= target) before += sums[block++];
  // The last column with any weight up to where the sum passes the target: a block's own sum, added in another order, may be a
  // bit more than its columns'.
  int64_t found = -1;
  for (int64_t v = block * kBlock; v < std::min((block + 1) * kBlock, count); ++v) {
    const float weight = exp_nonpositive((row[v] - top) * scale);
    if (weight == 0.0f) continue;
    found = v;
    before += weight;
    if (before > target) break;
  }
  // All of a hit block may be 0 only behind the last positive one; the largest logit's weight is 1.
  if (found < 0)
    for (found = block * kBlock; exp_nonpositive((row[found] - top) * scale) == 0.0f;) --found;
  return {found, static_cast<float>((row[found] - top) * static_cast<double>(scale) - std::log(total))};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> draw_tokens(const at::Tensor& logits, const at::Tensor& uniform, double temperature) {
  TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 0 && logits.stride(1) == 1 && logits.scalar_type() == at::kFloat &&
                  uniform.is_contiguous() && uniform.scalar_type() == at::kDouble && uniform.numel() == logits.size(0),
              "draw_tokens: expected fp32 logits [B, V] with contiguous rows and contiguous fp64 numbers [B]");
  const int64_t rows = logits.size(0), count = logits.size(1), stride = logits.stride(0);
  at::Tensor column = at::empty({rows}, logits.options().dtype(at::kLong)), logprob = at::empty({rows}, logits.options());
  const float *values = logits.const_data_ptr<float>(), scale = static_cast<float>(1.0 / temperature);
  const double* u = uniform.const_data_ptr<double>();
  int64_t* to_column = column.mutable_data_ptr<int64_t>();
  float* to_logprob = logprob.mutable_data_ptr<float>();
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> sums((count + kBlock - 1) / kBlock);
    for (int64_t b = begin; b < end; ++b) {
      const Drawn drawn = draw_row(values + b * stride, count, scale, u[b], sums);
      to_column[b] = drawn.column, to_logprob[b] = drawn.logprob;
    }
  });
  return {column, logprob};
}

}  // namespace synpro
