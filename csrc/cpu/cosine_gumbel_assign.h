// Parts shared by the forward and the backward of the Gumbel assignment on the CPU.
//
//   logit_ik = cos(x_i, s_k) / tau + g_ik        (ALT, Eq. 4; the noise g is not divided by tau)
//
// Rows of x are taken in chunks and entities in tiles of at most kTileWidth rows. Products of a chunk and a tile
// come from the library's matmul, everything else from the fused row functions below. T is the accumulation type,
// float or double. Half and bfloat16 operands are widened chunk by chunk and tile by tile, so no logit is ever
// rounded to 16 bits and there is no widened copy of all entities.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "common.h"
#include "cpu/philox.h"
#include "cpu/vec_math.h"

namespace alt {
namespace gumbel {
namespace {  // every file that includes this has its own copy, with the clones for instruction sets

constexpr int64_t kBlock = 4 * kPhiloxCalls;  // columns whose noise is drawn at once
constexpr int64_t kTileWidth = 1024;          // a multiple of kBlock; K up to twice this is one tile

// ------------------------------------------------------------------------------------------------ library calls

// These call the CPU kernels through the C shim, so neither autocast nor a dispatch mode interferes.
inline void mm_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

// out += a @ b
inline void addmm_into(const Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}

inline Tensor rows_of(const Tensor& t, int64_t start, int64_t count) {
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_aten_narrow(t.get(), 0, start, count, &handle));
  return Tensor(handle);
}

inline Tensor transposed(const Tensor& t) { return torch::stable::transpose(t, 0, 1); }

inline void copy_into(Tensor target, const Tensor& source) { torch::stable::copy_(target, source); }

// [rows, columns] over memory that the caller keeps alive.
template <typename T>
Tensor matrix_over(T* memory, int64_t rows, int64_t columns) {
  return torch::stable::from_blob(memory, {rows, columns}, {columns, 1},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), scalar_type_of<T>());
}

// ------------------------------------------------------------------------------------------------ arguments

struct Problem {
  int64_t rows = 0, entities = 0, width = 0;  // M, K, d
  int64_t entity_bytes = 0;                   // of the tensor as given
  double tau = 1.0;
  ScalarType accumulate = ScalarType::Float;  // type of all arithmetic and of log_normalizer
  ScalarType output = ScalarType::Float;      // promote_types(x, entities)
  bool has_seed = false;
  uint64_t seed = 0;
};

// Checks the arguments that forward and backward share.
inline Problem make_problem(const Tensor& x, const Tensor& entities, const Tensor& tau,
                            const std::optional<Tensor>& noise, const std::optional<Tensor>& seed) {
  check_rank(x, 2, "x");
  check_rank(entities, 2, "entities");
  check(is_floating(x.scalar_type()), "x must be float64, float32, float16 or bfloat16, got ",
        dtype_name(x.scalar_type()));
  check(is_floating(entities.scalar_type()), "entities must be float64, float32, float16 or bfloat16, got ",
        dtype_name(entities.scalar_type()));
  check(entities.size(0) >= 1, "entities must have at least one row, got K = 0");
  check(entities.size(1) == x.size(1), "x and entities must have the same width, got ", x.size(1), " and ",
        entities.size(1));
  Problem p;
  p.rows = x.size(0);
  p.entities = entities.size(0);
  p.width = x.size(1);
  p.entity_bytes = entities.numel() * static_cast<int64_t>(entities.element_size());
  p.output = promote(x.scalar_type(), entities.scalar_type());
  p.accumulate = accumulate_type(p.output);
  check_rank(tau, 0, "tau");
  p.tau = *data<const double>(torch::stable::to(tau, ScalarType::Double));
  // A tau below the smallest float would divide by zero in float arithmetic.
  const bool usable = p.accumulate == ScalarType::Double || static_cast<float>(p.tau) > 0.0f;
  check(std::isfinite(p.tau) && p.tau > 0.0 && usable, "tau must be finite and > 0, got ", p.tau);
  check(!(noise.has_value() && seed.has_value()), "noise and seed cannot both be given");
  if (noise.has_value()) {
    check_rank(*noise, 2, "noise");
    check(is_floating(noise->scalar_type()), "noise must be a floating tensor, got ", dtype_name(noise->scalar_type()));
    check(noise->size(0) == p.rows && noise->size(1) == p.entities, "noise must have shape [", p.rows, ", ", p.entities,
          "], got [", noise->size(0), ", ", noise->size(1), "]");
  }
  if (seed.has_value()) {
    check_rank(*seed, 0, "seed");
    check_dtype(*seed, ScalarType::Long, "seed");
    p.has_seed = true;
    p.seed = static_cast<uint64_t>(*data<const int64_t>(*seed));
  }
  return p;
}

// Rows per chunk. The chunk's buffers stay within a megabyte or half the size of the entities, whichever is more, up
// to 64 MiB. A chunk has at least 16 rows, because thinner matmuls are slow. The number of threads does not enter, so
// results do not depend on it.
inline int64_t rows_per_chunk(const Problem& p, int64_t values_per_row) {
  const int64_t item = p.accumulate == ScalarType::Double ? 8 : 4;
  const int64_t budget = std::clamp<int64_t>(p.entity_bytes / 2, int64_t{1} << 20, int64_t{1} << 26);
  const int64_t most = std::clamp<int64_t>(budget / (item * values_per_row), 16, 256);
  const int64_t chunks = (p.rows + most - 1) / most;
  return chunks == 0 ? most : (p.rows + chunks - 1) / chunks;
}

// ------------------------------------------------------------------------------------------------ noise

// The source of the noise of one row and tile: a tensor's row, Philox, or none.
template <typename T>
struct NoiseRow {
  const T* given = nullptr;  // at the tile's first column
  bool drawn = false;
  uint64_t seed = 0, row = 0;
};

// Noise of columns [column, column + kBlock) of the matrix; `offset` is the same column inside the tile.
template <typename T>
ALT_INLINE void noise_block(const NoiseRow<T>& source, int64_t column, int64_t offset, int64_t count,
                            T (&noise)[kBlock]) {
  if (source.drawn) {
    uint32_t words[4][kPhiloxCalls];
    T variates[4][kPhiloxCalls];
    philox_words(source.seed, source.row, static_cast<uint32_t>(column / 4), words);
    for (int w = 0; w < 4; ++w) {
#pragma omp simd
      for (int j = 0; j < kPhiloxCalls; ++j) {
        variates[w][j] = gumbel_of_word(words[w][j], T(0));
      }
    }
#pragma omp simd
    for (int j = 0; j < kPhiloxCalls; ++j) {
      noise[4 * j] = variates[0][j];
      noise[4 * j + 1] = variates[1][j];
      noise[4 * j + 2] = variates[2][j];
      noise[4 * j + 3] = variates[3][j];
    }
  } else if (source.given != nullptr) {
    for (int64_t j = 0; j < count; ++j) {
      noise[j] = source.given[offset + j];
    }
  } else {
    for (int64_t j = 0; j < kBlock; ++j) {
      noise[j] = T(0);
    }
  }
}

// A chunk's view of the noise argument. A tensor is read in place when it has type T and contiguous rows,
// otherwise tile by tile through a scratch copy.
template <typename T>
class ChunkNoise {
 public:
  ChunkNoise(const Problem& p, const std::optional<Tensor>& noise) : problem_(p), noise_(noise) {
    in_place_ = noise_.has_value() && noise_->scalar_type() == scalar_type_of<T>() &&
                (noise_->stride(1) == 1 || noise_->size(1) == 1);
  }

  void select(int64_t first_row, int64_t rows, int64_t first_column, int64_t columns) {
    first_row_ = first_row;
    if (!noise_.has_value()) {
      return;
    }
    Tensor part = rows_of(*noise_, first_row, rows);
    part = torch::stable::narrow(part, 1, first_column, columns);
    if (!in_place_) {
      Tensor copy = new_empty({rows, columns}, scalar_type_of<T>());
      copy_into(copy, part);
      part = copy;
    }
    held_ = part;
    base_ = data<const T>(part);
    stride_ = part.stride(0);
  }

  NoiseRow<T> row(int64_t i) const {
    return {noise_.has_value() ? base_ + i * stride_ : nullptr, problem_.has_seed, problem_.seed,
            static_cast<uint64_t>(first_row_ + i)};
  }

 private:
  const Problem& problem_;
  std::optional<Tensor> noise_, held_;
  bool in_place_ = false;
  const T* base_ = nullptr;
  int64_t stride_ = 0, first_row_ = 0;
};

// ------------------------------------------------------------------------------------------------ entities

// Sums of squares of `count` rows.
template <typename T>
ALT_INLINE void squares_of_rows_body(const T* rows, int64_t stride, int64_t count, int64_t width, double* squares) {
  for (int64_t k = 0; k < count; ++k) {
    const T* row = rows + k * stride;
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) {
      sum += static_cast<double>(row[i]) * static_cast<double>(row[i]);
    }
    squares[k] = sum;
  }
}

ALT_MULTIVERSION void squares_of_rows(const float* rows, int64_t stride, int64_t count, int64_t width,
                                      double* squares) {
  squares_of_rows_body(rows, stride, count, width, squares);
}

void squares_of_rows(const double* rows, int64_t stride, int64_t count, int64_t width, double* squares) {
  squares_of_rows_body(rows, stride, count, width, squares);
}

// True if dot products of a row could overflow or lose bits to underflow. Rows with NaN or infinity are not `extreme`:
// scaling would not help them, and NaN must reach the result.
template <typename T>
bool is_extreme(double squares) {
  constexpr bool single = std::is_same_v<T, float>;
  return squares < (single ? 1e-60 : 1e-280) || squares > (single ? 1e75 : 1e280);
}

// For a row with extreme squares: the exponent of its largest entry, by which it is scaled. False for a row that is
// zero or not finite.
template <typename T>
bool scaling_exponent(const T* row, int64_t width, int* exponent) {
  T largest = 0;
  for (int64_t i = 0; i < width; ++i) {
    largest = std::max(largest, std::abs(row[i]));
  }
  if (largest == T(0) || !std::isfinite(largest)) {
    return false;
  }
  *exponent = std::ilogb(largest);
  return true;
}

template <typename T>
double scale_row(T* row, int64_t width, int exponent) {
  double squares = 0.0;
  for (int64_t i = 0; i < width; ++i) {
    row[i] = std::scalbn(row[i], -exponent);
    squares += static_cast<double>(row[i]) * static_cast<double>(row[i]);
  }
  return squares;
}

inline double reciprocal_norm(double squares) { return squares == 0.0 ? 0.0 : 1.0 / std::sqrt(squares); }

// Divides the rows [count, width] by their norms and stores 1 / norm of each; zero rows stay zero and store 0.
template <typename T>
void normalise_rows(T* rows, int64_t count, int64_t width, double* inverse_norm) {
  parallel_for(count, width, [&](int64_t begin, int64_t end) {
    squares_of_rows(rows + begin * width, width, end - begin, width, inverse_norm + begin);
    for (int64_t i = begin; i < end; ++i) {
      T* row = rows + i * width;
      int exponent = 0;
      double squares = inverse_norm[i];
      if (is_extreme<T>(squares) && scaling_exponent(row, width, &exponent)) {
        squares = scale_row(row, width, exponent);
      }
      const double inverse = reciprocal_norm(squares);
      for (int64_t j = 0; j < width; ++j) {
        row[j] = static_cast<T>(static_cast<double>(row[j]) * inverse);
      }
      inverse_norm[i] = std::scalbn(inverse, -exponent);
    }
  });
}

// The entities as tiles [rows of the tile, d] of type T with the reciprocal norms of their rows.
//
// A tile is a view where the tensor already has type T and contiguous rows, otherwise a copy in one buffer. A tile
// with extreme rows is a copy too, in which those rows are multiplied by a power of two. Reciprocal norms are of the
// rows as stored, and value_scale leads back to the given ones.
template <typename T>
class EntityTiles {
 public:
  EntityTiles(const Problem& p, const Tensor& entities)
      : entities_(entities), count_(p.entities), width_(p.width), inverse_norm_(p.entities) {
    direct_ = entities.scalar_type() == scalar_type_of<T>() && (width_ <= 1 || entities.stride(1) == 1) &&
              (count_ <= 1 || entities.stride(0) >= std::max<int64_t>(width_, 1));
    const auto tiles = static_cast<size_t>(count_ <= 2 * kTileWidth ? 1 : (count_ + kTileWidth - 1) / kTileWidth);
    value_scale_.resize(tiles);
    seen_.assign(tiles, 0);
  }

  int64_t tiles() const { return static_cast<int64_t>(seen_.size()); }
  int64_t tile_width() const { return tiles() == 1 ? count_ : kTileWidth; }
  int64_t first(int64_t t) const { return t * tile_width(); }
  int64_t size(int64_t t) const { return std::min(tile_width(), count_ - first(t)); }

  // The next two are valid after tile(t).
  const T* inverse_norm(int64_t t) const { return inverse_norm_.get() + first(t); }
  // Given row = value_scale * stored row; nullptr where the tile holds no extreme row.
  const T* value_scale(int64_t t) const {
    const std::vector<T>& scale = value_scale_[static_cast<size_t>(t)];
    return scale.empty() ? nullptr : scale.data();
  }

  Tensor tile(int64_t t) {
    if (!seen_[static_cast<size_t>(t)]) {
      load(t);
      find_norms(t);
      seen_[static_cast<size_t>(t)] = 1;
      current_tile_ = value_scale(t) == nullptr ? t : -1;  // -1: load again, scaled
    }
    load(t);
    return current_;
  }

 private:
  void load(int64_t t) {
    if (current_tile_ == t) {
      return;
    }
    const Tensor source = rows_of(entities_, first(t), size(t));
    if (direct_ && value_scale(t) == nullptr) {
      current_ = source;
    } else {
      if (buffer_rows_ == 0) {
        buffer_ = new_empty({tile_width(), width_}, scalar_type_of<T>());
        buffer_rows_ = tile_width();
      }
      current_ = rows_of(buffer_, 0, size(t));
      copy_into(current_, source);
      const T* scale = value_scale(t);
      for (int64_t k = 0; scale != nullptr && k < size(t); ++k) {
        if (scale[k] != T(1)) {
          scale_row(data<T>(current_) + k * width_, width_, std::ilogb(scale[k]));
        }
      }
    }
    current_tile_ = t;
  }

  void find_norms(int64_t t) {
    const T* rows = data<const T>(current_);
    const int64_t stride = size(t) > 1 ? current_.stride(0) : width_;
    Scratch<double> squares(size(t));
    parallel_for(size(t), width_, [&](int64_t begin, int64_t end) {
      squares_of_rows(rows + begin * stride, stride, end - begin, width_, squares.get() + begin);
    });
    std::vector<T>& scale = value_scale_[static_cast<size_t>(t)];
    for (int64_t k = 0; k < size(t); ++k) {
      int exponent = 0;
      if (is_extreme<T>(squares[k]) && scaling_exponent(rows + k * stride, width_, &exponent)) {
        std::vector<T> scaled(rows + k * stride, rows + k * stride + width_);
        squares[k] = scale_row(scaled.data(), width_, exponent);
        if (scale.empty()) {
          scale.assign(static_cast<size_t>(size(t)), T(1));
        }
        scale[static_cast<size_t>(k)] = std::scalbn(T(1), exponent);
      }
      inverse_norm_[first(t) + k] = static_cast<T>(reciprocal_norm(squares[k]));
    }
  }

  Tensor entities_;
  int64_t count_, width_;
  Scratch<T> inverse_norm_;
  bool direct_ = false;
  std::vector<std::vector<T>> value_scale_;  // per tile, empty where nothing is scaled
  std::vector<char> seen_;
  Tensor buffer_, current_;
  int64_t buffer_rows_ = 0, current_tile_ = -1;
};

}  // namespace
}  // namespace gumbel
}  // namespace alt
