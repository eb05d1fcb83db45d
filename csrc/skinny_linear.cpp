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
#include <vector>

namespace synpro {
namespace {

#define SYNPRO_TILES "skinny_tile.h"
#include "instruction_sets.h"

// The functions of one instruction set.
template <typename Stored>
struct Kernels {
  int64_t lanes;
  void (*pack)(const Stored*, int64_t, int64_t, float*);
  void (*columns)(const float*, const Stored*, int64_t, float*, int64_t, int64_t, int64_t, int64_t, int64_t);
};

#define SYNPRO_KERNELS(set) \
  Kernels<Stored> { set::kLanes, set::pack<Stored>, set::columns<Stored> }
template <typename Stored>
Kernels<Stored> kernels(int64_t most_lanes) {
  return SYNPRO_WIDEST(SYNPRO_KERNELS, most_lanes);
}

// Rows of weights of a task: so few that all threads have some tasks, so many that a task has panels to look ahead to.
int64_t columns_of_task(int64_t count) {
  constexpr int64_t kLeast = 24, kMost = 192;
  return std::clamp(count / (4 * at::get_num_threads()) / kLeast * kLeast, kLeast, kMost);
}

// bias: fp32, or none.
template <typename Stored>
void multiply(const Stored* x, const Stored* weight, const float* bias, float* out, int64_t rows, int64_t width, int64_t count,
              int64_t most_lanes) {
  const Kernels<Stored> chosen = kernels<Stored>(most_lanes);
  const int64_t most_step = 2 * chosen.lanes;
  // A tensor's memory begins with a line of the cache, and so does each of its registers.
  const at::Tensor memory = at::empty({rows * ((width + most_step - 1) / most_step) * most_step}, at::kFloat);
  float* packed = memory.mutable_data_ptr<float>();
  chosen.pack(x, rows, width, packed);
  const int64_t each = columns_of_task(count), tasks = (count + each - 1) / each;
  // Taken one by one: a thread whose core is shared with other work does fewer, and the others do not wait for it.
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(tasks, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      const int64_t begin = task * each, end = std::min(begin + each, count);
      // What the tiles add to. By the thread that does, for which it then lies in the cache.
      for (int64_t row = 0; row < rows; ++row) {
        float* to = out + row * count;
        if (bias == nullptr) {
          std::fill(to + begin, to + end, 0.0f);
        } else {
          std::copy(bias + begin, bias + end, to + begin);
        }
      }
      if (width > 0) chosen.columns(packed, weight, width, out, count, rows, width, begin, end);
    }
  });
}

const std::uint16_t* halves(const at::Tensor& tensor) {
  return reinterpret_cast<const std::uint16_t*>(tensor.const_data_ptr<at::BFloat16>());
}

}  // namespace

at::Tensor skinny_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, bool wide,
                         int64_t most_lanes) {
  const at::ScalarType dtype = x.scalar_type();
  TORCH_CHECK(x.dim() > 0 && weight.dim() == 2 && x.size(-1) == weight.size(1) && weight.is_contiguous() &&
                  dtype == weight.scalar_type() && (dtype == at::kFloat || dtype == at::kBFloat16),
              "skinny_linear: expected x [..., K] and contiguous weight [N, K], both fp32 or both bf16");
  const int64_t width = x.size(-1), count = weight.size(0);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = count;
  at::Tensor out = at::empty(sizes, x.options().dtype(at::kFloat));
  if (out.numel() > 0) {
    const at::Tensor from = x.contiguous(), added = bias.has_value() ? bias->to(at::kFloat).contiguous() : at::Tensor();
    const float* first = added.defined() ? added.const_data_ptr<float>() : nullptr;
    float* to = out.mutable_data_ptr<float>();
    const int64_t rows = out.numel() / count;
    if (dtype == at::kFloat) {
      multiply(from.const_data_ptr<float>(), weight.const_data_ptr<float>(), first, to, rows, width, count, most_lanes);
    } else {
      multiply(halves(from), halves(weight), first, to, rows, width, count, most_lanes);
    }
  }
  return wide ? out : out.to(dtype);
}

}  // namespace synpro
