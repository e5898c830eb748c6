// Branch-free exp and log for vectorised loops, and the Gumbel variate of a 32-bit word.
//
// The float versions are polynomials (minimax fits on the reduced interval) in plain arithmetic, so a loop that calls
// them is vectorised for every instruction set. The double versions are the C library's. Each function states its
// error, measured against float64 over the whole range.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common.h"

namespace alt {

ALT_INLINE float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

ALT_INLINE uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// e^x; 0 below -87.3, where the result would not be a normal number; NaN for NaN. Arguments above 88 count as 88:
// those of this project are at most 0 plus rounding. Relative error at most 9e-8.
ALT_INLINE float vexp(float x) {
  constexpr float lowest = -87.3f, highest = 88.0f, magic = 12582912.0f;  // 1.5 * 2^23 rounds to an integer
  float c = x < lowest ? lowest : x;
  c = c > highest ? highest : c;
  const float shifted = c * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (c - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts, the first exact in 10 bits
  float p = 0.0013814467f;
  p = p * r + 0.0083687808f;
  p = p * r + 0.0416683927f;
  p = p * r + 0.1666651964f;
  p = p * r + 0.4999999404f;
  p = p * (r * r) + r + 1.0f;
  // The low bits of `shifted` hold n in two's complement: adding them to the exponent multiplies by 2^n.
  const float y = float_of_bits(bits_of_float(p) + (bits_of_float(shifted) << 23));
  return x < lowest ? 0.0f : (x == x ? y : x);
}

ALT_INLINE double vexp(double x) { return std::exp(x); }

// log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1]; the relative error stays below 1.2e-7 down to f = 0.
ALT_INLINE float vlog1p_reduced(float f) {
  float q = -0.07634493f;
  q = q * f + 0.12761575f;
  q = q * f - 0.13160183f;
  q = q * f + 0.14201759f;
  q = q * f - 0.16623357f;
  q = q * f + 0.20001227f;
  q = q * f - 0.25000820f;
  q = q * f + 0.33333331f;
  const float f2 = f * f;
  return f + (f2 * (f * q) - 0.5f * f2);
}

struct FloatParts {
  float exponent, mantissa;  // value = 2^exponent * mantissa, mantissa in [sqrt(1/2), sqrt(2))
};

ALT_INLINE FloatParts split_positive(float value) {
  constexpr uint32_t sqrt_half = 0x3f3504f3u;
  const uint32_t bits = bits_of_float(value);
  const int32_t e = static_cast<int32_t>(bits - sqrt_half) >> 23;
  return {static_cast<float>(e), float_of_bits(bits - (static_cast<uint32_t>(e) << 23))};
}

// log of a positive normal number, error at most 9e-8 relative.
ALT_INLINE float vlog(float value) {
  const FloatParts s = split_positive(value);
  return s.exponent * 0.693359375f + (vlog1p_reduced(s.mantissa - 1.0f) - s.exponent * 2.12194440e-4f);
}

// g = -log(-log1p(-u)), u = min((word + 1/2) 2^-32, 1 - 2^-24): a Gumbel(0, 1) variate in [-2.81, 22.9].
// u and 1 - u are both formed from the integer with one rounding: near u = 0 the inner logarithm needs u, near
// u = 1 it needs 1 - u, each to full relative accuracy. The word is converted as two 16-bit halves, because only
// AVX-512 converts unsigned words. Absolute error at most 1e-6 (at g = 22; 2.1 epsilon of max(1, |g|) everywhere).
ALT_INLINE float gumbel_of_word(uint32_t word, float) {
  constexpr float unit = 1.0f / 4294967296.0f, floor = 1.0f / 16777216.0f;
  const float high = static_cast<float>(static_cast<int32_t>(word >> 16));
  const float low = static_cast<float>(static_cast<int32_t>(word & 0xffffu));
  const float u = (high * 65536.0f + (low + 0.5f)) * unit;
  float v = ((65535.0f - high) * 65536.0f + (65535.5f - low)) * unit;
  v = v < floor ? floor : v;
  const FloatParts s = split_positive(v);
  const float f = s.exponent == 0.0f ? -u : s.mantissa - 1.0f;
  const float e = -(s.exponent * 0.693359375f + (vlog1p_reduced(f) - s.exponent * 2.12194440e-4f));
  return -vlog(e);
}

ALT_INLINE double gumbel_of_word(uint32_t word, double) {
  const double u = (static_cast<double>(word) + 0.5) / 4294967296.0;
  const double cap = 1.0 - 1.0 / 16777216.0;
  return -std::log(-std::log1p(-(u < cap ? u : cap)));
}

}  // namespace alt
