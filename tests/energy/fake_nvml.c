/* A driver for tests: NVML's calls that the meter makes, answered from a file.
 *
 * FAKE_NVML names the file, read again for every call so that a test can change it while a
 * process runs. One line a GPU: `idle_w power_w flags [name]`; what a GPU draws over time comes
 * from FAKE_NVML_ENERGY/INDEX if there is such a file (millijoules, as text), else from power_w
 * and the time since the library was loaded. Energy moves in quanta of 20 ms. Flags, any of:
 *   n  no energy counter (NOT_SUPPORTED)     l  lost (GPU_IS_LOST)      u  unknown error
 *   r  the counter starts anew at 0 now      w  the counter has 32 bits  m  MIG is on
 *   h  a call for energy hangs
 */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SUCCESS 0
#define INVALID 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define LOST 15
#define UNKNOWN 999
#define MOST 16
#define QUANTUM_S 0.02

typedef struct { int index; } Gpu;
typedef struct { double idle_w, power_w; char flags[16], name[64]; } Line;

static Gpu gpus[MOST];
static double loaded_s;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int lines(Line *found) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char text[256];
    int count = 0;
    if (!file) return 0;
    while (count < MOST && fgets(text, sizeof text, file)) {
        Line *line = &found[count];
        strcpy(line->name, "NVIDIA H100 80GB HBM3");
        if (sscanf(text, "%lf %lf %15s %63[^\n]", &line->idle_w, &line->power_w, line->flags, line->name) >= 3)
            count++;
    }
    fclose(file);
    return count;
}

static int line_of(const Gpu *gpu, Line *line) {
    Line found[MOST];
    if (gpu->index >= lines(found)) return LOST;
    *line = found[gpu->index];
    if (strchr(line->flags, 'l')) return LOST;
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    for (int i = 0; i < MOST; i++) gpus[i].index = i;
    loaded_s = now_s();
    return SUCCESS;
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int status) {
    switch (status) {
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    Line found[MOST];
    *count = (unsigned int)lines(found);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, Gpu **gpu) {
    if (index >= MOST) return INVALID;
    *gpu = &gpus[index];
    return SUCCESS;
}

/* GPU-0000…INDEX, and MIG-0000…INDEX for its one slice. */
int nvmlDeviceGetHandleByUUID(const char *uuid, Gpu **gpu) {
    int index;
    if (sscanf(uuid, "GPU-%d", &index) != 1 && sscanf(uuid, "MIG-%d", &index) != 1) return NOT_FOUND;
    if (index < 0 || index >= MOST) return NOT_FOUND;
    *gpu = &gpus[index];
    return SUCCESS;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Gpu *slice, Gpu **gpu) {
    *gpu = slice;
    return SUCCESS;
}

int nvmlDeviceGetName(Gpu *gpu, char *name, unsigned int length) {
    Line line;
    int status = line_of(gpu, &line);
    if (status == SUCCESS) snprintf(name, length, "%s", line.name);
    return status;
}

int nvmlDeviceGetUUID(Gpu *gpu, char *uuid, unsigned int length) {
    snprintf(uuid, length, "GPU-%012d", gpu->index);
    return SUCCESS;
}

int nvmlDeviceGetMigMode(Gpu *gpu, unsigned int *current, unsigned int *pending) {
    Line line;
    int status = line_of(gpu, &line);
    if (status == SUCCESS) *current = *pending = strchr(line.flags, 'm') != NULL;
    return status;
}

int nvmlDeviceGetEnforcedPowerLimit(Gpu *gpu, unsigned int *milliwatts) {
    Line line;
    int status = line_of(gpu, &line);
    *milliwatts = 700000;
    return status;
}

int nvmlDeviceGetPowerUsage(Gpu *gpu, unsigned int *milliwatts) {
    Line line;
    int status = line_of(gpu, &line);
    if (status == SUCCESS) *milliwatts = (unsigned int)(line.power_w * 1000);
    return status;
}

static double written_mj(int index, double *mj) {
    const char *folder = getenv("FAKE_NVML_ENERGY");
    char path[512];
    FILE *file;
    int count = 0;
    if (!folder) return 0;
    snprintf(path, sizeof path, "%s/%d", folder, index);
    file = fopen(path, "r");
    if (!file) return 0;
    count = fscanf(file, "%lf", mj) == 1;
    fclose(file);
    return count;
}

int nvmlDeviceGetTotalEnergyConsumption(Gpu *gpu, unsigned long long *millijoules) {
    Line line;
    double mj = 0.0;
    int status = line_of(gpu, &line);
    if (status != SUCCESS) return status;
    if (strchr(line.flags, 'n')) return NOT_SUPPORTED;
    if (strchr(line.flags, 'u')) return UNKNOWN;
    while (strchr(line.flags, 'h')) { sleep(1); if (line_of(gpu, &line)) break; }
    if (strchr(line.flags, 'r')) { *millijoules = 0; return SUCCESS; }
    if (!written_mj(gpu->index, &mj)) {
        double steps = (double)(long long)((now_s() - loaded_s) / QUANTUM_S);
        mj = steps * QUANTUM_S * line.power_w * 1000 + 1e6;
    }
    if (strchr(line.flags, 'w')) mj -= 4294967296.0 * (double)(long long)(mj / 4294967296.0);
    *millijoules = (unsigned long long)mj;
    return SUCCESS;
}
