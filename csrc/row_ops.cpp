// Norm and gated activation with their gradients, and heads of a decoding step. PyTorch makes each of them of several ops, which
// take longer to start than to compute where rows are few, and read and write memory once each where they are many.
#include "row_ops.h"
#include "simd_math.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace synpro {
namespace {

// Entries below which a second thread costs more than it saves.
constexpr int64_t kGrain = 1 << 14;
// Rows whose part in a weight's gradient is summed by one thread.
constexpr int64_t kBlock = 64;

#define SYNPRO_TILES "row_tile.h"
#include "instruction_sets.h"

// The functions of one instruction set.
template <typename Stored>
struct Kernels {
  float (*squares)(const Stored*, int64_t);
  void (*scaled)(const Stored*, float, const Stored*, Stored*, int64_t);
  void (*widened)(const Stored*, float, const Stored*, float*, int64_t);
  void (*gated)(const Stored*, const Stored*, Stored*, int64_t);
  void (*turned)(const float*, const float*, const float*, Stored*, int64_t, float);
  void (*rotated)(const Stored*, const float*, const float*, Stored*, int64_t, float);
  float (*weighted_dot)(const Stored*, const Stored*, const Stored*, int64_t);
  void (*norm_gradient)(const Stored*, const Stored*, const Stored*, float, float, Stored*, float*, int64_t);
  void (*gated_gradient)(const Stored*, const Stored*, const Stored*, Stored*, Stored*, int64_t);
};

#define SYNPRO_KERNELS(set)                                                                                                  \
  Kernels<Stored> {                                                                                                          \
    set::squares<Stored>, set::scaled<Stored, Stored>, set::scaled<Stored, float>, set::gated<Stored>,                       \
        set::turned<float, Stored>, set::turned<Stored, Stored>, set::weighted_dot<Stored>, set::norm_gradient<Stored>,      \
        set::gated_gradient<Stored>                                                                                          \
  }
template <typename Stored>
Kernels<Stored> kernels(int64_t most_lanes) {
  return SYNPRO_WIDEST(SYNPRO_KERNELS, most_lanes);
}

// How a type's numbers are read: bf16 by its bits.
template <typename T>
using StoredAs = std::conditional_t<std::is_same_v<T, at::BFloat16>, std::uint16_t, T>;

template <typename T>
const StoredAs<T>* read(const at::Tensor& tensor) {
  return reinterpret_cast<const StoredAs<T>*>(tensor.const_data_ptr<T>());
}
template <typename T>
StoredAs<T>* written(const at::Tensor& tensor) {
  return reinterpret_cast<StoredAs<T>*>(tensor.mutable_data_ptr<T>());
}

// Call `run` with a value of the tensors' type.
template <typename Run>
void by_type(const at::Tensor& like, const char* op, Run run) {
  TORCH_CHECK(like.scalar_type() == at::kFloat || like.scalar_type() == at::kBFloat16, op, ": expected fp32 or bf16");
  if (like.scalar_type() == at::kFloat) {
    run(float());
  } else {
    run(at::BFloat16());
  }
}

template <typename Run>
void each_row(int64_t rows, int64_t width, Run run) {
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) run(row);
  });
}

void check_heads(const at::Tensor& mixed, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& key,
                 const at::Tensor& value, const at::Tensor& page, const at::Tensor& time,
                 const std::optional<at::Tensor>& query_weight, const std::optional<at::Tensor>& key_weight,
                 const std::optional<at::Tensor>& means, bool by_head) {
  TORCH_CHECK(mixed.dim() == 2 && key.dim() == 4 && key.size(3) % 2 == 0 && key.stride(3) == 1 && value.sizes() == key.sizes() &&
                  value.strides() == key.strides() && key.scalar_type() == mixed.scalar_type() &&
                  value.scalar_type() == mixed.scalar_type() && mixed.size(1) % (key.size(1) * key.size(3)) == 0,
              "store_heads: expected mixed [B, n (r + 2) h], and pages [P, n, T, h] of its type with the same strides");
  const int64_t rows = mixed.size(0), heads = key.size(1), width = key.size(3), per_key = mixed.size(1) / (heads * width) - 2;
  TORCH_CHECK(cos.is_contiguous() && sin.is_contiguous() && cos.scalar_type() == at::kFloat && sin.scalar_type() == at::kFloat &&
                  cos.numel() == rows * width && sin.numel() == rows * width,
              "store_heads: expected contiguous fp32 angles [B, h]");
  TORCH_CHECK(page.is_contiguous() && time.is_contiguous() && page.scalar_type() == at::kLong && time.scalar_type() == at::kLong &&
                  page.numel() == rows && time.numel() == rows,
              "store_heads: expected contiguous int64 places [B]");
  const bool normed = query_weight.has_value();
  const int64_t of_queries = by_head ? width : heads * per_key * width, of_keys = by_head ? width : heads * width;
  TORCH_CHECK(!normed || (key_weight.has_value() && query_weight->is_contiguous() && key_weight->is_contiguous() &&
                          query_weight->numel() == of_queries && key_weight->numel() == of_keys &&
                          query_weight->scalar_type() == mixed.scalar_type() && key_weight->scalar_type() == mixed.scalar_type()),
              "store_heads: expected contiguous weights of the heads' norms, of their type");
  const int64_t *to_page = page.const_data_ptr<int64_t>(), *to_time = time.const_data_ptr<int64_t>();
  // A number beyond the pages would be written over whatever lies there.
  for (int64_t row = 0; row < rows; ++row)
    TORCH_CHECK_INDEX(to_page[row] >= 0 && to_page[row] < key.size(0) && to_time[row] >= 0 && to_time[row] < key.size(2),
                      "store_heads: no position ", to_time[row], " of a page ", to_page[row], " in ", key.sizes());
  TORCH_CHECK(!means.has_value() || (means->is_contiguous() && means->scalar_type() == at::kFloat && means->numel() == 2 * rows),
              "store_heads: expected contiguous fp32 means [B, 2]");
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, int64_t most_lanes) {
  const int64_t width = weight.numel();
  TORCH_CHECK(x.dim() > 0 && weight.dim() == 1 && x.size(-1) == width && width > 0 && weight.is_contiguous() &&
                  x.scalar_type() == weight.scalar_type(),
              "rms_norm: expected x [..., H] and contiguous weight [H] of one type");
  const at::Tensor from = x.contiguous();
  at::Tensor out = at::empty_like(from);
  by_type(x, "rms_norm", [&](auto type) {
    const auto *rows = read<decltype(type)>(from), *weights = read<decltype(type)>(weight);
    auto* to = written<decltype(type)>(out);
    const auto chosen = kernels<StoredAs<decltype(type)>>(most_lanes);
    each_row(from.numel() / width, width, [&](int64_t row) {
      const float mean = chosen.squares(rows + row * width, width) / static_cast<float>(width);
      const float scale = 1.0f / std::sqrt(mean + static_cast<float>(eps));
      chosen.scaled(rows + row * width, scale, weights, to + row * width, width);
    });
  });
  return out;
}

at::Tensor swiglu(const at::Tensor& gate_up, int64_t most_lanes) {
  TORCH_CHECK(gate_up.dim() > 0 && gate_up.size(-1) > 0 && gate_up.size(-1) % 2 == 0, "swiglu: expected [..., 2 F]");
  const at::Tensor from = gate_up.contiguous();
  std::vector<int64_t> sizes = from.sizes().vec();
  const int64_t width = sizes.back() /= 2;
  at::Tensor out = at::empty(sizes, from.options());
  by_type(from, "swiglu", [&](auto type) {
    const auto* rows = read<decltype(type)>(from);
    auto* to = written<decltype(type)>(out);
    const auto chosen = kernels<StoredAs<decltype(type)>>(most_lanes);
    each_row(out.numel() / width, width, [&](int64_t row) {
      chosen.gated(rows + 2 * row * width, rows + (2 * row + 1) * width, to + row * width, width);
    });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                                                     double eps, int64_t most_lanes) {
  const int64_t width = weight.numel();
  TORCH_CHECK(x.dim() > 0 && weight.dim() == 1 && x.size(-1) == width && width > 0 && weight.is_contiguous() &&
                  grad.sizes() == x.sizes() && x.scalar_type() == weight.scalar_type() && grad.scalar_type() == x.scalar_type(),
              "rms_norm_backward: expected grad and x [..., H] and contiguous weight [H] of one type");
  const at::Tensor from = x.contiguous(), slopes = grad.contiguous();
  at::Tensor out = at::empty_like(from);
  const int64_t rows = from.numel() / width, blocks = (rows + kBlock - 1) / kBlock;
  at::Tensor partial = at::zeros({blocks, width}, from.options().dtype(at::kFloat));
  by_type(x, "rms_norm_backward", [&](auto type) {
    const auto *data = read<decltype(type)>(from), *weights = read<decltype(type)>(weight), *grads = read<decltype(type)>(slopes);
    auto* to = written<decltype(type)>(out);
    float* sums = partial.mutable_data_ptr<float>();
    const auto chosen = kernels<StoredAs<decltype(type)>>(most_lanes);
    each_row(blocks, kBlock * width, [&](int64_t block) {
      for (int64_t row = block * kBlock; row < std::min(rows, (block + 1) * kBlock); ++row) {
        const int64_t at = row * width;
        const float mean = chosen.squares(data + at, width) / static_cast<float>(width);
        const float scale = 1.0f / std::sqrt(mean + static_cast<float>(eps));
        const float dot = chosen.weighted_dot(grads + at, weights, data + at, width);
        const float factor = dot * scale * scale * scale / static_cast<float>(width);
        chosen.norm_gradient(grads + at, data + at, weights, scale, factor, to + at, sums + block * width, width);
      }
    });
  });
  return {out, partial.sum(0).to(weight.scalar_type())};
}

at::Tensor swiglu_backward(const at::Tensor& grad, const at::Tensor& gate_up, int64_t most_lanes) {
  TORCH_CHECK(gate_up.dim() > 0 && gate_up.size(-1) > 0 && grad.dim() == gate_up.dim() && 2 * grad.numel() == gate_up.numel() &&
                  2 * grad.size(-1) == gate_up.size(-1) && grad.scalar_type() == gate_up.scalar_type(),
              "swiglu_backward: expected grad [..., F] and gate_up [..., 2 F] of one type");
  const at::Tensor from = gate_up.contiguous(), slopes = grad.contiguous();
  at::Tensor out = at::empty_like(from);
  const int64_t width = grad.size(-1);
  by_type(from, "swiglu_backward", [&](auto type) {
    const auto *data = read<decltype(type)>(from), *grads = read<decltype(type)>(slopes);
    auto* to = written<decltype(type)>(out);
    const auto chosen = kernels<StoredAs<decltype(type)>>(most_lanes);
    each_row(grad.numel() / width, width, [&](int64_t row) {
      const int64_t gate = 2 * row * width, up = gate + width;
      chosen.gated_gradient(grads + row * width, data + gate, data + up, to + gate, to + up, width);
    });
  });
  return out;
}

at::Tensor rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool back, int64_t most_lanes) {
  TORCH_CHECK(x.dim() == 4 && x.size(3) > 0 && x.size(3) % 2 == 0 && x.stride(3) == 1, "rotary: expected rows x [S, B, n, h]");
  const int64_t times = x.size(0), batch = x.size(1), heads = x.size(2), width = x.size(3);
  const bool by_row = cos.dim() == 3 && cos.size(1) != 1;
  TORCH_CHECK(cos.dim() == 3 && cos.size(0) == times && (cos.size(1) == batch || cos.size(1) == 1) && cos.size(2) == width &&
                  cos.sizes() == sin.sizes() && cos.is_contiguous() && sin.is_contiguous() && cos.scalar_type() == at::kFloat &&
                  sin.scalar_type() == at::kFloat,
              "rotary: expected contiguous fp32 cos and sin [S, B or 1, h]");
  at::Tensor out = at::empty(x.sizes(), x.options());
  const float *cosines = cos.const_data_ptr<float>(), *sines = sin.const_data_ptr<float>();
  by_type(x, "rotary", [&](auto type) {
    const auto* from = read<decltype(type)>(x);
    auto* to = written<decltype(type)>(out);
    const auto chosen = kernels<StoredAs<decltype(type)>>(most_lanes);
    each_row(times * batch, heads * width, [&](int64_t row) {
      const int64_t s = row / batch, b = row % batch, angle = (by_row ? row : s) * width;
      const auto* here = from + s * x.stride(0) + b * x.stride(1);
      for (int64_t n = 0; n < heads; ++n)
        chosen.rotated(here + n * x.stride(2), cosines + angle, sines + angle, to + (row * heads + n) * width, width / 2,
                       back ? -1.0f : 1.0f);
    });
  });
  return out;
}

at::Tensor store_heads(const at::Tensor& mixed, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& key,
                       const at::Tensor& value, const at::Tensor& page, const at::Tensor& time,
                       const std::optional<at::Tensor>& query_weight, const std::optional<at::Tensor>& key_weight,
                       const std::optional<at::Tensor>& means, double eps, bool by_head, int64_t most_lanes) {
  check_heads(mixed, cos, sin, key, value, page, time, query_weight, key_weight, means, by_head);
  const int64_t rows = mixed.size(0), heads = key.size(1), width = key.size(3), per_key = mixed.size(1) / (heads * width) - 2;
  const bool normed = query_weight.has_value();
  const int64_t of_queries = heads * per_key * width, of_keys = heads * width;
  const at::Tensor from = mixed.contiguous();
  at::Tensor query = at::empty({rows, heads, per_key, width}, mixed.options());
  const float *cosines = cos.const_data_ptr<float>(), *sines = sin.const_data_ptr<float>();
  const float* given = means.has_value() ? means->const_data_ptr<float>() : nullptr;
  const int64_t *to_page = page.const_data_ptr<int64_t>(), *to_time = time.const_data_ptr<int64_t>();
  by_type(mixed, "store_heads", [&](auto type) {
    using T = decltype(type);
    const auto chosen = kernels<StoredAs<T>>(most_lanes);
    const StoredAs<T>* data = read<T>(from);
    const StoredAs<T>* query_scale = normed ? read<T>(*query_weight) : nullptr;
    const StoredAs<T>* key_scale = normed ? read<T>(*key_weight) : nullptr;
    StoredAs<T> *queries = written<T>(query), *keys = written<T>(key), *values = written<T>(value);
    const auto over = [&](float mean) { return 1.0f / std::sqrt(mean + static_cast<float>(eps)); };
    each_row(rows, from.size(1), [&](int64_t row) {
      const StoredAs<T>* group = data + row * from.size(1);
      float query_factor = 1.0f, key_factor = 1.0f;
      if (normed && !by_head) {
        float of_query = 0.0f, of_key = 0.0f;
        for (int64_t n = 0; given == nullptr && n < heads; ++n) {
          const StoredAs<T>* here = group + n * (per_key + 2) * width;
          of_query += chosen.squares(here, per_key * width);
          of_key += chosen.squares(here + per_key * width, width);
        }
        query_factor = over(given == nullptr ? of_query / static_cast<float>(of_queries) : given[2 * row]);
        key_factor = over(given == nullptr ? of_key / static_cast<float>(of_keys) : given[2 * row + 1]);
      }
      const int64_t place = to_page[row] * key.stride(0) + to_time[row] * key.stride(2);
      std::vector<float> wide(width);
      for (int64_t n = 0; n < heads; ++n) {
        for (int64_t r = 0; r <= per_key; ++r) {
          const StoredAs<T>* here = group + (n * (per_key + 2) + r) * width;
          const bool is_key = r == per_key;
          const StoredAs<T>* scale = is_key ? key_scale : query_scale;
          float factor = is_key ? key_factor : query_factor;
          if (normed && by_head) factor = over(chosen.squares(here, width) / static_cast<float>(width));
          if (normed && !by_head) scale += (is_key ? n : n * per_key + r) * width;
          chosen.widened(here, factor, scale, wide.data(), width);
          StoredAs<T>* to = is_key ? keys + place + n * key.stride(1) : queries + ((row * heads + n) * per_key + r) * width;
          chosen.turned(wide.data(), cosines + row * width, sines + row * width, to, width / 2, 1.0f);
        }
        std::copy_n(group + (n * (per_key + 2) + per_key + 1) * width, width, values + place + n * key.stride(1));
      }
    });
  });
  return query;
}

}  // namespace synpro
