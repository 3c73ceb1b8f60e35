/* LayerNorm, quantization, RoPE, resizing and the last layer of a dense head: one pass over memory each. */

/* input_scale: null, or that of row m is input_scale[m % scales]. */
int vi_quantize_rows(const float *x, i64 rows, i64 k, const float *input_scale, i64 scales, i64 rotation,
                     int8_t *codes, float *scale, int threads) {
  float *rotated = rotation ? allocate(4 * round_up(k, 16) * threads) : NULL;
  if (rotation && !rotated) return OUT_OF_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 m = 0; m < rows; m++) {
    const float *row = x + m * k;
    if (rotation) {
      float *y = rotated + round_up(k, 16) * omp_get_thread_num();
      memcpy(y, row, 4 * k);
      rotate_row(y, k, rotation);
      row = y;
    }
    quantize_row(row, k, input_scale ? input_scale + m % scales : NULL, codes + m * k, scale + m);
  }
  free(rotated);
  return 0;
}

/* rotation: at least 2. */
int vi_rotate_rows(const float *x, i64 rows, i64 k, i64 rotation, float *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 m = 0; m < rows; m++) {
    memcpy(out + m * k, x + m * k, 4 * k);
    rotate_row(out + m * k, k, rotation);
  }
  return 0;
}

int vi_layer_norm_quantize(const float *x, i64 rows, i64 k, const float *weight, const float *bias, float eps,
                           const float *input_scale, i64 scales, i64 rotation, int8_t *codes, float *scale,
                           int threads) {
  float *normed = allocate(4 * round_up(k, 16) * threads);
  if (!normed) return OUT_OF_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 m = 0; m < rows; m++) {
    float *y = normed + round_up(k, 16) * omp_get_thread_num();
    norm_row(x + m * k, k, weight, bias, eps, y);
    if (rotation) rotate_row(y, k, rotation);
    quantize_row(y, k, input_scale ? input_scale + m % scales : NULL, codes + m * k, scale + m);
  }
  free(normed);
  return 0;
}

/* first, second [frames, tokens, k] -> [frames, tokens - skip, 2k] */
int vi_layer_norm_halves(const float *first, const float *second, i64 frames, i64 tokens, i64 skip, i64 k,
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
  return 0;
}

static inline __attribute__((always_inline)) void norm_rope_head(
    float *x, const i64 dim, const i64 apart, const float *weight, const float *bias, float eps, const float *cosine,
    const float *sine) {
  if (weight) norm_row(x, dim, weight, bias, eps, x);
  for (i64 first = 0; first < dim; first += 2 * apart) {
    float *a = x + first, *b = a + apart;
    const float *ca = cosine + first, *cb = ca + apart, *sa = sine + first, *sb = sa + apart;
#pragma omp simd
    for (i64 j = 0; j < apart; j++) {
      float one = a[j], other = b[j];
      a[j] = one * ca[j] - other * sa[j];
      b[j] = other * cb[j] + one * sb[j];
    }
  }
}

/* The first of x [tokens, parts, heads, dim] in place, queries, and if `turned` is 2 the second, keys; rope [2, period,
   dim]; channels of a pair are `apart`; weight NULL: no norm */
int vi_norm_rope(float *x, i64 tokens, i64 parts, i64 heads, i64 dim, i64 turned, const float *q_weight,
                 const float *q_bias, const float *k_weight, const float *k_bias, const float *rope, i64 period,
                 i64 apart, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 t = 0; t < tokens; t++) {
    const float *cosine = rope + t % period * dim, *sine = cosine + period * dim;
    for (i64 i = 0; i < turned * heads; i++) {
      float *head = x + (parts * heads * t + i) * dim;
      const float *weight = i < heads ? q_weight : k_weight, *bias = i < heads ? q_bias : k_bias;
      if (dim == 64 && apart == 16) norm_rope_head(head, 64, 16, weight, bias, eps, cosine, sine);
      else if (dim == 64 && apart == 32) norm_rope_head(head, 64, 32, weight, bias, eps, cosine, sine);
      else norm_rope_head(head, dim, apart, weight, bias, eps, cosine, sine);
    }
  }
  return 0;
}

/* x [frames, h, w, c] -> out [frames, height, width, c]; columns [width, c / 2], rows [height, c / 2] */
int vi_resize(const float *x, i64 frames, i64 h, i64 w, i64 c, i64 height, i64 width, const float *columns,
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
  return 0;
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
int vi_predict(const float *x, i64 pixels, i64 c, const float *weight, const float *bias, i64 n, int inverse_log,
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
  return 0;
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
