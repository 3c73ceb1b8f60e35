/* INT8 linear layers with everything that follows them. */

typedef struct {
  const int8_t *codes, *weight;                  /* [m, k], [n, k] */
  const float *x_scale, *weight_scale;           /* [m], [n] */
  const float *bias, *gamma, *residual;          /* [n], [n], [m, n] or null */
  const float *out_scale;                        /* null, or that of row r is out_scale[r % scales] */
  i64 scales, m, n, k;
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
  if (columns < MAX_WIDTH || whole < groups_of(g->k)) memset(panel, 0, groups_of(g->k) * MAX_WIDTH * 4);
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
  const i64 whole_columns = columns / LANES * LANES, whole_groups = whole / LANES * LANES;
  for (i64 column = 0; column < whole_columns; column += LANES)
    for (i64 group = 0; group < whole_groups; group += LANES) {
      ints r[LANES];
      _Pragma("GCC unroll 8") for (int i = 0; i < LANES; i++) r[i] =
          (ints)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(weight + (column + i) * g->k + 2 * group)));
      transpose(r);
      _Pragma("GCC unroll 8") for (int i = 0; i < LANES; i++)
        *(loose_ints *)(panel + ((group + i) * MAX_WIDTH + column) * 4) = r[i];
    }
  for (i64 j = 0; j < columns; j++)
    for (i64 i = j < whole_columns ? 2 * whole_groups : 0; i < g->k; i++)
      to[(i / 2 * MAX_WIDTH + j) * 2 + i % 2] = weight[j * g->k + i];
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
    if (g->k % 2) to[g->k] = 0;
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

/* The kinds of output: the bare sums [m, n], floats [m, n], codes [m, n] under out_scale, or floats of some rows in
   panels, hidden [panel][hidden_rows][MAX_WIDTH]. */
typedef struct {
  int32_t *sums;
  float *floats, *hidden;
  int8_t *codes;
  i64 hidden_rows, hidden_first;
} Result;

enum { WITH_GELU = 1, WITH_RESIDUAL = 2 };

/* A row of sums: scale, bias, then GELU, then LayerScale and residual, in fp32. y may be the residual. */
static inline __attribute__((always_inline)) void finish(
    const int ending, const i64 columns, const int32_t *sums, int32_t excess, float scale, const float *weight_scale,
    const float *bias, const float *gamma, const float *residual, float *y) {
#pragma omp simd
  for (i64 j = 0; j < columns; j++) {
    float v = (float)(sums[j] - excess) * scale * weight_scale[j] + bias[j];
    if (ending & WITH_GELU) v = 0.5f * v * (1 + erf_of(v * 0.70710678118654752f));
    if (ending & WITH_RESIDUAL) v = v * gamma[j] + residual[j];
    y[j] = v;
  }
}

/* The epilogue of some rows of sums, into the output. */
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
#define FINISH_SOME(ending, columns)                                                                                \
  finish(ending, columns, sums, excess, g->x_scale[r], g->weight_scale + first, g->bias + first, g->gamma + first,  \
         g->residual + place, y)
#define FINISH(ending)                                                                                              \
  case ending:                                                                                                      \
    if (columns == MAX_WIDTH) FINISH_SOME(ending, MAX_WIDTH);                                                       \
    else FINISH_SOME(ending, columns);                                                                              \
    break
    switch ((g->gelu ? WITH_GELU : 0) | (g->residual ? WITH_RESIDUAL : 0)) {
      FINISH(0);
      FINISH(WITH_GELU);
      FINISH(WITH_RESIDUAL);
      FINISH(WITH_GELU | WITH_RESIDUAL);
    }
    if (y == spare) {
      const float step = g->out_scale[r % g->scales];
      for (i64 j = 0; j < columns; j++) out->codes[place + j] = (int8_t)nearest(clamp(y[j] / step, CODE_MAX));
    }
  }
}

/* Rows [from, to) times a panel. A tile is finished while the next one is multiplied, since reading a tile right after
   AMX has stored it stalls. */
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

/* A row of hidden floats, which lie in panels, to codes and their scale; out_scale: null, or a static one. */
static void quantize_hidden(const float *hidden, i64 step, i64 n, i64 rotation, const float *out_scale, float *row,
                            int8_t *codes, float *scale) {
  for (i64 first = 0; first < n; first += MAX_WIDTH, hidden += step)
    memcpy(row + first, hidden, 4 * min_of(MAX_WIDTH, n - first));
  if (rotation) rotate_row(row, n, rotation);
  quantize_row(row, n, out_scale, codes, scale);
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
   scale for each row, row_scale [m], of rows that are rotated first if asked, where the scale is that of out_scale if
   there is one. */
int vi_linear(const int8_t *codes, const float *x_scale, const int8_t *weight, const float *weight_scale,
              const float *bias, const float *gamma, const float *residual, const float *out_scale, i64 scales,
              int gelu, i64 rotation, i64 m, i64 n, i64 k, int32_t *out_sums, float *out_floats, int8_t *out_codes,
              float *row_scale, int threads) {
  Linear g = {codes, weight, x_scale, weight_scale, bias, gamma, residual, out_scale, scales, m, n, k, gelu};
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
            quantize_hidden(out.hidden + (row - begin) * MAX_WIDTH, at_once * MAX_WIDTH, n, rotation,
                            out_scale ? out_scale + row % scales : NULL, spare, out_codes + row * n, row_scale + row);
        }
      }
      threads_end();
    }
  }
  free(p.x), free(p.panels), free(p.excess), free(zeros), free(rows), free(out.hidden);
  return failed ? OUT_OF_MEMORY : 0;
}
