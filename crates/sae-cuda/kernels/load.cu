// The batch as the encoder reads it: scaled, perhaps without the decoder's bias, rows padded.
#include "common.cuh"

// One block a row. `center` may be null. The sum of squares before the center was subtracted goes to `raw_squares` and says whether the row is finite.
KERNEL load_rows(const float* input, u32 d, u32 ld, float scale, const float* center, float* x, float* squares, float* raw_squares, Control* control) {
    __shared__ float scratch[32];
    usize row = blockIdx.x;
    float raw = 0, sum = 0;
    for (u32 c = threadIdx.x; c < ld; c += blockDim.x) {
        float value = c < d ? input[row * d + c] * scale : 0.0f;
        raw += value * value;
        if (center && c < d) value -= center[c];
        sum += value * value;
        x[row * ld + c] = value;
    }
    raw = block_sum(raw, scratch);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        squares[row] = sum;
        raw_squares[row] = raw;
        if (!isfinite(raw)) atomicMin(&control->bad_row, (u32)row);
    }
}

// Sums over runs of `run` rows of each of the first `width` columns: partial[run][column]. One thread a column.
KERNEL column_sums(const float* values, u32 rows, u32 stride, u32 width, u32 run, float scale, float* partial) {
    u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= width) return;
    u32 first = blockIdx.y * run, last = min(first + run, rows);
    float sum = 0;
    for (usize row = first; row < last; row++) sum += values[row * stride + c] * scale;
    partial[(usize)blockIdx.y * width + c] = sum;
}

// Rounds rows of `from` floats to bf16, `to` apart, zero beyond.
KERNEL round_rows(const float* values, u32 from, u32 to, u16* rounded) {
    usize row = blockIdx.x;
    for (u32 c = threadIdx.x; c < to; c += blockDim.x) rounded[row * to + c] = c < from ? to_bf16(values[row * from + c]) : 0;
}

// Rows of few latents, gathered: what the auxiliary loss encodes and decodes with. One block a latent.
KERNEL gather_latents(const u32* ids, u32 ld_in, u32 ld_out, const float* enc, const float* dec, const float* bias, const float* length, float* to_enc, float* to_dec, float* to_bias, float* to_length) {
    usize to = blockIdx.x, from = ids[to];
    for (u32 c = threadIdx.x; c < ld_in / 4; c += blockDim.x) row4(to_enc, to, ld_in)[c] = row4(enc, from, ld_in)[c];
    for (u32 c = threadIdx.x; c < ld_out / 4; c += blockDim.x) row4(to_dec, to, ld_out)[c] = row4(dec, from, ld_out)[c];
    if (threadIdx.x == 0) {
        to_bias[to] = bias[from];
        to_length[to] = length[from];
    }
}
