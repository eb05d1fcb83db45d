// The weight gradient, segment by segment, dotted with directions before it is added (CPU, fp32 arithmetic).
//
// A block of output rows of one segment's gradient is formed in a buffer of L2's size; one pass over it takes its dot
// product with each direction and adds it to the accumulator. So the scores cost no GEMM, and nothing cancels.
#include "grad_dot.h"

#include <ATen/Parallel.h>

namespace synpro {
namespace {

constexpr int64_t kGradientEntries = 1 << 18;  // 1 MiB: the rows of a segment's gradient that live at a time
constexpr int64_t kGroupTokens = 4096;         // whole segments are converted to fp32 together, up to about this many

// Return the dot product of a gradient row with each direction's row (in `dots`), and add the row to the accumulator.
// Directions lie `direction_stride` floats apart.
SYNPRO_SIMD void dot_and_add(const float* gradient, const float* direction, int64_t direction_stride,
                             int64_t directions, int64_t count, float* accumulator, double* dots) {
  for (int64_t k = 0; k < directions; ++k) {
    const float* v = direction + k * direction_stride;
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(gradient[i]) * v[i];
    dots[k] = sum;
  }
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) accumulator[i] += gradient[i];
}

// The segment after the group that starts at `first`: as many whole segments as fit kGroupTokens, at least one.
int64_t group_end(at::IntArrayRef boundaries, int64_t first, int64_t segments) {
  int64_t end = first + 1;
  while (end < segments && boundaries[end + 1] - boundaries[first] <= kGroupTokens) ++end;
  return end;
}

// Everything of one block of output rows that does not change from segment to segment.
struct RowBlock {
  int64_t start, rows, inputs, directions;
  at::Tensor direction;  // [K, rows, I] fp32, contiguous
  float* accumulator;    // its first row
  at::Tensor buffer;     // at least rows * I floats
};

// Form these rows of one segment's gradient, add them to the accumulator, and their dots to scores[k * stride].
void score_rows(const RowBlock& block, const at::Tensor& grad_out, const at::Tensor& x, std::vector<double>& dots,
                double* scores, int64_t stride) {
  at::Tensor gradient = block.buffer.narrow(0, 0, block.rows * block.inputs).view({block.rows, block.inputs});
  at::mm_out(gradient, grad_out.narrow(1, block.start, block.rows).t(), x);
  const float *g = gradient.const_data_ptr<float>(), *v = block.direction.const_data_ptr<float>();
  const int64_t width = block.inputs, directions = block.directions;
  at::parallel_for(0, block.rows, std::max<int64_t>(1, 16384 / width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      dot_and_add(g + r * width, v + r * width, block.rows * width, directions, width, block.accumulator + r * width,
                  dots.data() + r * directions);
  });
  for (int64_t r = 0; r < block.rows; ++r)
    for (int64_t k = 0; k < directions; ++k) scores[k * stride] += dots[r * directions + k];
}

}  // namespace

at::Tensor grad_dot_prefix(const at::Tensor& x, const at::Tensor& grad_out, const at::Tensor& direction,
                           at::IntArrayRef boundaries, at::Tensor& accumulator) {
  const int64_t directions = direction.size(0), outputs = grad_out.size(1), inputs = x.size(1);
  const int64_t segments = static_cast<int64_t>(boundaries.size()) - 1;
  TORCH_CHECK(direction.dim() == 3 && direction.size(1) == outputs && direction.size(2) == inputs && segments >= 0,
              "grad_dot_prefix: expected direction [K, O, I] and segments + 1 boundaries");
  TORCH_CHECK(accumulator.scalar_type() == at::kFloat && accumulator.is_contiguous() &&
                  accumulator.sizes() == at::IntArrayRef({outputs, inputs}),
              "grad_dot_prefix: expected a contiguous fp32 accumulator [O, I]");
  const auto options = accumulator.options();
  const int64_t rows = std::min(outputs, std::max<int64_t>(1, kGradientEntries / inputs));
  const at::Tensor buffer = at::empty({rows * inputs}, options);
  std::vector<double> dots(rows * directions);
  std::vector<double> scores(directions * segments, 0.0);

  for (int64_t first = 0, end = 0; first < segments; first = end) {
    end = group_end(boundaries, first, segments);
    const int64_t origin = boundaries[first], tokens = boundaries[end] - origin;
    const at::Tensor x_group = float_block(x, 0, origin, tokens), grad_group = float_block(grad_out, 0, origin, tokens);
    for (int64_t o = 0; tokens > 0 && o < outputs; o += rows) {
      const int64_t count = std::min(rows, outputs - o);
      const RowBlock block{o,
                           count,
                           inputs,
                           directions,
                           float_block(direction, 1, o, count).contiguous(),
                           accumulator.mutable_data_ptr<float>() + o * inputs,
                           buffer};
      for (int64_t i = first; i < end; ++i) {
        const int64_t start = boundaries[i] - origin, length = boundaries[i + 1] - boundaries[i];
        if (length == 0) continue;
        score_rows(block, grad_group.narrow(0, start, length), x_group.narrow(0, start, length), dots,
                   scores.data() + i, segments);
      }
    }
  }
  at::Tensor result = at::empty({directions, segments}, options);
  std::copy(scores.begin(), scores.end(), result.mutable_data_ptr<float>());
  return result;
}

}  // namespace synpro
