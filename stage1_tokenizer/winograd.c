/* F(4 x 4, 3 x 3) of winograd.py in one pass over the cache: tiles are transformed, multiplied and transformed back
 * a few dozen at a time. Channels last; float32. Compiled on first use by compiled.py. */

#include <stdlib.h>
#include <string.h>

typedef float v8 __attribute__((vector_size(32), aligned(4)));
enum { ROWS = 6, PANEL = 16 }; /* of the product: six tiles by sixteen outputs are held in registers */

/* Six values along one direction to the six points; stride in vectors. */
static inline void six_points(const v8 *d, v8 *out, int in_step, int out_step) {
    v8 d0 = d[0], d1 = d[in_step], d2 = d[2 * in_step], d3 = d[3 * in_step], d4 = d[4 * in_step], d5 = d[5 * in_step];
    v8 a = d4 - 4 * d2, b = d3 - 4 * d1, c = d4 - d2, e = 2 * (d3 - d1);
    out[0] = 4 * d0 - 5 * d2 + d4;
    out[out_step] = a + b;
    out[2 * out_step] = a - b;
    out[3 * out_step] = c + e;
    out[4 * out_step] = c - e;
    out[5 * out_step] = 4 * d1 - 5 * d3 + d5;
}

/* Six points along one direction to four outputs. */
static inline void four_outputs(const v8 *m, v8 *out, int in_step, int out_step) {
    v8 a = m[in_step] + m[2 * in_step], b = m[in_step] - m[2 * in_step];
    v8 c = m[3 * in_step] + m[4 * in_step], e = m[3 * in_step] - m[4 * in_step];
    out[0] = m[0] + a + c;
    out[out_step] = b + 2 * e;
    out[2 * out_step] = a + 4 * c;
    out[3 * out_step] = b + 8 * e + m[5 * in_step];
}

/* (rows, C) by a packed (C, PANEL) -> rows of `out`, `outputs` floats apart. */
static inline void product(const float *x, const float *panel, float *out, long channels, long outputs) {
    v8 sum[ROWS][2] = {{{0}}};
    for (long k = 0; k < channels; k++, panel += PANEL) {
        v8 left = *(const v8 *)panel, right = *(const v8 *)(panel + 8);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            float value = x[r * channels + k];
            sum[r][0] += value * left;
            sum[r][1] += value * right;
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++) {
        *(v8 *)(out + r * outputs) = sum[r][0];
        *(v8 *)(out + r * outputs + 8) = sum[r][1];
    }
}

/* Tiles `first` to `last` (counted over images, then down, then across) of the convolution below; 1 where memory is
 * wanting. */
static int some_tiles(const float *x, const float *points, const float *bias, const float *add, float *y, long height,
                      long width, long channels, long outputs, long first, long last, long block) {
    long across = width / 4, of_image = across * (height / 4);
    /* From one point to the next; a cache line more than the tiles need, or all 36 would fall into one cache set. */
    long step = block * channels + 16, out_step = block * outputs + 16;
    float *values = NULL, *products = NULL;
    if (posix_memalign((void **)&values, 64, 36 * step * sizeof(float)) ||
        posix_memalign((void **)&products, 64, 36 * out_step * sizeof(float))) {
        free(values);
        return 1;
    }
    memset(values, 0, 36 * step * sizeof(float)); /* the last block's tail is multiplied too */
    for (long begin = first; begin < last; begin += block) {
        long tiles = last - begin < block ? last - begin : block;
        for (long t = 0; t < tiles; t++) {
            long image = (begin + t) / of_image, place = (begin + t) % of_image;
            long top = place / across * 4 - 1, left = place % across * 4 - 1;
            const float *origin = x + image * height * width * channels;
            for (long c = 0; c < channels; c += 8) {
                v8 d[36], half[36];
                for (int i = 0; i < 6; i++)
                    for (int j = 0; j < 6; j++) {
                        long row = top + i, column = left + j;
                        if (row < 0 || row >= height || column < 0 || column >= width)
                            d[6 * i + j] = (v8){0};
                        else
                            d[6 * i + j] = *(const v8 *)(origin + (row * width + column) * channels + c);
                    }
                for (int j = 0; j < 6; j++) six_points(d + j, half + j, 6, 6);          /* down */
                for (int i = 0; i < 6; i++) six_points(half + 6 * i, d + i, 1, 6);      /* across comes first in d */
                for (int p = 0; p < 36; p++) *(v8 *)(values + p * step + t * channels + c) = d[p];
            }
        }
        for (int p = 0; p < 36; p++)
            for (long o = 0; o < outputs; o += PANEL)
                for (long t = 0; t < tiles; t += ROWS)
                    product(values + p * step + t * channels, points + (p * outputs + o) * channels,
                            products + p * out_step + t * outputs + o, channels, outputs);
        for (long t = 0; t < tiles; t++) {
            long image = (begin + t) / of_image, place = (begin + t) % of_image;
            long corner = ((image * height + place / across * 4) * width + place % across * 4) * outputs;
            for (long o = 0; o < outputs; o += 8) {
                v8 m[36], half[24], out[16], constant = {0};
                if (bias) constant = *(const v8 *)(bias + o);
                for (int p = 0; p < 36; p++) m[p] = *(const v8 *)(products + p * out_step + t * outputs + o);
                for (int j = 0; j < 6; j++) four_outputs(m + j, half + j, 6, 6);         /* across */
                for (int i = 0; i < 4; i++) four_outputs(half + 6 * i, out + i, 1, 4);   /* down: out is row, column */
                for (int i = 0; i < 4; i++)
                    for (int j = 0; j < 4; j++) {
                        long at = corner + (i * width + j) * outputs + o;
                        v8 value = out[4 * i + j] + constant;
                        *(v8 *)(y + at) = add ? value + *(const v8 *)(add + at) : value;
                    }
            }
        }
    }
    free(values);
    free(products);
    return 0;
}

/* x (B, height, width, channels), y (B, height, width, outputs), both sides multiples of 4;
 * points (36, outputs / 16, channels, 16): the transformed kernel in panels; bias (outputs) or NULL; add, of y's
 * shape, or NULL: what comes to it.
 * channels is a multiple of 8, outputs of 16; `tiles` of all images, of which a thread takes `share` at a time and
 * has `block`, a multiple of 6, in its cache. Returns 0, or 1 where memory is wanting. */
int winograd_f4(const float *x, const float *points, const float *bias, const float *add, float *y, long height,
                long width, long channels, long outputs, long tiles, long share, long block, long threads) {
    int failed = 0;
#pragma omp parallel for num_threads(threads) reduction(| : failed)
    for (long first = 0; first < tiles; first += share) {
        long last = first + share < tiles ? first + share : tiles;
        failed |= some_tiles(x, points, bias, add, y, height, width, channels, outputs, first, last, block);
    }
    return failed;
}
