// The skinny product. A tile holds up to 8 rows of x times 3 of weights in registers, each summed along the registers' lanes, so
// weights are read where they lie, in the order in which they lie, and each is multiplied by all rows of the tile.
//
// One file serves every x86-64 machine: the tiles are compiled for three instruction sets and one is picked when called.
#include "skinny_linear.h"
#include "simd_math.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace synpro {
namespace {

#define SYNPRO_TILES "skinny_tile.h"
#include "instruction_sets.h"

// The functions of one instruction set.
template <typename Stored>
struct Kernels {
  int64_t lanes;
  void (*pack)(const Stored*, int64_t, int64_t, float*);
  void (*columns)(const float*, const Stored*, int64_t, const float*, float*, int64_t, int64_t, int64_t, int64_t,
                  int64_t);
};

template <typename Stored>
Kernels<Stored> kernels(int64_t most_lanes) {
  switch (lanes_here(most_lanes)) {
#ifdef SYNPRO_WIDE_LANES
    case 16: return {16, avx512::pack<Stored>, avx512::columns<Stored>};
    case 8: return {8, avx2::pack<Stored>, avx2::columns<Stored>};
#endif
    default: return {4, portable::pack<Stored>, portable::columns<Stored>};
  }
}

constexpr int64_t kColumnsPerTask = 24;

template <typename Stored>
void multiply(const Stored* x, const Stored* weight, const float* bias, float* out, int64_t rows, int64_t width,
              int64_t count, int64_t most_lanes) {
  const Kernels<Stored> chosen = kernels<Stored>(most_lanes);
  const int64_t most_step = 2 * chosen.lanes;
  // A tensor's memory begins with a line of the cache, and so does each of its registers.
  const at::Tensor memory = at::empty({rows * ((width + most_step - 1) / most_step) * most_step}, at::kFloat);
  float* packed = memory.mutable_data_ptr<float>();
  chosen.pack(x, rows, width, packed);
  const int64_t tasks = (count + kColumnsPerTask - 1) / kColumnsPerTask;
  // Taken one by one: a thread whose core is shared with other work does fewer, and the others do not wait for it.
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(tasks, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
      chosen.columns(packed, weight, width, bias, out, count, rows, width, task * kColumnsPerTask,
                     std::min((task + 1) * kColumnsPerTask, count));
  });
}

const std::uint16_t* halves(const at::Tensor& tensor) {
  return reinterpret_cast<const std::uint16_t*>(tensor.const_data_ptr<at::BFloat16>());
}

}  // namespace

at::Tensor skinny_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         int64_t most_lanes) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1) && x.is_contiguous() &&
                  weight.is_contiguous() && x.scalar_type() == weight.scalar_type() &&
                  (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16),
              "skinny_linear: expected contiguous x [B, K] and weight [N, K], both fp32 or both bf16");
  TORCH_CHECK(!bias.has_value() || (bias->is_contiguous() && bias->scalar_type() == at::kFloat &&
                                    bias->numel() == weight.size(0)),
              "skinny_linear: expected a contiguous fp32 bias [N]");
  const int64_t rows = x.size(0), width = x.size(1), count = weight.size(0);
  at::Tensor out = at::empty({rows, count}, x.options().dtype(at::kFloat));
  const float* start = bias.has_value() ? bias->const_data_ptr<float>() : nullptr;
  float* to = out.mutable_data_ptr<float>();
  if (width == 0) {
    out.zero_();
    if (bias.has_value()) out.add_(*bias);
  } else if (x.scalar_type() == at::kFloat) {
    multiply(x.const_data_ptr<float>(), weight.const_data_ptr<float>(), start, to, rows, width, count, most_lanes);
  } else {
    multiply(halves(x), halves(weight), start, to, rows, width, count, most_lanes);
  }
  return out;
}

}  // namespace synpro
