// <G, V_k> of a gradient that was formed already: one pass over both, nothing stored (CPU, fp32).
//
// Sums run in fp32 over short runs of entries and in double precision over these, in an order that does not depend on the
// number of threads.
#include "grad_dot.h"

#include <ATen/Parallel.h>

namespace synpro {
namespace {

constexpr int64_t kRun = 512;         // entries summed in fp32: a few dozen to a vector lane
constexpr int64_t kChunk = kRun * 64;  // entries of one task

SYNPRO_SIMD double chunk_dot(const float* gradient, const float* direction, int64_t count) {
  double total = 0.0;
  for (int64_t start = 0; start < count; start += kRun) {
    const int64_t stop = std::min(start + kRun, count);
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t n = start; n < stop; ++n) sum += gradient[n] * direction[n];
    total += sum;
  }
  return total;
}

}  // namespace

at::Tensor formed_dot(const at::Tensor& gradient, const at::Tensor& direction) {
  TORCH_CHECK(gradient.dim() == 1 && direction.dim() == 2 && direction.size(1) == gradient.size(0) &&
                  gradient.scalar_type() == at::kFloat && direction.scalar_type() == at::kFloat &&
                  gradient.is_contiguous() && direction.is_contiguous(),
              "formed_dot: expected contiguous fp32 gradient [P] and direction [K, P]");
  const int64_t entries = gradient.size(0), directions = direction.size(0);
  const int64_t chunks = (entries + kChunk - 1) / kChunk;
  std::vector<double> parts(directions * chunks);
  const float *g = gradient.const_data_ptr<float>(), *v = direction.const_data_ptr<float>();
  at::parallel_for(0, chunks, 8, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t start = chunk * kChunk, count = std::min(kChunk, entries - start);
      for (int64_t k = 0; k < directions; ++k)
        parts[k * chunks + chunk] = chunk_dot(g + start, v + k * entries + start, count);
    }
  });
  at::Tensor found = at::zeros({directions}, gradient.options().dtype(at::kDouble));
  double* out = found.mutable_data_ptr<double>();
  for (int64_t k = 0; k < directions; ++k)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) out[k] += parts[k * chunks + chunk];
  return found;
}

}  // namespace synpro
