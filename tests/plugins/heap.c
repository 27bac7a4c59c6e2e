/* Reports how many bytes the process has allocated: what it holds, not what
 * the allocator keeps back. (glibc's counts what it keeps for each thread, too,
 * which is little.) */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include "dispatch_count.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
/* gcc's library has this, but gcc does not install the header of it. */
size_t __sanitizer_get_current_allocated_bytes(void);

static size_t allocated(void) {
  return __sanitizer_get_current_allocated_bytes();
}
#else
#include <malloc.h>

static size_t allocated(void) {
  struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}
#endif

static int heap_read(void) {
  return dispatch_count("heap", "", (gauge_t)allocated());
}

void module_register(void) { plugin_register_read("heap", heap_read); }
