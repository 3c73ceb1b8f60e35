/* The operators of ../ops.py for x86 CPUs, compiled on the machine that runs them (../compiler.py). One translation
unit: each header holds the functions of its kind. Those that start with vi_ are called through ctypes; they return 0 or
OUT_OF_MEMORY, vi_init what it found.

Everything heavy is a product of integers with exact int32 sums, in tiles that stay in registers:

  bytes    8 x 8 bits   a linear layer. AMX tiles, else VNNI; without either, codes widened to 16 bits
  pairs   16 x 16 bits  convolutions (16-bit activations, 8-bit weights) and attention. VNNI or AVX2's multiply-add;
                        on AMX both bytes of each number are multiplied by themselves and the sums put together

The right-hand side of a product is packed into panels of `width` columns, of which groups of numbers along K lie next
to one another: [K / 4][width][4] bytes or [K / 2][width][2] numbers of 16 bits. A panel is packed by the thread that is
about to use it, from the tensor itself: nothing is kept between calls, so nothing can go stale.

Floats: no contraction (-ffp-contract=off), so that scales and biases round as in reference.py; `fmaf` where it does not
matter. Tensors are contiguous and fp32 if nothing else is said.
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

/* What works on parts of its input: bytes of packed heads, and codes of frames, which stay in the second cache. */
#ifndef HEADS_BYTES
#define HEADS_BYTES ((i64)1 << 26)
#define FRAMES_CODES ((i64)1 << 19)
#endif

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

/* Shuffle indices are constant vectors with a literal d, since GCC would build a vector set lane by lane at run time,
   at every use. */
#if WIDE
#define LANE_NUMBERS ((ints){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
#define FOR_EACH_DISTANCE(WITH) WITH(1) WITH(2) WITH(4) WITH(8)
#else
#define LANE_NUMBERS ((ints){0, 1, 2, 3, 4, 5, 6, 7})
#define FOR_EACH_DISTANCE(WITH) WITH(1) WITH(2) WITH(4)
#endif

/* Lane i from lane i ^ d. */
#define ACROSS(x, d) __builtin_shuffle(x, LANE_NUMBERS ^ (d))

/* r [LANES][LANES] to its transpose: squares of d x d change places. */
static inline __attribute__((always_inline)) void transpose(ints r[LANES]) {
#define CHANGE_PLACES(d)                                                            \
  {                                                                                 \
    const ints odd = (LANE_NUMBERS & (d)) != 0, other = LANE_NUMBERS ^ (d);         \
    const ints lower = (odd & (other + LANES)) | (~odd & LANE_NUMBERS);             \
    const ints upper = (odd & (LANE_NUMBERS + LANES)) | (~odd & other);             \
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) if (!(i & (d))) {      \
      ints a = r[i], b = r[i | (d)];                                                \
      r[i] = __builtin_shuffle(a, b, lower);                                        \
      r[i | (d)] = __builtin_shuffle(a, b, upper);                                  \
    }                                                                               \
  }
  FOR_EACH_DISTANCE(CHANGE_PLACES)
}

#include "instructions.h"
#include "tiles.h"

/* Bit 0: AVX-512 VNNI is used, bit 1: AMX is used, too. Linux grants AMX's tile registers on request only. */
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

#include "floats.h"
#include "passes.h"
#include "linear.h"
#include "convolution.h"
#include "attention.h"
