/* Each call of its reader loses some memory, which a leak checker must notice.
 */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include "dispatch_count.h"

static void *volatile lost; /* so that the compiler keeps malloc() */

static int leak_read(void) {
  lost = malloc(100);
  lost = NULL;
  return dispatch_count("leak", "", 1);
}

void module_register(void) { plugin_register_read("leak", leak_read); }
