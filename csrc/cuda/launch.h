// Host-side helpers of this folder's launchers: checks, memory, device and stream, through the stable ABI.
#pragma once

#include "../common.h"
#include "device.h"

#if !defined(ALT_HOST_EMULATION)
#include <torch/csrc/stable/accelerator.h>
#endif

// The library and the dispatch key of the kernels; the tests build the same files for the host under other names.
#if !defined(ALT_HOST_EMULATION)
#define ALT_GPU_LIBRARY alt_kernels
#define ALT_GPU_KEY CUDA
#else
#define ALT_GPU_LIBRARY alt_kernels_emulated
#define ALT_GPU_KEY CPU
#endif

namespace alt ALT_HIDDEN {

// Makes the device of a tensor current while it lives; stream() is torch's current stream there.
class OnDevice {
 public:
#if defined(ALT_HOST_EMULATION)
  explicit OnDevice(const Tensor&) {}
  void* stream() const { return nullptr; }
#else
  explicit OnDevice(const Tensor& t) : index_(t.get_device_index()), guard_(index_) {}
  void* stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return stream;
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

// A new contiguous tensor on the device of `t`, uninitialised, from torch's caching allocator.
inline Tensor empty_beside(const Tensor& t, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  int32_t type = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &index));
  return new_empty_on(type, index, sizes, dtype);
}

inline void check_beside(const Tensor& t, const Tensor& like, const char* name) {
  check(t.is_cpu() == like.is_cpu() && t.get_device_index() == like.get_device_index(), name,
        ": expected a tensor on the device of the others");
}

inline gpu::Kind kind_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return gpu::Kind::single;
    case ScalarType::Half:
      return gpu::Kind::half;
    case ScalarType::BFloat16:
      return gpu::Kind::bfloat;
    default:
      check(false, name, ": the CUDA kernels take float32, float16 and bfloat16, got ", dtype_name(t.scalar_type()));
      throw std::logic_error("unreachable");
  }
}

inline bool multiple_of_16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// True if rows can be read 16 bytes at a time: the address and the strides are multiples of 16 bytes, C of 8.
inline bool rows_aligned(const Tensor& t) {
  const int64_t last = t.dim() - 1, bytes = static_cast<int64_t>(t.element_size());
  bool fit = multiple_of_16(t.const_data_ptr()) && t.size(last) % 8 == 0;
  for (int64_t d = 0; d < last; ++d) {
    fit = fit && (t.size(d) <= 1 || t.stride(d) * bytes % 16 == 0);
  }
  return fit;
}

// Checks a count that the kernels hold as int32.
inline int32_t count32(int64_t value, const char* name) {
  check(value <= std::numeric_limits<int32_t>::max(), name, ": expected fewer than 2^31, got ", value);
  return static_cast<int32_t>(value);
}

}  // namespace alt
