// Each latent gathers its gradient from its entries and takes its step of Adam at once: there is no array of gradients.
#include "common.cuh"
#include "family.cuh"

// Lengths below this count as this.
#define SHORTEST 1e-8f
// Moments below this are 0.
#define TINY 1e-36f

// Values and Adam's moments of them.
struct Trained {
    float* value;
    float* m;
    float* v;
};

struct Parameters {
    Trained enc;
    // Null where encoder and decoder are one.
    Trained dec;
    Trained bias;
    Trained extras[MAX_EXTRAS];
    float* scale;
    float* length;
    u32* silent;
    u32 n_latents;
    u32 n_extras;
    u32 ld_in;
    u32 ld_out;
};

// The entries of latents, and the rows that they are of.
struct Gathered {
    const u32* starts;
    const u32* rows;
    const float* codes;
    const float* deltas;
    const float* x;
    // `r` of the latent's group of prefixes: rows are `stride` apart.
    const float* r;
    u32 stride;
};

struct Adam {
    float size;
    float root;
};

__device__ __forceinline__ void adam(const Trained& of, usize i, float g, const Adam& by) {
    float first = 0.9f * of.m[i] + 0.1f * g;
    float second = 0.999f * of.v[i] + 0.001f * (g * g);
    first = fabsf(first) < TINY ? 0.0f : first;
    second = second < TINY ? 0.0f : second;
    of.m[i] = first;
    of.v[i] = second;
    of.value[i] -= by.size * first / (sqrtf(second) * by.root + 1e-8f);
}

// What a row of the encoder is multiplied by: one over its length where only its direction counts. And the length of what it then is.
__device__ __forceinline__ float scale_of(float norm, bool tied) { return !tied ? 1.0f : norm < SHORTEST ? 1.0f / SHORTEST : 1.0f / norm; }
__device__ __forceinline__ float length_of(float norm, bool tied) { return !tied ? norm : norm < SHORTEST ? norm / SHORTEST : 1.0f; }

// What the formulas need of the extra parameters, and what pre-activations have to exceed. One thread a latent.
KERNEL derive(u32 formula, float bandwidth, const float* extra, u32 n_latents, float* derived, float* floor) {
    u32 j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= n_latents) return;
    float value = formula == FORMULA_RELU ? 0.0f : expf(extra[j]);
    derived[j] = value;
    floor[j] = formula == FORMULA_JUMP_RELU ? value - bandwidth / 2 : 0.0f;
}

// The length of a row, whose order of summation is the same wherever it is taken, so that a resumed run goes on to the bit. By one block.
__device__ __forceinline__ float norm_of(const float* row, u32 ld, float* scratch) {
    float squares = 0;
    for (u32 c = threadIdx.x; c < ld; c += blockDim.x) squares += row[c] * row[c];
    return sqrtf(block_sum(squares, scratch));
}

// Scale and length of each row of the encoder, as `update` leaves them. One block of as many threads a latent.
KERNEL measure(const float* enc, u32 ld, u32 tied, float* scale, float* length) {
    __shared__ float scratch[32];
    usize j = blockIdx.x;
    float norm = norm_of(enc + j * ld, ld, scratch);
    if (threadIdx.x > 0) return;
    scale[j] = scale_of(norm, tied);
    length[j] = length_of(norm, tied);
}

// Sums over each latent's entries: of deltas and extra gradients [1 + MAX_EXTRAS][n_latents], and whether a code was above 0. One warp a latent.
KERNEL sums_by_latent(const u32* starts, const float* codes, const float* deltas, const float* extra0, const float* extra1, u32 n_latents, float* sums, u32* fired) {
    u32 j = (blockIdx.x * blockDim.x + threadIdx.x) >> 5, lane = threadIdx.x & 31;
    if (j >= n_latents) return;
    float delta = 0, first = 0, second = 0;
    u32 any = 0;
    for (u32 e = starts[j] + lane; e < starts[j + 1]; e += 32) {
        delta += deltas[e];
        if (extra0) first += extra0[e];
        if (extra1) second += extra1[e];
        any |= codes[e] > 0;
    }
    delta = warp_sum(delta);
    first = warp_sum(first);
    second = warp_sum(second);
    any = __ballot_sync(ALL, any);
    if (lane == 0) {
        sums[j] = delta;
        sums[n_latents + j] = first;
        sums[2 * (usize)n_latents + j] = second;
        fired[j] = any != 0;
    }
}

// Adds the sums of dead latents' own entries, numbered among themselves: one thread each.
KERNEL add_dead_sums(const u32* ids, u32 n_dead, const float* dead_sums, float* sums) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n_dead) sums[ids[i]] += dead_sums[i];
}

// What the bias subtracted from the input takes from its gradient: for each run of latents sum_j (sum of deltas of j) w_enc_j. One thread a column.
KERNEL through_center(const float* sums, const float* enc, u32 n_latents, u32 ld, u32 width, u32 run, float* partial) {
    u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= width) return;
    u32 first = blockIdx.y * run, last = min(first + run, n_latents);
    float sum = 0;
    for (usize j = first; j < last; j++) sum += sums[j] * enc[j * ld + c];
    partial[(usize)blockIdx.y * width + c] = sum;
}

// The gradient of the decoder's bias from both partial sums (`center` may be null), and the sum of its squares for the clipping. One block.
KERNEL_BOUNDED(1024, 1) bias_gradient(const float* partial, u32 runs, const float* center, u32 center_runs, u32 width, float* gradient, Control* control) {
    __shared__ double scratch[32];
    double squares = 0;
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) {
        float sum = 0;
        for (u32 i = 0; i < runs; i++) sum += partial[(usize)i * width + c];
        if (center)
            for (u32 i = 0; i < center_runs; i++) sum -= center[(usize)i * width + c];
        gradient[c] = sum;
        squares += (double)sum * sum;
    }
    squares = block_sum(squares, scratch);
    if (threadIdx.x == 0) control->gradient_squares = squares;
}

KERNEL step_bias(const float* gradient, Trained bias, u32 width, Adam by, Control* control) {
    u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= width || control->halted) return;
    adam(bias, c, gradient[c] * control->clip, by);
    if (!isfinite(bias.value[c])) atomicOr(&control->not_finite, 1u);
}

// gradient += sum over entries of weight * row, at one float4. Two entries at a time, whose rows are fetched together.
__device__ __forceinline__ float4 gather4(float4 sum, const u32* rows, const float* weights, u32 first, u32 last, const float* values, u32 stride, u32 c) {
    u32 e = first;
    for (; e + 1 < last; e += 2) {
        float4 a = reinterpret_cast<const float4*>(values + (usize)rows[e] * stride)[c], b = reinterpret_cast<const float4*>(values + (usize)rows[e + 1] * stride)[c];
        sum = fma4(fma4(sum, weights[e], a), weights[e + 1], b);
    }
    if (e < last) sum = fma4(sum, weights[e], reinterpret_cast<const float4*>(values + (usize)rows[e] * stride)[c]);
    return sum;
}

// One block a latent; dynamic shared memory holds its gradient, `ld_in` and, unless tied, `ld_out` floats. With `squares` nothing moves: it becomes the sum of
// squares of the gradient of each latent, for the clipping. `dead` says which number among the dead each latent has, else NONE.
KERNEL update(Parameters of, Family family, const float* derived, const float* sums, const u32* fired, Gathered by, Gathered dead_by, const u32* dead, const u32* ends, u32 groups, u32 project_decoder, Adam step, float* squares, Control* control) {
    DYNAMIC_SHARED(float, gradient);
    __shared__ float scratch[32];
    if (control->halted) return;
    u32 j = blockIdx.x, quads_in = of.ld_in / 4, quads_out = of.ld_out / 4, group = 0;
    bool tied = of.dec.value == nullptr;
    while (group + 1 < groups && j >= ends[group]) group++;
    u32 number = dead ? dead[j] : NONE;
    float4 *enc = reinterpret_cast<float4*>(gradient), *dec = reinterpret_cast<float4*>(gradient + of.ld_in);
    float4* w = row4(of.enc.value, j, of.ld_in);
    float along = 0, total = 0;
    u32 first = by.starts[j], last = by.starts[j + 1];
    const float4 zero = make_float4(0, 0, 0, 0);
    for (u32 c = threadIdx.x; c < quads_in; c += blockDim.x) {
        float4 sum = gather4(zero, by.rows, by.deltas, first, last, by.x, of.ld_in, c);
        if (tied) sum = gather4(sum, by.rows, by.codes, first, last, by.r, by.stride, c);
        if (number != NONE) sum = gather4(sum, dead_by.rows, dead_by.deltas, dead_by.starts[number], dead_by.starts[number + 1], dead_by.x, of.ld_in, c);
        enc[c] = sum;
        along += dot4(sum, w[c]);
    }
    float scale = of.scale[j];
    if (tied) {
        // The gradient of the direction becomes that of the row; a clamped length has no gradient of its own.
        along = block_sum(along, scratch) * scale * scale;
        if (!(scale < 1.0f / SHORTEST)) along = 0;
        for (u32 c = threadIdx.x; c < quads_in; c += blockDim.x) {
            float4 g = fma4(enc[c], -along, w[c]);
            enc[c] = make_float4(g.x * scale, g.y * scale, g.z * scale, g.w * scale);
        }
    } else {
        float4* w_dec = row4(of.dec.value, j, of.ld_out);
        along = 0;
        for (u32 c = threadIdx.x; c < quads_out; c += blockDim.x) {
            float4 sum = gather4(zero, by.rows, by.codes, first, last, by.r + (usize)group * of.ld_out, by.stride, c);
            if (number != NONE) sum = gather4(sum, dead_by.rows, dead_by.codes, dead_by.starts[number], dead_by.starts[number + 1], dead_by.r, dead_by.stride, c);
            dec[c] = sum;
            along += dot4(sum, w_dec[c]);
        }
        along = block_sum(along, scratch);
        if (project_decoder)
            for (u32 c = threadIdx.x; c < quads_out; c += blockDim.x) dec[c] = fma4(dec[c], -along, w_dec[c]);
    }
    float small[1 + MAX_EXTRAS];
    for (u32 i = 0; i <= MAX_EXTRAS; i++) small[i] = sums[(usize)i * of.n_latents + j];
    // Of a gated autoencoder `deltas` are by z; of the gate's bias only the gate's part is.
    if (family.formula == FORMULA_GATED) small[0] -= derived[j] * small[2];
    if (squares) {
        for (u32 c = threadIdx.x; c < quads_in; c += blockDim.x) total += dot4(enc[c], enc[c]);
        if (!tied)
            for (u32 c = threadIdx.x; c < quads_out; c += blockDim.x) total += dot4(dec[c], dec[c]);
        total = block_sum(total, scratch);
        for (u32 i = 0; i <= of.n_extras; i++) total += small[i] * small[i];
        if (threadIdx.x == 0) squares[j] = total;
        return;
    }
    float clip = control->clip;
    // Gradients were written by float4 and are read by float: by other threads.
    __syncthreads();
    for (u32 c = threadIdx.x; c < of.ld_in; c += blockDim.x) adam(of.enc, (usize)j * of.ld_in + c, gradient[c] * clip, step);
    float length = norm_of(of.enc.value + (usize)j * of.ld_in, of.ld_in, scratch);
    bool finite = true;
    if (!tied) {
        float* row = of.dec.value + (usize)j * of.ld_out;
        for (u32 c = threadIdx.x; c < of.ld_out; c += blockDim.x) adam(of.dec, (usize)j * of.ld_out + c, gradient[of.ld_in + c] * clip, step);
        float norm = norm_of(row, of.ld_out, scratch);
        finite = isfinite(norm);
        for (u32 c = threadIdx.x; c < of.ld_out; c += blockDim.x) row[c] /= fmaxf(norm, SHORTEST);
    }
    if (threadIdx.x == 0) {
        adam(of.bias, j, small[0] * clip, step);
        finite = finite && isfinite(of.bias.value[j]);
        for (u32 i = 0; i < of.n_extras; i++) {
            adam(of.extras[i], j, small[1 + i] * clip, step);
            finite = finite && isfinite(of.extras[i].value[j]);
        }
        of.scale[j] = scale_of(length, tied);
        of.length[j] = length_of(length, tied);
        finite = finite && of.scale[j] > 0 && isfinite(of.length[j]);
        if (!finite) atomicOr(&control->not_finite, 1u);
        of.silent[j] = fired[j] ? 0 : of.silent[j] + (of.silent[j] != NONE);
    }
}

// What gradients are multiplied by so that their norm is at most `most`. One block.
KERNEL_BOUNDED(1024, 1) clip_factor(const float* squares, u32 n, float most, Control* control) {
    __shared__ double scratch[32];
    double total = 0;
    for (u32 j = threadIdx.x; j < n; j += blockDim.x) total += squares[j];
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) {
        double norm = sqrt(total + control->gradient_squares);
        control->clip = norm > most ? (float)(most / norm) : 1.0f;
    }
}
