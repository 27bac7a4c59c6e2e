/* The parsers of the monitor, which are in Rust: FUZZ_TARGET names one of them.
 * What must hold is in rust-core/src/fuzz.rs. */

#include <stddef.h>
#include <stdint.h>

void cl_fuzz(char const *target, uint8_t const *data, size_t size);

int LLVMFuzzerTestOneInput(uint8_t const *data, size_t size);
int LLVMFuzzerTestOneInput(uint8_t const *data, size_t size) {
  cl_fuzz(FUZZ_TARGET, data, size);
  return 0;
}
