// Residual + weighted merge + LayerNorm on the GPU in one pass, and its derivative in two.
//
// Symbols: B images, N tokens, N' output rows, C channels. A row is worked on by W warps, each thread of which holds V
// times 8 neighbouring channels (16 bytes of a half-precision number, twice 16 of float32); with W = 1 a block
// does four rows at a time, otherwise one.
//
// Forward, one row: the sum x + residual of its own token and, in the order of the plan, of the others in its group,
// float32; rounded once; mean and deviation of what was stored, in two passes over registers. A row of one token
// is neither multiplied nor divided.
//
// Backward, one row: h, g = dn w and their two sums; dx' rounded as the reference rounds it, then written to every
// token of the group, times its share. Derivatives of weight and bias: a fixed number of blocks, each with its own
// sums over its rows; a second kernel adds those up. Every sum has one order, which the shapes alone decide:
// no atomics, the same bits every run.
//
// Variants: the usual pairs of dtypes by template, 16 bytes at a time; whatever else (other pairs, C or strides that
// are no multiples of 8, addresses off 16) in one that asks for each element's dtype as it runs.
#pragma once

#include "device.h"

namespace alt::gpu {

constexpr int kNormRows = 4;           // of a block where a warp does a row
constexpr int kNormBlocks = 396;       // of the backward: three for each of an H200's 132 multiprocessors
constexpr int64_t kNormChannels = 8192;  // most

struct NormForward {
  const void* x;  // [B, N, C], the last dimension contiguous
  const void* residual;
  const float* size;      // [B, N] or null
  const int32_t* indices;  // [B, N]
  const int32_t* offsets;  // [B, N' + 1]
  const void* weight;      // [C] or null
  const void* bias;        // [C] or null
  void* merged;            // [B, N', C]
  void* normed;
  float* merged_size;  // [B, N']
  float* mean;
  float* rstd;
  int64_t x_image, x_token, residual_image, residual_token;  // strides
  int64_t total;                                             // B N'
  int32_t tokens, rows, channels;
  Kind x_kind, residual_kind, out_kind, weight_kind, bias_kind;
  float eps;
};

struct NormBackward {
  const void* grad_merged;  // [B, N', C]
  const void* grad_normed;
  const void* merged;
  const float* mean;  // [B, N']
  const float* rstd;
  const void* weight;  // [C] or null
  const float* size;   // [B, N] or null
  const float* merged_size;
  const int32_t* indices;
  const int32_t* offsets;
  void* grad;             // [B, N, C]
  float* partial_weight;  // [blocks, C] or null
  float* partial_bias;
  int64_t total;
  int32_t tokens, rows, channels, blocks;
  Kind kind, weight_kind;
};

struct NormSums {
  const float* partial[2];  // weight, bias: [blocks, C]
  float* grad[2];           // [C] or null
  int32_t channels, blocks;
};

// A row's threads and what they hold.
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

// Both sums over a row's threads, the same bits in all of them. `turn` alternates from call to call.
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

// Eight channels of a row that starts at element `row`; zeros from the end of the row on.
template <typename T, bool Aligned>
ALT_DEVICE void fetch(const void* p, Kind kind, int64_t row, int channel, int channels, float (&v)[8]) {
  if (Aligned && channel < channels) {
    if constexpr (Aligned) {
      read8(static_cast<const T*>(p) + row + channel, v);
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    v[k] = !Aligned && channel + k < channels ? read_any(p, row + channel + k, kind) : 0.0f;
  }
}

// Rounds and stores them; v is then what was stored.
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

// Eight weights (or biases); zeros from the end of the row on.
template <bool Aligned>
ALT_DEVICE void fetch_parameter(const void* p, Kind kind, int channel, int channels, float (&v)[8]) {
  if (Aligned && channel < channels) {
    read8_any(p, channel, kind, v);
  } else {
    fetch<float, false>(p, kind, 0, channel, channels, v);
  }
}

template <typename X, typename Y, typename Out, int W, int V, bool Aligned>
ALT_KERNEL((RowShape<W, V>::block), (W == 1 ? 4 : 2))
merge_norm_forward(NormForward n) {
  using Shape = RowShape<W, V>;
  const int64_t at = block_index() * Shape::rows + Shape::row();
  if (at >= n.total) {
    return;  // a whole warp: a block of several rows shares nothing
  }
  const int64_t image = at / n.rows;
  const int32_t* offsets = n.offsets + at + image;
  const int32_t first = offsets[0], last = offsets[1];
  const int32_t* indices = n.indices + image * n.tokens;
  const float* size = n.size == nullptr ? nullptr : n.size + image * n.tokens;
  const bool single = last - first == 1;

  float value[V][8];
  float total = 0.0f;
  for (int32_t place = first; place < last; ++place) {
    const int32_t token = indices[place];
    const float share = size == nullptr ? 1.0f : size[token];
    const int64_t x_row = image * n.x_image + token * n.x_token;
    const int64_t residual_row = image * n.residual_image + token * n.residual_token;
    total += share;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int channel = Shape::channel(v);
      float x[8], y[8];
      fetch<X, Aligned>(n.x, n.x_kind, x_row, channel, n.channels, x);
      fetch<Y, Aligned>(n.residual, n.residual_kind, residual_row, channel, n.channels, y);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float sum = x[k] + y[k];
        value[v][k] = single ? sum : place == first ? sum * share : fused_multiply_add(sum, share, value[v][k]);
      }
    }
  }
  if (!single) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        value[v][k] = total != 0.0f ? divide(value[v][k], total) : 0.0f;
      }
    }
  }

  const int64_t row = at * n.channels;
  float sum = 0.0f, nothing = 0.0f;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    keep<Out, Aligned>(n.merged, n.out_kind, row, Shape::channel(v), n.channels, value[v]);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      sum += value[v][k];  // zero from the end of the row on
    }
  }
  sum_row<W>(sum, nothing, 0);
  const float channels = static_cast<float>(n.channels);
  const float mean = divide(sum, channels);
  float square = 0.0f;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int channel = Shape::channel(v);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      value[v][k] = channel + k < n.channels ? value[v][k] - mean : 0.0f;
      square = fused_multiply_add(value[v][k], value[v][k], square);
    }
  }
  sum_row<W>(square, nothing, 1);
  const float rstd = divide(1.0f, square_root(divide(square, channels) + n.eps));
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int channel = Shape::channel(v);
    float scale[8], shift[8];
    if (n.weight != nullptr) {
      fetch_parameter<Aligned>(n.weight, n.weight_kind, channel, n.channels, scale);
    }
    if (n.bias != nullptr) {
      fetch_parameter<Aligned>(n.bias, n.bias_kind, channel, n.channels, shift);
    }
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float h = value[v][k] * rstd;
      const float w = n.weight != nullptr ? scale[k] : 1.0f;
      value[v][k] = n.bias != nullptr ? fused_multiply_add(h, w, shift[k]) : h * w;
    }
    keep<Out, Aligned>(n.normed, n.out_kind, row, channel, n.channels, value[v]);
  }
  if (thread_index() % Shape::threads == 0) {
    n.merged_size[at] = total;
    n.mean[at] = mean;
    n.rstd[at] = rstd;
  }
}

template <typename T, int W, int V, bool Aligned>
ALT_KERNEL((RowShape<W, V>::block), (W == 1 ? 2 : 1))
merge_norm_backward(NormBackward n) {
  using Shape = RowShape<W, V>;
  float sum_weight[V][8], sum_bias[V][8];
#pragma unroll
  for (int v = 0; v < V; ++v) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      sum_weight[v][k] = sum_bias[v][k] = 0.0f;
    }
  }
  const float inverse = divide(1.0f, static_cast<float>(n.channels));
  int turn = 0;
  for (int64_t at = block_index() * Shape::rows + Shape::row(); at < n.total;
       at += static_cast<int64_t>(n.blocks) * Shape::rows, ++turn) {
    const int64_t image = at / n.rows;
    const int64_t row = at * n.channels;
    const float mean = n.mean[at], rstd = n.rstd[at];
    const int32_t first = n.offsets[at + image], last = n.offsets[at + image + 1];
    const float total = n.merged_size[at];

    float h[V][8], g[V][8];  // outside the row g is 0, h is not
    float sum_g = 0.0f, sum_gh = 0.0f;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int channel = Shape::channel(v);
      fetch<T, Aligned>(n.merged, n.kind, row, channel, n.channels, h[v]);
      fetch<T, Aligned>(n.grad_normed, n.kind, row, channel, n.channels, g[v]);
      float scale[8];
      if (n.weight != nullptr) {
        fetch_parameter<Aligned>(n.weight, n.weight_kind, channel, n.channels, scale);
      }
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        h[v][k] = (h[v][k] - mean) * rstd;
        sum_weight[v][k] = fused_multiply_add(g[v][k], h[v][k], sum_weight[v][k]);
        sum_bias[v][k] += g[v][k];
        if (n.weight != nullptr) {
          g[v][k] *= scale[k];
        }
        sum_g += g[v][k];
        sum_gh = fused_multiply_add(g[v][k], h[v][k], sum_gh);
      }
    }
    sum_row<W>(sum_g, sum_gh, turn);
    sum_g *= inverse;
    sum_gh *= inverse;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int channel = Shape::channel(v);
      float direct[8];
      fetch<T, Aligned>(n.grad_merged, n.kind, row, channel, n.channels, direct);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float along = (g[v][k] - sum_g - h[v][k] * sum_gh) * rstd;
        g[v][k] = direct[k] + along;
      }
    }
    for (int32_t place = first; place < last; ++place) {
      const int32_t token = n.indices[image * n.tokens + place];
      const float size = n.size == nullptr ? 1.0f : n.size[image * n.tokens + token];
      const float share = last - first == 1 ? 1.0f : total != 0.0f ? divide(size, total) : 0.0f;
      const int64_t target = (image * n.tokens + token) * n.channels;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        float out[8];
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          if constexpr (Aligned) {
            out[k] = widen(narrow<T>(g[v][k])) * share;
          } else {
            const float rounded = n.kind == Kind::single ? g[v][k]
                                  : n.kind == Kind::half ? widen(narrow<half_t>(g[v][k]))
                                                         : widen(narrow<bfloat_t>(g[v][k]));
            out[k] = rounded * share;
          }
        }
        keep<T, Aligned>(n.grad, n.kind, target, Shape::channel(v), n.channels, out);
      }
    }
  }

  // The block's sums: those of its rows one after another.
  if (n.partial_weight == nullptr && n.partial_bias == nullptr) {
    return;
  }
  float* sums = reinterpret_cast<float*>(shared_memory());  // W = 1: [2][capacity]
  for (int row = 0; row < Shape::rows; ++row) {
    if (Shape::row() == row) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int channel = Shape::channel(v);
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          if constexpr (W == 1) {
            const float before_weight = row > 0 ? sums[channel + k] : 0.0f;
            const float before_bias = row > 0 ? sums[Shape::capacity + channel + k] : 0.0f;
            sum_weight[v][k] += before_weight;
            sum_bias[v][k] += before_bias;
            sums[channel + k] = sum_weight[v][k];
            sums[Shape::capacity + channel + k] = sum_bias[v][k];
          }
          if (row == Shape::rows - 1 && channel + k < n.channels) {
            const int64_t to = block_index() * n.channels + channel + k;
            if (n.partial_weight != nullptr) {
              n.partial_weight[to] = sum_weight[v][k];
            }
            if (n.partial_bias != nullptr) {
              n.partial_bias[to] = sum_bias[v][k];
            }
          }
        }
      }
    }
    if constexpr (Shape::rows > 1) {
      sync_block();
    }
  }
}

// 32 channels of one parameter's derivative: 32 warps add up every 32nd partial sum, then those 32.
ALT_KERNEL(1024, 1)
sum_partials(NormSums n) {
  const int tiles = (n.channels + kWarp - 1) / kWarp;
  const int which = static_cast<int>(block_index()) / tiles;
  const int tile = static_cast<int>(block_index()) % tiles;
  const int warp = thread_index() / kWarp, lane = thread_index() % kWarp;
  const float* partial = which == 0 ? n.partial[0] : n.partial[1];
  float* grad = which == 0 ? n.grad[0] : n.grad[1];
  if (grad == nullptr) {
    return;
  }
  float* sums = reinterpret_cast<float*>(shared_memory());  // [32][33]
  float sum = 0.0f;
  if (tile * kWarp + lane < n.channels) {
#pragma unroll 4
    for (int block = warp; block < n.blocks; block += kWarp) {
      sum += partial[static_cast<int64_t>(block) * n.channels + tile * kWarp + lane];
    }
  }
  sums[warp * (kWarp + 1) + lane] = sum;
  sync_block();
  sum = sum_lanes(sums[lane * (kWarp + 1) + warp]);
  if (lane == 0 && tile * kWarp + warp < n.channels) {
    grad[tile * kWarp + warp] = sum;
  }
}

// ------------------------------------------------------------------------------------------ launching

// f(RowShape<W, V>) with the smallest shape that holds the row.
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

template <typename X, typename Y, typename Out, bool Aligned>
void launch_norm_forward(const NormForward& n, void* stream) {
  with_row_shape(n.channels, Aligned, [&](auto shape) {
    using Shape = decltype(shape);
    constexpr int W = warps_of(Shape{}), V = vectors_of(Shape{});
    const Grid grid{(n.total + Shape::rows - 1) / Shape::rows, Shape::block, 4 * W * 4, stream};
    if constexpr (Aligned || V == 4) {
      launch<merge_norm_forward<X, Y, Out, W, V, Aligned>>(grid, n);
    }
  });
}

inline void launch_norm_forward(const NormForward& n, bool aligned, void* stream) {
  constexpr auto f = Kind::single;
  if (aligned && n.x_kind == n.residual_kind) {
    if (n.x_kind == f) {
      launch_norm_forward<float, float, float, true>(n, stream);
    } else if (n.x_kind == Kind::half) {
      launch_norm_forward<half_t, half_t, half_t, true>(n, stream);
    } else {
      launch_norm_forward<bfloat_t, bfloat_t, bfloat_t, true>(n, stream);
    }
  } else if (aligned && n.x_kind == f && n.residual_kind == Kind::half) {
    launch_norm_forward<float, half_t, float, true>(n, stream);
  } else if (aligned && n.x_kind == f && n.residual_kind == Kind::bfloat) {
    launch_norm_forward<float, bfloat_t, float, true>(n, stream);
  } else {
    launch_norm_forward<float, float, float, false>(n, stream);
  }
}

// How many partial sums the backward makes: of the shapes alone, never of the GPU.
inline int32_t norm_blocks(int64_t total, int32_t channels) {
  const int rows = channels <= 1024 ? kNormRows : 1;
  const int64_t wanted = (total + rows - 1) / rows;
  return static_cast<int32_t>(wanted < kNormBlocks ? wanted : kNormBlocks);
}

template <typename T, bool Aligned>
void launch_norm_backward(const NormBackward& n, void* stream) {
  with_row_shape(n.channels, Aligned, [&](auto shape) {
    using Shape = decltype(shape);
    constexpr int W = warps_of(Shape{}), V = vectors_of(Shape{});
    const Grid grid{n.blocks, Shape::block, W == 1 ? 2 * Shape::capacity * 4 : 4 * W * 4, stream};
    if constexpr (Aligned || V == 4) {
      launch<merge_norm_backward<T, W, V, Aligned>>(grid, n);
    }
  });
}

inline void launch_norm_backward(const NormBackward& n, bool aligned, void* stream) {
  if (!aligned) {
    launch_norm_backward<float, false>(n, stream);
  } else if (n.kind == Kind::single) {
    launch_norm_backward<float, true>(n, stream);
  } else if (n.kind == Kind::half) {
    launch_norm_backward<half_t, true>(n, stream);
  } else {
    launch_norm_backward<bfloat_t, true>(n, stream);
  }
}

inline void launch_sum_partials(const NormSums& n, void* stream) {
  const int64_t tiles = (n.channels + kWarp - 1) / kWarp;
  launch<sum_partials>(Grid{2 * tiles, 1024, kWarp * (kWarp + 1) * 4, stream}, n);
}

}  // namespace alt::gpu
