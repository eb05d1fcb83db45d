// Attention of a decoding step. A task is a few members of one group and one key head: their queries against the group's prompt,
// whose keys and values are read once for them, and each member's against its own positions; one softmax over both.
#include "decode_attention.h"
#include "simd_math.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <vector>

namespace synpro {
namespace {

// Positions of one key head: `count` of them, `page` in each of `pages`. key and value: where the head lies in page 0.
template <typename Stored>
struct Run {
  const Stored *key, *value;
  const int64_t* pages;
  int64_t count, page, page_stride, stride;
};

#define SYNPRO_TILES "attention_tile.h"
#include "instruction_sets.h"

// The functions of one instruction set.
template <typename Stored>
struct Kernels {
  int64_t (*padded_width)(int64_t);
  int64_t (*place_of)(int64_t);
  int64_t (*scratch_floats)(int64_t, int64_t, int64_t);
  void (*attend)(const Stored*, int64_t, int64_t, int64_t, float, const Run<Stored>&, const Run<Stored>*, float*, float*, float*);
};

#define SYNPRO_KERNELS(set) \
  Kernels<Stored> { set::padded_width<Stored>, set::place_of<Stored>, set::scratch_floats<Stored>, set::attend<Stored> }
template <typename Stored>
Kernels<Stored> kernels(int64_t most_lanes) {
  return SYNPRO_WIDEST(SYNPRO_KERNELS, most_lanes);
}

constexpr int64_t kMembersPerTask = 8;

// The members with places [first, last) of one group, for one key head.
struct Task {
  int64_t group, head, first, last;
};

template <typename T>
const T* data(const at::Tensor& tensor) {
  return tensor.const_data_ptr<T>();
}

// T: the tensors' type, which is stored as Stored.
template <typename T, typename Stored>
struct Step {
  const Kernels<Stored> chosen;
  const at::Tensor &query, &key, &value;
  const int64_t *row_of_place, *place_of_row, *prompt_length, *prompt_page, *new_length, *new_page, *sequence_of_row;
  int64_t places, most_prompt_pages, most_new_pages;
  T* out;

  Run<Stored> run(int64_t head, const int64_t* pages, int64_t count) const {
    const auto *keys = reinterpret_cast<const Stored*>(data<T>(key)), *values = reinterpret_cast<const Stored*>(data<T>(value));
    const int64_t at = head * key.stride(1);
    return {keys + at, values + at, pages, count, key.size(2), key.stride(0), key.stride(2)};
  }

  void operator()(const Task& task, std::vector<float>& memory, std::vector<Stored>& queries) const {
    const int64_t heads = query.size(1), per_key = query.size(2), width = query.size(3), size = per_key * width;
    const auto* asked = reinterpret_cast<const Stored*>(data<T>(query));
    std::vector<int64_t> rows;
    std::vector<Run<Stored>> own;
    int64_t longest = 0;
    queries.clear();
    for (int64_t place = task.group * places + task.first; place < task.group * places + task.last; ++place) {
      const int64_t row = row_of_place[place];
      if (place_of_row[row] != place) continue;  // an empty place holds some row of another
      rows.push_back(row);
      own.push_back(run(task.head, new_page + sequence_of_row[row] * most_new_pages, new_length[row]));
      longest = std::max(longest, new_length[row]);
      const Stored* its = asked + (row * heads + task.head) * size;
      queries.insert(queries.end(), its, its + size);
    }
    if (rows.empty()) return;
    const Run<Stored> prompt = run(task.head, prompt_page + task.group * most_prompt_pages, prompt_length[task.group]);
    const int64_t members = rows.size(), count = members * per_key, padded = chosen.padded_width(width);
    constexpr int64_t kLine = 16;  // floats of a line of the cache, at which registers are read
    memory.resize(count * (padded + 1) + chosen.scratch_floats(count, width, prompt.count + longest) + kLine);
    float* scratch = memory.data();
    while (reinterpret_cast<std::uintptr_t>(scratch) % (kLine * sizeof(float))) ++scratch;
    float* sums = scratch + chosen.scratch_floats(count, width, prompt.count + longest);
    float* inverse = sums + count * padded;
    chosen.attend(queries.data(), members, per_key, width, 1.0f / std::sqrt(static_cast<float>(width)), prompt, own.data(), scratch,
                  sums, inverse);
    for (int64_t q = 0; q < count; ++q) {
      T* to = out + (rows[q / per_key] * heads + task.head) * size + q % per_key * width;
      for (int64_t i = 0; i < width; ++i) to[i] = static_cast<T>(sums[q * padded + chosen.place_of(i)] * inverse[q]);
    }
  }
};

template <typename T, typename Stored>
void run_tasks(const Step<T, Stored>& step, const std::vector<Task>& tasks) {
  // Taken one by one: a thread whose core is shared with other work does fewer, and the others do not wait for it.
  std::atomic<int64_t> next{0};
  const int64_t count = tasks.size();
  at::parallel_for(0, std::min<int64_t>(count, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    std::vector<float> memory;
    std::vector<Stored> queries;
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < count;) step(tasks[task], memory, queries);
  });
}

}  // namespace

at::Tensor decode_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const at::Tensor& row_of_place, const at::Tensor& place_of_row, const at::Tensor& prompt_length,
                            const at::Tensor& prompt_page, const at::Tensor& new_length, const at::Tensor& new_page,
                            const at::Tensor& sequence_of_row, int64_t most_lanes) {
  TORCH_CHECK(query.dim() == 4 && key.dim() == 4 && query.is_contiguous() && key.stride(3) == 1 &&
                  key.strides() == value.strides() && query.scalar_type() == key.scalar_type() &&
                  query.scalar_type() == value.scalar_type() &&
                  (query.scalar_type() == at::kFloat || query.scalar_type() == at::kBFloat16),
              "decode_attention: expected a contiguous query [B, n, r, h] and pages [P, n, T, h], all fp32 or all bf16");
  for (const at::Tensor& index :
       {row_of_place, place_of_row, prompt_length, prompt_page, new_length, new_page, sequence_of_row})
    TORCH_CHECK(index.is_contiguous() && index.scalar_type() == at::kLong, "decode_attention: expected contiguous int64");
  const int64_t groups = prompt_length.numel(), places = row_of_place.numel() / groups;
  std::vector<Task> tasks;
  // Heads of a group one behind the other: their pages are near each other.
  for (int64_t group = 0; group < groups; ++group)
    for (int64_t head = 0; head < query.size(1); ++head)
      for (int64_t first = 0; first < places; first += kMembersPerTask)
        tasks.push_back({group, head, first, std::min(first + kMembersPerTask, places)});
  at::Tensor out = at::empty_like(query);
  const auto step = [&](auto* to, auto chosen) {
    using T = std::remove_pointer_t<decltype(to)>;
    using Stored = typename decltype(chosen)::type;
    run_tasks(Step<T, Stored>{kernels<Stored>(most_lanes), query, key, value, data<int64_t>(row_of_place),
                              data<int64_t>(place_of_row), data<int64_t>(prompt_length), data<int64_t>(prompt_page),
                              data<int64_t>(new_length), data<int64_t>(new_page), data<int64_t>(sequence_of_row), places,
                              prompt_page.size(1), new_page.size(1), to},
              tasks);
  };
  if (query.scalar_type() == at::kFloat) {
    step(out.mutable_data_ptr<float>(), std::enable_if<true, float>{});
  } else {
    step(out.mutable_data_ptr<at::BFloat16>(), std::enable_if<true, std::uint16_t>{});
  }
  return out;
}

}  // namespace synpro
