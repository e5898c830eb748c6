// Helpers of every C++ kernel: types, dispatch, checks and allocation on the LibTorch stable ABI.
//
// Only torch/csrc/stable and torch/headeronly are included, so one binary serves several torch versions;
// ATen headers must not appear here. Kernels of csrc/cpu include this file and not one another.
//
//   alt::check(cond, parts...)             raise with a message (ValueError in Python)
//   alt::accumulate_t<T>                   double for double, float otherwise
//   alt::dispatch_floating(dtype, op, f)   call f(alt::TypeTag<T>{}) for double, float, half, bfloat16
//   alt::load<Acc>(x), alt::store<T>(v)    one element to and from the accumulation type (vectorises)
//   alt::new_empty({2, 3}, dtype)          new contiguous CPU tensor, uninitialised
//   alt::as_contiguous(t or optional)      the tensor itself where it is contiguous, else a copy
//   alt::as_rows_contiguous(t)             the tensor itself where its last dimension has stride 1, else a copy
//   alt::data<T>(t)                        typed pointer (T may be const), checks the dtype
//   alt::data_or_null<T>(optional)         nullptr where the optional tensor is absent
//   alt::Scratch<T>(count)                 aligned uninitialised memory
//   alt::parallel_for(n, cost, f)          f(begin, end) over [0, n), serial where the work is small
//   alt::Plan                              a checked merge plan, see below
//   ALT_MULTIVERSION                       compile a function once per x86 level, chosen when the library loads
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <iomanip>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

// ALT_MULTIVERSION before a function (free, static or a template in an anonymous namespace) makes GCC compile
// it for AVX-512, AVX2 and the baseline, and choose when the library is loaded (ifunc: glibc only). Helpers
// called in its loops must be ALT_INLINE; lambdas inside it are not cloned. -DALT_NO_MULTIVERSION compiles
// only the baseline, which is how tests reach it. It is off under sanitizers too, because ifunc resolvers run
// before a sanitizer is ready.
#if !defined(ALT_NO_MULTIVERSION) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 &&     \
    defined(__x86_64__) && defined(__ELF__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define ALT_HAS_MULTIVERSION 1
#define ALT_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ALT_HAS_MULTIVERSION 0
#define ALT_MULTIVERSION
#endif

#if defined(__GNUC__)
#define ALT_INLINE inline __attribute__((always_inline))
#define ALT_RESTRICT __restrict__
#define ALT_HIDDEN __attribute__((visibility("hidden")))
#else
#define ALT_INLINE inline
#define ALT_RESTRICT
#define ALT_HIDDEN
#endif

// Hidden, as torch::stable::Tensor is.
namespace alt ALT_HIDDEN {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---------------------------------------------------------------------------------------------- checks

// Raises std::invalid_argument (ValueError in Python) with the parts joined as its message.
template <typename... Parts>
inline void check(bool condition, const Parts&... parts) {
  if (!condition) {
    std::ostringstream text;
    (text << ... << parts);
    throw std::invalid_argument(text.str());
  }
}

inline const char* dtype_name(ScalarType dtype) { return torch::headeronly::toString(dtype); }

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Double || dtype == ScalarType::Float || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

// Checks the rank of an argument, which is named as in the op's schema. Messages read like those of the Python checks.
inline void check_rank(const Tensor& t, int64_t rank, const char* name) {
  check(t.dim() == rank, name, ": expected ", rank, " dimensions, got ", t.dim());
}

inline void check_dtype(const Tensor& t, ScalarType dtype, const char* name) {
  check(t.scalar_type() == dtype, name, ": expected ", dtype_name(dtype), ", got ", dtype_name(t.scalar_type()));
}

// ----------------------------------------------------------------------------------------------- types

// double accumulates in double, everything else in float.
template <typename T>
using accumulate_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
struct TypeTag {
  using type = T;
};

template <typename T>
constexpr ScalarType scalar_type_of() {
  if constexpr (std::is_same_v<T, double>) {
    return ScalarType::Double;
  } else if constexpr (std::is_same_v<T, float>) {
    return ScalarType::Float;
  } else if constexpr (std::is_same_v<T, Half>) {
    return ScalarType::Half;
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return ScalarType::BFloat16;
  } else if constexpr (std::is_same_v<T, int32_t>) {
    return ScalarType::Int;
  } else {
    static_assert(std::is_same_v<T, int64_t>, "no scalar type for T");
    return ScalarType::Long;
  }
}

// The dtype of accumulation, as a run-time value.
inline ScalarType accumulate_type(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// torch.promote_types for the four floating types.
inline ScalarType promote(ScalarType a, ScalarType b) {
  if (a == b) {
    return a;
  }
  return a == ScalarType::Double || b == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// f is a generic lambda: [&](auto tag) { using T = typename decltype(tag)::type; ... }.
template <typename F>
inline decltype(auto) dispatch_floating(ScalarType dtype, const char* op, F&& f) {
  switch (dtype) {
    case ScalarType::Double:
      return f(TypeTag<double>{});
    case ScalarType::Float:
      return f(TypeTag<float>{});
    case ScalarType::Half:
      return f(TypeTag<Half>{});
    case ScalarType::BFloat16:
      return f(TypeTag<BFloat16>{});
    default:
      check(false, op, " takes float64, float32, float16 or bfloat16 tensors, got ", dtype_name(dtype));
      throw std::logic_error("unreachable");
  }
}

// One element, widened. Branch-free, so that loops around it vectorise.
template <typename Acc, typename T>
ALT_INLINE Acc load(const T& x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const uint32_t bits = static_cast<uint32_t>(x.x) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return static_cast<Acc>(value);
  } else if constexpr (std::is_same_v<T, Half>) {
    return static_cast<Acc>(static_cast<float>(x));
  } else {
    return static_cast<Acc>(x);
  }
}

// One element, rounded to nearest even. NaN stays NaN.
template <typename T, typename Acc>
ALT_INLINE T store(Acc v) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const float value = static_cast<float>(v);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return BFloat16(static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded), BFloat16::from_bits());
  } else if constexpr (std::is_same_v<T, Half>) {
    return Half(static_cast<float>(v));
  } else {
    return static_cast<T>(v);
  }
}

// --------------------------------------------------------------------------------------------- tensors

// Raises what PyTorch raises (RuntimeError in Python) if memory could not be had.
inline void check_memory(bool found, double bytes) {
  if (!found) {
    std::ostringstream text;
    text << "out of memory: cannot allocate " << std::fixed << std::setprecision(0) << bytes << " bytes";
    throw std::runtime_error(text.str());
  }
}

// Raises if `bytes` of CPU memory cannot be had, before PyTorch is asked for much of it: where its shim fails, it
// prints its stack to stderr and keeps no message.
inline void try_memory(double bytes) {
  if (bytes > static_cast<double>(1 << 28)) {
    void* memory = bytes < 9e18 ? ::operator new(static_cast<size_t>(bytes), std::nothrow) : nullptr;
    check_memory(memory != nullptr, bytes);
    ::operator delete(memory);
  }
}

inline Tensor copy_contiguous(const Tensor& t) {
  if (t.is_cpu()) {
    try_memory(static_cast<double>(t.numel()) * static_cast<double>(t.element_size()));
  }
  return torch::stable::contiguous(t);
}

// A new contiguous tensor on a device, uninitialised. It calls the C shim directly, without the dispatcher.
inline Tensor new_empty_on(int32_t device_type, int32_t device_index, std::initializer_list<int64_t> sizes,
                           ScalarType dtype) {
  constexpr size_t max_rank = 8;
  int64_t shape[max_rank];
  int64_t strides[max_rank];
  const size_t rank = sizes.size();
  check(rank <= max_rank, "at most ", max_rank, " dimensions, got ", rank);
  std::copy(sizes.begin(), sizes.end(), shape);
  int64_t stride = 1;
  for (size_t i = rank; i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(shape[i], 1);
  }
  const int32_t code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  const bool wide = dtype == ScalarType::Double || dtype == ScalarType::Long;
  double bytes = wide ? 8 : dtype == ScalarType::Float || dtype == ScalarType::Int ? 4 : 2;
  for (const int64_t size : sizes) {
    bytes *= static_cast<double>(size);
  }
  if (device_type == aoti_torch_device_type_cpu()) {
    try_memory(bytes);
  }
  AtenTensorHandle handle = nullptr;
  check_memory(aoti_torch_empty_strided(static_cast<int64_t>(rank), shape, strides, code, device_type, device_index,
                                        &handle) == TORCH_SUCCESS,
               bytes);
  return Tensor(handle);
}

inline Tensor new_empty(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return new_empty_on(aoti_torch_device_type_cpu(), 0, sizes, dtype);
}

inline Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : copy_contiguous(t); }

inline std::optional<Tensor> as_contiguous(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional<Tensor>(as_contiguous(*t)) : std::nullopt;
}

// The tensor itself where its last dimension is contiguous, else a copy. Row kernels need no more than that, and
// most views have it.
inline Tensor as_rows_contiguous(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return t.size(last) <= 1 || t.stride(last) == 1 ? t : copy_contiguous(t);
}

// T may be const-qualified; the dtype is checked by torch.
template <typename T>
inline T* data(const Tensor& t) {
  using Plain = std::remove_const_t<T>;
  if constexpr (std::is_const_v<T>) {
    return t.template const_data_ptr<Plain>();
  } else {
    return t.template mutable_data_ptr<Plain>();
  }
}

template <typename T>
inline T* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? data<T>(*t) : nullptr;
}

// Uninitialised scratch memory, 64-byte aligned, of trivially destructible T.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : memory_(static_cast<T*>(::operator new(sizeof(T) * static_cast<size_t>(std::max<int64_t>(count, 1)),
                                               std::align_val_t{64}, std::nothrow))) {
    check_memory(memory_ != nullptr, static_cast<double>(sizeof(T)) * static_cast<double>(count));
  }
  T* get() const { return memory_.get(); }
  T& operator[](int64_t i) const { return memory_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(static_cast<void*>(p), std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> memory_;
};

// --------------------------------------------------------------------------------------------- threads

// Calls f(begin, end) over [0, n). cost_per_item is a rough count of elementary operations (say, floats touched).
// A thread gets at least 32768 of them, so small problems stay on the calling thread.
template <typename F>
inline void parallel_for(int64_t n, int64_t cost_per_item, const F& f) {
  constexpr int64_t min_cost_per_thread = 32768;
  if (n <= 0) {
    return;
  }
  const int64_t grain = std::max<int64_t>(1, min_cost_per_thread / std::max<int64_t>(1, cost_per_item));
  if (n <= grain) {
    f(int64_t{0}, n);
    return;
  }
  // An exception that left the body would lose its message.
  std::exception_ptr error;
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    try {
      f(begin, end);
    } catch (...) {
      if (!failed.test_and_set()) {
        error = std::current_exception();
      }
    }
  });
  if (error) {
    std::rethrow_exception(error);
  }
}

// ------------------------------------------------------------------------------------------------ plan

// A merge plan: output row j of image b is made of the input tokens
// indices[b, offsets[b, j] : offsets[b, j + 1]], and output_row[b, i] is the output row of input token i.
// make_plan copies nothing that is contiguous. It raises unless, for every image, offsets rise strictly from
// 0 to N (every output row has a source) and all indices and output rows are in range. It does not check that
// indices is a permutation and output_row its inverse, so no kernel may rely on that for memory safety.
struct Plan {
  Tensor indices_tensor, offsets_tensor, output_row_tensor;  // keep the memory alive
  const int32_t* indices = nullptr;                          // [B, N]
  const int32_t* offsets = nullptr;                          // [B, M + 1]
  const int32_t* output_row = nullptr;                       // [B, N]
  int64_t batch = 0, tokens = 0, rows = 0;                   // B, N, M
};

// Raises unless all values of a plan's tensor are from 0 to count - 1.
inline void check_plan_values(const int32_t* values, int64_t total, int64_t count, const char* name) {
  // Negative values become huge as unsigned, so one compare covers both ends; no early exit: it vectorises.
  bool bad = false;
  for (int64_t i = 0; i < total; ++i) {
    bad |= static_cast<uint32_t>(values[i]) >= static_cast<uint32_t>(count);
  }
  for (int64_t i = 0; bad && i < total; ++i) {
    check(values[i] >= 0 && values[i] < count, name, ": expected values from 0 to ", count - 1, ", got ", values[i]);
  }
}

inline Plan make_plan(const Tensor& indices, const Tensor& offsets, const Tensor& output_row) {
  check_rank(offsets, 2, "matching.offsets");
  check_rank(output_row, 2, "matching.output_row");
  check_dtype(offsets, ScalarType::Int, "matching.offsets");
  check_dtype(output_row, ScalarType::Int, "matching.output_row");
  Plan plan;
  plan.batch = output_row.size(0);
  plan.tokens = output_row.size(1);
  plan.rows = offsets.size(1) - 1;
  check(offsets.size(0) == plan.batch && plan.rows >= 0 && plan.rows <= plan.tokens,
        "matching.offsets: expected shape [", plan.batch, ", 1 to ", plan.tokens + 1, "], got [", offsets.size(0), ", ",
        offsets.size(1), "]");
  check_rank(indices, 2, "matching.indices");
  check_dtype(indices, ScalarType::Int, "matching.indices");
  check(indices.size(0) == plan.batch && indices.size(1) == plan.tokens, "matching.indices: expected shape [",
        plan.batch, ", ", plan.tokens, "] like output_row, got [", indices.size(0), ", ", indices.size(1), "]");
  plan.indices_tensor = as_contiguous(indices);
  plan.indices = data<const int32_t>(plan.indices_tensor);
  plan.offsets_tensor = as_contiguous(offsets);
  plan.output_row_tensor = as_contiguous(output_row);
  plan.offsets = data<const int32_t>(plan.offsets_tensor);
  plan.output_row = data<const int32_t>(plan.output_row_tensor);

  const int64_t total = plan.batch * plan.tokens;
  check_plan_values(plan.indices, total, plan.tokens, "matching.indices");
  check_plan_values(plan.output_row, total, plan.rows, "matching.output_row");
  for (int64_t b = 0; b < plan.batch; ++b) {
    const int32_t* row = plan.offsets + b * (plan.rows + 1);
    bool bad = row[0] != 0 || row[plan.rows] != plan.tokens;
    for (int64_t j = 0; j < plan.rows; ++j) {
      bad |= row[j + 1] <= row[j];
    }
    check(!bad, "matching.offsets: expected values that rise strictly from 0 to ", plan.tokens, " in image ", b);
  }
  return plan;
}

}  // namespace alt
