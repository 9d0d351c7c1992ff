// Gated recurrent unit of each row; PyTorch's order of the gates r, z, n and place of the reset.
//
// Rows are sorted by length and taken ROWS at a time, so that at each step the rows still going are
// the first of their block. Their hidden states times the weights are products of a few vectors of
// accumulators: each vector of weights meets ROWS broadcast states.

#define ROWS 8

// The rows, longest first; equal ones in order. The caller frees it.
#ifndef SORTED
#define SORTED
static long *by_length(long B, const int64_t *offsets) {
    long longest = longest_row(B, offsets);
    long *rows = claim(sizeof(long) * (size_t)(B + 1));
    long *starts = claim(sizeof(long) * (size_t)(longest + 2));
    memset(starts, 0, sizeof(long) * (size_t)(longest + 2));
    for (long b = 0; b < B; b++) starts[longest - (offsets[b + 1] - offsets[b]) + 1]++;
    for (long n = 0; n <= longest; n++) starts[n + 1] += starts[n];
    for (long b = 0; b < B; b++) rows[starts[longest - (offsets[b + 1] - offsets[b])]++] = b;
    free(starts);
    return rows;
}
#endif

// acc[row][j] = sum over k of x[row * stride + k] w[k * J + j], for R rows and J vectors.
INLINE void FN(product)(const long R, const long J, long K, const REAL *x, long stride, const V *w,
                        V acc[ROWS][3]) {
    V sum[ROWS][3];
#pragma GCC unroll 8
    for (long i = 0; i < R; i++)
#pragma GCC unroll 3
        for (long j = 0; j < J; j++) sum[i][j] = (V){0};
    for (long k = 0; k < K; k++)
#pragma GCC unroll 8
        for (long i = 0; i < R; i++) {
            V value = FN(splat)(x[i * stride + k]);
#pragma GCC unroll 3
            for (long j = 0; j < J; j++) sum[i][j] += value * w[k * J + j];
        }
#pragma GCC unroll 8
    for (long i = 0; i < R; i++)
#pragma GCC unroll 3
        for (long j = 0; j < J; j++) acc[i][j] = sum[i][j];
}
// Functions of their own, for registers to be dealt to one loop at a time.
#define PRODUCT(R, J)                                                                         \
    static __attribute__((noinline)) void FN(CAT(product##R, J))(long K, const REAL *x,        \
                                                                 long stride, const V *w,     \
                                                                 V acc[ROWS][3]) {            \
        FN(product)(R, J, K, x, stride, w, acc);                                              \
    }
PRODUCT(8, 3) PRODUCT(7, 3) PRODUCT(6, 3) PRODUCT(5, 3)
PRODUCT(4, 3) PRODUCT(3, 3) PRODUCT(2, 3) PRODUCT(1, 3)
PRODUCT(8, 2) PRODUCT(7, 2) PRODUCT(6, 2) PRODUCT(5, 2)
PRODUCT(4, 2) PRODUCT(3, 2) PRODUCT(2, 2) PRODUCT(1, 2)
#undef PRODUCT
#define PRODUCTS(J)                                                                            \
    {FN(CAT(product1, J)), FN(CAT(product2, J)), FN(CAT(product3, J)), FN(CAT(product4, J)), \
     FN(CAT(product5, J)), FN(CAT(product6, J)), FN(CAT(product7, J)), FN(CAT(product8, J))}
static void (*const FN(gates_of)[ROWS])(long, const REAL *, long, const V *, V[ROWS][3]) =
    PRODUCTS(3);
static void (*const FN(pairs_of)[ROWS])(long, const REAL *, long, const V *, V[ROWS][3]) =
    PRODUCTS(2);
#undef PRODUCTS

// Rows of block `first` … that have a place t.
INLINE long FN(going)(long going, long t, const long *rows, const int64_t *offsets) {
    while (going && offsets[rows[going - 1] + 1] - offsets[rows[going - 1]] <= t) going--;
    return going;
}

// saved: r, z, n and U_n h + b_n side by side.
void FN(gru_forward)(long B, const int64_t *offsets, long T, long G, const REAL *gates,
                     const REAL *weight, const REAL *bias, REAL *states, REAL *saved,
                     int threads) {
    long blocks = (G + W - 1) / W, wide = blocks * W, *rows = by_length(B, offsets);
    // By block of hidden units: for each k the vectors of r, z and n, then the biases.
    V *w = claim(sizeof(V) * (size_t)(blocks * (G + 1) * 3));
    memset(w, 0, sizeof(V) * (size_t)(blocks * (G + 1) * 3));
    for (long gate = 0; gate < 3; gate++)
        for (long g = 0; g < G; g++) {
            V *block = w + g / W * (G + 1) * 3 + gate;
            const REAL *from = weight + (gate * G + g) * G;
            for (long k = 0; k < G; k++) block[k * 3][g % W] = from[k];
            block[G * 3][g % W] = bias[gate * G + g];
        }
    FN(clear)(states, G, offsets[B], T);
    FN(clear)(saved, 4 * G, offsets[B], T);
#pragma omp parallel num_threads(threads)
    {
        V *space = claim(2 * sizeof(REAL) * (size_t)(ROWS * wide)), acc[ROWS][3];
        REAL *h = (REAL *)space, *next = h + ROWS * wide;
#pragma omp for schedule(dynamic, 1)
        for (long first = 0; first < B; first += ROWS) {
            const long *some = rows + first;
            long going = LEAST(B - first, ROWS);
            memset(space, 0, 2 * sizeof(REAL) * (size_t)(ROWS * wide));
            for (long t = 0; (going = FN(going)(going, t, some, offsets)); t++) {
                for (long block = 0; block < blocks; block++) {
                    long d = block * W, k = LEAST(G - d, W);
                    const V *wb = w + block * (G + 1) * 3, *plus = wb + G * 3;
                    if (t) FN(gates_of)[going - 1](G, h, wide, wb, acc);
                    else memset(acc, 0, sizeof acc);
                    for (long i = 0; i < going; i++) {
                        long at = offsets[some[i]] + t;
                        const REAL *a = gates + at * 3 * G + d;
                        REAL *to = saved + at * 4 * G + d;
                        V r = FN(sigmoid)(FN(load)(a, k) + (acc[i][0] + plus[0]));
                        V z = FN(sigmoid)(FN(load)(a + G, k) + (acc[i][1] + plus[1]));
                        V un = acc[i][2] + plus[2];
                        V n = FN(tanh)(FN(load)(a + 2 * G, k) + r * un);
                        V now = n + z * (FN(load)(h + i * wide + d, W) - n);
                        FN(store)(next + i * wide + d, now, W);
                        FN(store)(states + at * G + d, now, k);
                        FN(store)(to, r, k);
                        FN(store)(to + G, z, k);
                        FN(store)(to + 2 * G, n, k);
                        FN(store)(to + 3 * G, un, k);
                    }
                }
                REAL *last = h;
                h = next;
                next = last;
            }
        }
        free(space);
    }
    free(w);
    free(rows);
}

// ggates: of the pre-activations of r, z and n.
void FN(gru_backward)(long B, const int64_t *offsets, long T, long G, const REAL *gstates,
                      const REAL *saved, const REAL *states, const REAL *weight, REAL *ggates,
                      int threads) {
    long pairs = (G + 2 * W - 1) / (2 * W), *rows = by_length(B, offsets);
    // By two blocks of hidden units: row by row of the weights, those of r, z and n.
    V *w = claim(sizeof(V) * (size_t)(pairs * 2 * 3 * G));
    memset(w, 0, sizeof(V) * (size_t)(pairs * 2 * 3 * G));
    for (long row = 0; row < 3 * G; row++)
        for (long d = 0; d < G; d++) {
            V *pair = w + (d / (2 * W) * 3 * G + row) * 2;
            pair[d / W % 2][d % W] = weight[row * G + d];
        }
    FN(clear)(ggates, 3 * G, offsets[B], T);
#pragma omp parallel num_threads(threads)
    {
        // Of each row the gradient of its state, and of U h + b of all three gates side by side.
        long across = 3 * G + W;
        V *space = claim(sizeof(REAL) * (size_t)(ROWS * (2 * pairs * W + across))), acc[ROWS][3];
        REAL *gh = (REAL *)space, *gu = gh + ROWS * 2 * pairs * W;
#pragma omp for schedule(dynamic, 1)
        for (long first = 0; first < B; first += ROWS) {
            const long *some = rows + first;
            long most = LEAST(B - first, ROWS), length = offsets[some[0] + 1] - offsets[some[0]];
            memset(gh, 0, sizeof(REAL) * (size_t)(ROWS * 2 * pairs * W));
            for (long t = length - 1; t >= 0; t--) {
                long going = FN(going)(most, t, some, offsets);
                for (long i = 0; i < going; i++) {
                    long at = offsets[some[i]] + t;
                    const REAL *from = saved + at * 4 * G;
                    REAL *to = ggates + at * 3 * G, *carry = gh + i * 2 * pairs * W;
                    REAL *out = gu + i * across;
                    for (long d = 0; d < G; d += W) {
                        long k = LEAST(G - d, W);
                        V g = FN(load)(gstates + at * G + d, k) + FN(load)(carry + d, W);
                        V r = FN(load)(from + d, k), z = FN(load)(from + G + d, k);
                        V n = FN(load)(from + 2 * G + d, k), un = FN(load)(from + 3 * G + d, k);
                        V before = t ? FN(load)(states + (at - 1) * G + d, k) : (V){0};
                        V gz = g * (before - n) * z * (1 - z), gn = g * (1 - z) * (1 - n * n);
                        V gr = gn * un * r * (1 - r);
                        FN(store)(carry + d, g * z, W);
                        FN(store)(out + d, gr, k);
                        FN(store)(out + G + d, gz, k);
                        FN(store)(out + 2 * G + d, gn * r, k);
                        FN(store)(to + d, gr, k);
                        FN(store)(to + G + d, gz, k);
                        FN(store)(to + 2 * G + d, gn, k);
                    }
                }
                if (!t || !going) continue;
                for (long pair = 0; pair < pairs; pair++) {
                    FN(pairs_of)[going - 1](3 * G, gu, across, w + pair * 3 * G * 2, acc);
                    for (long i = 0; i < going; i++)
                        for (long j = 0; j < 2; j++) {
                            REAL *carry = gh + i * 2 * pairs * W + (pair * 2 + j) * W;
                            FN(store)(carry, FN(load)(carry, W) + acc[i][j], W);
                        }
                }
            }
        }
        free(space);
    }
    free(w);
    free(rows);
}
