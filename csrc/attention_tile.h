// Attention of a few queries of one key head, for one instruction set (instruction_sets.h). Includes no standard library, as
// skinny_tile.h says.
#include "skinny_tile.h"

// Turn scores into weights e^(scale (s - max)), in place; returns 1 over their sum.
static float soften(float* score, int64_t count, float scale) {
  float top = -__builtin_inff();
#pragma omp simd reduction(max : top)
  for (int64_t t = 0; t < count; ++t) top = score[t] > top ? score[t] : top;
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t t = 0; t < count; ++t) {
    // A NaN loses every comparison above; it still reaches the sum.
    const float weight = exp_nonpositive((score[t] - top) * scale);
    score[t] = weight;
    sum += weight;
  }
  return 1.0f / sum;
}

// Columns of a row of sums, which stand in the order of `pack`: those of `width`, and some behind them.
template <typename Stored>
static int64_t padded_width(int64_t width) {
  return steps_of<Stored>(width) * Weights<Stored>::kStep;
}

// Where among them a column of the result is.
template <typename Stored>
static int64_t place_of(int64_t column) {
  using W = Weights<Stored>;
  const int64_t within = column % W::kStep;
  return column / W::kStep * W::kStep + within % W::kParts * kLanes + within / W::kParts;
}

// out [R, padded] += weight [R, count] value [count, width].
template <typename Stored, int R>
static void add_values(const float* weight, int64_t weight_stride, const Stored* value, int64_t stride, int64_t count,
                       int64_t width, float* out, int64_t padded) {
  using W = Weights<Stored>;
  // As many registers of sums as hide a multiplication behind the next ones.
  constexpr int kWide = (R <= kTileRows / 2 ? 4 : 2) / W::kParts;
  const int64_t steps = steps_of<Stored>(width), whole = width / W::kStep / kWide * kWide;
  for (int64_t step = 0; step < whole; step += kWide) {
    Lanes acc[R][kWide][W::kParts] = {};
    for (int64_t t = 0; t < count; ++t) {
      Lanes v[kWide][W::kParts];
#pragma GCC unroll 4
      for (int s = 0; s < kWide; ++s) W::read(value + t * stride + (step + s) * W::kStep, v[s]);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int s = 0; s < kWide; ++s)
#pragma GCC unroll 2
          for (int part = 0; part < W::kParts; ++part) acc[r][s][part] += weight[r * weight_stride + t] * v[s][part];
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int s = 0; s < kWide; ++s)
#pragma GCC unroll 2
        for (int part = 0; part < W::kParts; ++part)
          *reinterpret_cast<LooseLanes*>(out + r * padded + ((step + s) * W::kParts + part) * kLanes) += acc[r][s][part];
  }
  // Widths that are no multiple of what is read at once: few models have them.
  for (int64_t step = whole; step < steps; ++step) {
    const int64_t from = step * W::kStep, left = width - from < W::kStep ? width - from : W::kStep;
    for (int64_t t = 0; t < count; ++t) {
      Stored rest[W::kStep] = {};
      __builtin_memcpy(rest, value + t * stride + from, left * sizeof(Stored));
      Lanes v[W::kParts];
      W::read(rest, v);
      for (int r = 0; r < R; ++r)
        for (int part = 0; part < W::kParts; ++part)
          *reinterpret_cast<LooseLanes*>(out + r * padded + from + part * kLanes) += weight[r * weight_stride + t] * v[part];
    }
  }
}

// What weights [rows, run.count] make of a run's values, page by page.
template <typename Stored>
static void add_run(int64_t rows, const float* weight, int64_t weight_stride, const Run<Stored>& run, int64_t width,
                    float* out, int64_t padded) {
  using Add = void (*)(const float*, int64_t, const Stored*, int64_t, int64_t, int64_t, float*, int64_t);
  static constexpr Add kAdds[] = {
      add_values<Stored, 1>, add_values<Stored, 2>, add_values<Stored, 3>, add_values<Stored, 4>,
#if SYNPRO_TILE_ROWS == 8
      add_values<Stored, 5>, add_values<Stored, 6>, add_values<Stored, 7>, add_values<Stored, 8>,
#endif
  };
  for (int64_t at = 0; at < run.count; at += run.page) {
    const int64_t here = run.count - at < run.page ? run.count - at : run.page;
    const Stored* value = run.value + run.pages[at / run.page] * run.page_stride;
    for (int64_t row = 0; row < rows; row += kTileRows)
      kAdds[(rows - row < kTileRows ? rows - row : kTileRows) - 1](
          weight + row * weight_stride + at, weight_stride, value, run.stride, here, width, out + row * padded, padded);
  }
}

// Adds scores [rows, run.count] of packed queries, page by page.
template <typename Stored>
static void score_run(const float* packed, int64_t rows, int64_t width, const Run<Stored>& run, float* score, int64_t stride) {
  for (int64_t at = 0; at < run.count; at += run.page) {
    const int64_t here = run.count - at < run.page ? run.count - at : run.page;
    const Stored* key = run.key + run.pages[at / run.page] * run.page_stride;
    columns<Stored>(packed, key, run.stride, score + at, stride, rows, width, 0, here);
  }
}

// Floats that `attend` wants for its own use where there are so many positions at most.
template <typename Stored>
static int64_t scratch_floats(int64_t rows, int64_t width, int64_t positions) {
  return rows * (padded_width<Stored>(width) + positions);
}

// What `members` rows attend to, whose queries [members * per_key, width] follow each other: all to `prompt`, each to `own` too.
// Sums go to out [members * per_key, padded_width], undivided; what each is to be multiplied by goes to `inverse`. `scratch`
// begins where a register may.
template <typename Stored>
static void attend(const Stored* query, int64_t members, int64_t per_key, int64_t width, float scale,
                   const Run<Stored>& prompt, const Run<Stored>* own, float* scratch, float* out, float* inverse) {
  const int64_t rows = members * per_key, padded = padded_width<Stored>(width);
  int64_t longest = 0;
  for (int64_t m = 0; m < members; ++m) longest = own[m].count > longest ? own[m].count : longest;
  const int64_t stride = prompt.count + longest;
  float *packed = scratch, *score = packed + rows * padded;
  // All members' queries at once, so that a key is read once for them.
  pack(query, rows, width, packed);
  __builtin_memset(score, 0, rows * stride * sizeof(float));
  score_run(packed, rows, width, prompt, score, stride);
  __builtin_memset(out, 0, rows * padded * sizeof(float));
  for (int64_t m = 0; m < members; ++m) {
    float* its = score + m * per_key * stride;
    pack(query + m * per_key * width, per_key, width, packed);
    score_run(packed, per_key, width, own[m], its + prompt.count, stride);
    for (int64_t r = 0; r < per_key; ++r)
      inverse[m * per_key + r] = soften(its + r * stride, prompt.count + own[m].count, scale);
    add_run(per_key, its + prompt.count, stride, own[m], width, out + m * per_key * padded, padded);
  }
  add_run(rows, score, stride, prompt, width, out, padded);
}
