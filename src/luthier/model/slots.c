/* Attention of one new token in each of several rows to its row's keys in their slots (model/slots.py); part of pointwise.c, once per type.
 *
 * Keys are taken in tiles, and the sum of what was seen so far is scaled anew where a higher score comes (Milakov and Gimelshein 2018).
 * Rows that begin alike read what they share from one of them, where it stays in the processor's cache: 32 rows of 340 tokens, 300 of them
 * shared, would otherwise read 8.8 MB a layer. */
#define TILE 64

/* Dot products of one query with some keys, four at once: sums that wait for nothing overlap */
static inline void NAMED(scores)(const float *q, const REAL *k, long k_row, long num, long d, float *out) {
    long l = 0;
    for (; l + 4 <= num; l += 4) {
        const REAL *a = k + l * k_row, *b = a + k_row, *c = b + k_row, *e = c + k_row;
        float s = 0.0f, t = 0.0f, u = 0.0f, w = 0.0f;
        PRAGMA(omp simd reduction(+ : s, t, u, w))
        for (long j = 0; j < d; j++) {
            s += q[j] * LOAD(a[j]);
            t += q[j] * LOAD(b[j]);
            u += q[j] * LOAD(c[j]);
            w += q[j] * LOAD(e[j]);
        }
        out[l] = s, out[l + 1] = t, out[l + 2] = u, out[l + 3] = w;
    }
    for (; l < num; l++) {
        float s = 0.0f;
        SIMD_SUM(s) for (long j = 0; j < d; j++) s += q[j] * LOAD(k[l * k_row + j]);
        out[l] = s;
    }
}

/* acc += Σ p · v */
static inline void NAMED(weigh)(const float *p, const REAL *v, long v_row, long num, long d, float *acc) {
    long l = 0;
    for (; l + 4 <= num; l += 4) {
        const REAL *a = v + l * v_row, *b = a + v_row, *c = b + v_row, *e = c + v_row;
        SIMD for (long j = 0; j < d; j++)
            acc[j] += p[l] * LOAD(a[j]) + p[l + 1] * LOAD(b[j]) + p[l + 2] * LOAD(c[j]) + p[l + 3] * LOAD(e[j]);
    }
    for (; l < num; l++)
        SIMD for (long j = 0; j < d; j++) acc[j] += p[l] * LOAD(v[l * v_row + j]);
}

/* Queries [rows, heads · d] and keys and values [places, groups · d] to out [rows, heads · d]. Of each row: the place of its first token,
 * the number of its tokens, the place from where it reads the first of them, and how many it reads there. */
void NAMED(attend)(const REAL *queries, const REAL *keys, const REAL *values, const int64_t *rows, REAL *out, long num_rows, long heads,
                   long groups, long d, long window, float scale) {
    long members = heads / groups, width = groups * d;
    PRAGMA(omp parallel for collapse(2) schedule(dynamic, 1) if (num_rows * heads > 8))
    for (long r = 0; r < num_rows; r++)
        for (long g = 0; g < groups; g++) {
            const int64_t *row = rows + 4 * r;
            long first = row[1] > window ? row[1] - window : 0, of = (r * heads + g * members) * d;
            float q[members * d], acc[members * d], tops[members], sums[members], p[TILE];
            for (long j = 0; j < members * d; j++) q[j] = LOAD(queries[of + j]) * scale, acc[j] = 0.0f;
            for (long m = 0; m < members; m++) tops[m] = -INFINITY, sums[m] = 0.0f;
            for (long start = first, stop; start < row[1]; start = stop) {
                int lent = start < row[3];
                long end = lent ? row[3] : row[1], at = ((lent ? row[2] : row[0]) + start) * width + g * d;
                stop = start + TILE < end ? start + TILE : end;
                for (long m = 0; m < members; m++) {
                    NAMED(scores)(q + m * d, keys + at, width, stop - start, d, p);
                    float top = tops[m], sum = 0.0f, *a = acc + m * d;
                    SIMD_MAX(top) for (long l = 0; l < stop - start; l++) top = p[l] > top ? p[l] : top;
                    float factor = exponential(tops[m] - top);
                    SIMD_SUM(sum) for (long l = 0; l < stop - start; l++) { p[l] = exponential(p[l] - top); sum += p[l]; }
                    sums[m] = sums[m] * factor + sum, tops[m] = top;
                    SIMD for (long j = 0; j < d; j++) a[j] *= factor;
                    NAMED(weigh)(p, values + at, width, stop - start, d, a);
                }
            }
            for (long m = 0; m < members; m++)
                for (long j = 0; j < d; j++) out[of + m * d + j] = STORE(acc[m * d + j] / sums[m]);
        }
}
