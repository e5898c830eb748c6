// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers:
// as easy as 1, 2, 3", SC 2011, section 3.2. The only copy of it in the C++ code.
//
// A call maps a 128-bit counter and a 64-bit key to four 32-bit words without any state. So the noise of an
// element is a function of (seed, row, column), independent of tiling and threads, and the backward draws it again.
#pragma once

#include <cstdint>

#include "common.h"

namespace alt {

struct PhiloxState {
  uint32_t c0, c1, c2, c3;
};

// One round. The 32x32 -> 64 products are written so that compilers turn a loop over calls into vector multiplies.
ALT_INLINE PhiloxState philox_round(PhiloxState c, uint32_t k0, uint32_t k1) {
  const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c.c0;
  const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c.c2;
  return {static_cast<uint32_t>(p1 >> 32) ^ c.c1 ^ k0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.c3 ^ k1, static_cast<uint32_t>(p0)};
}

// Ten rounds, unrolled by hand: an inner loop here would keep the loop over calls from being vectorised.
ALT_INLINE PhiloxState philox4x32_10(PhiloxState c, uint32_t k0, uint32_t k1) {
  constexpr uint32_t w0 = 0x9E3779B9u, w1 = 0xBB67AE85u;
  c = philox_round(c, k0, k1);
  c = philox_round(c, k0 + 1 * w0, k1 + 1 * w1);
  c = philox_round(c, k0 + 2 * w0, k1 + 2 * w1);
  c = philox_round(c, k0 + 3 * w0, k1 + 3 * w1);
  c = philox_round(c, k0 + 4 * w0, k1 + 4 * w1);
  c = philox_round(c, k0 + 5 * w0, k1 + 5 * w1);
  c = philox_round(c, k0 + 6 * w0, k1 + 6 * w1);
  c = philox_round(c, k0 + 7 * w0, k1 + 7 * w1);
  c = philox_round(c, k0 + 8 * w0, k1 + 8 * w1);
  return philox_round(c, k0 + 9 * w0, k1 + 9 * w1);
}

// Calls first .. first + 15 of the counter (call, row low, row high, 0), stored by word: words[w][j] belongs to
// column 4 * (first + j) + w.
constexpr int kPhiloxCalls = 16;
ALT_INLINE void philox_words(uint64_t seed, uint64_t row, uint32_t first, uint32_t (&words)[4][kPhiloxCalls]) {
  const auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  const auto r0 = static_cast<uint32_t>(row), r1 = static_cast<uint32_t>(row >> 32);
#pragma omp simd
  for (int j = 0; j < kPhiloxCalls; ++j) {
    const PhiloxState w = philox4x32_10({first + static_cast<uint32_t>(j), r0, r1, 0u}, k0, k1);
    words[0][j] = w.c0;
    words[1][j] = w.c1;
    words[2][j] = w.c2;
    words[3][j] = w.c3;
  }
}

}  // namespace alt
