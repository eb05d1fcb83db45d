// Vector-friendly float math for the CPU epilogues. Knows nothing of tensors.
//
// One binary serves every x86-64 machine: functions marked SYNPRO_SIMD are compiled for several instruction sets and the
// loader picks one. Inside them, loops over `exp_nonpositive` become vector code because it has no branch and no call.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define SYNPRO_SIMD __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define SYNPRO_SIMD
#endif
#define SYNPRO_INLINE static inline __attribute__((always_inline))

namespace synpro {

// Below this the exponential of a float is less than the smallest normal number; the epilogues call it 0.
constexpr float kExpUnderflow = -87.3f;
// Clamp for log-probabilities that meet a probability of 0 (0 * -inf would be NaN).
constexpr float kLogFloor = -104.0f;

// max(x, kLogFloor) that lets NaN through, so that a broken model shows.
SYNPRO_INLINE float clamp_log(float x) { return x < kLogFloor ? kLogFloor : x; }

// exp(x) for x <= 0, about 1 ulp: x = n ln2 + r with |r| <= ln2/2, a degree-6 polynomial in r (Cody and Waite's split of
// ln2, Cephes' coefficients for the tail), then 2^n by its bit pattern. NaN gives NaN, x < -87.3 gives 0.
SYNPRO_INLINE float exp_nonpositive(float x) {
  const float clamped = clamp_log(x);
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const float shifted = clamped * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  float r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float poly = 1.9875691500e-4f;
  poly = poly * r + 1.3981999507e-3f;
  poly = poly * r + 8.3334519073e-3f;
  poly = poly * r + 4.1665795894e-2f;
  poly = poly * r + 1.6666665459e-1f;
  poly = poly * r + 5.0000001201e-1f;
  poly = poly * r * r + r + 1.0f;
  std::int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  // The low mantissa bits of `shifted` hold n; shifting them into the exponent field multiplies by 2^n.
  const std::uint32_t scale_bits = (static_cast<std::uint32_t>(bits) << 23) + 0x3f800000u;
  float scale;
  std::memcpy(&scale, &scale_bits, sizeof scale);
  const float value = poly * scale;
  return clamped < kExpUnderflow ? 0.0f : value;
}

// log(x) for finite x > 0, about 1 ulp, by x = 2^n m with m in [sqrt(1/2), sqrt(2)) and Cephes' polynomial in m - 1. What is below
// the smallest normal number counts as that; of NaN comes any number, so callers multiply by x.
SYNPRO_INLINE float log_positive(float x) {
  const float normal = x < 1.17549435e-38f ? 1.17549435e-38f : x;
  std::int32_t bits;
  std::memcpy(&bits, &normal, sizeof bits);
  const std::int32_t exponent = (bits - 0x3f3504f3) >> 23;  // of x / sqrt(1/2)
  const std::int32_t mantissa = bits - exponent * (1 << 23);
  float m;
  std::memcpy(&m, &mantissa, sizeof m);
  const float n = static_cast<float>(exponent), r = m - 1.0f, square = r * r;
  float poly = 7.0376836292e-2f;
  poly = poly * r - 1.1514610310e-1f;
  poly = poly * r + 1.1676998740e-1f;
  poly = poly * r - 1.2420140846e-1f;
  poly = poly * r + 1.4249322787e-1f;
  poly = poly * r - 1.6668057665e-1f;
  poly = poly * r + 2.0000714765e-1f;
  poly = poly * r - 2.4999993993e-1f;
  poly = poly * r + 3.3333331174e-1f;
  // The small parts first: ln2 by Cody and Waite's split.
  const float tail = poly * r * square - n * 2.12194440e-4f - 0.5f * square;
  return r + tail + n * 0.693359375f;
}

}  // namespace synpro
