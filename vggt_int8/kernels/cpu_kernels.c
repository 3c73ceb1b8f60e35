/* The operators of cpu_ops.py for x86 CPUs, compiled on the machine that runs them (cpu_compiled.py).

Everything heavy is a product of integers with exact int32 sums, in tiles that stay in registers:

  bytes    8 x 8 bits   a linear layer. AMX tiles, else VNNI; without either, codes widened to 16 bits
  pairs   16 x 16 bits  convolutions (16-bit activations, 8-bit weights) and attention. VNNI or AVX2's multiply-add;
                        on AMX both bytes of each number are multiplied by themselves and the sums put together

The right-hand side of a product is packed into panels of `width` columns, of which groups of numbers along K lie next to
one another: [K / 4][width][4] bytes or [K / 2][width][2] numbers of 16 bits. A panel is packed by the thread that is
about to use it, from the tensor itself: nothing is kept between calls, so nothing can go stale.

Floats: no contraction (-ffp-contract=off), so that scales and biases round as in reference.py; `fmaf` where it does not
matter. NaN passes through every comparison here. Tensors are contiguous and fp32 if nothing else is said.
*/

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <omp.h>

typedef int64_t i64;

#if defined(EMULATED_TILES) /* the instructions of AVX-512 VNNI and AMX in plain C, for tests on other machines */
#define WIDE 1
#define AMX 1
#else
#include <immintrin.h>
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define WIDE 1
#if defined(__AMX_INT8__) && defined(__linux__)
#define AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif !defined(__AVX2__) || !defined(__FMA__)
#error "AVX2 and FMA are needed"
#endif
#endif

#if WIDE
enum { LANES = 16, MAX_WIDTH = 64, CODE_BYTES = 1 }; /* CODE_BYTES: of a weight in a panel */
#else
enum { LANES = 8, MAX_WIDTH = 16, CODE_BYTES = 2 };
#endif
enum { MAX_ROWS = 32 };      /* of a tile */
enum { AMX_ROWS = 16, AMX_BYTES = 64 };
enum { ROW_BLOCK = 96 };     /* a multiple of every tile's rows */
enum { CODE_MAX = 127 };
enum { OUT_OF_MEMORY = 1 };

typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef float loose_floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t loose_ints __attribute__((vector_size(4 * LANES), aligned(1), may_alias));
typedef int32_t loose_int __attribute__((aligned(1), may_alias));

#if WIDE
static int amx_allowed = 0; /* set once by vi_init */
#endif

static inline i64 min_of(i64 a, i64 b) { return a < b ? a : b; }
static inline i64 max_of(i64 a, i64 b) { return a > b ? a : b; }
static inline i64 parts_of(i64 a, i64 b) { return (a + b - 1) / b; }
static inline i64 round_up(i64 a, i64 b) { return parts_of(a, b) * b; }

static void *allocate(i64 bytes) { return aligned_alloc(64, (size_t)round_up(max_of(bytes, 64), 64)); }

/* r [LANES][LANES] to its transpose: squares of d x d change places, d = 1, 2, 4 ... */
static inline __attribute__((always_inline)) void transpose(ints r[LANES]) {
  _Pragma("GCC unroll 4") for (int d = 1; d < LANES; d *= 2) {
    ints lower, upper;
    for (int e = 0; e < LANES; e++) lower[e] = e & d ? LANES + (e ^ d) : e, upper[e] = e & d ? LANES + e : e ^ d;
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) if (!(i & d)) {
      ints a = r[i], b = r[i | d];
      r[i] = __builtin_shuffle(a, b, lower);
      r[i | d] = __builtin_shuffle(a, b, upper);
    }
  }
}

/* ---- tiles ---------------------------------------------------------------------------------------------------- */

#if defined(EMULATED_TILES)
#include EMULATED_TILES
#else
static inline ints dot_pairs(ints sum, ints a, ints b) {
#if WIDE
  return (ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#else
  return (ints)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16((__m256i)a, (__m256i)b));
#endif
}
#if WIDE
/* unsigned bytes of a times signed bytes of b */
static inline ints dot_bytes(ints sum, ints a, ints b) {
  return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
#endif
#endif

/* sums [rows, width] = a · b over `segments` runs of `groups` groups, each run `step` bytes after the last one in a.
   a: row r starts `pitch` bytes after row r - 1. One group is 4 bytes: two pairs or four bytes. */
#define DEFINE_TILE(name, DOT)                                                                                        \
  static inline __attribute__((always_inline)) void name##_rows(                                                      \
      const int rows, const int vectors, int32_t *sums, const char *a, i64 pitch, i64 segments, i64 step, i64 groups, \
      const char *b) {                                                                                                \
    ints acc[12][4];                                                                                                  \
    _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++)                                                           \
      _Pragma("GCC unroll 4") for (int v = 0; v < vectors; v++) acc[r][v] = (ints){0};                                \
    for (i64 s = 0; s < segments; s++, a += step)                                                                     \
      for (i64 g = 0; g < groups; g++, b += 4 * LANES * vectors) {                                                    \
        ints column[4];                                                                                               \
        _Pragma("GCC unroll 4") for (int v = 0; v < vectors; v++) column[v] =                                         \
            *(const loose_ints *)(b + 4 * LANES * v);                                                                 \
        _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++) {                                                     \
          ints row = (ints){0} + *(const loose_int *)(a + r * pitch + 4 * g);                                         \
          _Pragma("GCC unroll 4") for (int v = 0; v < vectors; v++) acc[r][v] = DOT(acc[r][v], row, column[v]);       \
        }                                                                                                             \
      }                                                                                                               \
    _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++)                                                           \
      _Pragma("GCC unroll 4") for (int v = 0; v < vectors; v++)                                                       \
        *(loose_ints *)(sums + (r * vectors + v) * LANES) = acc[r][v];                                                \
  }

#define ROWS_CASE(name, R, V) \
  case R: name##_rows(R, V, sums, a, pitch, segments, step, groups, b); break;

/* Any number of rows up to the most that the registers hold. */
#define DEFINE_TILES(name, V, R6)                                                                                     \
  static void name##_##V(int rows, int32_t *sums, const char *a, i64 pitch, i64 segments, i64 step, i64 groups,       \
                         const char *b) {                                                                             \
    switch (rows) {                                                                                                   \
      ROWS_CASE(name, 1, V) ROWS_CASE(name, 2, V) ROWS_CASE(name, 3, V) ROWS_CASE(name, 4, V) ROWS_CASE(name, 5, V)   \
      ROWS_CASE(name, 6, V) R6                                                                                        \
    }                                                                                                                 \
  }
#define MORE_ROWS(name, V)                                                                                            \
  ROWS_CASE(name, 7, V) ROWS_CASE(name, 8, V) ROWS_CASE(name, 9, V) ROWS_CASE(name, 10, V) ROWS_CASE(name, 11, V)     \
  ROWS_CASE(name, 12, V)

static inline ints dot_pairs_of(ints sum, ints row, ints column) { return dot_pairs(sum, row, column); }
DEFINE_TILE(pairs, dot_pairs_of)
DEFINE_TILES(pairs, 2, MORE_ROWS(pairs, 2))
#if WIDE
/* The weight is the unsigned factor: it is packed once, and codes are read as they are. */
static inline ints dot_bytes_of(ints sum, ints row, ints column) { return dot_bytes(sum, column, row); }
DEFINE_TILE(bytes, dot_bytes_of)
DEFINE_TILES(pairs, 4, )
DEFINE_TILES(bytes, 4, )
#endif

#if AMX && !defined(EMULATED_TILES)
static void tiles_begin(void) {
  struct {
    uint8_t palette, start, reserved[14];
    uint16_t columns[16];
    uint8_t rows[16];
  } config = {.palette = 1};
  for (int i = 0; i < 8; i++) config.columns[i] = AMX_BYTES, config.rows[i] = AMX_ROWS;
  _tile_loadconfig(&config);
}
#define TILE_ZERO(t) _tile_zero(t)
#define TILE_LOAD(t, p, pitch) _tile_loadd(t, p, pitch)
#define TILE_STORE(t, p, pitch) _tile_stored(t, p, pitch)
#define TILE_DOT_SS(c, a, b) _tile_dpbssd(c, a, b)
#define TILE_DOT_SU(c, a, b) _tile_dpbsud(c, a, b)
#define TILE_DOT_US(c, a, b) _tile_dpbusd(c, a, b)
#define TILE_DOT_UU(c, a, b) _tile_dpbuud(c, a, b)
static void tiles_end(void) { _tile_release(); }
#endif

#if AMX
/* sums [32, 64] = a [32, K] · b: 8-bit, both signed. K = 64 * steps; a: [steps][32][64]. */
static void amx_bytes(int32_t *sums, const int8_t *a, i64 steps, const int8_t *b) {
  for (int half = 0; half < 2; half++, b += 128, sums += 32) {
    TILE_ZERO(0); TILE_ZERO(1); TILE_ZERO(2); TILE_ZERO(3);
    for (i64 s = 0; s < steps; s++) {
      const int8_t *rows = a + s * 32 * 64, *column = b + s * 16 * 256;
      TILE_LOAD(4, rows, 64);
      TILE_LOAD(6, column, 256);
      TILE_DOT_SS(0, 4, 6);
      TILE_LOAD(7, column + 64, 256);
      TILE_DOT_SS(1, 4, 7);
      TILE_LOAD(5, rows + 16 * 64, 64);
      TILE_DOT_SS(2, 5, 6);
      TILE_DOT_SS(3, 5, 7);
    }
    TILE_STORE(0, sums, 256); TILE_STORE(1, sums + 16, 256);
    TILE_STORE(2, sums + 16 * 64, 256); TILE_STORE(3, sums + 16 * 64 + 16, 256);
  }
}

/* sums [2][16][width] = high [16, K] · b and low [16, K] · b, b 8-bit: segments as above, each of `steps` times 64
   numbers. */
static void amx_wide_rows(int32_t *sums, const int8_t *high, const uint8_t *low, i64 pitch, i64 segments, i64 step,
                          i64 steps, const int8_t *b, int width) {
  for (int first = 0; first < width; first += 32) {
    TILE_ZERO(0); TILE_ZERO(1); TILE_ZERO(2); TILE_ZERO(3);
    const int8_t *column = b + 4 * first;
    for (i64 s = 0; s < segments; s++)
      for (i64 k = 0; k < steps; k++, column += 16 * 4 * width) {
        TILE_LOAD(4, high + s * step + k * 64, pitch);
        TILE_LOAD(6, column, 4 * width);
        TILE_DOT_SS(0, 4, 6);
        TILE_LOAD(7, column + 64, 4 * width);
        TILE_DOT_SS(1, 4, 7);
        TILE_LOAD(5, low + s * step + k * 64, pitch);
        TILE_DOT_US(2, 5, 6);
        TILE_DOT_US(3, 5, 7);
      }
    int32_t *low_sums = sums + AMX_ROWS * width;
    TILE_STORE(0, sums + first, 4 * width); TILE_STORE(1, sums + first + 16, 4 * width);
    TILE_STORE(2, low_sums + first, 4 * width); TILE_STORE(3, low_sums + first + 16, 4 * width);
  }
}

/* 16 columns of sums [16, 64] from the products of their bytes. */
static inline void amx_join(int32_t *sums, int32_t parts[3][AMX_ROWS][16]) {
  for (int r = 0; r < AMX_ROWS; r++)
    for (int j = 0; j < 16; j++)
      sums[r * 64 + j] = (int32_t)(((uint32_t)parts[0][r][j] << 16) + ((uint32_t)parts[1][r][j] << 8) +
                                   (uint32_t)parts[2][r][j]);
}

/* sums [rows, 64] = a · b, both of 16 bits in two planes of bytes; rows: a multiple of 16. What the tiles store can be
   read back at once only at a price, so each tile is put together while the next one is multiplied. */
static void amx_wide(int32_t *sums, i64 rows, const int8_t *a_high, const uint8_t *a_low, i64 pitch, i64 steps,
                     const int8_t *b_high, const uint8_t *b_low) {
  int32_t parts[2][3][AMX_ROWS][16] __attribute__((aligned(64)));
  int32_t *before = NULL;
  int turn = 0;
  for (int t = 0; t < 4; t++)
    for (i64 row = 0; row < rows; row += AMX_ROWS, turn ^= 1) {
      TILE_ZERO(0); TILE_ZERO(1); TILE_ZERO(2);
      for (i64 k = 0; k < steps; k++) {
        TILE_LOAD(3, a_high + row * pitch + k * 64, pitch);
        TILE_LOAD(5, b_high + k * 16 * 256 + t * 64, 256);
        TILE_DOT_SS(0, 3, 5);
        TILE_LOAD(4, a_low + row * pitch + k * 64, pitch);
        TILE_DOT_US(1, 4, 5);
        TILE_LOAD(6, b_low + k * 16 * 256 + t * 64, 256);
        TILE_DOT_SU(1, 3, 6);
        TILE_DOT_UU(2, 4, 6);
      }
      TILE_STORE(0, parts[turn][0][0], 64); TILE_STORE(1, parts[turn][1][0], 64); TILE_STORE(2, parts[turn][2][0], 64);
      if (before) amx_join(before, parts[turn ^ 1]);
      before = sums + row * 64 + 16 * t;
    }
  amx_join(before, parts[turn ^ 1]);
}
#endif

/* to [groups][width] = the transpose of from [columns][groups] 4-byte groups, each column `pitch` bytes after the last
   one and its bits flipped where `flip` has ones. */
static void pack_groups(const char *from, i64 pitch, i64 columns, i64 groups, i64 width, int32_t flip, int32_t *to) {
  const i64 whole_columns = columns / LANES * LANES, whole_groups = groups / LANES * LANES;
  for (i64 column = 0; column < whole_columns; column += LANES)
    for (i64 group = 0; group < whole_groups; group += LANES) {
      ints r[LANES];
      _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) r[i] =
          *(const loose_ints *)(from + (column + i) * pitch + 4 * group) ^ flip;
      transpose(r);
      _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++)
        *(loose_ints *)(to + (group + i) * width + column) = r[i];
    }
  for (i64 j = 0; j < columns; j++)
    for (i64 i = j < whole_columns ? whole_groups : 0; i < groups; i++)
      to[i * width + j] = ((const loose_int *)(from + j * pitch))[i] ^ flip;
}

static void threads_begin(void) {
#if AMX
  if (amx_allowed) tiles_begin();
#endif
}

static void threads_end(void) {
#if AMX
  if (amx_allowed) tiles_end();
#endif
}

/* Bit 0: AVX-512 VNNI is used, bit 1: AMX is used, too. Linux hands out AMX's registers on request. */
int vi_init(int use_amx) {
#if AMX && defined(EMULATED_TILES)
  amx_allowed = use_amx;
#elif AMX
  enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
  amx_allowed = use_amx && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  (void)use_amx;
#endif
#if WIDE
  return 1 | (amx_allowed ? 2 : 0);
#else
  return 0;
#endif
}

/* ---- functions of floats -------------------------------------------------------------------------------------- */

static inline int32_t bits_of(float x) { int32_t i; memcpy(&i, &x, 4); return i; }
static inline float float_of(int32_t i) { float x; memcpy(&x, &i, 4); return x; }

/* The largest |x|; by bits, where NaN is larger than inf. */
static inline float largest(const float *x, i64 n) {
  int32_t most = 0;
#pragma omp simd reduction(max : most)
  for (i64 i = 0; i < n; i++) {
    int32_t bits = bits_of(x[i]) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  return float_of(most);
}

/* Without licence to reorder, compilers add the lanes of a vector one after another: 16 times the latency. */
static inline float sum_of_lanes(floats x) {
  for (int d = LANES / 2; d; d /= 2) {
    ints other;
    for (int i = 0; i < LANES; i++) other[i] = i ^ d;
    x += __builtin_shuffle(x, other);
  }
  return x[0];
}

static inline floats larger(floats a, floats b) { /* b where one is NaN */
  ints mask = a > b;
  return (floats)(((ints)a & mask) | ((ints)b & ~mask));
}

static inline float largest_lane(floats x) {
  for (int d = LANES / 2; d; d /= 2) {
    ints other;
    for (int i = 0; i < LANES; i++) other[i] = i ^ d;
    x = larger(x, __builtin_shuffle(x, other));
  }
  return x[0];
}

/* The sum of (x - from)^power, power 1 or 2. */
static inline __attribute__((always_inline)) float moment(const int power, const float *x, const i64 n, float from) {
  floats sums[4] = {{0}};
  i64 i = 0;
#define ADD_TO(sum, place)                                  \
  do {                                                      \
    floats d = *(const loose_floats *)(x + (place)) - from; \
    sum += power == 1 ? d : d * d;                          \
  } while (0)
  for (; i + 4 * LANES <= n; i += 4 * LANES)
    for (int v = 0; v < 4; v++) ADD_TO(sums[v], i + v * LANES);
  for (; i + LANES <= n; i += LANES) ADD_TO(sums[0], i);
  float sum = sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < n; i++) sum += power == 1 ? x[i] - from : (x[i] - from) * (x[i] - from);
  return sum;
}

static inline float dot(const float *x, const float *y, i64 n) {
  floats sums[4] = {{0}};
  i64 i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES)
    for (int v = 0; v < 4; v++)
      sums[v] += *(const loose_floats *)(x + i + v * LANES) * *(const loose_floats *)(y + i + v * LANES);
  for (; i + LANES <= n; i += LANES) sums[0] += *(const loose_floats *)(x + i) * *(const loose_floats *)(y + i);
  float sum = sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < n; i++) sum += x[i] * y[i];
  return sum;
}

static inline float clamp(float x, float limit) { return x < -limit ? -limit : x > limit ? limit : x; }

/* To the nearest integer, halves to the even one. */
static inline int32_t nearest(float x) { return __builtin_irintf(x); }

/* erf within 4e-7: a rational function fitted to math.erf on [-3.92, 3.92] with equal absolute errors. */
static inline float erf_of(float x) {
  float t = clamp(x, 3.92f), s = t * t;
  float p = fmaf(s, 1.992127707e-08f, -1.994194918e-06f);
  p = fmaf(p, s, 1.489679125e-04f);
  p = fmaf(p, s, 3.972189501e-03f);
  p = fmaf(p, s, 5.139515176e-02f);
  p = fmaf(p, s, 2.060982883e-01f);
  p = fmaf(p, s, 1.128378749e+00f);
  float q = fmaf(s, 1.023946330e-03f, 1.488783304e-02f);
  q = fmaf(q, s, 1.175579429e-01f);
  q = fmaf(q, s, 5.159786344e-01f);
  q = fmaf(q, s, 1.0f);
  return clamp(t * p / q, 1.0f);
}

/* 2^x for x <= 0 within 4e-7 of itself; below -126 what 2^-126 is. Adding 1.5 * 2^23 rounds to a whole number and
   leaves it in the last bits; on the rest, [-0.5, 0.5], a polynomial. */
static inline float exp2_of(float x) {
  const float shift = 12582912.0f;
  x = x < -126.0f ? -126.0f : x;
  float shifted = x + shift, f = x - (shifted - shift);
  float p = fmaf(f, 1.339086735e-03f, 9.666373693e-03f);
  p = fmaf(p, f, 5.550357104e-02f);
  p = fmaf(p, f, 2.402234894e-01f);
  p = fmaf(p, f, 6.931471880e-01f);
  p = fmaf(p, f, 1.0f);
  return p * float_of((int32_t)(((uint32_t)bits_of(shifted) << 23) + (127u << 23)));
}

/* x / y as division rounds it, a quarter of its time: the remainder of the product with the rounded inverse is exact and
   corrects it. Proven by Markstein for every y but those whose fraction is all ones; where nothing over- or underflows. */
static inline float quotient(float x, float y, float inverse) {
  float q = x * inverse;
  return fmaf(fmaf(-q, y, x), inverse, q);
}

static inline int divides_by_inverse(float y) {
  return y > 0x1p-60f && y < 0x1p60f && (bits_of(y) & 0x7fffff) != 0x7fffff;
}

/* e^x - 1, and e^x to `exp`, within 3e-7 of themselves: 2^n times a polynomial of the rest of x, in [-0.35, 0.35]. */
static inline float expm1_of(float x, float *exp) {
  const float shift = 12582912.0f; /* as above */
  float capped = x > 89.0f ? 89.0f : x < -87.0f ? -87.0f : x, shifted = fmaf(capped, 1.44269504f, shift);
  float n = shifted - shift, r = fmaf(n, -1.42860677e-06f, fmaf(n, -0.693145752f, capped));
  float p = fmaf(r, 1.0f / 5040, 1.0f / 720);
  p = fmaf(p, r, 1.0f / 120);
  p = fmaf(p, r, 1.0f / 24);
  p = fmaf(p, r, 1.0f / 6);
  p = fmaf(p, r, 0.5f);
  p = fmaf(p * r, r, r);
  /* Half of 2^n, since 2^128 is no float while some numbers below its double are. */
  float half = float_of((int32_t)(((uint32_t)bits_of(shifted) << 23) + (126u << 23)));
  *exp = x < -87.0f ? 0 : 2 * fmaf(p, half, half);
  return x < -87.0f ? -1 : 2 * fmaf(p, half, half - 0.5f);
}

static inline void quantize_row(const float *x, i64 k, const float *input_scale, int8_t *codes, float *scale) {
  float step;
  if (input_scale) {
    float poison = 0; /* NaN or inf in a row must reach its result, and codes cannot carry it */
#pragma omp simd reduction(+ : poison)
    for (i64 i = 0; i < k; i++) poison += x[i] * 0;
    step = *input_scale;
    *scale = poison + step;
  } else {
    step = largest(x, k) / CODE_MAX;
    if (step == 0) step = 1;
    *scale = step;
  }
  const float inverse = 1 / step;
  if (divides_by_inverse(step)) {
#pragma omp simd
    for (i64 i = 0; i < k; i++) codes[i] = (int8_t)nearest(clamp(quotient(x[i], step, inverse), CODE_MAX));
  } else {
#pragma omp simd
    for (i64 i = 0; i < k; i++) codes[i] = (int8_t)nearest(clamp(x[i] / step, CODE_MAX));
  }
}

/* y = LayerNorm(x) * weight + bias; x may be y. */
static inline __attribute__((always_inline)) void norm_row(const float *x, i64 n, const float *weight, const float *bias, float eps, float *y) {
  float mean = moment(1, x, n, 0) / n, factor = 1 / sqrtf(moment(2, x, n, mean) / n + eps);
#pragma omp simd
  for (i64 i = 0; i < n; i++) y[i] = fmaf((x[i] - mean) * factor, weight[i], bias[i]);
}

/* ---- passes over rows ----------------------------------------------------------------------------------------- */

void vi_quantize_rows(const float *x, i64 rows, i64 k, const float *input_scale, int8_t *codes, float *scale,
                      int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 m = 0; m < rows; m++) quantize_row(x + m * k, k, input_scale, codes + m * k, scale + m);
}

int vi_layer_norm_quantize(const float *x, i64 rows, i64 k, const float *weight, const float *bias, float eps,
                           const float *input_scale, int8_t *codes, float *scale, int threads) {
  float *normed = allocate(4 * round_up(k, 16) * threads);
  if (!normed) return OUT_OF_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 m = 0; m < rows; m++) {
    float *y = normed + round_up(k, 16) * omp_get_thread_num();
    norm_row(x + m * k, k, weight, bias, eps, y);
    quantize_row(y, k, input_scale, codes + m * k, scale + m);
  }
  free(normed);
  return 0;
}

/* first, second [frames, tokens, k] -> [frames, tokens - skip, 2k] */
void vi_layer_norm_halves(const float *first, const float *second, i64 frames, i64 tokens, i64 skip, i64 k,
                          const float *weight, const float *bias, float eps, float *out, int threads) {
  i64 kept = tokens - skip;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 m = 0; m < frames * kept; m++) {
    i64 from = (m / kept * tokens + skip + m % kept) * k;
    float *y = out + 2 * k * m;
    memcpy(y, first + from, 4 * k);
    memcpy(y + k, second + from, 4 * k);
    norm_row(y, 2 * k, weight, bias, eps, y);
  }
}

static inline __attribute__((always_inline)) void norm_rope_head(
    float *x, const i64 dim, const float *weight, const float *bias, float eps, const float *cosine,
    const float *sine) {
  const i64 quarter = dim / 4;
  norm_row(x, dim, weight, bias, eps, x);
  for (i64 half = 0; half < dim; half += 2 * quarter) {
    float *a = x + half, *b = a + quarter;
    const float *ca = cosine + half, *cb = ca + quarter, *sa = sine + half, *sb = sa + quarter;
#pragma omp simd
    for (i64 j = 0; j < quarter; j++) {
      float one = a[j], other = b[j];
      a[j] = one * ca[j] - other * sa[j];
      b[j] = other * cb[j] + one * sb[j];
    }
  }
}

/* qkv [tokens, 3, heads, dim] in place, rope [2, period, dim] */
void vi_qk_norm_rope(float *qkv, i64 tokens, i64 heads, i64 dim, const float *q_weight, const float *q_bias,
                     const float *k_weight, const float *k_bias, const float *rope, i64 period, float eps,
                     int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 t = 0; t < tokens; t++) {
    const float *cosine = rope + t % period * dim, *sine = cosine + period * dim;
    for (i64 i = 0; i < 2 * heads; i++) {
      float *x = qkv + (3 * heads * t + i) * dim;
      const float *weight = i < heads ? q_weight : k_weight, *bias = i < heads ? q_bias : k_bias;
      if (dim == 64) norm_rope_head(x, 64, weight, bias, eps, cosine, sine);
      else norm_rope_head(x, dim, weight, bias, eps, cosine, sine);
    }
  }
}

/* x [frames, h, w, c] -> out [frames, height, width, c]; columns [width, c / 2], rows [height, c / 2] */
void vi_resize(const float *x, i64 frames, i64 h, i64 w, i64 c, i64 height, i64 width, const float *columns,
               const float *rows, const float *bias, const float *addend, float *out, int threads) {
  float down = height > 1 ? (float)(h - 1) / (float)(height - 1) : 0;
  float right = width > 1 ? (float)(w - 1) / (float)(width - 1) : 0;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 line = 0; line < frames * height; line++) {
    i64 row = line % height;
    float place = down * (float)row;
    i64 top = min_of((i64)place, h - 1), bottom = min_of(top + 1, h - 1);
    float below = place - (float)top, above = 1 - below;
    const float *upper = x + (line / height * h + top) * w * c, *lower = upper + (bottom - top) * w * c;
    for (i64 column = 0; column < width; column++) {
      float across = right * (float)column;
      i64 left = min_of((i64)across, w - 1), next = (min_of(left + 1, w - 1) - left) * c;
      float later = across - (float)left, first = 1 - later;
      const float *a = upper + left * c, *b = lower + left * c;
      float *y = out + (line * width + column) * c;
      if (h == height && w == width) {
        memcpy(y, a, 4 * c);
      } else {
#pragma omp simd
        for (i64 i = 0; i < c; i++)
          y[i] = above * (first * a[i] + later * a[next + i]) + below * (first * b[i] + later * b[next + i]);
      }
      if (bias) {
#pragma omp simd
        for (i64 i = 0; i < c; i++) y[i] += bias[i];
      }
      if (columns) {
        const float *p = columns + column * (c / 2), *q = rows + row * (c / 2);
#pragma omp simd
        for (i64 i = 0; i < c / 2; i++) y[i] += p[i];
#pragma omp simd
        for (i64 i = 0; i < c / 2; i++) y[c / 2 + i] += q[i];
      }
      if (addend) {
        const float *z = addend + (line * width + column) * c;
#pragma omp simd
        for (i64 i = 0; i < c; i++) y[i] += z[i];
      }
    }
  }
}

enum { MAX_OUTPUTS = 8 };

/* y [n][LANES] = weight [n, c] times x [count, c], count pixels up to LANES. */
static inline void project_pixels(const float *x, i64 count, i64 c, const float *weight, const float *bias, i64 n,
                                  floats *y) {
  for (i64 j = 0; j < n; j++) y[j] = (floats){0} + (bias ? bias[j] : 0);
  i64 first = 0;
  for (; count == LANES && first + LANES <= c; first += LANES) {
    ints r[LANES];
    _Pragma("GCC unroll 16") for (int p = 0; p < LANES; p++) r[p] = *(const loose_ints *)(x + p * c + first);
    transpose(r);
    for (i64 j = 0; j < n; j++)
      _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) y[j] += (floats)r[i] * weight[j * c + first + i];
  }
  for (; first < c; first++)
    for (i64 j = 0; j < n; j++)
      for (i64 p = 0; p < count; p++) y[j][p] += x[p * c + first] * weight[j * c + first];
}

/* x [pixels, c] times weight [n, c] -> values [pixels, n - 1] and confidence [pixels]; n is at most MAX_OUTPUTS. */
void vi_predict(const float *x, i64 pixels, i64 c, const float *weight, const float *bias, i64 n, int inverse_log,
                float *values, float *confidence, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 first = 0; first < pixels; first += LANES) {
    const i64 count = min_of(LANES, pixels - first);
    floats sums[MAX_OUTPUTS];
    project_pixels(x + first * c, count, c, weight, bias, n, sums);
    for (i64 j = 0; j < n; j++) {
      float y[LANES] __attribute__((aligned(64)));
      memcpy(y, sums + j, sizeof y);
      const int is_value = j < n - 1, both_signs = is_value && inverse_log;
#pragma omp simd
      for (int p = 0; p < LANES; p++) {
        float exp, less = expm1_of(both_signs ? fabsf(y[p]) : y[p], &exp);
        y[p] = both_signs ? copysignf(less, y[p]) : is_value ? exp : 1 + exp;
      }
      for (i64 p = 0; p < count; p++) {
        if (is_value) values[(first + p) * (n - 1) + j] = y[p];
        else confidence[first + p] = y[p];
      }
    }
  }
}

/* y [m, n] = x [m, k] times codes [n, k], scaled, with bias: for few rows, since each output is a product by itself. */
int vi_weight_only(const float *x, i64 m, i64 k, const int8_t *weight, const float *weight_scale, const float *bias,
                   i64 n, float *y, int threads) {
  float *floats_of_rows = allocate(4 * round_up(k, 16) * threads);
  if (!floats_of_rows) return OUT_OF_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 j = 0; j < n; j++) {
    float *row = floats_of_rows + round_up(k, 16) * omp_get_thread_num();
#pragma omp simd
    for (i64 i = 0; i < k; i++) row[i] = weight[j * k + i];
    for (i64 r = 0; r < m; r++) y[r * n + j] = dot(x + r * k, row, k) * weight_scale[j] + (bias ? bias[j] : 0);
  }
  free(floats_of_rows);
  return 0;
}

/* ---- linear layers -------------------------------------------------------------------------------------------- */

typedef struct {
  const int8_t *codes, *weight;                  /* [m, k], [n, k] */
  const float *x_scale, *weight_scale;           /* [m], [n] */
  const float *bias, *gamma, *residual;          /* [n], [n], [m, n] or null */
  const float *out_scale;                        /* one value or null */
  i64 m, n, k;
  int gelu;
} Linear;

/* Both operands as the products read them. */
typedef struct {
  char *x;          /* VNNI: none, or rows of whole groups. AMX: [m / 32][k / 64][32][64]. AVX2: codes of 16 bits */
  char *panels;     /* of the weight: those of one thread, after another's */
  int32_t *excess;  /* [m]: what the sums of VNNI are too large by, since its weights are unsigned */
  i64 pitch, panel; /* bytes of a row of x, of a panel */
} Packed;

static i64 groups_of(i64 k) {
#if WIDE
  return amx_allowed ? round_up(k, AMX_BYTES) / 4 : parts_of(k, 4);
#else
  return parts_of(k, 2);
#endif
}

static void pack_panel(const Linear *g, i64 first, char *panel) {
  const i64 columns = min_of(MAX_WIDTH, g->n - first), whole = g->k / (4 / CODE_BYTES), rest = g->k % (4 / CODE_BYTES);
  const int8_t *weight = g->weight + first * g->k;
  if (columns < MAX_WIDTH || whole < groups_of(g->k)) memset(panel, 0, g->k ? groups_of(g->k) * MAX_WIDTH * 4 : 0);
#if WIDE
  const int32_t flip = amx_allowed ? 0 : (int32_t)0x80808080;
  pack_groups((const char *)weight, g->k, columns, whole, MAX_WIDTH, flip, (int32_t *)panel);
  for (i64 j = 0; rest && j < columns; j++) { /* beyond K the codes are 0 */
    int32_t last = 0;
    memcpy(&last, weight + j * g->k + 4 * whole, rest);
    ((int32_t *)panel)[whole * MAX_WIDTH + j] = last ^ flip;
  }
#else
  (void)rest;
  int16_t *to = (int16_t *)panel;
  for (i64 j = 0; j < columns; j++)
    for (i64 i = 0; i < g->k; i++) to[(i / 2 * MAX_WIDTH + j) * 2 + i % 2] = weight[j * g->k + i];
#endif
}

/* The rows, by all threads. */
static void pack_rows(const Linear *g, const Packed *p) {
#pragma omp for schedule(static)
  for (i64 m = 0; m < (p->x ? round_up(g->m, MAX_ROWS) : g->m); m++) {
    const int8_t *codes = g->codes + m * g->k;
#if WIDE
    if (amx_allowed) {
      char *to = p->x + m / 32 * 32 * p->pitch + m % 32 * 64;
      for (i64 s = 0; s < p->pitch / 64; s++) {
        i64 bytes = m < g->m ? min_of(64, g->k - 64 * s) : 0;
        memcpy(to + s * 32 * 64, codes + 64 * s, bytes);
        if (bytes < 64) memset(to + s * 32 * 64 + bytes, 0, 64 - bytes);
      }
      continue;
    }
    if (m >= g->m) continue;
    if (p->x) {
      memset(p->x + (m + 1) * p->pitch - 4, 0, 4);
      memcpy(p->x + m * p->pitch, codes, g->k);
    }
    int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < g->k; i++) sum += codes[i];
    p->excess[m] = 128 * sum;
#else
    if (m >= g->m) continue;
    int16_t *to = (int16_t *)(p->x + m * p->pitch);
    to[p->pitch / 2 - 1] = 0;
    for (i64 i = 0; i < g->k; i++) to[i] = codes[i];
#endif
  }
}

static inline int tile_rows(void) {
#if WIDE
  return amx_allowed ? MAX_ROWS : 6;
#else
  return 6;
#endif
}

/* int32 sums [rows, MAX_WIDTH] of some rows with a panel. */
static void linear_tile(const Linear *g, const Packed *p, i64 row, i64 rows, const char *panel, int32_t *sums) {
#if WIDE
#if AMX
  if (amx_allowed) {
    amx_bytes(sums, (const int8_t *)p->x + row * p->pitch, p->pitch / AMX_BYTES, (const int8_t *)panel);
    return;
  }
#endif
  const char *a = p->x ? p->x + row * p->pitch : (const char *)g->codes + row * g->k;
  bytes_4((int)rows, sums, a, p->x ? p->pitch : g->k, 1, 0, groups_of(g->k), panel);
#else
  pairs_2((int)rows, sums, p->x + row * p->pitch, p->pitch, 1, 0, groups_of(g->k), panel);
#endif
}

/* Where results go: the bare sums [m, n], floats [m, n], codes [m, n] under out_scale, or floats of some rows in panels,
   hidden [panel][hidden_rows][MAX_WIDTH]. */
typedef struct {
  int32_t *sums;
  float *floats, *hidden;
  int8_t *codes;
  i64 hidden_rows, hidden_first;
} Result;

enum { PLAIN, WITH_GELU, WITH_RESIDUAL };

/* A row of sums: scale, bias, then GELU, or LayerScale and residual, in fp32. y may be the residual. */
static inline __attribute__((always_inline)) void finish(
    const int ending, const i64 columns, const int32_t *sums, int32_t excess, float scale, const float *weight_scale,
    const float *bias, const float *gamma, const float *residual, float *y) {
#pragma omp simd
  for (i64 j = 0; j < columns; j++) {
    float v = (float)(sums[j] - excess) * scale * weight_scale[j] + bias[j];
    if (ending == WITH_GELU) v = 0.5f * v * (1 + erf_of(v * 0.70710678118654752f));
    if (ending == WITH_RESIDUAL) v = v * gamma[j] + residual[j];
    y[j] = v;
  }
}

/* Some rows of sums to where they belong. */
static inline void finish_rows(const Linear *g, const Packed *p, const Result *out, i64 row, i64 rows, i64 panel,
                               const int32_t *sums) {
  float spare[MAX_WIDTH] __attribute__((aligned(64)));
  const i64 first = panel * MAX_WIDTH, columns = min_of(MAX_WIDTH, g->n - first);
  for (i64 r = row; r < row + rows; r++, sums += MAX_WIDTH) {
    const i64 place = r * g->n + first;
    const int32_t excess = p->excess ? p->excess[r] : 0;
    if (out->sums) {
      for (i64 j = 0; j < columns; j++) out->sums[place + j] = sums[j] - excess;
      continue;
    }
    float *y = out->codes ? spare : out->floats + place;
    if (out->hidden) y = out->hidden + (panel * out->hidden_rows + r - out->hidden_first) * MAX_WIDTH;
#define FINISH(ending, columns)                                                                                     \
  finish(ending, columns, sums, excess, g->x_scale[r], g->weight_scale + first, g->bias + first, g->gamma + first,  \
         g->residual + place, y)
    if (g->gelu) {
      if (columns == MAX_WIDTH) FINISH(WITH_GELU, MAX_WIDTH);
      else FINISH(WITH_GELU, columns);
    } else if (g->residual) {
      if (columns == MAX_WIDTH) FINISH(WITH_RESIDUAL, MAX_WIDTH);
      else FINISH(WITH_RESIDUAL, columns);
    } else {
      if (columns == MAX_WIDTH) FINISH(PLAIN, MAX_WIDTH);
      else FINISH(PLAIN, columns);
    }
    if (y == spare)
      for (i64 j = 0; j < columns; j++) out->codes[place + j] = (int8_t)nearest(clamp(y[j] / *g->out_scale, CODE_MAX));
  }
}

/* Rows [from, to) times a panel. A tile is finished while the next one is multiplied: what AMX stores can be read back
   at once only at a price. */
static void linear_rows(const Linear *g, const Packed *p, const Result *out, i64 from, i64 to, i64 panel,
                        const char *packed) {
  int32_t sums[2][MAX_ROWS * MAX_WIDTH] __attribute__((aligned(64)));
  const i64 step = tile_rows();
  int turn = 0;
  for (i64 row = from; row < to; row += step, turn ^= 1) {
    linear_tile(g, p, row, min_of(step, to - row), packed, sums[turn]);
    if (row > from) finish_rows(g, p, out, row - step, step, panel, sums[turn ^ 1]);
  }
  if (from < to) {
    i64 last = from + (to - from - 1) / step * step;
    finish_rows(g, p, out, last, to - last, panel, sums[turn ^ 1]);
  }
}

/* A row of hidden floats, which lie in panels, to codes and their scale. */
static void quantize_hidden(const float *hidden, i64 step, i64 n, float *row, int8_t *codes, float *scale) {
  for (i64 first = 0; first < n; first += MAX_WIDTH, hidden += step)
    memcpy(row + first, hidden, 4 * min_of(MAX_WIDTH, n - first));
  quantize_row(row, n, NULL, codes, scale);
}

/* How many of the threads share the columns; the others share the rows. What each packs it uses alone, since fetching
   it from another core takes longer. */
static i64 column_parts(i64 panels, i64 row_tiles, i64 threads) {
  i64 best = 1, least = INT64_MAX;
  for (i64 parts = 1; parts <= threads; parts++) {
    i64 work = parts_of(panels, parts) * parts_of(row_tiles, threads / parts);
    if (threads % parts == 0 && work < least) least = work, best = parts;
  }
  return best;
}

/* One of: the sums [m, n] int32; floats [m, n], which may be the residual; codes [m, n] under out_scale; codes and a
   scale for each row, row_scale [m]. */
int vi_linear(const int8_t *codes, const float *x_scale, const int8_t *weight, const float *weight_scale,
              const float *bias, const float *gamma, const float *residual, const float *out_scale, int gelu, i64 m,
              i64 n, i64 k, int32_t *out_sums, float *out_floats, int8_t *out_codes, float *row_scale, int threads) {
  Linear g = {codes, weight, x_scale, weight_scale, bias, gamma, residual, out_scale, m, n, k, gelu};
  Packed p = {.panel = groups_of(k) * MAX_WIDTH * 4, .pitch = groups_of(k) * 4};
  const i64 panels = parts_of(n, MAX_WIDTH), at_once = row_scale ? min_of(m, 3 * ROW_BLOCK) : m;
  const i64 across = column_parts(panels, parts_of(at_once, tile_rows()), threads), down = threads / across;
  const i64 own = parts_of(panels, across), kept = row_scale ? own : 1;
  Result out = {out_sums, out_floats, NULL, out_codes, at_once, 0};
  p.panels = allocate(threads * kept * p.panel);
  float *zeros = allocate(4 * n), *rows = row_scale ? allocate(4 * threads * round_up(n, 16)) : NULL;
  int failed = !p.panels || !zeros || (row_scale && !rows);
#if WIDE
  if (amx_allowed || k % 4) failed |= !(p.x = allocate(round_up(m, MAX_ROWS) * p.pitch));
  if (!amx_allowed) failed |= !(p.excess = allocate(4 * m));
#else
  failed |= !(p.x = allocate(m * p.pitch));
#endif
  if (row_scale) failed |= !(out.hidden = allocate(4 * at_once * panels * MAX_WIDTH));
  if (!failed) {
    memset(zeros, 0, 4 * n);
    if (!bias) g.bias = zeros;
#pragma omp parallel num_threads(threads) firstprivate(out)
    {
      threads_begin();
      pack_rows(&g, &p);
      for (i64 begin = 0, end; begin < m; begin = end) {
        end = min_of(m, begin + at_once);
        const i64 share = round_up(parts_of(end - begin, down), tile_rows());
        out.hidden_first = begin;
        /* OpenMP may give fewer threads than were asked for: then each does the work of several. */
        for (i64 worker = omp_get_thread_num(); worker < threads; worker += omp_get_num_threads()) {
          const i64 first = worker / down * own, from = min_of(end, begin + worker % down * share);
          char *packed = p.panels + worker * kept * p.panel;
          for (i64 i = 0; i < min_of(own, panels - first); i++) {
            char *panel = packed + (row_scale ? i : 0) * p.panel;
            if (begin == 0) pack_panel(&g, (first + i) * MAX_WIDTH, panel);
            linear_rows(&g, &p, &out, from, min_of(end, from + share), first + i, panel);
          }
        }
        if (row_scale) {
          float *spare = rows + omp_get_thread_num() * round_up(n, 16);
#pragma omp barrier
#pragma omp for schedule(static)
          for (i64 row = begin; row < end; row++)
            quantize_hidden(out.hidden + (row - begin) * MAX_WIDTH, at_once * MAX_WIDTH, n, spare, out_codes + row * n,
                            row_scale + row);
        }
      }
      threads_end();
    }
  }
  free(p.x), free(p.panels), free(p.excess), free(zeros), free(rows), free(out.hidden);
  return failed ? OUT_OF_MEMORY : 0;
}

/* ---- convolutions --------------------------------------------------------------------------------------------- */

typedef struct {
  i64 frames, c, h, w, n, kh, kw, stride_y, stride_x, pad_y, pad_x, out_h, out_w;
  i64 cp;     /* channels, rounded up to pairs */
  i64 pitch;  /* numbers of a padded row of the input */
  i64 run;    /* taps whose input lies in one piece: a row of them, or one where each has a sum of its own */
  i64 groups; /* 4-byte groups of a run in a panel */
  int width;  /* of a panel */
} Convolution;

enum { LARGEST_CODE = 32767, FINE_ENOUGH = 16384 };

/* weight [n, c, kh, kw] -> [runs][groups][width][4 bytes] for `first` and the outputs after it. */
static void pack_taps(const Convolution *v, const int8_t *weight, i64 first, char *panel) {
  memset(panel, 0, v->kh * v->kw / v->run * v->groups * v->width * 4);
  for (i64 j = 0; j < min_of(v->width, v->n - first); j++)
    for (i64 i = 0; i < v->c; i++)
      for (i64 y = 0; y < v->kh; y++)
        for (i64 x = 0; x < v->kw; x++) {
          int8_t code = weight[(((first + j) * v->c + i) * v->kh + y) * v->kw + x];
          i64 runs = (y * v->kw + x) / v->run, place = x % v->run * v->cp + i;
#if AMX
          if (amx_allowed) {
            ((int8_t *)panel)[((runs * v->groups + place / 4) * v->width + j) * 4 + place % 4] = code;
            continue;
          }
#endif
          ((int16_t *)panel)[((runs * v->groups + place / 2) * v->width + j) * 2 + place % 2] = code;
        }
}

/* The largest sum of |weight| of an output, over all taps and over one. */
static void largest_sums(const Convolution *v, const int8_t *weight, i64 *whole, i64 *one) {
  *whole = *one = 1;
  for (i64 j = 0; j < v->n; j++) {
    i64 total = 0;
    for (i64 tap = 0; tap < v->kh * v->kw; tap++) {
      i64 sum = 0;
      for (i64 i = 0; i < v->c; i++) sum += abs(weight[(j * v->c + i) * v->kh * v->kw + tap]);
      *one = max_of(*one, sum);
      total += sum;
    }
    *whole = max_of(*whole, total);
  }
}

/* A row of the input as codes between its margins; on AMX bytes in two planes, of which `low` is the second. */
static void pad_row(const Convolution *v, const float *x, float factor, float limit, int16_t *codes, int8_t *high,
                    uint8_t *low) {
  i64 margin = v->pad_x * v->cp, end = v->pitch;
  if (!x) margin = end;
  if (high) {
    memset(high, 0, margin), memset(low, 0, margin);
  } else {
    memset(codes, 0, 2 * margin);
  }
  if (!x) return;
  for (i64 p = 0; p < v->w; p++, x += v->c) {
    i64 place = margin + p * v->cp;
    if (high) {
#pragma omp simd
      for (i64 i = 0; i < v->c; i++) {
        int32_t code = nearest(clamp(x[i] * factor, limit));
        high[place + i] = (int8_t)(code >> 8);
        low[place + i] = (uint8_t)code;
      }
      for (i64 i = v->c; i < v->cp; i++) high[place + i] = 0, low[place + i] = 0;
    } else {
#pragma omp simd
      for (i64 i = 0; i < v->c; i++) codes[place + i] = (int16_t)nearest(clamp(x[i] * factor, limit));
      for (i64 i = v->c; i < v->cp; i++) codes[place + i] = 0;
    }
  }
  i64 right = margin + v->w * v->cp;
  if (high) {
    memset(high + right, 0, end - right), memset(low + right, 0, end - right);
  } else {
    memset(codes + right, 0, 2 * (end - right));
  }
}

static inline int conv_rows(const Convolution *v) {
#if AMX
  if (amx_allowed) return AMX_ROWS;
#endif
#if WIDE
  return v->width == 64 ? 6 : 12;
#else
  (void)v;
  return 6;
#endif
}

/* sums [rows, width] of pixels next to one another, on AMX of each plane; input: the first one's first tap. */
static inline void conv_tile(const Convolution *v, i64 rows, const int16_t *codes, const int8_t *high,
                             const uint8_t *low, i64 segments, const char *panel, int32_t *sums) {
  i64 step = v->stride_x * v->cp;
#if AMX
  if (amx_allowed) {
    amx_wide_rows(sums, high, low, step, segments, v->pitch, v->groups / 16, (const int8_t *)panel, v->width);
    return;
  }
#endif
  (void)high, (void)low;
#if WIDE
  if (v->width == 64) {
    pairs_4((int)rows, sums, (const char *)codes, 2 * step, segments, 2 * v->pitch, v->groups, panel);
    return;
  }
#endif
  pairs_2((int)rows, sums, (const char *)codes, 2 * step, segments, 2 * v->pitch, v->groups, panel);
}

/* What becomes of some columns of sums: y [columns], which is also where the sums of earlier taps are. */
typedef struct {
  const float *scale, *bias, *addend; /* of the columns; bias and addend may be null */
  float step;
  int is_first, is_last, relu;
} Ending;

static inline __attribute__((always_inline)) void finish_pixel(const i64 columns, const int32_t *sums,
                                                               const int32_t *low, const Ending *e, float *y) {
  const float *scale = e->scale, *bias = e->bias, *addend = e->addend, step = e->step;
  float sum[MAX_WIDTH] __attribute__((aligned(64)));
  if (low) {
#pragma omp simd
    for (i64 j = 0; j < columns; j++)
      sum[j] = (float)(int32_t)(((uint32_t)sums[j] << 8) + (uint32_t)low[j]) * (step * scale[j]);
  } else {
#pragma omp simd
    for (i64 j = 0; j < columns; j++) sum[j] = (float)sums[j] * (step * scale[j]);
  }
  if (!e->is_first) {
#pragma omp simd
    for (i64 j = 0; j < columns; j++) sum[j] += y[j];
  }
  if (e->is_last && bias) {
#pragma omp simd
    for (i64 j = 0; j < columns; j++) sum[j] += bias[j];
  }
  if (e->is_last && addend) {
#pragma omp simd
    for (i64 j = 0; j < columns; j++) sum[j] += addend[j];
  }
  if (e->is_last && e->relu) {
#pragma omp simd
    for (i64 j = 0; j < columns; j++) sum[j] = sum[j] < 0 ? 0 : sum[j];
  }
  memcpy(y, sum, 4 * columns);
}

static inline void finish_pixels(const Convolution *v, i64 pixels, i64 columns, const int32_t *sums, Ending e,
                                 float *y) {
#if WIDE
  const int32_t *low = amx_allowed ? sums + AMX_ROWS * v->width : NULL;
#else
  const int32_t *low = NULL;
#endif
  for (i64 r = 0; r < pixels; r++, y += v->n, sums += v->width) {
    if (columns == MAX_WIDTH) finish_pixel(MAX_WIDTH, sums, low, &e, y);
    else if (columns == 32 && 32 < MAX_WIDTH) finish_pixel(32 < MAX_WIDTH ? 32 : 1, sums, low, &e, y);
    else finish_pixel(columns, sums, low, &e, y);
    if (e.addend) e.addend += v->n;
    if (low) low += v->width;
  }
}

/* out [frames, out_h, out_w, n] = conv(x, weight * weight_scale) + bias + addend, then ReLU.

x [frames, h, w, c] becomes integers of 16 bits with a scale for each frame, whose largest code keeps every sum in int32.
finite [frames]: 0 where a frame holds NaN or inf, which integers cannot carry; it is not computed then. */
int vi_conv(const float *x, const int8_t *weight, const float *weight_scale, const float *bias, const float *addend,
            int relu, i64 frames, i64 c, i64 h, i64 w, i64 n, i64 kh, i64 kw, i64 stride_y, i64 stride_x, i64 pad_y,
            i64 pad_x, float *out, uint8_t *finite, int threads) {
  Convolution v = {frames, c, h, w, n, kh, kw, stride_y, stride_x, pad_y, pad_x,
                   (h + 2 * pad_y - kh) / stride_y + 1, (w + 2 * pad_x - kw) / stride_x + 1,
                   round_up(c, 2), 0, 0, 0, MAX_WIDTH};
  i64 whole, tap;
  largest_sums(&v, weight, &whole, &tap);
  const int is_fine = INT32_MAX / whole >= FINE_ENOUGH; /* else the sums of single taps become floats, and are added */
  const float limit = (float)min_of(LARGEST_CODE, INT32_MAX / (is_fine ? whole : tap));
  v.run = is_fine ? kw : 1;
  v.pitch = (w + 2 * pad_x) * v.cp;
  v.groups = v.run * v.cp / 2;
  int planes = 0;
#if WIDE
  if (n <= 32) v.width = 32;
  planes = amx_allowed;
  if (planes) v.groups = round_up(v.run * v.cp, AMX_BYTES) / 4;
#endif
  const i64 rows = h + 2 * pad_y, frame_size = rows * v.pitch;
  const i64 slack = AMX_ROWS * stride_x * v.cp + round_up(kw * v.cp, AMX_BYTES);
  const i64 at_once = max_of(1, min_of(frames, ((i64)1 << 23) / frame_size));
  const i64 panels = parts_of(n, v.width), run_bytes = v.groups * v.width * 4;
  const i64 runs = kh * kw / v.run, together = is_fine ? kh : 1, panel_bytes = runs * run_bytes;
  char *packed = allocate(panels * panel_bytes);
  int16_t *codes = allocate(2 * (at_once * frame_size + 2 * slack));
  float *lines = allocate(4 * at_once * (h + 1));
  int failed = !packed || !codes || !lines;
  if (!failed) {
    float *scales = lines + at_once * h;
    int8_t *high = planes ? (int8_t *)codes : NULL;
    uint8_t *low = planes ? (uint8_t *)codes + at_once * frame_size + slack : NULL;
#pragma omp parallel num_threads(threads)
    {
      int32_t sums[2][2 * AMX_ROWS * MAX_WIDTH] __attribute__((aligned(64)));
      threads_begin();
#pragma omp for schedule(static)
      for (i64 p = 0; p < panels; p++) pack_taps(&v, weight, p * v.width, packed + p * panel_bytes);
      for (i64 begin = 0; begin < frames; begin += at_once) {
        const i64 count = min_of(at_once, frames - begin);
        const float *input = x + begin * h * w * c;
#pragma omp for schedule(static)
        for (i64 i = 0; i < count * h; i++) lines[i] = largest(input + i * w * c, w * c);
#pragma omp for schedule(static)
        for (i64 f = 0; f < count; f++) {
          float absmax = largest(lines + f * h, h), scale = absmax / limit;
          finite[begin + f] = isfinite(absmax) != 0;
          scales[f] = scale < 0x1p-126f ? 0x1p-126f : scale;
        }
#pragma omp for schedule(static)
        for (i64 i = 0; i < count * rows; i++) {
          i64 f = i / rows, row = i % rows - pad_y, place = i * v.pitch;
          const float *from = row < 0 || row >= h || !finite[begin + f] ? NULL : input + (f * h + row) * w * c;
          pad_row(&v, from, 1 / scales[f], limit, codes + place, high ? high + place : NULL, low ? low + place : NULL);
        }
#pragma omp for schedule(dynamic, 2)
        for (i64 task = 0; task < count * v.out_h * panels; task++) {
          i64 f = task / panels / v.out_h, row = task / panels % v.out_h, first = task % panels * v.width;
          i64 columns = min_of(v.width, n - first), wanted = conv_rows(&v);
          if (!finite[begin + f]) continue;
          float *out_row = out + ((begin + f) * v.out_h + row) * v.out_w * n + first;
          const float *addend_row = addend ? addend + (out_row - out) : NULL;
          for (i64 run = 0; run < runs; run += together) {
            const i64 down = run * v.run / kw, across = run * v.run % kw;
            const i64 place = f * frame_size + (row * stride_y + down) * v.pitch + across * v.cp;
            const char *panel = packed + first / v.width * panel_bytes + run * run_bytes;
            Ending e = {weight_scale + first, bias ? bias + first : NULL, NULL, scales[f], run == 0,
                        run + together >= runs, relu};
            int turn = 0;
            i64 before = -1; /* the pixel whose tile is finished while the next one is multiplied */
            for (i64 px = 0;; px += wanted, turn ^= 1) {
              if (px < v.out_w) {
                i64 at = place + px * stride_x * v.cp;
                conv_tile(&v, min_of(wanted, v.out_w - px), codes + at, high ? high + at : NULL,
                          low ? low + at : NULL, together, panel, sums[turn]);
              }
              if (before >= 0) {
                e.addend = addend_row ? addend_row + before * n : NULL;
                finish_pixels(&v, min_of(wanted, v.out_w - before), columns, sums[turn ^ 1], e, out_row + before * n);
              }
              if (px >= v.out_w) break;
              before = px;
            }
          }
        }
      }
      threads_end();
    }
  }
  free(packed), free(codes), free(lines);
  return failed ? OUT_OF_MEMORY : 0;
}

/* ---- attention ------------------------------------------------------------------------------------------------ */

/* Queries and keys become integers of 16 bits with a scale for each token, values of 14 with one for each channel of a
   head.
   Products of queries and keys stay in int32 by Cauchy and Schwarz: no code vector is longer than MAX_NORM. Weights
   exp(score - largest) of a block of keys get codes whose sum is at most MAX_SUM, so that their products with values
   stay in int32, too; what they are divided by is the sum of the codes, so they sum to 1 exactly. */

enum { QUERIES = 48, KEYS = 256, TOKENS = 64 }; /* of a block; 48 is a multiple of every tile's rows */
enum { MAX_DIM = 512 };
static const float MAX_NORM = 46000, MAX_SUM = 262000, LARGEST_VALUE = 8191; /* even weights are many and small */

typedef struct {
  const float *q, *k, *v; /* [batch, heads, tokens, dim] by strides, in numbers; the last one is 1 */
  i64 heads, tokens, dim, batch_stride, head_stride, token_stride;
  i64 q_bytes, k_bytes, v_bytes; /* of a head's codes, one after another; on AMX of one plane, and the other follows */
  i64 k_panel;                   /* bytes of a panel of keys */
  i64 v_panel;                   /* bytes of a panel of channels, for all keys */
  i64 pitch;                     /* bytes of a query's codes */
  int planes;                    /* 2 on AMX, else 1 */
} Attention;

/* Scales of a head: of its queries and keys for each token; of its values for each channel, with the inverse. */
typedef struct {
  float *q, *k, *v, *v_inverse;
} Scales;

/* The codes of one token's vector, and what they are to be multiplied by. */
static float vector_codes(const float *x, i64 dim, int32_t *codes) {
  float absmax = largest(x, dim);
  if (absmax < 1e-37f) {
    memset(codes, 0, 4 * dim);
    return 1;
  }
  float factor = LARGEST_CODE / absmax, norm = absmax < 1e15f ? sqrtf(moment(2, x, dim, 0)) : absmax * sqrtf(dim);
  if (factor * norm > MAX_NORM) factor = MAX_NORM / norm;
#pragma omp simd
  for (i64 i = 0; i < dim; i++) codes[i] = nearest(x[i] * factor);
  return 1 / factor;
}

/* A row of codes as numbers of 16 bits, or as bytes in two planes. */
static inline void write_codes(int planes, const int32_t *codes, i64 n, char *to, i64 plane) {
  if (planes == 2) {
#pragma omp simd
    for (i64 i = 0; i < n; i++) to[i] = (char)(codes[i] >> 8), to[plane + i] = (char)codes[i];
  } else {
#pragma omp simd
    for (i64 i = 0; i < n; i++) ((int16_t *)to)[i] = (int16_t)codes[i];
  }
}

static void pack_queries(const Attention *t, const float *q, i64 from, i64 to, char *packed, float *scale) {
  const float unit = 1.44269504f / sqrtf((float)t->dim); /* weights are powers of two */
  int32_t codes[MAX_DIM];
  for (i64 i = from; i < to; i++) {
    char *row = packed + i * t->pitch;
    scale[i] = unit * vector_codes(q + i * t->token_stride, t->dim, codes);
    write_codes(t->planes, codes, t->dim, row, t->q_bytes);
    for (i64 end = t->dim * (3 - t->planes), p = 0; p < t->planes; p++)
      memset(row + p * t->q_bytes + end, 0, t->pitch - end);
  }
}

/* Keys [from, to) of a head into their panels. */
static void pack_keys(const Attention *t, const float *k, i64 from, i64 to, char *packed, float *scale) {
  int32_t codes[MAX_DIM];
  char rows[2 * MAX_WIDTH * MAX_DIM] __attribute__((aligned(64)));
  const i64 plane = MAX_WIDTH * t->pitch;
  for (i64 first = from; first < to; first += MAX_WIDTH) {
    const i64 columns = min_of(MAX_WIDTH, to - first);
    memset(rows, 0, t->planes * plane);
    for (i64 i = 0; i < columns; i++) {
      scale[first + i] = vector_codes(k + (first + i) * t->token_stride, t->dim, codes);
      write_codes(t->planes, codes, t->dim, rows + i * t->pitch, plane);
    }
    for (int i = 0; i < t->planes; i++)
      pack_groups(rows + i * plane, t->pitch, MAX_WIDTH, t->pitch / 4, MAX_WIDTH, 0,
                  (int32_t *)(packed + first / MAX_WIDTH * t->k_panel + i * t->k_bytes));
  }
}

/* Values of keys [from, to) of a head into their panels; factor: codes per unit, of each channel. */
static void pack_values(const Attention *t, const float *v, i64 from, i64 to, char *packed, const float *factor) {
  int32_t codes[4][MAX_DIM];
  const i64 together = t->planes == 2 ? 4 : 2;
  for (i64 i = from; i < round_up(to, 64); i += together) {
    for (i64 key = 0; key < together; key++) {
      const float *x = v + (i + key) * t->token_stride;
      if (i + key >= to) memset(codes[key], 0, 4 * t->dim);
      else
#pragma omp simd
        for (i64 d = 0; d < t->dim; d++) codes[key][d] = nearest(x[d] * factor[d]);
    }
    for (i64 first = 0; first < t->dim; first += MAX_WIDTH) {
      int32_t *high = (int32_t *)(packed + first / MAX_WIDTH * t->v_panel) + i / together * MAX_WIDTH;
      int32_t *low = high + t->v_bytes / 4;
      const int32_t *a = codes[0] + first, *b = codes[1] + first, *c = codes[2] + first, *d = codes[3] + first;
      const i64 columns = min_of(MAX_WIDTH, t->dim - first);
      if (t->planes == 2) {
#pragma omp simd
        for (i64 j = 0; j < columns; j++) {
          high[j] = (a[j] >> 8 & 255) | (b[j] >> 8 & 255) << 8 | (c[j] >> 8 & 255) << 16 | d[j] >> 8 << 24;
          low[j] = (a[j] & 255) | (b[j] & 255) << 8 | (c[j] & 255) << 16 | d[j] << 24;
        }
        for (i64 j = columns; j < MAX_WIDTH; j++) high[j] = low[j] = 0;
      } else {
#pragma omp simd
        for (i64 j = 0; j < columns; j++) high[j] = (a[j] & 0xffff) | b[j] << 16;
        for (i64 j = columns; j < MAX_WIDTH; j++) high[j] = 0;
      }
    }
  }
}

typedef struct {
  int32_t sums[QUERIES * MAX_WIDTH];
  float scores[QUERIES * KEYS];
  int16_t weights[QUERIES * KEYS]; /* or two planes of bytes */
  float out[QUERIES * MAX_DIM];
  floats highest[QUERIES];
  float top[QUERIES], total[QUERIES], keep[QUERIES], unit[QUERIES];
} Workspace;

/* sums [rows, MAX_WIDTH] = rows of codes times a panel; pitch: bytes of a row, plane: of all rows (of one plane). */
static inline void attention_tile(const Attention *t, Workspace *s, const void *codes, i64 plane, i64 rows, i64 pitch,
                                  i64 length, const char *panel, i64 panel_plane) {
#if AMX
  if (t->planes == 2) {
    amx_wide(s->sums, round_up(rows, AMX_ROWS), codes, (const uint8_t *)codes + plane, pitch, parts_of(length, 64),
             (const int8_t *)panel, (const uint8_t *)panel + panel_plane);
    return;
  }
#endif
  (void)plane, (void)panel_plane, (void)t;
  for (i64 row = 0; row < rows; row += 6) {
    const char *a = (const char *)codes + row * pitch;
    int some = (int)min_of(6, rows - row);
#if WIDE
    pairs_4(some, s->sums + row * MAX_WIDTH, a, pitch, 1, 0, parts_of(length, 2), panel);
#else
    pairs_2(some, s->sums + row * MAX_WIDTH, a, pitch, 1, 0, parts_of(length, 2), panel);
#endif
  }
}

/* Weights of a row of scores as codes, and how the row's sums so far and now are to be put together. */
static void softmax_row(const Attention *t, Workspace *s, i64 row, i64 keys, float scale) {
  float *x = s->scores + row * KEYS, top = largest_lane(s->highest[row]) * scale;
#pragma omp simd
  for (i64 j = 0; j < keys; j++) x[j] = exp2_of(fmaf(x[j], scale, -top));
  float sum = moment(1, x, keys, 0), codes_per_weight = MAX_SUM / sum;
  if (codes_per_weight > LARGEST_CODE) codes_per_weight = LARGEST_CODE;
  int32_t total = 0;
  i64 padded = round_up(keys, t->planes == 2 ? 64 : 2);
  for (i64 j = keys; j < padded; j++) x[j] = 0;
  if (t->planes == 2) {
    int8_t *high = (int8_t *)s->weights + row * KEYS;
    uint8_t *low = (uint8_t *)high + QUERIES * KEYS;
#pragma omp simd reduction(+ : total)
    for (i64 j = 0; j < padded; j++) {
      int32_t code = nearest(x[j] * codes_per_weight);
      high[j] = (int8_t)(code >> 8);
      low[j] = (uint8_t)code;
      total += code;
    }
  } else {
    int16_t *codes = s->weights + row * KEYS;
#pragma omp simd reduction(+ : total)
    for (i64 j = 0; j < padded; j++) {
      int32_t code = nearest(x[j] * codes_per_weight);
      codes[j] = (int16_t)code;
      total += code;
    }
  }
  float before = s->top[row], now = top > before ? top : before;
  s->keep[row] = exp2_of(before - now);
  s->unit[row] = exp2_of(top - now) / codes_per_weight;
  s->total[row] = s->total[row] * s->keep[row] + (float)total * s->unit[row];
  s->top[row] = now;
}

/* Queries [from, from + queries) of a head against all its keys: out, rows `out_pitch` apart. */
static void attend(const Attention *t, Workspace *s, const char *packed, Scales scale, i64 from, i64 queries, float *out,
                   i64 out_pitch) {
  const char *codes = packed + from * t->pitch, *keys = packed + t->planes * t->q_bytes;
  const char *values = keys + t->planes * t->k_bytes;
  for (i64 r = 0; r < queries; r++) s->top[r] = -INFINITY, s->total[r] = 0;
  memset(s->out, 0, 4 * queries * t->dim);
  for (i64 begin = 0; begin < t->tokens; begin += KEYS) {
    const i64 count = min_of(KEYS, t->tokens - begin);
    for (i64 r = 0; r < queries; r++) s->highest[r] = (floats){0} - INFINITY;
    for (i64 first = 0; first < count; first += MAX_WIDTH) {
      const i64 columns = min_of(MAX_WIDTH, count - first);
      const char *panel = keys + (begin + first) / MAX_WIDTH * t->k_panel;
      attention_tile(t, s, codes, t->q_bytes, queries, t->pitch, t->dim, panel, t->k_bytes);
      for (i64 r = 0; r < queries; r++) {
        float *to = s->scores + r * KEYS + first;
        const int32_t *sums = s->sums + r * MAX_WIDTH;
        const float *k_scale = scale.k + begin + first;
        i64 j = 0;
        for (; j + LANES <= columns; j += LANES) {
          floats score = __builtin_convertvector(*(const loose_ints *)(sums + j), floats);
          score *= *(const loose_floats *)(k_scale + j);
          *(loose_floats *)(to + j) = score;
          s->highest[r] = larger(score, s->highest[r]);
        }
        for (; j < columns; j++) {
          to[j] = (float)sums[j] * k_scale[j];
          if (to[j] > s->highest[r][0]) s->highest[r][0] = to[j];
        }
      }
    }
    for (i64 row = 0; row < queries; row++) softmax_row(t, s, row, count, scale.q[from + row]);
    for (i64 first = 0; first < t->dim; first += MAX_WIDTH) {
      const i64 columns = min_of(MAX_WIDTH, t->dim - first);
      const char *panel = values + first / MAX_WIDTH * t->v_panel + begin * MAX_WIDTH * (3 - t->planes);
      attention_tile(t, s, s->weights, QUERIES * KEYS, queries, KEYS * (3 - t->planes), count, panel, t->v_bytes);
      for (i64 r = 0; r < queries; r++) {
        float *to = s->out + r * t->dim + first, keep = s->keep[r], weight = s->unit[r];
        const int32_t *sums = s->sums + r * MAX_WIDTH;
#pragma omp simd
        for (i64 j = 0; j < columns; j++) to[j] = to[j] * keep + (float)sums[j] * weight;
      }
    }
  }
  for (i64 r = 0; r < queries; r++) {
    float factor = 1 / s->total[r];
#pragma omp simd
    for (i64 d = 0; d < t->dim; d++) out[r * out_pitch + d] = s->out[r * t->dim + d] * factor * scale.v[d];
  }
}

static i64 head_offset(const Attention *t, i64 i) {
  return i / t->heads * t->batch_stride + i % t->heads * t->head_stride;
}

static Scales scales_of(const Attention *t, float *scales, i64 i) {
  float *first = scales + i * 2 * (t->tokens + t->dim);
  return (Scales){first, first + t->tokens, first + 2 * t->tokens, first + 2 * t->tokens + t->dim};
}

/* softmax(q kT / sqrt(dim)) v: q, k, v as above, out [batch, tokens, heads, dim]. dim is at most MAX_DIM. */
int vi_attention(const float *q, const float *k, const float *v, float *out, i64 batch, i64 heads, i64 tokens, i64 dim,
                 i64 batch_stride, i64 head_stride, i64 token_stride, int threads) {
  Attention t = {q, k, v, heads, tokens, dim, batch_stride, head_stride, token_stride, 0, 0, 0, 0, 0, 0, 1};
#if WIDE
  t.planes = 1 + amx_allowed;
#endif
  const i64 number = 3 - t.planes; /* bytes of a number in a plane */
  t.pitch = number * round_up(dim, t.planes == 2 ? 64 : 2);
  t.q_bytes = round_up(tokens, QUERIES) * t.pitch;
  t.k_panel = t.pitch * MAX_WIDTH;
  t.k_bytes = parts_of(tokens, MAX_WIDTH) * t.k_panel;
  t.v_panel = number * round_up(tokens, TOKENS) * MAX_WIDTH;
  t.v_bytes = parts_of(dim, MAX_WIDTH) * t.v_panel;
  const i64 head_bytes = t.planes * (t.q_bytes + t.k_bytes + t.v_bytes), all = batch * heads;
  const i64 at_once = max_of(1, min_of(all, ((i64)1 << 26) / head_bytes));
  const i64 blocks = parts_of(tokens, QUERIES), token_blocks = parts_of(tokens, TOKENS);
  char *packed = allocate(at_once * head_bytes);
  float *scales = allocate(4 * at_once * 2 * (tokens + dim));
  int32_t *most = allocate(4 * at_once * dim * threads); /* of each thread: the largest value of each channel */
  Workspace *spaces = allocate((i64)sizeof(Workspace) * threads);
  int failed = !packed || !scales || !most || !spaces;
  if (!failed) {
#pragma omp parallel num_threads(threads)
    {
      const int thread = omp_get_thread_num();
      threads_begin();
      for (i64 begin = 0; begin < all; begin += at_once) {
        const i64 count = min_of(at_once, all - begin);
        int32_t *mine = most + thread * at_once * dim;
        memset(mine, 0, 4 * count * dim);
        /* Heads of the same tokens one after another: they lie next to one another in memory. */
#pragma omp for schedule(static)
        for (i64 task = 0; task < token_blocks * count; task++) {
          const i64 i = task % count, from = task / count * TOKENS, to = min_of(tokens, from + TOKENS);
          for (i64 n = from; n < to; n++) {
            const float *x = v + head_offset(&t, begin + i) + n * token_stride;
#pragma omp simd
            for (i64 d = 0; d < dim; d++) {
              int32_t bits = bits_of(x[d]) & 0x7fffffff;
              mine[i * dim + d] = bits > mine[i * dim + d] ? bits : mine[i * dim + d];
            }
          }
        }
#pragma omp for schedule(static)
        for (i64 i = 0; i < count; i++)
          for (i64 d = 0; d < dim; d++) {
            int32_t bits = 0;
            for (int j = 0; j < omp_get_num_threads(); j++) {
              int32_t its = most[(j * at_once + i) * dim + d];
              bits = its > bits ? its : bits;
            }
            const float absmax = float_of(bits);
            const Scales scale = scales_of(&t, scales, i);
            scale.v[d] = absmax < 1e-33f ? 1 : absmax / LARGEST_VALUE;
            scale.v_inverse[d] = absmax < 1e-33f ? 0 : LARGEST_VALUE / absmax;
          }
#pragma omp for schedule(static)
        for (i64 task = 0; task < token_blocks * count; task++) {
          const i64 i = task % count, from = task / count * TOKENS, to = min_of(tokens, from + TOKENS);
          const i64 offset = head_offset(&t, begin + i);
          const Scales scale = scales_of(&t, scales, i);
          char *queries = packed + i * head_bytes, *keys = queries + t.planes * t.q_bytes;
          pack_queries(&t, q + offset, from, to, queries, scale.q);
          pack_keys(&t, k + offset, from, to, keys, scale.k);
          pack_values(&t, v + offset, from, to, keys + t.planes * t.k_bytes, scale.v_inverse);
        }
#pragma omp for schedule(dynamic)
        for (i64 task = 0; task < count * blocks; task++) {
          const i64 i = task / blocks, from = task % blocks * QUERIES, queries = min_of(QUERIES, tokens - from);
          const i64 b = (begin + i) / heads, head = (begin + i) % heads;
          attend(&t, spaces + thread, packed + i * head_bytes, scales_of(&t, scales, i), from, queries,
                 out + ((b * tokens + from) * heads + head) * dim, heads * dim);
        }
      }
      threads_end();
    }
  }
  free(packed), free(scales), free(most), free(spaces);
  return failed ? OUT_OF_MEMORY : 0;
}
