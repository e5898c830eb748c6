// The distribution of a row of C channels over threads, for the kernels of merge + LayerNorm.
//
// W warps share a row. Each thread holds V vectors of 8 neighbouring channels (16 bytes in half precision, 32 in
// float32). With W = 1 a block takes four rows at a time, otherwise one.
//
// Variants: the usual pairs of dtypes are templates that move 16 bytes at a time. Everything else (other pairs, C or
// strides that are no multiples of 8, misaligned addresses) runs one variant that reads each dtype at run time.
#pragma once

#include "device.h"

namespace alt::gpu {

constexpr int kNormRows = 4;             // per block where one warp takes a row
constexpr int64_t kNormChannels = 8192;  // the most

// The threads of a row and the channels that they hold.
template <int W, int V>
struct RowShape {
  static constexpr int threads = W * kWarp;
  static constexpr int rows = W == 1 ? kNormRows : 1;
  static constexpr int block = threads * rows;
  static constexpr int capacity = threads * V * 8;
  ALT_DEVICE static int row() { return thread_index() / threads; }
  // First channel of vector v of this thread.
  ALT_DEVICE static int channel(int v) { return 8 * (v * threads + thread_index() % threads); }
};

// The image of a row. Both are below 2^31: a 64-bit division would be a function call.
ALT_DEVICE int64_t image_of(int64_t row, int32_t rows) {
  return static_cast<uint32_t>(row) / static_cast<uint32_t>(rows);
}

// Sums both values over a row's threads, with the same bits in all of them. `turn` alternates from call to call.
template <int W>
ALT_DEVICE void sum_row(float& first, float& second, int turn) {
  first = sum_lanes(first);
  second = sum_lanes(second);
  if constexpr (W > 1) {
    float* slots = reinterpret_cast<float*>(shared_memory()) + turn % 2 * 2 * W;
    const int warp = thread_index() / kWarp;
    if (thread_index() % kWarp == 0) {
      slots[warp] = first;
      slots[W + warp] = second;
    }
    sync_block();
    first = second = 0.0f;
#pragma unroll
    for (int w = 0; w < W; ++w) {
      first += slots[w];
      second += slots[W + w];
    }
  }
}

// Reads eight channels of a row that starts at element `row`; zeros past the end of the row.
template <typename T, bool Aligned>
ALT_DEVICE void fetch(const void* p, Kind kind, int64_t row, int channel, int channels, float (&v)[8]) {
  if constexpr (Aligned) {
    if (channel < channels) {
      read8(static_cast<const T*>(p) + row + channel, v);
      return;
    }
  }
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    v[k] = !Aligned && channel + k < channels ? read_any(p, row + channel + k, kind) : 0.0f;
  }
}

// Rounds and stores eight channels, and leaves the stored values in v.
template <typename T, bool Aligned>
ALT_DEVICE void keep(void* p, Kind kind, int64_t row, int channel, int channels, float (&v)[8]) {
  if constexpr (Aligned) {
    if (channel < channels) {
      write8(static_cast<T*>(p) + row + channel, v);
    }
  } else {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      if (channel + k < channels) {
        v[k] = write_any(p, row + channel + k, kind, v[k]);
      }
    }
  }
}

// Reads eight weights (or biases); zeros past the end of the row.
template <bool Aligned>
ALT_DEVICE void fetch_parameter(const void* p, Kind kind, int channel, int channels, float (&v)[8]) {
  if constexpr (Aligned) {
    if (channel < channels) {
      read8_any(p, channel, kind, v);
    } else {
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        v[k] = 0.0f;
      }
    }
  } else {
    fetch<float, false>(p, kind, 0, channel, channels, v);
  }
}

// Calls f(RowShape<W, V>) with the smallest shape that holds the row.
template <typename F>
void with_row_shape(int channels, bool aligned, const F& f) {
  if (!aligned) {
    channels <= 1024 ? f(RowShape<1, 4>{}) : f(RowShape<8, 4>{});
  } else if (channels <= 256) {
    f(RowShape<1, 1>{});
  } else if (channels <= 512) {
    f(RowShape<1, 2>{});
  } else if (channels <= 768) {
    f(RowShape<1, 3>{});
  } else if (channels <= 1024) {
    f(RowShape<1, 4>{});
  } else if (channels <= 2048) {
    f(RowShape<8, 1>{});
  } else if (channels <= 4096) {
    f(RowShape<8, 2>{});
  } else {
    f(RowShape<8, 4>{});
  }
}

template <int W, int V>
constexpr int warps_of(RowShape<W, V>) {
  return W;
}
template <int W, int V>
constexpr int vectors_of(RowShape<W, V>) {
  return V;
}

}  // namespace alt::gpu
