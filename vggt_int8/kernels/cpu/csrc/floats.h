/* Sums, quantization and functions of floats. NaN passes through every comparison but that of `larger`. */

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

/* Compilers may not reorder float additions, so by themselves they add the lanes one after another. */
static inline float sum_of_lanes(floats x) {
#define ADD_LANES(d) x += ACROSS(x, d);
  FOR_EACH_DISTANCE(ADD_LANES)
  return x[0];
}

static inline int32_t sum_of_ints(ints x) {
  FOR_EACH_DISTANCE(ADD_LANES)
  return x[0];
}

static inline float largest_lane(floats x) {
#define LARGER_LANES(d) x = larger(x, ACROSS(x, d));
  FOR_EACH_DISTANCE(LARGER_LANES)
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

/* Adding it to |x| < 2^22 rounds to a whole number and leaves that in the last bits. */
static const float ROUNDER = 12582912.0f; /* 1.5 * 2^23 */

/* 2^x for x <= 0 within 3e-6 of itself, exact at 0, below -125 that of -125: on what rounding leaves, [-0.5, 0.5], a
   polynomial with equal relative errors, to whose exponent the whole part is added. */
static inline floats power_of_two(floats x) {
  x = larger(x, (floats){0} - 125.0f);
  floats shifted = x + ROUNDER, f = x - (shifted - ROUNDER), p = (floats){0} + 9.582853236e-03f;
  p = fused(p, f, (floats){0} + 5.590642594e-02f);
  p = fused(p, f, (floats){0} + 2.402409862e-01f);
  p = fused(p, f, (floats){0} + 6.931241933e-01f);
  p = fused(p, f, (floats){0} + 1.0f);
  return (floats)((ints)p + ((ints)shifted << 23));
}

/* x / y as division rounds it, without dividing: the remainder of the product with the rounded inverse is exact and
   corrects it. Proven by Markstein for every y but those whose fraction is all ones, where nothing over- or
   underflows. */
static inline float quotient(float x, float y, float inverse) {
  float q = x * inverse;
  return fmaf(fmaf(-q, y, x), inverse, q);
}

static inline int divides_by_inverse(float y) {
  return y > 0x1p-60f && y < 0x1p60f && (bits_of(y) & 0x7fffff) != 0x7fffff;
}

/* e^x - 1, and e^x to `exp`, within 3e-7 of themselves (e^x below 1.7e-38 is 0): 2^n times a polynomial of the rest of x, in [-0.35, 0.35]. */
static inline float expm1_of(float x, float *exp) {
  float capped = x > 89.0f ? 89.0f : x < -87.0f ? -87.0f : x, shifted = fmaf(capped, 1.44269504f, ROUNDER);
  float n = shifted - ROUNDER, r = fmaf(n, -1.42860677e-06f, fmaf(n, -0.693145752f, capped));
  float p = fmaf(r, 1.0f / 5040, 1.0f / 720);
  p = fmaf(p, r, 1.0f / 120);
  p = fmaf(p, r, 1.0f / 24);
  p = fmaf(p, r, 1.0f / 6);
  p = fmaf(p, r, 0.5f);
  p = fmaf(p * r, r, r);
  /* Half of 2^n, since 2^128 would overflow although the product may not. */
  float half = float_of((int32_t)(((uint32_t)bits_of(shifted) << 23) + (126u << 23)));
  *exp = x < -87.0f ? 0 : 2 * fmaf(p, half, half);
  return x < -87.0f ? -1 : 2 * fmaf(p, half, half - 0.5f);
}

/* Each run of `group` numbers times the Hadamard matrix of that order over the root of it: sums and differences of pairs
   at growing distances, first in lanes of one vector, then of whole vectors. group is a power of two, at least 2. */
static inline void rotate_row(float *x, i64 k, i64 group) {
  const float factor = (float)(1 / sqrt((double)group));
  i64 i = 0;
  if (group >= LANES) {
    for (; i < k; i += LANES) {
      floats y = *(const loose_floats *)(x + i) * factor;
#define ADD_AND_SUBTRACT(d)                                                      \
  {                                                                              \
    const ints minus = ((LANE_NUMBERS & (d)) != 0) & INT32_MIN;                  \
    y = ACROSS(y, d) + (floats)((ints)y ^ minus);                                \
  }
      FOR_EACH_DISTANCE(ADD_AND_SUBTRACT)
      *(loose_floats *)(x + i) = y;
    }
  } else {
    for (; i < k; i++) x[i] *= factor;
  }
  for (i64 d = group >= LANES ? LANES : 1; d < group; d *= 2)
    for (i64 first = 0; first < k; first += 2 * d) {
      float *a = x + first, *b = a + d;
#pragma omp simd
      for (i64 j = 0; j < d; j++) {
        float one = a[j], other = b[j];
        a[j] = one + other;
        b[j] = one - other;
      }
    }
}

static inline void quantize_row(const float *x, i64 k, const float *input_scale, int8_t *codes, float *scale) {
  const float absmax = largest(x, k);
  float step = input_scale ? *input_scale : absmax / CODE_MAX;
  if (!input_scale && step == 0) step = 1;
  *scale = input_scale ? step + absmax * 0 : step; /* NaN or inf must reach the result, and codes cannot carry it */
  const float inverse = 1 / step;
  if (divides_by_inverse(step) && absmax * inverse < INFINITY) {
#pragma omp simd
    for (i64 i = 0; i < k; i++) codes[i] = (int8_t)nearest(clamp(quotient(x[i], step, inverse), CODE_MAX));
  } else {
#pragma omp simd
    for (i64 i = 0; i < k; i++) codes[i] = (int8_t)nearest(clamp(x[i] / step, CODE_MAX));
  }
}

/* y = LayerNorm(x) * weight + bias; x may be y. */
static inline __attribute__((always_inline)) void norm_row(const float *x, i64 n, const float *weight,
                                                           const float *bias, float eps, float *y) {
  float mean = moment(1, x, n, 0) / n, factor = 1 / sqrtf(moment(2, x, n, mean) / n + eps);
#pragma omp simd
  for (i64 i = 0; i < n; i++) y[i] = fmaf((x[i] - mean) * factor, weight[i], bias[i]);
}
