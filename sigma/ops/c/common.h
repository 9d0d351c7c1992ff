// Vectors, elementary functions and memory that the kernels share; included for each REAL.

#ifndef COMMON
#define COMMON

#define BYTES 64  // of a vector
#define LOG2E 1.44269504088896340736
#define INLINE static inline __attribute__((always_inline))
#define CAT2(a, b) a##_##b
#define CAT(a, b) CAT2(a, b)
#define FN(name) CAT(name, REAL)
#define W ((long)(BYTES / sizeof(REAL)))
#define V FN(vector)
#define VI FN(lanes)
#define LEAST(a, b) ((a) < (b) ? (a) : (b))

#define HALF_double 0, 1, 2, 3
#define HALF_float 0, 1, 2, 3, 4, 5, 6, 7
#define NUMBERS_double HALF_float
#define NUMBERS_float NUMBERS_double, 8, 9, 10, 11, 12, 13, 14, 15
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

// Within a parallel region nobody takes an error. What is trained is in checkpoints.
static void *claim(size_t bytes) {
    void *place = aligned_alloc(BYTES, (bytes + BYTES - 1) / BYTES * BYTES);
    if (!place && bytes) {
        fprintf(stderr, "error: no memory for %zu bytes of a kernel's workspace; use a smaller "
                        "batch.\n", bytes);
        abort();
    }
    return place;
}

static long longest_row(long B, const int64_t *offsets) {
    long longest = 0;
    for (long b = 0; b < B; b++)
        if (offsets[b + 1] - offsets[b] > longest) longest = offsets[b + 1] - offsets[b];
    return longest;
}

// Sums over rows are taken per part of the batch, enough parts for any number of threads.
#define PARTS 64
static long parts_of(long B) { return LEAST(B, PARTS); }

// The first row of a part: rows are dealt to parts by their first place, each part as many places.
static long part_start(long part, long B, const int64_t *offsets) {
    long parts = parts_of(B), low = 0, high = B;
    if (part == parts) return B;
    while (low < high) {
        long middle = (low + high) / 2;
        if (offsets[middle] * parts < offsets[B] * part) low = middle + 1;
        else high = middle;
    }
    return low;
}
#endif

typedef REAL V __attribute__((vector_size(BYTES)));
typedef FN(bits) VI __attribute__((vector_size(BYTES)));

typedef REAL FN(half) __attribute__((vector_size(BYTES / 2)));

// One number in all lanes; minus zero, unlike plus, costs nothing.
INLINE V FN(splat)(REAL x) { return x - (V){0}; }

INLINE V FN(pick)(VI mask, V yes, V no) { return (V)(((VI)yes & mask) | ((VI)no & ~mask)); }
INLINE V FN(smaller)(V a, V b) { return FN(pick)(a < b, a, b); }
INLINE V FN(larger)(V a, V b) { return FN(pick)(a > b, a, b); }

// k lanes of x, zero beyond. Functions of their own where k is odd: these are rare, and many calls
// of memcpy take long to compile. Half a vector does not go through memory, where it would stall.
static __attribute__((noinline)) V FN(load_some)(const REAL *x, long k) {
    V v = {0};
    memcpy(&v, x, sizeof(REAL) * (size_t)k);
    return v;
}
static __attribute__((noinline)) void FN(store_some)(REAL *x, V v, long k) {
    memcpy(x, &v, sizeof(REAL) * (size_t)k);
}
INLINE V FN(load)(const REAL *x, long k) {
    if (k == W) {
        V v;
        memcpy(&v, x, sizeof v);
        return v;
    }
#if __has_builtin(__builtin_shufflevector)
    if (k == W / 2) {
        FN(half) low, zero = {0};
        memcpy(&low, x, sizeof low);
        return __builtin_shufflevector(low, zero, FN(NUMBERS));
    }
#endif
    return FN(load_some)(x, k);
}
INLINE void FN(store)(REAL *x, V v, long k) {
    if (k == W) {
        memcpy(x, &v, sizeof v);
        return;
    }
#if __has_builtin(__builtin_shufflevector)
    if (k == W / 2) {
        FN(half) low = __builtin_shufflevector(v, v, FN(HALF));
        memcpy(x, &low, sizeof low);
        return;
    }
#endif
    FN(store_some)(x, v, k);
}
// Zeros in the places of x, each `width` numbers, from `first` to T.
static void FN(clear)(REAL *x, long width, long first, long T) {
    memset(x + first * width, 0, sizeof(REAL) * (size_t)((T - first) * width));
}
INLINE REAL FN(total)(V v) {
    REAL sum = 0;
    for (long i = 0; i < W; i++) sum += v[i];
    return sum;
}
INLINE VI FN(count)(void) { return (VI){FN(NUMBERS)}; }

// Lanes whose number has the bit s come from b, the others from a: those of the even (odd) groups
// of s lanes of both. They are the rounds, log2(W) of them, of sums and transposes of W vectors.
INLINE V FN(permuted)(V a, V b, VI lanes) {
#ifdef __clang__
    V v;
    for (long i = 0; i < W; i++) v[i] = lanes[i] < W ? a[lanes[i]] : b[lanes[i] - W];
    return v;
#else
    return __builtin_shuffle(a, b, lanes);
#endif
}
INLINE V FN(even)(V a, V b, FN(bits) s) {
    VI own = FN(count)(), high = (own & s) != 0;
    return FN(permuted)(a, b, own + (high & ((FN(bits))W - s)));
}
INLINE V FN(odd)(V a, V b, FN(bits) s) {
    VI own = FN(count)(), high = (own & s) != 0;
    return FN(permuted)(a, b, own + s + (high & ((FN(bits))W - s)));
}

// Lane i becomes the sum of the lanes of x[i]. x is spent.
static __attribute__((noinline, unused)) V FN(sums)(V *x) {
#pragma GCC unroll 4
    for (long s = W / 2; s; s /= 2)
#pragma GCC unroll 16
        for (long i = 0; i < s; i++)
            x[i] = FN(even)(x[i], x[i + s], (FN(bits))s) + FN(odd)(x[i], x[i + s], (FN(bits))s);
    return x[0];
}

static __attribute__((noinline, unused)) void FN(transpose)(V *x) {
#pragma GCC unroll 4
    for (long s = W / 2; s; s /= 2)
#pragma GCC unroll 16
        for (long i = 0; i < W; i++)
            if (!(i & s)) {
                V a = x[i], b = x[i + s];
                x[i] = FN(even)(a, b, (FN(bits))s);
                x[i + s] = FN(odd)(a, b, (FN(bits))s);
            }
}

// f and q of 2^x = 2^(x - f) (1 + q), x within the exponents; the lowest bits of *whole are x - f.
INLINE V FN(fraction)(V x, V *whole) {
    *whole = x + FN(round);
    V f = x - (*whole - FN(round)), p = (V){0} + FN(power)[0];
#pragma GCC unroll 16
    for (int i = 1; i < FN(terms) - 1; i++) p = p * f + FN(power)[i];
    return p * f;
}
// 2^x for x < 2^7; far below zero it is the smallest normal number.
INLINE V FN(exp2)(V x) {
    V whole, q = FN(fraction)(FN(larger)(x, (V){0} + (REAL)FN(least)), &whole);
    return (V)((VI)(q + 1) + ((VI)whole << FN(mantissa)));
}

INLINE V FN(sigmoid)(V x) {
    V most = (V){0} - (REAL)FN(least);
    return 1 / (1 + FN(exp2)(FN(smaller)(x * (REAL)-LOG2E, most)));
}

// (e^2x - 1) / (e^2x + 1), with the difference exact where x is small.
INLINE V FN(tanh)(V x) {
    V limit = (V){0} + (REAL)60, whole;
    V q = FN(fraction)(FN(larger)(FN(smaller)(x * (REAL)(2 * LOG2E), limit), -limit), &whole);
    V one = {0};
    one += 1;
    V scale = (V)((VI)one + ((VI)whole << FN(mantissa))), less = scale * q + (scale - 1);
    return less / (less + 2);
}

// log(1 + e) for 0 <= e <= 1.
INLINE V FN(log1p)(V e) {
    V s = e / (2 + e), s2 = s * s, sum = {0};
#pragma GCC unroll 17
    for (int k = FN(artanh) - 1; k >= 0; k--) sum = sum * s2 + (REAL)1 / (REAL)(2 * k + 1);
    return 2 * s * sum;
}

// log2(x) for normal x > 0.
INLINE V FN(log2)(V x) {
    V one = {0};
    one += 1;
    VI mask = (((VI){0} + 1) << FN(mantissa)) - 1;
    VI exponent = ((VI)x >> FN(mantissa)) + FN(least) - 1;
    V m = (V)(((VI)x & mask) | (VI)one);
    return __builtin_convertvector(exponent, V) + FN(log1p)(m - 1) * (REAL)LOG2E;
}

// softplus and its derivative; PyTorch's is x beyond 20, so this is.
INLINE V FN(softplus)(V x, V *slope) {
    VI far = x > 20, negative = x < 0;
    V zero = {0}, one = zero + 1, e = FN(exp2)(FN(pick)(negative, x, -x) * (REAL)LOG2E);
    *slope = FN(pick)(far, one, FN(pick)(negative, e, one) / (1 + e));
    return FN(pick)(far, x, FN(pick)(negative, zero, x) + FN(log1p)(e));
}
