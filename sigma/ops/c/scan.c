// Selective scan, forward and backward, fused with softplus, skip and SiLU gate.
//
// A vector holds W neighbouring channels of one row. States go through the row in groups of GROUP,
// which stay in registers; sums over states then stay within the lanes, and softplus and gate are
// vectors, too. Backwards the states of CHUNK places are recomputed from a checkpoint instead of
// stored.
//
// Symbols (Mamba, Gu & Dao 2023, algorithm 2; layouts as in inputs.py):
//   h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,   y_t = (C_t h_t + D u_t) silu(z_t),
//   dt_t = softplus(raw_t + bias).

#define GROUP 8
#define CHUNK 64

// (D, N) times a constant -> blocks of (N, W), zero beyond D. The caller frees it.
static V *FN(by_lanes)(long D, long N, const REAL *x, REAL times) {
    long blocks = (D + W - 1) / W;
    V *out = claim(sizeof(V) * (size_t)(blocks * N));
    for (long d = 0; d < blocks * W; d++)
        for (long n = 0; n < N; n++)
            out[d / W * N + n][d % W] = d < D ? x[d * N + n] * times : 0;
    return out;
}

// G states of W channels through T places; adds C_t h_t to sums. Before each place the states, and
// the decays there, are left in states and decays where these are wanted.
INLINE void FN(advance)(const long G, long N, long T, const V *step, const V *driven, const V *a2,
                        const REAL *b, const REAL *c, V *h, V *sums, V *states, V *decays) {
    V now[GROUP];
#pragma GCC unroll 8
    for (long n = 0; n < G; n++) now[n] = h[n];
    for (long t = 0; t < T; t++) {
        V y = sums[t], dt = step[t], x = driven[t];
#pragma GCC unroll 8
        for (long n = 0; n < G; n++) {
            V e = FN(exp2)(dt * a2[n]);
            if (states) {
                states[t * G + n] = now[n];
                decays[t * G + n] = e;
            }
            now[n] = e * now[n] + x * b[t * N + n];
            y += now[n] * c[t * N + n];
        }
        sums[t] = y;
    }
#pragma GCC unroll 8
    for (long n = 0; n < G; n++) {
        h[n] = now[n];
        if (states) states[T * G + n] = now[n];
    }
}

// The gradients of G states backwards through T places; g is that of the ungated y.
INLINE void FN(retreat)(const long G, long N, long T, const V *step, const V *driven, const V *g,
                        const V *a2, const REAL *b, const REAL *c, const V *states,
                        const V *decays, V *carry, V *ga, V *sum_b, V *sum_c, V *along_a,
                        V *along_b) {
    V gd[GROUP], sum_a[GROUP];
#pragma GCC unroll 8
    for (long n = 0; n < G; n++) {
        gd[n] = carry[n];
        sum_a[n] = ga[n];
    }
    for (long t = T - 1; t >= 0; t--) {
        V gt = g[t], dt = step[t], x = driven[t], to_a = along_a[t], to_b = along_b[t];
#pragma GCC unroll 8
        for (long n = 0; n < G; n++) {
            V gh = gt * c[t * N + n] + gd[n];
            gd[n] = gh * decays[t * G + n];
            V ge = gd[n] * states[t * G + n];
            sum_c[t * N + n] += gt * states[(t + 1) * G + n];
            sum_b[t * N + n] += gh * x;
            to_b += gh * b[t * N + n];
            to_a += ge * a2[n];
            sum_a[n] += ge * dt;
        }
        along_a[t] = to_a;
        along_b[t] = to_b;
    }
#pragma GCC unroll 8
    for (long n = 0; n < G; n++) {
        carry[n] = gd[n];
        ga[n] = sum_a[n];
    }
}

static void FN(advance_all)(long N, long T, const V *step, const V *driven, const V *a2,
                            const REAL *b, const REAL *c, V *h, V *sums) {
    long n = 0;
    for (; n + GROUP <= N; n += GROUP)
        FN(advance)(GROUP, N, T, step, driven, a2 + n, b + n, c + n, h + n, sums, NULL, NULL);
    for (; n < N; n++)
        FN(advance)(1, N, T, step, driven, a2 + n, b + n, c + n, h + n, sums, NULL, NULL);
}

void FN(scan_forward)(long B, const int64_t *offsets, long T, long D, long N, const REAL *u,
                      const REAL *raw, const REAL *A, const REAL *b, const REAL *c,
                      const REAL *skip, const REAL *z, const REAL *bias, REAL *y, int threads) {
    long blocks = (D + W - 1) / W, chunk = B < PARTS ? 1 : 2 * blocks;
    V *a2 = FN(by_lanes)(D, N, A, (REAL)LOG2E);
    FN(clear)(y, D, offsets[B], T);
#pragma omp parallel num_threads(threads)
    {
        V *h = claim(sizeof(V) * (size_t)(N + 3 * CHUNK));
        V *steps = h + N, *driven = steps + CHUNK, *sums = driven + CHUNK;
#pragma omp for collapse(2) schedule(dynamic, chunk)
        for (long r = 0; r < B; r++)
            for (long block = 0; block < blocks; block++) {
                long d = block * W, k = LEAST(D - d, W);
                V plus = FN(load)(bias + d, k), through = FN(load)(skip + d, k), slope;
                memset(h, 0, sizeof(V) * (size_t)N);
                for (long t0 = offsets[r]; t0 < offsets[r + 1]; t0 += CHUNK) {
                    long n = LEAST(offsets[r + 1] - t0, CHUNK);
                    for (long t = 0; t < n; t++) {
                        long at = (t0 + t) * D + d;
                        V x = FN(load)(u + at, k);
                        steps[t] = FN(softplus)(FN(load)(raw + at, k) + plus, &slope);
                        driven[t] = steps[t] * x;
                        sums[t] = through * x;
                    }
                    FN(advance_all)(N, n, steps, driven, a2 + block * N, b + t0 * N, c + t0 * N, h,
                                    sums);
                    for (long t = 0; t < n; t++) {
                        long at = (t0 + t) * D + d;
                        if (z) {
                            V gate = FN(load)(z + at, k);
                            sums[t] *= gate * FN(sigmoid)(gate);
                        }
                        FN(store)(y + at, sums[t], k);
                    }
                }
            }
        free(h);
    }
    free(a2);
}

// Of gA, gskip and gbias each of parts_of(B) parts.
void FN(scan_backward)(long B, const int64_t *offsets, long T, long D, long N, const REAL *u,
                       const REAL *raw, const REAL *A, const REAL *b, const REAL *c,
                       const REAL *skip, const REAL *z, const REAL *bias, const REAL *gy, REAL *gu,
                       REAL *graw, REAL *gA, REAL *gB, REAL *gC, REAL *gskip, REAL *gz,
                       REAL *gbias, int threads) {
    long blocks = (D + W - 1) / W, M = blocks * N, parts = parts_of(B), end = offsets[B];
    long most = (longest_row(B, offsets) + CHUNK - 1) / CHUNK;
    V *a2 = FN(by_lanes)(D, N, A, (REAL)LOG2E);
    FN(clear)(gu, D, end, T);
    FN(clear)(graw, D, end, T);
    if (z) FN(clear)(gz, D, end, T);
    FN(clear)(gB, N, end, T);
    FN(clear)(gC, N, end, T);
#pragma omp parallel num_threads(threads)
    {
        size_t vectors = (size_t)(2 * CHUNK * (N + GROUP) + GROUP + N + 2 * M + most * M +
                                  2 * blocks + 8 * CHUNK + W);
        V *sum_b = claim(sizeof(V) * vectors), *sum_c = sum_b + CHUNK * N, *h = sum_c + CHUNK * N;
        V *states = h + N, *decays = states + (CHUNK + 1) * GROUP, *carry = decays + CHUNK * GROUP;
        V *ga = carry + M, *starts = ga + M, *gs = starts + most * M, *gp = gs + blocks;
        V *steps = gp + blocks, *driven = steps + CHUNK, *slopes = driven + CHUNK;
        V *g = slopes + CHUNK, *outs = g + CHUNK, *along_a = outs + CHUNK;
        V *along_b = along_a + CHUNK, *opens = along_b + CHUNK, *some = opens + CHUNK;
#pragma omp for schedule(dynamic, 1)
        for (long part = 0; part < parts; part++) {
            long last = part_start(part + 1, B, offsets);
            memset(ga, 0, sizeof(V) * (size_t)M);
            memset(gs, 0, sizeof(V) * (size_t)(2 * blocks));
            for (long r = part_start(part, B, offsets); r < last; r++) {
                long chunks = (offsets[r + 1] - offsets[r] + CHUNK - 1) / CHUNK;
                if (!chunks) continue;
                // What each chunk starts from; the last needs no more.
                for (long block = 0; block < blocks; block++) {
                    long d = block * W, k = LEAST(D - d, W);
                    V plus = FN(load)(bias + d, k), *start = starts + block * N;
                    memset(start, 0, sizeof(V) * (size_t)N);
                    for (long chunk = 0; chunk < chunks - 1; chunk++, start += M) {
                        long t0 = offsets[r] + chunk * CHUNK;
                        for (long t = 0; t < CHUNK; t++) {
                            long at = (t0 + t) * D + d;
                            steps[t] = FN(softplus)(FN(load)(raw + at, k) + plus, slopes);
                            driven[t] = steps[t] * FN(load)(u + at, k);
                        }
                        memcpy(start + M, start, sizeof(V) * (size_t)N);
                        FN(advance_all)(N, CHUNK, steps, driven, a2 + block * N, b + t0 * N,
                                        c + t0 * N, start + M, outs);
                    }
                }
                memset(carry, 0, sizeof(V) * (size_t)M);
                for (long chunk = chunks - 1; chunk >= 0; chunk--) {
                    long t0 = offsets[r] + chunk * CHUNK, n = LEAST(offsets[r + 1] - t0, CHUNK);
                    memset(sum_b, 0, sizeof(V) * (size_t)(n * N));
                    memset(sum_c, 0, sizeof(V) * (size_t)(n * N));
                    for (long block = 0; block < blocks; block++) {
                        long d = block * W, k = LEAST(D - d, W), s = 0;
                        V plus = FN(load)(bias + d, k), through = FN(load)(skip + d, k);
                        for (long t = 0; t < n; t++) {
                            long at = (t0 + t) * D + d;
                            steps[t] = FN(softplus)(FN(load)(raw + at, k) + plus, slopes + t);
                            driven[t] = steps[t] * FN(load)(u + at, k);
                            g[t] = FN(load)(gy + at, k);
                            if (z) {
                                V gate = FN(load)(z + at, k);
                                opens[t] = FN(sigmoid)(gate);
                                g[t] *= gate * opens[t];
                            }
                        }
                        memset(outs, 0, sizeof(V) * (size_t)n);
                        memset(along_a, 0, sizeof(V) * (size_t)n);
                        memset(along_b, 0, sizeof(V) * (size_t)n);
                        memcpy(h, starts + chunk * M + block * N, sizeof(V) * (size_t)N);
#define STATES(G)                                                                              \
    do {                                                                                       \
        long i = block * N + s;                                                                \
        FN(advance)(G, N, n, steps, driven, a2 + i, b + t0 * N + s, c + t0 * N + s, h + s,      \
                    outs, states, decays);                                                     \
        FN(retreat)(G, N, n, steps, driven, g, a2 + i, b + t0 * N + s, c + t0 * N + s, states, \
                    decays, carry + i, ga + i, sum_b + s, sum_c + s, along_a, along_b);        \
    } while (0)
                        for (; s + GROUP <= N; s += GROUP) STATES(GROUP);
                        for (; s < N; s++) STATES(1);
#undef STATES
                        for (long t = 0; t < n; t++) {
                            long at = (t0 + t) * D + d;
                            V x = FN(load)(u + at, k);
                            if (z) {
                                V gate = FN(load)(z + at, k), s = opens[t];
                                V y = outs[t] + through * x, slope = s * (1 + gate * (1 - s));
                                FN(store)(gz + at, FN(load)(gy + at, k) * y * slope, k);
                            }
                            V gr = (along_a[t] * (REAL)(1 / LOG2E) + along_b[t] * x) * slopes[t];
                            FN(store)(gu + at, g[t] * through + along_b[t] * steps[t], k);
                            FN(store)(graw + at, gr, k);
                            gs[block] += g[t] * x;
                            gp[block] += gr;
                        }
                    }
                    for (long half = 0; half < 2; half++) {
                        V *sum = half ? sum_c : sum_b;
                        REAL *out = (half ? gC : gB) + t0 * N;
                        for (long i = 0; i < n * N; i += W) {
                            long k = LEAST(n * N - i, W);
                            for (long j = 0; j < W; j++) some[j] = j < k ? sum[i + j] : (V){0};
                            FN(store)(out + i, FN(sums)(k == W ? sum + i : some), k);
                        }
                    }
                }
            }
            for (long d = 0; d < D; d++) {
                for (long n = 0; n < N; n++) gA[(part * D + d) * N + n] = ga[d / W * N + n][d % W];
                gskip[part * D + d] = gs[d / W][d % W];
                gbias[part * D + d] = gp[d / W][d % W];
            }
        }
        free(sum_b);
    }
    free(a2);
}
