// b_t . (V x_t) for every token and direction, one block of products at a time (CPU, fp32 arithmetic).
//
// Either V x is formed and dotted with b (over_inputs), or b V and dotted with x: the caller chooses the cheaper order.
// Rows of products are summed in double precision across blocks, so a token's value does not depend on the block width.
#include "grad_dot.h"

#include <ATen/Parallel.h>

namespace synpro {
namespace {

// One block of products lives at a time: kTokenBlock * kColumnBlock floats (4 MiB). Half-precision directions are
// converted once for each block of tokens, so that block is long.
constexpr int64_t kTokenBlock = 2048;
constexpr int64_t kColumnBlock = 512;

SYNPRO_SIMD double row_dot(const float* products, const float* other, int64_t count) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t n = 0; n < count; ++n) sum += static_cast<double>(products[n]) * other[n];
  return sum;
}

// The right operand of the product, [reduction, n]: columns [start, start + n) of V^T (over_inputs) or of V, in fp32.
at::Tensor right_operand(const at::Tensor& direction, const std::optional<at::Tensor>& scale, int64_t start, int64_t n,
                         bool over_inputs) {
  at::Tensor block = float_block(direction, over_inputs ? 0 : 1, start, n);
  if (scale.has_value()) block = block.mul((over_inputs ? scale->narrow(0, start, n) : *scale).unsqueeze(1));
  return over_inputs ? block.t() : block;
}

}  // namespace

at::Tensor grad_dot_tokens(const at::Tensor& x, const at::Tensor& grad_out, const at::Tensor& direction,
                           const std::optional<at::Tensor>& scale, bool over_inputs) {
  TORCH_CHECK(x.dim() == 2 && grad_out.dim() == 2 && direction.dim() == 3 && x.size(0) == grad_out.size(0) &&
                  direction.size(1) == grad_out.size(1) && direction.size(2) == x.size(1),
              "grad_dot: expected x [T, I], grad_out [T, O] and direction [K, O, I]");
  const at::Tensor &contracted = over_inputs ? x : grad_out, &dotted = over_inputs ? grad_out : x;
  const int64_t directions = direction.size(0), tokens = x.size(0), width = dotted.size(1);
  const auto options = x.options().dtype(at::kFloat);
  at::Tensor result = at::empty({directions, tokens}, options);
  at::Tensor buffer = at::empty({std::min(tokens, kTokenBlock) * std::min(width, kColumnBlock)}, options);
  std::vector<double> sums(std::min(tokens, kTokenBlock));

  for (int64_t t0 = 0; t0 < tokens; t0 += kTokenBlock) {
    const int64_t nt = std::min(kTokenBlock, tokens - t0);
    const at::Tensor left = float_block(contracted, 0, t0, nt), other = float_block(dotted, 0, t0, nt);
    const float* other_rows = other.const_data_ptr<float>();
    const int64_t other_stride = other.stride(0);
    for (int64_t k = 0; k < directions; ++k) {
      const at::Tensor direction_k = direction.select(0, k);
      std::optional<at::Tensor> scale_k;
      if (scale.has_value()) scale_k = scale->select(0, k);
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int64_t n0 = 0; n0 < width; n0 += kColumnBlock) {
        const int64_t nn = std::min(kColumnBlock, width - n0);
        at::Tensor products = buffer.narrow(0, 0, nt * nn).view({nt, nn});
        at::mm_out(products, left, right_operand(direction_k, scale_k, n0, nn, over_inputs));
        const float* block = products.const_data_ptr<float>();
        at::parallel_for(0, nt, 64, [&](int64_t begin, int64_t end) {
          for (int64_t t = begin; t < end; ++t)
            sums[t] += row_dot(block + t * nn, other_rows + t * other_stride + n0, nn);
        });
      }
      float* out = result.mutable_data_ptr<float>() + k * tokens + t0;
      std::copy(sums.begin(), sums.begin() + nt, out);
    }
  }
  return result;
}

}  // namespace synpro
