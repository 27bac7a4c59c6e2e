/* What the fuzz targets share. */

#ifndef FUZZ_H
#define FUZZ_H 1

#include "liboconfig/oconfig.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Ends the program if "cond" does not hold: the fuzzer keeps the input. */
#define FUZZ_CHECK(cond)                                                       \
  do {                                                                         \
    if (!(cond))                                                               \
      fuzz_fail(__FILE__, __LINE__, #cond);                                    \
  } while (0)
_Noreturn void fuzz_fail(char const *file, int line, char const *cond);

/* True if both trees are the same. */
bool fuzz_same_tree(oconfig_item_t const *a, oconfig_item_t const *b);

/* To be called once: the daemon without threads and with two data sets, some
 * values and a threshold, but without a way to load plugins or to look at
 * files outside of the working directory. */
void fuzz_daemon_init(void);

/* To be called after each input. */
void fuzz_daemon_reset(void);

int LLVMFuzzerTestOneInput(uint8_t const *data, size_t size);

#endif
