/* The row-wise functions of a training step on a CPU, for float32 and bfloat16. What they compute is written plainly in twins.py.
 *
 * native.py builds this file at first use. It includes itself twice: what comes first is shared, the rest, and slots.c, is compiled with
 * REAL = float and with REAL = bfloat16. Arithmetic is in float32; a result is rounded once, when it is stored.
 *
 * A matrix is a pointer and the distance between its rows in elements; the elements of a row are neighbours. Rows go to the threads of the
 * OpenMP runtime that torch has loaded.
 *
 * IEEE rules hold, except that products and sums may fuse: no -ffast-math, because a loss that is not a number must stay one, and because
 * that flag makes a library turn off denormal numbers for the whole process. Sums that may be reordered say so: `omp simd reduction`. */
#ifndef REAL
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bfloat16;

#define PRAGMA(text) _Pragma(#text)
#define ENOUGH(elements) ((elements) > 32768) /* to be worth waking threads for: torch's own limit */
#define EACH_ROW(elements) PRAGMA(omp parallel for schedule(static) if (ENOUGH(elements)))
#define EACH_ROW_AS_IT_COMES(elements, rows) PRAGMA(omp parallel for schedule(dynamic, rows) if (ENOUGH(elements)))
#define SIMD PRAGMA(omp simd)
#define SIMD_SUM(s) PRAGMA(omp simd reduction(+ : s))
#define SIMD_MAX(m) PRAGMA(omp simd reduction(max : m))

static inline float from_bits(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t to_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

static inline float widen(bfloat16 x) { return from_bits((uint32_t)x << 16); }

/* To the nearest, ties to even. A NaN stays one if its lower half is 0, as it is in those that arithmetic makes and that bfloat16 has. */
static inline bfloat16 narrow(float x) { return (bfloat16)((to_bits(x) + 0x7fffu + ((to_bits(x) >> 16) & 1u)) >> 16); }

/* e^x = 2^n · e^r with |r| ≤ ln 2 / 2, and e^r by a polynomial fitted to 1.1e-7. 0 below -87.3, inf above 88.4; NaN stays. */
static inline float exponential(float x) {
    const float magic = 0x1.8p23f; /* adding it rounds to an integer, which then stands in the lowest bits */
    float bounded = x > 88.4f ? 88.4f : x;
    float shifted = bounded * 0x1.715476p+0f + magic;
    float r = bounded - (shifted - magic) * 0x1.62e430p-1f;
    float p = 0x1.0eb598p-7f;
    p = p * r + 0x1.573cfap-5f;
    p = p * r + 0x1.555cf4p-3f;
    p = p * r + 0x1.fffdbep-2f;
    p = p * r + 0x1.fffff0p-1f;
    p = p * r + 1.0f;
    float power = from_bits((to_bits(shifted) + 127u) << 23);
    return x < -87.3f ? 0.0f : p * power;
}

/* Both activations are a · sigmoid(s(a)), and their derivative is sigmoid · (1 + a · (1 - sigmoid) · s'(a)) */
#define G1 1.5957691216057308f  /* 2 · sqrt(2 / pi), of gelu's tanh form: s(a) = G1 · a + G3 · a³; silu's s(a) is a */
#define G3 0.07135481282052213f /* G1 · 0.044715 */
static inline float gate_sigmoid(float a, int gelu) { return 1.0f / (1.0f + exponential(gelu ? -a * (G1 + G3 * a * a) : -a)); }
static inline float gate_slope(float a, int gelu) { return gelu ? G1 + 3.0f * G3 * a * a : 1.0f; }

/* Dropout's hash: lowbias32 (Wellons), in which each bit of x flips each bit of the result with a chance of a half */
static inline uint32_t mixed(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

typedef struct { uint32_t threshold; float scale; int64_t salt; long first; } Dropping; /* first: the column of a matrix's first */

static inline uint32_t token_word(int64_t key, Dropping d) {
    uint64_t k = (uint64_t)(key ^ d.salt);
    return mixed(mixed((uint32_t)k) ^ (uint32_t)(k >> 32)) + (uint32_t)d.first;
}

static inline float drop_factor(uint32_t word, long j, Dropping d) { return mixed(word + (uint32_t)j) >= d.threshold ? d.scale : 0.0f; }

/* The part of a row of scores that is worked on: what the query sees, its ends moved out to whole vectors */
typedef struct { long queries, keys, low, high; } Visible;
typedef struct { long start, stop; } Range;
#define VECTOR 32
#define KEPT 8192 /* a row of at most so many keeps its exponentials on the stack; a longer one computes them twice */

static inline Range seen_keys(long i, Visible v) {
    Range seen = {v.low + i > 0 ? v.low + i : 0, v.high + i + 1 < v.keys ? v.high + i + 1 : v.keys};
    return i < v.queries && seen.start < seen.stop ? seen : (Range){0, 0};
}

static inline Range whole_vectors(Range seen, long width) {
    long stop = (seen.stop + VECTOR - 1) / VECTOR * VECTOR;
    return (Range){seen.start / VECTOR * VECTOR, stop < width ? stop : width};
}

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAMED(f) JOIN(f, REAL)

#define REAL float
#define LOAD(x) (x)
#define STORE(x) (x)
#include __FILE__
#undef REAL
#undef LOAD
#undef STORE

#define REAL bfloat16
#define LOAD(x) widen(x)
#define STORE(x) narrow(x)
#include __FILE__

#else /* once per type */

static inline float NAMED(dot)(const REAL *a, const REAL *b, long width) {
    float sum = 0.0f;
    SIMD_SUM(sum) for (long j = 0; j < width; j++) sum += LOAD(a[j]) * LOAD(b[j]);
    return sum;
}

void NAMED(rms_norm)(const REAL *x, long x_row, const float *weight, REAL *out, long out_row, float *rstd, long rows, long width,
                     float eps) {
    EACH_ROW(rows * width)
    for (long i = 0; i < rows; i++) {
        const REAL *a = x + i * x_row;
        REAL *o = out + i * out_row;
        float r = rstd[i] = 1.0f / sqrtf(NAMED(dot)(a, a, width) / width + eps);
        SIMD for (long j = 0; j < width; j++) o[j] = STORE(LOAD(a[j]) * r * weight[j]);
    }
}

/* dx = residual + r · weight · dy - x · r³ · mean(weight · dy · x); residual may be NULL */
void NAMED(rms_norm_backward)(const REAL *dy, long dy_row, const REAL *x, long x_row, const float *weight, const float *rstd,
                              const REAL *residual, long residual_row, REAL *dx, long rows, long width) {
    EACH_ROW(rows * width)
    for (long i = 0; i < rows; i++) {
        const REAL *g = dy + i * dy_row, *a = x + i * x_row, *s = residual + i * residual_row;
        REAL *o = dx + i * width;
        float r = rstd[i], sum = 0.0f;
        SIMD_SUM(sum) for (long j = 0; j < width; j++) sum += LOAD(g[j]) * weight[j] * LOAD(a[j]);
        float e = sum * r * r * r / width;
        if (residual)
            SIMD for (long j = 0; j < width; j++) o[j] = STORE(LOAD(s[j]) + (LOAD(g[j]) * weight[j] * r - LOAD(a[j]) * e));
        else
            SIMD for (long j = 0; j < width; j++) o[j] = STORE(LOAD(g[j]) * weight[j] * r - LOAD(a[j]) * e);
    }
}

/* 1 / root mean square of each head of a row, all before the first is needed: sums that wait for nothing overlap (rotate: 1.7 × faster) */
static inline void NAMED(head_rstds)(const REAL *a, long heads, long d, float eps, float *rstds) {
    for (long h = 0; h < heads; h++) rstds[h] = NAMED(dot)(a + h * d, a + h * d, d);
    SIMD for (long h = 0; h < heads; h++) rstds[h] = 1.0f / sqrtf(rstds[h] / d + eps);
}

/* Heads by node: `places` has for each place in memory a token (or -1: nothing, zeros), and for that place's node its first place, the
 * place counted from there, and how many there are; there heads · places · d elements are neighbours. */
static inline long NAMED(head_of)(const int64_t *place, long heads, long d) { return (place[1] * heads + place[2]) * d; }

/* Rows [heads · d] to heads by node, each normed (not if weight is NULL), and its halves (u, v) turned by the token's angle (not if NULL) */
void NAMED(rotate)(const REAL *x, long x_row, const float *weight, float eps, const float *cosine, const float *sine,
                   const int64_t *places, REAL *out, long num_places, long heads, long d) {
    long half = d / 2;
    EACH_ROW(num_places * heads * d)
    for (long p = 0; p < num_places; p++) {
        const int64_t *place = places + 4 * p;
        long i = place[0], out_head = place[3] * d;
        REAL *to = out + NAMED(head_of)(place, heads, d);
        if (i < 0 || !cosine) {
            for (long h = 0; h < heads; h++)
                if (i < 0) memset(to + h * out_head, 0, d * sizeof(REAL));
                else memcpy(to + h * out_head, x + i * x_row + h * d, d * sizeof(REAL));
            continue;
        }
        const float *c = cosine + i * half, *s = sine + i * half;
        float rstds[heads];
        if (weight) NAMED(head_rstds)(x + i * x_row, heads, d, eps, rstds);
        for (long h = 0; h < heads; h++) {
            const REAL *a = x + i * x_row + h * d;
            REAL *o = to + h * out_head;
            if (weight)
                SIMD for (long j = 0; j < half; j++) {
                    float u = LOAD(a[j]) * rstds[h] * weight[j], v = LOAD(a[j + half]) * rstds[h] * weight[j + half];
                    o[j] = STORE(u * c[j] - v * s[j]);
                    o[j + half] = STORE(v * c[j] + u * s[j]);
                }
            else
                SIMD for (long j = 0; j < half; j++) {
                    float u = LOAD(a[j]), v = LOAD(a[j + half]);
                    o[j] = STORE(u * c[j] - v * s[j]);
                    o[j + half] = STORE(v * c[j] + u * s[j]);
                }
        }
    }
}

/* Σ t · weight · x of one head, with t the gradient turned back */
static inline float NAMED(head_sum)(const REAL *g, const REAL *a, const float *weight, const float *c, const float *s, long half) {
    float sum = 0.0f;
    SIMD_SUM(sum) for (long j = 0; j < half; j++) {
        float y = LOAD(g[j]), z = LOAD(g[j + half]);
        sum += (y * c[j] + z * s[j]) * weight[j] * LOAD(a[j]) + (z * c[j] - y * s[j]) * weight[j + half] * LOAD(a[j + half]);
    }
    return sum;
}

/* Turned back, and then as in rms_norm_backward */
void NAMED(rotate_backward)(const REAL *g, const int64_t *places, const REAL *x, long x_row, const float *weight, float eps,
                            const float *cosine, const float *sine, REAL *out, long out_row, long num_places, long heads, long d) {
    long half = d / 2;
    EACH_ROW(num_places * heads * d)
    for (long p = 0; p < num_places; p++) {
        const int64_t *place = places + 4 * p;
        long i = place[0], g_head = place[3] * d;
        if (i < 0) continue;
        const REAL *a = x + i * x_row, *b = g + NAMED(head_of)(place, heads, d);
        REAL *o = out + i * out_row;
        if (!cosine) {
            for (long h = 0; h < heads; h++) memcpy(o + h * d, b + h * g_head, d * sizeof(REAL));
            continue;
        }
        const float *c = cosine + i * half, *s = sine + i * half;
        float rstds[heads], sums[heads];
        if (weight) {
            NAMED(head_rstds)(a, heads, d, eps, rstds);
            for (long h = 0; h < heads; h++) sums[h] = NAMED(head_sum)(b + h * g_head, a + h * d, weight, c, s, half);
        }
        for (long h = 0; h < heads; h++, a += d, b += g_head, o += d) {
            if (weight) {
                float r = rstds[h], e = sums[h] * r * r * r / d;
                SIMD for (long j = 0; j < half; j++) {
                    float y = LOAD(b[j]), z = LOAD(b[j + half]);
                    o[j] = STORE((y * c[j] + z * s[j]) * weight[j] * r - LOAD(a[j]) * e);
                    o[j + half] = STORE((z * c[j] - y * s[j]) * weight[j + half] * r - LOAD(a[j + half]) * e);
                }
            } else {
                SIMD for (long j = 0; j < half; j++) {
                    float y = LOAD(b[j]), z = LOAD(b[j + half]);
                    o[j] = STORE(y * c[j] + z * s[j]);
                    o[j + half] = STORE(z * c[j] - y * s[j]);
                }
            }
        }
    }
}

/* A row of gate_up is gate, then up */
void NAMED(gate)(const REAL *gate_up, long gate_up_row, REAL *out, long out_row, long rows, long width, int gelu) {
    EACH_ROW(rows * width)
    for (long i = 0; i < rows; i++) {
        const REAL *g = gate_up + i * gate_up_row, *u = g + width;
        REAL *o = out + i * out_row;
        SIMD for (long j = 0; j < width; j++) {
            float a = LOAD(g[j]);
            o[j] = STORE(a * gate_sigmoid(a, gelu) * LOAD(u[j]));
        }
    }
}

void NAMED(gate_backward)(const REAL *dh, long dh_row, const REAL *gate_up, long gate_up_row, REAL *d_gate_up, long d_gate_up_row,
                          REAL *hidden, long hidden_row, long rows, long width, int gelu) {
    EACH_ROW(rows * width)
    for (long i = 0; i < rows; i++) {
        const REAL *g = gate_up + i * gate_up_row, *u = g + width, *d = dh + i * dh_row;
        REAL *dg = d_gate_up + i * d_gate_up_row, *du = dg + width, *o = hidden + i * hidden_row;
        SIMD for (long j = 0; j < width; j++) {
            float a = LOAD(g[j]), b = LOAD(u[j]), e = LOAD(d[j]), s = gate_sigmoid(a, gelu);
            o[j] = STORE(a * s * b);
            du[j] = STORE(a * s * e);
            dg[j] = STORE(e * b * s * (1.0f + a * (1.0f - s) * gate_slope(a, gelu)));
        }
    }
}

static inline void NAMED(fill)(REAL *a, long start, long stop, float value) {
    for (long j = start; j < stop; j++) a[j] = STORE(value);
}

/* What the query does not see: 0 outside the range that is worked on, `ignored` inside it */
static inline void NAMED(cover)(REAL *a, Range seen, Range range, long width, float ignored) {
    memset(a, 0, range.start * sizeof(REAL));
    NAMED(fill)(a, range.start, seen.start, ignored);
    NAMED(fill)(a, seen.stop, range.stop, ignored);
    memset(a + range.stop, 0, (width - range.stop) * sizeof(REAL));
}

static inline float NAMED(highest)(const REAL *a, long width) {
    float highest = -INFINITY;
    SIMD_MAX(highest) for (long j = 0; j < width; j++) highest = LOAD(a[j]) > highest ? LOAD(a[j]) : highest;
    return highest;
}

/* In place a → e^(scale · a - lse) · factor; returns lse = log Σ e^(scale · a), summed relative to the highest so that none is inf */
static inline float NAMED(softmax_row)(REAL *a, long width, float scale, float factor) {
    float terms[KEPT], shift = NAMED(highest)(a, width) * scale, sum = 0.0f;
    if (width <= KEPT) {
        SIMD_SUM(sum) for (long j = 0; j < width; j++) { terms[j] = exponential(LOAD(a[j]) * scale - shift); sum += terms[j]; }
        factor /= sum;
        SIMD for (long j = 0; j < width; j++) a[j] = STORE(terms[j] * factor);
    } else {
        SIMD_SUM(sum) for (long j = 0; j < width; j++) sum += exponential(LOAD(a[j]) * scale - shift);
        factor /= sum;
        SIMD for (long j = 0; j < width; j++) a[j] = STORE(exponential(LOAD(a[j]) * scale - shift) * factor);
    }
    return shift + logf(sum);
}

void NAMED(softmax)(REAL *scores, float *lse, long heads, long m, long width, float scale, long queries, long keys, long low, long high) {
    Visible visible = {queries, keys, low, high};
    EACH_ROW_AS_IT_COMES(heads * m * width, 32)
    for (long r = 0; r < heads * m; r++) {
        REAL *a = scores + r * width;
        Range seen = seen_keys(r % m, visible), range = whole_vectors(seen, width);
        NAMED(cover)(a, seen, range, width, -INFINITY);
        lse[r] = seen.stop ? NAMED(softmax_row)(a + range.start, range.stop - range.start, scale, 1.0f) : -INFINITY;
    }
}

/* scores → P = e^(scale · score - lse), dP → P · (dP - delta) · scale */
void NAMED(softmax_backward)(REAL *scores, REAL *dp, const float *lse, long lse_row, const float *delta, long delta_row, long heads, long m,
                             long width, float scale, long queries, long keys, long low, long high) {
    Visible visible = {queries, keys, low, high};
    EACH_ROW_AS_IT_COMES(heads * m * width, 32)
    for (long r = 0; r < heads * m; r++) {
        long i = r % m, h = r / m;
        REAL *a = scores + r * width, *b = dp + r * width;
        Range seen = seen_keys(i, visible), range = whole_vectors(seen, width);
        NAMED(cover)(a, seen, range, width, -INFINITY);
        NAMED(cover)(b, seen, range, width, 0.0f);
        if (!seen.stop) continue;
        float l = lse[h * lse_row + i], d = delta[h * delta_row + i];
        SIMD for (long j = range.start; j < range.stop; j++) {
            float p = exponential(LOAD(a[j]) * scale - l);
            a[j] = STORE(p);
            b[j] = STORE(p * (LOAD(b[j]) - d) * scale);
        }
    }
}

/* Each head's dot product of two rows: attention's delta, of the output and its gradient */
void NAMED(head_dots)(const REAL *a, long a_row, const REAL *b, long b_row, float *out, long tokens, long heads, long d) {
    EACH_ROW(tokens * heads * d)
    for (long t = 0; t < tokens; t++) {
        for (long h = 0; h < heads; h++) {
            const REAL *x = a + t * a_row + h * d, *y = b + t * b_row + h * d;
            float sum = 0.0f;
            SIMD_SUM(sum) for (long j = 0; j < d; j++) sum += LOAD(x[j]) * LOAD(y[j]);
            out[h * tokens + t] = sum;
        }
    }
}

/* Two partial attentions, each weighed by its share of the sum. One that saw nothing (lse = -inf) is not read. */
void NAMED(merge)(REAL *out, long out_head, long out_row, float *lse, long lse_row, const REAL *part, long part_head, long part_row,
                  const float *part_lse, long part_lse_row, long heads, long m, long d) {
    EACH_ROW(heads * m * d)
    for (long r = 0; r < heads * m; r++) {
        long h = r / m, i = r % m;
        REAL *x = out + h * out_head + i * out_row;
        const REAL *y = part + h * part_head + i * part_row;
        float *total = lse + h * lse_row + i, a = *total, b = part_lse[h * part_lse_row + i];
        if (b == -INFINITY) continue;
        if (a == -INFINITY) {
            memcpy(x, y, d * sizeof(REAL));
            *total = b;
        } else {
            float shift = a > b ? a : b, ea = exponential(a - shift), eb = exponential(b - shift), p = ea / (ea + eb), q = eb / (ea + eb);
            SIMD for (long j = 0; j < d; j++) x[j] = STORE(LOAD(x[j]) * p + LOAD(y[j]) * q);
            *total = shift + logf(ea + eb);
        }
    }
}

/* In place logits → count · (softmax - onehot); loss = count · (lse - logit of the target) */
void NAMED(cross_entropy)(REAL *logits, long logits_row, const int64_t *targets, const int64_t *counts, float *loss, long rows,
                          long width) {
    EACH_ROW_AS_IT_COMES(rows * width, 1)
    for (long i = 0; i < rows; i++) {
        REAL *a = logits + i * logits_row;
        float count = counts[i], target = LOAD(a[targets[i]]), lse = NAMED(softmax_row)(a, width, 1.0f, count);
        loss[i] = (lse - target) * count;
        a[targets[i]] = STORE((expf(target - lse) - 1.0f) * count);
    }
}

static inline void NAMED(dropped)(const REAL *x, long x_row, const int64_t *keys, REAL *out, long out_row, long rows, long width,
                                  Dropping dropping, int add) {
    EACH_ROW(rows * width)
    for (long i = 0; i < rows; i++) {
        const REAL *a = x + i * x_row;
        REAL *o = out + i * out_row;
        uint32_t word = token_word(keys[i], dropping);
        SIMD for (long j = 0; j < width; j++) {
            float kept = LOAD(a[j]) * drop_factor(word, j, dropping);
            o[j] = STORE(add ? LOAD(o[j]) + kept : kept);
        }
    }
}

void NAMED(drop)(const REAL *x, long x_row, const int64_t *keys, REAL *out, long out_row, long rows, long width, int64_t salt,
                 uint32_t threshold, float scale, long first) {
    NAMED(dropped)(x, x_row, keys, out, out_row, rows, width, (Dropping){threshold, scale, salt, first}, 0);
}

void NAMED(drop_add)(REAL *out, long out_row, const REAL *x, long x_row, const int64_t *keys, long rows, long width, int64_t salt,
                     uint32_t threshold, float scale, long first) {
    NAMED(dropped)(x, x_row, keys, out, out_row, rows, width, (Dropping){threshold, scale, salt, first}, 1);
}
#include "slots.c"
#endif
