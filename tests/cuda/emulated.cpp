// Handles of the emulated GPU for the tests; linked with the files of csrc/cuda, which register themselves for the CPU.
#include "device.h"

extern "C" {

// The order in which the threads of a block take turns, see host_emulation.h.
void alt_emulation_order(unsigned order) { alt::gpu::emulation::order = order; }

// Kernels started so far.
int64_t alt_emulation_launches() { return alt::gpu::emulation::launches; }
}
