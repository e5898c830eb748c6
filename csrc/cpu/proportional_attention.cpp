// Proportional attention on the CPU, forward: softmax(q k^T scale + log s) v and the log-sum-exp of each row.
//
//   alt_kernels::proportional_attention(q [B, H, M, D], k, v [B, H, N, D], size float32 [B, N] or None, scale)
//     -> out [B, H, M, D] in q's dtype, logsumexp [B, H, M] float32 (float64 for double)
//
// Results are [B, M, H, D] and [B, M, H] in memory, whatever the strides of q, so joining the heads costs nothing.
// PyTorch's backward expects that layout.
//
// The kernels here are made for vision transformers: all keys and values of a head fit the second-level cache
// and the scores of a few queries the first, so softmax needs one pass. PyTorch's kernel runs for shapes that
// `runs_here` refuses, for double, and on processors where ours was not measured to be faster.

#include <cmath>

#include "attention_levels.h"

namespace alt {
namespace {

template <typename T>
struct Heads {
  const T* data;
  int64_t batch_stride, head_stride, row_stride;
  const T* head(int64_t b, int64_t h) const { return data + b * batch_stride + h * head_stride; }
};

template <typename In>
struct Problem {
  int64_t batch, heads, queries, keys, depth;
  float scale;
  Heads<In> q, k, v;
  const float* bias;  // log s [B, N], or nullptr
  In* out;            // [B, M, H, D]
  float* lse;         // [B, M, H]
};

// c [kRows, vecs] = a b. Vector i of b starts at `apart` * i. Its rows are b_stride apart; 0 means the width of the
// group of vectors that are multiplied together.
template <typename Level, bool kValues>
void multiply(const typename Level::Operand* a, int64_t a_stride, const typename Level::Operand* b, int64_t apart,
              int64_t b_stride, int64_t depth, int64_t vecs, float* c, int64_t c_stride) {
  for_groups(vecs, Level::kVecs, [&](int64_t first, int64_t count) {
    const typename Level::Operand* from = b + first * apart;
    const int64_t stride = b_stride == 0 ? count * Level::kLanes : b_stride;
    float* to = c + first * Level::kLanes;
    if (count == 1) {
      Level::template product<1, kValues>(a, a_stride, from, stride, depth, to, c_stride);
    } else if (count == 2) {
      Level::template product<2, kValues>(a, a_stride, from, stride, depth, to, c_stride);
    } else if constexpr (Level::kVecs == 3) {
      Level::template product<3, kValues>(a, a_stride, from, stride, depth, to, c_stride);
    }
  });
}

// Computes blocks [begin, end) of kRows queries, numbered through all heads of all images. A row's result does not
// depend on its block, so it is the same for any number of threads.
template <typename Level, typename In>
void attend(const Problem<In>& p, int64_t begin, int64_t end) {
  using Operand = typename Level::Operand;
  constexpr int64_t lanes = Level::kLanes, rows = Level::kRows, pair = Level::kPair;
  const int64_t blocks = (p.queries + rows - 1) / rows;
  const int64_t padded = round_up(p.keys, lanes), width = p.depth / pair;
  const int64_t steps = (p.keys + pair - 1) / pair;
  Scratch<Operand> operands(padded * width + steps * p.depth + rows * width + lanes * p.depth);
  Operand* keys = operands.get();
  Operand* values = keys + padded * width;
  Operand* queries = values + steps * p.depth;
  Operand* buffer = queries + rows * width;
  Scratch<float> floats(rows * (padded + p.depth) + padded);
  float* scores = floats.get();
  float* sums = scores + rows * padded;
  float* bias = sums + rows * p.depth;
  const typename Level::Session session(width, steps);
  std::fill(bias, bias + p.keys, 0.0f);
  std::fill(bias + p.keys, bias + padded, -std::numeric_limits<float>::infinity());

  for (int64_t block = begin; block < end; ++block) {
    const int64_t b = block / blocks / p.heads, h = block / blocks % p.heads;
    if (block == begin || block % blocks == 0) {
      Level::pack(p.k.head(b, h), p.k.row_stride, p.v.head(b, h), p.v.row_stride, p.keys, p.depth, keys, values,
                  buffer);
      if (p.bias != nullptr) {
        std::copy(p.bias + b * p.keys, p.bias + (b + 1) * p.keys, bias);
      }
    }
    const int64_t first = block % blocks * rows, count = std::min(rows, p.queries - first);
    Level::load_queries(p.q.head(b, h) + first * p.q.row_stride, p.q.row_stride, count, p.depth, queries);
    for (int64_t m = count; m < rows; ++m) {  // computed, not written
      std::memcpy(queries + m * width, queries, static_cast<size_t>(width) * sizeof(Operand));
    }
    float inverse[rows], lse[rows];
    multiply<Level, false>(queries, width, keys, lanes * width, 0, width, padded / lanes, scores, padded);
    Level::softmax(scores, padded, p.scale, bias, inverse, lse);
    const Operand* weights = reinterpret_cast<const Operand*>(scores);
    multiply<Level, true>(weights, padded / pair, values, lanes, p.depth, steps, p.depth / lanes, sums, p.depth);
    for (int64_t m = 0; m < count; ++m) {
      const int64_t row = (b * p.queries + first + m) * p.heads + h;
      Level::write(sums + m * p.depth, inverse[m], p.depth, p.out + row * p.depth);
      p.lse[row] = lse[m];
    }
  }
}

// ------------------------------------------------------------------------------------------------- choice

template <typename In>
struct Kernel {
  void (*attend)(const Problem<In>&, int64_t, int64_t);  // nullptr: PyTorch's is faster, or not measured
  int64_t rows;
};

template <typename Level, typename In>
constexpr Kernel<In> kKernel = {attend<Level, In>, Level::kRows};

template <typename In>
Kernel<In> choose_kernel() {
#if ALT_HAS_MULTIVERSION
  const int level = cpu_level();
  if constexpr (std::is_same_v<In, BFloat16>) {
#if ALT_HAS_AMX
    if (level == 2 && __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("avx512bf16") && may_use_tiles()) {
      return kKernel<AttentionAmx, BFloat16>;
    }
#endif
    if (level > 0 && __builtin_cpu_supports("amx-bf16")) {
      return {};  // PyTorch's kernel uses AMX
    }
    if (level == 2 && __builtin_cpu_supports("avx512bf16")) {
      return kKernel<AttentionBf16, BFloat16>;
    }
  }
  if (level == 2) {
    return kKernel<AttentionAvx512, In>;
  }
  return level == 1 ? kKernel<AttentionAvx2, In> : Kernel<In>{};  // without AVX2 PyTorch's is 7 % faster
#elif defined(ALT_NO_MULTIVERSION) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return kKernel<AttentionBaseline, In>;
#else
  return {};
#endif
}

// True for the shapes that were measured.
bool runs_here(int64_t keys, int64_t depth) { return depth % 16 == 0 && depth <= 128 && keys <= 4096; }

// --------------------------------------------------------------------------------------------------- op

// log s [B, 1, 1, N], which both kernels read with stride zero over heads and queries. Never in half precision, where
// log 3 is off by 0.3 %.
std::optional<Tensor> key_bias(const std::optional<Tensor>& size, ScalarType dtype) {
  if (!size.has_value()) {
    return std::nullopt;
  }
  const Tensor sizes = as_contiguous(*size);
  const int64_t batch = sizes.size(0), keys = sizes.size(1);
  const Tensor bias = new_empty({batch, 1, 1, keys}, dtype);
  const float* from = data<const float>(sizes);
  const auto fill = [&](auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    for (int64_t i = 0; i < batch * keys; ++i) {
      to[i] = std::log(static_cast<T>(from[i]));
    }
  };
  if (dtype == ScalarType::Double) {
    fill(data<double>(bias));
  } else {
    fill(data<float>(bias));
  }
  return bias;
}

// The tensor, or a copy where PyTorch's kernel would misread it. It needs rows that do not overlap, and takes heads and
// images that are apart or expanded. With others its matrix products get a leading dimension that no BLAS takes, or its
// result the strides of an overlapping q: both end in arbitrary values without an error.
Tensor rows_apart(const Tensor& t) {
  const int64_t depth = t.size(3);
  const auto apart = [&](int64_t dim) { return t.stride(dim) == 0 || t.stride(dim) >= depth; };
  if (t.stride(3) == 1 && t.stride(2) >= depth && apart(0) && apart(1)) {
    return t;
  }
  Tensor copy = new_empty({t.size(0), t.size(1), t.size(2), depth}, t.scalar_type());
  torch::stable::copy_(copy, t);
  return copy;
}

std::tuple<Tensor, Tensor> of_pytorch(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                      const std::optional<Tensor>& bias, double scale) {
  const Tensor q = rows_apart(q_in), k = rows_apart(k_in), v = rows_apart(v_in);
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  constexpr double dropout = 0.0;
  constexpr bool causal = false;
  StableIValue stack[] = {
      from(q), from(k), from(v), from(dropout), from(causal), from(bias), from(std::optional<double>(scale))};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::_scaled_dot_product_flash_attention_for_cpu", "", stack, TORCH_ABI_VERSION));
  const Tensor out = to<Tensor>(stack[0]), lse = to<Tensor>(stack[1]);
  const int64_t heads = q.size(1), queries = q.size(2), depth = q.size(3);
  if (out.stride(0) == queries * heads * depth && out.stride(1) == depth && out.stride(2) == heads * depth &&
      out.stride(3) == 1) {
    return {out, lse};
  }
  // PyTorch's kernel copies the strides of q where it can.
  Tensor joined = torch::stable::transpose(new_empty({q.size(0), queries, heads, depth}, q.scalar_type()), 1, 2);
  torch::stable::copy_(joined, out);
  return {joined, lse};
}

// Fills the results of a problem without queries, images, heads or keys; without keys every row is zero.
template <typename In>
void without_keys(const Tensor& out, const Tensor& lse) {
  using Acc = accumulate_t<In>;
  std::fill_n(data<In>(out), out.numel(), In(0));
  std::fill_n(data<Acc>(lse), lse.numel(), -std::numeric_limits<Acc>::infinity());
}

template <typename In>
Heads<In> heads_of(const Tensor& t) {
  return {data<const In>(t), t.stride(0), t.stride(1), t.stride(2)};
}

void check_heads(const Tensor& t, const Tensor& q, int64_t keys, const char* name) {
  check_rank(t, 4, name);
  check_dtype(t, q.scalar_type(), name);
  check(t.size(0) == q.size(0) && t.size(1) == q.size(1) && t.size(2) == keys && t.size(3) == q.size(3), name,
        ": expected shape [", q.size(0), ", ", q.size(1), ", ", keys, ", ", q.size(3), "], got [", t.size(0), ", ",
        t.size(1), ", ", t.size(2), ", ", t.size(3), "]");
}

std::tuple<Tensor, Tensor> proportional_attention(const Tensor q_in, const Tensor k_in, const Tensor v_in,
                                                  const std::optional<Tensor> size, double scale) {
  check_rank(q_in, 4, "q");
  check_rank(k_in, 4, "k");
  const int64_t batch = q_in.size(0), heads = q_in.size(1), queries = q_in.size(2), depth = q_in.size(3);
  const int64_t keys = k_in.size(2);
  check_heads(k_in, q_in, keys, "k");
  check_heads(v_in, q_in, keys, "v");
  if (size.has_value()) {
    check_rank(*size, 2, "size");
    check_dtype(*size, ScalarType::Float, "size");
    check(size->size(0) == batch && size->size(1) == keys, "size: expected shape [", batch, ", ", keys, "], got [",
          size->size(0), ", ", size->size(1), "]");
  }
  const ScalarType dtype = q_in.scalar_type();
  return dispatch_floating(dtype, "proportional_attention", [&](auto tag) -> std::tuple<Tensor, Tensor> {
    using In = typename decltype(tag)::type;
    Kernel<In> kernel{};
    if constexpr (!std::is_same_v<In, double>) {
      static const Kernel<In> chosen = choose_kernel<In>();
      kernel = chosen;
    }
    const bool empty = q_in.numel() == 0 || keys == 0;
    const Tensor q = as_rows_contiguous(q_in), k = as_rows_contiguous(k_in), v = as_rows_contiguous(v_in);
    if (!empty && (kernel.attend == nullptr || !runs_here(keys, depth))) {
      return of_pytorch(q_in, k_in, v_in, key_bias(size, accumulate_type(dtype)), scale);
    }
    const Tensor out = new_empty({batch, queries, heads, depth}, dtype);
    const Tensor lse = new_empty({batch, queries, heads}, accumulate_type(dtype));
    if (empty) {
      without_keys<In>(out, lse);
    } else if constexpr (!std::is_same_v<In, double>) {
      const std::optional<Tensor> bias = key_bias(size, ScalarType::Float);
      const Problem<In> problem = {batch,           heads,
                                   queries,         keys,
                                   depth,           static_cast<float>(scale),
                                   heads_of<In>(q), heads_of<In>(k),
                                   heads_of<In>(v), data_or_null<const float>(bias),
                                   data<In>(out),   data<float>(lse)};
      const int64_t blocks = batch * heads * ((queries + kernel.rows - 1) / kernel.rows);
      parallel_for(blocks, kernel.rows * keys * depth / 8,
                   [&](int64_t begin, int64_t end) { kernel.attend(problem, begin, end); });
    }
    return {torch::stable::transpose(out, 1, 2), torch::stable::transpose(lse, 1, 2)};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alt_kernels, CPU, m) { m.impl("proportional_attention", TORCH_BOX(&proportional_attention)); }

}  // namespace alt
