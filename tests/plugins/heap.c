/* Reports how many bytes the process has allocated: what it holds, not what
 * the allocator keeps back. For AddressSanitizer's allocator only. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include "dispatch_count.h"

/* gcc's library has this, but gcc does not install the header of it. */
size_t __sanitizer_get_current_allocated_bytes(void);

static int heap_read(void) {
  return dispatch_count("heap", "",
                        (gauge_t)__sanitizer_get_current_allocated_bytes());
}

void module_register(void) { plugin_register_read("heap", heap_read); }
