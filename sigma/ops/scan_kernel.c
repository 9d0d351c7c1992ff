// Selective scan on the CPU, forward and backward, fused with softplus, skip and SiLU gate.
//
// A vector holds W neighbouring channels of one row; the N states of each are N vectors in the first
// cache, and the sequence is walked once forwards. Sums over states then stay within the lanes, and
// softplus and gate are vectors, too. Backwards the states of CHUNK positions are recomputed from a
// checkpoint instead of stored. Included twice below, for float and double (the latter for gradient
// checks); plain C with the vector extension of GCC and Clang, whatever the processor.
//
// Symbols (Mamba, Gu & Dao 2023, algorithm 2; layouts as in reference.py):
//   h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,   y_t = (C_t h_t + D u_t) silu(z_t),
//   dt_t = softplus(raw_t + bias).
// Sums over rows (gradients of A, D, bias) are taken per block of ROWS rows and added in order by
// the caller, so results do not depend on the number of threads.

#ifndef REAL
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 32
#define CHUNK 64  // positions; four buffers of CHUNK N vectors are to fit the second cache
#define BYTES 64  // of a vector
#define INLINE static inline __attribute__((always_inline))
#define LOG2E 1.44269504088896340736

#define CAT2(a, b) a##_##b
#define CAT(a, b) CAT2(a, b)
#define FN(name) CAT(name, REAL)

typedef int32_t bits_float;
typedef int64_t bits_double;

// 2^f for |f| <= 1/2: Cephes' polynomial for float, the series for double (to 2e-16).
static const float power_float[] = {1.535336188319500e-4f, 1.339887440266574e-3f,
    9.618437357674640e-3f, 5.550332471162809e-2f, 2.402264791363012e-1f, 6.931472028550421e-1f,
    1.0f};
static const double power_double[] = {1.3691488853904128e-12, 2.5678435993488206e-11,
    4.4455382718708116e-10, 7.0549116208011234e-09, 1.0178086009239699e-07, 1.3215486790144309e-06,
    1.5252733804059841e-05, 1.5403530393381608e-04, 1.3333558146428443e-03, 9.6181291076284770e-03,
    5.5504108664821580e-02, 2.4022650695910072e-01, 6.9314718055994531e-01, 1.0};
enum { terms_float = 7, terms_double = 14 };
// log(1 + e) = 2 artanh(s), s = e / (2 + e) <= 1/3: the terms s^(2k+1) / (2k+1) that matter.
enum { artanh_float = 7, artanh_double = 17 };
enum { mantissa_float = 23, mantissa_double = 52, least_float = -126, least_double = -1022 };
// Adding it leaves a whole number in the lowest bits.
static const float round_float = 12582912.0f;
static const double round_double = 6755399441055744.0;

// Within a parallel region there is nobody to return an error to. What is trained is in checkpoints.
static void *claim(size_t bytes) {
    void *place = aligned_alloc(BYTES, bytes);
    if (!place && bytes) {
        fprintf(stderr, "error: no memory for %zu bytes of the selective scan's workspace; use a "
                        "smaller batch, or model.mamba.backend=blocked.\n", bytes);
        abort();
    }
    return place;
}

#define REAL float
#include "scan_kernel.c"
#undef REAL
#define REAL double
#include "scan_kernel.c"

#else

#define W ((long)(BYTES / sizeof(REAL)))
#define V FN(vector)
#define VI FN(lanes)
typedef REAL V __attribute__((vector_size(BYTES)));
typedef FN(bits) VI __attribute__((vector_size(BYTES)));

INLINE V FN(pick)(VI mask, V yes, V no) { return (V)(((VI)yes & mask) | ((VI)no & ~mask)); }

// k lanes of x, zero beyond.
INLINE V FN(load)(const REAL *x, long k) {
    V v = {0};
    if (k == W) memcpy(&v, x, sizeof v);
    else memcpy(&v, x, sizeof(REAL) * (size_t)k);
    return v;
}
INLINE void FN(store)(REAL *x, V v, long k) {
    if (k == W) memcpy(x, &v, sizeof v);
    else memcpy(x, &v, sizeof(REAL) * (size_t)k);
}
INLINE REAL FN(total)(V v) {
    REAL sum = 0;
    for (long i = 0; i < W; i++) sum += v[i];
    return sum;
}

// 2^x for x <= 0 (A is negative, and so are all it is called with); wrong above 2^7.
INLINE V FN(exp2)(V x) {
    V least = (V){0} + (REAL)FN(least);
    x = FN(pick)(x < least, least, x);
    V shifted = x + FN(round), f = x - (shifted - FN(round)), p = (V){0} + FN(power)[0];
    for (int i = 1; i < FN(terms); i++) p = p * f + FN(power)[i];
    return (V)((VI)p + ((VI)shifted << FN(mantissa)));
}

// e^-|x|, from which sigmoid and softplus follow without overflow.
INLINE V FN(decayed)(V x) {
    V minus = FN(pick)(x < 0, x, -x);
    return FN(exp2)(minus * (REAL)LOG2E);
}
INLINE V FN(sigmoid)(V x) {
    V e = FN(decayed)(x);
    return FN(pick)(x < 0, e, (V){0} + 1) / (1 + e);
}

// softplus and its derivative; PyTorch's is x beyond 20, so this is.
INLINE V FN(softplus)(V x, V *slope) {
    V e = FN(decayed)(x), s = e / (2 + e), s2 = s * s, sum = {0};
    for (int k = FN(artanh) - 1; k >= 0; k--) sum = sum * s2 + (REAL)1 / (REAL)(2 * k + 1);
    VI far = x > 20, negative = x < 0;
    *slope = FN(pick)(far, (V){0} + 1, FN(pick)(negative, e, (V){0} + 1) / (1 + e));
    V zero = {0};
    return FN(pick)(far, x, FN(pick)(negative, zero, x) + 2 * s * sum);
}

// (D, N) times a constant -> blocks of (N, W), zero beyond D. The caller frees it.
static V *FN(by_lanes)(long D, long N, const REAL *x, REAL times) {
    long blocks = (D + W - 1) / W;
    V *out = claim(sizeof(V) * (size_t)(blocks * N));
    for (long d = 0; d < blocks * W; d++)
        for (long n = 0; n < N; n++)
            out[d / W * N + n][d % W] = d < D ? x[d * N + n] * times : 0;
    return out;
}

// One position of W channels: h_t from h_{t-1}, and C_t h_t.
INLINE V FN(advance)(long N, V step, V x, const V *a2, const REAL *b, const REAL *c, const V *before,
                     V *after, V *decay) {
    V y = {0};
    for (long n = 0; n < N; n++) {
        V e = FN(exp2)(step * a2[n]), h = e * before[n] + x * b[n];
        after[n] = h;
        if (decay) decay[n] = e;
        y += h * c[n];
    }
    return y;
}

INLINE void FN(forward_n)(long R, long L, long D, long N, const REAL *u, const REAL *raw,
                          const REAL *A, const REAL *B, const REAL *C, const REAL *skip,
                          const REAL *z, const REAL *bias, REAL *y, int threads) {
    long blocks = (D + W - 1) / W;
    V *a2 = FN(by_lanes)(D, N, A, (REAL)LOG2E);
    (void)threads;
#pragma omp parallel num_threads(threads)
    {
        V *h = claim(sizeof(V) * (size_t)N);
#pragma omp for collapse(2) schedule(static)
        for (long r = 0; r < R; r++)
            for (long block = 0; block < blocks; block++) {
                long d = block * W, k = D - d < W ? D - d : W;
                V plus = FN(load)(bias + d, k), through = FN(load)(skip + d, k), slope;
                memset(h, 0, sizeof(V) * (size_t)N);
                for (long t = 0; t < L; t++) {
                    long at = (r * L + t) * D + d, bt = (r * L + t) * N;
                    V x = FN(load)(u + at, k);
                    V step = FN(softplus)(FN(load)(raw + at, k) + plus, &slope);
                    V v = through * x + FN(advance)(N, step, step * x, a2 + block * N, B + bt,
                                                    C + bt, h, h, NULL);
                    if (z) {
                        V gate = FN(load)(z + at, k);
                        v *= gate * FN(sigmoid)(gate);
                    }
                    FN(store)(y + at, v, k);
                }
            }
        free(h);
    }
    free(a2);
}

INLINE void FN(backward_n)(long R, long L, long D, long N, const REAL *u, const REAL *raw,
                           const REAL *A, const REAL *B, const REAL *C, const REAL *skip,
                           const REAL *z, const REAL *bias, const REAL *gy, REAL *gu, REAL *graw,
                           REAL *gA, REAL *gB, REAL *gC, REAL *gskip, REAL *gz, REAL *gbias,
                           int threads) {
    long parts = (R + ROWS - 1) / ROWS, blocks = (D + W - 1) / W, M = blocks * N;
    long chunks = (L + CHUNK - 1) / CHUNK;
    V *a2 = FN(by_lanes)(D, N, A, (REAL)LOG2E), *a = FN(by_lanes)(D, N, A, 1);
    (void)threads;
#pragma omp parallel num_threads(threads)
    {
        size_t vectors = (size_t)((4 * CHUNK + 2) * N + 2 * M + chunks * M + 2 * blocks + 3 * CHUNK);
        V *states = claim(sizeof(V) * vectors);
        V *decay = states + (CHUNK + 1) * N, *sum_b = decay + CHUNK * N, *sum_c = sum_b + CHUNK * N;
        V *h = sum_c + CHUNK * N, *carry = h + N, *ga = carry + M, *starts = ga + M;
        V *gs = starts + chunks * M, *gp = gs + blocks, *steps = gp + blocks;
        V *slopes = steps + CHUNK, *outs = slopes + CHUNK;
#pragma omp for schedule(static)
        for (long part = 0; part < parts; part++) {
            long last = (part + 1) * ROWS < R ? (part + 1) * ROWS : R;
            memset(ga, 0, sizeof(V) * (size_t)M);
            memset(gs, 0, sizeof(V) * (size_t)(2 * blocks));
            for (long r = part * ROWS; r < last; r++) {
                // What each chunk starts from; the last needs no more.
                for (long block = 0; block < blocks; block++) {
                    long d = block * W, k = D - d < W ? D - d : W;
                    V plus = FN(load)(bias + d, k), slope;
                    memset(h, 0, sizeof(V) * (size_t)N);
                    memcpy(starts + block * N, h, sizeof(V) * (size_t)N);
                    for (long t = 0; t < (chunks - 1) * CHUNK; t++) {
                        long at = (r * L + t) * D + d, bt = (r * L + t) * N;
                        V step = FN(softplus)(FN(load)(raw + at, k) + plus, &slope);
                        FN(advance)(N, step, step * FN(load)(u + at, k), a2 + block * N, B + bt,
                                    C + bt, h, h, NULL);
                        if ((t + 1) % CHUNK == 0)
                            memcpy(starts + (t + 1) / CHUNK * M + block * N, h,
                                   sizeof(V) * (size_t)N);
                    }
                }
                memset(carry, 0, sizeof(V) * (size_t)M);
                for (long chunk = chunks - 1; chunk >= 0; chunk--) {
                    long t0 = chunk * CHUNK, T = L - t0 < CHUNK ? L - t0 : CHUNK;
                    memset(sum_b, 0, sizeof(V) * (size_t)(2 * CHUNK * N));
                    for (long block = 0; block < blocks; block++) {
                        long d = block * W, k = D - d < W ? D - d : W;
                        const V *am = a + block * N;
                        V plus = FN(load)(bias + d, k), through = FN(load)(skip + d, k);
                        V *restrict keep = carry + block * N, *restrict sum_a = ga + block * N;
                        memcpy(states, starts + chunk * M + block * N, sizeof(V) * (size_t)N);
                        for (long t = 0; t < T; t++) {
                            long at = (r * L + t0 + t) * D + d, bt = (r * L + t0 + t) * N;
                            steps[t] = FN(softplus)(FN(load)(raw + at, k) + plus, slopes + t);
                            outs[t] = FN(advance)(N, steps[t], steps[t] * FN(load)(u + at, k),
                                                  a2 + block * N, B + bt, C + bt, states + t * N,
                                                  states + (t + 1) * N, decay + t * N);
                        }
                        for (long t = T - 1; t >= 0; t--) {
                            long at = (r * L + t0 + t) * D + d, bt = (r * L + t0 + t) * N;
                            V g = FN(load)(gy + at, k), x = FN(load)(u + at, k);
                            if (z) {
                                V v = FN(load)(z + at, k), s = FN(sigmoid)(v);
                                FN(store)(gz + at,
                                          g * (outs[t] + through * x) * s * (1 + v * (1 - s)), k);
                                g *= v * s;
                            }
                            gs[block] += g * x;
                            const REAL *b = B + bt, *c = C + bt;
                            const V *now = states + (t + 1) * N, *before = states + t * N;
                            const V *e = decay + t * N;
                            V *restrict sb = sum_b + t * N, *restrict sc = sum_c + t * N;
                            V step = steps[t], driven = step * x, along_b = {0}, along_a = {0};
                            for (long n = 0; n < N; n++) {
                                V gh = g * c[n] + keep[n], gd = gh * e[n], ge = gd * before[n];
                                keep[n] = gd;
                                sc[n] += g * now[n];
                                sb[n] += gh * driven;
                                along_b += gh * b[n];
                                along_a += ge * am[n];
                                sum_a[n] += ge * step;
                            }
                            FN(store)(gu + at, g * through + along_b * step, k);
                            V gr = (along_a + along_b * x) * slopes[t];
                            FN(store)(graw + at, gr, k);
                            gp[block] += gr;
                        }
                    }
                    for (long i = 0; i < T * N; i++) {
                        gB[(r * L + t0) * N + i] = FN(total)(sum_b[i]);
                        gC[(r * L + t0) * N + i] = FN(total)(sum_c[i]);
                    }
                }
            }
            for (long d = 0; d < D; d++) {
                for (long n = 0; n < N; n++) gA[(part * D + d) * N + n] = ga[d / W * N + n][d % W];
                gskip[part * D + d] = gs[d / W][d % W];
                gbias[part * D + d] = gp[d / W][d % W];
            }
        }
        free(states);
    }
    free(a2);
    free(a);
}

// The state size as a constant lets the compiler unroll the loops over states.
#define PICK(call)                  \
    switch (N) {                    \
        case 8: call(8); break;     \
        case 16: call(16); break;   \
        case 32: call(32); break;   \
        case 64: call(64); break;   \
        default: call(N);           \
    }

void FN(scan_forward)(long R, long L, long D, long N, const REAL *u, const REAL *raw,
                      const REAL *A, const REAL *B, const REAL *C, const REAL *skip,
                      const REAL *z, const REAL *bias, REAL *y, int threads) {
#define CALL(n) FN(forward_n)(R, L, D, n, u, raw, A, B, C, skip, z, bias, y, threads)
    PICK(CALL)
#undef CALL
}

void FN(scan_backward)(long R, long L, long D, long N, const REAL *u, const REAL *raw,
                       const REAL *A, const REAL *B, const REAL *C, const REAL *skip,
                       const REAL *z, const REAL *bias, const REAL *gy, REAL *gu, REAL *graw,
                       REAL *gA, REAL *gB, REAL *gC, REAL *gskip, REAL *gz, REAL *gbias,
                       int threads) {
#define CALL(n)                                                                                \
    FN(backward_n)(R, L, D, n, u, raw, A, B, C, skip, z, bias, gy, gu, graw, gA, gB, gC, gskip, \
                   gz, gbias, threads)
    PICK(CALL)
#undef CALL
}
#undef PICK
#undef W
#undef V
#undef VI
#endif
