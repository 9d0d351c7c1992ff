// Causal depthwise convolution within each row, with the SiLU after it.
//
// A vector holds W neighbouring channels. Rows are dealt to parts; where there are few of them the
// blocks of channels are dealt, too. x may be some columns of a wider matrix.

// The pre-activation of the place x stands at, from the last `many` <= K places of its row.
INLINE V FN(taps)(const long K, const long many, const REAL *x, long stride, const V *w, V bias,
                  long k) {
    V y = bias;
#pragma GCC unroll 4
    for (long s = 0; s < many; s++) y += w[K - 1 - s] * FN(load)(x - s * stride, k);
    return y;
}

INLINE void FN(conv_row)(const long K, long n, const REAL *x, long stride, long D, const V *w,
                         V bias, const long k, int silu, REAL *y) {
    for (long t = 0; t < n; t++, x += stride) {
        V v = t >= K - 1 ? FN(taps)(K, K, x, stride, w, bias, k)
                         : FN(taps)(K, t + 1, x, stride, w, bias, k);
        if (silu) v *= FN(sigmoid)(v);
        FN(store)(y + t * D, v, k);
    }
}

// sums: the gradients of K taps and of the bias. ahead: K vectors to work in; there ahead[s] is the
// gradient of the pre-activation s + 1 places on.
INLINE void FN(conv_row_back)(const long K, long n, const REAL *x, long stride, long D, const V *w,
                              V bias, const long k, int silu, const REAL *gy, REAL *gx,
                              V *restrict ahead, V *restrict sums) {
    for (long s = 0; s < K; s++) ahead[s] = (V){0};
    x += (n - 1) * stride;
    for (long t = n - 1; t >= 0; t--, x -= stride) {
        V g = FN(load)(gy + t * D, k);
        if (silu) {
            V v = t >= K - 1 ? FN(taps)(K, K, x, stride, w, bias, k)
                             : FN(taps)(K, t + 1, x, stride, w, bias, k);
            V s = FN(sigmoid)(v);
            g *= s * (1 + v * (1 - s));
        }
        V to_x = w[K - 1] * g;
#pragma GCC unroll 4
        for (long s = 1; s < K; s++) to_x += w[K - 1 - s] * ahead[s - 1];
        FN(store)(gx + t * D, to_x, k);
#pragma GCC unroll 4
        for (long s = K - 1; s > 0; s--) ahead[s] = ahead[s - 1];
        ahead[0] = g;
        if (t >= K - 1) {
#pragma GCC unroll 4
            for (long s = 0; s < K; s++) sums[K - 1 - s] += g * FN(load)(x - s * stride, k);
        } else {
            for (long s = 0; s <= t; s++) sums[K - 1 - s] += g * FN(load)(x - s * stride, k);
        }
        sums[K] += g;
    }
}

// (D, K) and (D,) -> blocks of K taps and the bias, zero beyond D. The caller frees it.
static V *FN(tap_blocks)(long D, long K, const REAL *weight, const REAL *bias) {
    long blocks = (D + W - 1) / W;
    V *out = claim(sizeof(V) * (size_t)(blocks * (K + 1)));
    memset(out, 0, sizeof(V) * (size_t)(blocks * (K + 1)));
    for (long d = 0; d < D; d++) {
        V *block = out + d / W * (K + 1);
        for (long s = 0; s < K; s++) block[s][d % W] = weight[d * K + s];
        block[K][d % W] = bias[d];
    }
    return out;
}

// Taps and full vectors as constants let the compiler unroll.
#define PICK(call)                     \
    if (k == W && K == 4) call(4, W);  \
    else if (k == W && K == 3) call(3, W); \
    else call(K, k)

void FN(conv_forward)(long B, const int64_t *offsets, long T, long D, long K, long stride,
                      const REAL *x, const REAL *weight, const REAL *bias, int silu, REAL *y,
                      int threads) {
    long blocks = (D + W - 1) / W, parts = parts_of(B), strips = parts < PARTS ? blocks : 1;
    V *w = FN(tap_blocks)(D, K, weight, bias);
    FN(clear)(y, D, offsets[B], T);
#pragma omp parallel for collapse(2) schedule(dynamic, 1) num_threads(threads)
    for (long part = 0; part < parts; part++)
        for (long strip = 0; strip < strips; strip++) {
            long last = part_start(part + 1, B, offsets);
            for (long r = part_start(part, B, offsets); r < last; r++)
                for (long block = strip; block < blocks; block += strips) {
                    long d = block * W, k = LEAST(D - d, W), t = offsets[r];
                    const V *wb = w + block * (K + 1);
#define CALL(taps, lanes)                                                                      \
    FN(conv_row)(taps, offsets[r + 1] - t, x + t * stride + d, stride, D, wb, wb[taps], lanes, \
                 silu, y + t * D + d)
                    PICK(CALL);
#undef CALL
                }
        }
    free(w);
}

// Of gweight and gbias each of parts_of(B) parts.
void FN(conv_backward)(long B, const int64_t *offsets, long T, long D, long K, long stride,
                       const REAL *x, const REAL *weight, const REAL *bias, int silu,
                       const REAL *gy, REAL *gx, REAL *gweight, REAL *gbias, int threads) {
    long blocks = (D + W - 1) / W, parts = parts_of(B), strips = parts < PARTS ? blocks : 1;
    V *w = FN(tap_blocks)(D, K, weight, bias);
    FN(clear)(gx, D, offsets[B], T);
#pragma omp parallel num_threads(threads)
    {
        V *sums = claim(sizeof(V) * (size_t)(blocks * (K + 1) + K));
        V *ahead = sums + blocks * (K + 1);
#pragma omp for collapse(2) schedule(dynamic, 1)
        for (long part = 0; part < parts; part++)
            for (long strip = 0; strip < strips; strip++) {
                long last = part_start(part + 1, B, offsets);
                memset(sums, 0, sizeof(V) * (size_t)(blocks * (K + 1)));
                for (long r = part_start(part, B, offsets); r < last; r++)
                    for (long block = strip; block < blocks; block += strips) {
                        long d = block * W, k = LEAST(D - d, W), t = offsets[r];
                        const V *wb = w + block * (K + 1);
                        V *sb = sums + block * (K + 1);
#define CALL(taps, lanes)                                                                  \
    FN(conv_row_back)(taps, offsets[r + 1] - t, x + t * stride + d, stride, D, wb, wb[taps], \
                      lanes, silu, gy + t * D + d, gx + t * D + d, ahead, sb)
                        PICK(CALL);
#undef CALL
                    }
                for (long block = strip; block < blocks; block += strips)
                    for (long d = block * W; d < LEAST(D, (block + 1) * W); d++) {
                        V *sb = sums + block * (K + 1);
                        for (long s = 0; s < K; s++)
                            gweight[(part * D + d) * K + s] = sb[s][d % W];
                        gbias[part * D + d] = sb[K][d % W];
                    }
            }
        free(sums);
    }
    free(w);
}
#undef PICK
