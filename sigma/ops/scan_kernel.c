// Selective scan on the CPU, forward and backward, fused with softplus, skip and SiLU gate.
//
// One pass per (row, channel): the N states live in registers or the first cache, the sequence is
// walked once forwards, and backwards the states are recomputed instead of stored, so memory is
// O(L N) per thread. Included twice below, for float and double (the latter for gradient checks).
//
// Symbols (Mamba, Gu & Dao 2023, algorithm 2; layouts as in reference.py):
//   h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,   y_t = (C_t h_t + D u_t) silu(z_t),
//   dt_t = softplus(raw_t + bias).
// Sums over rows (gradients of A, D, bias) are taken per block of ROWS rows and added in order by
// the caller, so results do not depend on the number of threads.

#ifndef REAL
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 32
#define INLINE static inline __attribute__((always_inline))

// exp to 1 ulp or so for x <= 88, written so that compilers vectorise it (Cephes' polynomial).
INLINE float exp_float(float x) {
    x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    float n = __builtin_rintf(x * 1.44269504088896341f);
    float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    union { int i; float f; } scale;
    scale.i = ((int)n + 127) << 23;
    return p * scale.f;
}
INLINE double exp_double(double x) { return exp(x); }
INLINE float log1p_float(float x) { return log1pf(x); }
INLINE double log1p_double(double x) { return log1p(x); }

#define CAT2(a, b) a##_##b
#define CAT(a, b) CAT2(a, b)
#define FN(name) CAT(name, REAL)

#define REAL float
#include "scan_kernel.c"
#undef REAL
#define REAL double
#include "scan_kernel.c"

#else

INLINE REAL FN(softplus)(REAL x) { return x > 20 ? x : FN(log1p)(FN(exp)(x)); }
INLINE REAL FN(sigmoid)(REAL x) {
    return x >= 0 ? 1 / (1 + FN(exp)(-x)) : FN(exp)(x) / (1 + FN(exp)(x));
}

// One row, one channel, forwards. When `states` is given, h_t and exp(dt_t A) are kept there.
INLINE void FN(channel)(long L, long D, long N, const REAL *u, const REAL *dt, const REAL *a,
                        const REAL *B, const REAL *C, REAL *restrict h, REAL *restrict states,
                        REAL *restrict decay, REAL *out) {
    for (long n = 0; n < N; n++) h[n] = 0;
    for (long t = 0; t < L; t++) {
        REAL step = dt[t], x = step * u[t * D], y = 0;
        const REAL *b = B + t * N, *c = C + t * N;
        if (states) {
            REAL *s = states + t * N, *e = decay + t * N;
#pragma omp simd reduction(+ : y)
            for (long n = 0; n < N; n++) {
                e[n] = FN(exp)(step * a[n]);
                h[n] = e[n] * h[n] + x * b[n];
                s[n] = h[n];
                y += h[n] * c[n];
            }
        } else {
#pragma omp simd reduction(+ : y)
            for (long n = 0; n < N; n++) {
                h[n] = FN(exp)(step * a[n]) * h[n] + x * b[n];
                y += h[n] * c[n];
            }
        }
        out[t] = y;
    }
}

INLINE void FN(forward_n)(long R, long L, long D, long N, const REAL *u, const REAL *raw,
                          const REAL *A, const REAL *B, const REAL *C, const REAL *skip,
                          const REAL *z, const REAL *bias, REAL *y, int threads) {
    (void)threads;
#pragma omp parallel num_threads(threads)
    {
        REAL *scratch = malloc(sizeof(REAL) * (size_t)(2 * L + N));
        REAL *dt = scratch, *out = scratch + L, *h = scratch + 2 * L;
#pragma omp for schedule(static)
        for (long r = 0; r < R; r++)
            for (long d = 0; d < D; d++) {
                long at = r * L * D + d;
                for (long t = 0; t < L; t++) dt[t] = FN(softplus)(raw[at + t * D] + bias[d]);
                FN(channel)(L, D, N, u + at, dt, A + d * N, B + r * L * N, C + r * L * N, h, NULL,
                            NULL, out);
                for (long t = 0; t < L; t++) {
                    REAL v = out[t] + skip[d] * u[at + t * D];
                    if (z) v *= z[at + t * D] * FN(sigmoid)(z[at + t * D]);
                    y[at + t * D] = v;
                }
            }
        free(scratch);
    }
}

INLINE void FN(backward_n)(long R, long L, long D, long N, const REAL *u, const REAL *raw,
                           const REAL *A, const REAL *B, const REAL *C, const REAL *skip,
                           const REAL *z, const REAL *bias, const REAL *gy, REAL *gu, REAL *graw,
                           REAL *gA, REAL *gB, REAL *gC, REAL *gskip, REAL *gz, REAL *gbias,
                           int threads) {
    long blocks = (R + ROWS - 1) / ROWS;
    (void)threads;
#pragma omp parallel num_threads(threads)
    {
        REAL *scratch = malloc(sizeof(REAL) * (size_t)(2 * L * N + 2 * L + 2 * N));
        REAL *states = scratch, *decay = states + L * N, *dt = decay + L * N, *out = dt + L;
        REAL *h = out + L, *carry = h + N;
#pragma omp for schedule(static)
        for (long block = 0; block < blocks; block++) {
            long last = (block + 1) * ROWS < R ? (block + 1) * ROWS : R;
            for (long r = block * ROWS; r < last; r++)
                for (long d = 0; d < D; d++) {
                    long at = r * L * D + d;
                    const REAL *a = A + d * N;
                    for (long t = 0; t < L; t++) dt[t] = FN(softplus)(raw[at + t * D] + bias[d]);
                    FN(channel)(L, D, N, u + at, dt, a, B + r * L * N, C + r * L * N, h, states,
                                decay, out);
                    for (long n = 0; n < N; n++) carry[n] = 0;
                    REAL *restrict ga = gA + (block * D + d) * N;
                    for (long t = L - 1; t >= 0; t--) {
                        long i = at + t * D;
                        REAL g = gy[i], x = u[i];
                        if (z) {
                            REAL s = FN(sigmoid)(z[i]);
                            gz[i] = g * (out[t] + skip[d] * x) * s * (1 + z[i] * (1 - s));
                            g *= z[i] * s;
                        }
                        gskip[block * D + d] += g * x;
                        const REAL *b = B + (r * L + t) * N, *c = C + (r * L + t) * N;
                        REAL *restrict gb = gB + (r * L + t) * N, *restrict gc = gC + (r * L + t) * N;
                        const REAL *s = states + t * N, *e = decay + t * N;
                        REAL step = dt[t], stepx = step * x, along_b = 0, along_a = 0;
                        if (t > 0) {
                            const REAL *before = states + (t - 1) * N;
#pragma omp simd reduction(+ : along_b, along_a)
                            for (long n = 0; n < N; n++) {
                                REAL gh = g * c[n] + carry[n];
                                REAL ge = gh * before[n] * e[n];
                                gc[n] += g * s[n];
                                gb[n] += gh * stepx;
                                along_b += gh * b[n];
                                along_a += ge * a[n];
                                ga[n] += ge * step;
                                carry[n] = gh * e[n];
                            }
                        } else {
#pragma omp simd reduction(+ : along_b)
                            for (long n = 0; n < N; n++) {
                                REAL gh = g * c[n] + carry[n];
                                gc[n] += g * s[n];
                                gb[n] += gh * stepx;
                                along_b += gh * b[n];
                            }
                        }
                        gu[i] = g * skip[d] + along_b * step;
                        // d softplus(x) / dx = sigmoid(x)
                        REAL gr = (along_a + along_b * x) * FN(sigmoid)(raw[i] + bias[d]);
                        graw[i] = gr;
                        gbias[block * D + d] += gr;
                    }
                }
        }
        free(scratch);
    }
}

// The state size as a constant lets the compiler keep whole state vectors in registers.
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
#endif
