// Compiles the file that SYNPRO_TILES names for several instruction sets, each in a namespace of its own: `portable`, and on
// x86-64 `avx2` and `avx512`. One binary so serves every machine; callers ask `lanes_here` which namespace runs on this one.
//
// SYNPRO_LANES is how many floats a register holds, SYNPRO_TILE_ROWS how many rows of x the tiles of skinny_tile.h take.

// Without it compilers read an x from the cache for each of its products, and run out of loads before they run out of sums.
#if defined(__x86_64__)
#define SYNPRO_IN_REGISTER(lanes) __asm__("" : "+v"(lanes))
#else
#define SYNPRO_IN_REGISTER(lanes)
#endif

namespace portable {
#define SYNPRO_LANES 4
#define SYNPRO_TILE_ROWS 4
#include SYNPRO_TILES
#undef SYNPRO_LANES
#undef SYNPRO_TILE_ROWS
}  // namespace portable

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SYNPRO_WIDE_LANES
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#define SYNPRO_LANES 8
#define SYNPRO_TILE_ROWS 4
#include SYNPRO_TILES
#undef SYNPRO_LANES
#undef SYNPRO_TILE_ROWS
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
namespace avx512 {
#define SYNPRO_LANES 16
#define SYNPRO_TILE_ROWS 8
#include SYNPRO_TILES
#undef SYNPRO_LANES
#undef SYNPRO_TILE_ROWS
}  // namespace avx512
#pragma GCC pop_options
#endif

// Floats of the widest registers that this machine has, 16, 8 or 4, and at most `most`.
inline int64_t lanes_here(int64_t most) {
#ifdef SYNPRO_WIDE_LANES
  static const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  static const bool middle = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (wide && most >= 16) return 16;
  if (middle && most >= 8) return 8;
#endif
  return 4;
}

// OF(set), an expression, for the widest of them: `most` as above.
#ifdef SYNPRO_WIDE_LANES
#define SYNPRO_WIDEST(OF, most) (lanes_here(most) == 16 ? OF(avx512) : lanes_here(most) == 8 ? OF(avx2) : OF(portable))
#else
#define SYNPRO_WIDEST(OF, most) (static_cast<void>(most), OF(portable))
#endif
