/* Attention in integers.

Queries and keys become integers of 16 bits with a scale for each token, values of 14 with one for each channel of a
head. Products of queries and keys stay in int32 by Cauchy and Schwarz: no code vector is longer than MAX_NORM. Weights
exp(score - largest) of a block of keys get codes whose sum is at most MAX_SUM, so that their products with values
stay in int32, too; what they are divided by is the sum of the codes, so they sum to 1 exactly. */

enum { QUERIES = 48, KEYS = 256, TOKENS = 64 }; /* of a block; 48 is a multiple of every tile's rows */
enum { MAX_DIM = 512 };
static const float MAX_NORM = 46000, MAX_SUM = 262000, LARGEST_VALUE = 8191; /* even weights are many and small */

typedef struct {
  i64 heads, tokens, dim, batch_stride, head_stride, token_stride; /* strides in numbers */
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
static void attend(const Attention *t, Workspace *s, const char *packed, Scales scale, i64 from, i64 queries,
                   float *out, i64 out_pitch) {
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

/* softmax(q kT / sqrt(dim)) v: q, k, v [batch, heads, tokens, dim] by strides, of which the last is 1; out [batch,
   tokens, heads, dim]. dim is at most MAX_DIM. */
int vi_attention(const float *q, const float *k, const float *v, float *out, i64 batch, i64 heads, i64 tokens, i64 dim,
                 i64 batch_stride, i64 head_stride, i64 token_stride, int threads) {
  Attention t = {heads, tokens, dim, batch_stride, head_stride, token_stride, 0, 0, 0, 0, 0, 0, 1};
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
