// Attention within each row, heads apart, with dropout of the weights; forward, and what backward
// shares with it.
//
// W queries of a row lie side by side in the lanes, so that softmax needs no sums across lanes, and
// keys and values are read as they are, one broadcast number at a time. Nothing but the weights of
// W queries is kept. Where a row asks only FEW queries, the lanes hold channels and keys instead.
//
// Symbols: M queries, H heads, d channels of a head; query m of row b stands at places[m].

#define FEW 4
#define TILE 8  // keys, or channels, whose sums are in registers at once

// Channels from c on that one vector holds: a constant, where d is one and it can be.
#define CHANNELS(d, c) ((d) % W == 0 ? W : (d) < W ? (d) : LEAST((d) - (c), W))

#ifndef ATTEND
#define ATTEND
// Dropout: an element is dropped where 16 bits hashed from seed, head, query and key are below
// `steps` of 2^16; what remains is multiplied by `times`.
typedef struct { long steps; double times; uint64_t seed; } Dropout;

static inline uint64_t mixed(uint64_t x) {  // splitmix64
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}
// 64 bits of one query in one head.
static inline uint64_t draws_of(const Dropout *drop, long head, long m) {
    return mixed(mixed(drop->seed + 0x632be59bd9b4e019u * (uint64_t)head) ^ (uint64_t)m);
}
#endif

typedef uint32_t FN(words) __attribute__((vector_size(4 * BYTES / sizeof(REAL))));
typedef int32_t FN(short_lanes) __attribute__((vector_size(4 * BYTES / sizeof(REAL))));

// `times` where the weight stays, else 0.
INLINE V FN(retained)(const Dropout *drop, FN(words) low, FN(words) high, FN(words) key) {
    FN(words) x = low + key * 0x9e3779b9u;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15) ^ high) * 0x846ca68bu;
    FN(short_lanes) stays = (FN(short_lanes))(x >> 16) >= (int32_t)drop->steps;
    return (V)(__builtin_convertvector(stays, VI) & (VI)((V){0} + (REAL)drop->times));
}

// One head of one row: where its queries, keys and values and their likes begin (gout, gq, gk and
// gv backwards only), and room to work in: a vector of each key and TILE more in weights and
// slopes, 2 d vectors in columns.
typedef struct {
    long H, d, head, queries, keys, first, start;  // the row's first query and first place
    int causal, back;
    const int64_t *places;
    const Dropout *drop;
    const REAL *q, *k, *v, *gout;
    REAL *out, *lse, *gq, *gk, *gv;
    V *weights, *slopes, *columns;
} FN(Head);

// Channels of a head as a constant let the compiler unroll; for double, which checks gradients, the
// time to compile matters more.
#define OF_SIZE(name)                                                                             \
    static __attribute__((noinline, unused)) void FN(CAT(name, 8))(const FN(Head) *a) {           \
        FN(name)(8, a);                                                                           \
    }                                                                                             \
    static __attribute__((noinline, unused)) void FN(CAT(name, 32))(const FN(Head) *a) {          \
        FN(name)(32, a);                                                                          \
    }                                                                                             \
    static __attribute__((noinline)) void FN(CAT(name, any))(const FN(Head) *a) {                 \
        FN(name)(a->d, a);                                                                        \
    }                                                                                             \
    static void FN(CAT(name, head))(const FN(Head) *a) {                                          \
        if (sizeof(REAL) == sizeof(float) && a->d == 8) FN(CAT(name, 8))(a);                      \
        else if (sizeof(REAL) == sizeof(float) && a->d == 32) FN(CAT(name, 32))(a);               \
        else FN(CAT(name, any))(a);                                                               \
    }

// W of a row's queries, by lanes.
typedef struct {
    FN(words) low, high;  // of the draws
    VI at;                // position in the row; beyond the row where there is no query
    long n, least, seen;  // queries; keys that all see, keys that any sees
} FN(Lanes);

INLINE FN(Lanes) FN(lanes_of)(const FN(Head) *a, long i) {
    FN(Lanes) lanes = {0};
    lanes.n = LEAST(a->queries - i, W);
    lanes.at += (FN(bits))a->keys;
    lanes.least = lanes.seen = a->keys;
    if (a->causal) {
        for (long j = 0; j < lanes.n; j++) lanes.at[j] = (FN(bits))(a->places[i + j] - a->start);
        // A query may stand beyond the row's end, and sees no further than that.
        lanes.least = LEAST((long)(a->places[i] - a->start) + 1, a->keys);
        lanes.seen = LEAST((long)(a->places[i + lanes.n - 1] - a->start) + 1, a->keys);
    }
    if (a->drop->steps)
        for (long j = 0; j < lanes.n; j++) {
            uint64_t word = draws_of(a->drop, a->head, a->first + i + j);
            lanes.low[j] = (uint32_t)word;
            lanes.high[j] = (uint32_t)(word >> 32);
        }
    return lanes;
}

// n <= W vectors of d channels at x -> d vectors of W lanes, zero beyond n, times a constant.
INLINE void FN(columns)(const long d, long n, const REAL *x, long stride, REAL times, V *out) {
    for (long c = 0; c < d; c += W) {
        V block[W];
        const long k = CHANNELS(d, c);
#pragma GCC unroll 16
        for (long i = 0; i < W; i++) block[i] = i < n ? FN(load)(x + i * stride + c, k) : (V){0};
        FN(transpose)(block);
#pragma GCC unroll 16
        for (long i = 0; i < k; i++) out[c + i] = block[i] * times;
    }
}
// And back.
INLINE void FN(uncolumns)(const long d, long n, const V *in, REAL *x, long stride) {
    for (long c = 0; c < d; c += W) {
        V block[W];
        const long k = CHANNELS(d, c);
#pragma GCC unroll 16
        for (long i = 0; i < W; i++) block[i] = i < k ? in[c + i] : (V){0};
        FN(transpose)(block);
        for (long i = 0; i < n; i++) FN(store)(x + i * stride + c, block[i], k);
    }
}

// acc[j] = sum over c of x[j][c] y[c]: `tile` keys times W queries. Rows beyond n are the last.
INLINE void FN(keys_by_queries)(const long tile, const long d, long n, const REAL *x, long stride,
                                const V *y, V *acc) {
    const REAL *at[TILE];
    V sum[TILE];
#pragma GCC unroll 8
    for (long j = 0; j < tile; j++) {
        at[j] = x + LEAST(j, n - 1) * stride;
        sum[j] = (V){0};
    }
    for (long c = 0; c < d; c++) {
        V v = y[c];
#pragma GCC unroll 8
        for (long j = 0; j < tile; j++) sum[j] += at[j][c] * v;
    }
#pragma GCC unroll 8
    for (long j = 0; j < tile; j++) acc[j] = sum[j];
}

// out[c] = sum over n keys of x[key][c] p[key], G channels times W queries.
INLINE void FN(some_channels)(const long G, long n, const REAL *x, long stride, const V *p,
                              V *out) {
    V sum[2 * TILE];
#pragma GCC unroll 16
    for (long j = 0; j < G; j++) sum[j] = (V){0};
    for (long i = 0; i < n; i++)
#pragma GCC unroll 16
        for (long j = 0; j < G; j++) sum[j] += x[i * stride + j] * p[i];
#pragma GCC unroll 16
    for (long j = 0; j < G; j++) out[j] = sum[j];
}
INLINE void FN(channels_by_queries)(const long d, long n, const REAL *x, long stride, const V *p,
                                    V *out) {
    long c = 0;
    for (; c + 2 * TILE <= d; c += 2 * TILE)
        FN(some_channels)(2 * TILE, n, x + c, stride, p, out + c);
    for (; c + TILE <= d; c += TILE) FN(some_channels)(TILE, n, x + c, stride, p, out + c);
    for (; c < d; c++) FN(some_channels)(1, n, x + c, stride, p, out + c);
}

// Keys of position `key` that a lane does not see.
INLINE VI FN(hidden)(const FN(Lanes) *lanes, long key) { return lanes->at < (FN(bits))key; }

INLINE void FN(attend_many)(const long d, const FN(Head) *a) {
    long stride = a->H * d;
    V lowest = (V){0} + (REAL)-1e30, *weights = a->weights, *columns = a->columns;
    REAL scale = (REAL)(LOG2E / __builtin_sqrt((double)d));
    for (long i = 0; i < a->queries; i += W) {
        FN(Lanes) lanes = FN(lanes_of)(a, i);
        FN(columns)(d, lanes.n, a->q + i * stride, stride, scale, columns);
        V most = lowest, sum = {0};
        for (long key = 0; key < lanes.seen; key += TILE) {
            long n = LEAST(lanes.seen - key, TILE);
            FN(keys_by_queries)(TILE, d, n, a->k + key * stride, stride, columns, weights + key);
            for (long j = key; j < key + n; j++) {
                if (j >= lanes.least)
                    weights[j] = FN(pick)(FN(hidden)(&lanes, j), lowest, weights[j]);
                most = FN(larger)(most, weights[j]);
            }
        }
        for (long j = 0; j < lanes.seen; j++) {
            V p = FN(exp2)(weights[j] - most);
            if (j >= lanes.least) p = FN(pick)(FN(hidden)(&lanes, j), (V){0}, p);
            sum += p;
            if (a->drop->steps)
                p *= FN(retained)(a->drop, lanes.low, lanes.high, (FN(words)){0} + (uint32_t)j);
            weights[j] = p;
        }
        FN(channels_by_queries)(d, lanes.seen, a->v, stride, weights, columns);
        V part = 1 / sum, total = (most + FN(log2)(sum)) * (REAL)(1 / LOG2E);
        for (long c = 0; c < d; c++) columns[c] *= part;
        FN(uncolumns)(d, lanes.n, columns, a->out + i * stride, stride);
        for (long j = 0; j < lanes.n; j++) a->lse[(i + j) * a->H] = total[j];
    }
}

// x[key] . y for W keys by lanes, zero beyond n. y is d channels in vectors.
INLINE V FN(dots)(const long d, long n, const REAL *x, long stride, const V *y) {
    V sum[W];
#pragma GCC unroll 16
    for (long j = 0; j < W; j++) {
        sum[j] = (V){0};
        if (j < n)
            for (long c = 0; c < d; c += W)
                sum[j] += FN(load)(x + j * stride + c, CHANNELS(d, c)) * y[c / W];
    }
    return FN(sums)(sum);
}

// acc[c / W] += sum over n keys of p[key] x[key], d channels in vectors.
INLINE void FN(weighted)(const long d, long n, const REAL *p, const REAL *x, long stride, V *acc) {
    for (long c = 0; c < d; c += W) {
        V sum[4] = {{0}};
        const long k = CHANNELS(d, c);
        long j = 0;
        for (; j + 4 <= n; j += 4)
#pragma GCC unroll 4
            for (long i = 0; i < 4; i++) sum[i] += p[j + i] * FN(load)(x + (j + i) * stride + c, k);
        for (; j < n; j++) sum[0] += p[j] * FN(load)(x + j * stride + c, k);
        acc[c / W] += sum[0] + sum[1] + (sum[2] + sum[3]);
    }
}

INLINE FN(words) FN(numbers)(long from) {
    FN(words) lanes;
    for (long i = 0; i < W; i++) lanes[i] = (uint32_t)i;
    return lanes + (uint32_t)from;
}

INLINE void FN(attend_few)(const long d, const FN(Head) *a) {
    long stride = a->H * d;
    V lowest = (V){0} + (REAL)-1e30, *weights = a->weights, *x = a->columns, *y = x + d;
    REAL scale = (REAL)(LOG2E / __builtin_sqrt((double)d));
    for (long m = 0; m < a->queries; m++) {
        long seen = a->causal ? LEAST(a->places[m] - a->start + 1, a->keys) : a->keys;
        long at = m * stride;
        uint64_t word = a->drop->steps ? draws_of(a->drop, a->head, a->first + m) : 0;
        FN(words) low = (FN(words)){0} + (uint32_t)word;
        FN(words) high = (FN(words)){0} + (uint32_t)(word >> 32);
        V most = lowest, sum = {0};
        for (long c = 0; c < d; c += W) {
            x[c / W] = FN(load)(a->q + at + c, CHANNELS(d, c)) * scale;
            y[c / W] = (V){0};
        }
        for (long j = 0; j < seen; j += W) {
            V s = FN(dots)(d, seen - j, a->k + j * stride, stride, x);
            if (seen - j < W) s = FN(pick)(FN(count)() < (FN(bits))(seen - j), s, lowest);
            weights[j / W] = s;
            most = FN(larger)(most, s);
        }
        REAL top = most[0];
        for (long i = 1; i < W; i++) top = most[i] > top ? most[i] : top;
        for (long j = 0; j < seen; j += W) {
            V p = FN(exp2)(weights[j / W] - top);
            if (seen - j < W) p = FN(pick)(FN(count)() < (FN(bits))(seen - j), p, (V){0});
            sum += p;
            if (a->drop->steps) p *= FN(retained)(a->drop, low, high, FN(numbers)(j));
            weights[j / W] = p;
        }
        REAL all = FN(total)(sum);
        FN(weighted)(d, seen, (const REAL *)weights, a->v, stride, y);
        for (long c = 0; c < d; c += W)
            FN(store)(a->out + at + c, y[c / W] / all, CHANNELS(d, c));
        a->lse[m * a->H] = (top + FN(log2)((V){0} + all)[0]) * (REAL)(1 / LOG2E);
    }
}
OF_SIZE(attend_many)
OF_SIZE(attend_few)
