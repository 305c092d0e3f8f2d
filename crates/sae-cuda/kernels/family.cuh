// In what the families differ: the code that a pre-activation gives, and the loss's gradients. The formulas, with the papers they come from, are those of
// `monosem-sae`'s files of the same names.
#pragma once
#include "common.cuh"

#define MAX_GROUPS 16
#define MAX_EXTRAS 2

enum Formula { FORMULA_RELU = 0, FORMULA_JUMP_RELU = 1, FORMULA_GATED = 2 };

struct Family {
    u32 formula;
    // The sparsity coefficient over the number of rows.
    float penalty;
    // Of a JumpReLU's window.
    float bandwidth;
};

// Parameters of a latent besides its rows. `derived` is what the formulas need often: the threshold of a JumpReLU, the gain of a gated one.
struct Latents {
    const float* bias;
    const float* extras[MAX_EXTRAS];
    const float* derived;
};

// The code of a pre-activation, that of a second reconstruction, and what it adds to the penalty.
__device__ __forceinline__ float family_code(const Family& by, const Latents& of, u32 j, float pre, float& second, float& penalty) {
    if (by.formula == FORMULA_JUMP_RELU) {
        bool above = pre > of.derived[j];
        penalty += above;
        return above ? pre : 0.0f;
    }
    if (by.formula == FORMULA_GATED) {
        second = pre > 0 ? pre : 0.0f;
        penalty += second;
        float magnitude = of.derived[j] * (pre - of.bias[j]) + of.extras[1][j];
        return pre > 0 ? fmaxf(magnitude, 0.0f) : 0.0f;
    }
    float code = pre > 0 ? pre : 0.0f;
    penalty += code;
    return code;
}

// The loss's gradient by a pre-activation and by the extra parameters of its latent.
__device__ __forceinline__ float family_gradient(const Family& by, const Latents& of, u32 j, float pre, float dot, float second_dot, float (&extras)[MAX_EXTRAS]) {
    extras[0] = extras[1] = 0;
    if (by.formula == FORMULA_JUMP_RELU) {
        float theta = of.derived[j];
        bool in_window = fabsf(pre - theta) < by.bandwidth / 2;
        extras[0] = in_window ? -(theta * dot + by.penalty) / by.bandwidth * theta : 0.0f;
        return pre > theta ? dot : 0.0f;
    }
    if (by.formula == FORMULA_GATED) {
        float z = pre - of.bias[j], gain = of.derived[j], magnitude = gain * z + of.extras[1][j];
        bool open = pre > 0;
        float by_magnitude = open && magnitude > 0 ? dot : 0.0f;
        extras[0] = by_magnitude * gain * z;
        extras[1] = by_magnitude;
        return by_magnitude * gain + (open ? second_dot + by.penalty : 0.0f);
    }
    return pre > 0 ? dot + by.penalty : 0.0f;
}
