/* Products of integers in registers: tiles of AVX2, AVX-512 VNNI and AMX. */

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
#define DEFINE_TILES(name, V, MORE)                                                                                   \
  static void name##_##V(int rows, int32_t *sums, const char *a, i64 pitch, i64 segments, i64 step, i64 groups,       \
                         const char *b) {                                                                             \
    switch (rows) {                                                                                                   \
      ROWS_CASE(name, 1, V) ROWS_CASE(name, 2, V) ROWS_CASE(name, 3, V) ROWS_CASE(name, 4, V) ROWS_CASE(name, 5, V)   \
      ROWS_CASE(name, 6, V) MORE                                                                                      \
    }                                                                                                                 \
  }
#define MORE_ROWS(name, V)                                                                                            \
  ROWS_CASE(name, 7, V) ROWS_CASE(name, 8, V) ROWS_CASE(name, 9, V) ROWS_CASE(name, 10, V) ROWS_CASE(name, 11, V)     \
  ROWS_CASE(name, 12, V)

DEFINE_TILE(pairs, dot_pairs)
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
#define TILE_DOT_US(c, a, b) _tile_dpbusd(c, a, b)
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
