// The inner loops of the skinny product, for one instruction set (instruction_sets.h).
//
// No function of the standard library is called here: an inline one would be compiled for this instruction set, and the linker
// might keep that copy for code that runs on every machine. No #pragma once, for it is read several times.

constexpr int kLanes = SYNPRO_LANES, kTileRows = SYNPRO_TILE_ROWS;
constexpr int kColumns = 3;  // weight rows of a tile: with 8 rows of x 24 sums, 3 weights and an x fill 28 of 32 registers
// Entries of x and weights multiplied before sums leave the registers: kTileRows rows of it fit a core's first cache.
constexpr int64_t kChunk = 1024;
// Weight rows that are read from memory once and, by further rows of x, from the second cache.
constexpr int64_t kPanel = 24;

typedef float Lanes __attribute__((vector_size(4 * SYNPRO_LANES), may_alias));
typedef float LooseLanes __attribute__((vector_size(4 * SYNPRO_LANES), aligned(4), may_alias));
typedef std::uint32_t Bits __attribute__((vector_size(4 * SYNPRO_LANES)));
typedef std::uint32_t LooseBits __attribute__((vector_size(4 * SYNPRO_LANES), aligned(2), may_alias));

// One step of a row of weights: kParts registers of floats, of kStep entries.
template <typename Stored>
struct Weights;

template <>
struct Weights<float> {
  static constexpr int kParts = 1, kStep = kLanes;
  SYNPRO_INLINE void read(const float* from, Lanes* to) { to[0] = *reinterpret_cast<const LooseLanes*>(from); }
};

// bf16 is the upper half of a float: of each pair of entries the even one is shifted up, the odd one masked. `pack` puts x in
// the same order.
template <>
struct Weights<std::uint16_t> {
  static constexpr int kParts = 2, kStep = 2 * kLanes;
  SYNPRO_INLINE void read(const std::uint16_t* from, Lanes* to) {
    const Bits pairs = *reinterpret_cast<const LooseBits*>(from);
    to[0] = (Lanes)(pairs << 16);
    to[1] = (Lanes)(pairs & 0xffff0000u);
  }
};

SYNPRO_INLINE float widened(float value) { return value; }
SYNPRO_INLINE float widened(std::uint16_t value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value) << 16;
  float found;
  __builtin_memcpy(&found, &bits, sizeof found);
  return found;
}

template <typename Stored>
static int64_t steps_of(int64_t width) {
  return (width + Weights<Stored>::kStep - 1) / Weights<Stored>::kStep;
}

// Rows are dealt to as few tiles as take them, of sizes that differ by one at most.
SYNPRO_INLINE int64_t tile_start(int64_t rows, int64_t tile) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  return tile * (rows / tiles) + (tile < rows % tiles ? tile : rows % tiles);
}

// x [rows, width] in the order that tiles read it: tile by tile, for each register of weights one of every row; zeros behind
// the end.
template <typename Stored>
static void pack(const Stored* x, int64_t rows, int64_t width, float* to) {
  using W = Weights<Stored>;
  const int64_t steps = steps_of<Stored>(width), tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = tile_start(rows, tile), last = tile_start(rows, tile + 1);
    for (int64_t step = 0; step < steps; ++step)
      for (int part = 0; part < W::kParts; ++part)
        for (int64_t row = first; row < last; ++row)
          for (int lane = 0; lane < kLanes; ++lane) {
            const int64_t k = step * W::kStep + lane * W::kParts + part;
            *to++ = k < width ? widened(x[row * width + k]) : 0.0f;
          }
  }
}

// Each of 8 registers' sum of its lanes, all in the same order: neighbours are folded into one register until one holds all.
SYNPRO_INLINE void sum_lanes(const Lanes* x, float* to) {
#if SYNPRO_LANES == 16
  typedef std::int32_t Places __attribute__((vector_size(64)));
  // Within each quarter a0 + a2, b0 + b2, a1 + a3, b1 + b3; then a, b, c, d.
  const Places low = {0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29};
  const Places high = {2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31};
  const Places even = {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29};
  const Places odd = {2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31};
  const Places first = {0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27};
  const Places second = {4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31};
#elif SYNPRO_LANES == 8
  typedef std::int32_t Places __attribute__((vector_size(32)));
  const Places low = {0, 8, 1, 9, 4, 12, 5, 13}, high = {2, 10, 3, 11, 6, 14, 7, 15};
  const Places even = {0, 1, 8, 9, 4, 5, 12, 13}, odd = {2, 3, 10, 11, 6, 7, 14, 15};
  const Places first = {0, 1, 2, 3, 8, 9, 10, 11}, second = {4, 5, 6, 7, 12, 13, 14, 15};
#endif
#if SYNPRO_LANES >= 8
  Lanes fours[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const Lanes *from = x + 4 * i;
    const Lanes ab = __builtin_shuffle(from[0], from[1], low) + __builtin_shuffle(from[0], from[1], high);
    const Lanes cd = __builtin_shuffle(from[2], from[3], low) + __builtin_shuffle(from[2], from[3], high);
    fours[i] = __builtin_shuffle(ab, cd, even) + __builtin_shuffle(ab, cd, odd);
  }
  Lanes all = __builtin_shuffle(fours[0], fours[1], first) + __builtin_shuffle(fours[0], fours[1], second);
#if SYNPRO_LANES == 16
  all = __builtin_shuffle(all, all, first) + __builtin_shuffle(all, all, second);
#endif
  __builtin_memcpy(to, &all, 8 * sizeof(float));
#else
  for (int i = 0; i < 8; ++i) to[i] = (x[i][0] + x[i][2]) + (x[i][1] + x[i][3]);
#endif
}

// Sums over `steps` steps of R rows of x and kColumns rows of weights. tail: entries of weights in the last step, if not all.
// `ahead` is asked for meanwhile: what is read next, for hardware follows a row only to the end of its page.
template <typename Stored, int R>
SYNPRO_INLINE void tile(const float* x, const Stored* const* weight, const Stored* const* ahead, int64_t steps, int tail,
                        float* sums) {
  using W = Weights<Stored>;
  Lanes acc[R][kColumns] = {};
  const Stored *w0 = weight[0], *w1 = weight[1], *w2 = weight[2];
  const Stored *a0 = ahead[0], *a1 = ahead[1], *a2 = ahead[2];
  const int64_t whole = tail ? steps - 1 : steps;
  for (int64_t step = 0; step < whole; ++step) {
    Lanes w[kColumns][W::kParts];
    W::read(w0, w[0]);
    W::read(w1, w[1]);
    W::read(w2, w[2]);
    __builtin_prefetch(a0);
    __builtin_prefetch(a1);
    __builtin_prefetch(a2);
    a0 += W::kStep, a1 += W::kStep, a2 += W::kStep;
    w0 += W::kStep, w1 += W::kStep, w2 += W::kStep;
#pragma GCC unroll 2
    for (int part = 0; part < W::kParts; ++part) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        Lanes here = *reinterpret_cast<const Lanes*>(x);
        SYNPRO_IN_REGISTER(here);
        x += kLanes;
#pragma GCC unroll 3
        for (int c = 0; c < kColumns; ++c) acc[r][c] += here * w[c][part];
      }
    }
  }
  if (tail) {
    const Stored* const last[kColumns] = {w0, w1, w2};
#pragma GCC unroll 3
    for (int c = 0; c < kColumns; ++c) {
      Stored rest[W::kStep] = {};
      __builtin_memcpy(rest, last[c], tail * sizeof(Stored));
      Lanes w[W::kParts];
      W::read(rest, w);
#pragma GCC unroll 2
      for (int part = 0; part < W::kParts; ++part)
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) acc[r][c] += *reinterpret_cast<const Lanes*>(x + (part * R + r) * kLanes) * w[part];
    }
  }
  Lanes* const flat = &acc[0][0];
#pragma GCC unroll 3
  for (int at = 0; at < R * kColumns; at += 8) {
    Lanes eight[8] = {};
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      if (at + i < R * kColumns) eight[i] = flat[at + i];
    sum_lanes(eight, sums + at);
  }
}

// One tile of rows and columns [begin, end): their sums over some steps are added to out. share, shares: which part of the weights
// `ahead` entries further on it asks for; 3 rows at a time are dealt to the tiles that read these columns in turn.
template <typename Stored, int R>
static void add_tile(const float* x, const Stored* weight, int64_t stride, int64_t ahead, int64_t share, int64_t shares,
                     int64_t steps, int tail, int64_t begin, int64_t end, float* out, int64_t out_stride) {
  for (int64_t n = begin; n < end; n += kColumns) {
    const Stored *from[kColumns], *next[kColumns];
#pragma GCC unroll 3
    for (int c = 0; c < kColumns; ++c) {
      from[c] = weight + (n + c < end ? n + c : end - 1) * stride;
      // What is none of its share costs nothing: it is in the cache already.
      next[c] = c % shares == share ? from[c] + ahead : from[c];
    }
    float sums[(R * kColumns + 7) / 8 * 8];
    tile<Stored, R>(x, from, next, steps, tail, sums);
    float* to = out + n;
    if (n + kColumns <= end) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
        for (int c = 0; c < kColumns; ++c) to[r * out_stride + c] += sums[r * kColumns + c];
    } else {
      for (int r = 0; r < R; ++r)
        for (int c = 0; c < end - n; ++c) to[r * out_stride + c] += sums[r * kColumns + c];
    }
  }
}

// Adds columns [begin, end) of x weight^T to out; `packed` as `pack` left it. Rows of weights and of out lie as far apart as their
// strides say.
template <typename Stored>
static void columns(const float* packed, const Stored* weight, int64_t weight_stride, float* out, int64_t out_stride,
                    int64_t rows, int64_t width, int64_t begin, int64_t end) {
  using W = Weights<Stored>;
  using Add = void (*)(const float*, const Stored*, int64_t, int64_t, int64_t, int64_t, int64_t, int, int64_t, int64_t, float*,
                       int64_t);
  static constexpr Add kAdds[] = {
      add_tile<Stored, 1>, add_tile<Stored, 2>, add_tile<Stored, 3>, add_tile<Stored, 4>,
#if SYNPRO_TILE_ROWS == 8
      add_tile<Stored, 5>, add_tile<Stored, 6>, add_tile<Stored, 7>, add_tile<Stored, 8>,
#endif
  };
  static_assert(sizeof kAdds / sizeof *kAdds == kTileRows, "a tile for each number of rows");
  constexpr int64_t kSteps = kChunk / W::kStep;
  const int64_t steps = steps_of<Stored>(width), tiles = (rows + kTileRows - 1) / kTileRows;
  const int tail = static_cast<int>(width % W::kStep);
  // Of equal length, or the last might be a few entries.
  const int64_t chunks = (steps + kSteps - 1) / kSteps, chunk_steps = (steps + chunks - 1) / chunks;
  for (int64_t panel = begin; panel < end; panel += kPanel) {
    const int64_t stop = panel + kPanel < end ? panel + kPanel : end;
    for (int64_t step = 0; step < steps; step += chunk_steps) {
      const bool last = step + chunk_steps >= steps;
      const int64_t here = last ? steps - step : chunk_steps;
      // A lone tile asks for the next rows, of several each for a part of what they will read together next.
      const int64_t next = last ? kPanel * weight_stride - step * W::kStep : here * W::kStep;
      const int64_t ahead = tiles == 1 ? kColumns * weight_stride : next;
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t row = tile_start(rows, t), height = tile_start(rows, t + 1) - row;
        const float* x = packed + (row * steps + height * step) * W::kParts * kLanes;
        kAdds[height - 1](x, weight + step * W::kStep, weight_stride, ahead, t, tiles < kColumns ? tiles : kColumns, here,
                          last ? tail : 0, panel, stop, out + row * out_stride, out_stride);
      }
    }
  }
}
