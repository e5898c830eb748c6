// Bipartite soft matching on the GPU: one block makes the plan of one image of up to 512 tokens.
//
// Symbols: N tokens, P of them protected, |A| even and |B| odd ones among the rest (at most 256 each), C channels,
// H heads; R scores per thread along each side, 16 R rows per tile; i indexes A, j indexes B.
//
// 1. Load rows of A and of B into shared memory, 64 channels at a time (bipartite_soft_matching_rows.cuh).
// 2. Every thread multiplies R x R pairs of rows in registers, in fused float32 steps in ascending order of channels,
//    without tensor cores or TF32. The scores are never written.
// 3. The best b of every a: highest score, then lowest j; first over a thread's scores, then over the 16 threads of
//    its row.
// 4. The rank of a is the number of a's that beat it (higher score, or equal and lower i); the first r merge. The plan
//    is written directly: a place is the number of pairs before it, ordered by b, then by a. There is no sort and no
//    atomic.
#pragma once

#include "bipartite_soft_matching_rows.cuh"

namespace alt::gpu {

struct Identity {
  int32_t* indices;
  int32_t* offsets;
  int32_t* output_row;
  int64_t total;  // number of offsets: images times (tokens + 1)
  int32_t tokens;
};

template <int R>
struct MatchShared {
  static constexpr int rows = kSide * R;
  float a[rows * kPitch];
  float b[rows * kPitch];
  float scale[2][rows];    // used where the channels need several tiles
  float inverse[2][rows];  // 1 / norm of the scaled row; 0: the row has no direction
  float best[kMatchSide];  // by i; -inf past the last
  int32_t partner[kMatchSide];
  int32_t pair[kMatchSide];  // the merging pairs, by i: j * 256 + i
  uint32_t merged[kMatchThreads / kWarp];
};

constexpr float kMinusInfinity = -__builtin_huge_valf();

ALT_DEVICE void load4(const float* p, float (&v)[4]) {
  const Pack pack = load16(p);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    v[k] = bits_as_float(pack.word[k]);
  }
}

template <int R>
ALT_DEVICE void clear(float (&score)[R][R]) {
#pragma unroll
  for (int i = 0; i < R; ++i) {
#pragma unroll
    for (int j = 0; j < R; ++j) {
      score[i][j] = 0.0f;
    }
  }
}

// score[i][j] += a_(y + 16 i) . b_(x + 16 j) over one tile of channels.
template <int R>
ALT_DEVICE void multiply(const MatchShared<R>& shared, int channels, float (&score)[R][R]) {
  const float* a = shared.a + thread_index() / kSide * kPitch;
  const float* b = shared.b + thread_index() % kSide * kPitch;
  for (int channel = 0; channel < channels; channel += 4) {
    float right[R][4];
#pragma unroll
    for (int j = 0; j < R; ++j) {
      load4(b + kSide * j * kPitch + channel, right[j]);
    }
#pragma unroll
    for (int i = 0; i < R; ++i) {
      float left[4];
      load4(a + kSide * i * kPitch + channel, left);
#pragma unroll
      for (int j = 0; j < R; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          score[i][j] = fused_multiply_add(left[k], right[j][k], score[i][j]);
        }
      }
    }
  }
}

// Merges each row's best of a tile into the best of the tiles before it; the earlier column wins a tie.
template <int R>
ALT_DEVICE void take_best(MatchShared<R>& shared, int a_begin, int b_begin, int even, const float (&score)[R][R]) {
  const int y = thread_index() / kSide, x = thread_index() % kSide;
#pragma unroll
  for (int i = 0; i < R; ++i) {
    float top = kMinusInfinity;
    int at = x;
#pragma unroll
    for (int j = 0; j < R; ++j) {
      const float inverse = shared.inverse[1][x + kSide * j];
      const float value = inverse > 0.0f ? score[i][j] * inverse : kMinusInfinity;
      if (value > top) {
        top = value;
        at = x + kSide * j;
      }
    }
#pragma unroll
    for (int mask = kSide / 2; mask > 0; mask /= 2) {
      const float other = shuffle_xor(top, mask);
      const int column = shuffle_xor(at, mask);
      if (other > top || (other == top && column < at)) {
        top = other;
        at = column;
      }
    }
    const int row = a_begin + y + kSide * i;
    if (x == 0 && row < even && top > shared.best[row]) {
      shared.best[row] = top;
      shared.partner[row] = b_begin + at;
    }
  }
}

// Steps 1 to 3: best and partner of every a.
template <typename T, int R, bool Aligned>
ALT_DEVICE void find_partners(const Match& m, const T* image, const Sets& sets, MatchShared<R>& shared) {
  constexpr int rows = kSide * R;
  const bool whole = m.channels <= kChannels;
  shared.best[thread_index()] = kMinusInfinity;
  shared.partner[thread_index()] = 0;
  for (int a_begin = 0; a_begin < sets.a.count; a_begin += rows) {
    for (int b_begin = 0; b_begin < sets.b.count; b_begin += rows) {
      float score[R][R];
      sync_block();  // all threads have read the tiles before
      if (whole) {
        if (b_begin == 0) {
          load_whole_rows<T, rows, Aligned>(m, image, sets.a, a_begin, shared.a, shared.inverse[0]);
        }
        load_whole_rows<T, rows, Aligned>(m, image, sets.b, b_begin, shared.b, shared.inverse[1]);
        sync_block();
        clear<R>(score);  // not earlier: the loads use its registers
        multiply<R>(shared, m.channels, score);
      } else {
        if (b_begin == 0) {
          measure_rows<T, Aligned>(m, image, sets.a, a_begin, rows, shared.scale[0], shared.inverse[0]);
        }
        measure_rows<T, Aligned>(m, image, sets.b, b_begin, rows, shared.scale[1], shared.inverse[1]);
        clear<R>(score);
        for (int channel = 0; channel < m.channels; channel += kChannels) {
          sync_block();
          load_part_of_rows<T, Aligned>(m, image, sets.a, a_begin, rows, channel, shared.a, shared.scale[0],
                                        shared.inverse[0]);
          load_part_of_rows<T, Aligned>(m, image, sets.b, b_begin, rows, channel, shared.b, shared.scale[1],
                                        shared.inverse[1]);
          sync_block();
          const int left = m.channels - channel;
          multiply<R>(shared, left < kChannels ? left : kChannels, score);
        }
      }
      take_best<R>(shared, a_begin, b_begin, sets.a.count, score);
    }
    // 1 / |a| is the same for a whole row, so it is applied after the maximum.
    sync_block();
    const int row = a_begin + thread_index();
    if (thread_index() < rows && row < sets.a.count) {
      const float inverse = shared.inverse[0][thread_index()];
      shared.best[row] = inverse > 0.0f ? shared.best[row] * inverse : kMinusInfinity;
      shared.partner[row] = inverse > 0.0f ? shared.partner[row] : 0;
    }
  }
  sync_block();
}

// Step 4: thread i has a_i, b_i and some protected tokens. Rows: protected, kept A, B.
template <int R>
ALT_DEVICE void write_plan(const Match& m, const Sets& sets, MatchShared<R>& shared) {
  const int i = thread_index(), warp = i / kWarp;
  const bool is_a = i < sets.a.count;
  const float mine = shared.best[i];
  int rank = 0;
  for (int other = 0; other < sets.a.count; other += 4) {  // entries past |A| are -inf and rank last
    float theirs[4];
    load4(shared.best + other, theirs);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      rank += theirs[k] > mine || (theirs[k] == mine && other + k < i);
    }
  }
  const bool merged = is_a && rank < m.r;
  const uint32_t word = ballot(merged);
  if (i % kWarp == 0) {
    shared.merged[warp] = word;
  }
  sync_block();
  int merged_before = count_bits(word & ((1u << (i % kWarp)) - 1u));
  for (int w = 0; w < warp; ++w) {
    merged_before += count_bits(shared.merged[w]);
  }
  const int partner = shared.partner[i];
  const int pair = partner * kMatchSide + i;
  if (merged) {
    shared.pair[merged_before] = pair;
  }
  sync_block();
  int pairs_before = 0;  // pairs before this one, ordered by b, then by a
  int into_before = 0;   // pairs that merge into a b before b_i
  for (int other = 0; other < m.r; ++other) {
    const int theirs = shared.pair[other];
    pairs_before += theirs < pair;
    into_before += theirs < i * kMatchSide;
  }

  const int64_t image = block_index();
  int32_t* indices = m.indices + image * m.tokens;
  int32_t* offsets = m.offsets + image * (m.tokens - m.r + 1);
  int32_t* output_row = m.output_row + image * m.tokens;
  const int first_of_b = m.num_protected + sets.a.count - m.r;
  for (int token = i; token < m.num_protected; token += kMatchThreads) {
    indices[token] = offsets[token] = output_row[token] = token;
  }
  if (is_a) {
    const int token = sets.a.first + 2 * i;
    const int row = merged ? first_of_b + partner : m.num_protected + i - merged_before;
    indices[merged ? row + 1 + pairs_before : row] = token;
    output_row[token] = row;
    if (!merged) {
      offsets[row] = row;
    }
  }
  if (i < sets.b.count) {
    const int token = sets.b.first + 2 * i;
    const int row = first_of_b + i;
    indices[row + into_before] = token;
    output_row[token] = row;
    offsets[row] = row + into_before;
  }
  if (i == 0) {
    offsets[m.tokens - m.r] = m.tokens;
  }
}

template <typename T, int R, bool Aligned>
ALT_KERNEL(kMatchThreads, 2)
match_image(Match m) {
  MatchShared<R>& shared = *reinterpret_cast<MatchShared<R>*>(shared_memory());
  const Sets sets = sets_of(m.tokens, m.num_protected);
  const T* image = static_cast<const T*>(m.x) + block_index() * m.image_stride;
  find_partners<T, R, Aligned>(m, image, sets, shared);
  write_plan<R>(m, sets, shared);
}

// The plan for r = 0: every token keeps its place.
ALT_KERNEL(kMatchThreads, 2)
write_identity(Identity d) {
  const int64_t at = block_index() * kMatchThreads + thread_index();
  if (at < d.total) {
    const int64_t places = int64_t{d.tokens} + 1, image = at / places;
    const int32_t token = static_cast<int32_t>(at - image * places);
    d.offsets[at] = token;
    if (token < d.tokens) {
      d.indices[at - image] = token;
      d.output_row[at - image] = token;
    }
  }
}

// ------------------------------------------------------------------------------------------ launching

template <typename T, int R, bool Aligned>
void launch_match(const Match& m, int64_t images, void* stream) {
  launch<match_image<T, R, Aligned>>(Grid{images, kMatchThreads, sizeof(MatchShared<R>), stream}, m);
}

template <typename T>
void launch_match(const Match& m, int64_t images, bool aligned, void* stream) {
  const int even = (m.tokens + 1) / 2 - (m.num_protected + 1) / 2, odd = m.tokens / 2 - m.num_protected / 2;
  const int side = even > odd ? even : odd;
  if (!aligned) {
    launch_match<T, 8, false>(m, images, stream);
  } else if (side <= kSide * 2) {
    launch_match<T, 2, true>(m, images, stream);
  } else if (side <= kSide * 4) {
    launch_match<T, 4, true>(m, images, stream);
  } else if (side <= kSide * 6) {
    launch_match<T, 6, true>(m, images, stream);
  } else if (side <= kSide * 7) {
    launch_match<T, 7, true>(m, images, stream);
  } else {
    launch_match<T, 8, true>(m, images, stream);
  }
}

inline void launch_identity(const Identity& d, void* stream) {
  launch<write_identity>(Grid{(d.total + kMatchThreads - 1) / kMatchThreads, kMatchThreads, 0, stream}, d);
}

}  // namespace alt::gpu
