/* Instructions of AVX2 and AVX-512 VNNI that plain C cannot express, or that GCC does not select by itself. */

/* Sums of two products of 16 bits; dot_bytes: of four, unsigned bytes of a times signed bytes of b. */
static inline ints dot_pairs(ints sum, ints a, ints b);

/* a * b + c, rounded once. */
static inline floats fused(floats a, floats b, floats c);

/* The larger of two numbers, b where one is NaN. */
static inline floats larger(floats a, floats b);

/* The last 16 bits of each number. */
static inline void store_shorts(int16_t *to, ints x);

#if WIDE
static inline ints dot_bytes(ints sum, ints a, ints b);

/* The last 8 bits of each number. */
static inline void store_bytes(void *to, ints x);
#endif

#if defined(EMULATED_TILES)
#include EMULATED_TILES
#elif WIDE
static inline ints dot_pairs(ints sum, ints a, ints b) {
  return (ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
static inline ints dot_bytes(ints sum, ints a, ints b) {
  return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
static inline floats fused(floats a, floats b, floats c) {
  return (floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
static inline floats larger(floats a, floats b) { return (floats)_mm512_max_ps((__m512)a, (__m512)b); }
static inline void store_shorts(int16_t *to, ints x) {
  _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16((__m512i)x));
}
static inline void store_bytes(void *to, ints x) { _mm_storeu_si128(to, _mm512_cvtepi32_epi8((__m512i)x)); }
#else
static inline ints dot_pairs(ints sum, ints a, ints b) {
  return (ints)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16((__m256i)a, (__m256i)b));
}
static inline floats fused(floats a, floats b, floats c) {
  return (floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
static inline floats larger(floats a, floats b) { return (floats)_mm256_max_ps((__m256)a, (__m256)b); }
static inline void store_shorts(int16_t *to, ints x) {
  const __m256i first = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1, 0, 1, 4, 5, 8, 9, 12,
                                         13, -1, -1, -1, -1, -1, -1, -1, -1);
  __m256i halves = _mm256_permute4x64_epi64(_mm256_shuffle_epi8((__m256i)x, first), 8);
  _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(halves));
}
#endif
