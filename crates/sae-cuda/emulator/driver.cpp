// As much of CUDA's driver as this project calls, over the emulator. Work in a stream runs as late as it may: when somebody waits for it. So a copy or a kernel that
// nobody waited for is not there.
#include <sys/mman.h>

#include <deque>
#include <memory>

#include "emulator.h"

namespace {
typedef int Result;
typedef unsigned long long Device;
enum { SUCCESS = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500, NOT_READY = 600 };

// A context for each device; what is made in one is used in one.
char contexts[16];
void* current_context = nullptr;

struct Stream {
    void* context = current_context;
    std::deque<std::function<void()>> work;
    size_t done = 0;
    void run_until(size_t number) {
        while (done < number) {
            auto next = std::move(work.front());
            work.pop_front();
            done++;
            next();
        }
    }
    size_t end() const { return done + work.size(); }
};

struct Event {
    std::shared_ptr<Stream> stream;
    size_t number = 0;
    void wait() {
        if (stream) stream->run_until(number);
    }
};

std::map<void*, std::shared_ptr<Stream>> streams;

std::shared_ptr<Stream> stream_of(void* handle) {
    auto found = streams.find(handle);
    // The default stream.
    return found == streams.end() ? streams[nullptr] ? streams[nullptr] : (streams[nullptr] = std::make_shared<Stream>()) : found->second;
}

void run_all() {
    for (auto& [handle, stream] : streams) stream->run_until(stream->end());
}

size_t number_of(const char* name, size_t otherwise) {
    const char* text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

// Memory ends at a page that nobody may touch, and begins as values that are no numbers.
constexpr size_t PAGE = 4096;
std::map<Device, std::pair<size_t, void*>> allocated;
// Dynamic shared memory that a kernel may have beyond what needs no asking.
std::map<void*, int> dynamic_allowed;
size_t in_use = 0;
size_t all_memory() { return number_of("MONOSEM_EMULATOR_BYTES", size_t(1) << 34); }
size_t pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }
}  // namespace

extern "C" {
Result cuInit(unsigned) { return number_of("MONOSEM_EMULATOR_DEVICES", 1) ? SUCCESS : NO_DEVICE; }
Result cuDriverGetVersion(int* version) {
    *version = (int)number_of("MONOSEM_EMULATOR_DRIVER", 12040);
    return SUCCESS;
}
Result cuDeviceGetCount(int* n) {
    *n = (int)number_of("MONOSEM_EMULATOR_DEVICES", 1);
    return SUCCESS;
}
Result cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal < (int)number_of("MONOSEM_EMULATOR_DEVICES", 1) ? SUCCESS : INVALID_DEVICE;
}
Result cuDeviceGetName(char* name, int room, int) {
    snprintf(name, room, "emulator");
    return SUCCESS;
}
Result cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = all_memory();
    return SUCCESS;
}
Result cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 75: *value = (int)number_of("MONOSEM_EMULATOR_CAPABILITY", 80) / 10; break;
        case 76: *value = (int)number_of("MONOSEM_EMULATOR_CAPABILITY", 80) % 10; break;
        case 97: *value = 163 << 10; break;  // shared memory of a block, when asked for
        case 16: *value = 4; break;          // multiprocessors
        default: return INVALID;
    }
    return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(void** context, int device) {
    *context = &contexts[device];
    return SUCCESS;
}
Result cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
Result cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return SUCCESS; }
Result cuCtxSetCurrent(void* context) {
    current_context = context;
    return SUCCESS;
}
Result cuCtxGetCurrent(void** context) {
    *context = current_context;
    return SUCCESS;
}
Result cuCtxSynchronize() {
    run_all();
    return SUCCESS;
}
Result cuGetErrorString(Result error, const char** text) {
    *text = error == OUT_OF_MEMORY ? "out of memory" : "an error of the emulator";
    return SUCCESS;
}
Result cuGetErrorName(Result error, const char** text) { return cuGetErrorString(error, text); }

Result cuModuleLoadData(void** module, const void* image) {
    *module = &in_use;
    // The kernels that run are compiled from the source; this is only looked at.
    return strstr(static_cast<const char*>(image), ".version") ? SUCCESS : INVALID_IMAGE;
}
Result cuModuleLoadDataEx(void** module, const void* image, unsigned, void*, void*) { return cuModuleLoadData(module, image); }
Result cuModuleUnload(void*) { return SUCCESS; }
Result cuModuleGetFunction(void** function, void*, const char* name) {
    auto found = emulator::registry().find(name);
    if (found == emulator::registry().end()) return NOT_FOUND;
    *function = &found->second;
    return SUCCESS;
}
Result cuFuncSetAttribute(void* function, int attribute, int value) {
    if (attribute == 8) dynamic_allowed[function] = value;
    return SUCCESS;
}
Result cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream, void** arguments, void**) {
    if (size_t(gx) * gy * gz == 0 || size_t(bx) * by * bz == 0 || gy > 65535 || gz > 65535) return INVALID;
    // A kernel's own arrays count too; theirs is one of a value for each of 32 warps.
    if (shared > 0 && shared + 128 > (48 << 10) && size_t(dynamic_allowed[function]) < shared) return INVALID;
    if (stream_of(stream)->context != current_context) return INVALID_CONTEXT;
    auto body = (*static_cast<emulator::Bind*>(function))(arguments);
    stream_of(stream)->work.push_back([=] { emulator::launch({gx, gy, gz}, {bx, by, bz}, shared, body); });
    return SUCCESS;
}

Result cuMemAlloc_v2(Device* at, size_t bytes) {
    if (bytes == 0) return INVALID;
    if (in_use + bytes > all_memory()) return OUT_OF_MEMORY;
    size_t room = pages(bytes);
    char* base = static_cast<char*>(mmap(nullptr, room + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base == MAP_FAILED) return OUT_OF_MEMORY;
    mprotect(base + room, PAGE, PROT_NONE);
    memset(base, 0xff, room);
    *at = reinterpret_cast<Device>(base + (room - bytes) / 16 * 16);
    allocated[*at] = {bytes, current_context};
    in_use += bytes;
    return SUCCESS;
}
Result cuMemFree_v2(Device at) {
    auto found = allocated.find(at);
    if (found == allocated.end()) return INVALID;
    if (found->second.second != current_context) return INVALID_CONTEXT;
    run_all();
    auto bytes = found->second.first;
    size_t room = pages(bytes);
    munmap(reinterpret_cast<void*>(at / PAGE * PAGE), room + PAGE);
    in_use -= bytes;
    allocated.erase(found);
    return SUCCESS;
}
Result cuMemGetInfo_v2(size_t* free, size_t* total) {
    *total = all_memory();
    *free = *total - in_use;
    return SUCCESS;
}
Result cuMemAllocHost_v2(void** at, size_t bytes) {
    *at = malloc(bytes);
    return *at ? SUCCESS : OUT_OF_MEMORY;
}
Result cuMemFreeHost(void* at) {
    run_all();
    free(at);
    return SUCCESS;
}
Result cuMemcpyHtoD_v2(Device to, const void* from, size_t bytes) {
    memcpy(reinterpret_cast<void*>(to), from, bytes);
    return SUCCESS;
}
Result cuMemcpyDtoH_v2(void* to, Device from, size_t bytes) {
    memcpy(to, reinterpret_cast<const void*>(from), bytes);
    return SUCCESS;
}
Result cuMemcpyHtoDAsync_v2(Device to, const void* from, size_t bytes, void* stream) {
    stream_of(stream)->work.push_back([=] { memcpy(reinterpret_cast<void*>(to), from, bytes); });
    return SUCCESS;
}
Result cuMemcpyDtoHAsync_v2(void* to, Device from, size_t bytes, void* stream) {
    stream_of(stream)->work.push_back([=] { memcpy(to, reinterpret_cast<const void*>(from), bytes); });
    return SUCCESS;
}
Result cuMemsetD32Async(Device at, unsigned value, size_t n, void* stream) {
    stream_of(stream)->work.push_back([=] { std::fill_n(reinterpret_cast<unsigned*>(at), n, value); });
    return SUCCESS;
}

// As much of cuBLAS as is called: C = op(A) op(B) of matrices stored by column, A transposed.
Result cublasCreate_v2(void** handle) {
    *handle = new void*(nullptr);
    return SUCCESS;
}
Result cublasDestroy_v2(void* handle) {
    delete static_cast<void**>(handle);
    return SUCCESS;
}
Result cublasSetStream_v2(void* handle, void* stream) {
    *static_cast<void**>(handle) = stream;
    return SUCCESS;
}
Result cublasGemmEx(void* handle, int of_a, int of_b, int m, int n, int k, const float* alpha, Device a, int a_type, int lda, Device b, int b_type, int ldb, const float* beta, Device c, int c_type,
                    int ldc, int compute, int) {
    if (of_a != 1 || of_b != 0 || a_type != b_type || (a_type != 0 && a_type != 14) || c_type != 0 || compute != 68 || *beta != 0) return INVALID;
    float scale = *alpha;
    stream_of(*static_cast<void**>(handle))->work.push_back([=] {
        auto value = [=](Device from, size_t at) {
            if (a_type == 0) return reinterpret_cast<const float*>(from)[at];
            return __uint_as_float(unsigned(reinterpret_cast<const uint16_t*>(from)[at]) << 16);
        };
        for (int i = 0; i < n; i++)
            for (int j = 0; j < m; j++) {
                float sum = 0;
                for (int l = 0; l < k; l++) sum += value(a, size_t(j) * lda + l) * value(b, size_t(i) * ldb + l);
                reinterpret_cast<float*>(c)[size_t(i) * ldc + j] = scale * sum;
            }
    });
    return SUCCESS;
}

Result cuStreamCreateWithPriority(void** handle, unsigned, int) {
    *handle = new char;
    streams[*handle] = std::make_shared<Stream>();
    return SUCCESS;
}
Result cuStreamDestroy_v2(void* handle) {
    auto stream = stream_of(handle);
    stream->run_until(stream->end());
    streams.erase(handle);
    delete static_cast<char*>(handle);
    return SUCCESS;
}
Result cuStreamSynchronize(void* handle) {
    auto stream = stream_of(handle);
    stream->run_until(stream->end());
    return SUCCESS;
}
Result cuEventCreate(void** event, unsigned) {
    *event = new Event;
    return SUCCESS;
}
Result cuEventDestroy_v2(void* event) {
    delete static_cast<Event*>(event);
    return SUCCESS;
}
Result cuEventRecord(void* event, void* handle) {
    auto stream = stream_of(handle);
    if (stream->context != current_context) return INVALID_CONTEXT;
    *static_cast<Event*>(event) = {stream, stream->end()};
    return SUCCESS;
}
Result cuEventSynchronize(void* event) {
    static_cast<Event*>(event)->wait();
    return SUCCESS;
}
Result cuEventQuery(void* event) {
    auto* of = static_cast<Event*>(event);
    return of->stream && of->stream->done < of->number ? NOT_READY : SUCCESS;
}
Result cuEventElapsedTime(float* milliseconds, void*, void*) {
    *milliseconds = 1;
    return SUCCESS;
}
Result cuStreamWaitEvent(void* handle, void* event, unsigned) {
    Event of = *static_cast<Event*>(event);
    stream_of(handle)->work.push_back([of]() mutable { of.wait(); });
    return SUCCESS;
}
}
