// The kernels, compiled for the emulator, and their names.
#define MONOSEM_EMULATED
#include "../kernels/encode.cu"
#include "../kernels/load.cu"
#include "../kernels/reconstruct.cu"
#include "../kernels/select.cu"
#include "../kernels/summary.cu"
#include "../kernels/transpose.cu"
#include "../kernels/update.cu"

// A line `REGISTER(name)` for each kernel, which whoever compiles this makes.
#include "registered.h"
