/* Convolutions of 16-bit activations with INT8 weights. */

typedef struct {
  i64 c, w, n, kh, kw, stride_x, pad_x, out_h, out_w;
  i64 cp;     /* channels, rounded up to pairs */
  i64 pitch;  /* elements of a padded row of the input */
  i64 run;    /* taps whose input lies in one piece: a row of them, or one where each has a sum of its own */
  i64 groups; /* 4-byte groups of a run in a panel */
  int width;  /* of a panel */
} Convolution;

enum { LARGEST_CODE = 32767, FINE_ENOUGH = 16384 };

/* weight [n, c, kh, kw] -> columns [first, first + LANES) of a panel [runs][groups][width][4 bytes]; rows: room for them
   one after another. */
static void pack_taps(const Convolution *v, int planes, const int8_t *weight, i64 first, char *rows, char *panel) {
  const i64 taps = v->kh * v->kw, pitch = taps / v->run * v->groups * 4;
  memset(rows, 0, LANES * pitch);
  for (i64 j = 0; j < min_of(LANES, v->n - first); j++)
    for (i64 tap = 0; tap < taps; tap++) {
      const int8_t *codes = weight + (first + j) * v->c * taps + tap;
      char *run = rows + j * pitch + tap / v->run * v->groups * 4;
      const i64 place = tap % v->run * v->cp;
      if (planes)
        for (i64 i = 0; i < v->c; i++) ((int8_t *)run)[place + i] = codes[i * taps];
      else
        for (i64 i = 0; i < v->c; i++) ((int16_t *)run)[place + i] = codes[i * taps];
    }
  pack_groups(rows, pitch, LANES, pitch / 4, v->width, 0, (int32_t *)panel + first % v->width);
}

/* The largest sum of |weight| of an output, over all taps or over one. */
static i64 largest_sum(const Convolution *v, const int8_t *weight, int all_taps) {
  const i64 taps = v->kh * v->kw, sums = all_taps ? 1 : taps, step = all_taps ? 1 : taps;
  i64 most = 1;
  for (i64 j = 0; j < v->n; j++)
    for (i64 tap = 0; tap < sums; tap++) {
      const int8_t *codes = weight + j * v->c * taps + tap;
      int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
      for (i64 i = 0; i < v->c * taps; i += step) sum += abs(codes[i]);
      most = max_of(most, sum);
    }
  return most;
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

/* The epilogue of some columns of sums: writes y [columns], which also holds the sums of earlier taps. */
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

x [frames, h, w, c] becomes integers of 16 bits with a scale for each frame, whose largest code keeps every sum in
int32.
finite [frames]: 0 where a frame holds NaN or inf, which integers cannot carry; it is not computed then. */
int vi_conv(const float *x, const int8_t *weight, const float *weight_scale, const float *bias, const float *addend,
            int relu, i64 frames, i64 c, i64 h, i64 w, i64 n, i64 kh, i64 kw, i64 stride_y, i64 stride_x, i64 pad_y,
            i64 pad_x, float *out, uint8_t *finite, int threads) {
  Convolution v = {.c = c, .w = w, .n = n, .kh = kh, .kw = kw, .stride_x = stride_x, .pad_x = pad_x,
                   .out_h = (h + 2 * pad_y - kh) / stride_y + 1, .out_w = (w + 2 * pad_x - kw) / stride_x + 1,
                   .cp = round_up(c, 2), .width = MAX_WIDTH};
  i64 most = largest_sum(&v, weight, 1);
  const int is_fine = INT32_MAX / most >= FINE_ENOUGH; /* else the sums of single taps become floats, and are added */
  if (!is_fine) most = largest_sum(&v, weight, 0);
  const float limit = (float)min_of(LARGEST_CODE, INT32_MAX / most);
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
  const i64 at_once = max_of(1, min_of(frames, FRAMES_CODES / frame_size));
  const i64 panels = parts_of(n, v.width), run_bytes = v.groups * v.width * 4;
  const i64 runs = kh * kw / v.run, together = is_fine ? kh : 1, panel_bytes = runs * run_bytes;
  char *packed = allocate(panels * panel_bytes);
  int16_t *codes = allocate(2 * (at_once * frame_size + 2 * slack));
  float *lines = allocate(4 * at_once * (h + 1));
  char *taps = allocate(threads * LANES * runs * v.groups * 4);
  int failed = !packed || !codes || !lines || !taps;
  if (!failed) {
    float *scales = lines + at_once * h;
    int8_t *high = planes ? (int8_t *)codes : NULL;
    uint8_t *low = planes ? (uint8_t *)codes + at_once * frame_size + slack : NULL;
#pragma omp parallel num_threads(threads)
    {
      int32_t sums[2][2 * AMX_ROWS * MAX_WIDTH] __attribute__((aligned(64)));
      threads_begin();
#pragma omp for schedule(static)
      for (i64 first = 0; first < panels * v.width; first += LANES)
        pack_taps(&v, planes, weight, first, taps + omp_get_thread_num() * LANES * runs * v.groups * 4,
                  packed + first / v.width * panel_bytes);
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
  free(packed), free(codes), free(lines), free(taps);
  return failed ? OUT_OF_MEMORY : 0;
}
