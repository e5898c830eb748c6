// alt_kernels::gumbel_assignment_backward on the CPU: the gradient of A @ entities (soft) or of the straight-through
// onehot + A - sg(A) (hard). They differ only in the value path to the entities.
//
// Per chunk of rows, with u_i = x_i / |x_i|, v_k = s_k / |s_k|, c_ik = u_i . v_k, the chosen entity b = index_i and
// a_ik = exp(l_ik - log_normalizer_i):
//
//   [c |s|; dA] = [u; dO] E^T            one matmul, entities read once
//   A_ik = a_ik / sum_k a_ik             the sum is not 1: these logits come from another product than the forward's
//   delta_i = sum_k A_ik (dA_ik - dA_ib)
//   dl_ik = A_ik ((dA_ik - dA_ib) - delta_i)
//   G_i = sum_k dl_ik v_k,               dx_i = (G_i - u_i (u_i . G_i)) / (tau |x_i|)
//   H_k = sum_i dl_ik u_i,               ds_k = (H_k - v_k (v_k . H_k)) / (tau |s_k|) + value path
//   dtau = -sum_i u_i . G_i / tau^2      because sum_k dl_ik c_ik = u_i . G_i
//
// Differences to dA of the chosen entity, so that nothing cancels where A_ib is near 1 (docs/kernels.md, "Small tau").
// 1 / |s_k| is folded into dl, so normalised entities are never stored. The noise is drawn again.
#include "cpu/cosine_gumbel_assign.h"

namespace alt {
namespace gumbel {
namespace {

// Sums over a row, with a = exp(logit - log_normalizer).
template <typename T>
struct RowSums {
  double weights = 0.0, products = 0.0;  // of a and of a (dA - chosen_grad)
  T chosen_grad = 0;                     // dA of the chosen entity

  // A tau too small for the logits' precision leaves no sum, or an infinite one. Then A is one-hot to the last digit,
  // and its gradient is 0. NaN stays NaN.
  double inverse_total() const { return weights == 0.0 || std::isinf(weights) ? 0.0 : 1.0 / weights; }
  double delta() const { return inverse_total() == 0.0 ? 0.0 : products * inverse_total(); }
};

template <typename T>
ALT_INLINE void weigh_block(T* ALT_RESTRICT z, const T* ALT_RESTRICT grad, const T* ALT_RESTRICT inverse_norm,
                            const T* ALT_RESTRICT noise, int64_t count, T tau, T log_normalizer,
                            RowSums<T>* ALT_RESTRICT sums) {
  const T chosen_grad = sums->chosen_grad;
  T weights = 0, products = 0;
#pragma omp simd reduction(+ : weights, products)
  for (int64_t j = 0; j < count; ++j) {
    const T weight = vexp(z[j] * inverse_norm[j] / tau + noise[j] - log_normalizer);
    z[j] = weight;
    weights += weight;
    products += weight * (grad[j] - chosen_grad);
  }
  sums->weights += static_cast<double>(weights);
  sums->products += static_cast<double>(products);
}

// z: dot products in, a out; grad: dA.
template <typename T>
ALT_INLINE void weigh_row_body(T* z, const T* grad, const T* inverse_norm, int64_t count, T tau, T log_normalizer,
                               const NoiseRow<T>& noise, int64_t first_column, RowSums<T>* sums) {
  alignas(64) T drawn[kBlock];
  for (int64_t b = 0; b < count; b += kBlock) {
    const int64_t left = count - b;
    noise_block(noise, first_column + b, b, std::min(left, kBlock), drawn);
    if (left >= kBlock) {
      weigh_block(z + b, grad + b, inverse_norm + b, drawn, kBlock, tau, log_normalizer, sums);
    } else {
      weigh_block(z + b, grad + b, inverse_norm + b, drawn, left, tau, log_normalizer, sums);
    }
  }
}

ALT_MULTIVERSION void weigh_row(float* z, const float* grad, const float* inverse_norm, int64_t count, float tau,
                                float log_normalizer, const NoiseRow<float>& noise, int64_t first_column,
                                RowSums<float>* sums) {
  weigh_row_body(z, grad, inverse_norm, count, tau, log_normalizer, noise, first_column, sums);
}

void weigh_row(double* z, const double* grad, const double* inverse_norm, int64_t count, double tau,
               double log_normalizer, const NoiseRow<double>& noise, int64_t first_column, RowSums<double>* sums) {
  weigh_row_body(z, grad, inverse_norm, count, tau, log_normalizer, noise, first_column, sums);
}

// weight: a in, A out; grad: dA in, dl / |s_k| out.
template <typename T>
ALT_INLINE void logit_grad_row_body(T* ALT_RESTRICT weight, T* ALT_RESTRICT grad, const T* ALT_RESTRICT inverse_norm,
                                    int64_t count, T inverse_total, T chosen_grad, T delta) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    weight[j] *= inverse_total;
    grad[j] = weight[j] * ((grad[j] - chosen_grad) - delta) * inverse_norm[j];
  }
}

ALT_MULTIVERSION void logit_grad_row(float* weight, float* grad, const float* inverse_norm, int64_t count,
                                     float inverse_total, float chosen_grad, float delta) {
  logit_grad_row_body(weight, grad, inverse_norm, count, inverse_total, chosen_grad, delta);
}

void logit_grad_row(double* weight, double* grad, const double* inverse_norm, int64_t count, double inverse_total,
                    double chosen_grad, double delta) {
  logit_grad_row_body(weight, grad, inverse_norm, count, inverse_total, chosen_grad, delta);
}

// grad = (grad - unit (unit . grad)) * factor, unit = row * scale; returns unit . grad.
template <typename T>
ALT_INLINE double project_row_body(T* ALT_RESTRICT grad, const T* ALT_RESTRICT row, int64_t width, double scale,
                                   double factor) {
  double dot = 0.0;
#pragma omp simd reduction(+ : dot)
  for (int64_t j = 0; j < width; ++j) {
    dot += static_cast<double>(row[j]) * static_cast<double>(grad[j]);
  }
  const double along = dot * scale * scale;
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    grad[j] = static_cast<T>((static_cast<double>(grad[j]) - static_cast<double>(row[j]) * along) * factor);
  }
  return dot * scale;
}

ALT_MULTIVERSION double project_row(float* grad, const float* row, int64_t width, double scale, double factor) {
  return project_row_body(grad, row, width, scale, factor);
}

double project_row(double* grad, const double* row, int64_t width, double scale, double factor) {
  return project_row_body(grad, row, width, scale, factor);
}

// sum += (grad - unit (unit . grad)) * factor, unit = row * scale.
template <typename T>
ALT_INLINE void add_projected_row_body(T* ALT_RESTRICT sum, T* ALT_RESTRICT grad, const T* ALT_RESTRICT row,
                                       int64_t width, double scale, double factor) {
  project_row_body(grad, row, width, scale, factor);
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    sum[j] += grad[j];
  }
}

ALT_MULTIVERSION void add_projected_row(float* sum, float* grad, const float* row, int64_t width, double scale,
                                        double factor) {
  add_projected_row_body(sum, grad, row, width, scale, factor);
}

void add_projected_row(double* sum, double* grad, const double* row, int64_t width, double scale, double factor) {
  add_projected_row_body(sum, grad, row, width, scale, factor);
}

struct Arguments {
  const Problem& problem;
  const Tensor &grad, &x, &entities;
  const std::optional<Tensor>& noise;
  const Tensor &index, &log_normalizer;  // contiguous
  bool hard, need_entities;
};

// Turns the sums H [K of the tile, d] into gradients: orthogonal to the entity, times 1 / (tau |s_k|). They are
// written in place, or added to `target` where it is given.
template <typename T>
void finish_tile(const Problem& p, EntityTiles<T>& tiles, int64_t t, T* sums, T* target) {
  const Tensor tile = tiles.tile(t);
  const T* rows = data<const T>(tile);
  const int64_t stride = tiles.size(t) > 1 ? tile.stride(0) : p.width;
  const T* inverse_norm = tiles.inverse_norm(t);
  const T* value_scale = tiles.value_scale(t);
  parallel_for(tiles.size(t), 3 * p.width, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      // H holds the factor 1 / |stored row|; the given row is value_scale times the stored one.
      const double factor = (value_scale == nullptr ? 1.0 : 1.0 / static_cast<double>(value_scale[k])) / p.tau;
      if (target == nullptr) {
        project_row(sums + k * p.width, rows + k * stride, p.width, inverse_norm[k], factor);
      } else {
        add_projected_row(target + k * p.width, sums + k * p.width, rows + k * stride, p.width, inverse_norm[k],
                          factor);
      }
    }
  });
}

template <typename T>
double differentiate(const Arguments& a, const Tensor& grad_x, std::optional<Tensor>& entity_sums) {
  const Problem& p = a.problem;
  const int64_t d = p.width;
  EntityTiles<T> tiles(p, a.entities);
  ChunkNoise<T> chunk_noise(p, a.noise);
  const auto tau = static_cast<T>(p.tau);
  const int64_t chunk = rows_per_chunk(p, 2 * p.entities + 3 * d);
  Scratch<T> pairs(2 * chunk * p.entities), stacked(2 * chunk * d), along(chunk * d);
  Scratch<double> inverse_norm(chunk), row_tau(chunk);
  std::vector<RowSums<T>> row_sums(static_cast<size_t>(chunk));
  const int64_t* index = data<const int64_t>(a.index);
  const T* log_normalizer = data<const T>(a.log_normalizer);
  double tau_sum = 0.0;

  // Hard: H is summed over all chunks and finished at the end. Soft: H shares its sums with the value path, so
  // each chunk's part is finished on its own, tile by tile, and no second [K, d] buffer is needed.
  Scratch<T> tile_sums(a.need_entities && !a.hard ? tiles.tile_width() * d : 0);
  T* sums = nullptr;
  if (a.need_entities) {
    entity_sums = new_empty({p.entities, d}, p.accumulate);
    sums = data<T>(*entity_sums);
    std::fill_n(sums, p.entities * d, T(0));
  }

  for (int64_t i0 = 0; i0 < p.rows; i0 += chunk) {
    const int64_t rows = std::min(chunk, p.rows - i0);
    const Tensor both = matrix_over(stacked.get(), 2 * rows, d);  // u above dO
    const Tensor unit_rows = rows_of(both, 0, rows), grad_rows = rows_of(both, rows, rows);
    copy_into(unit_rows, rows_of(a.x, i0, rows));
    copy_into(grad_rows, rows_of(a.grad, i0, rows));
    normalise_rows(stacked.get(), rows, d, inverse_norm.get());
    std::fill(row_sums.begin(), row_sums.end(), RowSums<T>{});
    for (int64_t t = 0; t < tiles.tiles(); ++t) {
      const int64_t columns = tiles.size(t), first = tiles.first(t);
      T* z = pairs.get() + 2 * rows * first;
      T* dots = z + rows * columns;
      mm_out(matrix_over(z, 2 * rows, columns), both, transposed(tiles.tile(t)));
      const T* scale = tiles.value_scale(t);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t k = 0; scale != nullptr && k < columns; ++k) {
          dots[i * columns + k] *= scale[k];  // from the stored rows to the given ones
        }
        const int64_t chosen = index[i0 + i] - first;
        if (chosen >= 0 && chosen < columns) {
          row_sums[static_cast<size_t>(i)].chosen_grad = dots[i * columns + chosen];
        }
      }
    }
    for (int64_t t = 0; t < tiles.tiles(); ++t) {
      const int64_t columns = tiles.size(t), first = tiles.first(t);
      T* z = pairs.get() + 2 * rows * first;
      const T* dots = z + rows * columns;
      chunk_noise.select(i0, rows, first, columns);
      parallel_for(rows, 4 * columns, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          weigh_row(z + i * columns, dots + i * columns, tiles.inverse_norm(t), columns, tau, log_normalizer[i0 + i],
                    chunk_noise.row(i), first, &row_sums[static_cast<size_t>(i)]);
        }
      });
    }

    const Tensor along_rows = matrix_over(along.get(), rows, d);  // G
    std::fill_n(along.get(), rows * d, T(0));
    for (int64_t t = 0; t < tiles.tiles(); ++t) {
      const int64_t columns = tiles.size(t), first = tiles.first(t);
      T* weights = pairs.get() + 2 * rows * first;
      T* grads = weights + rows * columns;
      parallel_for(rows, columns, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const RowSums<T>& row = row_sums[static_cast<size_t>(i)];
          logit_grad_row(weights + i * columns, grads + i * columns, tiles.inverse_norm(t), columns,
                         static_cast<T>(row.inverse_total()), row.chosen_grad, static_cast<T>(row.delta()));
        }
      });
      const Tensor logit_grad = matrix_over(grads, rows, columns);
      addmm_into(along_rows, logit_grad, tiles.tile(t));
      if (a.need_entities && a.hard) {
        addmm_into(rows_of(*entity_sums, first, columns), transposed(logit_grad), unit_rows);
      } else if (a.need_entities) {
        mm_out(matrix_over(tile_sums.get(), columns, d), transposed(logit_grad), unit_rows);
        finish_tile(p, tiles, t, tile_sums.get(), sums + first * d);
        addmm_into(rows_of(*entity_sums, first, columns), transposed(matrix_over(weights, rows, columns)), grad_rows);
      }
    }
    parallel_for(rows, 3 * d, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        row_tau[i] = project_row(along.get() + i * d, stacked.get() + i * d, d, 1.0, inverse_norm[i] / p.tau);
      }
    });
    for (int64_t i = 0; i < rows; ++i) {
      tau_sum += row_tau[i];
    }
    copy_into(rows_of(grad_x, i0, rows), along_rows);
  }

  for (int64_t t = 0; a.need_entities && a.hard && t < tiles.tiles(); ++t) {
    finish_tile(p, tiles, t, sums + tiles.first(t) * d, static_cast<T*>(nullptr));
  }
  for (int64_t i0 = 0; a.need_entities && a.hard && i0 < p.rows; i0 += chunk) {  // the value path, onehot^T dO
    const int64_t rows = std::min(chunk, p.rows - i0);
    copy_into(matrix_over(stacked.get(), rows, d), rows_of(a.grad, i0, rows));
    for (int64_t i = 0; i < rows; ++i) {  // rows in order: the same sums every time
      T* target = sums + index[i0 + i] * d;
      for (int64_t j = 0; j < d; ++j) {
        target[j] += stacked[i * d + j];
      }
    }
  }
  return -tau_sum / (p.tau * p.tau);
}

std::tuple<Tensor, Tensor, Tensor> gumbel_assignment_backward(Tensor grad, Tensor x, Tensor entities, Tensor tau,
                                                              std::optional<Tensor> noise, std::optional<Tensor> seed,
                                                              Tensor index, Tensor log_normalizer, bool hard,
                                                              bool need_entities) {
  const Problem p = make_problem(x, entities, tau, noise, seed);
  check_rank(grad, 2, "grad");
  check(is_floating(grad.scalar_type()), "grad must be a floating tensor, got ", dtype_name(grad.scalar_type()));
  check(grad.size(0) == p.rows && grad.size(1) == p.width, "grad must have shape [", p.rows, ", ", p.width, "], got [",
        grad.size(0), ", ", grad.size(1), "]");
  check_rank(index, 1, "index");
  check_dtype(index, ScalarType::Long, "index");
  check_rank(log_normalizer, 1, "log_normalizer");
  check_dtype(log_normalizer, p.accumulate, "log_normalizer");
  check(index.size(0) == p.rows && log_normalizer.size(0) == p.rows, "index and log_normalizer must have ", p.rows,
        " entries, got ", index.size(0), " and ", log_normalizer.size(0));
  index = as_contiguous(index);
  log_normalizer = as_contiguous(log_normalizer);
  const int64_t* chosen = data<const int64_t>(index);
  bool in_range = true;
  for (int64_t i = 0; i < p.rows; ++i) {
    in_range &= chosen[i] >= 0 && chosen[i] < p.entities;
  }
  check(in_range, "index must lie in [0, ", p.entities, ")");

  const Arguments arguments{p, grad, x, entities, noise, index, log_normalizer, hard, need_entities};
  const Tensor grad_x = new_empty({p.rows, p.width}, x.scalar_type());
  std::optional<Tensor> entity_sums;
  const double tau_grad = p.accumulate == ScalarType::Double ? differentiate<double>(arguments, grad_x, entity_sums)
                                                             : differentiate<float>(arguments, grad_x, entity_sums);
  Tensor grad_entities = need_entities ? *entity_sums : new_empty({0}, entities.scalar_type());
  if (grad_entities.scalar_type() != entities.scalar_type()) {
    grad_entities = torch::stable::to(grad_entities, entities.scalar_type());
  }
  const Tensor grad_tau = new_empty({}, tau.scalar_type());
  const Tensor value = new_empty({}, ScalarType::Double);
  *data<double>(value) = tau_grad;
  copy_into(grad_tau, value);
  return {grad_x, grad_entities, grad_tau};
}

}  // namespace
}  // namespace gumbel
}  // namespace alt

STABLE_TORCH_LIBRARY_IMPL(alt_kernels, CPU, m) {
  m.impl("gumbel_assignment_backward", TORCH_BOX(&alt::gumbel::gumbel_assignment_backward));
}
