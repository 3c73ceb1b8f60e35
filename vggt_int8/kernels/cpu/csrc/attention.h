/* Attention in integers.

Queries, keys, values and weights exp(score - largest) become integers with a scale: of each token, of each channel of
a head, of each query and block of keys. What a query is divided by in the end is the sum of its weights' codes, so they
sum to 1 exactly.

With products of 16-bit numbers their sums must stay in int32. For those of queries and keys Cauchy and Schwarz see to
that: no code vector is longer than MAX_NORM. Values have 14 bits, and the codes of a block's weights sum up to MAX_SUM
at most.

On AMX codes have 16 bits and go as two bytes, code = 256 * high + low, low signed but in weights. The product of both
low bytes of queries and keys is left out where it hardly changes a weight (LOW_MATTERS). Weights and values always need
it: values may be much alike. */

enum { QUERIES = 48, KEYS = 256, TOKENS = 64 }; /* of a block; 48 is a multiple of every tile's rows */
enum { MOST_KEYS = KEYS + 64 };                  /* of the last block: a few keys are not worth one */
enum { MAX_DIM = 512 };
enum { LARGEST_SPLIT = 127 * 256 + 127 }; /* with a signed low byte */
static const float MAX_NORM = 46000, MAX_SUM = 262000;
#if AMX
static const float LOW_MATTERS = 1e-3f, LOW_BYTE = 74; /* an exponent of 2; what a low byte is, root mean square */
#endif

typedef struct {
  i64 heads, queries, keys, dim;
  i64 q_strides[3], k_strides[3]; /* of batch, head and token, in elements; values have those of keys */
  i64 q_bytes, k_bytes, v_bytes; /* of a head's codes; on AMX of one of its two planes, which are consecutive */
  i64 k_panel;                   /* bytes of a panel of keys */
  i64 v_panel;                   /* bytes of a panel of channels, for all keys */
  i64 pitch;                     /* bytes of a query's codes */
  i64 out_pitch;                 /* elements of a row of Workspace.out */
  int planes;                    /* 2 on AMX, else 1 */
  float largest_value;
} Attention;

/* Scales of a head: of its queries and keys for each token; of its values for each channel, with the inverse. */
typedef struct {
  float *q, *k, *v, *v_inverse;
} Scales;

/* Consecutive vectors of a head are too far apart for hardware prefetchers. */
static inline void fetch_ahead(const float *x, i64 stride, i64 dim) {
  for (i64 i = 0; i < dim; i += 16) __builtin_prefetch(x + 4 * stride + i);
}

/* One token's vector as codes of 16 bits, or of bytes in two planes; what they are to be multiplied by. */
static float vector_codes(const Attention *t, const float *x, i64 stride, char *to, i64 plane) {
  const i64 dim = t->dim;
  fetch_ahead(x, stride, dim);
  float absmax = largest(x, dim), factor = 0, scale = 1;
  if (!(absmax < 1e-32f)) { /* else its scale would be no normal number, which may count as 0 */
    factor = LARGEST_SPLIT / absmax;
    if (t->planes == 1) {
      float squares = 0;
#pragma omp simd reduction(+ : squares)
      for (i64 i = 0; i < dim; i++) squares += x[i] * factor * (x[i] * factor);
      if (sqrtf(squares) > MAX_NORM) factor *= MAX_NORM / sqrtf(squares);
    }
    scale = 1 / factor;
  }
  if (t->planes == 2) {
#pragma omp simd
    for (i64 i = 0; i < dim; i++) {
      int32_t code = nearest(x[i] * factor);
      to[i] = (char)((code + 128) >> 8);
      to[plane + i] = (char)code;
    }
  } else {
#pragma omp simd
    for (i64 i = 0; i < dim; i++) ((int16_t *)to)[i] = (int16_t)nearest(x[i] * factor);
  }
  return scale;
}

static void pack_queries(const Attention *t, const float *q, i64 from, i64 to, char *packed, float *scale) {
  const float log2_e = 1.44269504f; /* weights are powers of two */
  const float unit = (t->planes == 2 ? 256 : 1) * log2_e / sqrtf((float)t->dim);
  for (i64 i = from; i < to; i++) {
    char *row = packed + i * t->pitch;
    scale[i] = unit * vector_codes(t, q + i * t->q_strides[2], t->q_strides[2], row, t->q_bytes);
    for (i64 end = t->dim * (3 - t->planes), p = 0; p < t->planes; p++)
      memset(row + p * t->q_bytes + end, 0, t->pitch - end);
  }
}

/* Keys [from, to) of a head into their panels. */
static void pack_keys(const Attention *t, const float *k, i64 from, i64 to, char *packed, float *scale) {
  char rows[2 * MAX_WIDTH * MAX_DIM] __attribute__((aligned(64)));
  const i64 plane = MAX_WIDTH * t->pitch, stride = t->k_strides[2];
  for (i64 first = from; first < to; first += MAX_WIDTH) {
    const i64 columns = min_of(MAX_WIDTH, to - first);
    memset(rows, 0, t->planes * plane);
    for (i64 i = 0; i < columns; i++)
      scale[first + i] = vector_codes(t, k + (first + i) * stride, stride, rows + i * t->pitch, plane);
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
      const float *x = v + (i + key) * t->k_strides[2];
      fetch_ahead(x, t->k_strides[2], t->dim);
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
          high[j] = ((a[j] + 128) >> 8 & 255) | ((b[j] + 128) >> 8 & 255) << 8 | ((c[j] + 128) >> 8 & 255) << 16 |
                    (d[j] + 128) >> 8 << 24;
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

typedef int32_t TilePart[AMX_ROWS * LANES]; /* sums of products of one byte each on AMX */

typedef struct {
  TilePart parts[2][6];
  float scores[QUERIES * MOST_KEYS];
  int16_t weights[QUERIES * MOST_KEYS]; /* or two planes of bytes */
  float out[QUERIES * MAX_DIM];
  floats highest[QUERIES];
  float top[QUERIES], total[QUERIES]; /* of all blocks so far */
  /* of this block: its largest score, the sum of its codes, codes per weight; what sums so far and now are to be
     multiplied by */
  float block_top[QUERIES], block_total[QUERIES], per_weight[QUERIES], keep[QUERIES], unit[QUERIES];
} Workspace;

/* Keep scores of a query from key `place` of the block, of which `kept` are there; the others become -inf. */
static inline __attribute__((always_inline)) floats put_scores(Workspace *s, i64 row, i64 place, i64 kept,
                                                               floats score) {
  if (kept < LANES) {
    const ints missing = LANE_NUMBERS >= (int32_t)kept;
    score = (floats)(((ints)score & ~missing) | ((ints)((floats){0} - INFINITY) & missing));
  }
  *(loose_floats *)(s->scores + row * MOST_KEYS + place) = score;
  return score;
}

static inline __attribute__((always_inline)) void add_values(Workspace *s, i64 row, float *to, floats values) {
  floats now = *(loose_floats *)to * s->keep[row];
  *(loose_floats *)to = fused(values, (floats){0} + s->unit[row], now);
}

#if AMX
static inline void start_parts(void) { TILE_ZERO(0); TILE_ZERO(1); TILE_ZERO(2); TILE_ZERO(3); }

static inline void store_parts(TilePart *parts) {
  TILE_STORE(0, parts[0], 64); TILE_STORE(1, parts[1], 64); TILE_STORE(2, parts[2], 64); TILE_STORE(3, parts[3], 64);
}

/* Two tiles of a [16, K] · b [K, 32], each in two parts: high x high, and high x low + low x high. Loading a tile takes
   longer than multiplying it, so each of a serves both. */
static inline void amx_query_tiles(TilePart *parts, const char *a, i64 a_plane, i64 pitch, i64 steps, const char *b,
                                   i64 b_plane) {
  start_parts();
  for (i64 k = 0; k < steps; k++, a += 64, b += 16 * 256) {
    TILE_LOAD(4, a, pitch);
    TILE_LOAD(6, b, 256);
    TILE_DOT_SS(0, 4, 6);
    TILE_LOAD(5, a + a_plane, pitch);
    TILE_DOT_SS(1, 5, 6);
    TILE_LOAD(6, b + 64, 256);
    TILE_DOT_SS(2, 4, 6);
    TILE_DOT_SS(3, 5, 6);
    TILE_LOAD(7, b + b_plane, 256);
    TILE_DOT_SS(1, 4, 7);
    TILE_LOAD(7, b + b_plane + 64, 256);
    TILE_DOT_SS(3, 4, 7);
  }
  store_parts(parts);
}

/* The same of low x low. */
static inline void amx_low_tiles(TilePart *parts, const char *a, i64 pitch, i64 steps, const char *b) {
  TILE_ZERO(0); TILE_ZERO(1);
  for (i64 k = 0; k < steps; k++, a += 64, b += 16 * 256) {
    TILE_LOAD(4, a, pitch);
    TILE_LOAD(6, b, 256);
    TILE_DOT_SS(0, 4, 6);
    TILE_LOAD(7, b + 64, 256);
    TILE_DOT_SS(1, 4, 7);
  }
  TILE_STORE(0, parts[0], 64); TILE_STORE(1, parts[1], 64);
}

/* A tile of a [16, K] · b [K, 16]: high x high, low x high, low x low, high x low, for each a chain of its own, since
   one product waits long for the one before. */
static inline void amx_weight_tile(TilePart *parts, const char *a, i64 a_plane, i64 pitch, i64 steps, const char *b,
                                   i64 b_plane) {
  start_parts();
  for (i64 k = 0; k < steps; k++, a += 64, b += 16 * 256) {
    TILE_LOAD(4, a, pitch);
    TILE_LOAD(6, b, 256);
    TILE_DOT_SS(0, 4, 6);
    TILE_LOAD(5, a + a_plane, pitch);
    TILE_DOT_US(1, 5, 6);
    TILE_LOAD(7, b + b_plane, 256);
    TILE_DOT_US(2, 5, 7);
    TILE_DOT_SS(3, 4, 7);
  }
  store_parts(parts);
}

static inline ints row_of(const int32_t *part, i64 row) { return *(const ints *)(part + row * LANES); }

/* Reading a tile right after it was stored stalls, so it is read while the next ones are multiplied. */
static inline __attribute__((always_inline)) void amx_scores(
    const Attention *t, Workspace *s, const int low_matters, i64 queries, i64 keys, const char *codes,
    const char *panels, const float *k_scale) {
  const i64 down = parts_of(queries, AMX_ROWS), all = down * parts_of(keys, 2 * LANES);
  for (i64 task = 0; task <= all; task++) {
    if (task < all) {
      const char *a = codes + task % down * AMX_ROWS * t->pitch;
      const char *b = panels + task / down / 2 * t->k_panel + task / down % 2 * 128;
      const i64 steps = t->pitch / 64;
      amx_query_tiles(s->parts[task % 2], a, t->q_bytes, t->pitch, steps, b, t->k_bytes);
      if (low_matters) amx_low_tiles(s->parts[task % 2] + 4, a + t->q_bytes, t->pitch, steps, b + t->k_bytes);
    }
    if (task == 0) continue;
    TilePart *done = s->parts[(task - 1) % 2];
    const i64 first = (task - 1) % down * AMX_ROWS, place = (task - 1) / down * 2 * LANES;
    const floats scale[2] = {*(const loose_floats *)(k_scale + place),
                             *(const loose_floats *)(k_scale + place + LANES)};
    for (i64 r = 0; r < AMX_ROWS; r++)
      for (int i = 0; i < 2; i++) {
        floats high = __builtin_convertvector(row_of(done[2 * i], r), floats);
        floats cross = __builtin_convertvector(row_of(done[2 * i + 1], r), floats);
        floats sum = fused(high, (floats){0} + 256, cross);
        if (low_matters)
          sum = fused(__builtin_convertvector(row_of(done[4 + i], r), floats), (floats){0} + 1.0f / 256, sum);
        floats score = sum * scale[i];
        const i64 at = place + i * LANES;
        s->highest[first + r] = larger(put_scores(s, first + r, at, keys - at, score), s->highest[first + r]);
      }
  }
}

static void amx_values(const Attention *t, Workspace *s, i64 queries, i64 keys, const char *panels) {
  const i64 down = parts_of(queries, AMX_ROWS), all = down * parts_of(t->dim, LANES);
  for (i64 task = 0; task <= all; task++) {
    if (task < all) {
      const char *a = (const char *)s->weights + task % down * AMX_ROWS * MOST_KEYS;
      const char *b = panels + task / down / 4 * t->v_panel + task / down % 4 * 64;
      amx_weight_tile(s->parts[task % 2], a, QUERIES * MOST_KEYS, MOST_KEYS, parts_of(keys, 64), b, t->v_bytes);
    }
    if (task == 0) continue;
    TilePart *done = s->parts[(task - 1) % 2];
    const i64 first = (task - 1) % down * AMX_ROWS;
    float *to = s->out + first * t->out_pitch + (task - 1) / down * LANES;
    for (i64 r = 0; r < AMX_ROWS; r++, to += t->out_pitch) {
      floats high = __builtin_convertvector(row_of(done[0], r), floats);
      floats cross = __builtin_convertvector(row_of(done[1], r) + row_of(done[3], r), floats);
      floats low = __builtin_convertvector(row_of(done[2], r), floats);
      add_values(s, first + r, to, fused(high, (floats){0} + 65536, fused(cross, (floats){0} + 256, low)));
    }
  }
}
#endif

/* sums [6, MAX_WIDTH] = rows of 16-bit codes times a panel */
static inline void pair_tile(i64 rows, const char *codes, i64 pitch, i64 length, const char *panel, int32_t *sums) {
#if WIDE
  pairs_4((int)rows, sums, codes, pitch, 1, 0, parts_of(length, 2), panel);
#else
  pairs_2((int)rows, sums, codes, pitch, 1, 0, parts_of(length, 2), panel);
#endif
}

static void pair_scores(const Attention *t, Workspace *s, i64 queries, i64 keys, const char *codes, const char *panels,
                        const float *k_scale) {
  int32_t sums[6 * MAX_WIDTH] __attribute__((aligned(64)));
  for (i64 first = 0; first < keys; first += MAX_WIDTH)
    for (i64 row = 0; row < queries; row += 6) {
      const i64 rows = min_of(6, queries - row), columns = min_of(MAX_WIDTH, keys - first);
      pair_tile(rows, codes + row * t->pitch, t->pitch, t->dim, panels + first / MAX_WIDTH * t->k_panel, sums);
      for (i64 r = 0; r < rows; r++)
        for (i64 j = 0; j < columns; j += LANES) {
          floats score = __builtin_convertvector(*(ints *)(sums + r * MAX_WIDTH + j), floats);
          score *= *(const loose_floats *)(k_scale + first + j);
          score = put_scores(s, row + r, first + j, columns - j, score);
          s->highest[row + r] = larger(score, s->highest[row + r]);
        }
    }
}

static void pair_values(const Attention *t, Workspace *s, i64 queries, i64 keys, const char *panels) {
  int32_t sums[6 * MAX_WIDTH] __attribute__((aligned(64)));
  for (i64 first = 0; first < t->dim; first += MAX_WIDTH)
    for (i64 row = 0; row < queries; row += 6) {
      const i64 rows = min_of(6, queries - row), columns = min_of(MAX_WIDTH, t->dim - first);
      const char *codes = (const char *)(s->weights + row * MOST_KEYS);
      pair_tile(rows, codes, 2 * MOST_KEYS, keys, panels + first / MAX_WIDTH * t->v_panel, sums);
      for (i64 r = 0; r < rows; r++)
        for (i64 j = 0; j < columns; j += LANES)
          add_values(s, row + r, s->out + (row + r) * t->out_pitch + first + j,
                     __builtin_convertvector(*(ints *)(sums + r * MAX_WIDTH + j), floats));
    }
}

/* Weights of a row of scores, relative to the largest one, as codes. */
static void weight_codes(int planes, Workspace *s, i64 row, i64 keys, float scale) {
  float *x = s->scores + row * MOST_KEYS, top = largest_lane(s->highest[row]) * scale, per_weight = LARGEST_CODE;
  const i64 padded = round_up(keys, LANES);
  ints total = {0};
#if AMX
  if (planes == 2) { /* bytes have sums that fit whatever the codes are */
    int8_t *high = (int8_t *)s->weights + row * MOST_KEYS, *low = high + QUERIES * MOST_KEYS;
    for (i64 j = 0; j < padded; j += LANES) {
      floats weight = power_of_two(*(loose_floats *)(x + j) * scale - top);
      ints code = (ints)fused(weight, (floats){0} + LARGEST_CODE, (floats){0} + ROUNDER);
      store_bytes(high + j, code >> 8);
      store_bytes(low + j, code);
      total += code;
    }
    const i64 unused = round_up(keys, 64) - padded;
    memset(high + padded, 0, unused), memset(low + padded, 0, unused);
  } else
#endif
  {
    (void)planes;
    int16_t *codes = s->weights + row * MOST_KEYS;
    floats sum = {0};
    for (i64 j = 0; j < padded; j += LANES) {
      floats weight = power_of_two(*(loose_floats *)(x + j) * scale - top);
      *(loose_floats *)(x + j) = weight;
      sum += weight;
    }
    per_weight = MAX_SUM / sum_of_lanes(sum);
    if (per_weight > LARGEST_CODE) per_weight = LARGEST_CODE;
    for (i64 j = 0; j < padded; j += LANES) {
      ints code = (ints)fused(*(loose_floats *)(x + j), (floats){0} + per_weight, (floats){0} + ROUNDER);
      store_shorts(codes + j, code);
      total += code;
    }
  }
  s->block_top[row] = top;
  s->block_total[row] = (float)(int32_t)((uint32_t)sum_of_ints(total) - (uint32_t)padded * (uint32_t)bits_of(ROUNDER));
  s->per_weight[row] = per_weight;
}

/* Queries [from, from + queries) of a head against all its keys: out, rows `out_pitch` apart. */
static void attend(const Attention *t, Workspace *s, const char *packed, Scales scale, i64 from, i64 queries,
                   float *out, i64 out_pitch) {
  const char *codes = packed + from * t->pitch, *keys = packed + t->planes * t->q_bytes;
  const char *values = keys + t->planes * t->k_bytes;
  const float largest_key = largest(scale.k, t->keys);
#if AMX
  const float largest_query = largest(scale.q + from, queries) / 256;
  const int low_matters = largest_query * largest_key * sqrtf(t->dim) > LOW_MATTERS / (LOW_BYTE * LOW_BYTE);
#endif
  for (i64 r = 0; r < QUERIES; r++)
    s->top[r] = -INFINITY, s->total[r] = s->block_top[r] = s->block_total[r] = 0, s->per_weight[r] = 1;
  memset(s->out, 0, 4 * QUERIES * t->out_pitch);
  for (i64 begin = 0, count; begin < t->keys; begin += count) {
    count = t->keys - begin <= MOST_KEYS ? t->keys - begin : KEYS;
    const char *key_panels = keys + begin / MAX_WIDTH * t->k_panel;
    const char *value_panels = values + begin * MAX_WIDTH * (3 - t->planes);
    for (i64 r = 0; r < QUERIES; r++) s->highest[r] = (floats){0} - INFINITY;
#if AMX
    if (t->planes == 2 && low_matters) amx_scores(t, s, 1, queries, count, codes, key_panels, scale.k + begin);
    else if (t->planes == 2) amx_scores(t, s, 0, queries, count, codes, key_panels, scale.k + begin);
    else
#endif
      pair_scores(t, s, queries, count, codes, key_panels, scale.k + begin);
    for (i64 r = 0; r < queries; r++) weight_codes(t->planes, s, r, count, scale.q[from + r]);
    for (i64 r = 0; r < QUERIES; r += LANES) {
#define LANES_OF(numbers) (*(loose_floats *)(s->numbers + r))
      floats now = larger(LANES_OF(block_top), LANES_OF(top));
      LANES_OF(keep) = power_of_two(LANES_OF(top) - now);
      LANES_OF(unit) = power_of_two(LANES_OF(block_top) - now) / LANES_OF(per_weight);
      LANES_OF(total) = LANES_OF(total) * LANES_OF(keep) + LANES_OF(block_total) * LANES_OF(unit);
      LANES_OF(top) = now;
    }
#if AMX
    if (t->planes == 2) amx_values(t, s, queries, count, value_panels);
    else
#endif
      pair_values(t, s, queries, count, value_panels);
  }
  const float poison = largest_key * 0; /* NaN and inf in queries or keys are in their scales; codes cannot carry them */
  for (i64 r = 0; r < queries; r++) {
    float factor = 1 / s->total[r] + scale.q[from + r] * 0 + poison;
#pragma omp simd
    for (i64 d = 0; d < t->dim; d++) out[r * out_pitch + d] = s->out[r * t->out_pitch + d] * factor * scale.v[d];
  }
}

static i64 head_offset(const Attention *t, const i64 *strides, i64 i) {
  return i / t->heads * strides[0] + i % t->heads * strides[1];
}

/* Floats in `Scales` for a head; those of tokens are read as vectors, so they are padded. */
static i64 scales_size(const Attention *t) {
  return round_up(t->queries, 2 * LANES) + round_up(t->keys, 2 * LANES) + 2 * t->dim;
}

static Scales scales_of(const Attention *t, float *scales, i64 i) {
  float *q = scales + i * scales_size(t), *k = q + round_up(t->queries, 2 * LANES);
  float *v = k + round_up(t->keys, 2 * LANES);
  return (Scales){q, k, v, v + t->dim};
}

/* softmax(q kT / sqrt(dim)) v: q [batch, heads, count, dim], k and v [batch, heads, keys, dim] by strides, of which the
   last is 1; out [batch, count, heads, dim]. dim is at most MAX_DIM. */
int vi_attention(const float *q, const float *k, const float *v, float *out, i64 batch, i64 heads, i64 count, i64 keys,
                 i64 dim, i64 q_batch, i64 q_head, i64 q_token, i64 k_batch, i64 k_head, i64 k_token, int threads) {
  Attention t = {heads, count, keys, dim, {q_batch, q_head, q_token}, {k_batch, k_head, k_token}, .planes = 1};
#if WIDE
  t.planes = 1 + amx_allowed;
#endif
  t.largest_value = t.planes == 2 ? LARGEST_SPLIT : 8191;
  const i64 number = 3 - t.planes; /* bytes of an element of a plane */
  t.pitch = number * round_up(dim, t.planes == 2 ? 64 : 2);
  t.out_pitch = round_up(dim, LANES);
  t.q_bytes = round_up(count, QUERIES) * t.pitch;
  t.k_panel = t.pitch * MAX_WIDTH;
  t.k_bytes = parts_of(keys, MAX_WIDTH) * t.k_panel;
  t.v_panel = number * round_up(keys, TOKENS) * MAX_WIDTH;
  t.v_bytes = parts_of(dim, MAX_WIDTH) * t.v_panel;
  const i64 head_bytes = t.planes * (t.q_bytes + t.k_bytes + t.v_bytes), all = batch * heads;
  const i64 at_once = max_of(1, min_of(all, HEADS_BYTES / head_bytes));
  const i64 blocks = parts_of(count, QUERIES), q_blocks = parts_of(count, TOKENS), k_blocks = parts_of(keys, TOKENS);
  char *packed = allocate(at_once * head_bytes);
  float *scales = allocate(4 * at_once * scales_size(&t));
  int32_t *most = allocate(4 * at_once * dim * threads); /* of each thread: the largest value of each channel */
  Workspace *spaces = allocate((i64)sizeof(Workspace) * threads);
  int failed = !packed || !scales || !most || !spaces;
  if (!failed) {
#pragma omp parallel num_threads(threads)
    {
      const int thread = omp_get_thread_num();
      threads_begin();
      for (i64 begin = 0; begin < all; begin += at_once) {
        const i64 together = min_of(at_once, all - begin);
        int32_t *mine = most + thread * at_once * dim;
        memset(mine, 0, 4 * together * dim);
        /* All heads of the same tokens in succession, since they are adjacent in memory. */
#pragma omp for schedule(static)
        for (i64 task = 0; task < k_blocks * together; task++) {
          const i64 i = task % together, from = task / together * TOKENS, to = min_of(keys, from + TOKENS);
          for (i64 n = from; n < to; n++) {
            const float *x = v + head_offset(&t, t.k_strides, begin + i) + n * k_token;
            fetch_ahead(x, k_token, dim);
#pragma omp simd
            for (i64 d = 0; d < dim; d++) {
              int32_t bits = bits_of(x[d]) & 0x7fffffff;
              mine[i * dim + d] = bits > mine[i * dim + d] ? bits : mine[i * dim + d];
            }
          }
        }
#pragma omp for schedule(static)
        for (i64 i = 0; i < together; i++)
          for (i64 d = 0; d < dim; d++) {
            int32_t bits = 0;
            for (int j = 0; j < omp_get_num_threads(); j++) {
              int32_t its = most[(j * at_once + i) * dim + d];
              bits = its > bits ? its : bits;
            }
            const float absmax = float_of(bits);
            const Scales scale = scales_of(&t, scales, i);
            scale.v[d] = absmax < 1e-33f ? 1 : absmax / t.largest_value;
            scale.v_inverse[d] = absmax < 1e-33f ? 0 : t.largest_value / absmax;
          }
#pragma omp for schedule(static)
        for (i64 task = 0; task < max_of(q_blocks, k_blocks) * together; task++) {
          const i64 i = task % together, block = task / together, from = block * TOKENS;
          const i64 q_offset = head_offset(&t, t.q_strides, begin + i);
          const i64 k_offset = head_offset(&t, t.k_strides, begin + i);
          const Scales scale = scales_of(&t, scales, i);
          char *q_codes = packed + i * head_bytes, *k_codes = q_codes + t.planes * t.q_bytes;
          if (block < q_blocks) pack_queries(&t, q + q_offset, from, min_of(count, from + TOKENS), q_codes, scale.q);
          if (block >= k_blocks) continue;
          const i64 to = min_of(keys, from + TOKENS);
          pack_keys(&t, k + k_offset, from, to, k_codes, scale.k);
          pack_values(&t, v + k_offset, from, to, k_codes + t.planes * t.k_bytes, scale.v_inverse);
        }
#pragma omp for schedule(dynamic)
        for (i64 task = 0; task < together * blocks; task++) {
          const i64 i = task / blocks, from = task % blocks * QUERIES, queries = min_of(QUERIES, count - from);
          const i64 b = (begin + i) / heads, head = (begin + i) % heads;
          attend(&t, spaces + thread, packed + i * head_bytes, scales_of(&t, scales, i), from, queries,
                 out + ((b * count + from) * heads + head) * dim, heads * dim);
        }
      }
      threads_end();
    }
  }
  free(packed), free(scales), free(most), free(spaces);
  return failed ? OUT_OF_MEMORY : 0;
}
