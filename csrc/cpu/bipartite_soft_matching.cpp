// Bipartite soft matching on the CPU: cosine scores, row maxima and the merge plan, one image per thread.
//
//   alt_kernels::bipartite_matching(metric [B, N, C], r, num_protected)
//   alt_kernels::bipartite_matching_from_keys(k [B, H, N, D], r, num_protected), of the mean over heads
//     -> indices int32 [B, N], offsets int32 [B, N - r + 1], output_row int32 [B, N]
//
// A are the even, B the odd unprotected positions. Scores live in registers: no [A, B] matrix is ever written.
// Per image: unit rows of A and packed unit columns of B, then the best b of every a, then ranks, then the plan.
// With fewer images than threads and many tokens, threads share the rows of A instead, with the same results.

#include "best_match.h"

namespace alt {
namespace {

template <typename T>
struct Scores {
  int64_t channels;
  TokenSet a, b;
  T* rows;         // unit rows of A [round_up(a.count, register rows), channels]
  T* packed;       // unit columns of B, in panels
  T* bias;         // [padded columns]
  T* buffer;       // [lanes, channels]
  uint8_t* valid;  // [a.count]
  T* score;        // [a.count], with room for one more vector
  int32_t* column;
  uint8_t* merged;  // [a.count], with room for one more vector
};

template <typename T, typename Block, typename In>
ALT_INLINE void prepare(const In* image, int64_t token_stride, const Scores<T>& s) {
  prepare_rows<T, Block>(image, token_stride, s.a, s.channels, s.rows, s.valid);
  prepare_columns<T, Block>(image, token_stride, s.b, s.channels, s.packed, s.bias, s.buffer);
}

template <typename T, typename Block>
ALT_INLINE void search(const Scores<T>& s, int64_t begin, int64_t end) {
  best_columns<T, Block>(s.rows, s.valid, begin, end, s.packed, s.bias, s.b.count, s.channels, s.score, s.column);
}

template <typename T, typename Block>
ALT_INLINE void choose(const Scores<T>& s, int64_t r) {
  choose_rows<T, Block>(s.score, s.a.count, r, s.merged);
}

// The three stages compiled for one x86 level. The blocks take 24 of the 32 registers of AVX-512 as accumulators, 12
// of the 16 of AVX2.
#define ALT_MATCHING_LEVEL(Level, bytes, block_rows, block_vecs, fma, ...)               \
  using Block##Level = RegisterBlock<bytes, block_rows, block_vecs, fma>;                \
  template <typename T, typename In>                                                     \
  __VA_ARGS__ void prepare##Level(const In* image, int64_t stride, const Scores<T>& s) { \
    prepare<T, Block##Level>(image, stride, s);                                          \
  }                                                                                      \
  template <typename T>                                                                  \
  __VA_ARGS__ void search##Level(const Scores<T>& s, int64_t begin, int64_t end) {       \
    search<T, Block##Level>(s, begin, end);                                              \
  }                                                                                      \
  template <typename T>                                                                  \
  __VA_ARGS__ void choose##Level(const Scores<T>& s, int64_t r) {                        \
    choose<T, Block##Level>(s, r);                                                       \
  }                                                                                      \
  template <typename T, typename In>                                                     \
  constexpr Stages<T, In> kStages##Level = {                                             \
      prepare##Level<T, In>,                                                             \
      search##Level<T>,                                                                  \
      choose##Level<T>,                                                                  \
      Block##Level::template lanes<T>(),                                                 \
      block_rows,                                                                        \
      padded_columns<T, Block##Level>,                                                   \
  };

template <typename T, typename In>
struct Stages {
  void (*prepare)(const In*, int64_t, const Scores<T>&);
  void (*search)(const Scores<T>&, int64_t, int64_t);
  void (*choose)(const Scores<T>&, int64_t);
  int64_t lanes;       // columns in a vector
  int64_t block_rows;  // rows in a register block
  int64_t (*padded_columns)(int64_t);
};

ALT_MATCHING_LEVEL(Baseline, 16, 4, 2, false, )
#if ALT_HAS_MULTIVERSION
ALT_MATCHING_LEVEL(Avx2, 32, 6, 2, true, __attribute__((target("arch=x86-64-v3"))))
ALT_MATCHING_LEVEL(Avx512, 64, 8, 3, true, __attribute__((target("arch=x86-64-v4"))))
#endif

template <typename T, typename In>
const Stages<T, In>& stages() {
  static const int level = cpu_level();
#if ALT_HAS_MULTIVERSION
  if (level == 2) {
    return kStagesAvx512<T, In>;
  }
  if (level == 1) {
    return kStagesAvx2<T, In>;
  }
#endif
  (void)level;
  return kStagesBaseline<T, In>;
}

// One image's plan. Rows: protected tokens, kept tokens of A, tokens of B; a row's own token comes first.
struct PlanWriter {
  int64_t tokens, num_protected, r;
  TokenSet a, b;
  int32_t* indices;     // [N]
  int32_t* offsets;     // [N - r + 1]
  int32_t* output_row;  // [N]

  void identity() const {
    for (int64_t i = 0; i < tokens; ++i) {
      indices[i] = offsets[i] = output_row[i] = static_cast<int32_t>(i);
    }
    offsets[tokens] = static_cast<int32_t>(tokens);
  }

  // column [a.count]: the b of every a; merged [a.count]: whether it merges (exactly r do).
  void write(const int32_t* column, const uint8_t* merged) const {
    int64_t row = 0;
    for (; row < num_protected; ++row) {
      indices[row] = offsets[row] = output_row[row] = static_cast<int32_t>(row);
    }
    for (int64_t i = 0; i < a.count; ++i) {
      if (!merged[i]) {
        const int64_t token = a.first + 2 * i;
        indices[row] = static_cast<int32_t>(token);
        offsets[row] = static_cast<int32_t>(row);
        output_row[token] = static_cast<int32_t>(row);
        ++row;
      }
    }
    // Rows of B: count the members, take prefix sums, then append each merged a to its row. While rows are filled,
    // start[j] is where row j's next member goes.
    const int64_t first = row;
    int32_t* start = offsets + first;
    std::fill(start, start + b.count + 1, 0);
    for (int64_t i = 0; i < a.count; ++i) {
      if (merged[i]) {
        ++start[column[i] + 1];
      }
    }
    int64_t position = first;
    for (int64_t j = 0; j < b.count; ++j) {
      const int64_t token = b.first + 2 * j;
      const int64_t members = 1 + start[j + 1];
      indices[position] = static_cast<int32_t>(token);
      output_row[token] = static_cast<int32_t>(first + j);
      start[j] = static_cast<int32_t>(position + 1);
      position += members;
    }
    for (int64_t i = 0; i < a.count; ++i) {
      if (merged[i]) {
        const int64_t token = a.first + 2 * i;
        indices[start[column[i]]++] = static_cast<int32_t>(token);
        output_row[token] = static_cast<int32_t>(first + column[i]);
      }
    }
    // start[j] is now the end of row j: shift by one row.
    for (int64_t j = b.count; j > 0; --j) {
      start[j] = start[j - 1];
    }
    start[0] = static_cast<int32_t>(first);
  }
};

// The rows of image after image, as they lie in a [B, N, C] tensor.
template <typename In>
struct MetricRows {
  using Element = In;
  const In* images;
  int64_t batch_stride, token_stride;

  explicit MetricRows(const Tensor& metric)
      : images(data<const In>(metric)), batch_stride(metric.stride(0)), token_stride(metric.stride(1)) {}
  int64_t scratch(int64_t, int64_t) const { return 0; }
  int64_t row_stride(int64_t) const { return token_stride; }
  const In* rows(int64_t image, int64_t, int64_t, In*) const { return images + image * batch_stride; }
};

// out [tokens, depth] = the mean over heads of k [heads, tokens, depth]
template <typename T, typename In>
ALT_MULTIVERSION void mean_over_heads(const In* ALT_RESTRICT k, int64_t heads, int64_t head_stride, int64_t tokens,
                                      int64_t token_stride, int64_t depth, T* ALT_RESTRICT out) {
  for (int64_t token = 0; token < tokens; ++token) {
    const In* row = k + token * token_stride;
    T* sum = out + token * depth;
#pragma omp simd
    for (int64_t c = 0; c < depth; ++c) {
      sum[c] = load<T>(row[c]);
    }
    for (int64_t head = 1; head < heads; ++head) {
      const In* more = row + head * head_stride;
#pragma omp simd
      for (int64_t c = 0; c < depth; ++c) {
        sum[c] += load<T>(more[c]);
      }
    }
#pragma omp simd
    for (int64_t c = 0; c < depth; ++c) {
      sum[c] /= static_cast<T>(heads);
    }
  }
}

// The means over heads of image after image of a [B, H, N, D] tensor, each made when it is asked for.
template <typename In>
struct KeyMeans {
  using Element = accumulate_t<In>;
  const In* images;
  int64_t heads, batch_stride, head_stride, token_stride;

  explicit KeyMeans(const Tensor& k)
      : images(data<const In>(k)),
        heads(k.size(1)),
        batch_stride(k.stride(0)),
        head_stride(k.stride(1)),
        token_stride(k.stride(2)) {}
  int64_t scratch(int64_t tokens, int64_t channels) const { return tokens * channels; }
  int64_t row_stride(int64_t channels) const { return channels; }
  const Element* rows(int64_t image, int64_t tokens, int64_t channels, Element* scratch) const {
    mean_over_heads(images + image * batch_stride, heads, head_stride, tokens, token_stride, channels, scratch);
    return scratch;
  }
};

template <typename Source>
void match(const Source& source, int64_t batch, int64_t channels, const PlanWriter& shape) {
  using In = typename Source::Element;
  using T = accumulate_t<In>;
  const Stages<T, In>& stage = stages<T, In>();
  const int64_t rows = round_up(shape.a.count, stage.block_rows);
  const int64_t columns = stage.padded_columns(shape.b.count);

  const auto plan_of = [&](int64_t image) {
    PlanWriter plan = shape;
    plan.indices += image * shape.tokens;
    plan.offsets += image * (shape.tokens - shape.r + 1);
    plan.output_row += image * shape.tokens;
    return plan;
  };
  // row_threads: threads share the rows of A, not the images.
  const auto run = [&](int64_t begin, int64_t end, bool row_threads) {
    const int64_t floats = rows * channels + columns * channels + columns + stage.lanes * channels + rows + stage.lanes;
    Scratch<T> memory(floats);
    Scratch<uint8_t> flags(2 * rows + stage.lanes);
    Scratch<int32_t> column(rows);
    Scratch<In> own(source.scratch(shape.tokens, channels));
    Scores<T> s{};
    s.channels = channels;
    s.a = shape.a;
    s.b = shape.b;
    s.rows = memory.get();
    s.packed = s.rows + rows * channels;
    s.bias = s.packed + columns * channels;
    s.buffer = s.bias + columns;
    s.score = s.buffer + stage.lanes * channels;
    s.valid = flags.get();
    s.merged = s.valid + rows;
    s.column = column.get();
    for (int64_t image = begin; image < end; ++image) {
      const In* from = source.rows(image, shape.tokens, channels, own.get());
      stage.prepare(from, source.row_stride(channels), s);
      if (row_threads) {
        parallel_for(rows / stage.block_rows, stage.block_rows * shape.b.count * channels / 8,
                     [&](int64_t from, int64_t to) {
                       stage.search(s, from * stage.block_rows, std::min(to * stage.block_rows, s.a.count));
                     });
      } else {
        stage.search(s, 0, s.a.count);
      }
      stage.choose(s, shape.r);
      plan_of(image).write(s.column, s.merged);
    }
  };

  const int64_t cost = shape.a.count * shape.b.count * channels / 8;  // of one image
  const int64_t threads = torch::stable::get_num_threads();
  if (batch < threads && cost > (int64_t{1} << 18)) {
    run(0, batch, true);
  } else {
    parallel_for(batch, cost, [&](int64_t begin, int64_t end) { run(begin, end, false); });
  }
}

// The plans of `batch` images of `tokens` tokens; find(plan) makes them where tokens merge.
template <typename Find>
std::tuple<Tensor, Tensor, Tensor> plans(const Tensor& rows, const char* name, int64_t tokens, int64_t r,
                                         int64_t num_protected, const Find& find) {
  const int64_t batch = rows.size(0);
  check(tokens <= std::numeric_limits<int32_t>::max(), name, ": expected fewer than 2^31 tokens, got ", tokens);
  check(num_protected >= 0, "num_protected: expected at least 0, got ", num_protected);
  const int64_t limit = std::max<int64_t>(tokens - num_protected, 0) / 2;
  check(r >= 0 && r <= limit, "r: expected 0 to ", limit, ", half of the unprotected tokens, got ", r);

  const Tensor indices = new_empty({batch, tokens}, ScalarType::Int);
  const Tensor offsets = new_empty({batch, tokens - r + 1}, ScalarType::Int);
  const Tensor output_row = new_empty({batch, tokens}, ScalarType::Int);
  PlanWriter plan{};
  plan.tokens = tokens;
  plan.num_protected = std::min(num_protected, tokens);
  plan.r = r;
  plan.a.first = num_protected + num_protected % 2;
  plan.b.first = num_protected + 1 - num_protected % 2;
  plan.a.count = std::max<int64_t>(tokens - plan.a.first + 1, 0) / 2;
  plan.b.count = std::max<int64_t>(tokens - plan.b.first + 1, 0) / 2;
  plan.indices = data<int32_t>(indices);
  plan.offsets = data<int32_t>(offsets);
  plan.output_row = data<int32_t>(output_row);

  dispatch_floating(rows.scalar_type(), "bipartite_matching", [&](auto tag) {
    if (r > 0) {
      find(tag, plan);
      return;
    }
    for (int64_t image = 0; image < batch; ++image) {
      plan.identity();
      plan.indices += tokens;
      plan.offsets += tokens + 1;
      plan.output_row += tokens;
    }
  });
  return {indices, offsets, output_row};
}

std::tuple<Tensor, Tensor, Tensor> bipartite_matching(const Tensor metric_in, int64_t r, int64_t num_protected) {
  check_rank(metric_in, 3, "metric");
  const Tensor metric = as_rows_contiguous(metric_in);
  return plans(metric, "metric", metric.size(1), r, num_protected, [&](auto tag, const PlanWriter& plan) {
    using In = typename decltype(tag)::type;
    match(MetricRows<In>(metric), metric.size(0), metric.size(2), plan);
  });
}

std::tuple<Tensor, Tensor, Tensor> bipartite_matching_from_keys(const Tensor k_in, int64_t r, int64_t num_protected) {
  check_rank(k_in, 4, "k");
  check(k_in.size(1) > 0, "k: expected at least one head, got none");
  const Tensor k = as_rows_contiguous(k_in);
  return plans(k, "k", k.size(2), r, num_protected, [&](auto tag, const PlanWriter& plan) {
    using In = typename decltype(tag)::type;
    match(KeyMeans<In>(k), k.size(0), k.size(3), plan);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alt_kernels, CPU, m) {
  m.impl("bipartite_matching", TORCH_BOX(&bipartite_matching));
  m.impl("bipartite_matching_from_keys", TORCH_BOX(&bipartite_matching_from_keys));
}

}  // namespace alt
