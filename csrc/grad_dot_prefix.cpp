// The weight gradient, segment by segment, dotted with directions before it is added (CPU, fp32 arithmetic).
//
// A block of one segment's gradient is formed in a buffer of about L2's size; one pass over it takes its dot
// product with each direction and adds it to the accumulator. So the scores cost no GEMM, and nothing cancels.
#include "grad_dot.h"

#include <ATen/Parallel.h>

namespace synpro {
namespace {

constexpr int64_t kColumns = 1024;             // of a block of one segment's gradient that lives at a time
constexpr int64_t kGradientEntries = 1 << 18;  // of the block: 1 MiB, and at least 256 rows, as products like it
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

// A block of the gradient's rows and columns, and what belongs to it for every segment.
struct Block {
  int64_t row, rows, column, columns;
  at::Tensor direction;    // [K, rows, columns] fp32, unit inner stride
  at::Tensor accumulator;  // [rows, columns] of the whole
  at::Tensor gradient;     // [rows, columns], written for each segment
};

// Form the block of one segment's gradient, add it to the accumulator, and its dots to scores[k * stride].
void score_block(const Block& block, const at::Tensor& grad_out, const at::Tensor& x, std::vector<double>& dots,
                 double* scores, int64_t stride) {
  at::Tensor gradient = block.gradient;
  at::mm_out(gradient, grad_out.narrow(1, block.row, block.rows).t(), x.narrow(1, block.column, block.columns));
  const float *g = gradient.const_data_ptr<float>(), *v = block.direction.const_data_ptr<float>();
  float* total = block.accumulator.mutable_data_ptr<float>();
  const int64_t columns = block.columns, directions = block.direction.size(0), k_stride = block.direction.stride(0);
  const int64_t v_stride = block.direction.stride(1), total_stride = block.accumulator.stride(0);
  at::parallel_for(0, block.rows, std::max<int64_t>(1, 16384 / columns), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      dot_and_add(g + r * columns, v + r * v_stride, k_stride, directions, columns, total + r * total_stride,
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
  const int64_t columns = std::min(inputs, kColumns), rows = std::min(outputs, kGradientEntries / columns);
  const at::Tensor buffer = at::empty({rows * columns}, accumulator.options());
  std::vector<double> dots(rows * directions), scores(directions * segments, 0.0);

  for (int64_t first = 0, end = 0; first < segments; first = end) {
    end = group_end(boundaries, first, segments);
    const int64_t origin = boundaries[first], tokens = boundaries[end] - origin;
    if (tokens == 0) continue;
    const at::Tensor x_group = float_block(x, 0, origin, tokens), grad_group = float_block(grad_out, 0, origin, tokens);
    for (int64_t o = 0; o < outputs; o += rows) {
      for (int64_t c = 0; c < inputs; c += columns) {
        const int64_t nr = std::min(rows, outputs - o), nc = std::min(columns, inputs - c);
        const Block block{o,
                          nr,
                          c,
                          nc,
                          float_block(direction.narrow(1, o, nr), 2, c, nc),
                          accumulator.narrow(0, o, nr).narrow(1, c, nc),
                          buffer.narrow(0, 0, nr * nc).view({nr, nc})};
        for (int64_t i = first; i < end; ++i) {
          const int64_t start = boundaries[i] - origin, length = boundaries[i + 1] - boundaries[i];
          if (length == 0) continue;
          score_block(block, grad_group.narrow(0, start, length), x_group.narrow(0, start, length), dots,
                      scores.data() + i, segments);
        }
      }
    }
  }
  at::Tensor result = at::empty({directions, segments}, accumulator.options());
  std::copy(scores.begin(), scores.end(), result.mutable_data_ptr<float>());
  return result;
}

}  // namespace synpro
