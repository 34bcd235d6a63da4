/* GroupNorm and the swish behind it, for group_norm.py: one pass for the sums, one for the rest. Channels last;
 * float32. Compiled on first use by compiled.py, together with winograd.c. */

typedef float v8 __attribute__((vector_size(32), aligned(4)));
typedef int i8 __attribute__((vector_size(32), aligned(4)));
enum { RUN = 64 }; /* pixels that are added up in float32 before they are added to a double */

static inline v8 chosen(i8 where, v8 yes, v8 no) { return (v8)((where & (i8)yes) | (~where & (i8)no)); }

/* exp(x) to two units in the last place, for |x| <= 87. */
static inline v8 exponential(v8 x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    v8 n = (x * 1.44269504f + magic) - magic;
    v8 r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two parts */
    v8 p = 1 + r * (1 + r * (0.5f + r * (1 / 6.0f + r * (1 / 24.0f + r * (1 / 120.0f + r * (1 / 720.0f))))));
    return (v8)((i8)p + (__builtin_convertvector(n, i8) << 23));
}

static inline v8 swish(v8 x) {
    v8 t = chosen(x > 87, x - x + 87, x);
    t = chosen(t < -87, x - x - 87, t);
    return x / (1 + exponential(-t));
}

/* Of x (pixels, channels) less pivot (channels): sums[c] += values, sums[channels + c] += their squares. A pivot near
 * the values keeps their squares from drowning what they differ by. */
static void add_up(const float *x, const float *pivot, double *sums, long pixels, long channels) {
    for (long begin = 0; begin < pixels; begin += RUN) {
        long run = pixels - begin < RUN ? pixels - begin : RUN;
        for (long c = 0; c < channels; c += 8) {
            v8 sum = {0}, square = {0}, middle = *(const v8 *)(pivot + c);
            const float *from = x + begin * channels + c;
            for (long p = 0; p < run; p++, from += channels) {
                v8 value = *(const v8 *)from - middle;
                sum += value;
                square += value * value;
            }
            for (int k = 0; k < 8; k++) {
                sums[c + k] += sum[k];
                sums[channels + c + k] += square[k];
            }
        }
    }
}

/* x (images, pixels, channels) -> sums (images, parts, 2, channels), zero before: of `part` pixels each, less the
 * image's first pixel. */
void channel_sums(const float *x, double *sums, long images, long pixels, long channels, long part, long threads) {
    long parts = (pixels + part - 1) / part;
#pragma omp parallel for num_threads(threads)
    for (long n = 0; n < images * parts; n++) {
        long begin = n % parts * part, count = pixels - begin < part ? pixels - begin : part;
        const float *image = x + n / parts * pixels * channels;
        add_up(image + begin * channels, image, sums + n * 2 * channels, count, channels);
    }
}

/* y = x * scale + shift, or the swish of that; x, y (images, pixels, channels), scale, shift (images, channels). */
void scale_shift(const float *x, float *y, const float *scale, const float *shift, long images, long pixels,
                 long channels, long with_swish, long threads) {
#pragma omp parallel for num_threads(threads)
    for (long p = 0; p < images * pixels; p++) {
        long of_image = p / pixels * channels, here = p * channels;
        for (long c = 0; c < channels; c += 8) {
            v8 value = *(const v8 *)(x + here + c) * *(const v8 *)(scale + of_image + c);
            value += *(const v8 *)(shift + of_image + c);
            *(v8 *)(y + here + c) = with_swish ? swish(value) : value;
        }
    }
}
