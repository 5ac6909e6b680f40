// One position of Llama layers for a few rows, and the sub-codes of one position with guidance and sampling.
//
// One function replaces hundreds of operations: in a small model, calling an operation costs more than its arithmetic.
// Structures mirror those of cpu.py, which compares their sizes when it loads this file. All tensors are contiguous.
// Activations are float32, keys and values float32 or bfloat16. No row of a batch reads another one, so other rows can
// change a row's numbers only through the order of additions.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif
#if defined __AMX_BF16__ && defined __linux__
#include <sys/syscall.h>
#include <unistd.h>
#define TILES  // AMX: the processor multiplies 16 x 32 by 32 x 16 bfloat16 numbers at once
#endif

using std::int64_t;

enum Kind : int64_t {
    FLOAT32,   // [out, in]
    BFLOAT16,  // in tiles of 16 x 32: [out / 16, in / 32, 16 pairs of inputs, 16 outputs, 2]
    INT8,      // [out, in], times a scale for each output
    // 4 bits, as torch lays them out: [blocks of outputs, in, half a block], where a byte holds the id of an output
    // and, in its high bits, the id of the one half a block on. Each is (id - 8) * scale + zero, with pairs of these
    // in bfloat16, [in / 32, outputs]. Outputs are padded to whole blocks of 64.
    INT4_BY_32,
    INT4_BY_64,
    BFLOAT16_ROWS,  // [out, in]
};

struct Matrix {
    Kind kind;
    const void* weight;
    const float* bias;
    const void* scales;
    int64_t out, in;
};

struct Layer {
    const float* norm1;
    Matrix q, k, v, o;
    const float* norm2;
    Matrix gate, up, down;
};

struct Body {
    int64_t layers, dim, heads, kv_heads, width, hidden;
    float eps, scale;
    const Layer* layer;
    const float *norm, *cos, *sin;  // [places, width]
};

struct Head {
    Body body;
    Matrix enter;  // without weight: the identity
    int64_t codebooks, entries;
    const float* const* tables;  // [codebooks - 1], each [entries, dim]
    const Matrix* outputs;       // [codebooks]
};

struct Norm {  // LayerNorm
    const float *weight, *bias;
    float eps;
};

struct Embedding {  // attention beside a linear path, GeGLU, and the way to the backbone
    int64_t heads;
    Norm norm1;
    Matrix q, k, v, out;
    Norm norm3;
    Matrix across;
    Norm norm2, norm;
    Matrix w0, w1, w2;
    Norm last;
    Matrix first, second;
};

struct Sampling {  // temperature 0: greedy; top_k 0: all; num_scales: how many scales of guidance there are
    double temperature, top_p, cfg_scales[2];
    int64_t num_scales;
    int64_t top_k;
};

namespace {

constexpr int LANES = 16, DEPTH = 32;  // of a tile: outputs, inputs
constexpr int64_t AHEAD = 8192;        // bytes
constexpr int64_t NONE = -1;           // in place of an entry, where logits are not finite
typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef int16_t Shorts __attribute__((vector_size(2 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

struct Bfloat16 {
    uint16_t bits;
    Bfloat16() = default;
    Bfloat16(float x) {  // to the nearest, ties to even
        uint32_t all;
        std::memcpy(&all, &x, sizeof all);
        bits = (all + 0x7fff + (all >> 16 & 1)) >> 16;
    }
    operator float() const {
        uint32_t all = uint32_t(bits) << 16;
        float x;
        std::memcpy(&x, &all, sizeof x);
        return x;
    }
};

template <class V, class T>
inline V load(const T* from) {
    V lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

inline void store(const Lanes& lanes, float* to) { std::memcpy(to, &lanes, sizeof lanes); }
inline Lanes lanes(const Ints& x) { return __builtin_convertvector(x, Lanes); }
inline Lanes lanes(const float* from) { return load<Lanes>(from); }

// GCC takes the numbers out one by one where it is not told, or is told to widen them to four bytes at once.
inline Ints ints(const int8_t* from) {
#ifdef __AVX512F__
    return (Ints)_mm512_cvtepi8_epi32(load<__m128i>(from));
#else
    return __builtin_convertvector(__builtin_convertvector(load<Bytes>(from), Shorts), Ints);
#endif
}

inline Lanes lanes(const int8_t* from) { return lanes(ints(from)); }

inline Lanes lanes(const Bfloat16* from) {
    return (Lanes)(__builtin_convertvector(load<Halves>(from), Words) << 16);
}

// The two bfloat16 numbers in each 32-bit word.
inline Lanes lower(const Words& both) { return (Lanes)(both << 16); }
inline Lanes upper(const Words& both) { return (Lanes)(both & 0xffff0000u); }

inline float sum(const Lanes& x) {
    typedef float Eight __attribute__((vector_size(32)));
    typedef float Four __attribute__((vector_size(16)));
    Eight eight = load<Eight>((const float*)&x) + load<Eight>((const float*)&x + 8);
    Four four = load<Four>((const float*)&eight) + load<Four>((const float*)&eight + 4);
    return (four[0] + four[1]) + (four[2] + four[3]);
}

// 2^n * e^r with x = n ln 2 + r; relative error 1e-7.
inline Lanes exponential(Lanes x) {
    x = x < -87.0f ? Lanes{} - 87.0f : x > 88.0f ? Lanes{} + 88.0f : x;
    Lanes n = (x * 1.44269504f + 12582912.0f) - 12582912.0f, r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Lanes e = r * (1 / 5040.0f) + 1 / 720.0f;
    for (float term : {1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1.0f, 1.0f}) e = e * r + term;
    return e * (Lanes)((__builtin_convertvector(n, Ints) + 127) << 23);
}

// N outputs of R rows. Each weight is read once for all rows, each input once for all outputs. The weights of the next
// output begin `stride` numbers later.
template <int N, int R, class T>
inline void tile(const T* w, const float* x, int64_t in, int64_t stride, float (&sums)[N][R]) {
    constexpr int64_t LINE = 64 / sizeof(T);  // of the processor's memory
    // Prefetch weights `AHEAD` bytes early: the processor's own prefetching stops at the end of a page.
    const int64_t ahead = std::max<int64_t>(N * stride, AHEAD / sizeof(T));
    Lanes many[N][R] = {};
    int64_t i = 0;
    auto take = [&](int64_t i) {
        for (int n = 0; n < N; ++n) {
            Lanes a = lanes(w + n * stride + i);
            for (int r = 0; r < R; ++r) many[n][r] += a * lanes(x + r * in + i);
        }
    };
    for (; i + LINE <= in; i += LINE) {
        for (int n = 0; n < N; ++n) __builtin_prefetch(w + n * stride + i + ahead);
        for (int64_t j = 0; j < LINE; j += LANES) take(i + j);
    }
    for (; i + LANES <= in; i += LANES) take(i);
    for (int n = 0; n < N; ++n)
        for (int r = 0; r < R; ++r) {
            sums[n][r] = sum(many[n][r]);
            for (int64_t j = i; j < in; ++j) sums[n][r] += w[n * stride + j] * x[r * in + j];
        }
}

inline void finish(const Matrix& m, Lanes sums, int64_t n, float* y, bool add) {
    if (m.bias) sums += lanes(m.bias + n);
    store(add ? lanes(y + n) + sums : sums, y + n);
}

template <class T, int N, int R>
inline int64_t outputs(const Matrix& m, const float* x, float* y, int64_t n, int64_t r, bool add) {
    float sums[N][R];
    auto scales = static_cast<const float*>(m.scales);
    tile<N, R>(static_cast<const T*>(m.weight) + n * m.in, x + r * m.in, m.in, m.in, sums);
    for (int i = 0; i < N; ++i)
        for (int j = 0; j < R; ++j) {
            float value = sums[i][j] * (scales ? scales[n + i] : 1) + (m.bias ? m.bias[n + i] : 0);
            float& to = y[(r + j) * m.out + n + i];
            to = add ? to + value : value;
        }
    return R;
}

template <class T, int N>
inline void all_rows(const Matrix& m, const float* x, float* y, int64_t rows, int64_t n, bool add) {
    int64_t r = 0;
    while (r + 4 <= rows) r += outputs<T, N, 4>(m, x, y, n, r, add);
    if (r + 2 <= rows) r += outputs<T, N, 2>(m, x, y, n, r, add);
    if (r < rows) outputs<T, N, 1>(m, x, y, n, r, add);
}

template <class T>
void product(const Matrix& m, const float* x, float* y, int64_t rows, bool add) {
#pragma omp for schedule(static)
    for (int64_t n = 0; n < m.out; n += 4) {
        if (n + 4 <= m.out)
            all_rows<T, 4>(m, x, y, rows, n, add);
        else
            for (int64_t rest = n; rest < m.out; ++rest) all_rows<T, 1>(m, x, y, rows, rest, add);
    }
}

// Of tiles, for R rows and B blocks of 16 outputs: both inputs of a pair stand in one word.
template <int R, int B>
inline void pairs(const Matrix& m, const uint16_t* w, const float* x, float* y, bool add) {
    Lanes sums[R][B][2] = {};
    for (int64_t pair = 0; pair < m.in / 2; ++pair)
        for (int b = 0; b < B; ++b) {
            Words both = load<Words>(w + (b * m.in + 2 * pair) * LANES);
            Lanes even = lower(both), odd = upper(both);
            for (int r = 0; r < R; ++r) {
                sums[r][b][0] += even * x[r * m.in + 2 * pair];
                sums[r][b][1] += odd * x[r * m.in + 2 * pair + 1];
            }
        }
    for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) finish(m, sums[r][b][0] + sums[r][b][1], b * LANES, y + r * m.out, add);
}

template <int B>
inline void all_rows_of_tiles(Matrix m, int64_t n, const float* x, float* y, int64_t rows, bool add) {
    auto w = static_cast<const uint16_t*>(m.weight) + n * m.in;
    m.bias = m.bias ? m.bias + n : nullptr;
    y += n;
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) pairs<4, B>(m, w, x + r * m.in, y + r * m.out, add);
    if (r + 2 <= rows) pairs<2, B>(m, w, x + r * m.in, y + r * m.out, add), r += 2;
    if (r < rows) pairs<1, B>(m, w, x + r * m.in, y + r * m.out, add);
}

void product_of_tiles(const Matrix& m, const float* x, float* y, int64_t rows, bool add) {
#pragma omp for schedule(static)
    for (int64_t n = 0; n < m.out; n += 2 * LANES) {
        if (n + 2 * LANES <= m.out)
            all_rows_of_tiles<2>(m, n, x, y, rows, add);
        else
            all_rows_of_tiles<1>(m, n, x, y, rows, add);
    }
}

// Of 16 bytes, with an id of 4 bits in the low and one in the high half: the ids less 8.
inline void halves(const int8_t* from, Lanes& low, Lanes& high) {
    Ints both = ints(from);
#ifdef __AVX512F__  // which looks numbers up by the lowest 4 bits
    const Lanes numbers = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    low = (Lanes)_mm512_permutexvar_ps((__m512i)both, (__m512)numbers);
    high = (Lanes)_mm512_permutexvar_ps((__m512i)(both >> 4), (__m512)numbers);
#else
    both ^= 0x88;  // 4 bits of id - 8 and their sign
    low = lanes(both << 28 >> 28), high = lanes(both << 24 >> 28);
#endif
}

// Scales and zeros of 16 outputs from the n-th, for the group of inputs d.
inline Words scales_zeros(const Matrix& m, int64_t n, int64_t d) {
    return load<Words>(static_cast<const uint32_t*>(m.scales) + d * ((m.out + 63) / 64 * 64) + n);
}

// Of 4 bits, for R rows and the block of 2 * G * 16 outputs from the n-th.
template <int R, int G>
inline void nibbles(const Matrix& m, int64_t n, const float* x, float* y, bool add) {
    auto w = static_cast<const int8_t*>(m.weight) + n / 2 * m.in;
    Lanes sums[R][2 * G] = {};
    for (int64_t d = 0; d < m.in / DEPTH; ++d) {
        Lanes some[R][2 * G] = {};
        for (int64_t i = d * DEPTH; i < (d + 1) * DEPTH; ++i) {
            __builtin_prefetch(w + i * G * LANES + AHEAD);
            for (int g = 0; g < G; ++g) {
                Lanes low, high;
                halves(w + (i * G + g) * LANES, low, high);
                for (int r = 0; r < R; ++r) {
                    some[r][g] += low * x[r * m.in + i];
                    some[r][G + g] += high * x[r * m.in + i];
                }
            }
        }
        for (int r = 0; r < R; ++r) {
            const float* from = x + r * m.in + d * DEPTH;
            float total = sum(lanes(from) + lanes(from + LANES));
            for (int b = 0; b < 2 * G; ++b) {
                Words both = scales_zeros(m, n + b * LANES, d);
                sums[r][b] += some[r][b] * lower(both) + total * upper(both);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int b = 0; b < 2 * G; ++b)
            if (n + b * LANES < m.out) finish(m, sums[r][b], n + b * LANES, y + r * m.out, add);
}

template <int G>
void product_of_nibbles(const Matrix& m, const float* x, float* y, int64_t rows, bool add) {
#pragma omp for schedule(static)
    for (int64_t n = 0; n < m.out; n += 2 * G * LANES) {
        int64_t r = 0;
        for (; r + 4 <= rows; r += 4) nibbles<4, G>(m, n, x + r * m.in, y + r * m.out, add);
        if (r + 2 <= rows) nibbles<2, G>(m, n, x + r * m.in, y + r * m.out, add), r += 2;
        if (r < rows) nibbles<1, G>(m, n, x + r * m.in, y + r * m.out, add);
    }
}

// Inputs of the matrix units, of 16 rows at a time.
struct Parts {
    std::vector<uint16_t> x;    // [in / 32, 3, rows, 32]
    std::vector<float> totals;  // [in / 32, rows], over 32 inputs
    Parts(int64_t widest) : x(3 * 16 * widest), totals(16 * (widest / DEPTH)) {}
};

#ifdef TILES
constexpr int64_t FEW = 3;  // from so many rows on, multiplying takes longer than reading the weights

// Whether the operating system lets this process use tiles.
bool have_tiles() {
    static const bool granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
    return granted;
}

// A float32 as the sum of three bfloat16 numbers, whose 3 x 8 bits hold all of its 24.
void split(const float* x, Parts& parts, int64_t rows, int64_t in) {
#pragma omp for schedule(static)
    for (int64_t block = 0; block < in / DEPTH; ++block)
        for (int64_t r = 0; r < rows; ++r) {
            const float* from = x + r * in + block * DEPTH;
            parts.totals[block * rows + r] = sum(lanes(from) + lanes(from + LANES));
            for (int64_t i = 0; i < DEPTH; i += LANES) {
                Lanes rest = lanes(from + i);
                for (int part = 0; part < 3; ++part) {
                    Words bits = (Words)rest & 0xffff0000u;
                    Halves taken = __builtin_convertvector(bits >> 16, Halves);
                    std::memcpy(&parts.x[((block * 3 + part) * rows + r) * DEPTH + i], &taken, sizeof taken);
                    rest -= (Lanes)bits;
                }
            }
        }
}

// The ids of a tile, 16 outputs from the n-th by 32 inputs from the i-th, as those of bfloat16 are: whole numbers below
// 256 are numbers of bfloat16.
void unpack(const Matrix& m, int64_t n, int64_t i, uint32_t* tile) {
    int64_t half = m.kind == INT4_BY_32 ? 16 : 32, inside = n % (2 * half), high = inside >= half ? 4 : 0;
    auto bytes = static_cast<const int8_t*>(m.weight) + (n - inside) / 2 * m.in + inside % half;
    auto ids = [&](int64_t i) { return lanes((ints(bytes + i * half) >> high & 15) - 8); };
    for (int64_t pair = 0; pair < DEPTH / 2; ++pair) {
        Words both = (Words)ids(i + 2 * pair) >> 16 | (Words)ids(i + 2 * pair + 1);
        std::memcpy(tile + pair * LANES, &both, sizeof both);
    }
}

// The same of 8 bits, where the inputs of an output lie together: four of each of 16 outputs at a time.
void unpack_bytes(const Matrix& m, int64_t n, int64_t i, uint32_t* tile) {
    auto bytes = static_cast<const int8_t*>(m.weight) + n * m.in + i;
    Ints outputs = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int64_t pair = 0; pair < DEPTH / 2; pair += 2) {
        Ints four = (Ints)_mm512_i32gather_epi32((__m512i)(outputs * int32_t(m.in)), bytes + 2 * pair, 1);
        for (int64_t two = 0; two < 2; ++two) {
            Ints even = four << (two ? 8 : 24) >> 24, odd = four << (two ? 0 : 16) >> 24;
            Words both = (Words)lanes(even) >> 16 | (Words)lanes(odd);
            std::memcpy(tile + (pair + two) * LANES, &both, sizeof both);
        }
    }
}

// Where the tile is, or is now. Where tiles lie in memory, the units would wait for each: the next one is asked for.
inline const void* tile_of(const Matrix& m, int64_t n, int64_t d, uint32_t* memory) {
    if (m.kind == BFLOAT16) {
        auto tile = static_cast<const uint16_t*>(m.weight) + n * m.in + d * LANES * DEPTH;
        for (int line = 0; line < LANES; ++line) __builtin_prefetch(tile + LANES * DEPTH + line * DEPTH);
        return tile;
    }
    (m.kind == INT8 ? unpack_bytes : unpack)(m, n, d * DEPTH, memory);
    return memory;
}

// The matrix units' product, four blocks of outputs and at most 16 rows at a time.
void product_by_tiles(const Matrix& m, const float* x, float* y, int64_t all, bool add, Parts& parts) {
    bool grouped = m.kind == INT4_BY_32 || m.kind == INT4_BY_64;
    for (int64_t first = 0; first < all; first += 16) {
        int64_t rows = std::min<int64_t>(16, all - first), depth = m.in / DEPTH;
        split(x + first * m.in, parts, rows, m.in);
        struct {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {};
        } shapes;
        for (int tile = 0; tile < 8; ++tile) shapes.rows[tile] = tile < 7 ? rows : 16;
        _tile_loadconfig(&shapes);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < m.out; n += 4 * LANES) {
            int64_t blocks = std::min<int64_t>(4, (m.out - n) / LANES);
            float sums[4][16][LANES], some[4][16][LANES];
            uint32_t unpacked[LANES * DEPTH / 2];
            // Tiles add up ids. Of 4 bits, each group of inputs has its scales: sum of (id * scale + zero) x.
            auto take = [&](int64_t d) {
                _tile_stored(0, some[0], 64);
                _tile_stored(1, some[1], 64);
                _tile_stored(2, some[2], 64);
                _tile_stored(3, some[3], 64);
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
                for (int64_t b = 0; b < blocks; ++b)
                    for (int64_t r = 0; r < rows; ++r) {
                        Lanes now = lanes(some[b][r]);
                        if (grouped) {
                            Words both = scales_zeros(m, n + b * LANES, d);
                            now = now * lower(both) + parts.totals[d * rows + r] * upper(both);
                            if (d) now += lanes(sums[b][r]);
                        } else if (m.kind == INT8)
                            now *= lanes(static_cast<const float*>(m.scales) + n + b * LANES);
                        store(now, sums[b][r]);
                    }
            };
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t d = 0; d < depth; ++d) {
                const uint16_t* part = &parts.x[d * 3 * rows * DEPTH];
                _tile_loadd(4, part, 64);
                _tile_loadd(5, part + rows * DEPTH, 64);
                _tile_loadd(6, part + 2 * rows * DEPTH, 64);
#define BLOCK(b)                                                    \
    if (b < blocks) {                                               \
        _tile_loadd(7, tile_of(m, n + b * LANES, d, unpacked), 64); \
        _tile_dpbf16ps(b, 4, 7);                                    \
        _tile_dpbf16ps(b, 5, 7);                                    \
        _tile_dpbf16ps(b, 6, 7);                                    \
    }
                BLOCK(0) BLOCK(1) BLOCK(2) BLOCK(3)
#undef BLOCK
                if (grouped || d + 1 == depth) take(d);
            }
            for (int64_t b = 0; b < blocks; ++b)
                for (int64_t r = 0; r < rows; ++r)
                    finish(m, lanes(sums[b][r]), n + b * LANES, y + (first + r) * m.out, add);
        }
        _tile_release();
    }
}
#endif

// All threads of a team call these functions together, but for those of one row.

void linear(const Matrix& m, const float* x, float* y, int64_t rows, Parts& parts, bool add = false) {
    if (m.kind == FLOAT32) return product<float>(m, x, y, rows, add);
    if (m.kind == BFLOAT16_ROWS) return product<Bfloat16>(m, x, y, rows, add);
#ifdef TILES
    if (rows >= FEW && have_tiles()) return product_by_tiles(m, x, y, rows, add, parts);
#endif
    if (m.kind == BFLOAT16) return product_of_tiles(m, x, y, rows, add);
    if (m.kind == INT8) return product<int8_t>(m, x, y, rows, add);
    if (m.kind == INT4_BY_32) return product_of_nibbles<1>(m, x, y, rows, add);
    product_of_nibbles<2>(m, x, y, rows, add);
}

void rms_norm(const float* weight, float eps, const float* x, float* y, int64_t rows, int64_t dim) {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < dim; ++i) squares += x[r * dim + i] * x[r * dim + i];
        float scale = 1 / std::sqrt(squares / dim + eps);
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) y[r * dim + i] = x[r * dim + i] * scale * weight[i];
    }
}

void layer_norm(const Norm& norm, const float* x, float* y, int64_t rows, int64_t dim) {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
        float total = 0, squares = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < dim; ++i) total += x[r * dim + i];
        float mean = total / dim;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < dim; ++i) squares += (x[r * dim + i] - mean) * (x[r * dim + i] - mean);
        float scale = 1 / std::sqrt(squares / dim + norm.eps);
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i)
            y[r * dim + i] = (x[r * dim + i] - mean) * scale * norm.weight[i] + norm.bias[i];
    }
}

template <class T>
void rotate(const float* x, T* y, const float* cos, const float* sin, int64_t width) {
    for (int64_t i = 0, half = width / 2; i < half; ++i) {
        float left = x[i], right = x[i + half];
        y[i] = left * cos[i] - right * sin[i];
        y[i + half] = right * cos[i + half] + left * sin[i + half];
    }
}

// x = exp(x - most).
void exponentials(float* x, int64_t count, float most) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(exponential(lanes(x + i) - most), x + i);
    for (; i < count; ++i) x[i] = std::exp(x[i] - most);
}

// q k for C columns, `stride` numbers apart.
template <int C, class T>
inline void score(const float* q, const T* k, float* p, int64_t stride, int64_t width) {
    float sums[C][1];
    tile<C, 1>(k, q, width, stride, sums);
    for (int c = 0; c < C; ++c) p[c] = sums[c][0];
}

// o += p v for C columns.
template <int C, class T>
inline void blend(const float* p, const T* v, float* o, int64_t stride, int64_t width) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        Lanes total = lanes(o + i);
        for (int c = 0; c < C; ++c) {
            __builtin_prefetch(v + (c + C) * stride + i);
            total += p[c] * lanes(v + c * stride + i);
        }
        store(total, o + i);
    }
    for (; i < width; ++i)
        for (int c = 0; c < C; ++c) o[i] += p[c] * v[c * stride + i];
}

// o = softmax(q k) v over `count` columns, `stride` numbers apart.
template <class T>
void attend(const float* q, const T* k, const T* v, float* o, int64_t count, int64_t stride, int64_t width) {
    constexpr int C = 8;
    thread_local std::vector<float> weights;
    weights.resize(count);
    float *p = weights.data(), total = 0;
    int64_t t = 0;
    for (; t + C <= count; t += C) score<C>(q, k + t * stride, p + t, stride, width);
    for (; t < count; ++t) score<1>(q, k + t * stride, p + t, stride, width);
    exponentials(p, count, *std::max_element(p, p + count));
#pragma omp simd reduction(+ : total)
    for (int64_t t = 0; t < count; ++t) total += p[t];
    for (int64_t t = 0; t < count; ++t) p[t] /= total;
    std::fill(o, o + width, 0.0f);
    for (t = 0; t + C <= count; t += C) blend<C>(p + t, v + t * stride, o, stride, width);
    for (; t < count; ++t) blend<1>(p + t, v + t * stride, o, stride, width);
}

// gate = silu(gate) * up.
void gated(float* gate, const float* up, int64_t rows, int64_t hidden) {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
        float *g = gate + r * hidden, one = 1;
        const float* u = up + r * hidden;
        int64_t i = 0;
        for (; i + LANES <= hidden; i += LANES)
            store(lanes(g + i) * lanes(u + i) / (one + exponential(-lanes(g + i))), g + i);
        for (; i < hidden; ++i) g[i] *= u[i] / (one + std::exp(-g[i]));
    }
}

// gate = gelu(gate) * up, with GELU's tanh form: x / (1 + exp(-2 u)).
void gelu_gated(float* gate, const float* up, int64_t count) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; i += LANES) {
        float one = 1, x[LANES] = {}, u[LANES] = {};
        int64_t some = std::min<int64_t>(LANES, count - i);
        std::copy_n(gate + i, some, x);
        std::copy_n(up + i, some, u);
        Lanes g = lanes(x), inner = 1.5957691216f * (g + 0.044715f * g * g * g);
        store(lanes(u) * g / (one + exponential(-inner)), x);
        std::copy_n(x, some, gate + i);
    }
}

struct Scratch {
    Parts parts;
    std::vector<float> y, q, k, v, o, gate, up;
    Scratch(const Body& b, int64_t rows, int64_t widest = 0)
        : parts(std::max({b.dim, b.heads * b.width, b.hidden, widest})), y(rows * b.dim), q(rows * b.heads * b.width),
          k(rows * b.kv_heads * b.width), v(k.size()), o(q.size()), gate(rows * b.hidden),
          up(gate.size()) {}
};

// x [rows, dim] -> x after all layers; row r stands at places[r]. `together` rows after one another are new positions of
// one sequence; row r sees its first sees[r] columns. memory: keys, values of each layer, each [sequences or
// more, columns, kv_heads, width].
template <class T>
void run(const Body& b, float* x, int64_t rows, int64_t together, const int64_t* places, const int64_t* sees,
         int64_t columns, T* const* memory, Scratch& s) {
    int64_t stride = b.kv_heads * b.width, group = b.heads / b.kv_heads;
    for (int64_t number = 0; number < b.layers; ++number) {
        const Layer& layer = b.layer[number];
        T *keys = memory[2 * number], *values = memory[2 * number + 1];
        rms_norm(layer.norm1, b.eps, x, s.y.data(), rows, b.dim);
        linear(layer.q, s.y.data(), s.q.data(), rows, s.parts);
        linear(layer.k, s.y.data(), s.k.data(), rows, s.parts);
        linear(layer.v, s.y.data(), s.v.data(), rows, s.parts);
#pragma omp for collapse(2) schedule(static)
        for (int64_t sequence = 0; sequence < rows / together; ++sequence)
            for (int64_t h = 0; h < b.kv_heads; ++h) {
                int64_t first = sequence * columns * stride + h * b.width;
                int64_t begin = sequence * together, end = begin + together;
                for (int64_t r = begin; r < end; ++r) {
                    const float *cos = b.cos + places[r] * b.width, *sin = b.sin + places[r] * b.width;
                    int64_t here = first + places[r] * stride;
                    rotate(&s.k[r * stride + h * b.width], keys + here, cos, sin, b.width);
                    std::copy_n(&s.v[r * stride + h * b.width], b.width, values + here);
                }
                for (int64_t r = begin; r < end; ++r)
                    for (int64_t g = 0; g < group; ++g) {
                        const float *cos = b.cos + places[r] * b.width, *sin = b.sin + places[r] * b.width;
                        int64_t at = ((r * b.kv_heads + h) * group + g) * b.width;
                        float turned[b.width];
                        rotate(&s.q[at], turned, cos, sin, b.width);
                        for (int64_t i = 0; i < b.width; ++i) turned[i] *= b.scale;
                        attend(turned, keys + first, values + first, &s.o[at], sees[r], stride, b.width);
                    }
            }
        linear(layer.o, s.o.data(), x, rows, s.parts, true);
        rms_norm(layer.norm2, b.eps, x, s.y.data(), rows, b.dim);
        linear(layer.gate, s.y.data(), s.gate.data(), rows, s.parts);
        linear(layer.up, s.y.data(), s.up.data(), rows, s.parts);
        gated(s.gate.data(), s.up.data(), rows, b.hidden);
        linear(layer.down, s.gate.data(), x, rows, s.parts, true);
    }
}

int64_t largest(const std::vector<float>& x) {
    float most = x[0];
#pragma omp simd reduction(max : most)
    for (size_t i = 0; i < x.size(); ++i) most = x[i] > most ? x[i] : most;
    return std::find(x.begin(), x.end(), most) - x.begin();
}

// Maps a float to an integer of the same order; applied twice, it maps back.
inline int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

// The k-th largest number, by bisection.
float kth_largest(const std::vector<float>& x, int64_t k) {
    std::vector<int32_t> numbers(x.size());
    std::memcpy(numbers.data(), x.data(), x.size() * sizeof(float));
    for (int32_t& number : numbers) number = ordered(number);
    int64_t low = INT32_MIN, high = INT32_MAX;
    while (low < high) {
        int32_t middle = high - (high - low) / 2, count = 0;
#pragma omp simd reduction(+ : count)
        for (size_t i = 0; i < numbers.size(); ++i) count += numbers[i] >= middle;
        if (count >= k)
            low = middle;
        else
            high = middle - 1;
    }
    int32_t bits = ordered(low);
    float found;
    std::memcpy(&found, &bits, sizeof found);
    return found;
}

// Whether the largest logit is finite and none is NaN; -inf forbids an entry.
bool usable(const std::vector<float>& logits) {
    int32_t wrong = 0, good = 0;
#pragma omp simd reduction(+ : wrong, good)
    for (size_t i = 0; i < logits.size(); ++i) wrong += !(logits[i] <= FLT_MAX), good += logits[i] >= -FLT_MAX;
    return !wrong && good;
}

// Like `sample` of sampling.py: the entry with the largest sum of logit and noise that top-k and top-p keep. NONE for
// logits that are not usable, with which the search would not end, or read past the table.
int64_t choose(std::vector<float>& logits, const float* noise, const Sampling& how) {
    if (how.temperature != 0)
        for (float& logit : logits) logit /= float(how.temperature);
    if (!usable(logits)) return NONE;
    if (how.temperature == 0) return largest(logits);
    int64_t V = logits.size(), kept = how.top_k ? std::min(how.top_k, V) : V;
    std::vector<float> noisy(V), p(V);
    float total = 0;
    for (int64_t i = 0; i < V; ++i) noisy[i] = logits[i] + noise[i];
    if (how.top_p < 1) {
        float least = kept < V ? kth_largest(logits, kept) : -INFINITY;
        p = logits;
        exponentials(p.data(), V, logits[largest(logits)]);
        for (int64_t i = 0; i < V; ++i) p[i] = logits[i] < least ? 0 : p[i];
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < V; ++i) total += p[i];
    }
    while (true) {
        int64_t id = largest(noisy);
        int32_t above = 0;
        float mass = 0, limit = logits[id];
#pragma omp simd reduction(+ : above, mass)
        for (int64_t i = 0; i < V; ++i) above += logits[i] > limit, mass += logits[i] > limit ? p[i] : 0;
        if (above < kept && (how.top_p == 1 || mass / total < how.top_p)) return id;
        for (int64_t i = 0; i < V; ++i) noisy[i] = logits[i] > limit ? noisy[i] : -INFINITY;
    }
}

// The log-probability of an entry of logits that `choose` has divided by the temperature.
float log_probability(std::vector<float>& logits, int64_t id) {
    float most = logits[largest(logits)], chosen = logits[id], total = 0;
    exponentials(logits.data(), logits.size(), most);
#pragma omp simd reduction(+ : total)
    for (size_t i = 0; i < logits.size(); ++i) total += logits[i];
    return chosen - most - std::log(total);
}

}  // namespace

// half: whether memory (keys and values) is bfloat16.
extern "C" void feed(const Body* body, float* x, float* h, int64_t rows, int64_t together, const int64_t* places,
                     const int64_t* sees, int64_t columns, void* const* memory, int half, int threads) {
    Scratch scratch(*body, rows);
#pragma omp parallel num_threads(threads)
    {
        if (half)
            run(*body, x, rows, together, places, sees, columns, (Bfloat16* const*)memory, scratch);
        else
            run(*body, x, rows, together, places, sees, columns, (float* const*)memory, scratch);
        rms_norm(body->norm, body->eps, x, h, rows, body->dim);
    }
}

// h [rows, dim of the backbone] -> codes [rows, codebooks]. noise: [images, codebooks, entries]. With guidance, rows are
// [cond; uncond] or [cond; below; uncond], and all parts get the same codes. Rows of unusable logits have codes NONE.
// logps, where they are wanted: [images, codebooks].
extern "C" void draw(const Head* head, const float* h, int64_t rows, const float* noise, const Sampling* sampling,
                     int64_t* codes, float* logps, int threads) {
    const Body& body = head->body;
    int64_t K = head->codebooks, V = head->entries, images = rows / (1 + sampling->num_scales);
    Scratch scratch(body, rows, head->enter.in);
    std::vector<float> x(h, h + (head->enter.weight ? 0 : rows * body.dim)), logits(rows * V), kept;
    std::vector<float*> memory;
    x.resize(rows * body.dim);
    kept.resize(2 * body.layers * rows * K * body.kv_heads * body.width);
    for (int64_t i = 0; i < 2 * body.layers; ++i) memory.push_back(&kept[i * kept.size() / (2 * body.layers)]);
    std::vector<int64_t> places(rows), sees(rows, 1);
#pragma omp parallel num_threads(threads)
    {
        if (head->enter.weight) linear(head->enter, h, x.data(), rows, scratch.parts);
        for (int64_t k = 0; k < K; ++k) {
            run(body, x.data(), rows, 1, places.data(), sees.data(), K, memory.data(), scratch);
            rms_norm(body.norm, body.eps, x.data(), scratch.y.data(), rows, body.dim);
            linear(head->outputs[k], scratch.y.data(), logits.data(), rows, scratch.parts);
#pragma omp for schedule(static)
            for (int64_t r = 0; r < images; ++r) {
                std::vector<float> guided(&logits[r * V], &logits[r * V] + V);
                if (sampling->num_scales) {
                    const float* uncond = &logits[(r + sampling->num_scales * images) * V];
                    const float* below = uncond - images * V;
                    float scale = sampling->cfg_scales[0], last = sampling->cfg_scales[sampling->num_scales - 1];
                    for (int64_t i = 0; i < V; ++i) {
                        float cond = guided[i];
                        guided[i] = below[i] - (below[i] - uncond[i]) * (1 - last);  // as torch.lerp computes it
                        if (sampling->num_scales == 2) guided[i] += scale * (cond - below[i]);
                    }
                }
                int64_t id = choose(guided, noise ? noise + (r * K + k) * V : nullptr, *sampling);
                if (logps) logps[r * K + k] = id == NONE ? NAN : log_probability(guided, id);
                for (int64_t row = r; row < rows; row += images) {
                    codes[row * K + k] = id;
                    places[row] = k + 1, sees[row] = k + 2;
                    if (k + 1 < K)
                        std::copy_n(head->tables[k] + std::max<int64_t>(id, 0) * body.dim, body.dim, &x[row * body.dim]);
                }
            }
        }
    }
}

// x [rows, inputs] -> y [rows, dim of the backbone], at `place` of sequences whose keys and values are in memory, each
// [rows, columns, inner].
extern "C" void embed(const Embedding* e, const float* x, float* y, int64_t rows, int64_t place, int64_t columns,
                      float* keys, float* values, int threads) {
    int64_t in = e->q.in, inner = e->q.out, width = inner / e->heads, hidden = e->w0.out, dim = e->first.out;
    Parts parts(std::max({in, inner, hidden, dim}));
    std::vector<float> normed(rows * std::max(in, inner)), q(rows * inner), k(q.size()), v(q.size()), o(q.size());
    std::vector<float> sum(q.size()), gate(rows * hidden), up(gate.size()), mixed(rows * dim);
    float scale = 1 / std::sqrt(float(width));
#pragma omp parallel num_threads(threads)
    {
        layer_norm(e->norm1, x, normed.data(), rows, in);
        linear(e->q, normed.data(), q.data(), rows, parts);
        linear(e->k, normed.data(), k.data(), rows, parts);
        linear(e->v, normed.data(), v.data(), rows, parts);
#pragma omp for collapse(2) schedule(static)
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t h = 0; h < e->heads; ++h) {
                int64_t at = r * inner + h * width, first = r * columns * inner + h * width;
                for (int64_t i = 0; i < width; ++i) q[at + i] *= scale;
                std::copy_n(&k[at], width, keys + first + place * inner);
                std::copy_n(&v[at], width, values + first + place * inner);
                attend(&q[at], keys + first, values + first, &o[at], place + 1, inner, width);
            }
        layer_norm(e->norm3, x, normed.data(), rows, in);
        linear(e->across, normed.data(), sum.data(), rows, parts);
        linear(e->out, o.data(), sum.data(), rows, parts, true);
        layer_norm(e->norm2, sum.data(), normed.data(), rows, inner);
        layer_norm(e->norm, normed.data(), normed.data(), rows, inner);
        linear(e->w0, normed.data(), gate.data(), rows, parts);
        linear(e->w1, normed.data(), up.data(), rows, parts);
        gelu_gated(gate.data(), up.data(), rows * hidden);
        linear(e->w2, gate.data(), sum.data(), rows, parts, true);
        layer_norm(e->last, sum.data(), normed.data(), rows, inner);
        linear(e->first, normed.data(), mixed.data(), rows, parts);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows * dim; ++i) mixed[i] *= 0.5f * (1 + std::erf(mixed[i] * 0.70710678f));
        linear(e->second, mixed.data(), y, rows, parts);
    }
}

// The sizes of the structures, in the order of MIRRORED in cpu.py.
extern "C" void sizes(int64_t* bytes) {
    for (size_t size : {sizeof(Matrix), sizeof(Layer), sizeof(Body), sizeof(Head), sizeof(Norm), sizeof(Embedding),
                        sizeof(Sampling)})
        *bytes++ = size;
}
