// Attention backwards: weights are computed anew from the scores and their logsumexp, and dropout
// is drawn anew from its hash. Layouts as in attend.c.
//
//   dP = G V^T,  dS = P (mask dP - rowsum(G O)) s,  dQ = dS K,  dK = dS^T Q,  dV = (mask P)^T G

// out[key] += sum over n queries of p[key][query] x[query], for `keys` keys of d channels.
INLINE void FN(add_keys)(const long d, long keys, long n, const V *p, const REAL *x, long stride,
                         REAL *out) {
    for (long c = 0; c < d; c += 2 * W) {
        const long pair = d % (2 * W) == 0 || d - c > W ? 2 : 1;
        const long k = CHANNELS(d, c), l = CHANNELS(d, c + W);
        for (long key = 0; key < keys; key += TILE) {
            const REAL *at[TILE];
            V sum[TILE][2];
#pragma GCC unroll 8
            for (long j = 0; j < TILE; j++) {
                at[j] = (const REAL *)(p + LEAST(key + j, keys - 1));
                sum[j][0] = sum[j][1] = (V){0};
            }
            for (long i = 0; i < n; i++) {
                V one = FN(load)(x + i * stride + c, k), two = {0};
                if (pair == 2) two = FN(load)(x + i * stride + c + W, l);
#pragma GCC unroll 8
                for (long j = 0; j < TILE; j++) {
                    V value = FN(splat)(at[j][i]);
                    sum[j][0] += value * one;
                    if (pair == 2) sum[j][1] += value * two;
                }
            }
#pragma GCC unroll 8
            for (long j = 0; j < TILE; j++)
                if (key + j < keys) {
                    REAL *to = out + (key + j) * stride + c;
                    FN(store)(to, FN(load)(to, k) + sum[j][0], k);
                    if (pair == 2) FN(store)(to + W, FN(load)(to + W, l) + sum[j][1], l);
                }
        }
    }
}

INLINE void FN(attend_many_back)(const long d, const FN(Head) *a) {
    long stride = a->H * d;
    V *weights = a->weights, *slopes = a->slopes, *columns = a->columns, *gcolumns = columns + d;
    REAL root = (REAL)(1 / __builtin_sqrt((double)d));
    for (long i = 0; i < a->queries; i += W) {
        FN(Lanes) lanes = FN(lanes_of)(a, i);
        const REAL *q = a->q + i * stride, *gout = a->gout + i * stride;
        const REAL *out = a->out + i * stride;
        V products[W], top = {0};
        FN(columns)(d, lanes.n, q, stride, root * (REAL)LOG2E, columns);
        FN(columns)(d, lanes.n, gout, stride, 1, gcolumns);
        for (long j = 0; j < W; j++) {
            products[j] = (V){0};
            if (j < lanes.n)
                for (long c = 0; c < d; c += W) {
                    const long l = CHANNELS(d, c);
                    products[j] += FN(load)(gout + j * stride + c, l) *
                                   FN(load)(out + j * stride + c, l);
                }
        }
        V along = FN(sums)(products);
        for (long j = 0; j < lanes.n; j++) top[j] = a->lse[(i + j) * a->H] * (REAL)LOG2E;
        for (long key = 0; key < lanes.seen; key += TILE) {
            long n = LEAST(lanes.seen - key, TILE);
            FN(keys_by_queries)(TILE, d, n, a->k + key * stride, stride, columns, weights + key);
            FN(keys_by_queries)(TILE, d, n, a->v + key * stride, stride, gcolumns, slopes + key);
            for (long j = key; j < key + n; j++) {
                V p = FN(exp2)(FN(smaller)(weights[j] - top, (V){0} + 1)), g = slopes[j];
                if (j >= lanes.least) p = FN(pick)(FN(hidden)(&lanes, j), (V){0}, p);
                weights[j] = p;
                if (a->drop->steps) {
                    V times = FN(retained)(a->drop, lanes.low, lanes.high,
                                           (FN(words)){0} + (uint32_t)j);
                    g *= times;
                    weights[j] *= times;
                }
                slopes[j] = p * (g - along) * root;
            }
        }
        FN(channels_by_queries)(d, lanes.seen, a->k, stride, slopes, columns);
        FN(uncolumns)(d, lanes.n, columns, a->gq + i * stride, stride);
        FN(add_keys)(d, lanes.seen, lanes.n, slopes, q, stride, a->gk);
        FN(add_keys)(d, lanes.seen, lanes.n, weights, gout, stride, a->gv);
    }
}

INLINE void FN(attend_few_back)(const long d, const FN(Head) *a) {
    long stride = a->H * d;
    V *weights = a->weights, *slopes = a->slopes, *x = a->columns, *gx = x + d;
    const REAL *weight = (const REAL *)weights, *slope = (const REAL *)slopes;
    REAL root = (REAL)(1 / __builtin_sqrt((double)d));
    for (long m = 0; m < a->queries; m++) {
        long seen = a->causal ? LEAST(a->places[m] - a->start + 1, a->keys) : a->keys;
        long at = m * stride;
        uint64_t word = a->drop->steps ? draws_of(a->drop, a->head, a->first + m) : 0;
        FN(words) low = (FN(words)){0} + (uint32_t)word;
        FN(words) high = (FN(words)){0} + (uint32_t)(word >> 32);
        REAL top = a->lse[m * a->H] * (REAL)LOG2E;
        V products = {0};
        for (long c = 0; c < d; c += W) {
            const long l = CHANNELS(d, c);
            x[c / W] = FN(load)(a->q + at + c, l) * (root * (REAL)LOG2E);
            gx[c / W] = FN(load)(a->gout + at + c, l);
            products += gx[c / W] * FN(load)(a->out + at + c, l);
        }
        REAL along = FN(total)(products);
        for (long j = 0; j < seen; j += W) {
            V s = FN(dots)(d, seen - j, a->k + j * stride, stride, x);
            V g = FN(dots)(d, seen - j, a->v + j * stride, stride, gx);
            V p = FN(exp2)(FN(smaller)(s - top, (V){0} + 1));
            if (seen - j < W) p = FN(pick)(FN(count)() < (FN(bits))(seen - j), p, (V){0});
            weights[j / W] = p;
            if (a->drop->steps) {
                V times = FN(retained)(a->drop, low, high, FN(numbers)(j));
                g *= times;
                weights[j / W] *= times;
            }
            slopes[j / W] = p * (g - along) * root;
        }
        for (long c = 0; c < d; c += W) {
            const long l = CHANNELS(d, c);
            V own = FN(load)(a->q + at + c, l), g = gx[c / W];
            for (long j = 0; j < (m ? seen : a->keys); j++) {
                REAL *to_k = a->gk + j * stride + c, *to_v = a->gv + j * stride + c;
                V add_k = {0}, add_v = {0};
                if (j < seen) {
                    add_k = slope[j] * own;
                    add_v = weight[j] * g;
                }
                FN(store)(to_k, m ? FN(load)(to_k, l) + add_k : add_k, l);
                FN(store)(to_v, m ? FN(load)(to_v, l) + add_v : add_v, l);
            }
            x[c / W] = (V){0};
        }
        FN(weighted)(d, seen, slope, a->k, stride, x);
        for (long c = 0; c < d; c += W) FN(store)(a->gq + at + c, x[c / W], CHANNELS(d, c));
    }
}
OF_SIZE(attend_many_back)
OF_SIZE(attend_few_back)
#undef OF_SIZE

// Every head of every row; `all` says where the batch begins.
static void FN(attend)(long B, const int64_t *offsets, const int64_t *query_offsets,
                       const FN(Head) *all, int threads) {
    long H = all->H, d = all->d, stride = H * d, chunk = B < PARTS ? 1 : 4 * H;
    long longest = longest_row(B, offsets);
#pragma omp parallel num_threads(threads)
    {
        V *space = claim(sizeof(V) * (size_t)(2 * (longest + TILE + d)));
#pragma omp for collapse(2) schedule(dynamic, chunk)
        for (long b = 0; b < B; b++)
            for (long head = 0; head < H; head++) {
                FN(Head) a = *all;
                a.head = head;
                a.first = query_offsets[b];
                a.queries = query_offsets[b + 1] - a.first;
                a.start = offsets[b];
                a.keys = offsets[b + 1] - a.start;
                long at = a.first * stride + head * d, to = a.start * stride + head * d;
                a.places += a.first;
                a.q += at;
                a.k += to;
                a.v += to;
                a.out += at;
                a.lse += a.first * H + head;
                a.weights = space;
                a.slopes = space + longest + TILE;
                a.columns = a.slopes + longest + TILE;
                if (!a.back) {
                    if (a.queries <= FEW) FN(CAT(attend_few, head))(&a);
                    else FN(CAT(attend_many, head))(&a);
                    continue;
                }
                a.gout += at;
                a.gq += at;
                a.gk += to;
                a.gv += to;
                // The first of a few queries writes what others add to.
                if (a.queries && a.queries <= FEW) {
                    FN(CAT(attend_few_back, head))(&a);
                    continue;
                }
                for (long j = 0; j < a.keys; j++) {
                    memset(a.gk + j * stride, 0, sizeof(REAL) * (size_t)d);
                    memset(a.gv + j * stride, 0, sizeof(REAL) * (size_t)d);
                }
                FN(CAT(attend_many_back, head))(&a);
            }
        free(space);
    }
}

void FN(attend_forward)(long B, const int64_t *offsets, long M, long H, long d, const REAL *q,
                        const REAL *k, const REAL *v, const int64_t *query_offsets,
                        const int64_t *places, int causal, long steps, double times,
                        uint64_t seed, REAL *out, REAL *lse, int threads) {
    Dropout drop = {steps, times, seed};
    FN(Head) all = {.H = H, .d = d, .causal = causal, .places = places, .drop = &drop, .q = q,
                    .k = k, .v = v, .out = out, .lse = lse};
    FN(clear)(out, H * d, query_offsets[B], M);
    FN(clear)(lse, H, query_offsets[B], M);
    FN(attend)(B, offsets, query_offsets, &all, threads);
}

void FN(attend_backward)(long B, const int64_t *offsets, long M, long H, long d, const REAL *q,
                         const REAL *k, const REAL *v, const int64_t *query_offsets,
                         const int64_t *places, int causal, long steps, double times,
                         uint64_t seed, REAL *out, REAL *lse, long T, const REAL *gout, REAL *gq,
                         REAL *gk, REAL *gv, int threads) {
    Dropout drop = {steps, times, seed};
    FN(Head) all = {.H = H, .d = d, .causal = causal, .back = 1, .places = places, .drop = &drop,
                    .q = q, .k = k, .v = v, .gout = gout, .out = out, .lse = lse, .gq = gq, .gk = gk,
                    .gv = gv};
    FN(clear)(gq, H * d, query_offsets[B], M);
    FN(clear)(gk, H * d, offsets[B], T);
    FN(clear)(gv, H * d, offsets[B], T);
    FN(attend)(B, offsets, query_offsets, &all, threads);
}
