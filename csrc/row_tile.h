// The inner loops of the small ops, for one instruction set (instruction_sets.h). Includes no standard library, as skinny_tile.h
// says.
#include "skinny_tile.h"

SYNPRO_INLINE void store(float value, float* to) { *to = value; }
// To the nearest bf16, and to the even one of two.
SYNPRO_INLINE void store(float value, std::uint16_t* to) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  // Rounding would carry the payload of some NaNs into an infinity.
  *to = static_cast<std::uint16_t>(value == value ? rounded : 0x7fc0u);
}

template <typename Stored>
static float squares(const Stored* x, int64_t count) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += widened(x[i]) * widened(x[i]);
  return sum;
}

// to = x scale weight; without a weight x as it is.
template <typename Stored, typename To>
static void scaled(const Stored* x, float scale, const Stored* weight, To* to, int64_t count) {
  if (weight == nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) store(widened(x[i]), to + i);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) store(widened(x[i]) * scale * widened(weight[i]), to + i);
  }
}

// to = silu(gate) up. The exponential is of what is negative, so that none is beyond a float.
template <typename Stored>
static void gated(const Stored* gate, const Stored* up, Stored* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float value = widened(gate[i]), small = exp_nonpositive(value < 0.0f ? value : -value);
    store(value * (value < 0.0f ? small : 1.0f) / (1.0f + small) * widened(up[i]), to + i);
  }
}

// The sum of grad weight x.
template <typename Stored>
static float weighted_dot(const Stored* grad, const Stored* weight, const Stored* x, int64_t count) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += widened(grad[i]) * widened(weight[i]) * widened(x[i]);
  return sum;
}

// to = grad weight scale - x factor, a norm's gradient; of_weight gets its own added.
template <typename Stored>
static void norm_gradient(const Stored* grad, const Stored* x, const Stored* weight, float scale, float factor, Stored* to,
                          float* of_weight, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float slope = widened(grad[i]), value = widened(x[i]);
    of_weight[i] += slope * value * scale;
    store(slope * widened(weight[i]) * scale - value * factor, to + i);
  }
}

// The gradients of silu(gate) up.
template <typename Stored>
static void gated_gradient(const Stored* grad, const Stored* gate, const Stored* up, Stored* to_gate, Stored* to_up,
                           int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float value = widened(gate[i]), slope = widened(grad[i]);
    const float small = exp_nonpositive(value < 0.0f ? value : -value);
    // The sigmoid, and 1 less it, neither of them by a difference.
    const float sigmoid = (value < 0.0f ? small : 1.0f) / (1.0f + small);
    const float rest = (value < 0.0f ? 1.0f : small) / (1.0f + small);
    store(slope * widened(up[i]) * sigmoid * (1.0f + value * rest), to_gate + i);
    store(slope * value * sigmoid, to_up + i);
  }
}

// Pairs i and half + i turned by their angle; way: 1, or -1 for the turn back.
template <typename From, typename Stored>
static void turned(const From* x, const float* cos, const float* sin, Stored* to, int64_t half, float way) {
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float first = widened(x[i]), second = widened(x[half + i]);
    store(first * cos[i] - second * (way * sin[i]), to + i);
    store(second * cos[half + i] + first * (way * sin[half + i]), to + half + i);
  }
}
