/* The instructions that the CPU kernels take from AVX-512 VNNI and AMX, in plain C. */

static __attribute__((noinline)) ints dot_pairs(ints sum, ints a, ints b) {
  for (int i = 0; i < LANES; i++)
    for (int j = 0; j < 2; j++)
      sum[i] = (int32_t)((uint32_t)sum[i] + (uint32_t)(((int16_t *)&a)[2 * i + j] * ((int16_t *)&b)[2 * i + j]));
  return sum;
}

static __attribute__((noinline)) ints dot_bytes(ints sum, ints a, ints b) {
  for (int i = 0; i < LANES; i++)
    for (int j = 0; j < 4; j++) sum[i] += ((uint8_t *)&a)[4 * i + j] * ((int8_t *)&b)[4 * i + j];
  return sum;
}

static inline floats fused(floats a, floats b, floats c) {
  for (int i = 0; i < LANES; i++) a[i] = fmaf(a[i], b[i], c[i]);
  return a;
}

static inline floats larger(floats a, floats b) {
  for (int i = 0; i < LANES; i++) a[i] = a[i] > b[i] ? a[i] : b[i];
  return a;
}

static inline void store_shorts(int16_t *to, ints x) {
  for (int i = 0; i < LANES; i++) to[i] = (int16_t)x[i];
}

static inline void store_bytes(void *to, ints x) {
  for (int i = 0; i < LANES; i++) ((int8_t *)to)[i] = (int8_t)x[i];
}

static _Thread_local uint8_t tiles[8][16][64];
static _Thread_local int tiles_are_on;

static void tiles_begin(void) { tiles_are_on = 1; }
static void tiles_end(void) { tiles_are_on = 0; }

static void tile_zero(int t) {
  if (!tiles_are_on) abort();
  memset(tiles[t], 0, sizeof tiles[t]);
}

static void tile_load(int t, const void *from, i64 pitch) {
  for (int r = 0; r < 16; r++) memcpy(tiles[t][r], (const char *)from + r * pitch, 64);
}

static void tile_store(int t, void *to, i64 pitch) {
  for (int r = 0; r < 16; r++) memcpy((char *)to + r * pitch, tiles[t][r], 64);
}

static int signed_or_not(uint8_t byte, int is_signed) { return is_signed ? (int8_t)byte : byte; }

static __attribute__((noinline)) void tile_dot(int c, int a, int b, int a_signed) {
  for (int m = 0; m < 16; m++)
    for (int n = 0; n < 16; n++) {
      uint32_t *sum = (uint32_t *)tiles[c][m] + n;
      for (int k = 0; k < 64; k++)
        *sum += (uint32_t)(signed_or_not(tiles[a][m][k], a_signed) *
                           (int8_t)tiles[b][k / 4][4 * n + k % 4]);
    }
}

#define TILE_ZERO(t) tile_zero(t)
#define TILE_LOAD(t, p, pitch) tile_load(t, p, pitch)
#define TILE_STORE(t, p, pitch) tile_store(t, p, pitch)
#define TILE_DOT_SS(c, a, b) tile_dot(c, a, b, 1)
#define TILE_DOT_US(c, a, b) tile_dot(c, a, b, 0)
