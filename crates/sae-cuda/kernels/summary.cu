// The figures of a step, and whether parameters may move.
#include "common.cuh"

// Before a step. One thread.
KERNEL begin(Control* control, u32 wanted) {
    Control start;
    memset(&start, 0, sizeof(start));
    start.bad_row = NONE;
    start.clip = 1;
    start.wanted = wanted;
    *control = start;
}

__device__ double block_total(const float* values, u32 n, double* scratch) {
    double total = 0;
    if (values)
        for (u32 i = threadIdx.x; i < n; i += blockDim.x) total += values[i];
    return block_sum(total, scratch);
}

// Sums of rows: null where there are none.
struct Figures {
    const float* squared_error;
    const float* objective;
    const float* penalty;
    const float* codes;
    const u32* active;
    // Sums of squares of the rows that are to be reconstructed, and sums of their columns over runs of rows.
    const float* squares;
    const float* columns;
    // Errors of the auxiliary loss; null without it.
    const float* aux_errors;
    // Smallest limits of rows, relative to their size; null where the choice is not by row.
    const float* relative;
    // Where the entries of each row begin: rows + 1 values.
    const u32* starts;
    u32 rows;
    u32 runs;
    u32 width;
};

// What the host would decide from them: whether there was room, all that was wanted was found, and the loss is a number.
struct Bounds {
    u32 capacity;
    u32 aux_capacity;
    // Whether too few candidates mean that more have to be looked for.
    u32 needs_all;
    float alpha;
    float coefficient;
    // The largest FVU that does not count as diverged.
    float worst;
};

// One block.
KERNEL_BOUNDED(1024, 1) summarise(Figures of, Bounds by, Control* control) {
    __shared__ double scratch[32];
    __shared__ u64 counts[32];
    __shared__ float smallest[32];
    double squared_error = block_total(of.squared_error, of.rows, scratch);
    double objective = block_total(of.objective, of.rows, scratch);
    double penalty = block_total(of.penalty, of.rows, scratch);
    double codes = block_total(of.codes, of.rows, scratch);
    double squares = block_total(of.squares, of.rows, scratch);
    double aux_error = block_total(of.aux_errors, of.rows, scratch);
    u64 active = 0;
    for (u32 i = threadIdx.x; i < of.rows && of.active; i += blockDim.x) active += of.active[i];
    active = block_sum(active, counts);
    double column_squares = 0;
    for (u32 c = threadIdx.x; c < of.width; c += blockDim.x) {
        double sum = 0;
        for (u32 i = 0; i < of.runs; i++) sum += of.columns[(usize)i * of.width + c];
        column_squares += sum * sum;
    }
    column_squares = block_sum(column_squares, scratch);
    if (of.relative) {
        float least = ENDLESS;
        for (u32 i = threadIdx.x; i < of.rows; i += blockDim.x) least = fminf(least, of.relative[i]);
        for (int d = 16; d > 0; d >>= 1) least = fminf(least, __shfl_xor_sync(ALL, least, d));
        if ((threadIdx.x & 31) == 0) smallest[threadIdx.x >> 5] = least;
        __syncthreads();
        for (u32 w = 0; w < blockDim.x >> 5; w++) least = fminf(least, smallest[w]);
        if (threadIdx.x == 0) control->chosen = least;
    }
    if (threadIdx.x > 0) return;
    control->squared_error = squared_error;
    control->objective = objective;
    control->penalty = penalty;
    control->codes = codes;
    control->squares = squares;
    control->column_squares = column_squares;
    control->aux_error = aux_error;
    control->active = active;
    control->entries = of.starts[of.rows];
    u32 halted = 0;
    if (control->bad_row != NONE) halted |= HALT_BAD_ROW;
    if (control->found > by.capacity || control->aux_found > by.aux_capacity) halted |= HALT_NO_ROOM;
    if (by.needs_all && control->short_rows > 0) halted |= HALT_SHORT;
    if (!halted) {
        double rows = of.rows, values = rows * of.width;
        double deviation = squares - column_squares / rows;
        double fvu = deviation > 1e-6 * squares ? squared_error / deviation : 0.0;
        double loss = objective / values + by.alpha * penalty / rows + by.coefficient * aux_error / values;
        if (!isfinite((float)loss) || fvu > by.worst) halted |= HALT_DIVERGED;
    }
    control->halted = halted;
}

// Latents silent for `after` steps.
KERNEL count_dead(const u32* silent, u32 n_latents, u32 after, Control* control) {
    u32 j = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x & 31;
    u32 mask = __ballot_sync(ALL, j < n_latents && silent[j] >= after);
    if (lane == 0 && mask) atomicAdd(&control->dead, (u32)__popc(mask));
}
